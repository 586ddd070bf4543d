//! The control feeds that come with the host, by name.

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::ready;

use super::file::{FileFeed, FileFeedOptions};
use super::nop::NopFeed;
use super::sqlite::{SqliteFeed, SqliteFeedOptions};
use crate::control::{FeedRegistry, FeedSettings, Result};
use crate::error::BackendError;

/// `file`, `nop` and `sqlite`. Whoever puts a host together may add others.
pub fn control_feeds() -> Result<FeedRegistry> {
    let mut feeds = FeedRegistry::new();
    feeds.add_source("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    feeds.add_sink("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    feeds.add_board("nop", |_| ready(Ok(Arc::new(NopFeed) as _)).boxed())?;
    feeds.add_source("file", |settings| {
        let open = |dir: &Path| FileFeed::open_source(FileFeedOptions::new(dir));
        opened("file", settings, open).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    let file = |dir: &Path| FileFeed::open(FileFeedOptions::new(dir));
    feeds.add_sink("file", move |settings| {
        opened("file", settings, file).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
    })?;
    feeds.add_board("file", move |settings| {
        opened("file", settings, file).map(|feed| Ok(Arc::new(feed?) as _)).boxed()
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
    Ok(feeds)
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
