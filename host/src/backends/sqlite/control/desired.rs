//! What is desired here, what was set aside, and what was made of it.

use std::collections::BTreeSet;

use rusqlite::OptionalExtension as _;
use serde_json::Value;

use super::rows::{standing, version};
use super::{Done, Work};
use crate::backends::sqlite::committer::Stop;
use crate::backends::sqlite::database::{signed, unsigned};
use crate::control::rules::{self, Standing, Turn};
use crate::control::{
    Applied, AppliedOutcome, ControlEvent, ControlVersion, Entry, EventBody, EventId, ObservedRow, Phase,
    Quarantined, Restore, Restored,
};
use crate::error::BackendError;
use crate::limits::CONTROL_QUARANTINE_EVENTS_MAX;

impl Work<'_> {
    pub(super) fn cursor(&self) -> Done<ControlVersion> {
        let mut found = self.db.prepare_cached("SELECT value FROM meta WHERE name = 'cursor'")?;
        Ok(found.query_row([], |row| version(row, 0))?)
    }

    fn advance(&self, through: ControlVersion) -> Done<ControlVersion> {
        let mut moved = self
            .db
            .prepare_cached("UPDATE meta SET value = max(value, ?1) WHERE name = 'cursor' RETURNING value")?;
        Ok(moved.query_row([signed(through.0)], |row| version(row, 0))?)
    }

    /// The control version and the digest of an applied event.
    pub(super) fn applied(&self, event: &EventId) -> Done<Option<(ControlVersion, String)>> {
        let mut found =
            self.db.prepare_cached("SELECT version, digest FROM applied_events WHERE event_id = ?1")?;
        let found = found.query_row([event.as_str()], |row| Ok((version(row, 0)?, row.get(1)?)));
        Ok(found.optional()?)
    }

    fn seen_again(&self, event: &EventId, at: ControlVersion) -> Done<()> {
        self.db
            .prepare_cached("UPDATE applied_events SET version = max(version, ?2) WHERE event_id = ?1")?
            .execute((event.as_str(), signed(at.0)))?;
        Ok(())
    }

    fn mark_applied(&self, row: &Standing) -> Done<()> {
        self.db
            .prepare_cached(
                "INSERT INTO applied_events VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT(event_id) DO UPDATE SET version = max(version, ?2)",
            )?
            .execute((&row.event_id, signed(row.version.0), &row.digest, self.now))?;
        Ok(())
    }

    pub(super) fn take(&self, entry: &Entry) -> Done<Applied> {
        let mut ousted = None;
        let (at, outcome) = match entry {
            Entry::PassedBy { version } => (*version, AppliedOutcome::PassedBy),
            Entry::SetAside { quarantined, event } => {
                (quarantined.version, self.put_aside(quarantined, event.as_ref())?)
            }
            Entry::Event { version, event } => (*version, self.take_event(*version, event, &mut ousted)?),
        };
        Ok(Applied { outcome, cursor: self.advance(at)?, ousted })
    }

    fn take_event(
        &self,
        at: ControlVersion,
        event: &ControlEvent,
        ousted: &mut Option<EventId>,
    ) -> Done<AppliedOutcome> {
        if self.applied(event.id())?.is_some() {
            self.seen_again(event.id(), at)?;
            return Ok(AppliedOutcome::Repeated);
        }
        if event.unsigned().body == EventBody::Unknown {
            return Ok(AppliedOutcome::PassedBy);
        }
        let (entity, row) = (event.entity(), standing(at, event));
        self.arrived(&row)?;
        let known = self.standing("desired", &entity)?;
        let turn = rules::turn(known.as_ref(), &row);
        if let (Turn::Loses, Some(winner)) = (turn, &known) {
            let outcome = self.put_aside(&rules::conflict(&entity, &row, winner, self.now), None)?;
            self.counts_nowhere(&row, &entity)?;
            return Ok(outcome);
        }
        if let (Turn::Replaces, Some(base), Some(known)) =
            (turn, rules::other_base(known.as_ref(), event), &known)
            && (known.revision == event.unsigned().base_revision || self.came_second(base)?)
        {
            let outcome = self.put_aside(&rules::astray(&entity, &row, base, known, self.now), None)?;
            self.counts_nowhere(&row, &entity)?;
            return Ok(outcome);
        }
        self.mark_applied(&row)?;
        if matches!(turn, Turn::ChangesNothing | Turn::Loses) {
            return Ok(AppliedOutcome::Superseded);
        }
        if let (Turn::Ousts, Some(loser)) = (turn, &known) {
            self.put_aside(&rules::conflict(&entity, loser, &row, self.now), None)?;
            self.counts_nowhere(loser, &entity)?;
            *ousted = Some(super::rows::event_id(loser.event_id.clone())?);
        }
        self.put("desired", &entity, &row, &event.to_json())?;
        Ok(AppliedOutcome::Changed)
    }

    fn came_second(&self, event: &EventId) -> Done<bool> {
        let mut found =
            self.db.prepare_cached("SELECT 1 FROM quarantine WHERE name = ?1 AND code = ?2 LIMIT 1")?;
        Ok(found.exists((event.as_str(), rules::CONFLICT))?)
    }

    fn put_aside(&self, aside: &Quarantined, event: Option<&ControlEvent>) -> Done<AppliedOutcome> {
        if let Some(event) = event
            && let Some((_, digest)) = self.applied(event.id())?
            && digest == event.digest()
        {
            self.seen_again(event.id(), aside.version)?;
            return Ok(AppliedOutcome::Repeated);
        }
        if let Some(event) = event {
            let row = standing(aside.version, event);
            self.arrived(&row)?;
            self.counts_nowhere(&row, &event.entity())?;
        }
        let Quarantined { version, name, code, reason, at } = aside;
        self.db
            .prepare_cached("INSERT OR REPLACE INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute((signed(version.0), name, code, reason, at))?;
        self.db
            .prepare_cached(
                "DELETE FROM quarantine WHERE rowid IN (
                   SELECT rowid FROM quarantine ORDER BY at, version, name
                   LIMIT max(0, (SELECT count(*) FROM quarantine) - ?1))",
            )?
            .execute([signed(CONTROL_QUARANTINE_EVENTS_MAX)])?;
        Ok(AppliedOutcome::Quarantined { code: code.clone(), reason: reason.clone() })
    }

    pub(super) fn restore(&self, restore: &Restore) -> Done<Restored> {
        for aside in &restore.set_aside {
            self.put_aside(aside, None)?;
        }
        let mut entities = BTreeSet::new();
        for (at, event) in &restore.events {
            let (entity, row) = (event.entity(), standing(*at, event));
            self.arrived(&row)?;
            self.mark_applied(&row)?;
            let known = self.standing("desired", &entity)?;
            match (rules::turn(known.as_ref(), &row), known) {
                // Of one that cannot be read, this is what it was.
                (Turn::ChangesNothing, Some(known))
                    if known.digest == row.digest && !self.can_read_desired(&entity)? =>
                {
                    self.put("desired", &entity, &known, &event.to_json())?;
                    entities.insert(entity);
                    continue;
                }
                (Turn::ChangesNothing, _) => continue,
                (Turn::Ousts | Turn::Loses, Some(loser)) => {
                    self.put_aside(&rules::conflict(&entity, &loser, &row, self.now), None)?;
                    self.counts_nowhere(&loser, &entity)?;
                }
                _ => {}
            }
            self.put("desired", &entity, &row, &event.to_json())?;
            entities.insert(entity);
        }
        let cursor = self.advance(restore.version)?;
        Ok(Restored { cursor, entities: entities.into_iter().collect() })
    }

    pub(super) fn quarantined(&self, limit: usize) -> Done<Vec<Quarantined>> {
        let mut statement = self.db.prepare_cached(
            "SELECT version, name, code, reason, at FROM quarantine ORDER BY at DESC, version DESC, name DESC LIMIT ?1",
        )?;
        let found = statement.query_map([signed(limit as u64)], |row| {
            Ok(Quarantined {
                version: version(row, 0)?,
                name: row.get(1)?,
                code: row.get(2)?,
                reason: row.get(3)?,
                at: row.get(4)?,
            })
        })?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn applied_beyond(&self, younger: u64) -> Done<ControlVersion> {
        let found = self
            .db
            .prepare_cached("SELECT version FROM applied_events ORDER BY version DESC LIMIT 1 OFFSET ?1")?
            .query_row([signed(younger)], |row| version(row, 0))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    pub(super) fn forget_applied(&self, through: ControlVersion) -> Done<u64> {
        let gone = self
            .db
            .prepare_cached("DELETE FROM applied_events WHERE version <= ?1")?
            .execute([signed(through.0)])?;
        Ok(gone as u64)
    }

    pub(super) fn observed(&self) -> Done<Vec<ObservedRow>> {
        let mut statement = self.db.prepare_cached(
            "SELECT plugin, revision, phase, serving, code, reason, since, attempts FROM observed ORDER BY plugin",
        )?;
        let mut rows = statement.query([])?;
        let mut observed = Vec::new();
        while let Some(row) = rows.next()? {
            let (code, reason): (Option<String>, Option<String>) = (row.get(4)?, row.get(5)?);
            observed.push(ObservedRow {
                plugin: row.get(0)?,
                revision: unsigned(row.get(1)?),
                phase: phase(row.get(2)?)?,
                serving: row.get(3)?,
                reason: code.zip(reason),
                since: row.get(6)?,
                attempts: row.get(7)?,
            });
        }
        Ok(observed)
    }

    pub(super) fn observe(&self, row: &ObservedRow) -> Done<()> {
        let (code, reason) = row.reason.as_ref().map(|(code, reason)| (code, reason)).unzip();
        let phase = serde_json::to_value(row.phase).ok();
        let phase = phase.as_ref().and_then(Value::as_str).unwrap_or_default();
        self.db
            .prepare_cached("INSERT OR REPLACE INTO observed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute((
                &row.plugin,
                signed(row.revision),
                phase,
                &row.serving,
                code,
                reason,
                row.since,
                row.attempts,
            ))?;
        Ok(())
    }
}

fn phase(name: String) -> Done<Phase> {
    serde_json::from_value(Value::String(name)).map_err(|error| {
        let detail = format!("a stored phase cannot be read: {error}");
        Stop::Refused(BackendError::Failed { detail }.into())
    })
}
