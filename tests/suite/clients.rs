//! Claims that clients which are not ours check: browsers, packages of others, `curl`, and a judge of WebSockets.

mod conformance;
mod curl;
mod foreign;
mod typescript;

use std::path::PathBuf;

/// The folder of scripts, and of the packages that `cargo xtask test` installs.
fn web() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/web"))
}
