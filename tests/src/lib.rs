//! What the tests share: conformance suites over the seams, stand-ins, and helpers.

pub mod bench;
pub mod channel_socket;
pub mod chaos;
pub mod conformance;
pub mod control;
pub mod control_events;
pub mod cuts;
pub mod cutter;
pub mod dump;
pub mod embedded;
pub mod entries;
pub mod every_log;
pub mod failover;
pub mod faulty;
pub mod flights;
pub mod folds;
pub mod gated_channels;
pub mod guests;
pub mod handwritten;
pub mod host;
pub mod impostor;
pub mod kit;
pub mod meddler;
pub mod model;
pub mod native;
pub mod nats_server;
pub mod peer;
pub mod ports;
pub mod powercut;
pub mod race;
pub mod redis_server;
pub mod scene;
pub mod scripted;
pub mod shared_log;
pub mod shelf;
pub mod signals;
pub mod sleeper;
pub mod swaps;
pub mod viewer;
pub mod walk;

use std::time::{Duration, Instant};

/// Waits for a condition; fails with its name after a minute, so that a hang says what it waits for.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited a minute: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A binary of this workspace that the test run has built, by name.
pub fn workspace_binary(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let dir = test.ancestors().nth(2).expect("tests run from target/<profile>/deps");
    let binary = dir.join(name);
    assert!(binary.exists(), "{} is missing: `cargo xtask test` builds it", binary.display());
    binary
}
