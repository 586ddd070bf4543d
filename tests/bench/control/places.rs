//! Where a feed lies while it is measured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures_util::FutureExt as _;
use futures_util::future::ready;
use millrace::backends::control_feeds;
use millrace::backends::memory::MemoryFeed;
use millrace::control::{FeedRegistry, FeedSettings};
use millrace_tests::nats_server::NatsServer;
use millrace_tests::redis_server::{Engine, RedisServer};

/// A kind of feed by its name, with the server that it needs. The server ends with it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: &'static str,
    server: Server,
}

#[derive(Debug)]
enum Server {
    None,
    Redis(RedisServer),
    Nats(NatsServer),
}

impl Place {
    pub(super) fn open(name: &'static str) -> Self {
        let server = match name {
            "redis" => Server::Redis(RedisServer::durable(Engine::Redis)),
            "nats" => Server::Nats(NatsServer::start()),
            _ => Server::None,
        };
        Self { name, server }
    }

    pub(super) fn url(&self) -> Option<String> {
        match &self.server {
            Server::None => None,
            Server::Redis(server) => Some(server.url()),
            Server::Nats(server) => Some(server.url()),
        }
    }

    /// The feeds of the host, and one in memory for all that these open.
    pub(super) fn feeds(&self) -> Result<FeedRegistry> {
        let mut feeds = control_feeds()?;
        let memory = MemoryFeed::new();
        let source = memory.clone();
        feeds.add_source("memory", move |_| ready(Ok(Arc::new(source.clone()) as _)).boxed())?;
        feeds.add_sink("memory", move |_| ready(Ok(Arc::new(memory.clone()) as _)).boxed())?;
        Ok(feeds)
    }

    /// What a host opens its fleet's feed with.
    pub(super) fn settings(&self, fleet: &str, host: &str, dir: &Path) -> FeedSettings {
        let mut settings = FeedSettings::new(host);
        settings.dir = Some(dir.join("feed"));
        settings.url = self.url();
        fleet.clone_into(&mut settings.prefix);
        settings
    }
}

/// The name of a fleet that was not there before, on whichever server.
pub(super) fn new_fleet() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("fleet-{}", LAST.fetch_add(1, Ordering::Relaxed))
}
