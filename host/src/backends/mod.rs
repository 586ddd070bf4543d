//! Adapters, one folder a technology. They implement the seams; nobody but `host.rs` and tests names them.

mod feeds;
pub mod file;
mod group_append;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
pub mod nop;
#[cfg(feature = "redis")]
pub mod redis;
pub mod sqlite;

pub use feeds::control_feeds;
