//! Checkpoints as a client in Python keeps them.

use millrace::limits::CLIENT_NAME_BYTES_MAX;
use serde_json::{Value, json};

use super::super::scene::{AUDITOR, FOREIGN, OPERATOR, OTHER, Scene, TRACER, WRITER};
use super::caller::{Caller, headers, status};

const TYPE: &str = "application/vnd.trace+json;v=1";
const MISSING: (&str, &str) = ("NOT_FOUND", "checkpoint not found");
const NO_ADMIN: (&str, &str) = ("PERMISSION_DENIED", "admin role required");
const UNKNOWN: (&str, &str) = ("UNAUTHENTICATED", "no token of this host's configuration is this one");
const NOBODY: (&str, &str) = ("UNAUTHENTICATED", "missing authorization");

/// Whose a checkpoint is, its type and its value.
#[track_caller]
fn kept(answer: &Value) -> (&str, &str, &Value) {
    assert!(answer["updated_at"].as_u64() > Some(1_700_000_000), "{answer}");
    let text = |name: &str| answer[name].as_str().unwrap();
    (text("client_id"), text("content_type"), &answer["value"])
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_r26_r27_r29_what_was_put_is_answered_read_back_and_replaced() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    assert_eq!(status(&caller.get(Some(TRACER), "tracer")), MISSING);
    let members = json!({ "lastEventCursor": "7", "open": { "c": [-1.5, null, true, {}, { "d": "é" }] } });
    for (content_type, value) in [(TYPE, &members), ("text/json", &json!({ "b": 0.5 })), (TYPE, &json!(null))]
    {
        let put = caller.put(Some(TRACER), "tracer", content_type, value);
        assert_eq!(kept(&put), ("tracer", content_type, value));
        assert_eq!(caller.get(Some(TRACER), "tracer"), put);
        // Who is no client sees all of its tenant.
        assert_eq!(caller.get(Some(OPERATOR), "tracer"), put);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r30_a_put_needs_a_content_type_and_a_value_and_fits_the_bounds() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    let small = json!("small");
    let put = caller.put(Some(TRACER), "tracer", TYPE, &small);
    assert_eq!(kept(&put), ("tracer", TYPE, &small));

    let needed = |what: &str| format!("{what} is required; it has 1 to {CLIENT_NAME_BYTES_MAX} bytes");
    let no_type = needed("contentType");
    for blank in ["", " "] {
        let refused = caller.put(Some(TRACER), "tracer", blank, &small);
        assert_eq!(status(&refused), ("INVALID_ARGUMENT", no_type.as_str()), "{blank:?}");
    }
    let no_client = needed("client_id");
    assert_eq!(status(&caller.get(Some(TRACER), " ")), ("INVALID_ARGUMENT", no_client.as_str()));

    let mut ask = |more: Value| {
        let mut command = json!({ "do": "put", "headers": headers(Some(TRACER)), "client": "tracer", "content_type": TYPE });
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        caller.ask(&command)
    };
    assert_eq!(status(&ask(json!({}))), ("INVALID_ARGUMENT", "value is required"));
    // The client `tracer`, the type `t`, and a value that breaks off.
    let broken = json!({
        "do": "send", "method": "/memory.v1.AdminCheckpointService/PutCheckpoint",
        "hex": "0a067472616365721201741a021a7f",
    });
    let refused = ask(broken);
    let (code, text) = status(&refused);
    assert_eq!(code, "INVALID_ARGUMENT");
    assert!(text.starts_with("value cannot be read"), "{text}");
    for (bytes, limit) in [(3 << 20, "client_checkpoint_bytes_max"), (5 << 20, "grpc_message_bytes_max")] {
        let refused = ask(json!({ "bytes": bytes }));
        let (code, text) = status(&refused);
        assert_eq!(code, "RESOURCE_EXHAUSTED", "{refused}");
        assert!(text.contains(limit), "{refused}");
        // It will not be taken later either.
        assert_eq!(refused["retry_ms"], json!(null), "{refused}");
    }
    assert_eq!(caller.get(Some(TRACER), "tracer"), put, "what there was is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn r28_r31_r32_r33_who_may_not_is_told_so() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    let value = json!({ "a": 0.5 });
    let put = caller.put(Some(TRACER), "tracer", TYPE, &value);
    for (who, told) in [
        // Another client is not told that there is one, and the same name of another tenant is another client.
        (Some(OTHER), MISSING),
        (Some(FOREIGN), MISSING),
        (Some(AUDITOR), NO_ADMIN),
        (Some(WRITER), NO_ADMIN),
        (Some("nobodys-token"), UNKNOWN),
        (None, NOBODY),
    ] {
        assert_eq!(status(&caller.get(who, "tracer")), told, "{who:?}");
        if who != Some(FOREIGN) {
            let written = caller.put(who, "tracer", TYPE, &json!("another's"));
            assert_eq!(status(&written), told, "{who:?}");
        }
    }
    assert_eq!(caller.get(Some(TRACER), "tracer"), put, "nobody else has written");
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_r35_a_value_in_anothers_place_is_not_opened_and_the_cause_is_hidden() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    for client in ["one", "two"] {
        let put = caller.put(Some(OPERATOR), client, TYPE, &json!({ "secret": client }));
        assert_eq!(kept(&put).0, client);
    }
    let tenants = std::fs::read_dir(scene.host.data().join("client-checkpoints")).unwrap();
    let files = tenants.flat_map(|tenant| std::fs::read_dir(tenant.unwrap().path()).unwrap());
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    let [one, two] = [0, 1].map(|index| std::fs::read(&files[index]).unwrap());
    std::fs::write(&files[0], &two).unwrap();
    std::fs::write(&files[1], &one).unwrap();
    for client in ["one", "two"] {
        let refused = caller.get(Some(OPERATOR), client);
        assert_eq!(status(&refused), ("INTERNAL", "the checkpoint cannot be opened"), "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r36_headers_that_name_somebody_are_not_looked_at() {
    let scene = Scene::with_tokens().await;
    let mut caller = Caller::start(scene.port());
    let value = json!("own");
    caller.put(Some(TRACER), "tracer", TYPE, &value);
    let names = json!([["x-user-id", "other"], ["x-user-id", "another"], ["x-client-id", "other"]]);
    let mut get = |key: Option<&str>, client: &str| {
        let mut headers = names.as_array().unwrap().clone();
        headers.extend(key.map(|key| json!(["x-api-key", key])));
        caller.ask(&json!({ "do": "get", "headers": headers, "client": client }))
    };
    assert_eq!(kept(&get(Some(TRACER), "tracer")), ("tracer", TYPE, &value));
    assert_eq!(status(&get(Some(TRACER), "other")), MISSING);
    assert_eq!(status(&get(None, "tracer")), NOBODY);
}
