//! Servers that leave something out: an answer, what a stream would show, what they are showing.

use std::time::{Duration, Instant};

use millrace::config::{SourceCheckpoints, Span};
use millrace::limits::SOURCE_CALL_MAX;
use millrace_tests::peer::Peer;
use millrace_tests::until;
use serde_json::{Value, json};

use super::scene::{Scene, numbers};

const DATA: &str = r#"{"conversation":"c%d"}"#;

/// Calls of a method are not answered from now on; with none, all are.
fn hang(peer: &mut Peer, method: Option<&str>) {
    peer.ask(&json!({ "do": "hang", "method": method }));
}

/// Where the checkpoint at the server is.
fn saved(peer: &mut Peer) -> Value {
    peer.checkpoint("millrace")["value"]["lastEventCursor"].clone()
}

/// Whether a source says that this took too long, and by which limit.
fn is_late(status: &Value, call: &str) -> bool {
    let seconds = SOURCE_CALL_MAX.as_secs();
    let late = format!("{call} failed: DEADLINE_EXCEEDED: no answer within source_call_max = {seconds} s");
    let said = status["last_error"]["message"].as_str().unwrap_or_default();
    said.starts_with(&late) && status["last_error"]["code"] == "source_unreachable"
}

/// The limit is no setting, so that this takes as long as it says. Both wait at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_late_is_given_up_and_made_again() {
    tokio::join!(Box::pin(the_first_is_late()), Box::pin(a_put_is_late()));
}

async fn the_first_is_late() {
    let mut peer = Peer::start();
    peer.publish("response", DATA, 3);
    hang(&mut peer, Some("get"));
    let mut scene = Scene::of(peer, |settings| settings.checkpoints = SourceCheckpoints::Remote).await;
    let late = |status: &Value| is_late(status, "asking for the checkpoint") && status["state"] == "waiting";
    scene.until("it is given up", late).await;
    assert!(scene.peer.subscriptions().is_empty(), "nobody knows yet where to begin");
    hang(&mut scene.peer, None);
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.end().await;
}

async fn a_put_is_late() {
    let mut scene = Scene::with(|settings| settings.checkpoints = SourceCheckpoints::Remote).await;
    scene.until_live().await;
    scene.peer.publish("response", DATA, 3);
    until("three are saved", || saved(&mut scene.peer) == "3").await;
    let before = scene.peer.puts();
    hang(&mut scene.peer, Some("put"));
    scene.peer.publish("response", DATA, 2);
    assert_eq!(scene.cursors(5).await, numbers(5));
    let status = scene.until("it is given up", |status| is_late(status, "putting the checkpoint")).await;
    assert_eq!(status["state"], "live", "the stream goes on");
    until("it is put again", || scene.peer.puts() >= before + 2).await;
    assert_eq!(saved(&mut scene.peer), "3");
    hang(&mut scene.peer, None);
    until("five are saved", || saved(&mut scene.peer) == "5").await;
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(6).await, numbers(6));
    until("the sixth is saved", || saved(&mut scene.peer) == "6").await;
    scene.end().await;
}

/// What is published meanwhile comes once a stream stays open.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_each_stream_at_once_is_asked_less_and_less_often() {
    let mut peer = Peer::start();
    peer.publish("response", DATA, 3);
    let mut scene = Scene::of(peer, |settings| {
        settings.reconnect_min = Span(Duration::from_millis(20));
        // A stream that lives as long as the longest wait is none that ends at once.
        settings.reconnect_max = Span(Duration::from_secs(60));
    })
    .await;
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.until_live().await;
    let before = scene.peer.subscriptions().len();
    scene.peer.mode("end_at_once", true);
    let begun = Instant::now();
    scene.peer.ask(&json!({ "do": "end" }));
    scene.peer.publish("response", DATA, 2);
    until("it was asked six times more", || scene.peer.subscriptions().len() >= before + 6).await;
    let least = Duration::from_millis(10 + 20 + 40 + 80 + 160 + 320);
    assert!(begun.elapsed() >= least, "six waits, each twice as long, half of it left to chance");
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.peer.mode("end_at_once", false);
    assert_eq!(scene.cursors(5).await, numbers(5));
    scene.until_live().await;
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(6).await, numbers(6));
    let asked = scene.peer.subscriptions().split_off(before);
    assert!(asked.iter().all(|asked| asked["after_cursor"].is_string()), "never from now on: {asked:?}");
    scene.end().await;
}

/// Phases are told of, and are no more than that: events of either are taken, and the newest are read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_of_phases_is_listened_to_all_the_same() {
    let mut peer = Peer::start();
    peer.mode("no_phases", true);
    peer.publish("response", DATA, 3);
    let mut scene = Scene::of(peer, |settings| settings.recheck = Span(Duration::from_millis(300))).await;
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(4).await, numbers(4));
    scene.peer.ask(&json!({
        "do": "publish", "kind": "response", "event": "created", "data": DATA, "silent": true,
    }));
    scene.peer.publish("response", DATA, 1);
    let mut cursors = scene.cursors(6).await;
    cursors.sort();
    assert_eq!(cursors, numbers(6), "one that was published late is found");
    let before = scene.status().await["reconnects"].as_u64();
    scene.peer.ask(&json!({ "do": "end" }));
    let status = scene.until("it comes back", |status| status["reconnects"].as_u64() > before).await;
    assert!(status["state"] != "live" && status["state"] != "replay", "nobody said so: {status}");
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(7).await.len(), 7);
    scene.end().await;
}
