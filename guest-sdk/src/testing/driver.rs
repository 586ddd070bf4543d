//! The driver: feeds a processor and keeps what it asks for, as the host would.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rows::{self, Row, text};
use super::{Batch, TestEvent};
use crate::limits::{SCAN_BYTES_MAX, SCAN_ENTRIES_MAX};
use crate::log::Level;
use crate::native::{Host, NativeInstance};
use crate::state::from_wire;
use crate::wire::{EffectKind, EffectRecord, Effects, Manifest};
use crate::{
    Context, Entry, EntryType, Failure, FlushReason, Processor, Saved, StatePage, StateValue, Timestamp,
};

/// A message that the processor logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub level: Level,
    pub text: String,
}

/// An entry that the processor appended to a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Appended {
    pub process: String,
    pub channel: String,
    pub entry_type: EntryType,
    pub in_reply_to: Option<u64>,
    pub error: Option<String>,
    pub payload: Option<Vec<u8>>,
}

impl Appended {
    /// The payload as text; empty where there is none. Panics when it is no text.
    pub fn text(&self) -> &str {
        text(self.payload.as_deref().unwrap_or_default())
    }
}

/// What a processor starts with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub context: Context,
    /// The operator's settings.
    pub config: BTreeMap<String, String>,
    pub saved: Option<Saved>,
    /// The task's keyed state.
    pub state: BTreeMap<Vec<u8>, StateValue>,
}

impl Default for Setup {
    fn default() -> Self {
        let context = Context { tenant: "test".into(), lane: 0, lanes: 1 };
        Self { context, config: BTreeMap::new(), saved: None, state: BTreeMap::new() }
    }
}

/// An event that a processor did not handle. What came after it was not handed to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// Its index in what was sent.
    pub index: usize,
    pub failure: Failure,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.index, self.failure)
    }
}

impl std::error::Error for Failed {}

/// Runs one task of a processor.
#[derive(Debug)]
pub struct Driver<P> {
    instance: NativeInstance<P>,
    manifest: Manifest,
    context: Context,
    host: Arc<FakeHost>,
    tables: BTreeMap<String, Rows>,
    emitted: Vec<TestEvent>,
    appended: Vec<Appended>,
    position: u64,
    stale: u64,
}

#[derive(Debug, Default, PartialEq)]
struct Rows {
    rows: BTreeMap<String, Row>,
    /// Versions of deleted rows.
    deleted: BTreeMap<String, u64>,
}

impl<P: Processor> Default for Driver<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Processor> Driver<P> {
    /// A task at its very start: no saved state, no settings. Panics when the processor refuses.
    pub fn new() -> Self {
        Self::start(Setup::default()).expect("the processor loads without saved state and settings")
    }

    /// The error is what the processor refused with.
    pub fn start(setup: Setup) -> Result<Self, String> {
        let Setup { context, config, saved, state } = setup;
        let host = Arc::new(FakeHost { config, state: Mutex::new(state), messages: Mutex::new(Vec::new()) });
        let instance = NativeInstance::load(host.clone(), context.clone(), saved)?;
        let manifest = P::manifest().to_wire();
        let tables = manifest.tables.iter().map(|table| (table.name.clone(), Rows::default())).collect();
        let (emitted, appended) = (vec![], vec![]);
        Ok(Self { instance, manifest, context, host, tables, emitted, appended, position: 0, stale: 0 })
    }

    /// Hands events over in one batch, whatever the subscription says. After a failure the effects and
    /// the state of the events before it stand.
    pub fn send(&mut self, events: &[TestEvent]) -> Result<(), Failed> {
        let batch = Batch::new(events, self.position + 1);
        let before = self.saved();
        let outcome = self.instance.handle(&batch.arena, &batch.records);
        let handled = outcome.handled as usize;
        if let Some(failure) = &outcome.failure {
            assert_eq!(
                failure.index as usize, handled,
                "a failure is about the event after the handled ones"
            );
            self.check_unchanged(before, &batch, handled);
        } else {
            assert_eq!(handled, events.len(), "without a failure all events are handled");
        }
        self.position += handled as u64;
        self.apply(&outcome.effects, events);
        match outcome.failure {
            Some(failure) => {
                let failure = Failure { kind: failure.kind, message: failure.message };
                Err(Failed { index: handled, failure })
            }
            None => Ok(()),
        }
    }

    /// The same, one by one, each in a batch of its own.
    pub fn send_singly(&mut self, events: &[TestEvent]) -> Result<(), Failed> {
        for (index, event) in events.iter().enumerate() {
            self.send(std::slice::from_ref(event))
                .map_err(|failed| Failed { index, failure: failed.failure })?;
        }
        Ok(())
    }

    /// A processor that started from the state before the batch and saw only the events before the
    /// failing one must be where this one is.
    fn check_unchanged(&self, before: Option<Saved>, batch: &Batch, handled: usize) {
        if before.is_none() {
            return;
        }
        let host = Arc::new(self.host.copy());
        let mut other = NativeInstance::<P>::load(host, self.context.clone(), before)
            .expect("a processor loads what it has just saved");
        let outcome = other.handle(&batch.arena, batch.first(handled));
        assert!(outcome.failure.is_none(), "the events before the failing one are handled again");
        assert!(
            other.snapshot() == self.instance.snapshot(),
            "the event that failed has changed the state; leave it as it was on an error"
        );
    }

    /// Calls `flush`.
    pub fn flush(&mut self, reason: FlushReason) -> Result<(), Failure> {
        match self.instance.flush(reason) {
            Ok(effects) => {
                self.apply(&effects, &[]);
                Ok(())
            }
            Err(failure) => Err(Failure { kind: failure.kind, message: failure.message }),
        }
    }

    /// Ends the instance and starts another from its snapshot, as after a crash. The error is what the
    /// processor refused with.
    pub fn restart(&mut self) -> Result<(), String> {
        let saved = self.saved();
        let instance = NativeInstance::load(self.host.clone(), self.context.clone(), saved.clone())?;
        self.instance = instance;
        assert!(self.saved() == saved, "a snapshot that was loaded gives another snapshot");
        Ok(())
    }

    /// What the processor would restart from; none for one that declares no state.
    pub fn saved(&self) -> Option<Saved> {
        let content_type = self.manifest.state_content_type.clone()?;
        let state = self.instance.snapshot();
        assert!(
            state == self.instance.snapshot(),
            "two snapshots in a row differ: is there a HashMap in it?"
        );
        Some(Saved { content_type, state })
    }

    /// The rows of a table, by key. Panics where the manifest has no such table.
    pub fn rows(&self, table: &str) -> &BTreeMap<String, Row> {
        &self.tables.get(table).unwrap_or_else(|| panic!("the manifest has no table `{table}`")).rows
    }

    /// One row.
    pub fn row(&self, table: &str, key: &str) -> Option<&Row> {
        self.rows(table).get(key)
    }

    /// What was emitted, in order, and ready to be sent to another driver.
    pub fn emitted(&self) -> &[TestEvent] {
        &self.emitted
    }

    /// What was appended to channels, in order. Every channel takes it here.
    pub fn appended(&self) -> &[Appended] {
        &self.appended
    }

    /// Writes to versioned tables that were left out as stale.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// The keyed state, entries included that are gone by now and that no event has asked for.
    pub fn state(&self) -> BTreeMap<Vec<u8>, StateValue> {
        self.host.state().clone()
    }

    /// What was logged.
    pub fn messages(&self) -> Vec<Message> {
        lock(&self.host.messages).clone()
    }

    /// The processor, for tests that look inside.
    pub fn processor(&self) -> &P {
        self.instance.processor()
    }

    /// `events` are those that were handled; none in `flush`.
    fn apply(&mut self, effects: &Effects, events: &[TestEvent]) {
        for record in EffectRecord::read_all(&effects.records) {
            let [key, aggregate, event_type, id, body] = parts(&record, &effects.arena);
            match record.kind {
                EffectKind::Put => {
                    let row = rows::read(&self.manifest, record.table, record.version, body);
                    self.write(&record, text(key), Some(row));
                }
                EffectKind::Delete => self.write(&record, text(key), None),
                EffectKind::StatePut => {
                    assert!(record.at >= 0, "an expiry is never before 1970");
                    let entry = StateValue { value: body.to_vec(), expires_at: from_wire(record.at) };
                    self.host.state().insert(key.to_vec(), entry);
                }
                EffectKind::StateDelete => {
                    self.host.state().remove(key);
                }
                EffectKind::Emit => {
                    let event = TestEvent::new(text(aggregate), text(key), record.version, text(event_type));
                    let cause = events.get(record.event as usize);
                    let id = if id.is_empty() { event.id.clone() } else { text(id).into() };
                    self.emitted.push(TestEvent {
                        id,
                        at: Timestamp(record.at),
                        schema_version: record.schema_version,
                        depth: cause.map_or(0, |cause| cause.depth) + 1,
                        scope: cause.map(|cause| cause.scope.clone()).unwrap_or_default(),
                        payload: body.to_vec(),
                        ..event
                    });
                }
                EffectKind::Append => self.appended.push(Appended {
                    process: text(key).into(),
                    channel: text(aggregate).into(),
                    entry_type: match event_type {
                        b"end" => EntryType::End,
                        b"error" => EntryType::Error,
                        _ => EntryType::Data,
                    },
                    in_reply_to: (record.version > 0).then_some(record.version),
                    error: (!id.is_empty()).then(|| text(id).into()),
                    payload: (record.schema_version > 0).then(|| body.to_vec()),
                }),
            }
        }
    }

    /// Writes or deletes a row, unless the table is versioned and has seen this version or a later one.
    fn write(&mut self, record: &EffectRecord, key: &str, row: Option<Row>) {
        let table = &self.manifest.tables[record.table as usize];
        let rows = self.tables.get_mut(&table.name).expect("every table of the manifest is kept");
        let stored = rows.rows.get(key).map(|row| row.version).max(rows.deleted.get(key).copied());
        if table.versioned && stored.is_some_and(|stored| record.version <= stored) {
            self.stale += 1;
            return;
        }
        match row {
            Some(row) => {
                rows.deleted.remove(key);
                rows.rows.insert(key.into(), row);
            }
            None => {
                rows.rows.remove(key);
                rows.deleted.insert(key.into(), record.version);
            }
        }
    }
}

/// Runs the events in one batch and one by one, and panics where the two differ.
pub fn batch_equals_singles<P: Processor>(events: &[TestEvent]) {
    let (mut batch, mut singles) = (Driver::<P>::new(), Driver::<P>::new());
    assert_eq!(batch.send(events), singles.send_singly(events), "the outcomes differ");
    assert_eq!(batch.tables, singles.tables, "the rows differ");
    assert_eq!(batch.emitted, singles.emitted, "the emitted events differ");
    assert_eq!(batch.appended, singles.appended, "the appended entries differ");
    assert_eq!(batch.state(), singles.state(), "the keyed states differ");
    assert!(batch.saved() == singles.saved(), "the snapshots differ");
}

/// Cuts an effect's five parts out of its arena.
fn parts<'a>(record: &EffectRecord, arena: &'a [u8]) -> [&'a [u8]; 5] {
    let mut start = record.start as usize;
    [record.key_bytes, record.aggregate_bytes, record.type_bytes, record.id_bytes, record.body_bytes].map(
        |bytes| {
            let part = &arena[start..start + bytes as usize];
            start += bytes as usize;
            part
        },
    )
}

/// Keyed state, settings and messages.
#[derive(Debug)]
struct FakeHost {
    config: BTreeMap<String, String>,
    state: Mutex<BTreeMap<Vec<u8>, StateValue>>,
    messages: Mutex<Vec<Message>>,
}

impl FakeHost {
    fn state(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, StateValue>> {
        lock(&self.state)
    }

    fn copy(&self) -> Self {
        Self {
            config: self.config.clone(),
            state: Mutex::new(self.state().clone()),
            messages: Mutex::new(Vec::new()),
        }
    }
}

/// A test that panicked elsewhere must not hide what this one is about.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host for FakeHost {
    fn state_get(&self, key: &[u8]) -> Option<StateValue> {
        self.state().get(key).cloned()
    }

    fn state_scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> StatePage {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let state = self.state();
        let matching =
            state.range::<[u8], _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        let (mut page, mut bytes) = (StatePage::default(), 0);
        for (key, StateValue { value, expires_at }) in matching {
            let next = key.len() + value.len();
            let full = page.entries.len() >= limit.min(SCAN_ENTRIES_MAX) as usize;
            page.more = full || !page.entries.is_empty() && bytes + next > SCAN_BYTES_MAX;
            if page.more {
                break;
            }
            bytes += next;
            page.entries.push(Entry { key: key.clone(), value: value.clone(), expires_at: *expires_at });
        }
        page
    }

    fn config_get(&self, name: &str) -> Option<String> {
        self.config.get(name).cloned()
    }

    fn log(&self, level: Level, message: &str) {
        lock(&self.messages).push(Message { level, text: message.into() });
    }
}
