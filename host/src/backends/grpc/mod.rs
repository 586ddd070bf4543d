//! Events and checkpoints of another system over gRPC: the package `memory.v1`.
//!
//! Messages are written by hand, so that no compiler of protocols takes part in a build.

pub mod messages;
