//! Events on their way into the feed: claims and what became of them.

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::OptionalExtension as _;
use tracing::error;

use super::rows::{event_id, stored};
use super::{Done, Work};
use crate::backends::sqlite::database::{signed, unsigned};
use crate::control::rules::{Turns, Waiting, micros};
use crate::control::{Claimed, EventId, OutboxLetter, OutboxStatus, PublishOutcome, Settlement, cut};
use crate::limits::{CONTROL_PUBLISH_LEASE_MAX, CONTROL_PUBLISH_WAIT_MAX};

impl Work<'_> {
    /// Goes through the outbox until `limit` rows may be claimed, and answers those.
    fn due(&self, turns: &mut Turns, limit: usize) -> Done<Vec<i64>> {
        let mut statement = self
            .db
            .prepare_cached("SELECT seq, entity, due_at, claimed_until, dead FROM outbox ORDER BY seq")?;
        let mut rows = statement.query([])?;
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(row) = rows.next()?
        {
            let waiting = Waiting {
                entity: row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?,
                due_at: row.get(2)?,
                claimed_until: row.get(3)?,
                dead: row.get(4)?,
            };
            if turns.may_claim(waiting) {
                due.push(row.get(0)?);
            }
        }
        Ok(due)
    }

    pub(super) fn claim(&self, limit: usize, lease: Duration) -> Done<Vec<Claimed>> {
        let due = self.due(&mut Turns::new(self.now), limit)?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let claim: i64 = self
            .db
            .prepare_cached("UPDATE meta SET value = value + 1 WHERE name = 'claims' RETURNING value")?
            .query_row([], |row| row.get(0))?;
        let until = self.now.saturating_add(micros(lease.min(CONTROL_PUBLISH_LEASE_MAX)));
        let mut statement = self.db.prepare_cached(
            "UPDATE outbox SET claim = ?2, claimed_until = ?3 WHERE seq = ?1 RETURNING event, attempts, entity",
        )?;
        let (mut claimed, mut dead) = (Vec::new(), BTreeSet::new());
        for seq in due {
            let (stored, attempts, entity): (_, u32, String) = statement
                .query_row((seq, claim, until), |row| {
                    Ok((stored(row.get_ref(0)?), row.get(1)?, row.get(2)?))
                })?;
            match stored {
                // It is behind one that waits for somebody.
                _ if dead.contains(&entity) => self.give_back(seq)?,
                Ok(event) => claimed.push(Claimed { event, attempts, claim: unsigned(claim) }),
                Err(reason) => {
                    error!(
                        error.kind = "control_event_unreadable",
                        error.blame = "host",
                        entity,
                        reason,
                        "a control event that waits for the feed cannot be read by this version; its entity waits"
                    );
                    self.give_back(seq)?;
                    self.refused((seq, entity.clone()), claim, &reason, None)?;
                    dead.insert(entity);
                }
            }
        }
        Ok(claimed)
    }

    fn give_back(&self, seq: i64) -> Done<()> {
        self.db
            .prepare_cached("UPDATE outbox SET claim = 0, claimed_until = 0 WHERE seq = ?1")?
            .execute([seq])?;
        Ok(())
    }

    pub(super) fn settle(&self, settlement: &Settlement) -> Done<()> {
        let Settlement { event, claim, outcome } = settlement;
        let claimed = |again: Option<(&str, Option<Duration>)>| -> Done<()> {
            let given_back = self
                .db
                .prepare_cached(
                    "UPDATE outbox SET claim = 0, claimed_until = 0
                     WHERE event_id = ?1 AND claim = ?2 AND claim <> 0 RETURNING seq, entity",
                )?
                .query_row((event.as_str(), signed(*claim)), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if let (Some(row), Some((error, again))) = (given_back, again) {
                self.refused(row, signed(*claim), error, again)?;
            }
            Ok(())
        };
        match outcome {
            PublishOutcome::Published(version) => self.published(event, *version),
            PublishOutcome::GivenBack => claimed(None),
            PublishOutcome::Refused { error, again } => claimed(Some((error, *again))),
        }
    }

    fn refused(
        &self,
        (seq, entity): (i64, String),
        claim: i64,
        error: &str,
        again: Option<Duration>,
    ) -> Done<()> {
        let due_at = self.now.saturating_add(micros(again.unwrap_or_default().min(CONTROL_PUBLISH_WAIT_MAX)));
        self.db
            .prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, error = ?2, tried_at = ?3, due_at = ?4, dead = ?5
                 WHERE seq = ?1",
            )?
            .execute((seq, cut(error), self.now, due_at, again.is_none()))?;
        self.db
            .prepare_cached(
                "UPDATE outbox SET claim = 0, claimed_until = 0 WHERE seq > ?1 AND entity = ?2 AND claim = ?3",
            )?
            .execute((seq, entity, claim))?;
        Ok(())
    }

    pub(super) fn next_due(&self) -> Done<Option<Duration>> {
        let mut turns = Turns::new(self.now);
        // One that may be claimed is due now: nobody need look further.
        self.due(&mut turns, 1)?;
        Ok(turns.next_due())
    }

    pub(super) fn outbox(&self) -> Done<OutboxStatus> {
        let mut statement =
            self.db.prepare_cached("SELECT count(*), coalesce(sum(dead), 0), min(at) FROM outbox")?;
        Ok(statement.query_row([], |row| {
            let (waiting, dead) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
            Ok(OutboxStatus { waiting, dead, oldest_at: row.get(2)? })
        })?)
    }

    pub(super) fn letters(&self, limit: usize) -> Done<Vec<OutboxLetter>> {
        let mut statement = self.db.prepare_cached(
            "SELECT event_id, entity, revision, attempts, error, tried_at FROM outbox WHERE dead ORDER BY seq LIMIT ?1",
        )?;
        let mut rows = statement.query([signed(limit as u64)])?;
        let mut letters = Vec::new();
        while let Some(row) = rows.next()? {
            letters.push(OutboxLetter {
                event: event_id(row.get(0)?)?,
                entity: row.get(1)?,
                revision: unsigned(row.get(2)?),
                attempts: row.get(3)?,
                error: row.get(4)?,
                at: row.get(5)?,
            });
        }
        Ok(letters)
    }

    pub(super) fn retry_letter(&self, event: &EventId) -> Done<bool> {
        let letters = self
            .db
            .prepare_cached("UPDATE outbox SET dead = 0, due_at = ?2 WHERE event_id = ?1 AND dead")?
            .execute((event.as_str(), self.now))?;
        Ok(letters > 0)
    }

    pub(super) fn discard_letter(&self, event: &EventId) -> Done<bool> {
        let entity: Option<String> = self
            .db
            .prepare_cached("DELETE FROM outbox WHERE event_id = ?1 AND dead RETURNING entity")?
            .query_row([event.as_str()], |row| row.get(0))
            .optional()?;
        match entity {
            Some(entity) => self.take_back(event, &entity).map(|()| true),
            None => Ok(false),
        }
    }
}
