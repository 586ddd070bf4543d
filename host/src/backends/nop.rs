//! The feed of a host that is alone: it carries nothing.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use crate::control::{
    Board, ControlEvent, ControlSink, ControlSource, ControlVersion, FleetMark, Polled, Result,
};

/// A source that has nothing, a sink that takes everything and keeps nothing, and a board that nobody reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct NopFeed;

impl ControlSource for NopFeed {
    fn name(&self) -> &'static str {
        "nop"
    }

    fn poll(&self, _after: ControlVersion, _limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        tokio::time::sleep(wait).map(|()| Ok(Polled::default())).boxed()
    }
}

impl ControlSink for NopFeed {
    fn name(&self) -> &'static str {
        "nop"
    }

    /// 0: it is in no feed.
    fn append<'a>(&'a self, _event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        ready(Ok(ControlVersion(0))).boxed()
    }

    fn repeats_known_for(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn trim(&self, _through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        ready(Ok(0)).boxed()
    }
}

impl Board for NopFeed {
    fn report<'a>(&'a self, _host: &'a str, _report: &'a str) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn forget<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn set_mark<'a>(&'a self, _mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        ready(Ok(None)).boxed()
    }
}
