//! What ends a stream that its client would have gone on with.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Code;

use super::scene::{AUDITOR, OPERATOR, Scene, Shown, after, data};

const PATIENCE: Duration = Duration::from_secs(60);
const EVENTS: usize = 200;

/// More in all than a client takes of one stream without reading it.
async fn publish_much(scene: &Scene) {
    let text = "x".repeat(50_000);
    for half in [0..EVENTS / 2, EVENTS / 2..EVENTS] {
        let payloads: Vec<_> = half.map(|number| json!({ "number": number, "text": text })).collect();
        scene.publish("a", "b", &payloads).await;
    }
}

/// Reads a stream after a cursor to its end, or until there are so many events. Answers whether it ended before.
async fn read(shown: &mut Shown, numbers: &mut Vec<u64>, cursor: &mut String) -> bool {
    while numbers.len() < EVENTS {
        let event = match shown.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return true,
            // Who comes twice as late finds it gone.
            Err(status) => {
                assert_eq!(status.code(), Code::Cancelled, "{status}");
                return true;
            }
        };
        if event.kind != "stream" {
            numbers.push(data(&event)["number"].as_u64().unwrap());
            *cursor = event.cursor.unwrap();
        }
    }
    false
}

/// A stream that nobody reads for `write_wait_ms_max` holds nothing here any longer, and its client misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_in_time_ends_and_goes_on_at_its_cursor() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 1_000).await;
    publish_much(&scene).await;
    let caller = scene.caller(&[]);
    let (begin, mut left_alone) = (Instant::now(), Duration::from_millis(1_500));
    let (mut numbers, mut cursor) = (Vec::new(), "start".to_owned());
    loop {
        let mut shown = caller.after("start").await;
        // However long it takes on a busy machine: at some time it is gone.
        tokio::time::sleep(left_alone).await;
        if read(&mut shown, &mut numbers, &mut cursor).await {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "it was never ended");
        (numbers, cursor) = (Vec::new(), "start".to_owned());
        left_alone *= 2;
    }
    while numbers.len() < EVENTS {
        let mut rest = caller.after(&cursor).await;
        read(&mut rest, &mut numbers, &mut cursor).await;
    }
    assert!(numbers.iter().copied().eq(0..EVENTS as u64), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_credential_that_opened_it() {
    let scene = Scene::with_tokens().await;
    let mut shown = scene.keyed(AUDITOR).after("").await;
    shown.until_live().await;
    let revoked = json!({ "name": "auditor" }).to_string();
    let operator = scene.http(Some(OPERATOR));
    operator.post("/v1/auth/revoke", "application/json", revoked).await.unwrap().ok().unwrap();
    let status = shown.next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the credential was revoked"));
    let again = scene.keyed(AUDITOR).subscribe(after("")).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
}
