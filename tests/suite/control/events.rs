//! What an event is, and which are refused.

use std::collections::BTreeMap;

use millrace::control::rollout::{Gate, Plan, Progress, RolloutState, Wave};
use millrace::control::{
    ControlEvent, ControlVersion, Desired, EventBody, EventId, Kind, RunState, Trusted, UnsignedEvent,
    check_digest,
};
use millrace_tests::control_events::{
    ISSUED, NOW, SECOND, about, deployed, release_key, removed, running, signed_deploy, spec, trust,
    trust_changed, trusted,
};
use serde_json::{Value, json};

use super::{GOLDEN, changed, code_of, golden, parsed};

#[test]
fn c1_every_kind_comes_out_of_json_as_it_went_in() {
    for (kind, text) in GOLDEN {
        let event = parsed(text);
        assert_eq!(event.unsigned().kind.as_str(), kind);
        assert_ne!(event.unsigned().body, EventBody::Unknown, "{kind}");
        assert_eq!(parsed(&event.to_json()), event, "{kind}");
        let (before, after): (Value, Value) =
            (serde_json::from_str(text).unwrap(), serde_json::from_str(&event.to_json()).unwrap());
        assert_eq!(before, after, "{kind}");
        // And from the parts that it was read into.
        let again = event.unsigned().without_signature().unwrap();
        assert_eq!(again.unsigned(), event.unsigned(), "{kind}");
        assert_eq!(again.signed_bytes(), event.signed_bytes(), "{kind}");
        assert_eq!(again.digest(), event.digest(), "{kind}");
    }
}

#[test]
fn c1_what_another_program_has_signed_is_believed() {
    for (kind, text) in GOLDEN {
        let event = parsed(text);
        trust().check_event(&event, NOW).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let EventBody::Plugin { plugin, desired } = &event.unsigned().body else { continue };
        for spec in desired.spec.iter().chain(&desired.stable) {
            trust().check_artifact(plugin, &spec.component, event.unsigned().issued_at).unwrap();
        }
    }
}

#[test]
fn c1_times_are_kept_to_the_microsecond() {
    let event = UnsignedEvent {
        issued_at: ISSUED + 1,
        expires_at: Some(ISSUED + 2 * SECOND),
        ..deployed("board", "1.0.0", 1)
    };
    let event = event.sign(&release_key()).unwrap();
    let json: Value = serde_json::from_str(&event.to_json()).unwrap();
    assert_eq!(json["issued_at"], "2026-03-01T12:00:00.000001Z");
    assert_eq!(json["expires_at"], "2026-03-01T12:00:02.000000Z");
    assert_eq!(parsed(&event.to_json()), event);
}

#[test]
fn c2_w21_members_have_the_names_that_they_are_to_have() {
    let top = |text: &str| {
        let json: Value = serde_json::from_str(&parsed(text).to_json()).unwrap();
        json.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let common = ["actor", "base_revision"];
    let rest = ["event_id", "issued_at", "must_understand"];
    let last = ["reason", "revision", "schema_version", "signatures"];
    let deploy = [&common[..], &["desired"], &rest, &["plugin"], &last, &["type"]].concat();
    assert_eq!(top(golden("plugin.paused")), deploy);
    let list = [&common[..], &rest, &last, &["trust", "type"]].concat();
    assert_eq!(top(golden("trust.changed")), list);
}

#[test]
fn c2_control_version_is_the_feeds_and_no_part_of_the_event() {
    let event = signed_deploy("board", "1.0.0", 1);
    let text = event.to_json_at(ControlVersion(u64::MAX));
    assert!(text.contains("\"control_version\": 18446744073709551615"), "{text}");
    let (again, version) = ControlEvent::parse_at(&text).unwrap();
    assert_eq!((&again, version), (&event, Some(ControlVersion(u64::MAX))));
    assert_eq!(ControlEvent::parse_at(&event.to_json()).unwrap(), (event, None));
    trust().check_event(&again, NOW).unwrap();
    assert!(!again.to_json().contains("control_version"));
}

#[test]
fn c3_the_least_event_is_accepted() {
    let least = json!({
        "schema_version": 1,
        "event_id": "evt_01JH0000000000000000000001",
        "type": "plugin.removed",
        "plugin": "board",
        "revision": 2,
        "base_revision": 1,
        "desired": { "state": "removed" },
        "issued_at": "2026-03-01T12:00:00Z",
        "actor": "ops",
    });
    let event = parsed(&least.to_string());
    assert_eq!(event.entity(), "plugin:board");
    assert_eq!(event.unsigned().issued_at, ISSUED);
    assert!(event.signatures().is_empty() && !event.unsigned().must_understand);
}

/// Each of these alone makes an event wrong, for who makes it and for who takes it.
#[test]
fn c4_what_is_wrong_with_an_event_is_refused() {
    let set = |path: &'static str, value: Value| {
        let text =
            changed(golden("plugin.deployed"), |json| *json.pointer_mut(path).unwrap() = value.clone());
        (format!("{path} = {value}"), text)
    };
    let component = "/desired/spec/component";
    let digest = "/desired/spec/component/digest";
    let bytes = "/desired/spec/component/bytes";
    let hex = "ab".repeat(32);
    let wrong = [
        set("", json!([])),
        set("/event_id", json!("")),
        set("/event_id", json!("evt_../../../../../../../tmp/x")),
        set("/event_id", json!("evt_01jh0000000000000000000001")),
        set("/type", json!("")),
        set("/type", json!("Plugin Deployed")),
        set("/schema_version", json!(0)),
        set("/plugin", json!("")),
        set("/plugin", json!("Board")),
        set("/plugin", json!("a/../b")),
        set("/plugin", json!("b".repeat(63))),
        set("/plugin", Value::Null),
        set("/desired", Value::Null),
        set("/revision", json!(0)),
        set("/base_revision", json!(1)),
        set("/base_revision", json!(-1)),
        set("/revision", json!(1.5)),
        set("/revision", json!(u64::MAX)),
        set("/actor", json!("")),
        set("/actor", json!("a".repeat(257))),
        set("/actor", json!("a\u{1b}[2J")),
        set("/reason", json!("r".repeat(2049))),
        set("/issued_at", json!("yesterday")),
        set("/issued_at", json!("1969-12-31T23:59:59Z")),
        set("/issued_at", json!("2026-03-01T12:00:00+00:00")),
        set("/issued_at", json!("2026-03-01T12:00:00.0000001Z")),
        set("/issued_at", json!(ISSUED)),
        set("/expires_at", json!("2026-03-01T12:00:01.000000Z")),
        set(digest, json!("")),
        set(digest, json!(format!("md5:{hex}"))),
        set(digest, json!(hex)),
        set(digest, json!(format!("sha256:{}", hex.to_uppercase()))),
        set(digest, json!(format!("sha256:{}", &hex[1..]))),
        set(digest, json!(format!("sha256:{hex}0"))),
        set(digest, json!("sha256:../../etc/passwd")),
        set(component, json!({ "digest": format!("sha256:{hex}") })),
        set(component, Value::Null),
        set(bytes, json!(0)),
        set(bytes, json!((64 << 20) + 1)),
        set("/desired/spec/config/bytes", json!((1 << 20) + 1)),
        set("/desired/spec/version", json!("one")),
        set("/desired/spec/world", json!("")),
        set("/desired/spec/from", json!("newest")),
        set("/desired/spec/from", json!("after:01")),
        set("/desired/spec/limits", json!({ "memory": 1 })),
        set("/desired/spec/limits", json!({ "memory_bytes_max": "many" })),
        set("/desired/spec/limits", json!({ "lanes": 0 })),
        set("/desired/spec/limits", json!({ "call_ms_max": 0.5 })),
        set("/desired/spec/limits", json!({ "grants": ["clock"] })),
        set("/desired/spec/grants", json!({ "grants": ["root"] })),
        set("/desired/spec/grants", json!({ "grants": ["http"] })),
        set("/desired/spec/grants", json!({ "config": {} })),
        set("/desired/stable/version", json!("1")),
        set("/desired/targets", json!({ "": "x" })),
        set("/desired/targets", json!({ "zone": "a b" })),
        set("/desired/rollout/id", json!("1")),
        set("/desired/rollout/wave", json!(2)),
        set("/desired/rollout/plan/waves", json!([])),
        set("/desired/rollout/plan/waves/0/percent", json!(0)),
        set("/desired/rollout/plan/waves/0/percent", json!(101)),
        set("/desired/rollout/plan/gate/unavailable_percent_max", json!(101)),
        set("/desired/rollout", Value::Null),
        set("/desired/spec", Value::Null),
        set("/desired/state", json!("removed")),
        set("/desired/state", json!("sleeping")),
        set("/signatures/0/key", json!("ed25519:1")),
        set("/signatures/0/signature", json!("AAAA")),
    ];
    for (what, text) in wrong {
        assert_eq!(code_of(ControlEvent::parse(&text)), "control_event_invalid", "{what}");
    }
    parsed(golden("plugin.deployed"));
}

#[test]
fn c4_a_kind_has_the_members_that_it_needs_and_no_others() {
    let spec = || spec("board", "1.0.0", b"1.0.0");
    let state = |state: RunState| Desired { state, ..running(spec()) };
    let rollout = |progress: Progress| Desired {
        rollout: Some(RolloutState {
            id: "evt_01JH0000000000000000000001".into(),
            plan: Plan {
                waves: vec![Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 }],
                gate: Gate::default(),
                automatic: true,
            },
            wave: 0,
            progress,
        }),
        ..running(spec())
    };
    let (halted, moving) = (rollout(Progress::Halted), rollout(Progress::Running));
    let right = [
        (Kind::Deployed, running(spec())),
        (Kind::Deployed, moving.clone()),
        (Kind::RolledBack, running(spec())),
        (Kind::ConfigChanged, state(RunState::Paused)),
        (Kind::Removed, removed()),
        (Kind::Paused, state(RunState::Paused)),
        (Kind::Resumed, running(spec())),
        (Kind::RolloutAdvanced, rollout(Progress::Complete)),
        (Kind::RolloutHalted, halted.clone()),
    ];
    for (kind, desired) in right {
        about("board", kind.clone(), desired, 1)
            .without_signature()
            .unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
    let without_spec = |state: RunState| Desired { state, ..removed() };
    let wrong = [
        (Kind::Deployed, without_spec(RunState::Running)),
        (Kind::Deployed, removed()),
        (Kind::RolledBack, removed()),
        (Kind::ConfigChanged, without_spec(RunState::Running)),
        (Kind::Removed, running(spec())),
        (Kind::Removed, state(RunState::Removed)),
        (Kind::Removed, Desired { targets: BTreeMap::from([("zone".into(), "a".into())]), ..removed() }),
        (Kind::Paused, running(spec())),
        (Kind::Resumed, state(RunState::Paused)),
        (Kind::RolloutAdvanced, running(spec())),
        (Kind::RolloutAdvanced, halted),
        (Kind::RolloutHalted, moving),
        (Kind::Deployed, Desired { stable: Some(spec()), ..running(spec()) }),
        (Kind::TrustChanged, running(spec())),
    ];
    for (kind, desired) in wrong {
        let result = about("board", kind.clone(), desired, 1).sign(&release_key());
        assert_eq!(code_of(result), "control_event_invalid", "{kind}");
    }
    let list = json!({ "keys": [] });
    for (kind, _) in GOLDEN.iter().filter(|(kind, _)| *kind != "trust.changed") {
        let both = changed(golden(kind), |json| json["trust"] = list.clone());
        assert_eq!(code_of(ControlEvent::parse(&both)), "control_event_invalid", "{kind}");
    }
    let both = changed(golden("trust.changed"), |json| json["plugin"] = json!("board"));
    assert_eq!(code_of(ControlEvent::parse(&both)), "control_event_invalid");
}

#[test]
fn c4_a_list_of_keys_that_nobody_could_change_again_is_refused() {
    let list = |keep: fn(&str) -> bool| {
        let keys = trusted().keys.into_iter().filter(|key| keep(key.role.as_str())).collect();
        trust_changed(Trusted { keys }, 1).without_signature()
    };
    list(|_| true).unwrap();
    list(|role| role == "root").unwrap();
    assert_eq!(code_of(list(|role| role != "root")), "control_event_invalid");
    assert_eq!(code_of(list(|_| false)), "control_event_invalid");
    let spoilt = |spoil: fn(&mut Trusted)| {
        let mut trusted = trusted();
        spoil(&mut trusted);
        trust_changed(trusted, 1).without_signature()
    };
    let wrong: [fn(&mut Trusted); 6] = [
        |list| list.keys[0].revoked = true,
        |list| list.keys[0].expires_at = Some(ISSUED - 1),
        |list| list.keys[1].public_key = list.keys[2].public_key.clone(),
        |list| list.keys[1].public_key = "AAAA".into(),
        |list| list.keys[1].owner = String::new(),
        |list| list.keys[1].owner = "a\nb".into(),
    ];
    for (index, spoil) in wrong.into_iter().enumerate() {
        assert_eq!(code_of(spoilt(spoil)), "control_event_invalid", "{index}");
    }
}

#[test]
fn c4_a_member_that_stands_twice_is_refused_wherever_it_is() {
    let text = golden("plugin.deployed");
    let twice = [
        text.replacen("\"plugin\":", "\"plugin\": \"other\", \"plugin\":", 1),
        text.replacen("\"plugin\":", "\"\\u0070lugin\": \"other\", \"plugin\":", 1),
        text.replacen("\"digest\":", "\"digest\": \"sha256:00\", \"digest\":", 1),
        text.replacen("\"REGION\":", "\"REGION\": \"north\", \"REGION\":", 1),
        text.replacen("\"key\":", "\"key\": \"ed25519:0000000000000000\", \"key\":", 1),
    ];
    for text in twice {
        let error = ControlEvent::parse(&text).unwrap_err().to_string();
        assert!(error.contains("stands twice"), "{error}");
    }
}

#[test]
fn c4_c28_what_is_not_json_without_doubt_is_refused() {
    let text = golden("plugin.paused");
    let with = |member: &str| text.replacen('{', &format!("{{ {member},"), 1);
    let deep = |depth: usize| with(&format!("\"more\": {}1{}", "[".repeat(depth), "]".repeat(depth)));
    parsed(&with("\"more\": [-9007199254740991, null, {}]"));
    parsed(&deep(31));
    let wrong = [
        with("\"more\": 0.5"),
        with("\"more\": [{\"deep\": 1e3}]"),
        with("\"more\": -0"),
        with("\"more\": 9007199254740992"),
        with("\"more\": 1e999"),
        with("\"more\": {\"$serde_json::private::RawValue\": \"0.5\"}"),
        with("\"more\": \"\\ud800\""),
        deep(32),
        deep(10_000),
        format!("{text} x"),
        format!("{text},{text}"),
        String::new(),
        "null".into(),
    ];
    for text in wrong {
        assert_eq!(code_of(ControlEvent::parse(&text)), "control_event_invalid", "{text:.200}");
    }
}

#[test]
fn c4_w20_an_event_that_is_too_large_is_refused_on_both_sides() {
    let long = changed(golden("plugin.paused"), |json| json["more"] = json!("m".repeat(256 << 10)));
    assert_eq!(code_of(ControlEvent::parse(&long)), "control_event_bytes_max");
    // Small as it came, and too large to be written down again.
    let dense = format!("[{}1]", "1,".repeat(60_000));
    let dense = golden("plugin.paused").replacen('{', &format!("{{\"more\": {dense},"), 1);
    assert_eq!(code_of(ControlEvent::parse(&dense)), "control_event_bytes_max");
    let mut large = spec("board", "1.0.0", b"1.0.0");
    large.grants.insert("channels".into(), json!(vec!["c".repeat(60); 5_000]));
    let large = about("board", Kind::Deployed, running(large), 1);
    assert_eq!(code_of(large.sign(&release_key())), "control_event_bytes_max");
}

#[test]
fn c5_an_event_of_this_schema_version_is_understood_and_of_the_next_one_is_not() {
    let next = |must: bool| {
        changed(golden("plugin.removed"), |json| {
            json["schema_version"] = json!(2);
            json["must_understand"] = json!(must);
            json["desired"] = json!({ "state": "hibernating" });
        })
    };
    assert_eq!(code_of(ControlEvent::parse(&next(true))), "control_event_not_understood");
    let passes_by = parsed(&next(false));
    assert_eq!(passes_by.unsigned().body, EventBody::Unknown);
    let this = changed(golden("plugin.removed"), |json| json["must_understand"] = json!(true));
    assert_ne!(parsed(&this).unsigned().body, EventBody::Unknown);
}

#[test]
fn c5_an_unknown_kind_passes_by_unless_it_must_be_understood() {
    let later = |must: bool| {
        changed(golden("plugin.removed"), |json| {
            json["type"] = json!("plugin.mirrored");
            json["must_understand"] = json!(must);
            json["mirror"] = json!({ "from": "eu-1" });
        })
    };
    assert_eq!(code_of(ControlEvent::parse(&later(true))), "control_event_not_understood");
    let event = parsed(&later(false));
    assert_eq!(event.unsigned().kind, Kind::Other("plugin.mirrored".into()));
    assert_eq!(event.unsigned().body, EventBody::Unknown);
    assert_eq!(event.entity(), "kind:plugin.mirrored");
    // It is carried as it came, and never made here.
    assert!(event.to_json().contains("eu-1"));
    assert_eq!(code_of(event.unsigned().sign(&release_key())), "control_event_invalid");
}

#[test]
fn c5_members_of_later_hosts_are_kept_and_stay_under_the_signature() {
    let event = signed_deploy("board", "1.0.0", 1);
    let later = changed(&event.to_json(), |json| {
        json["windows"] = json!(["weekends"]);
        json["desired"]["spec"]["sbom"] = json!({ "digest": "x" });
        json["signatures"] = json!([]);
    });
    let later = parsed(&later).signed_by(&release_key()).unwrap();
    let carried = parsed(&later.to_json());
    assert!(carried.to_json().contains("weekends") && carried.to_json().contains("sbom"));
    trust().check_event(&carried, NOW).unwrap();
    assert_eq!(carried.unsigned(), event.unsigned());
    for member in ["/windows", "/desired/spec/sbom/digest"] {
        let text = changed(&later.to_json(), |json| *json.pointer_mut(member).unwrap() = json!("other"));
        assert_eq!(code_of(trust().check_event(&parsed(&text), NOW)), "control_event_untrusted", "{member}");
    }
}

#[test]
fn limits_and_grants_of_an_event_are_settings_of_a_plugin() {
    let event = parsed(golden("plugin.deployed"));
    let EventBody::Plugin { desired, .. } = &event.unsigned().body else { panic!("it is about a plugin") };
    let settings = desired.spec.as_ref().unwrap().settings().unwrap();
    assert_eq!(settings.memory_bytes_max, Some(64 << 20));
    assert_eq!((settings.call_ms_max, settings.lanes), (Some(250), Some(4)));
    assert_eq!(settings.grants, ["clock", "env", "http"]);
    assert_eq!(settings.http_hosts, ["api.example.com"]);
    assert_eq!(settings.env["REGION"].0, "südwest");
}

#[test]
fn w19_ids_and_digests_have_one_spelling() {
    let id = EventId::try_from("evt_01JH0000000000000000000001".to_owned()).unwrap();
    assert_eq!(id.as_str(), "evt_01JH0000000000000000000001");
    check_digest(&format!("sha256:{}", "0f".repeat(32))).unwrap();
    for digest in [format!("sha256:{}", "0F".repeat(32)), "0f".repeat(32), String::new()] {
        assert_eq!(code_of(check_digest(&digest)), "digest_invalid");
    }
}
