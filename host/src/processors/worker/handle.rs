//! Handling new events: what of a batch goes to the instance, and what became of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::{Blocked, Care, Worker, cut};
use crate::checkpoints::EffectBatch;
use crate::error::Blame;
use crate::event::{EventBatch, Position};
use crate::processors::core_time::OwnTime;
use crate::processors::lane::key_of;
use crate::processors::parked::Key;
use crate::processors::proof::Basis;
use crate::processors::spans::HandleCall;
use crate::processors::task::End;
use crate::processors::{Outcome, Trap};

/// What the instance is given of a stretch: its events up to `end` but for those whose key waits.
struct Selection {
    batch: Arc<EventBatch>,
    /// Where each of them stands in the stretch's batch; none when it is all of them.
    indexes: Option<Vec<usize>>,
    start: usize,
    end: usize,
}

impl Selection {
    /// How far the stretch is done when so many of the selected are.
    fn reached(&self, handled: usize) -> usize {
        if handled >= self.batch.len() {
            return self.end;
        }
        self.indexes.as_ref().map_or(self.start + handled, |indexes| indexes[handled])
    }
}

impl Worker {
    /// Handles the next stretch, or with `one` only its next event. Answers whether the instance was called.
    pub(super) fn handle_next(&mut self, one: bool) -> Result<bool, End> {
        self.tried_parked = false;
        let stretch = self.work.front().expect("`may_handle` saw work");
        let care = stretch.care;
        let range = match care {
            Care::Batch if !one => stretch.range.clone(),
            _ => stretch.range.start..stretch.range.start + 1,
        };
        let Some(selection) = self.select(&Arc::clone(&stretch.batch), range) else { return Ok(false) };
        if selection.batch.is_empty() {
            self.pass_to(selection.end);
            return Ok(false);
        }
        self.load_instance()?;
        self.begin_stretch();
        self.last_used = Instant::now();
        let own_time = self.shadow.is_watched().then(OwnTime::begin);
        let instance = self.instance.as_mut().expect("it was just loaded");
        let call = HandleCall::begin(&self.id, self.counters.version(), &selection.batch);
        let mut answer = instance.handle(&selection.batch);
        // It ends with this function.
        let span = call.end(&self.counters, &selection.batch, &mut answer);
        self.pending.traces.add(span.as_ref());
        match answer {
            Ok(outcome) => {
                if let Some(own_time) = own_time {
                    let (took, memory) = (own_time.elapsed(), instance.memory_bytes());
                    self.shadow.offer(&selection.batch, &outcome, took, memory);
                }
                self.take_outcome(outcome, &selection, care)?
            }
            Err(trap) => self.fall(&trap)?,
        }
        Ok(true)
    }

    /// At a batch boundary a candidate may begin: nothing is handled that is not in the submitted state.
    pub(super) fn begin_stretch(&mut self) {
        if !self.pending.is_empty() || self.pending.touched {
            return;
        }
        let (slot, saved) = (&self.shared.shadow, &self.submitted_saved);
        let mut shadow = std::mem::take(&mut self.shadow);
        shadow.begin_stretch(slot, &self.id, || Basis { context: self.context(), saved: saved.clone() });
        self.shadow = shadow;
    }

    /// Leaves out what has to wait behind its key. None when the first event has no room to wait in.
    fn select(&mut self, batch: &Arc<EventBatch>, range: Range<usize>) -> Option<Selection> {
        let (start, mut end) = (range.start, range.end);
        if self.parked.is_empty() {
            let whole = range == (0..batch.len());
            let batch = if whole { Arc::clone(batch) } else { Arc::new(cut(batch, range)) };
            return Some(Selection { batch, indexes: None, start, end });
        }
        let settings = &self.shared.settings;
        let mut events_left = settings.parked_events_max.saturating_sub(self.parked.count());
        let mut bytes_left = settings.parked_bytes_max.saturating_sub(self.parked.bytes());
        let mut indexes = Vec::new();
        for index in range {
            if !self.parked.contains(&self.key(batch, index)) {
                indexes.push(index);
                continue;
            }
            let bytes = batch.records()[index].span().len();
            if events_left == 0 || bytes_left < bytes {
                end = index;
                break;
            }
            events_left -= 1;
            bytes_left -= bytes;
        }
        if end == start {
            self.blocked = Some(Blocked::Full);
            return None;
        }
        let batch = Arc::new(cut(batch, indexes.iter().copied()));
        Some(Selection { batch, indexes: Some(indexes), start, end })
    }

    fn take_outcome(&mut self, outcome: Outcome, selection: &Selection, care: Care) -> Result<(), End> {
        let Outcome { handled, effects, failure } = outcome;
        if handled > 0 {
            let careful = care != Care::Batch;
            if careful && let Err(trap) = self.savepoint() {
                return self.fall(&trap);
            }
            self.keep(effects);
            self.pending.touched = !careful;
            self.breaker.succeeded();
        }
        let reached = selection.reached(handled);
        if handled == 0 && failure.is_none() {
            return Err(End {
                message: "the processor handled nothing and named no failure".into(),
                restart: false,
                blame: Blame::Guest,
            });
        }
        self.pass_to(reached);
        match failure {
            Some(failure) => self.fail_event(failure),
            None => Ok(()),
        }
    }

    /// Keeps the effects of a call.
    pub(super) fn keep(&mut self, effects: EffectBatch) {
        self.pending.touched = true;
        self.flushed_to_stand = false;
        if effects.is_empty() {
            return;
        }
        self.shadow.before_write(&effects, &*self.keyed);
        self.keyed.add(&effects);
        self.counters.effects(effects.len());
        self.pending.bytes += effects.bytes();
        self.pending.effects.push(Arc::new(effects));
    }

    /// The first stretch is done up to this index: its events are handled, or wait behind their key from now on.
    pub(super) fn pass_to(&mut self, end: usize) {
        let stretch = self.work.front_mut().expect("what is passed came from the front");
        let done = stretch.range.start..end;
        if done.is_empty() {
            return;
        }
        self.pending.position = Position(stretch.batch.records()[done.end - 1].position);
        self.pending.events += done.len();
        self.pending.since.get_or_insert_with(Instant::now);
        stretch.range.start = done.end;
        let batch = Arc::clone(&stretch.batch);
        if stretch.range.is_empty() {
            self.work.pop_front();
        }
        if !self.parked.is_empty() {
            self.park_followers(&batch, done.clone());
        }
        match self.pending.done.last_mut() {
            Some((last, range)) if Arc::ptr_eq(last, &batch) && range.end == done.start => {
                range.end = done.end
            }
            _ => self.pending.done.push((batch, done)),
        }
    }

    fn park_followers(&mut self, batch: &Arc<EventBatch>, range: Range<usize>) {
        for index in range {
            let key = self.key(batch, index);
            if self.parked.contains(&key) {
                let event = Arc::new(cut(batch, index..index + 1));
                let waits = || unreachable!("the key waits already");
                self.parked.add(&key, event, waits, &mut self.pending.parked);
                self.counters.park();
            }
        }
    }

    /// Takes the state after a single event, so that the next one's fall costs no more than itself.
    pub(super) fn savepoint(&mut self) -> Result<(), Trap> {
        if self.factory.manifest().state_content_type.is_some() {
            self.pending.savepoint = Some(self.snapshot()?);
        }
        Ok(())
    }

    pub(super) fn key(&self, batch: &EventBatch, index: usize) -> Key {
        key_of(&self.factory.manifest().ordering_key, batch, index).into()
    }
}
