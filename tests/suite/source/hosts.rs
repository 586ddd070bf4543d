//! A host that is fed by another host of ours: what the first has, the second has once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace::processors::source::CursorPolicy;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::ports::Port;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::scene::settings;

const PATIENCE: Duration = Duration::from_secs(60);
const STATUS: &str = "/v1/sources/grpc";

async fn first(port: &Port) -> Embedded {
    let bind = ([127, 0, 0, 1], port.number()).into();
    Embedded::start_with(|config| config.grpc.bind = Some(bind)).await.unwrap()
}

/// Is not tried again soon once it has stopped.
async fn second(port: &Port, policy: CursorPolicy) -> Embedded {
    let mut settings = settings(&format!("http://127.0.0.1:{}", port.number()));
    settings.kinds = vec!["thing".into()];
    settings.on_cursor_lost = policy;
    settings.reconnect_max.0 = Duration::from_secs(10);
    Embedded::start_with(|config| config.source.grpc = Some(settings)).await.unwrap()
}

async fn publish(client: &Client, numbers: Range<u64>) {
    let line = |number: u64| {
        let event = json!({
            "aggregate": "thing", "agg_id": format!("t{number}"), "version": 1, "type": "thing.made",
            "payload": { "number": number },
        });
        format!("{event}\n")
    };
    client.publish(numbers.map(line).collect::<String>()).await.unwrap();
}

/// Waits until a host has so many events, and looks whether they are these, in this order.
async fn has(host: &Embedded, expected: &[u64]) {
    let begin = Instant::now();
    loop {
        let events = host.client.events("thing.made").await.unwrap();
        if events.len() >= expected.len() {
            let number = |event: &Value| event["payload"]["number"].as_u64().unwrap();
            assert_eq!(events.iter().map(number).collect::<Vec<_>>(), expected);
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{} of {} events came", events.len(), expected.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a source says of itself, once that is so.
async fn says(host: &Embedded, what: impl Fn(&Value) -> bool) -> Value {
    host.client.wait_for(STATUS, |answer| what(&answer.json())).await.unwrap().json()
}

/// The same host, with nothing in its log.
async fn emptied(host: Embedded) -> Embedded {
    let data = host.data();
    host.restart_with(|_| std::fs::remove_dir_all(&data).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_log_is_taken_from_its_oldest_event_again() {
    let port = Port::hold();
    let one = first(&port).await;
    publish(&one.client, 0..5).await;
    let other = second(&port, CursorPolicy::Oldest).await;
    has(&other, &[0, 1, 2, 3, 4]).await;
    let one = emptied(one).await;
    publish(&one.client, 10..13).await;
    has(&other, &[0, 1, 2, 3, 4, 10, 11, 12]).await;
    publish(&one.client, 13..15).await;
    has(&other, &[0, 1, 2, 3, 4, 10, 11, 12, 13, 14]).await;
    drop(other.stop().await);
    drop(one.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_log_stops_a_source_that_is_to_fail() {
    let port = Port::hold();
    let one = first(&port).await;
    publish(&one.client, 0..5).await;
    let other = second(&port, CursorPolicy::Fail).await;
    has(&other, &[0, 1, 2, 3, 4]).await;
    let one = emptied(one).await;
    publish(&one.client, 10..13).await;
    let status = says(&other, |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "cursor_lost", "{status}");
    assert!(status["last_error"]["message"].as_str().unwrap().contains("on_cursor_lost"), "{status}");
    has(&other, &[0, 1, 2, 3, 4]).await;
    drop(other.stop().await);
    drop(one.stop().await);
}

/// Twice: ended well, and with an older checkpoint than it had written, as after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_restarted_in_the_middle_misses_nothing_and_has_nothing_twice() {
    const BETWEEN: u64 = 100;
    let port = Port::hold();
    let one = first(&port).await;
    let other = second(&port, CursorPolicy::Fail).await;
    let kept = other.data().join("sources/millrace.json");
    let (client, goes_on) = (one.client.clone(), Arc::new(AtomicBool::new(true)));
    let mut publishing = JoinSet::new();
    publishing.spawn({
        let goes_on = Arc::clone(&goes_on);
        async move {
            let mut count = 0;
            while goes_on.load(Ordering::SeqCst) {
                publish(&client, count..count + 10).await;
                count += 10;
            }
            count
        }
    });
    let many =
        |status: &Value| status["events"].as_u64() >= Some(BETWEEN) && status["puts"].as_u64() > Some(0);
    says(&other, many).await;
    let early = std::fs::read(&kept).unwrap();
    let other = other.restart().await.unwrap();
    says(&other, many).await;
    let other = other.restart_with(|_| std::fs::write(&kept, early).unwrap()).await.unwrap();
    // All that the restart before had handled comes again.
    says(&other, |status| status["repeated"].as_u64() >= Some(BETWEEN)).await;
    goes_on.store(false, Ordering::SeqCst);
    let count = publishing.join_next().await.unwrap().unwrap();
    has(&other, &(0..count).collect::<Vec<u64>>()).await;
    drop(other.stop().await);
    drop(one.stop().await);
}
