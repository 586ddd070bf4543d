//! Claims about channels.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod bounds;
mod commands;
mod kills;
mod limiter;
mod list;
mod many;
mod model;
mod rights;
mod settling;

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::ready;
use millrace::backends::memory::MemoryChannels;
use millrace::backends::redis::{RedisChannels, RedisOptions};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::channels::{ChannelLimits, ChannelStore};
use millrace::clock::SystemClock;
use millrace_tests::conformance::channels::Stage;
use millrace_tests::redis_server::{Engine, RedisServer};

/// Whatever the place: nothing of it outlives its store.
async fn memory() -> (Stage, ()) {
    let open = |_place: u64, limits: ChannelLimits| {
        let store: Arc<dyn ChannelStore> = Arc::new(MemoryChannels::new(limits, Arc::new(SystemClock)));
        ready(store).boxed()
    };
    (Stage::new(false, open), ())
}

/// Places are folders.
async fn sqlite() -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let open = move |place: u64, channels: ChannelLimits| {
        let options = SqliteOptions { channels, ..SqliteOptions::new(root.join(place.to_string())) };
        async move {
            let opened = tokio::task::spawn_blocking(move || SqliteStore::open(options)).await.unwrap();
            Arc::new(opened.unwrap()) as Arc<dyn ChannelStore>
        }
        .boxed()
    };
    (Stage::new(true, open), dir)
}

/// Places are names of logs on one server.
async fn on(engine: Engine) -> (Stage, RedisServer) {
    let server = RedisServer::durable(engine);
    let url = server.url();
    let open = move |place: u64, limits: ChannelLimits| {
        let options =
            RedisOptions { name: format!("place-{place}"), ..RedisOptions::new(url.parse().unwrap()) };
        let store: Arc<dyn ChannelStore> =
            Arc::new(RedisChannels::open(&options, limits, Arc::new(SystemClock)));
        ready(store).boxed()
    };
    (Stage::new(true, open), server)
}

async fn on_redis() -> (Stage, RedisServer) {
    on(Engine::Redis).await
}

async fn on_valkey() -> (Stage, RedisServer) {
    on(Engine::Valkey).await
}

// One line for each store.
millrace_tests::channels_conformance!(memory_channels, memory);
millrace_tests::channels_conformance!(sqlite_channels, sqlite);
millrace_tests::channels_conformance!(redis_channels, on_redis);
millrace_tests::channels_conformance!(valkey_channels, on_valkey);
