//! A host that ends while a client in Python reads, and comes back.

use std::time::Instant;

use serde_json::json;

use super::super::process::{End, Process};
use super::super::scene::PATIENCE;
use super::Processor;
use super::caller::{Caller, data, status};

/// The events, their cursors and the checkpoints are there afterwards; and nobody sees anything twice.
async fn outlives(end: End) {
    let mut server = Process::start().await;
    // More than its processor, which nobody listens to for now, takes ahead.
    server.publish(0..3_000).await;
    let mut caller = Caller::start(server.port());
    caller.open("idle", None, &json!({}));
    let place = caller.until_live("idle").remove(0)["cursor"].clone();
    let kept = caller.put(None, "idle", "text/json", &json!("kept"));
    assert_eq!(kept["value"], "kept", "{kept}");
    let mut processor = Processor::at(server.port(), &["--better"]);
    assert_eq!(processor.next()["handled"], 0);
    let mut seen = processor.numbers(100);

    server.end(end);
    let said = caller.read_to_the_end("idle");
    let (code, details) = status(said.last().unwrap());
    assert_eq!(code, "UNAVAILABLE", "{said:?}");
    if end == End::Stop {
        assert_eq!(details, "the host is stopping");
    }
    let refused = caller.get(None, "idle");
    assert_eq!(status(&refused).0, "UNAVAILABLE", "{refused}");

    server.start_again().await;
    server.publish(3_000..4_000).await;
    seen.extend(processor.numbers(3_900));
    assert!(seen.iter().copied().eq(0..4_000), "{seen:?}");
    processor.stop();
    let mut later = Processor::at(server.port(), &["--better"]);
    assert_eq!(later.next()["handled"], 4_000, "its last put counts");
    later.stop();

    // A channel that found nobody waits before it looks again.
    let begin = Instant::now();
    while caller.get(None, "idle") != kept {
        assert!(begin.elapsed() < PATIENCE, "it is not reached again");
    }
    caller.open("idle again", None, &json!({ "after_cursor": place }));
    let events = caller.events("idle again", 1_000);
    let numbers = data(&events).into_iter().map(|data| data["number"].as_u64().unwrap());
    assert!(numbers.eq(3_000..4_000), "its cursor is where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_server_kill_is_outlived_by_what_a_client_of_another_make_has_read_and_kept() {
    Box::pin(outlives(End::Kill)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_graceful_stop_is_told_to_a_client_of_another_make_and_outlived() {
    Box::pin(outlives(End::Stop)).await;
}
