//! Adapters, one folder a technology. They implement the seams; nobody but `host.rs` and tests names them.

pub mod memory;
pub mod sqlite;
