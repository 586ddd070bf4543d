//! What a host says of its calls to whoever runs it: in its log why one failed, in its metrics how each ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace::memory_v1::{SubscribeEventsRequest, Value as ProtoValue};
use prost::Message as _;
use serde_json::json;
use tonic::Code;

use super::process::Process;
use super::scene::{AUDITOR, OPERATOR, PATIENCE, WRITER, after};

/// What a caller is not told is in the log, with whose fault it is.
#[tokio::test(flavor = "multi_thread")]
async fn r35_the_cause_that_a_failure_hides_is_in_the_log() {
    let process = Process::start().await;
    let caller = process.caller(&[]);
    for client in ["one", "two"] {
        let value = ProtoValue::from_json(&json!(client)).encode_to_vec();
        caller.put(client, "text/json", Some(value)).await.unwrap();
    }
    let tenants = std::fs::read_dir(process.data().join("client-checkpoints")).unwrap();
    let files = tenants.flat_map(|tenant| std::fs::read_dir(tenant.unwrap().path()).unwrap());
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    let one = std::fs::read(&files[0]).unwrap();
    std::fs::copy(&files[1], &files[0]).unwrap();
    std::fs::write(&files[1], one).unwrap();
    let parts =
        ["error.kind=\"checkpoint_unreadable\"", "error.blame=\"host\"", "it was sealed for another client"];
    let causes = || {
        let said = process.said();
        said.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    };
    assert_eq!(causes(), 0);
    let status = caller.get("one").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "the checkpoint cannot be opened"));
    assert_eq!(causes(), 1, "{}", process.said());
    let answer = process.client().get("/v1/admin/checkpoints/two").await.unwrap();
    assert!(answer.status == 500 && !answer.text().contains("sealed"), "{}", answer.text());
    assert_eq!(causes(), 2, "{}", process.said());
}

/// Event streams that were counted, by the code of their end.
async fn counted(process: &Process) -> BTreeMap<String, u64> {
    let operator = process.client().with_token(OPERATOR).unwrap();
    let answer = operator.get("/metrics").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let calls = text.lines().filter_map(|line| line.strip_prefix("millrace_grpc_calls_total{"));
    let streams = calls.filter(|line| line.contains("method=\"SubscribeEvents\""));
    let by_code = streams.map(|line| {
        let code = line.split("code=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        (code.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
    });
    by_code.collect()
}

/// Waits until just these were counted.
async fn wait(process: &Process, ends: &[(&str, u64)]) {
    let ends: BTreeMap<_, _> = ends.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect();
    let begin = Instant::now();
    loop {
        let seen = counted(process).await;
        if seen == ends {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{seen:?} is not {ends:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Also one whose headers said that all was well.
#[tokio::test(flavor = "multi_thread")]
async fn r53_a_stream_is_counted_once_by_the_code_of_its_end() {
    let process = Process::with_tokens().await;
    let keyed = |key: &str| process.caller(&[("x-api-key", key)]);
    let odd = SubscribeEventsRequest { detail: Some("all".into()), ..SubscribeEventsRequest::default() };
    for (caller, asked, code) in [
        (process.caller(&[]), after("start"), Code::Unauthenticated),
        (keyed(WRITER), after("start"), Code::PermissionDenied),
        (keyed(AUDITOR), odd, Code::InvalidArgument),
    ] {
        assert_eq!(caller.subscribe(asked).await.unwrap_err().code(), code);
    }
    let refused = [("invalid_argument", 1), ("permission_denied", 1), ("unauthenticated", 1)];
    wait(&process, &refused).await;

    let mut lost = keyed(AUDITOR).after("abc").await;
    while lost.next().await.unwrap().is_some() {}
    wait(&process, &[&refused[..], &[("ok", 1)]].concat()).await;

    let mut left = keyed(AUDITOR).after("").await;
    left.until_live().await;
    let mut revoked = keyed(AUDITOR).after("").await;
    revoked.until_live().await;
    let before = counted(&process).await;
    assert_eq!((before.get("ok"), before.get("cancelled")), (Some(&1), None), "neither is over");
    drop(left);
    wait(&process, &[&refused[..], &[("ok", 1), ("cancelled", 1)]].concat()).await;

    let operator = process.client().with_token(OPERATOR).unwrap();
    let body = json!({ "name": "auditor" }).to_string();
    operator.post("/v1/auth/revoke", "application/json", body).await.unwrap().ok().unwrap();
    assert_eq!(revoked.next().await.unwrap_err().code(), Code::Unauthenticated);
    let all = [
        ("invalid_argument", 1),
        ("permission_denied", 1),
        ("unauthenticated", 2),
        ("ok", 1),
        ("cancelled", 1),
    ];
    wait(&process, &all).await;
}
