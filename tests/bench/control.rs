//! The control feed: how soon a burst of changes is at the hosts of a fleet, how soon a deploy has handled an event,
//! and how soon all hosts run it.

mod artifacts;
mod burst;
mod deploy;
mod fleet;
mod places;

use anyhow::Result;
use millrace_tests::bench::Suite;

/// Reaching it is a failure.
const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(120);

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    burst::run(suite)?;
    deploy::run(suite)?;
    fleet::run(suite)?;
    artifacts::run(suite)
}
