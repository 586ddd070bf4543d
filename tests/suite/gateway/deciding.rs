//! Dead letters, candidates and events done once more, over HTTP: what is asked of the plugins, and how their
//! answers are told.

use millrace::checkpoints::SavedState;
use millrace::plugins::{Autopsy, CoreDump, FailureKind, LoadError, ReplayReport, Resolved};
use millrace::processors::{Failure, Outcome, Trap, TrapKind};
use millrace_tests::conformance::effects::Effects;
use millrace_tests::scripted::Scripted;
use serde_json::{Value, json};

use super::fakes::FakePlugins;
use super::rig::{Answer, Rig};

async fn send(rig: &Rig, method: &str, path: &str) -> Answer {
    rig.send(method, path, &[("Authorization", "Bearer alpha-all")], b"").await
}

fn asked(rig: &Rig) -> Vec<String> {
    std::mem::take(&mut *rig.plugins.asked.lock().expect("no panic"))
}

const LETTER: &str = "/v1/plugins/keeper/dead-letters/9";

#[tokio::test]
async fn deciding_takes_the_right_admin_and_looking_the_right_to_read() {
    let rig = Rig::with_tokens().await;
    for (method, path) in [
        ("POST", "/v1/plugins/keeper/dead-letters/9/replay"),
        ("POST", "/v1/plugins/keeper/dead-letters/9/discard"),
        ("POST", "/v1/plugins/keeper/replay?event=9"),
        ("POST", "/v1/plugins/keeper/confirm"),
        ("POST", "/v1/plugins/keeper/rollback"),
        ("DELETE", "/v1/plugins/keeper/candidate"),
        ("GET", "/v1/plugins/keeper/dead-letters/9?all_tenants=true"),
    ] {
        let answer = rig.send(method, path, &[("Authorization", "Bearer alpha-read")], b"").await;
        answer.is_problem(403, "right_missing");
    }
    for path in ["/v1/plugins/keeper/dead-letters", LETTER] {
        assert_eq!(rig.send("GET", path, &[("Authorization", "Bearer alpha-read")], b"").await.status, 200);
        let answer = rig.send("GET", path, &[("Authorization", "Bearer alpha-publish")], b"").await;
        answer.is_problem(403, "right_missing");
    }
    let own = "Some(TenantId(alpha))";
    let looked = [format!("dead letters of keeper, {own}, 100"), format!("dead letter 9 of keeper, {own}")];
    assert_eq!(asked(&rig), looked, "nobody was asked for what is refused");
    rig.stop().await;
}

#[tokio::test]
async fn what_is_asked_of_dead_letters_is_checked_and_passed_on() {
    let rig = Rig::with_tokens().await;
    for (path, code) in [
        ("/v1/plugins/keeper/dead-letters?limit=0", "page_events_max"),
        ("/v1/plugins/keeper/dead-letters?limit=4097", "page_events_max"),
        ("/v1/plugins/keeper/dead-letters?all_tenants=maybe", "parameter_invalid"),
        ("/v1/plugins/keeper/dead-letters?limits=1", "parameter_unknown"),
        ("/v1/plugins/keeper/dead-letters/9?limit=1", "parameter_unknown"),
        ("/v1/plugins/keeper/dead-letters/nine", "parameter_invalid"),
    ] {
        send(&rig, "GET", path).await.is_problem(400, code);
    }
    for (path, code) in [
        ("/v1/plugins/keeper/dead-letters/9/replay?force=true", "parameter_unknown"),
        ("/v1/plugins/keeper/dead-letters/-9/discard", "parameter_invalid"),
        ("/v1/plugins/keeper/replay", "parameter_invalid"),
        ("/v1/plugins/keeper/replay?event=9&core_dump=maybe", "parameter_invalid"),
        ("/v1/plugins/keeper/replay?event=9&commit=true", "parameter_unknown"),
    ] {
        send(&rig, "POST", path).await.is_problem(400, code);
    }
    assert!(asked(&rig).is_empty(), "nobody was asked for what is refused");

    assert_eq!(send(&rig, "GET", "/v1/plugins/keeper/dead-letters?limit=4096").await.status, 200);
    for path in [
        "/v1/plugins/keeper/dead-letters?all_tenants=true",
        "/v1/plugins/keeper/dead-letters?all_tenants=false",
        "/v1/plugins/keeper/dead-letters/9?all_tenants=true",
    ] {
        assert_eq!(send(&rig, "GET", path).await.status, 200);
    }
    send(&rig, "GET", "/v1/plugins/keeper/dead-letters/8").await.is_problem(404, "dead_letter_unknown");
    for path in ["/replay", "/discard", "/discard?all_tenants=true"] {
        assert_eq!(send(&rig, "POST", &format!("{LETTER}{path}")).await.status, 200);
    }
    send(&rig, "POST", "/v1/plugins/keeper/replay?event=some-id").await.is_problem(404, "event_unknown");
    let own = "Some(TenantId(alpha))";
    assert_eq!(
        asked(&rig),
        [
            format!("dead letters of keeper, {own}, 4096"),
            "dead letters of keeper, None, 100".into(),
            format!("dead letters of keeper, {own}, 100"),
            "dead letter 9 of keeper, None".into(),
            format!("dead letter 8 of keeper, {own}"),
            format!("Replay letter 9 of keeper, {own}"),
            format!("Discard letter 9 of keeper, {own}"),
            "Discard letter 9 of keeper, None".into(),
            "replay some-id of keeper, alpha".into(),
        ]
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_told_whole() {
    let rig = Rig::with_tokens().await;
    let answer = send(&rig, "GET", LETTER).await;
    let mut letter = answer.json();
    let event = letter["event"].take();
    let expected = json!({
        "letter": 9, "tenant": "alpha", "lane": 0, "reason": "reject", "blame": "guest", "message": "bad {}",
        "backtrace": "0: handle", "attempts": 1, "held": true, "parked_behind": 2, "state_sha256": "ab",
        "plugin_version": "1.0.0", "at": "1970-01-01T00:00:00Z", "event": null,
    });
    assert_eq!(letter, expected);
    assert_eq!(
        (&event["id"], &event["aggregate"], &event["type"]),
        (&json!("x"), &json!("thing"), &json!("thing.odd"))
    );
    assert!(
        event["position"].as_str().is_some_and(|cursor| cursor.ends_with(".9") && cursor.len() > 2),
        "{event}"
    );
    assert!(answer.text().contains("{\"n\":9223372036854775807}"), "the payload keeps its digits");
    rig.stop().await;
}

#[tokio::test]
async fn what_became_of_a_dead_letter_is_told() {
    let rig = Rig::with_tokens().await;
    let decided = async |verdict: &str| send(&rig, "POST", &format!("{LETTER}/{verdict}")).await.json();
    assert_eq!(decided("discard").await, json!({ "letter": 9, "outcome": "discarded", "released": 2 }));
    let again = json!({
        "letter": 9, "outcome": "failed_again", "reason": "trap", "message": "unreachable", "blame": "guest",
    });
    assert_eq!(decided("replay").await, again);
    for out_of_order in [false, true] {
        *rig.plugins.replayed.lock().expect("test") = Some(Resolved::Replayed { out_of_order, released: 3 });
        let replayed =
            json!({ "letter": 9, "outcome": "replayed", "out_of_order": out_of_order, "released": 3 });
        assert_eq!(decided("replay").await, replayed);
    }
    rig.stop().await;
}

/// A report of the fake's letter, handled once more with this outcome.
fn report(outcome: Result<Outcome, LoadError>) -> ReplayReport {
    let letter = FakePlugins::letter("keeper");
    let saved = SavedState { content_type: "x/y".into(), state: b"before".to_vec() };
    let manifest = Scripted::new("keeper", 1).manifest;
    ReplayReport {
        task: letter.task,
        event: letter.event,
        version: "1.0.0".into(),
        state_before: Some(saved),
        autopsy: Autopsy { manifest, outcome, state: None, core_dump: None },
    }
}

async fn replayed(rig: &Rig, report: ReplayReport, query: &str) -> Answer {
    *rig.plugins.report.lock().expect("test") = Some(report);
    send(rig, "POST", &format!("/v1/plugins/keeper/replay?event=9{query}")).await
}

#[tokio::test]
async fn an_event_done_once_more_is_told_by_its_outcome() {
    let rig = Rig::with_tokens().await;
    let failed = |kind| {
        let failure = Some(Failure { kind, message: "it says so".into() });
        Ok(Outcome { failure, ..Outcome::default() })
    };
    let mut trap = Trap::new(TrapKind::Timeout, "too long");
    trap.backtrace = "0: handle".into();
    for (outcome, name, message, backtrace) in [
        (Ok(Outcome { handled: 1, ..Outcome::default() }), "handled", "", ""),
        (failed(FailureKind::Retry), "retry", "it says so", ""),
        (failed(FailureKind::Reject), "reject", "it says so", ""),
        (failed(FailureKind::Fatal), "fatal", "it says so", ""),
        (Err(trap.into()), "timeout", "too long", "0: handle"),
        (
            Err(LoadError::Refused { message: "no".into() }),
            "load_refused",
            "the processor refused its state: no",
            "",
        ),
    ] {
        let told = replayed(&rig, report(outcome), "").await.json();
        assert_eq!((&told["outcome"], &told["message"]), (&json!(name), &json!(message)));
        assert_eq!((&told["backtrace"], &told["core_dump"]), (&json!(backtrace), &json!(false)));
        assert_eq!(
            (&told["tenant"], &told["position"], &told["event_id"]),
            (&json!("alpha"), &json!(9), &json!("x"))
        );
        assert_eq!((&told["plugin_version"], &told["lane"]), (&json!("1.0.0"), &json!(0)));
        let before = &told["state_before"];
        assert_eq!((&before["content_type"], &before["bytes"]), (&json!("x/y"), &json!(6)));
        assert_eq!(before["sha256"].as_str().map(str::len), Some(64));
        assert_eq!(told.get("state_after"), None);
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_effects_of_an_event_done_once_more_are_told_up_to_a_thousand() {
    let rig = Rig::with_tokens().await;
    let done = |effects: &mut Effects| {
        let effects = (*effects.check(&Scripted::new("keeper", 1).manifest.tables)).clone();
        let mut report = report(Ok(Outcome { handled: 1, effects, failure: None }));
        report.autopsy.state = Some(b"after it".to_vec());
        report
    };
    let mut one_of_each = Effects::default();
    one_of_each.delete("k", 4).state_put(b"a", b"xyz").state_delete(b"b").emit("e", 5, "{\"p\":1}");
    one_of_each.append("p-1", "answers", "hi").replying_to(3);
    let told = replayed(&rig, done(&mut one_of_each), "").await.json();
    let expected = json!([
        { "kind": "delete", "table": "counts", "key": "k", "version": 4 },
        { "kind": "state-put", "key_base64": "YQ==", "value_bytes": 3 },
        { "kind": "state-delete", "key_base64": "Yg==" },
        { "kind": "emit", "aggregate": "leg", "agg_id": "e", "type": "leg.changed", "version": 5, "payload": "{\"p\":1}" },
        { "kind": "append", "process": "p-1", "channel": "answers", "type": "data", "inreplyto": 3, "error": null,
          "payload_base64": "aGk=" },
    ]);
    assert_eq!((&told["effects"], &told["effects_total"]), (&expected, &json!(5)));
    assert_eq!(
        (&told["state_after"]["bytes"], &told["state_after"]["content_type"]),
        (&json!(8), &json!("application/vnd.scripted+json"))
    );

    let mut many = Effects::default();
    for _ in 0..1_001 {
        many.state_delete(b"b");
    }
    let told = replayed(&rig, done(&mut many), "").await.json();
    assert_eq!(
        (told["effects"].as_array().map(Vec::len), &told["effects_total"]),
        (Some(1_000), &json!(1_001))
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_core_dump_is_answered_as_its_bytes_or_told_why_there_is_none() {
    let rig = Rig::with_tokens().await;
    let fell = |core_dump| {
        let mut report = report(Err(Trap::new(TrapKind::Trap, "unreachable").into()));
        report.autopsy.core_dump = core_dump;
        report
    };
    let taken = || fell(Some(CoreDump::Taken(b"\0asm".to_vec())));
    let answer = replayed(&rig, taken(), "&core_dump=true").await;
    assert_eq!(
        (answer.header("content-type"), answer.body.as_slice()),
        (Some("application/wasm"), b"\0asm".as_slice())
    );
    let told = replayed(&rig, taken(), "&core_dump=false").await.json();
    assert_eq!((&told["core_dump"], &told["outcome"]), (&Value::Bool(true), &json!("trap")));
    let large = replayed(&rig, fell(Some(CoreDump::TooLarge(1 << 40))), "&core_dump=true").await;
    let problem = large.is_problem(413, "core_dump_bytes_max");
    assert!(problem["detail"].to_string().contains("1099511627776 bytes"), "{problem}");
    replayed(&rig, fell(None), "&core_dump=true").await.is_problem(404, "core_dump_missing");
    rig.stop().await;
}

#[tokio::test]
async fn candidates_are_confirmed_given_up_and_rolled_back_as_asked() {
    let rig = Rig::with_tokens().await;
    for (method, path, status) in [
        ("POST", "/v1/plugins/keeper/confirm", 200),
        ("DELETE", "/v1/plugins/keeper/candidate", 200),
        ("POST", "/v1/plugins/keeper/rollback", 200),
        (
            "POST",
            "/v1/plugins/keeper/rollback?to=1.2.0&shadow_events=5&shadow_ms=7&no_shadow=true&confirm=true&expect=identical-rows",
            200,
        ),
        ("POST", "/v1/plugins/keeper/rollback?no_shadow=false&confirm=false", 200),
        ("POST", "/v1/plugins/nobody/confirm", 404),
    ] {
        assert_eq!(send(&rig, method, path).await.status, status, "{path}");
    }
    let options = |events: &str, ms: &str, flags: bool, expect: &str| {
        format!(
            "DeployOptions {{ shadow_events: {events}, shadow_ms: {ms}, no_shadow: {flags}, confirm: {flags}, expect: {expect}, rollback: false }}"
        )
    };
    let none = options("None", "None", false, "Anything");
    assert_eq!(
        asked(&rig),
        [
            "confirm keeper".to_owned(),
            "abandon keeper".into(),
            format!("roll back keeper to None, api:token-1, {none}"),
            format!(
                "roll back keeper to Some(\"1.2.0\"), api:token-1, {}",
                options("Some(5)", "Some(7)", true, "IdenticalRows")
            ),
            format!("roll back keeper to None, api:token-1, {none}"),
            "confirm nobody".into(),
        ]
    );
    for (method, path, code) in [
        ("POST", "confirm?expect=identical-rows", "parameter_unknown"),
        ("DELETE", "candidate?to=1", "parameter_unknown"),
        ("POST", "rollback?version=1", "parameter_unknown"),
        ("POST", "rollback?expect=anything", "parameter_invalid"),
        ("POST", "rollback?confirm=maybe", "parameter_invalid"),
        ("POST", "rollback?shadow_ms=long", "parameter_invalid"),
    ] {
        send(&rig, method, &format!("/v1/plugins/keeper/{path}")).await.is_problem(400, code);
    }
    assert!(asked(&rig).is_empty(), "nobody was asked for what is refused");
    rig.stop().await;
}
