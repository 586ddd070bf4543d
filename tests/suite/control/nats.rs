//! Claims about the control feed on NATS JetStream: real servers of each test's own.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod away;
mod begins;
mod lives;
mod secured;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use millrace::backends::nats::{NatsControl, NatsOptions};
use millrace::control::{
    Acker as _, ControlEvent, ControlFeedError, ControlSink as _, ControlSource as _, ControlVersion, Polled,
    Received,
};
use millrace::error::{BackendError, RemoteFault};
use millrace_tests::nats_server::NatsServer;
use serde_json::{Value, json};

use super::feeds::{Feed, LONG, Rig, event, feeds_conformance, is_broken, received, with_id};

const STREAM: &str = "fleet-control";
/// Longer than any test takes.
const NEVER: Duration = Duration::from_secs(3_600);

fn options(server: &NatsServer, host: &str) -> NatsOptions {
    let address = server.url().parse().expect("the server has an address");
    NatsOptions { ack_wait: NEVER, ..NatsOptions::new(address, "fleet", host) }
}

fn open(server: &NatsServer, host: &str) -> NatsControl {
    NatsControl::new(options(server, host))
}

#[derive(Debug)]
struct OnNats(Mutex<NatsServer>);

impl Rig for OnNats {
    fn open<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Feed> {
        let server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What a host has left unacknowledged comes again while a test waits for it.
        let options = NatsOptions { ack_wait: Duration::from_secs(1), ..options(&server, host) };
        Box::pin(std::future::ready(Feed::of(NatsControl::new(options))))
    }

    fn put_broken(&self) -> BoxFuture<'_, ()> {
        put_broken(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(std::future::ready(()))
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).restart();
        Box::pin(std::future::ready(()))
    }
}

async fn on_nats() -> Arc<dyn Rig> {
    Arc::new(OnNats(Mutex::new(NatsServer::start())))
}

feeds_conformance!(nats, on_nats);

fn put_broken(server: &NatsServer) {
    let answer = server.ask("fleet.control.plugin.notes", "{\"event_id\":");
    assert!(answer.contains("\"seq\""), "{answer}");
}

fn consumer(server: &NatsServer, host: &str) -> Value {
    server.api(&format!("CONSUMER.INFO.{STREAM}.host-{host}"), &json!({}))
}

async fn append(feed: &NatsControl, event: &ControlEvent) -> u64 {
    feed.append(event).await.unwrap().0
}

async fn poll(feed: &NatsControl, after: u64, wait: Duration) -> millrace::control::Result<Polled> {
    feed.poll(ControlVersion(after), 100, wait).await
}

/// What there is after a version, as soon as there is something.
async fn next(feed: &NatsControl, after: u64) -> Vec<Received> {
    let begin = Instant::now();
    loop {
        let polled = poll(feed, after, Duration::from_secs(1)).await.unwrap();
        if !polled.events.is_empty() {
            return polled.events;
        }
        assert!(begin.elapsed() < LONG, "nothing comes after {after}");
    }
}

async fn acknowledge(feed: &NatsControl, event: &ControlEvent, version: u64) {
    feed.acknowledge(event.id(), ControlVersion(version)).await.unwrap();
}

fn versions(entries: &[Received]) -> Vec<u64> {
    entries.iter().map(|entry| entry.version().0).collect()
}

/// Where the feed begins for a host that is told that it is behind.
async fn behind(feed: &NatsControl, after: u64) -> u64 {
    match poll(feed, after, Duration::ZERO).await {
        Err(ControlFeedError::BehindRetention { asked, oldest }) if asked == after => oldest,
        other => panic!("{other:?}"),
    }
}

fn fault_of<T: std::fmt::Debug>(result: millrace::control::Result<T>) -> RemoteFault {
    match result {
        Err(ControlFeedError::Backend(BackendError::Remote { fault, .. })) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_have_consumers_of_their_own_and_each_gets_everything() {
    let server = NatsServer::start();
    let (one, other) = (open(&server, "one"), open(&server, "other"));
    let mut sent = Vec::new();
    for number in 0..5 {
        let event = event(&format!("plugin-{number}"));
        sent.push((append(&one, &event).await, event));
    }
    for feed in [&one, &other] {
        let came: Vec<_> = poll(feed, 0, LONG).await.unwrap().events.iter().map(received).collect();
        assert_eq!(came, sent);
        for (version, event) in &sent {
            acknowledge(feed, event, *version).await;
        }
    }
    for host in ["one", "other"] {
        let consumer = consumer(&server, host);
        assert_eq!(consumer["ack_floor"]["stream_seq"], sent[4].0, "{consumer}");
        assert_eq!(consumer["num_ack_pending"], 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_a_repeat_in_the_window_is_there_once_and_its_content_is_compared_with_what_is_stored() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let first = with_id(77, "board");
    let version = append(&feed, &first).await;
    assert_eq!(append(&feed, &first).await, version);
    // Under another subject, and from a host that has seen nothing of it.
    let other = open(&server, "other");
    let refused = other.append(&with_id(77, "watch")).await.unwrap_err();
    assert!(matches!(refused, ControlFeedError::EventIdTaken { .. }), "{refused}");
    let info = server.api(&format!("STREAM.INFO.{STREAM}"), &json!({}));
    assert_eq!(info["state"]["messages"], 1);
    // Of one that was trimmed the version is still known.
    assert_eq!(feed.trim(ControlVersion(version)).await.unwrap(), 1);
    assert_eq!(append(&feed, &first).await, version);
    assert_eq!(feed.repeats_known_for(), Some(Duration::from_secs(24 * 3_600)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_beyond_the_window_has_another_version_and_the_sink_says_so() {
    let server = NatsServer::start();
    // The server takes nothing under 100 ms.
    let window = Duration::from_millis(100);
    let feed = NatsControl::new(NatsOptions { duplicates_window: window, ..options(&server, "one") });
    assert_eq!(feed.repeats_known_for(), Some(window));
    let event = event("board");
    let version = append(&feed, &event).await;
    let begin = Instant::now();
    while append(&feed, &event).await == version {
        assert!(begin.elapsed() < LONG, "the window ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c25_the_server_hears_of_an_event_once_it_is_committed_and_not_before() {
    let server = NatsServer::start();
    let feed = NatsControl::new(NatsOptions { ack_wait: Duration::from_secs(1), ..options(&server, "one") });
    let event = event("board");
    let version = append(&feed, &event).await;
    assert_eq!(versions(&next(&feed, 0).await), [version]);
    // The cursor is past it, and nobody has said that it is committed: it comes again. Twice, so that it was not the
    // first answer's.
    for _ in 0..2 {
        assert_eq!(versions(&next(&feed, version).await), [version]);
    }
    assert_eq!(consumer(&server, "one")["num_ack_pending"], 1);
    acknowledge(&feed, &event, version).await;
    let known = consumer(&server, "one");
    assert_eq!((&known["num_ack_pending"], &known["ack_floor"]["stream_seq"]), (&json!(0), &json!(version)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_here_is_answered_again_at_once_and_before_what_is_younger() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let sent = ["one", "two", "three"].map(event);
    let mut given = Vec::new();
    for event in &sent[..2] {
        given.push(append(&feed, event).await);
    }
    assert_eq!(versions(&next(&feed, 0).await), given);
    acknowledge(&feed, &sent[0], given[0]).await;
    // The second could not be applied; a third comes.
    given.push(append(&feed, &sent[2]).await);
    assert_eq!(versions(&next(&feed, given[0]).await), given[1..]);
    // The server would not hand the second out again for an hour.
    assert_eq!(versions(&next(&feed, given[0]).await), given[1..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_went_back_gets_again_what_was_acknowledged() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let sent = ["one", "two"].map(event);
    let mut given = Vec::new();
    for event in &sent {
        given.push(append(&feed, event).await);
    }
    assert_eq!(versions(&next(&feed, 0).await), given);
    for (event, version) in sent.iter().zip(&given) {
        acknowledge(&feed, event, *version).await;
    }
    assert_eq!(versions(&next(&feed, given[0]).await), given[1..]);
    // A host that has lost its memory, in another process.
    assert_eq!(versions(&next(&open(&server, "one"), 0).await), given);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_that_is_given_up_loses_nothing_that_the_server_has_handed_out() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let first = append(&feed, &event("one")).await;
    assert_eq!(versions(&next(&feed, 0).await), [first]);
    for _ in 0..3 {
        let given_up = tokio::time::timeout(Duration::from_millis(50), poll(&feed, first, LONG));
        assert!(given_up.await.is_err(), "there is nothing to answer");
    }
    // A request of those is open at the server still; it would not hand this out again for an hour.
    let second = append(&feed, &event("two")).await;
    assert_eq!(versions(&next(&feed, first).await), [second]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_is_acknowledged_once_it_was_passed_by() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let (first, second) = (event("one"), event("two"));
    let version = append(&feed, &first).await;
    put_broken(&server);
    let entries = next(&feed, 0).await;
    assert!(entries.len() == 2 && is_broken(&entries[1]), "{entries:?}");
    acknowledge(&feed, &first, version).await;
    let broken = entries[1].version().0;
    assert_eq!(consumer(&server, "one")["num_ack_pending"], 1);
    let third = append(&feed, &second).await;
    assert_eq!(versions(&next(&feed, broken).await), [third]);
    assert_eq!(consumer(&server, "one")["ack_floor"]["stream_seq"], broken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_events_than_may_wait_for_their_acknowledgement_come_in_turns() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let count = millrace::limits::NATS_ACKS_WAITING_MAX + 50;
    let mut sent = Vec::new();
    for _ in 0..count {
        let event = event("board");
        sent.push((append(&feed, &event).await, event));
    }
    let came: Vec<_> = Feed::of(feed).take(0, count).await.iter().map(received).collect();
    assert_eq!(came, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fleets_on_one_server_do_not_meet() {
    let server = NatsServer::start();
    let one = open(&server, "one");
    let other = NatsControl::new(NatsOptions { name: "fleet.>".into(), ..options(&server, "one") });
    let given = append(&one, &event("one")).await;
    let theirs = append(&other, &event("two")).await;
    assert_eq!(versions(&next(&one, 0).await), [given]);
    assert_eq!(versions(&next(&other, 0).await), [theirs]);
    let buckets = ["KV_fleet-control-board", "KV_fleet=2E=3E-control-board"];
    assert_eq!(server.streams(), [buckets, ["fleet-control", "fleet=2E=3E-control"]].concat());
}
