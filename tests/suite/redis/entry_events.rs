//! Entries of channels on a server that are events of the log there, too: both or neither, and each once.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::redis::{RedisChannels, RedisLog, RedisOptions};
use millrace::channels::{
    Append, Appended, ChannelError, ChannelId, ChannelLimits, ChannelOptions, ChannelStore, NewEntry,
};
use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::event::{Event, EventBatch, Position};
use millrace::limits::CHANNEL_EVENT_PAYLOAD_BYTES_MAX;
use millrace::streams::{AggregateScopes, EventLog, Scope};
use millrace_tests::conformance::appends::{channel, make, party, send, texts, with_events};
use millrace_tests::conformance::change_streams::stream;
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;
use millrace_tests::cutter::Cutter;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{SOON, open, options};

async fn host(options: RedisOptions) -> (RedisLog, Arc<dyn ChannelStore>) {
    let log = open(options).await;
    let limits = ChannelLimits { rate_limited: false, ..ChannelLimits::default() };
    let channels = RedisChannels::beside(&log, limits, Arc::new(SystemClock));
    (log, Arc::new(channels))
}

fn talk() -> ChannelId {
    channel("p", "talk")
}

async fn say(
    channels: &Arc<dyn ChannelStore>,
    who: &str,
    sequence: u64,
    text: &str,
) -> Result<Appended, ChannelError> {
    let entries = vec![NewEntry::data(sequence, text.to_owned())];
    let append = Append { who: party(who), epoch: None, entries };
    channels.append(&talk(), append).await.map(|appended| appended[0])
}

/// The events of entries as the log has them: position in the channel, and what was said.
async fn events(log: &RedisLog) -> Vec<(u64, String)> {
    let (mut told, mut after) = (Vec::new(), Position::START);
    while after < log.bounds().newest {
        let page = log.read(&tenant("acme"), after, ALL).await.unwrap();
        for event in page.events.iter().filter(|event| event.aggregate == "channel") {
            let said: Value = serde_json::from_slice(event.payload).unwrap();
            told.push((event.version, said["text"].as_str().unwrap().to_owned()));
        }
        after = page.next;
    }
    told
}

/// The same, once the log has shown so many events of all kinds.
async fn events_upto(log: &RedisLog, newest: u64) -> Vec<(u64, String)> {
    until("the log has shown them", || log.bounds().newest >= Position(newest)).await;
    assert_eq!(log.bounds().newest, Position(newest), "and no more");
    events(log).await
}

fn numbered(texts: &[&str]) -> Vec<(u64, String)> {
    (1..).zip(texts).map(|(position, text)| (position, (*text).to_owned())).collect()
}

#[tokio::test]
async fn an_entry_and_its_event_lie_side_by_side_with_other_events_of_the_log() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let (log, channels) = host(options(&server)).await;
        make(&channels, "p", &[("talk", with_events()), ("quiet", ChannelOptions::default())]).await;
        say(&channels, "ada", 1, "one").await.unwrap();
        send(&channels, &channel("p", "quiet"), "no event").await.unwrap();
        let mut batch = EventBatch::new(tenant("acme"));
        let event = Event {
            aggregate: "leg",
            agg_id: "a",
            version: 1,
            event_type: "x",
            payload: b"1",
            ..Event::default()
        };
        batch.push(&event).unwrap();
        log.append(batch.clone()).await.unwrap();
        let two = ["two", "three"].map(|text| NewEntry { payload: Some(text.into()), ..NewEntry::default() });
        let append = Append { who: party("plugin:board"), epoch: None, entries: two.into() };
        channels.append(&talk(), append).await.unwrap();
        assert_eq!(events_upto(&log, 4).await, numbered(&["one", "two", "three"]));
        let page = log.read(&tenant("acme"), Position::START, ALL).await.unwrap();
        let places: Vec<_> = page.events.iter().map(|event| (event.position.0, event.aggregate)).collect();
        assert_eq!(places, [(1, "channel"), (2, "leg"), (3, "channel"), (4, "channel")]);
        // A repeat says nothing new, of an entry and of another event.
        assert!(say(&channels, "ada", 1, "one").await.unwrap().repeated);
        assert!(log.append(batch).await.unwrap()[0].repeated);
        assert_eq!(say(&channels, "ada", 2, "four").await.unwrap().position, Position(4));
        assert_eq!(events_upto(&log, 5).await, numbered(&["one", "two", "three", "four"]));
    }
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_has_its_events_once() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let (log, channels) = host(RedisOptions::new(address)).await;
    make(&channels, "p", &[("talk", with_events())]).await;
    say(&channels, "ada", 1, "x").await.unwrap();
    cutter.cut_after("unlucky");
    let done = say(&channels, "ada", 2, "unlucky").await.unwrap();
    assert_eq!((done.position, cutter.cuts()), (Position(2), 1));
    assert_eq!(events_upto(&log, 2).await, numbered(&["x", "unlucky"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_killed_leave_as_many_events_as_entries() {
    const EACH: u64 = 100;
    let server = RedisServer::durable(Engine::Valkey);
    // So that acknowledgements wait for it, on a connection that is killed, too.
    let _replica = server.replica(Keeps::Nothing);
    let (one, other) = (host(options(&server)).await, host(options(&server)).await);
    make(&one.1, "p", &[("talk", with_events())]).await;
    let mut sending = JoinSet::new();
    for (who, channels) in [("ada", &one.1), ("plugin:board", &other.1)] {
        let channels = Arc::clone(channels);
        sending.spawn(async move {
            let begun = tokio::time::Instant::now();
            for sequence in 1..=EACH {
                let text = format!("{who} {sequence}");
                while let Err(error) = say(&channels, who, sequence, &text).await {
                    assert!(begun.elapsed() < SOON && error.code().starts_with("backend_"), "{error}");
                }
            }
        });
    }
    for _ in 0..25 {
        server.kill_clients();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while let Some(sent) = sending.join_next().await {
        sent.unwrap();
    }
    let entries = texts(&one.1, &talk()).await;
    assert_eq!(entries.len() as u64, 2 * EACH);
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    for log in [&one.0, &other.0] {
        assert_eq!(events_upto(log, 2 * EACH).await, numbered(&entries), "in the order of the channel");
    }
}

#[tokio::test]
async fn entries_are_in_the_change_streams_that_are_declared_for_them() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (host(options(&server)).await, host(options(&server)).await);
    let of_sender = Scope::Field { name: "sender".to_owned(), member: "senderid".to_owned() };
    let scopes = AggregateScopes { aggregate: "channel".to_owned(), scopes: vec![Scope::Id, of_sender] };
    one.0.declare_scopes("watch", &[scopes]).await.unwrap();
    make(&one.1, "p", &[("talk", with_events())]).await;
    // The other host has not heard of it when it appends, and each meets what the other has left.
    say(&other.1, "ada", 1, "a").await.unwrap();
    say(&one.1, "plugin:board", 1, "b").await.unwrap();
    say(&other.1, "plugin:board", 2, "c").await.unwrap();
    events_upto(&one.0, 3).await;
    let positions = async |of: &str, id: &str| -> Vec<u64> {
        let page = one.0.read_stream(&tenant("acme"), &stream("channel", of, id), Position::START, ALL).await;
        page.unwrap().events.records().iter().map(|record| record.position).collect()
    };
    assert_eq!(positions("id", "p_talk").await, [1, 2, 3]);
    assert_eq!(positions("sender", "ada").await, [1, 2], "and where it is another's after it was its own");
    assert_eq!(positions("sender", "plugin:board").await, [2, 3]);
}

#[tokio::test]
async fn an_id_that_somebody_has_published_keeps_no_entry_out() {
    let server = RedisServer::durable(Engine::Redis);
    let (log, channels) = host(options(&server)).await;
    make(&channels, "p", &[("talk", with_events())]).await;
    let created_at = channels.head(&talk()).await.unwrap().channel.created_at;
    let id = format!("p_talk/{}/1", created_at.0);
    let mut taken = EventBatch::new(tenant("acme"));
    let event = Event { id: &id, aggregate: "a", agg_id: "x", event_type: "a.b", ..Event::default() };
    taken.push(&event).unwrap();
    log.append(taken).await.unwrap();
    say(&channels, "ada", 1, "ask").await.unwrap();
    assert_eq!(events_upto(&log, 2).await, numbered(&["ask"]));
}

#[tokio::test]
async fn what_does_not_fit_an_event_is_no_entry_either() {
    let server = RedisServer::durable(Engine::Redis);
    let (log, channels) = host(options(&server)).await;
    make(&channels, "p", &[("talk", with_events())]).await;
    let over = "x".repeat(CHANNEL_EVENT_PAYLOAD_BYTES_MAX + 1);
    let refused = say(&channels, "ada", 1, &over).await.unwrap_err();
    assert_eq!(refused.code(), "channel_event_payload_bytes_max");
    // Many entries of the largest size: more than one call to the log takes by itself.
    let most = "\u{1}".repeat(CHANNEL_EVENT_PAYLOAD_BYTES_MAX);
    let entries: Vec<NewEntry> = (1..=20).map(|sequence| NewEntry::data(sequence, most.clone())).collect();
    let append = Append { who: party("ada"), epoch: None, entries };
    assert_eq!(channels.append(&talk(), append).await.unwrap().len(), 20);
    let found = events_upto(&log, 20).await;
    assert!(found.iter().all(|(_, text)| *text == most) && found.len() == 20);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_to_keeps_the_entry_out_as_well() {
    let server = RedisServer::durable(Engine::Redis);
    let (log, channels) = host(options(&server)).await;
    make(&channels, "p", &[("talk", with_events())]).await;
    say(&channels, "ada", 1, "one").await.unwrap();
    events_upto(&log, 1).await;
    // Where events of the tenant are found is somebody else's key now.
    server.command(&["RENAME", "{millrace}:tenant:acme", "aside"]);
    server.command(&["SET", "{millrace}:tenant:acme", "x"]);
    let refused = say(&channels, "ada", 2, "two").await.unwrap_err();
    assert!(refused.code().starts_with("backend_"), "{refused}");
    server.command(&["RENAME", "aside", "{millrace}:tenant:acme"]);
    assert_eq!(texts(&channels, &talk()).await, ["one"]);
    let begun = tokio::time::Instant::now();
    while let Err(error) = say(&channels, "ada", 2, "two").await {
        assert!(begun.elapsed() < SOON && error.code().starts_with("backend_"), "{error}");
    }
    assert_eq!(texts(&channels, &talk()).await, ["one", "two"]);
    until("the log has the event of the second", || log.bounds().newest.0 >= 2).await;
}
