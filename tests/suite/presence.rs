//! Claims about rooms.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod every_server;
mod redis;

use std::sync::Arc;

use millrace::backends::memory::MemoryPresence;
use millrace::clock::SystemClock;
use millrace_tests::conformance::presence::{Stage, small_limits};
use millrace_tests::redis_server::{Engine, RedisServer};

async fn memory() -> (Stage, ()) {
    let presence = Arc::new(MemoryPresence::open(small_limits(), Arc::new(SystemClock)));
    (Stage { one: presence.clone(), other: presence }, ())
}

async fn on(engine: Engine) -> (Stage, RedisServer) {
    let server = RedisServer::durable(engine);
    let host = || Arc::new(redis::open(&server, small_limits()));
    (Stage { one: host(), other: host() }, server)
}

async fn on_redis() -> (Stage, RedisServer) {
    on(Engine::Redis).await
}

async fn on_valkey() -> (Stage, RedisServer) {
    on(Engine::Valkey).await
}

millrace_tests::presence_conformance!(memory_rooms, memory);
millrace_tests::presence_conformance!(redis_rooms, on_redis);
millrace_tests::presence_conformance!(valkey_rooms, on_valkey);
