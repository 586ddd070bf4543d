//! A claim that must hold wherever events are kept, on each log of its own: in memory, embedded, on Redis, on Valkey.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::MemoryLog;
use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::streams::EventLog;
use tempfile::TempDir;

use crate::redis_server::{Engine, Keeps, RedisServer};

pub type Log = Arc<dyn EventLog>;

pub async fn memory() -> (Log, ()) {
    (Arc::new(MemoryLog::new()), ())
}

pub async fn sqlite() -> (Log, TempDir) {
    let dir = tempfile::tempdir().expect("a folder for the store");
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    (Arc::new(SqliteStore::open(options).expect("an empty folder opens")), dir)
}

pub async fn redis() -> (Log, RedisServer) {
    server(Engine::Redis).await
}

pub async fn valkey() -> (Log, RedisServer) {
    server(Engine::Valkey).await
}

async fn server(engine: Engine) -> (Log, RedisServer) {
    let server = RedisServer::start(engine, Keeps::Nothing, &[]);
    (Arc::new(on_server(&server, |_| {}).await), server)
}

/// A log that serves, on a server that keeps nothing: what a crash leaves is asked elsewhere.
pub async fn on_server(server: &RedisServer, change: impl FnOnce(&mut RedisOptions)) -> RedisLog {
    let address = server.url().parse().expect("the server has an address");
    let mut options = RedisOptions { ack: RedisAck::Memory, ..RedisOptions::new(address) };
    change(&mut options);
    let log = RedisLog::open(options);
    log.ready(Duration::from_secs(20)).await.expect("the log serves");
    log
}

/// Runs what is given a log on one of them: `on_log!(memory; module::case, module::case)`.
#[macro_export]
macro_rules! on_log {
    ($backend:ident; $($from:ident::$case:ident),+ $(,)?) => {
        mod $backend {
            $(
                // One thread: what was given its turns has done what it can.
                #[tokio::test]
                async fn $case() {
                    let (log, _keep) = $crate::every_log::$backend().await;
                    super::$from::$case(log).await;
                }
            )+
        }
    };
}

/// Runs what is given a log on each of them: `on_every_log!(module::case, module::case)`.
#[macro_export]
macro_rules! on_every_log {
    ($($from:ident::$case:ident),+ $(,)?) => {
        $crate::on_log!(memory; $($from::$case),+);
        $crate::on_log!(sqlite; $($from::$case),+);
        $crate::on_log!(redis; $($from::$case),+);
        $crate::on_log!(valkey; $($from::$case),+);
    };
}
