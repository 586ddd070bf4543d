//! The control feeds that come with the host, by name.

use std::path::Path;
use std::sync::Arc;
#[cfg(any(feature = "nats", feature = "redis"))]
use std::sync::{Mutex, PoisonError, Weak};

use futures_util::FutureExt as _;
use futures_util::future::ready;

use super::file::{FileFeed, FileFeedOptions};
use super::nop::NopFeed;
use super::sqlite::{SqliteFeed, SqliteFeedOptions};
#[cfg(any(feature = "nats", feature = "redis"))]
use crate::control::{Board, ControlFeedError, ControlSink, ControlSource};
use crate::control::{FeedRegistry, FeedSettings, Result};
use crate::error::BackendError;

/// `file`, `nop` and `sqlite`, and across the network `nats` and `redis`. Whoever puts a host together may add others.
pub fn control_feeds() -> Result<FeedRegistry> {
    let mut feeds = FeedRegistry::new();
    feeds.add_source("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    feeds.add_sink("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    feeds.add_board("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    let source = |dir: &Path| FileFeed::open_source(FileFeedOptions::new(dir));
    feeds.add_source("file", move |settings| {
        opened("file", settings, source).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    let file = |dir: &Path| FileFeed::open(FileFeedOptions::new(dir));
    feeds.add_sink("file", move |settings| {
        opened("file", settings, file).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    // Every host looks at the board, also one that may only read: then it reports nothing.
    feeds.add_board("file", move |settings| {
        opened("file", settings, source).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    let sqlite = |dir: &Path| SqliteFeed::open(SqliteFeedOptions::new(dir));
    feeds.add_source("sqlite", move |settings| {
        opened("sqlite", settings, sqlite).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    feeds.add_sink("sqlite", move |settings| {
        opened("sqlite", settings, sqlite).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    feeds.add_board("sqlite", move |settings| {
        opened("sqlite", settings, sqlite).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    #[cfg(feature = "nats")]
    add_shared(&mut feeds, "nats", nats)?;
    #[cfg(feature = "redis")]
    add_shared(&mut feeds, "redis", redis)?;
    Ok(feeds)
}

/// Adds a feed whose source, sink and board are one, with one connection for all that this host opens of it.
#[cfg(any(feature = "nats", feature = "redis"))]
fn add_shared<T: ControlSource + ControlSink + Board + 'static>(
    feeds: &mut FeedRegistry,
    name: &str,
    open: fn(&FeedSettings) -> Result<T>,
) -> Result<()> {
    let known = Arc::new(Mutex::new(None::<(FeedSettings, Weak<T>)>));
    let shared = move |settings: FeedSettings| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.as_ref().filter(|(with, _)| *with == settings);
        if let Some(feed) = same.and_then(|(_, feed)| feed.upgrade()) {
            return Ok(feed);
        }
        let feed = Arc::new(open(&settings)?);
        *known = Some((settings, Arc::downgrade(&feed)));
        Ok(feed)
    };
    let (source, sink, board) = (shared.clone(), shared.clone(), shared);
    feeds.add_source(name, move |settings| ready(source(settings).map(|feed| feed as _)).boxed())?;
    feeds.add_sink(name, move |settings| ready(sink(settings).map(|feed| feed as _)).boxed())?;
    feeds.add_board(name, move |settings| ready(board(settings).map(|feed| feed as _)).boxed())
}

/// An address that is none. What it says holds no password.
#[cfg(any(feature = "nats", feature = "redis"))]
fn invalid_url(error: impl std::fmt::Display) -> ControlFeedError {
    ControlFeedError::Settings { setting: "control.url".into(), detail: error.to_string() }
}

#[cfg(feature = "nats")]
fn nats(settings: &FeedSettings) -> Result<super::nats::NatsControl> {
    use super::nats::{NatsControl, NatsOptions};
    let address = settings.needed_url("nats")?.parse().map_err(invalid_url)?;
    let mut options = NatsOptions::new(address, &settings.prefix, &settings.host);
    options.ca_file.clone_from(&settings.ca_file);
    options.credentials.clone_from(&settings.credentials);
    options.replicas = settings.replicas.unwrap_or(options.replicas);
    options.events_age_max = settings.events_age_max.unwrap_or(options.events_age_max);
    options.duplicates_window = settings.duplicates_window.unwrap_or(options.duplicates_window);
    Ok(NatsControl::new(options))
}

#[cfg(feature = "redis")]
fn redis(settings: &FeedSettings) -> Result<super::redis::RedisControl> {
    use super::redis::{RedisAck, RedisControl, RedisLink};
    let address = settings.needed_url("redis")?.parse().map_err(invalid_url)?;
    let link = RedisLink::new(address, settings.ca_file.clone(), settings.prefix.clone());
    Ok(RedisControl::new(link, RedisAck::Auto))
}

/// Opens what lies in a folder, off the async threads.
async fn opened<T: Send + 'static>(
    name: &'static str,
    settings: FeedSettings,
    open: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let opened = tokio::task::spawn_blocking(move || open(settings.needed_dir(name)?)).await;
    opened.unwrap_or_else(|_| Err(BackendError::Closed.into()))
}
