//! Claims about channels.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod commands;
mod limiter;
mod list;
mod model;

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::ready;
use millrace::backends::memory::MemoryChannels;
use millrace::channels::{ChannelLimits, ChannelStore};
use millrace::clock::SystemClock;
use millrace_tests::conformance::channels::Stage;

/// Whatever the place: nothing of it outlives its store.
async fn memory() -> (Stage, ()) {
    let open = |_place: u64, limits: ChannelLimits| {
        let store: Arc<dyn ChannelStore> = Arc::new(MemoryChannels::new(limits, Arc::new(SystemClock)));
        ready(store).boxed()
    };
    (Stage::new(false, open), ())
}

// One line for each store.
millrace_tests::channels_conformance!(memory_channels, memory);
