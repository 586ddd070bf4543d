//! Starting a rollout: the component is stored and signed, and the event says all of the version.

use millrace::cli::Exit;
use millrace::control::{ArtifactRef, BuildSignature};
use millrace_tests::control_events::digest_of;
use millrace_tests::guests::guest;

use super::*;
use crate::scripted_host::problem;

const COMPONENT: &[u8] = b"a component of version 3.0.0";

/// The answer to HEAD for an artifact of so many bytes.
fn there(bytes: usize) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n")
}

fn not_there() -> String {
    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
}

fn stored(content: &[u8]) -> String {
    let (digest, bytes) = (digest_of(content), content.len());
    fine(json!({ "digest": digest, "bytes": bytes, "stored_at": "2026-03-01T12:00:00Z", "pins": [] }))
}

fn artifact(content: &[u8]) -> ArtifactRef {
    ArtifactRef { digest: digest_of(content), bytes: content.len() as u64, signatures: Vec::new() }
}

/// A build key's word on the component, as the host answers it, and another one's word on another plugin.
fn signed(desk: &Desk) -> String {
    let key = desk.key("build");
    let mut signatures = BuildSignature::of("watch", &artifact(COMPONENT).built_by("watch", &key));
    signatures.extend(BuildSignature::of(PLUGIN, &artifact(COMPONENT).built_by(PLUGIN, &key)));
    fine(json!({ "signatures": signatures }))
}

fn unsigned() -> String {
    fine(json!({ "signatures": [] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_and_signed_before_the_event_names_it() {
    let desk = Desk::new().await;
    let file = desk.write("board.wasm", std::str::from_utf8(COMPONENT).unwrap());
    let config = "{\"airport\": \"JFK\"}";
    let config_file = desk.write("board.json", config);
    let settings = "grants = [\"http\"]\nhttp_hosts = [\"api.example.com\"]\nmemory_bytes_max = 1000000\n";
    let settings = desk.write("board.toml", settings);
    let plan_text = "[[waves]]\nlabels = { zone = \"a\" }\npercent = 50\nsoak = \"10m\"\n[[waves]]\n";
    let plan_file = desk.write("plan.toml", plan_text);
    let present = standing(rollout(Progress::Complete));
    let server = Scripted::new(vec![
        stands(&[&present]),
        not_there(),
        stored(COMPONENT),
        signed(&desk),
        signed(&desk),
        stored(config.as_bytes()),
        taken("plugin:board", 5),
    ]);
    let build_key = desk.at("build.pem");
    let (ended, said) = desk
        .ran(
            &server,
            &[
                "rollout",
                "start",
                PLUGIN,
                "--artifact",
                &file,
                "--build-key",
                &build_key,
                "--config",
                &config_file,
                "--settings",
                &settings,
                "--grant",
                "clock",
                "--plan",
                &plan_file,
                "--version-is",
                "3.0.0",
                "--from",
                "tail",
                "--no-shadow",
                "--target",
                "zone=a,tier=edge",
                "--reason",
                "a better board",
            ],
        )
        .await;
    ended.unwrap();
    let asked = server.asked();
    let digest = digest_of(COMPONENT);
    asks(&asked[1], "HEAD", &format!("/v1/artifacts/{digest}"));
    asks(&asked[2], "PUT", &format!("/v1/artifacts/{digest}"));
    assert!(asked[2].bytes == COMPONENT);
    asks(&asked[3], "PUT", &format!("/v1/artifacts/{digest}/signatures"));
    asks(&asked[4], "GET", &format!("/v1/artifacts/{digest}/signatures"));
    asks(&asked[5], "PUT", &format!("/v1/artifacts/{}", digest_of(config.as_bytes())));
    assert!(asked[5].bytes == config.as_bytes());

    let event = desk.event(&asked[6]);
    let unsigned = event.unsigned();
    assert_eq!((&unsigned.kind, unsigned.base_revision, unsigned.revision), (&Kind::Deployed, 4, 5));
    let desired = desired_of(&event);
    let spec = desired.spec.as_ref().unwrap();
    assert_eq!((spec.version.as_str(), spec.world.as_str()), ("3.0.0", "millrace:processor@0.1.0"));
    assert_eq!((&spec.component.digest, spec.component.bytes), (&digest, COMPONENT.len() as u64));
    assert_eq!(spec.component.signatures.len(), 1, "the word on another plugin is left out");
    desk.trust().check_artifact(PLUGIN, &spec.component, unsigned.issued_at).unwrap();
    assert_eq!(spec.config, Some(artifact(config.as_bytes())));
    assert_eq!(json!(spec.grants), json!({ "grants": ["http", "clock"], "http_hosts": ["api.example.com"] }));
    assert_eq!(json!(spec.limits), json!({ "memory_bytes_max": 1_000_000 }));
    assert_eq!((spec.from.as_str(), spec.shadow_events), ("tail", Some(0)));
    assert_eq!(json!(desired.targets), json!({ "zone": "a", "tier": "edge" }));
    assert_eq!(desired.stable, rollout(Progress::Complete).spec);
    let started = desired.rollout.as_ref().unwrap();
    assert_eq!((started.id.as_str(), started.wave), (event.id().as_str(), 0));
    assert_eq!((&started.plan, started.progress), (&plan(), Progress::Running));

    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("plugin:board has revision 5 now: plugin.deployed"), "{said}");
    let rest = [
        "board 3.0.0 goes out in 2 waves:",
        "  wave 1: 50 % of hosts with zone=a, soaks 10m",
        "  wave 2: every host, soaks 0s",
        "follow it with `millrace rollout status board --watch`",
    ];
    assert_eq!(lines[1..], rest);
}

/// What was stored long ago and is pinned by nobody may be collected before the origin pins it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_already_is_stored_again() {
    let desk = Desk::new().await;
    let file = desk.write("board.wasm", std::str::from_utf8(COMPONENT).unwrap());
    let server = Scripted::new(vec![
        stands(&[]),
        there(COMPONENT.len()),
        stored(COMPONENT),
        signed(&desk),
        taken("plugin:board", 1),
    ]);
    let start = ["rollout", "start", PLUGIN, "--artifact", &file, "--version-is", "3.0.0"];
    desk.ran(&server, &start).await.0.unwrap();
    let asked = server.asked();
    asks(&asked[2], "PUT", &format!("/v1/artifacts/{}", digest_of(COMPONENT)));
    assert!(asked[2].bytes == COMPONENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_given_stays_as_most_hosts_have_it() {
    let desk = Desk::new().await;
    let mut present = rollout(Progress::Running);
    let before = present.stable.as_mut().unwrap();
    before.config = Some(artifact(b"{}"));
    before.limits = BTreeMap::from([("call_ms_max".into(), json!(500))]);
    before.grants = BTreeMap::from([("grants".into(), json!(["random"]))]);
    before.from = "after:12".into();
    present.targets = BTreeMap::from([("zone".into(), "a".into())]);
    let before = present.stable.clone().unwrap();
    let digest = digest_of(COMPONENT);
    let start = ["rollout", "start", PLUGIN, "--artifact", &digest, "--version-is", "3.0.0"];
    let event = standing(present.clone());
    let answers = || {
        Scripted::new(vec![
            stands(&[&event]),
            there(COMPONENT.len()),
            signed(&desk),
            taken("plugin:board", 5),
        ])
    };

    let server = answers();
    let (ended, said) = desk.ran(&server, &start).await;
    ended.unwrap();
    assert!(said.contains("board 3.0.0 goes to every host at once"), "{said}");
    let asked = server.asked();
    asks(&asked[1], "HEAD", &format!("/v1/artifacts/{digest}"));
    let event_sent = desk.event(&asked[3]);
    let desired = desired_of(&event_sent);
    let spec = desired.spec.as_ref().unwrap();
    assert_eq!(
        (&spec.config, &spec.limits, &spec.grants, &spec.from),
        (&before.config, &before.limits, &before.grants, &before.from)
    );
    assert_eq!((spec.component.bytes, spec.shadow_events), (COMPONENT.len() as u64, None));
    assert_eq!((&desired.targets, &desired.stable), (&present.targets, &Some(before.clone())));
    assert_eq!(desired.rollout.as_ref().unwrap().progress, Progress::Complete, "there is no gate");

    let settings = desk.write("none.toml", "");
    let server = answers();
    let more = ["--no-config", "--settings", &settings, "--target", "all", "--wave", "zone=a,tier=b:50%:90s"];
    desk.ran(&server, &[&start[..], &more].concat()).await.0.unwrap();
    let event_sent = desk.event(&server.asked()[3]);
    let desired = desired_of(&event_sent);
    let spec = desired.spec.as_ref().unwrap();
    assert!(spec.config.is_none() && spec.limits.is_empty() && spec.grants.is_empty());
    assert!(desired.targets.is_empty());
    let waves = &desired.rollout.as_ref().unwrap().plan.waves;
    assert_eq!((waves[0].percent, waves[0].soak_s, waves[0].labels.len()), (50, 90, 2));
    assert_eq!((waves.len(), waves[1].percent, waves[1].labels.len()), (2, 100, 0), "everybody in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_that_no_build_key_has_signed() {
    let desk = Desk::new().await;
    let digest = digest_of(COMPONENT);
    let start = ["rollout", "start", PLUGIN, "--artifact", &digest, "--version-is", "3.0.0"];
    let server = Scripted::new(vec![stands(&[]), there(7), unsigned()]);
    let error = desk.ran(&server, &start).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Refused, "{error}");
    assert!(error.sentence().contains("no build key has signed"), "{error}");
    assert!(error.next_step().contains("--build-key"), "{error}");
    assert_eq!(server.asked().len(), 3);
    let server = Scripted::new(vec![stands(&[]), there(7), unsigned(), taken("plugin:board", 1)]);
    desk.ran(&server, &[&start[..], &["--unsigned"]].concat()).await.0.unwrap();
    let event = desk.event(&server.asked()[3]);
    let spec = desired_of(&event).spec.as_ref().unwrap();
    assert!(spec.component.signatures.is_empty());
    assert_eq!((event.unsigned().base_revision, spec.component.bytes, spec.from.as_str()), (0, 7, "oldest"));

    let server = Scripted::new(vec![stands(&[]), not_there()]);
    let error = desk.ran(&server, &start).await.0.unwrap_err();
    assert!(error.sentence().contains("there is no artifact"), "{error}");
    let server = Scripted::new(vec![stands(&[])]);
    let odd = ["rollout", "start", PLUGIN, "--artifact", "board.wsam"];
    let error = desk.ran(&server, &odd).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{error}");
    assert!(error.sentence().contains("neither a file nor a digest"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_fleet_gets_nothing_new_and_stores_nothing_for_it() {
    let desk = Desk::new().await;
    let file = desk.write("board.wasm", "a component");
    let config = desk.write("board.json", "{}");
    let present = standing(rollout(Progress::Complete));
    let frozen = json!({ "by": "ann", "reason": "an incident", "at": 1 });
    let start = ["rollout", "start", PLUGIN, "--artifact", &file, "--version-is", "3.0.0"];
    for arguments in [&start[..], &["fleet", "config", PLUGIN, "--config", &config]] {
        let server = Scripted::new(vec![frozen_with(&[&present], frozen.clone())]);
        let error = desk.ran(&server, arguments).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        assert_eq!(error.sentence(), "the fleet is frozen by ann: an incident");
        assert!(error.next_step().contains("millrace fleet unfreeze"), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
    // What takes something back goes out; what else does not, the origin says.
    let server = Scripted::new(vec![frozen_with(&[&present], frozen.clone()), taken("plugin:board", 5)]);
    desk.ran(&server, &["rollout", "rollback", PLUGIN]).await.0.unwrap();
    let server = Scripted::new(vec![frozen_with(&[&present], frozen), problem(409, "control_frozen")]);
    let error = desk.ran(&server, &["fleet", "remove", PLUGIN]).await.0.unwrap_err();
    assert_eq!((error.exit(), error.next_step()), (Exit::Refused, "do so"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_says_its_version_and_what_it_needs_before_it_goes_out() {
    let desk = Desk::new().await;
    let board = guest("flight-board").to_str().unwrap().to_owned();
    let server = Scripted::new(vec![stands(&[]), fine(json!({ "hosts": [] }))]);
    let start = ["rollout", "start", "flight-board", "--artifact", &board, "--dry-run"];
    desk.ran(&server, &start).await.0.unwrap();
    let asked = server.asked();
    let event = ControlEvent::parse(&asked[1].body.to_string()).unwrap();
    let spec = desired_of(&event).spec.as_ref().unwrap();
    assert_eq!((spec.version.as_str(), spec.world.as_str()), ("0.1.0", "millrace:processor@0.1.0"));
    assert_eq!(spec.component.digest, digest_of(&fs::read(&board).unwrap()));
    assert_eq!(asked.len(), 2, "a dry run stores nothing");

    let clock = guest("wants_clock").to_str().unwrap().to_owned();
    let text = desk.write("text.wasm", "no component at all");
    for (plugin, file, exit, words) in [
        (PLUGIN, &board, Exit::Usage, "says that it is `flight-board`, not `board`"),
        ("wants-clock", &clock, Exit::Refused, "needs grants that it is not given: clock"),
        (PLUGIN, &text, Exit::Refused, "does not begin like WebAssembly"),
    ] {
        let server = Scripted::new(vec![stands(&[])]);
        let error = desk.ran(&server, &["rollout", "start", plugin, "--artifact", file]).await.0.unwrap_err();
        assert_eq!(error.exit(), exit, "{error}");
        assert!(error.sentence().contains(words), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
    let server = Scripted::new(vec![stands(&[]), fine(json!({ "hosts": [] }))]);
    let start = ["rollout", "start", "wants-clock", "--artifact", &clock, "--grant", "clock", "--dry-run"];
    desk.ran(&server, &start).await.0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_is_a_deploy_of_the_same_version() {
    let desk = Desk::new().await;
    let config = desk.write("board.json", "{\"airport\":\"LGA\"}");
    let present = standing(rollout(Progress::Complete));
    let command = ["fleet", "config", PLUGIN, "--config", &config, "--wave", "zone=a"];
    let server =
        Scripted::new(vec![stands(&[&present]), stored(b"{\"airport\":\"LGA\"}"), taken("plugin:board", 5)]);
    desk.ran(&server, &command).await.0.unwrap();
    let event = desk.event(&server.asked()[2]);
    let desired = desired_of(&event);
    let (spec, before) = (desired.spec.as_ref().unwrap(), rollout(Progress::Complete).spec.unwrap());
    assert_eq!(event.unsigned().kind, Kind::ConfigChanged);
    assert_eq!((&spec.component, &desired.stable), (&before.component, &Some(before.clone())));
    assert_eq!(spec.config, Some(artifact(b"{\"airport\":\"LGA\"}")));
    assert_eq!(desired.rollout.as_ref().unwrap().plan.waves.len(), 2);
    // Refused before anything is stored.
    let under_way = standing(rollout(Progress::Running));
    let server = Scripted::new(vec![stands(&[&under_way])]);
    let error = desk.ran(&server, &command).await.0.unwrap_err();
    assert!(error.sentence().contains("a rollout is under way"), "{error}");
    assert_eq!(server.asked().len(), 1);
    let server = Scripted::new(vec![stands(&[&present]), taken("plugin:board", 5)]);
    desk.ran(&server, &["fleet", "config", PLUGIN, "--no-config"]).await.0.unwrap();
    assert!(desired_of(&desk.event(&server.asked()[1])).spec.as_ref().unwrap().config.is_none());
}
