//! Claims about the log on Redis and Valkey: real servers of each test's own.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod answers;
mod carried;
mod changes;
mod channels;
mod chaos;
mod entry_events;
mod every_server;
mod faults;
mod fleet;
mod followers;
mod gone;
mod group_reads;
mod groups;
mod log;
mod names;
mod tails;

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::redis::{RedisLog, RedisOptions};
use millrace::streams::EventLog;
use millrace_tests::redis_server::{Engine, RedisServer};

/// Long enough for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);

fn options(server: &RedisServer) -> RedisOptions {
    RedisOptions::new(server.url().parse().expect("the server has an address"))
}

/// A log that serves.
async fn open(options: RedisOptions) -> RedisLog {
    let log = RedisLog::open(options);
    log.ready(SOON).await.expect("the log serves");
    log
}

fn as_seam(log: &RedisLog) -> Arc<dyn EventLog> {
    Arc::new(log.clone())
}

/// For the suite of the seam: a log on a server of its own.
async fn fresh(engine: Engine) -> (Arc<dyn EventLog>, RedisServer) {
    let server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    (Arc::new(log), server)
}

async fn on_redis() -> (Arc<dyn EventLog>, RedisServer) {
    fresh(Engine::Redis).await
}

async fn on_valkey() -> (Arc<dyn EventLog>, RedisServer) {
    fresh(Engine::Valkey).await
}

millrace_tests::event_log_conformance!(redis, on_redis);
millrace_tests::event_log_conformance!(valkey, on_valkey);
millrace_tests::change_streams_conformance!(redis_changes, on_redis);
millrace_tests::change_streams_conformance!(valkey_changes, on_valkey);
