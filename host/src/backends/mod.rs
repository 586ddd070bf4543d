//! Adapters, one folder a technology. They implement the seams; nobody but `host.rs` and tests names them.

pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;
pub mod sqlite;
