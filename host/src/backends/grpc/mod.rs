//! Events and checkpoints of another system over gRPC: the package `memory.v1`.
//!
//! Promises: messages are read and written byte for byte as they are; whoever calls is told whether trying again helps;
//! a quiet connection is asked whether it lives; a credential that is in a file is read again when the file changes.
//! Messages are written by hand, so that no compiler of protocols takes part in a build.

mod client;
mod identity;
mod options;
mod status;

pub use crate::memory_v1 as messages;
pub use client::MemoryClient;
pub use identity::Credential;
pub use options::{GrpcOptions, InvalidGrpc};
