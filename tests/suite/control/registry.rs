//! Claims about feeds by name.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::ready;
use millrace::backends::control_feeds;
use millrace::backends::memory::MemoryFeed;
use millrace::backends::nop::NopFeed;
use millrace::control::{
    Board as _, ControlFeedError, ControlSink as _, ControlSource as _, ControlVersion, FeedRegistry,
    FeedSettings, FleetMark,
};
use millrace::error::{Blame, Classify as _};

use super::feeds::{event, received};

#[tokio::test]
async fn c12_c13_a_host_that_is_alone_reads_nothing_and_may_tell_anything() {
    let feed = NopFeed;
    let polled = feed.poll(ControlVersion(0), 10, Duration::from_millis(1)).await.unwrap();
    assert_eq!((polled.events.len(), polled.oldest.0, polled.newest.0), (0, 0, 0));
    let event = event("one");
    for _ in 0..2 {
        assert_eq!(feed.append(&event).await.unwrap(), ControlVersion(0));
    }
    assert_eq!(feed.poll(ControlVersion(0), 10, Duration::ZERO).await.unwrap().events.len(), 0);
    feed.report("a", "{}").await.unwrap();
    assert_eq!(feed.reports().await.unwrap(), []);
    assert_eq!(feed.mark().await.unwrap(), None);
}

#[tokio::test]
async fn c39_a_name_that_nobody_knows_lists_those_that_there_are() {
    let feeds = control_feeds().unwrap();
    let settings = FeedSettings::new("a");
    let errors = [
        feeds.source("kafka", &settings).await.unwrap_err(),
        feeds.sink("", &settings).await.unwrap_err(),
        feeds.board("File", &settings).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), "control_backend_unknown", "{error}");
        for known in ["file", "nats", "nop", "redis", "sqlite"] {
            assert!(error.to_string().contains(known), "{error}");
        }
    }
}

#[tokio::test]
async fn a_feed_in_a_folder_says_that_it_needs_one() {
    let feeds = control_feeds().unwrap();
    let settings = FeedSettings::new("a");
    for name in ["file", "sqlite"] {
        let error = feeds.source(name, &settings).await.unwrap_err();
        assert!(
            matches!(&error, ControlFeedError::Settings { setting, .. } if setting == "control.dir"),
            "{error}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = FeedSettings::new("a");
    for name in ["file", "sqlite"] {
        settings.dir = Some(dir.path().join(name));
        let event = event("one");
        let version = feeds.sink(name, &settings).await.unwrap().append(&event).await.unwrap();
        let source = feeds.source(name, &settings).await.unwrap();
        assert_eq!(source.name(), name);
        let polled = source.poll(ControlVersion(0), 10, Duration::ZERO).await.unwrap();
        assert_eq!(polled.events.iter().map(received).collect::<Vec<_>>(), [(version.0, event)]);
        assert_eq!(feeds.board(name, &settings).await.unwrap().reports().await.unwrap(), []);
    }
}

/// A host that reads what others tell, in a folder in which it cannot take the lock: it follows the feed, compares itself with
/// the mark, and says of a report that it cannot be made.
#[tokio::test]
async fn a_host_that_may_only_read_a_folder_has_a_source_and_a_board() {
    let (feeds, dir) = (control_feeds().unwrap(), tempfile::tempdir().unwrap());
    let mut settings = FeedSettings::new("a");
    settings.dir = Some(dir.path().join("feed"));
    let event = event("one");
    let version = feeds.sink("file", &settings).await.unwrap().append(&event).await.unwrap();
    let mark = FleetMark { version, state_digest: "x".into(), snapshot: None };
    feeds.board("file", &settings).await.unwrap().set_mark(&mark).await.unwrap();
    let lock = dir.path().join("feed/LOCK");
    // Nobody can write into that, whatever rights this process has.
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    assert_eq!(feeds.sink("file", &settings).await.unwrap_err().blame(), Blame::Host);
    let source = feeds.source("file", &settings).await.unwrap();
    let polled = source.poll(ControlVersion(0), 10, Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.iter().map(received).collect::<Vec<_>>(), [(version.0, event)]);
    let board = feeds.board("file", &settings).await.unwrap();
    assert_eq!(board.mark().await.unwrap(), Some(mark.clone()));
    assert_eq!(board.reports().await.unwrap(), []);
    assert!(board.set_mark(&mark).await.is_err());
}

#[tokio::test]
async fn a_feed_on_a_server_says_what_is_wrong_with_its_address_and_shows_no_password() {
    let feeds = control_feeds().unwrap();
    let mut settings = FeedSettings::new("a");
    for name in ["nats", "redis"] {
        for url in [None, Some("carrier://u:secret@h:1".to_owned())] {
            settings.url = url;
            let error = feeds.sink(name, &settings).await.unwrap_err();
            assert!(
                matches!(&error, ControlFeedError::Settings { setting, .. } if setting == "control.url"),
                "{error}"
            );
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}

#[tokio::test]
async fn source_sink_and_board_on_a_server_are_one_with_one_connection() {
    let server =
        millrace_tests::redis_server::RedisServer::durable(millrace_tests::redis_server::Engine::Redis);
    let feeds = control_feeds().unwrap();
    let mut settings = FeedSettings::new("a");
    settings.url = Some(server.url());
    settings.prefix = "fleet".into();
    let sink = feeds.sink("redis", &settings).await.unwrap();
    let board = feeds.board("redis", &settings).await.unwrap();
    let source = feeds.source("redis", &settings).await.unwrap();
    let event = event("one");
    let version = sink.append(&event).await.unwrap();
    assert_eq!(board.reports().await.unwrap(), []);
    assert_eq!(server.clients(), 1);
    let polled = source.poll(ControlVersion(0), 10, Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.iter().map(received).collect::<Vec<_>>(), [(version.0, event)]);
    assert_eq!(server.clients(), 2, "polls wait on one of their own");
    // Another fleet's is another one.
    settings.prefix = "other".into();
    let other = feeds.source("redis", &settings).await.unwrap();
    assert!(other.poll(ControlVersion(0), 10, Duration::ZERO).await.unwrap().events.is_empty());
}

/// As an embedder does it: with what is public, and nothing else.
#[tokio::test]
async fn a_backend_from_outside_is_opened_by_its_name_with_the_settings() {
    let mut feeds = control_feeds().unwrap();
    let carrier = MemoryFeed::new();
    let (sink, source) = (carrier.clone(), carrier.clone());
    feeds
        .add_source("pigeons", move |settings| {
            assert_eq!(settings.url.as_deref(), Some("loft:7"));
            let consumer = source.consumer(&settings.host);
            ready(Ok(Arc::new(consumer) as _)).boxed()
        })
        .unwrap();
    feeds.add_sink("pigeons", move |_| ready(Ok(Arc::new(sink.clone()) as _)).boxed()).unwrap();
    let mut settings = FeedSettings::new("host-7");
    settings.url = Some("loft:7".into());
    let event = event("one");
    let version = feeds.sink("pigeons", &settings).await.unwrap().append(&event).await.unwrap();
    let source = feeds.source("pigeons", &settings).await.unwrap();
    source.poll(ControlVersion(0), 1, Duration::ZERO).await.unwrap();
    source.acker().unwrap().acknowledge(event.id(), version).await.unwrap();
    assert_eq!(carrier.consumer("host-7").acknowledged(), [(event.id().clone(), version)]);
    let no_board = feeds.board("pigeons", &settings).await.unwrap_err();
    assert!(matches!(no_board, ControlFeedError::UnknownBackend { .. }), "{no_board}");
    // Another registry is another one.
    assert!(control_feeds().unwrap().source("pigeons", &settings).await.is_err());
}

#[tokio::test]
async fn a_name_is_given_once() {
    let mut feeds = FeedRegistry::new();
    let open = |_| ready(Ok(Arc::new(NopFeed) as _)).boxed();
    feeds.add_source("one", open).unwrap();
    let taken = feeds.add_source("one", |_| ready(Err(ControlFeedError::NoFeed)).boxed()).unwrap_err();
    assert!(matches!(&taken, ControlFeedError::Settings { detail, .. } if detail.contains("one")), "{taken}");
    assert!(feeds.source("one", &FeedSettings::new("a")).await.is_ok(), "the first stays");
}
