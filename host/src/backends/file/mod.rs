//! What is kept in plain files, for people to read and for any program to put something in.

mod artifacts;
mod control;
mod sources;

pub use artifacts::FileArtifactRepository;
pub use control::{FileFeed, FileFeedOptions, FileWork};
pub use sources::FileSourceCheckpoints;
