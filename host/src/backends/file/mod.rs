//! What is kept in plain files, for people to read and for any program to put something in.

mod artifacts;
mod client_checkpoints;
mod control;
mod sources;

pub use artifacts::FileArtifactRepository;
pub use client_checkpoints::FileClientCheckpoints;
pub use control::{FileFeed, FileFeedOptions, FileWork};
pub use sources::FileSourceCheckpoints;
