//! What this host tells the fleet, as rows.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension as _;

use super::rows::standing;
use super::{Done, Work};
use crate::backends::sqlite::committer::Stop;
use crate::backends::sqlite::database::{signed, unsigned};
use crate::control::rules::{self, Standing};
use crate::control::{ControlEvent, ControlFeedError, ControlVersion, DesiredRow, EventId, Proposed, Told};
use crate::limits::CONTROL_TOLD_EVENTS_MAX;

impl Work<'_> {
    pub(super) fn propose(&self, event: &ControlEvent, events_max: u64) -> Done<Proposed> {
        let (entity, row) = (event.entity(), standing(ControlVersion(0), event));
        let told = self.told(event.id())?.map(|told| told.digest);
        let known = match told {
            Some(digest) => Some(digest),
            None => self.applied(event.id())?.map(|(_, digest)| digest),
        };
        match known {
            Some(digest) if digest == row.digest => {
                return Ok(Proposed { entity, revision: row.revision, repeated: true });
            }
            Some(_) => {
                return Err(Stop::Refused(ControlFeedError::EventIdTaken { event_id: row.event_id }));
            }
            None => {}
        }
        let (desired, proposed) = (self.standing("desired", &entity)?, self.standing("proposed", &entity)?);
        // Of one revision, what is in the feed stands.
        let ahead =
            |proposed: &Standing| desired.as_ref().is_none_or(|desired| desired.revision < proposed.revision);
        let stands = proposed.as_ref().filter(|proposed| ahead(proposed)).or(desired.as_ref());
        rules::check_proposal(event, stands).map_err(Stop::Refused)?;
        let waiting: i64 =
            self.db.prepare_cached("SELECT count(*) FROM outbox")?.query_row([], |row| row.get(0))?;
        if unsigned(waiting) >= events_max {
            return Err(Stop::Refused(rules::outbox_full(unsigned(waiting) + 1, events_max)));
        }
        let json = event.to_json();
        self.put("proposed", &entity, &row, &json)?;
        let Standing { revision, event_id, digest, .. } = &row;
        self.db
            .prepare_cached(
                "INSERT INTO outbox(event_id, entity, revision, digest, event, at, due_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
            )?
            .execute((event_id, &entity, signed(*revision), digest, json, self.now))?;
        let seq = self.db.last_insert_rowid();
        self.db.prepare_cached("INSERT INTO told VALUES (?1, ?2, ?3, ?4, ?5, NULL)")?.execute((
            event_id,
            seq,
            &entity,
            signed(*revision),
            digest,
        ))?;
        self.db
            .prepare_cached(
                "DELETE FROM told WHERE version IS NOT NULL AND seq <= (
                   SELECT seq FROM told WHERE version IS NOT NULL ORDER BY seq DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([signed(CONTROL_TOLD_EVENTS_MAX)])?;
        Ok(Proposed { entity, revision: row.revision, repeated: false })
    }

    pub(super) fn proposed(&self) -> Done<Vec<DesiredRow>> {
        let mut rows = BTreeMap::new();
        for row in self.all("desired")?.into_iter().chain(self.all("proposed")?) {
            match rows.get(&row.entity) {
                Some(DesiredRow { revision, .. }) if *revision >= row.revision => {}
                _ => drop(rows.insert(row.entity.clone(), row)),
            }
        }
        Ok(rows.into_values().collect())
    }

    pub(super) fn told(&self, event: &EventId) -> Done<Option<Told>> {
        let mut found = self
            .db
            .prepare_cached("SELECT entity, revision, version, digest FROM told WHERE event_id = ?1")?;
        let found = found.query_row([event.as_str()], |row| {
            let in_feed = row.get::<_, Option<i64>>(2)?.map(|version| ControlVersion(unsigned(version)));
            Ok(Told {
                entity: row.get(0)?,
                revision: unsigned(row.get(1)?),
                digest: row.get(3)?,
                version: in_feed,
            })
        });
        Ok(found.optional()?)
    }

    /// An event, which may be this host's, is in the feed.
    pub(super) fn arrived(&self, row: &Standing) -> Done<()> {
        let told = self
            .db
            .prepare_cached("UPDATE told SET version = ?3 WHERE event_id = ?1 AND digest = ?2")?
            .execute((&row.event_id, &row.digest, signed(row.version.0)))?;
        if told == 0 {
            return Ok(());
        }
        let mut gone =
            self.db.prepare_cached("DELETE FROM outbox WHERE event_id = ?1 RETURNING entity, event")?;
        let gone = gone.query_row([&row.event_id], |found| Ok((found.get(0)?, found.get(1)?)));
        let Some((entity, json)): Option<(String, String)> = gone.optional()? else { return Ok(()) };
        let before = self.standing("carried", &entity)?.map_or(0, |row| row.revision);
        if before < row.revision {
            self.put("carried", &entity, row, &json)?;
        }
        Ok(())
    }

    /// An event that is in the feed, and may be this host's, was set aside.
    pub(super) fn counts_nowhere(&self, row: &Standing, entity: &str) -> Done<()> {
        if self
            .told(&super::rows::event_id(row.event_id.clone())?)?
            .is_none_or(|told| told.digest != row.digest)
        {
            return Ok(());
        }
        let mut stood = 0;
        for table in ["carried", "proposed"] {
            let sql = format!("DELETE FROM {table} WHERE entity = ?1 AND event_id = ?2");
            stood += self.db.prepare_cached(&sql)?.execute((entity, &row.event_id))?;
        }
        if stood == 0 {
            // It is known: what waits now was made since.
            return Ok(());
        }
        self.db
            .prepare_cached(
                "UPDATE outbox SET dead = 1, error = ?2, tried_at = ?3, claim = 0, claimed_until = 0 WHERE entity = ?1",
            )?
            .execute((entity, rules::made_on(&row.event_id), self.now))?;
        Ok(())
    }

    /// Takes back what was proposed last of an entity.
    pub(super) fn take_back(&self, event: &EventId, entity: &str) -> Done<()> {
        self.db.prepare_cached("DELETE FROM told WHERE event_id = ?1")?.execute([event.as_str()])?;
        let was_last = self
            .db
            .prepare_cached("DELETE FROM proposed WHERE entity = ?1 AND event_id = ?2")?
            .execute((entity, event.as_str()))?;
        if was_last > 0 {
            self.db
                .prepare_cached("INSERT INTO proposed SELECT * FROM carried WHERE entity = ?1")?
                .execute([entity])?;
        }
        Ok(())
    }

    /// As of a settlement, where the digest is the store's own.
    pub(super) fn published(&self, event: &EventId, at: ControlVersion) -> Done<()> {
        let mut found =
            self.db.prepare_cached("SELECT revision, event_id, digest FROM outbox WHERE event_id = ?1")?;
        let found = found.query_row([event.as_str()], |row| {
            let revision = unsigned(row.get(0)?);
            Ok(Standing { revision, version: at, event_id: row.get(1)?, digest: row.get(2)? })
        });
        match found.optional()? {
            Some(row) => self.arrived(&row),
            None => Ok(()),
        }
    }
}
