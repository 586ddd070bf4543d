//! Feeds by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{Board, ControlFeedError, ControlSink, ControlSource, Result};

/// What a backend is opened with. Each takes what it needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedSettings {
    /// The folder of a feed in files.
    pub dir: Option<PathBuf>,
    /// The server of a feed across the network.
    pub url: Option<String>,
    /// What names on a server begin with, so that several fleets can share it.
    pub prefix: String,
    /// This host, for backends that remember how far each host has read.
    pub host: String,
}

/// Opens one part of a feed.
type Open<T> = Arc<dyn Fn(FeedSettings) -> BoxFuture<'static, Result<Arc<T>>> + Send + Sync>;

/// Sources, sinks and boards that can be opened by name. It begins empty; whoever puts a host together fills it, and adds
/// what lies outside of this crate.
#[derive(Clone, Debug, Default)]
pub struct FeedRegistry {
    sources: Named<dyn ControlSource>,
    sinks: Named<dyn ControlSink>,
    boards: Named<dyn Board>,
}

struct Named<T: ?Sized>(BTreeMap<String, Open<T>>);

impl FeedSettings {
    pub fn new(host: impl Into<String>) -> Self {
        Self { dir: None, url: None, prefix: "millrace".into(), host: host.into() }
    }

    /// The folder, for a backend that cannot do without.
    pub fn needed_dir(&self, backend: &str) -> Result<&Path> {
        self.dir.as_deref().ok_or_else(|| ControlFeedError::Settings {
            setting: "control.dir".into(),
            detail: format!("the feed `{backend}` needs a folder"),
        })
    }

    /// The address, for a backend that cannot do without.
    pub fn needed_url(&self, backend: &str) -> Result<&str> {
        self.url.as_deref().ok_or_else(|| ControlFeedError::Settings {
            setting: "control.url".into(),
            detail: format!("the feed `{backend}` needs the address of its server"),
        })
    }
}

impl FeedRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source. A name that is taken is an error: nothing replaces a backend silently.
    pub fn add_source<F>(&mut self, name: &str, open: F) -> Result<()>
    where
        F: Fn(FeedSettings) -> BoxFuture<'static, Result<Arc<dyn ControlSource>>> + Send + Sync + 'static,
    {
        self.sources.add("control.source", name, Arc::new(open))
    }

    /// Adds a sink, as [`FeedRegistry::add_source`] does.
    pub fn add_sink<F>(&mut self, name: &str, open: F) -> Result<()>
    where
        F: Fn(FeedSettings) -> BoxFuture<'static, Result<Arc<dyn ControlSink>>> + Send + Sync + 'static,
    {
        self.sinks.add("control.sink", name, Arc::new(open))
    }

    /// Adds a board, as [`FeedRegistry::add_source`] does.
    pub fn add_board<F>(&mut self, name: &str, open: F) -> Result<()>
    where
        F: Fn(FeedSettings) -> BoxFuture<'static, Result<Arc<dyn Board>>> + Send + Sync + 'static,
    {
        self.boards.add("the board of a feed", name, Arc::new(open))
    }

    /// `UnknownBackend` with all names that there are, when there is none of this one.
    pub async fn source(&self, name: &str, settings: &FeedSettings) -> Result<Arc<dyn ControlSource>> {
        self.sources.open("control source", name, settings).await
    }

    pub async fn sink(&self, name: &str, settings: &FeedSettings) -> Result<Arc<dyn ControlSink>> {
        self.sinks.open("control sink", name, settings).await
    }

    /// The board lies where the feed does: it is opened by the name of the source.
    pub async fn board(&self, name: &str, settings: &FeedSettings) -> Result<Arc<dyn Board>> {
        self.boards.open("control board", name, settings).await
    }
}

impl<T: ?Sized + Send + Sync + 'static> Named<T> {
    fn add(&mut self, setting: &str, name: &str, open: Open<T>) -> Result<()> {
        if self.0.contains_key(name) {
            return Err(ControlFeedError::Settings {
                setting: setting.into(),
                detail: format!("there is a backend `{name}` already"),
            });
        }
        self.0.insert(name.to_owned(), open);
        Ok(())
    }

    fn open(
        &self,
        what: &'static str,
        name: &str,
        settings: &FeedSettings,
    ) -> BoxFuture<'static, Result<Arc<T>>> {
        match self.0.get(name) {
            Some(open) => open(settings.clone()),
            None => {
                let known = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let name = name.chars().take(80).collect();
                std::future::ready(Err(ControlFeedError::UnknownBackend { what, name, known })).boxed()
            }
        }
    }
}

impl<T: ?Sized> Default for Named<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: ?Sized> Clone for Named<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> fmt::Debug for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
