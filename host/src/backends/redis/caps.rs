//! Change streams that keep so many entries each. Those that this host has appended to are compared with that soon after,
//! and not in the append itself: what it takes from groups of consumers is looked at first.

use metrics::counter;
use redis::Value;

use super::faults::remote;
use super::groups::{Bounds, tell_losses};
use super::reads::answer;
use super::scripts::{CAP, number};
use super::shared::Shared;
use crate::error::RemoteFault;
use crate::limits::{REDIS_CAP_STREAMS_MAX, REDIS_TRIM_ENTRIES_MAX};
use crate::streams::StreamError;
use crate::streams::groups::GroupLimits;
use crate::telemetry::metrics::CHANGE_ENTRIES_TRIMMED;

/// Drops what is too much of the streams that have grown.
pub(super) async fn keep(shared: &Shared) -> Result<(), StreamError> {
    let Some(max) = shared.change_stream_events_max() else { return Ok(()) };
    let grown: Vec<String> = shared.take_grown().into_iter().collect();
    for (turn, streams) in grown.chunks(REDIS_CAP_STREAMS_MAX).enumerate() {
        if let Err(error) = cap(shared, max, streams).await {
            shared.grown(grown[turn * REDIS_CAP_STREAMS_MAX..].iter().cloned());
            return Err(error);
        }
    }
    Ok(())
}

async fn cap(shared: &Shared, max: u64, streams: &[String]) -> Result<(), StreamError> {
    let mut session = shared.serving()?;
    let epoch = session.epoch.clone();
    let names = shared.keys.of_groups();
    let bounds = Bounds::of(&GroupLimits::default());
    let shape = || remote(RemoteFault::Unsupported, "capping change streams: the answer has another shape");
    loop {
        let call = CAP.run(&mut session.reads, &names, |command| {
            command.arg(&*epoch.0).arg("").arg(bounds.as_str());
            command.arg(max).arg(REDIS_TRIM_ENTRIES_MAX).arg(streams);
        });
        let asked = call.await;
        let parts = answer(shared, &session, "capping change streams", asked)?;
        let [_, entries, more, losses] = &parts[..] else { return Err(shape().into()) };
        tell_losses(losses);
        // At once: the next call may fail.
        let gone = number::<u64>(entries).ok_or_else(shape)?;
        counter!(CHANGE_ENTRIES_TRIMMED, "cause" => "cap").increment(gone);
        if *more == Value::Int(0) {
            return Ok(());
        }
    }
}
