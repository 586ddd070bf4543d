//! Runs a guest through a vector, and tells what it asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use millrace::checkpoints::{
    CommitError, EffectBatch, EffectRef, SavedState, ScanLimit, StateEntry, StatePage, StateValue,
};
use millrace::event::{EventBatch, TenantId};
use millrace::processors::{
    Failure, FailureKind, LoadError, Processor, ProcessorFactory, StateReader, TaskContext,
};
use millrace::tables::{Cell, Cells};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::vector::{Call, OneEvent, Vector, Written, expand};

/// Above this, effects are told by their number and a digest.
const TOLD_LETTERS_MAX: usize = 6_000;
/// A guest with an engine in it takes milliseconds to start.
const RESTARTS_MAX: usize = 40;

/// How the events of a call are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    AsWritten,
    Singles,
    /// In batches of any size, with a restart now and then.
    Random(u64),
    /// With a restart before each event; before each of some batches where there are many.
    RestartEach,
}

/// The ways in which a guest is tried.
pub const PARTITIONS: [Partition; 5] = [
    Partition::AsWritten,
    Partition::Singles,
    Partition::RestartEach,
    Partition::Random(1),
    Partition::Random(2),
];

/// A task's keyed state.
#[derive(Debug, Default)]
struct Entries(Mutex<BTreeMap<Vec<u8>, StateValue>>);

impl StateReader for Entries {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        Ok(self.0.lock().expect("nobody panics").get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: ScanLimit) -> Result<StatePage, CommitError> {
        let entries = self.0.lock().expect("nobody panics");
        let (mut page, mut bytes) = (StatePage::default(), 0);
        for (key, found) in entries.iter() {
            if !key.starts_with(prefix) || after.is_some_and(|after| key.as_slice() <= after) {
                continue;
            }
            let next = key.len() + found.value.len();
            if limit.ends(page.entries.len(), bytes, next) {
                page.more = true;
                break;
            }
            bytes += next;
            let (value, expires_at) = (found.value.clone(), found.expires_at);
            page.entries.push(StateEntry { key: key.clone(), value, expires_at });
        }
        Ok(page)
    }
}

impl Entries {
    fn take(&self, effects: &EffectBatch) {
        let mut entries = self.0.lock().expect("nobody panics");
        for effect in effects.iter() {
            match effect {
                EffectRef::StatePut { key, value, expires_at } => {
                    entries.insert(key.to_vec(), StateValue { value: value.to_vec(), expires_at });
                }
                EffectRef::StateDelete { key } => {
                    entries.remove(key);
                }
                _ => {}
            }
        }
    }

    fn told(&self) -> Vec<Value> {
        let entries = self.0.lock().expect("nobody panics");
        let entry = |(key, found): (&Vec<u8>, &StateValue)| {
            json!([shown(key), shown(&found.value), found.expires_at.map(|at| at.0)])
        };
        entries.iter().map(entry).collect()
    }
}

/// A guest at work.
struct Life<'a> {
    factory: &'a dyn ProcessorFactory,
    entries: Arc<Entries>,
    instance: Box<dyn Processor>,
    /// Events that were handed out, whatever became of them.
    number: usize,
    position: u64,
}

fn tenant() -> TenantId {
    TenantId::new("default").expect("a good name")
}

fn instantiate(
    factory: &dyn ProcessorFactory,
    entries: &Arc<Entries>,
    saved: Option<&SavedState>,
) -> Result<Box<dyn Processor>, LoadError> {
    let state = Arc::clone(entries) as Arc<dyn StateReader>;
    let mut instance = factory.instantiate(TaskContext { tenant: tenant(), lane: 0, lanes: 1, state })?;
    instance.load(saved)?;
    Ok(instance)
}

/// What became of one call.
#[derive(Default)]
struct Answer {
    handled: usize,
    effects: Vec<Value>,
    failure: Option<Failure>,
}

impl Life<'_> {
    fn restart(&mut self) -> Result<(), LoadError> {
        let state = self.instance.snapshot()?;
        let content_type = self.factory.manifest().state_content_type.clone().expect("it has state");
        let saved = SavedState { content_type, state };
        self.instance = instantiate(self.factory, &self.entries, Some(&saved))?;
        Ok(())
    }

    fn handle(&mut self, written: &[Written], partition: Partition) -> Result<Answer, LoadError> {
        let events = expand(written, self.number, &mut self.position);
        let mut answer = Answer::default();
        let mut cutter = Cutter::new(partition, events.len());
        let mut rest = &events[..];
        while !rest.is_empty() && answer.failure.is_none() {
            let (piece, later) = rest.split_at(cutter.next(rest.len()));
            rest = later;
            if cutter.restarts() {
                self.restart()?;
            }
            self.handle_piece(piece, &mut answer)?;
        }
        self.number += events.len();
        Ok(answer)
    }

    fn handle_piece(&mut self, events: &[OneEvent], answer: &mut Answer) -> Result<(), LoadError> {
        let mut batch = EventBatch::new(tenant());
        events.iter().for_each(|event| batch.push_checked(&event.borrow()));
        let outcome = self.instance.handle(&batch)?;
        let all = outcome.handled == events.len();
        assert_eq!(outcome.failure.is_none(), all, "{} of {}", outcome.handled, events.len());
        self.entries.take(&outcome.effects);
        answer.effects.extend(told(&outcome.effects, self.factory, Some(self.number + answer.handled)));
        answer.handled += outcome.handled;
        answer.failure = outcome.failure;
        Ok(())
    }
}

/// Says how large the next batch is, and whether the guest is restarted before it.
struct Cutter {
    partition: Partition,
    random: StdRng,
    all: usize,
}

impl Cutter {
    fn new(partition: Partition, all: usize) -> Self {
        let seed = if let Partition::Random(seed) = partition { seed } else { 0 };
        Self { partition, random: StdRng::seed_from_u64(seed), all }
    }

    fn next(&mut self, left: usize) -> usize {
        match self.partition {
            Partition::AsWritten => left,
            Partition::Singles => 1,
            // Not so small that a long vector is restarted hundreds of times.
            Partition::Random(_) => {
                let least = (self.all / RESTARTS_MAX).max(1).min(left);
                self.random.random_range(least..=left)
            }
            Partition::RestartEach => self.all.div_ceil(RESTARTS_MAX).min(left),
        }
    }

    fn restarts(&mut self) -> bool {
        match self.partition {
            Partition::AsWritten | Partition::Singles => false,
            Partition::Random(_) => self.random.random_range(0..3) == 0,
            Partition::RestartEach => true,
        }
    }
}

/// Runs a guest through a vector. What is answered is compared with what the vector expects; the error is a guest that
/// fell, which none may.
pub fn run(
    factory: &dyn ProcessorFactory,
    vector: &Vector,
    partition: Partition,
) -> Result<Value, LoadError> {
    let entries = Arc::new(Entries::default());
    let saved = vector
        .saved
        .as_ref()
        .map(|saved| SavedState { content_type: saved.content_type.clone(), state: saved.state.read() });
    let instance = match instantiate(factory, &entries, saved.as_ref()) {
        Ok(instance) => instance,
        Err(LoadError::Refused { message }) => return Ok(json!({ "load": { "refused": message } })),
        Err(error) => return Err(error),
    };
    let mut life = Life { factory, entries, instance, number: 0, position: 0 };
    let mut calls = Vec::new();
    for call in &vector.calls {
        let answer = match call {
            Call::Restart => {
                life.restart()?;
                continue;
            }
            Call::Handle(events) => life.handle(events, partition)?,
            Call::Flush(reason) => {
                if partition == Partition::RestartEach {
                    life.restart()?;
                }
                match life.instance.flush((*reason).into())? {
                    Ok(effects) => Answer { effects: told(&effects, factory, None), ..Answer::default() },
                    Err(failure) => Answer { failure: Some(failure), ..Answer::default() },
                }
            }
        };
        calls.push(json!({
            "handled": answer.handled,
            "effects": many(answer.effects),
            "failure": answer.failure.map(|failure| {
                json!({ "kind": kind(failure.kind), "message": failure.message })
            }),
        }));
    }
    let snapshot = life.instance.snapshot()?;
    Ok(json!({
        "load": "ok",
        "calls": calls,
        "snapshot": format!("hex:{}", hex(&snapshot)),
        "entries": many(life.entries.told()),
    }))
}

fn kind(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Retry => "retry",
        FailureKind::Reject => "reject",
        FailureKind::Fatal => "fatal",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| format!("hex:{}", hex(bytes)), |text| format!("text:{text}"))
}

/// The values, or what stands for many.
fn many(values: Vec<Value>) -> Value {
    let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
    if lines.chars().count() <= TOLD_LETTERS_MAX {
        return Value::Array(values);
    }
    json!({ "count": values.len(), "sha256": hex(digest(&SHA256, lines.as_bytes()).as_ref()) })
}

/// Effects in words. Members stand in the order of their names, which the digest is made over.
fn told(effects: &EffectBatch, factory: &dyn ProcessorFactory, first: Option<usize>) -> Vec<Value> {
    let tables = &factory.manifest().tables;
    let table = |index: usize| tables[index].name.as_str();
    let one = |(effect, of): (EffectRef<'_>, Option<usize>)| match effect {
        EffectRef::Put { table: index, key, version, cells } => {
            let cells: Vec<Value> =
                Cells::new(cells).map(|found| cell(found.expect("it was checked"))).collect();
            json!({ "cells": cells, "key": key, "of": of, "put": table(index), "version": version })
        }
        EffectRef::Delete { table: index, key, version } => {
            json!({ "delete": table(index), "key": key, "of": of, "version": version })
        }
        EffectRef::StatePut { key, value, expires_at } => {
            let expires_at = expires_at.map(|at| at.0);
            json!({ "expires_at": expires_at, "of": of, "state_put": shown(key), "value": shown(value) })
        }
        EffectRef::StateDelete { key } => json!({ "of": of, "state_delete": shown(key) }),
        EffectRef::Emit(event) => json!({
            "agg_id": event.agg_id,
            "aggregate": event.aggregate,
            "at": event.at.0,
            "depth": event.depth,
            "emit": event.event_type,
            "id": event.id,
            "of": of,
            "payload": shown(event.payload),
            "schema_version": event.schema_version,
            "scope": event.scope,
            "traceparent": event.traceparent,
            "version": event.version,
        }),
        EffectRef::Append(entry) => json!({
            "append": entry.entry_type.as_str(),
            "channel": entry.channel,
            "depth": entry.depth,
            "error": entry.error,
            "in_reply_to": entry.in_reply_to,
            "of": of,
            "payload": entry.payload.map(shown),
            "process": entry.process,
            "scope": entry.scope,
            "traceparent": entry.traceparent,
        }),
    };
    let events = effects.records().iter().map(|record| first.map(|first| first + record.event as usize));
    effects.iter().zip(events).map(one).collect()
}

fn cell(cell: Cell<'_>) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Bool(value) => json!(value),
        Cell::Int(value) => json!({ "int": value }),
        Cell::Float(value) => json!({ "float": format!("{:016x}", value.to_bits()) }),
        Cell::Text(text) => json!({ "text": text }),
        Cell::Bytes(bytes) => json!({ "bytes": shown(bytes) }),
        Cell::Json(text) => json!({ "json": text }),
        Cell::Timestamp(at) => json!({ "timestamp": at }),
    }
}
