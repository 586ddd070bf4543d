//! Millrace: durable event streams and sandboxed WebAssembly processors in one binary.

pub mod backends;
pub mod cache;
pub mod channels;
pub mod checkpoints;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod control;
pub mod error;
pub mod event;
pub mod gateway;
pub mod host;
pub mod limits;
pub mod live;
#[cfg(feature = "grpc")]
pub mod memory_v1;
pub mod plugins;
pub mod presence;
pub mod processors;
pub mod seed_map;
pub mod streams;
pub mod tables;
pub mod tasks;
pub mod telemetry;
