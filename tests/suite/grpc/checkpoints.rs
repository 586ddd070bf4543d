//! Checkpoints of clients, over gRPC and over HTTP: the rules are the same.

use std::path::PathBuf;

use millrace::memory_v1::Value as ProtoValue;
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use super::scene::{AUDITOR, Caller, FOREIGN, OPERATOR, OTHER, Scene, TRACER, WRITER};

#[derive(Clone, Copy, Debug)]
enum Door {
    Grpc,
    Http,
}

const DOORS: [Door; 2] = [Door::Grpc, Door::Http];

/// What was refused, as a code of gRPC, and in which words.
type Refused = (Code, String);

fn caller(scene: &Scene, token: Option<&str>) -> Caller {
    token.map_or_else(|| scene.caller(&[]), |token| scene.keyed(token))
}

fn shown(answer: millrace::memory_v1::AdminCheckpoint) -> Value {
    assert!(answer.updated_at.unwrap().seconds > 1_700_000_000);
    let value = ProtoValue::decode(answer.value.unwrap().as_slice()).unwrap().to_json();
    json!({ "clientId": answer.client_id, "contentType": answer.content_type, "value": value })
}

fn answered(answer: &millrace_tests::embedded::Answer) -> Result<Value, Refused> {
    let mut body = answer.json();
    let code = match answer.status {
        200 => {
            let updated = body.as_object_mut().unwrap().remove("updatedAt").unwrap();
            assert!(updated.as_str().unwrap() > "2020", "{updated}");
            return Ok(body);
        }
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        413 => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    Err((code, body["detail"].as_str().unwrap().to_owned()))
}

async fn get(scene: &Scene, door: Door, token: Option<&str>, client: &str) -> Result<Value, Refused> {
    match door {
        Door::Grpc => {
            let answer = caller(scene, token).get(client).await;
            answer.map(shown).map_err(|status| (status.code(), status.message().to_owned()))
        }
        Door::Http => {
            let path = format!("/v1/admin/checkpoints/{client}");
            answered(&scene.http(token).get(&path).await.unwrap())
        }
    }
}

async fn put(
    scene: &Scene,
    door: Door,
    token: Option<&str>,
    client: &str,
    (content_type, value): (&str, &Value),
) -> Result<Value, Refused> {
    match door {
        Door::Grpc => {
            let value = ProtoValue::from_json(value).encode_to_vec();
            let answer = caller(scene, token).put(client, content_type, Some(value)).await;
            answer.map(shown).map_err(|status| (status.code(), status.message().to_owned()))
        }
        Door::Http => {
            let http = scene.http(token);
            let request = http.request(Method::PUT, &format!("/v1/admin/checkpoints/{client}"));
            let body = json!({ "contentType": content_type, "value": value }).to_string();
            answered(&http.send(request.body(body)).await.unwrap())
        }
    }
}

const TYPE: &str = "application/vnd.trace+json;v=1";

fn kept(content_type: &str, value: &Value) -> Value {
    json!({ "clientId": "tracer", "contentType": content_type, "value": value })
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_r26_what_was_put_is_answered_and_read_back_whole() {
    let scene = Scene::with_tokens().await;
    let value = json!({ "lastEventCursor": "7", "open": { "c": [1, 2.5, null, true, { "d": "é" }] } });
    for door in DOORS {
        let answer = put(&scene, door, Some(TRACER), "tracer", (TYPE, &value)).await;
        assert_eq!(answer, Ok(kept(TYPE, &value)), "{door:?}");
        for door in DOORS {
            assert_eq!(get(&scene, door, Some(TRACER), "tracer").await, Ok(kept(TYPE, &value)), "{door:?}");
        }
    }
    let scene = scene.restart().await;
    assert_eq!(get(&scene, Door::Grpc, Some(TRACER), "tracer").await, Ok(kept(TYPE, &value)));
}

#[tokio::test(flavor = "multi_thread")]
async fn r27_a_put_replaces_type_and_value() {
    let scene = Scene::with_tokens().await;
    for door in DOORS {
        put(&scene, door, Some(TRACER), "tracer", (TYPE, &json!({ "a": 1, "b": 2 }))).await.unwrap();
        put(&scene, door, Some(TRACER), "tracer", ("text/json", &json!({ "b": 3 }))).await.unwrap();
        let read = get(&scene, door, Some(TRACER), "tracer").await;
        assert_eq!(read, Ok(kept("text/json", &json!({ "b": 3 }))), "{door:?}");
        put(&scene, door, Some(TRACER), "tracer", (TYPE, &json!(null))).await.unwrap();
        assert_eq!(get(&scene, door, Some(TRACER), "tracer").await, Ok(kept(TYPE, &json!(null))), "{door:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r28_another_clients_checkpoint_is_not_found() {
    let scene = Scene::with_tokens().await;
    let value = json!({ "a": 1 });
    let not_found = || Err((Code::NotFound, "checkpoint not found".to_owned()));
    for door in DOORS {
        put(&scene, door, Some(TRACER), "tracer", (TYPE, &value)).await.unwrap();
        assert_eq!(get(&scene, door, Some(OTHER), "tracer").await, not_found(), "{door:?}");
        let written = put(&scene, door, Some(OTHER), "tracer", (TYPE, &json!(2))).await;
        assert_eq!(written, not_found(), "{door:?}");
        assert_eq!(get(&scene, door, Some(TRACER), "tracer").await, Ok(kept(TYPE, &value)), "{door:?}");
        // Who is no client sees all of its tenant; the same name of another tenant is another client.
        assert_eq!(get(&scene, door, Some(OPERATOR), "tracer").await, Ok(kept(TYPE, &value)), "{door:?}");
        assert_eq!(get(&scene, door, Some(FOREIGN), "tracer").await, not_found(), "{door:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r29_an_unknown_client_has_no_checkpoint() {
    let scene = Scene::with_tokens().await;
    for door in DOORS {
        let refused = get(&scene, door, Some(TRACER), "tracer").await;
        assert_eq!(refused, Err((Code::NotFound, "checkpoint not found".into())), "{door:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r30_a_put_needs_a_content_type_and_a_value() {
    let scene = Scene::with_tokens().await;
    for door in DOORS {
        let (code, text) = put(&scene, door, Some(TRACER), "tracer", (" ", &json!(1))).await.unwrap_err();
        assert_eq!(code, Code::InvalidArgument, "{door:?}");
        assert!(text.contains("contentType is required"), "{door:?}: {text}");
    }
    let status = scene.keyed(TRACER).put("tracer", TYPE, None).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "value is required"));
    let broken = scene.keyed(TRACER).put("tracer", TYPE, Some(vec![0x1a, 0x7f])).await.unwrap_err();
    assert_eq!(broken.code(), Code::InvalidArgument);
    let blank = scene.keyed(TRACER).get("  ").await.unwrap_err();
    assert_eq!(blank.code(), Code::InvalidArgument);
    assert!(blank.message().contains("client_id is required"), "{blank}");
    for body in [r#"{"contentType":"a"}"#, r#"["a", 1]"#, "{", r#"{"contentType":"a","value":1,"more":2}"#] {
        let http = scene.http(Some(TRACER));
        let request = http.request(Method::PUT, "/v1/admin/checkpoints/tracer").body(body);
        assert_eq!(http.send(request).await.unwrap().refusal(), (400, "json_malformed".into()), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r31_r32_r33_who_is_no_administrator_is_refused() {
    let scene = Scene::with_tokens().await;
    for door in DOORS {
        for (token, code) in [
            (Some(AUDITOR), Code::PermissionDenied),
            (Some(WRITER), Code::PermissionDenied),
            (None, Code::Unauthenticated),
            (Some("nobodys-token"), Code::Unauthenticated),
        ] {
            let read = get(&scene, door, token, "auditor").await.unwrap_err();
            assert_eq!(read.0, code, "{door:?} {token:?}");
            let written = put(&scene, door, token, "auditor", (TYPE, &json!(1))).await.unwrap_err();
            assert_eq!(written.0, code, "{door:?} {token:?}");
        }
    }
    let status = scene.keyed(AUDITOR).get("auditor").await.unwrap_err();
    assert_eq!(status.message(), "admin role required");
}

/// The files of all checkpoints.
fn files(scene: &Scene) -> Vec<PathBuf> {
    let tenants = std::fs::read_dir(scene.host.data().join("client-checkpoints")).unwrap();
    let files = tenants.flat_map(|tenant| std::fs::read_dir(tenant.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_r35_a_value_is_sealed_for_its_client_and_a_failure_hides_its_cause() {
    let scene = Scene::with_tokens().await;
    for client in ["one", "two"] {
        let value = json!({ "secret": format!("of {client}") });
        put(&scene, Door::Http, Some(OPERATOR), client, (TYPE, &value)).await.unwrap();
    }
    let files = files(&scene);
    assert_eq!(files.len(), 2);
    let [one, two] = [0, 1].map(|index| std::fs::read(&files[index]).unwrap());
    assert!([&one, &two].iter().all(|file| !file.windows(6).any(|part| part == b"secret")));
    std::fs::write(&files[0], &two).unwrap();
    std::fs::write(&files[1], &one).unwrap();
    for door in DOORS {
        for client in ["one", "two"] {
            let (code, text) = get(&scene, door, Some(OPERATOR), client).await.unwrap_err();
            assert_eq!(code, Code::Internal, "{door:?}");
            assert!(!text.contains('/') && !text.contains("sealed"), "{door:?}: {text}");
        }
    }
    std::fs::write(&files[0], &one).unwrap();
    std::fs::write(&files[1], &two).unwrap();
    let read = get(&scene, Door::Grpc, Some(OPERATOR), "two").await.unwrap();
    assert_eq!(read["value"]["secret"], "of two");
}

#[tokio::test(flavor = "multi_thread")]
async fn r36_headers_that_name_somebody_are_not_looked_at() {
    let scene = Scene::with_tokens().await;
    let names = [("x-user-id", "other"), ("x-user-id", "another"), ("x-client-id", "other")];
    let caller = |headers: &[(&'static str, &str)]| scene.caller(&[&names[..], headers].concat());
    let own = caller(&[("x-api-key", TRACER)]);
    own.put("tracer", TYPE, Some(vec![8, 0])).await.unwrap();
    assert_eq!(own.get("other").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(caller(&[]).get("tracer").await.unwrap_err().code(), Code::Unauthenticated);
    let mut shown = own.after("").await;
    shown.until_live().await;
}

/// A key that is not good refuses the call, whatever the other credential is.
#[tokio::test(flavor = "multi_thread")]
async fn both_credentials_must_be_good() {
    let scene = Scene::with_tokens().await;
    let bearer = |token: &str| format!("Bearer {token}");
    let get = async |headers: &[(&'static str, &str)]| {
        scene.caller(headers).get("tracer").await.unwrap_err().code()
    };
    let (tracer, foreign) = (bearer(TRACER), bearer(FOREIGN));
    assert_eq!(get(&[("authorization", &tracer)]).await, Code::NotFound);
    assert_eq!(get(&[("authorization", &tracer), ("x-api-key", TRACER)]).await, Code::NotFound);
    for wrong in [
        &[("authorization", tracer.as_str()), ("x-api-key", "unknown-key")][..],
        &[("authorization", "Basic abc"), ("x-api-key", TRACER)],
        &[("authorization", foreign.as_str()), ("x-api-key", TRACER)],
        &[("x-api-key", TRACER), ("x-api-key", OTHER)],
    ] {
        assert_eq!(get(wrong).await, Code::Unauthenticated, "{wrong:?}");
    }
}

/// Over HTTP numbers survive as they were written; over gRPC a value goes back byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn rx_values_are_given_back_as_they_came() {
    let scene = Scene::with_tokens().await;
    let http = scene.http(Some(TRACER));
    let body = r#"{"contentType":"a/b","value":{"n":9007199254740993,"m":0.10000000000000000001}}"#;
    let request = http.request(Method::PUT, "/v1/admin/checkpoints/tracer").body(body);
    http.send(request).await.unwrap().ok().unwrap();
    let answer = http.get("/v1/admin/checkpoints/tracer").await.unwrap().text();
    assert!(answer.contains(r#"{"n":9007199254740993,"m":0.10000000000000000001}"#), "{answer}");

    // Members in an order that no map has.
    let part = |json: Value| ProtoValue::from_json(&json).encode_to_vec();
    let odd = [part(json!({ "b": 1 })), part(json!({ "a": 2 }))].concat();
    let caller = scene.keyed(TRACER);
    for bytes in [odd, vec![8, 0], Vec::new()] {
        assert_eq!(caller.put("tracer", TYPE, Some(bytes.clone())).await.unwrap().value, Some(bytes.clone()));
        assert_eq!(caller.get("tracer").await.unwrap().value.unwrap_or_default(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_over_its_bound_is_refused_by_name_and_leaves_what_there_was() {
    let scene = Scene::with_tokens().await;
    let small = json!("small");
    put(&scene, Door::Grpc, Some(TRACER), "tracer", (TYPE, &small)).await.unwrap();
    for (bytes, limit) in [(3 << 20, "client_checkpoint_bytes_max"), (5 << 20, "grpc_message_bytes_max")] {
        let large = json!("x".repeat(bytes));
        let (code, text) = put(&scene, Door::Grpc, Some(TRACER), "tracer", (TYPE, &large)).await.unwrap_err();
        assert_eq!(code, Code::ResourceExhausted, "{text}");
        assert!(text.contains(limit), "{text}");
        let (code, text) = put(&scene, Door::Http, Some(TRACER), "tracer", (TYPE, &large)).await.unwrap_err();
        assert_eq!(code, Code::ResourceExhausted, "{text}");
        assert!(text.contains("client_checkpoint_bytes_max"), "{text}");
    }
    assert_eq!(get(&scene, Door::Grpc, Some(TRACER), "tracer").await, Ok(kept(TYPE, &small)));
}

/// As a message JSON may be many times as long, and clients read no longer messages than the server does.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_no_client_could_read_is_refused_by_the_bound_and_stays() {
    let scene = Scene::with_tokens().await;
    for (numbers, fits) in [(300_000, true), (400_000, false)] {
        let value = json!(vec![1; numbers]);
        put(&scene, Door::Http, Some(TRACER), "tracer", (TYPE, &value)).await.unwrap();
        let read = get(&scene, Door::Grpc, Some(TRACER), "tracer").await;
        if fits {
            assert_eq!(read.unwrap()["value"], value);
        } else {
            let (code, text) = read.unwrap_err();
            assert_eq!(code, Code::ResourceExhausted, "{text}");
            assert!(text.contains("grpc_message_bytes_max is 4194304"), "{text}");
            assert!(text.contains("/v1/admin/checkpoints"), "{text}");
        }
        let read = get(&scene, Door::Http, Some(TRACER), "tracer").await;
        assert_eq!(read.unwrap()["value"], value, "over HTTP it is there");
    }
}
