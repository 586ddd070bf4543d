//! Who is shown what, how often, and what a client in Python is told that may not see it.

use serde_json::{Value, json};

use super::super::scene::{AUDITOR, FOREIGN, OPERATOR, Scene, TRACER, WRITER, publish};
use super::caller::{Caller, data, status};

async fn publish_as(scene: &Scene, token: &str, payload: Value) {
    publish(&scene.http(Some(token)), "membership", "created", &[payload]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r39_a_sixth_stream_ends_the_first_with_its_cursor() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    let names: Vec<_> = (0..5).map(|number| format!("of five {number}")).collect();
    for name in &names {
        caller.open(name, Some(AUDITOR), &json!({}));
        caller.until_live(name);
    }
    publish_as(&scene, OPERATOR, json!(1)).await;
    for name in &names {
        assert_eq!(data(&caller.events(name, 1)), [1]);
    }
    caller.open("sixth", Some(AUDITOR), &json!({}));
    caller.until_live("sixth");
    let said = caller.read_to_the_end(&names[0]);
    let [evicted, end] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((&evicted["kind"], &evicted["event"]), (&json!("stream"), &json!("evicted")));
    assert_eq!(evicted["data"], json!({ "reason": "too many connections" }));
    assert_eq!(end, &json!({ "end": true }), "a clean end");
    publish_as(&scene, OPERATOR, json!(2)).await;
    for name in names[1..].iter().map(String::as_str).chain(["sixth"]) {
        assert_eq!(data(&caller.events(name, 1)), [2], "the others go on");
    }
    caller.open("again", Some(AUDITOR), &json!({ "after_cursor": evicted["cursor"] }));
    assert_eq!(data(&caller.events("again", 1)), [2], "its cursor is where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn r41_r42_another_tenants_events_are_never_seen() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    caller.open("live", Some(TRACER), &json!({}));
    caller.until_live("live");
    for number in 0..10 {
        publish_as(&scene, FOREIGN, json!("foreign")).await;
        publish_as(&scene, OPERATOR, json!(number)).await;
    }
    caller.open("replayed", Some(TRACER), &json!({ "after_cursor": "start" }));
    caller.open("foreign", Some(FOREIGN), &json!({ "after_cursor": "start" }));
    for stream in ["live", "replayed"] {
        assert_eq!(data(&caller.events(stream, 10)), (0..10_i32).collect::<Vec<_>>(), "{stream}");
    }
    assert!(data(&caller.events("foreign", 10)).iter().all(|said| *said == "foreign"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r50_an_administrator_and_an_auditor_see_events_of_others_in_each_scope() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    publish_as(&scene, OPERATOR, json!("another's")).await;
    for token in [TRACER, AUDITOR] {
        for scope in ["EVENT_SCOPE_ADMIN", "EVENT_SCOPE_AUTHORIZED", "EVENT_SCOPE_UNSPECIFIED"] {
            for justification in [None, Some("audit 7")] {
                let asked =
                    json!({ "after_cursor": "start", "scope": scope, "justification": justification });
                caller.open("scoped", Some(token), &asked);
                assert_eq!(data(&caller.events("scoped", 1)), ["another's"], "{token} {asked}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r53_a_refused_stream_carries_a_status_and_no_event() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    publish_as(&scene, OPERATOR, json!(1)).await;
    let unknown = "no token of this host's configuration is this one";
    for (who, scope, told) in [
        (None, 2, ("UNAUTHENTICATED", "missing authorization")),
        (Some("nobodys-token"), 2, ("UNAUTHENTICATED", unknown)),
        (Some(WRITER), 2, ("PERMISSION_DENIED", "admin or auditor role required")),
        (Some(WRITER), 1, ("PERMISSION_DENIED", "this needs the right `read` of everything the tenant has")),
    ] {
        let refused = caller.refused(who, &json!({ "after_cursor": "start", "scope": scope }));
        assert_eq!(status(&refused), told, "{who:?}");
        assert_eq!(refused["retry_ms"], json!(null));
    }
    for (asked, reason) in [
        (json!({ "detail": "all" }), "detail is summary or full"),
        (json!({ "scope": 7 }), "scope is unknown"),
        (json!({ "conversation_ids": ["c", " "] }), "conversation_ids has a blank element"),
        (
            json!({ "kinds": vec!["k"; 1_001] }),
            "the filters have 1001 values; grpc_filter_values_max is 1000",
        ),
    ] {
        let refused = caller.refused(Some(TRACER), &asked);
        assert_eq!(status(&refused), ("INVALID_ARGUMENT", reason));
    }
    let path = "/memory.v1.EntriesService/AppendEntry";
    let refused = caller.ask(&json!({ "do": "send", "method": path, "hex": "" }));
    assert_eq!(
        status(&refused),
        ("UNIMPLEMENTED", "there is no method /memory.v1.EntriesService/AppendEntry")
    );
}
