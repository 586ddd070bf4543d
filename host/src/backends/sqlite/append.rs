//! Writing events: told apart from repeats by the dedup window, then inserted.
//! Published and emitted events take the same way.

use super::committer::{Committer, Stop};
use super::database::signed;
use super::event_rows::{INSERT_EVENT, Likeness, bind_event};
use super::request::Trimmed;
use crate::event::{Event, EventBatch, Position};
use crate::limits::TRIM_EVENTS_MAX;
use crate::streams::{Appended, Retention, StreamError};

/// A batch that has been compared with the window: which events are new.
struct Admitted {
    appended: Vec<Appended>,
    /// Indexes in the batch; none is listed when all are new.
    fresh: Option<Vec<usize>>,
}

impl Committer {
    /// Appends a batch: all of it or, when refused, nothing.
    pub(super) fn append(&mut self, batch: EventBatch) -> Result<Vec<Appended>, Stop<StreamError>> {
        let tenant = self.tenant_number(&batch.tenant)?;
        let (appended, written) = self.write_events(tenant, batch)?;
        if let Some(written) = written {
            self.add_chunk(tenant, written);
        }
        Ok(appended)
    }

    /// Writes what is new in a batch, and its change streams. Answers it with its positions, for [`Self::add_chunk`]
    /// once it is sure to stay.
    pub(super) fn write_events(
        &mut self,
        tenant: i64,
        mut batch: EventBatch,
    ) -> Result<(Vec<Appended>, Option<EventBatch>), Stop<StreamError>> {
        let before = self.counters.newest;
        let admitted = match self.admit(tenant, &batch) {
            Ok(admitted) => admitted,
            Err(stop) => {
                self.window.truncate(before + 1);
                return Err(stop);
            }
        };
        if let Some(fresh) = admitted.fresh {
            if fresh.is_empty() {
                return Ok((admitted.appended, None));
            }
            let mut kept = EventBatch::with_capacity(batch.tenant.clone(), fresh.len(), batch.bytes());
            for index in fresh {
                kept.push_from(&batch, index);
            }
            batch = kept;
        }
        let batch = self.write_admitted(tenant, batch)?;
        Ok((admitted.appended, Some(batch)))
    }

    /// Writes events that the host has made itself, under ids that it gives once: they are no repeats, and whoever has
    /// published something under such an id is in nobody's way.
    pub(super) fn write_new_events(
        &mut self,
        tenant: i64,
        batch: EventBatch,
    ) -> Result<EventBatch, rusqlite::Error> {
        for record in batch.records() {
            let id = &batch.arena()[record.start as usize..][..record.id_bytes as usize];
            let hash = self.window.hash(tenant, id);
            self.window.push(hash);
        }
        self.write_admitted(tenant, batch)
    }

    /// Writes events that the window knows by now, and their change streams.
    fn write_admitted(&mut self, tenant: i64, mut batch: EventBatch) -> Result<EventBatch, rusqlite::Error> {
        let before = self.counters.newest;
        for index in 0..batch.len() {
            batch.set_position(index, Position(before + 1 + index as u64));
        }
        self.insert(tenant, &batch)?;
        // A stream with a name of its own has a number under 0: it belongs to no tail and has no changes.
        if tenant > 0 {
            self.note_appended(&batch.tenant)?;
            if !self.changes.scopes().is_empty() {
                self.write_changes(tenant, &mut batch)?;
            }
        }
        self.counters.newest = batch.last_position().0;
        Ok(batch)
    }

    /// Gives each event its position: a new one, which the window knows from now on, or its first.
    fn admit(&mut self, tenant: i64, batch: &EventBatch) -> Result<Admitted, Stop<StreamError>> {
        let before = self.counters.newest;
        let mut appended = Vec::with_capacity(batch.len());
        // Stays empty (and unallocated) while no repeat has been seen.
        let mut fresh: Vec<usize> = Vec::new();
        let mut repeats = false;
        for (index, record) in batch.records().iter().enumerate() {
            let id = &batch.arena()[record.start as usize..][..record.id_bytes as usize];
            let hash = self.window.hash(tenant, id);
            let place = |position: u64| {
                let place = usize::try_from(position - before - 1).unwrap_or(usize::MAX);
                if repeats { fresh[place] } else { place }
            };
            match self.find(tenant, hash, batch, index, place)? {
                Some(position) => {
                    if !repeats {
                        repeats = true;
                        fresh = (0..index).collect();
                    }
                    appended.push(Appended { position, repeated: true });
                }
                None => {
                    appended.push(Appended { position: Position(self.window.end()), repeated: false });
                    self.window.push(hash);
                    if repeats {
                        fresh.push(index);
                    }
                }
            }
        }
        Ok(Admitted { appended, fresh: repeats.then_some(fresh) })
    }

    /// The first position of an event that is held already; none for a new one.
    /// `place` says which event of the batch has got a position after the newest written.
    fn find(
        &self,
        tenant: i64,
        hash: u64,
        batch: &EventBatch,
        index: usize,
        place: impl Fn(u64) -> usize,
    ) -> Result<Option<Position>, Stop<StreamError>> {
        for position in self.window.candidates(hash) {
            let asked: Event<'_> = batch.get(index);
            let likeness = if position > self.counters.newest {
                Likeness::of(&batch.get(place(position)), &asked)
            } else {
                Likeness::of_stored(&self.conn, position, tenant, &asked)?
            };
            match likeness {
                Likeness::Other => {}
                Likeness::Same => return Ok(Some(Position(position))),
                Likeness::Conflicting => {
                    return Err(Stop::Refused(StreamError::IdTaken {
                        index,
                        id: asked.id.to_owned(),
                        position: Position(position),
                    }));
                }
            }
        }
        Ok(None)
    }

    fn insert(&self, tenant: i64, batch: &EventBatch) -> Result<(), rusqlite::Error> {
        let mut statement = self.conn.prepare_cached(INSERT_EVENT)?;
        let appended_at = self.clock.now().0;
        statement.raw_bind_parameter(15, tenant)?;
        statement.raw_bind_parameter(16, appended_at)?;
        for index in 0..batch.len() {
            bind_event(&mut statement, 1, batch, index)?;
            statement.raw_execute()?;
        }
        Ok(())
    }

    /// One step of a trim: at most [`TRIM_EVENTS_MAX`] of the oldest events.
    pub(super) fn trim(&mut self, retention: Retention) -> Result<Trimmed, Stop<StreamError>> {
        let wanted = self.trim_until(retention)?;
        let before = self.counters.trimmed;
        let until = wanted.min(before + TRIM_EVENTS_MAX);
        if until <= before {
            return Ok(Trimmed { events: 0, more: false });
        }
        self.lose_from_groups(Position(until))?;
        self.conn
            .prepare_cached("DELETE FROM events WHERE position > ?1 AND position <= ?2")?
            .execute((signed(before), signed(until)))?;
        self.trim_changes(before, until)?;
        self.counters.trimmed = until;
        Ok(Trimmed { events: until - before, more: until < wanted })
    }

    /// The newest position that goes.
    fn trim_until(&self, retention: Retention) -> Result<u64, rusqlite::Error> {
        let newest = self.counters.newest;
        let by_count = retention.events.map_or(0, |events| newest.saturating_sub(events));
        let Some(age) = retention.age else { return Ok(by_count) };
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let cutoff = self.clock.now().0.saturating_sub(age);
        // Times of append follow the positions, so the border is found by halving.
        let mut statement = self.conn.prepare_cached("SELECT appended_at FROM events WHERE position = ?1")?;
        let (mut gone, mut kept) = (self.counters.trimmed, newest + 1);
        while gone + 1 < kept {
            let middle = gone + (kept - gone) / 2;
            let at: i64 = statement.query_row([signed(middle)], |row| row.get(0))?;
            if at < cutoff {
                gone = middle;
            } else {
                kept = middle;
            }
        }
        Ok(gone.max(by_count))
    }
}
