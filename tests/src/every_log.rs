//! A claim that must hold wherever events are kept, on each log of its own: in memory, embedded, on Redis, on Valkey.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::MemoryLog;
use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::limits::{DEDUP_EVENTS_MAX, TAIL_BYTES_MAX};
use millrace::streams::EventLog;
use tempfile::TempDir;

use crate::redis_server::{Engine, Keeps, RedisServer};

pub type Log = Arc<dyn EventLog>;

/// What else than by default a log is bounded to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub tail_bytes_max: usize,
    /// Entries that one change stream keeps, about.
    pub change_stream_events_max: Option<u64>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { tail_bytes_max: TAIL_BYTES_MAX, change_stream_events_max: None }
    }
}

pub async fn memory(bounds: Bounds) -> (Log, ()) {
    let log = MemoryLog::with_options(Arc::new(SystemClock), DEDUP_EVENTS_MAX, bounds.tail_bytes_max);
    (Arc::new(log.with_change_streams_of(bounds.change_stream_events_max)), ())
}

pub async fn sqlite(bounds: Bounds) -> (Log, TempDir) {
    let Bounds { tail_bytes_max, change_stream_events_max } = bounds;
    let dir = tempfile::tempdir().expect("a folder for the store");
    let options = SqliteOptions {
        disk_free_bytes_min: 0,
        tail_bytes_max,
        change_stream_events_max,
        ..SqliteOptions::new(dir.path())
    };
    (Arc::new(SqliteStore::open(options).expect("an empty folder opens")), dir)
}

pub async fn redis(bounds: Bounds) -> (Log, RedisServer) {
    on_server(Engine::Redis, bounds).await
}

pub async fn valkey(bounds: Bounds) -> (Log, RedisServer) {
    on_server(Engine::Valkey, bounds).await
}

/// On a server that keeps nothing: what a crash leaves is asked elsewhere.
async fn on_server(engine: Engine, bounds: Bounds) -> (Log, RedisServer) {
    let Bounds { tail_bytes_max, change_stream_events_max } = bounds;
    let server = RedisServer::start(engine, Keeps::Nothing, &[]);
    let address = server.url().parse().expect("the server has an address");
    let options = RedisOptions {
        ack: RedisAck::Memory,
        tail_bytes_max,
        change_stream_events_max,
        ..RedisOptions::new(address)
    };
    let log = RedisLog::open(options);
    log.ready(Duration::from_secs(20)).await.expect("the log serves");
    (Arc::new(log), server)
}

/// Runs what is given a log on one of them: `on_log!(memory, Bounds::default(); module::case, module::case)`.
#[macro_export]
macro_rules! on_log {
    ($backend:ident, $bounds:expr; $($from:ident::$case:ident),+ $(,)?) => {
        mod $backend {
            $(
                // One thread: what was given its turns has done what it can.
                #[tokio::test]
                async fn $case() {
                    let (log, _keep) = $crate::every_log::$backend($bounds).await;
                    Box::pin(super::$from::$case(log)).await;
                }
            )+
        }
    };
}

/// Runs what is given a log on each of them: `on_every_log!(module::case, module::case)`, or with bounds before that.
#[macro_export]
macro_rules! on_every_log {
    ($($from:ident::$case:ident),+ $(,)?) => {
        $crate::on_every_log!($crate::every_log::Bounds::default(); $($from::$case),+);
    };
    ($bounds:expr; $($from:ident::$case:ident),+ $(,)?) => {
        $crate::on_log!(memory, $bounds; $($from::$case),+);
        $crate::on_log!(sqlite, $bounds; $($from::$case),+);
        $crate::on_log!(redis, $bounds; $($from::$case),+);
        $crate::on_log!(valkey, $bounds; $($from::$case),+);
    };
}
