//! What every backend of groups refuses before it looks at a group, and what it counts.

use super::error::GroupError;
use super::options::{millis, within};
use super::state::Tally;
use super::status::{GroupRead, Result, Settle};
use crate::limits::{
    GROUP_DELAY_MAX, GROUP_LEASE_CEILING, GROUP_LEASE_FLOOR, GROUP_READ_BYTES_MAX, GROUP_READ_EVENTS_MAX,
    GROUP_READ_WAIT_MAX, GROUP_RECEIPTS_MAX,
};
use crate::telemetry::metrics as names;

/// Refuses one group more: on a stream that has so many and may have so many, and of a tenant.
pub(crate) fn check_groups(on_stream: (u64, u64), of_tenant: (u64, u64)) -> Result<()> {
    for (limit, where_from, (groups, max)) in
        [("groups_max", "on this stream", on_stream), ("tenant_groups_max", "of this tenant", of_tenant)]
    {
        if groups >= max {
            let what = format!("with one more, the number of groups {where_from}");
            return Err(GroupError::Limit { limit, what, asked: groups + 1, max });
        }
    }
    Ok(())
}

/// Refuses a read that asks for too much, or for nothing.
pub(crate) fn check_read(read: &GroupRead) -> Result<()> {
    let limit = |limit, what: &str, asked: usize, max: usize| {
        if (1..=max).contains(&asked) {
            return Ok(());
        }
        Err(GroupError::Limit { limit, what: what.to_owned(), asked: asked as u64, max: max as u64 })
    };
    limit("group_read_events_max", "the number of entries, from 1,", read.events, GROUP_READ_EVENTS_MAX)?;
    limit("group_read_bytes_max", "the number of bytes, from 1,", read.bytes, GROUP_READ_BYTES_MAX)?;
    within("wait_ms", millis(read.wait), 0, millis(GROUP_READ_WAIT_MAX))
}

/// Refuses settlements that are too many, or that name times which are not possible.
pub(crate) fn check_settles(said: &[Settle]) -> Result<()> {
    let (asked, max) = (said.len() as u64, GROUP_RECEIPTS_MAX as u64);
    if asked > max {
        let what = "the number of receipts".to_owned();
        return Err(GroupError::Limit { limit: "group_receipts_max", what, asked, max });
    }
    for one in said {
        match one {
            Settle::Nack { delay_ms: Some(delay), .. } => {
                within("delay_ms", *delay, 0, millis(GROUP_DELAY_MAX))?;
            }
            Settle::Renew { lease_ms: Some(lease), .. } => {
                within("lease_ms", *lease, millis(GROUP_LEASE_FLOOR), millis(GROUP_LEASE_CEILING))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What happened goes to the metrics.
pub(crate) fn count(tally: Tally) {
    for (name, count) in [
        (names::GROUP_DELIVERIES, tally.deliveries),
        (names::GROUP_REDELIVERIES, tally.redeliveries),
        (names::GROUP_ACKS, tally.acks),
        (names::GROUP_NACKS, tally.nacks),
        (names::GROUP_LEASES_EXPIRED, tally.expired),
        (names::GROUP_DEAD_LETTERS, tally.dead),
        (names::GROUP_RECEIPTS_REFUSED, tally.refused),
        (names::GROUP_CONSUMERS_REAPED, tally.reaped),
    ] {
        if count > 0 {
            metrics::counter!(name).increment(count);
        }
    }
}
