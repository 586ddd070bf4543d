//! Events of a group's stream for its scripts and its consumers: from the tail where it has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::manage::Stepped;
use super::{Inner, Result};
use crate::backends::redis::codec::decode_one;
use crate::event::{Event, EventBatch, Position, TenantId};
use crate::limits::{PAGE_BYTES_MAX, REDIS_CONSUMERS_PAGE_MIN};
use crate::streams::groups::{GroupId, page};
use crate::streams::{PageLimit, StreamError, StreamName};

/// Events by their positions: where each lies.
pub(super) type Bodies = BTreeMap<u64, (Arc<EventBatch>, usize)>;

/// What of a stream lies between two positions.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) after: Position,
    pub(super) upto: Position,
    pub(super) events: Bodies,
}

/// What entries are kept in order by.
pub(super) fn key_of(event: &Event<'_>) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update((event.aggregate.len() as u64).to_le_bytes());
    hash.update(event.aggregate);
    hash.update(event.agg_id);
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize()[..16]);
    key
}

/// An event in a batch of its own.
pub(super) fn alone(batch: &EventBatch, index: usize) -> Arc<EventBatch> {
    let bytes = batch.records()[index].span().len();
    let mut one = EventBatch::with_capacity(batch.tenant.clone(), 1, bytes);
    one.push_from(batch, index);
    Arc::new(one)
}

/// Whether an event of `events` is in a stream.
fn belongs(batch: &EventBatch, index: usize, stream: &StreamName, name: &str) -> bool {
    match stream {
        StreamName::Changes(_) => {
            batch.marks().iter().any(|mark| mark.index as usize == index && &*mark.stream == name)
        }
        StreamName::Events | StreamName::Named(_) => true,
    }
}

impl Inner {
    /// What follows a position, as far as this host has it; none when it has nothing more.
    pub(super) async fn stretch(
        &self,
        id: &GroupId,
        stream: &StreamName,
        after: Position,
        events_max: usize,
    ) -> Result<Option<Stretch>> {
        // Looked at first: the tail has everything up to there.
        let newest = self.log.bounds().newest;
        if newest <= after {
            return Ok(None);
        }
        if let Some(found) = self.held_in_tail(id, stream, after, newest, events_max) {
            return Ok(Some(found));
        }
        let mut limit = PageLimit { events: events_max, bytes: PAGE_BYTES_MAX };
        loop {
            match page(&*self.log, &id.tenant, stream, after, limit).await {
                Ok((events, upto)) => {
                    let bodies = events.records().iter().enumerate();
                    let bodies =
                        bodies.map(|(index, record)| (record.position, (Arc::clone(&events), index)));
                    return Ok(Some(Stretch { after, upto, events: bodies.collect() }));
                }
                // Somebody has deleted an event behind what retention removed. What comes before it is taken first.
                Err(StreamError::PositionLost { trimmed, .. })
                    if trimmed > self.log.bounds().trimmed && limit.events > 1 =>
                {
                    limit.events = 1;
                }
                Err(error @ StreamError::PositionLost { trimmed, .. })
                    if trimmed > self.log.bounds().trimmed =>
                {
                    let Stepped { frontier, stopped } = self.step_over(id).await?;
                    // Whoever looked again at once would find the same, and never rest.
                    return if frontier == after && !stopped { Err(error.into()) } else { Ok(None) };
                }
                // Retention has just passed, or the log is another one: the script says what that means to the group.
                Err(StreamError::PositionLost { .. } | StreamError::PositionAhead { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn held_in_tail(
        &self,
        id: &GroupId,
        stream: &StreamName,
        after: Position,
        newest: Position,
        events_max: usize,
    ) -> Option<Stretch> {
        if matches!(stream, StreamName::Named(_)) {
            return None;
        }
        let chunks = self.log.tail().read(&id.tenant, after, events_max)?;
        let mut events = Bodies::new();
        let whole = chunks.iter().map(|chunk| chunk.len()).sum::<usize>() < events_max;
        let mut upto = after;
        for chunk in &chunks {
            for (index, record) in chunk.records().iter().enumerate() {
                if record.position <= after.0 || !belongs(chunk, index, stream, &id.stream) {
                    continue;
                }
                if events.len() == events_max {
                    return Some(Stretch { after, upto, events });
                }
                upto = Position(record.position);
                events.insert(record.position, (Arc::clone(chunk), index));
            }
            upto = chunk.last_position();
        }
        let upto = if whole { upto.max(newest) } else { upto };
        Some(Stretch { after, upto, events })
    }

    /// Adds the events of some positions to those that are at hand. What is gone is left out.
    pub(super) async fn find(
        &self,
        id: &GroupId,
        stream: &StreamName,
        wanted: impl Iterator<Item = u64>,
        found: &mut Bodies,
    ) -> Result<()> {
        let mut missing: BTreeSet<u64> = wanted.filter(|position| !found.contains_key(position)).collect();
        while let Some(position) = missing.pop_first() {
            let before = Position(position - 1);
            let stretch = self.stretch(id, stream, before, REDIS_CONSUMERS_PAGE_MIN).await?;
            let Some(stretch) = stretch else { continue };
            for (at, body) in stretch.events {
                if at == position || missing.remove(&at) {
                    found.insert(at, body);
                }
            }
        }
        Ok(())
    }

    /// An event by the bytes that a dead letter keeps.
    pub(super) fn kept(&self, tenant: &TenantId, position: Position, body: &[u8]) -> Option<Arc<EventBatch>> {
        let event = decode_one(body, position)?;
        let mut batch = EventBatch::with_capacity(tenant.clone(), 1, body.len());
        batch.push_checked(&event);
        Some(self.log.tail().shown(batch))
    }
}
