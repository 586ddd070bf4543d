//! A processor in plain Rust that does what its events tell it to: counts per
//! aggregate id, and misbehaves on request. Its state is the counts.
//!
//! Event types: `add` counts and writes a row · `reject`, `fatal` fail so ·
//! `retry` fails until it has been tried as often as its payload says, over all
//! instances · `trap` falls over ·
//! `panic` panics the first time, as the host's own code may · `trap-in-snapshot` falls at the next snapshot ·
//! `emit` emits an `add` for the aggregate id `emitted` · `steal` writes the row
//! of another key · `remember` appends its agg_id to the keyed entry `seen` · `append` appends to a channel what its
//! payload says ([`Appends`]) · `later` keeps that in its state and appends it in the next flush · `sum` emits like
//! `emit`, and not before the next tick.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::checkpoints::{ChannelGrant, EffectBatch, EffectKind, EffectRecord, SavedState};
use millrace::event::{Event, EventBatch, TenantId};
use millrace::processors::{
    Failure, FailureKind, FlushReason, LoadError, Manifest, OrderingKey, Outcome, Processor,
    ProcessorFactory, Subscription, TaskContext, Trap, TrapKind, call_is_long,
};
use millrace::tables::{Cell, CellsBuilder, Column, ColumnType, TableSchema};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What a test sees of all instances of a scripted processor.
#[derive(Debug, Default)]
pub struct Watch {
    /// Every event handed in, in order: (tenant, lane, agg_id, version).
    pub handled: Mutex<Vec<(String, u32, String, u64)>>,
    pub tries: Mutex<BTreeMap<String, u32>>,
    pub instances: AtomicU32,
    pub flushes: AtomicU32,
    /// Flushes for a swap, by tenant.
    pub swaps: Mutex<BTreeMap<String, u32>>,
    /// This tenant's flushes fail while it is set.
    pub flush_fails: Mutex<Option<TenantId>>,
    /// Instances of this tenant wait while it is set.
    pub held: Mutex<Option<TenantId>>,
    /// While they wait, they say that their call is long.
    pub long: AtomicBool,
    /// The thread of the last call for each tenant.
    pub threads: Mutex<BTreeMap<String, String>>,
    pub loaded_bytes: AtomicU64,
    /// While it is set, a tick counts the key `ticks` in the state, and has no effect.
    pub ticks_count: AtomicBool,
    pub counted_ticks: AtomicU32,
}

/// Makes scripted processors. `version` shows in the digest and in the rows.
#[derive(Debug)]
pub struct Scripted {
    pub manifest: Manifest,
    pub digest: String,
    pub refuses_state: bool,
    pub flaw: Option<Flaw>,
    pub watch: Arc<Watch>,
}

/// How a version is bad, whatever its events say. Each shows at an instance's `after`th event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub kind: FlawKind,
    pub after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlawKind {
    Traps,
    HangsUntilCut,
    BreaksALimit,
    /// Works for ten milliseconds on each event, and what it waits for a core is not among them.
    Slow,
    /// Waits for half a second in each call, from the first on.
    TakesItsTime,
    /// The same, of two milliseconds.
    TakesAMoment,
    /// Keeps a mebibyte of each event.
    Leaks,
    /// Counts one too many in its rows, not in its state.
    WrongRows,
    Rejects,
    Stops,
    TrapsInSnapshot,
    ImpureSnapshot,
    /// Does not load what it has given itself.
    ForgetsItsFormat,
}

impl Scripted {
    pub fn new(name: &str, version: u64) -> Self {
        let manifest = Manifest {
            name: name.into(),
            version: semver::Version::new(version, 0, 0),
            summary: "does what its events say".into(),
            state_content_type: Some("application/vnd.scripted+json".into()),
            ordering_key: OrderingKey::Aggregate,
            subscription: Subscription { types: vec![], aggregates: vec!["thing".into()] },
            tables: vec![table()],
            grants: vec![],
            flush_interval_ms: None,
            changes: Vec::new(),
        };
        Self {
            manifest,
            digest: format!("{name}-{version}"),
            refuses_state: false,
            flaw: None,
            watch: Arc::default(),
        }
    }
}

/// The table that scripted processors write: how often a key was added, and by which version last.
pub fn table() -> TableSchema {
    let column = |name: &str| Column {
        name: name.into(),
        column_type: ColumnType::Int,
        nullable: false,
        filterable: true,
        sortable: true,
    };
    TableSchema {
        name: "counts".into(),
        columns: vec![column("count"), column("by")],
        versioned: false,
        window_rows_max: 1_000,
    }
}

impl ProcessorFactory for Scripted {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        self.watch.instances.fetch_add(1, Ordering::SeqCst);
        let version = i64::try_from(self.manifest.version.major).unwrap_or(0);
        Ok(Box::new(Instance {
            manifest: self.manifest.clone(),
            version,
            refuses_state: self.refuses_state,
            flaw: self.flaw,
            seen: 0,
            snapshots: 0,
            watch: Arc::clone(&self.watch),
            context,
            state: State::default(),
            snapshot_traps: false,
        }))
    }
}

struct Instance {
    manifest: Manifest,
    version: i64,
    refuses_state: bool,
    flaw: Option<Flaw>,
    seen: u32,
    snapshots: u8,
    watch: Arc<Watch>,
    context: TaskContext,
    state: State,
    snapshot_traps: bool,
}

/// What a scripted processor saves: how often each key was added, and which versions of each key were
/// applied, in that order.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    counts: BTreeMap<String, i64>,
    applied: BTreeMap<String, Vec<u64>>,
    /// What the next flush appends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    later: Vec<String>,
    /// What the next tick emits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sums: Vec<String>,
}

/// How often a saved state says that each key was counted.
pub fn counted(state: &[u8]) -> BTreeMap<String, i64> {
    serde_json::from_slice::<State>(state).expect("scripted states are JSON").counts
}

/// The versions that a saved state says were applied, by key.
pub fn applied(state: &[u8]) -> BTreeMap<String, Vec<u64>> {
    serde_json::from_slice::<State>(state).expect("scripted states are JSON").applied
}

/// What an event of type `append` has appended.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Appends {
    pub process: String,
    pub channel: String,
    #[serde(rename = "type")]
    pub entry_type: String,
    pub error: String,
    pub text: Option<String>,
    pub reply: u64,
    /// So many of it, one behind the other.
    pub times: u32,
}

impl Default for Appends {
    fn default() -> Self {
        Self {
            process: "p".into(),
            channel: "c".into(),
            entry_type: "data".into(),
            error: String::new(),
            text: None,
            reply: 0,
            times: 1,
        }
    }
}

/// Effects of one call, as a guest would lay them out.
#[derive(Default)]
struct Out {
    arena: Vec<u8>,
    records: Vec<EffectRecord>,
}

impl Out {
    fn push(&mut self, kind: EffectKind, event: usize, parts: [&[u8]; 4]) {
        let [key, aggregate, event_type, body] = parts;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("test effects are small");
        self.records.push(EffectRecord {
            kind,
            table: 0,
            event: u32::try_from(event).expect("test batches are small"),
            version: 1,
            at: 0,
            schema_version: 1,
            start: length(&self.arena),
            key_bytes: length(key),
            aggregate_bytes: length(aggregate),
            type_bytes: length(event_type),
            id_bytes: 0,
            body_bytes: length(body),
            depth: 0,
        });
        for part in parts {
            self.arena.extend_from_slice(part);
        }
    }

    fn append(&mut self, event: usize, entry: &Appends) {
        let text = entry.text.as_deref().unwrap_or_default();
        let parts = [entry.process.as_bytes(), entry.channel.as_bytes(), entry.entry_type.as_bytes()];
        // The text of an error stands before the payload.
        let rest = [entry.error.as_bytes(), text.as_bytes()].concat();
        self.push(EffectKind::Append, event, [parts[0], parts[1], parts[2], &rest]);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("test effects are small");
        if let Some(record) = self.records.last_mut() {
            record.version = entry.reply;
            record.schema_version = u32::from(entry.text.is_some());
            (record.id_bytes, record.body_bytes) = (length(entry.error.as_bytes()), length(text.as_bytes()));
        }
    }
}

impl Instance {
    /// Whether it shows this flaw by now.
    fn shows(&self, kind: FlawKind) -> bool {
        self.flaw.is_some_and(|flaw| flaw.kind == kind && self.seen >= flaw.after)
    }

    fn stumble(&mut self) -> Result<Result<(), Failure>, Trap> {
        self.seen += 1;
        let trap = |kind, message: &str| Err(Trap::new(kind, message));
        let fail = |kind| Ok(Err(Failure { kind, message: "it is made so".into() }));
        match self.flaw.filter(|flaw| self.seen >= flaw.after).map(|flaw| flaw.kind) {
            Some(FlawKind::Traps) => trap(TrapKind::Trap, "made to fall"),
            Some(FlawKind::HangsUntilCut) => trap(TrapKind::Timeout, "made to hang"),
            Some(FlawKind::BreaksALimit) => trap(TrapKind::Limit, "made to take too much"),
            Some(FlawKind::Rejects) => fail(FailureKind::Reject),
            Some(FlawKind::Stops) => fail(FailureKind::Fatal),
            Some(FlawKind::Slow) => {
                let until = worked() + Duration::from_millis(10);
                while worked() < until {
                    std::hint::spin_loop();
                }
                Ok(Ok(()))
            }
            _ => Ok(Ok(())),
        }
    }

    fn one(&mut self, index: usize, event: &Event<'_>, out: &mut Out) -> Result<Result<(), Failure>, Trap> {
        let place =
            (self.context.tenant.to_string(), self.context.lane, event.agg_id.to_owned(), event.version);
        self.watch.handled.lock().expect("test").push(place);
        if let Err(failure) = self.stumble()? {
            return Ok(Err(failure));
        }
        let fail = |kind, message: &str| Ok(Err(Failure { kind, message: message.into() }));
        match event.event_type {
            "reject" => return fail(FailureKind::Reject, "told to reject"),
            "fatal" => return fail(FailureKind::Fatal, "told to stop"),
            "retry" => {
                let wanted: u32 = serde_json::from_slice(event.payload).unwrap_or(u32::MAX);
                let mut tries = self.watch.tries.lock().expect("test");
                let tried = tries.entry(event.id.to_owned()).or_default();
                *tried += 1;
                if *tried <= wanted {
                    return fail(FailureKind::Retry, "told to retry");
                }
            }
            "panic" => {
                let mut tries = self.watch.tries.lock().expect("test");
                let tried = tries.entry(event.id.to_owned()).or_default();
                *tried += 1;
                let first = *tried == 1;
                drop(tries);
                assert!(!first, "told to panic");
            }
            "trap" => {
                return Err(Trap::new(TrapKind::Trap, "told to fall"));
            }
            "trap-in-snapshot" => self.snapshot_traps = true,
            "emit" => {
                let version = event.version.to_string();
                let agg_id = format!("emitted-{}-{version}", event.agg_id);
                out.push(EffectKind::Emit, index, [agg_id.as_bytes(), b"thing", b"add", b"null"]);
            }
            "remember" => {
                let found = self.context.state.get(b"seen").expect("state can be read");
                let mut seen = found.unwrap_or_default().value;
                for record in out.records.iter().filter(|r| r.kind == EffectKind::StatePut) {
                    let body = (record.start + record.key_bytes) as usize;
                    seen = out.arena[body..body + record.body_bytes as usize].to_vec();
                }
                seen.extend_from_slice(event.agg_id.as_bytes());
                out.push(EffectKind::StatePut, index, [b"seen", b"", b"", &seen]);
            }
            "append" => {
                let entry: Appends = serde_json::from_slice(event.payload).expect("a good payload");
                for _ in 0..entry.times {
                    out.append(index, &entry);
                }
            }
            "later" => {
                let payload = String::from_utf8(event.payload.to_vec()).expect("a good payload");
                self.state.later.push(payload);
            }
            "sum" => self.state.sums.push(format!("emitted-{}-{}", event.agg_id, event.version)),
            _ => {}
        }
        self.state.applied.entry(event.agg_id.to_owned()).or_default().push(event.version);
        let count = self.state.counts.entry(event.agg_id.to_owned()).or_default();
        *count += 1;
        let count = *count + i64::from(self.shows(FlawKind::WrongRows));
        let key = if event.event_type == "steal" { "stolen" } else { event.agg_id };
        let mut row = CellsBuilder::default();
        row.push(Cell::Int(count)).push(Cell::Int(self.version));
        for _ in self.manifest.tables[0].columns.iter().skip(2) {
            row.push(Cell::Null);
        }
        let row = row.finish();
        out.push(EffectKind::Put, index, [key.as_bytes(), b"", b"", &row]);
        Ok(Ok(()))
    }
}

impl Processor for Instance {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        let Some(saved) = saved else { return Ok(()) };
        if saved.state.starts_with(b"new ") {
            return Err(LoadError::Refused { message: "this format is not known".into() });
        }
        if self.refuses_state {
            return Err(LoadError::Refused { message: "told to refuse".into() });
        }
        self.watch.loaded_bytes.store(saved.state.len() as u64, Ordering::SeqCst);
        self.state = serde_json::from_slice(&saved.state)
            .map_err(|error| LoadError::Refused { message: error.to_string() })?;
        Ok(())
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        self.watch.threads.lock().expect("test").insert(self.context.tenant.to_string(), thread);
        while self.watch.held.lock().expect("test").as_ref() == Some(&self.context.tenant) {
            if self.watch.long.load(Ordering::SeqCst) {
                call_is_long();
            }
            std::thread::yield_now();
        }
        match self.flaw.map(|flaw| flaw.kind) {
            Some(FlawKind::TakesItsTime) => std::thread::sleep(Duration::from_millis(500)),
            Some(FlawKind::TakesAMoment) => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
        let mut out = Out::default();
        let mut handled = 0;
        let mut failure = None;
        for (index, event) in batch.iter().enumerate() {
            match self.one(index, &event, &mut out)? {
                Ok(()) => handled += 1,
                Err(failed) => {
                    failure = Some(failed);
                    break;
                }
            }
        }
        let depths: Vec<u32> = batch.records().iter().map(|r| r.depth).collect();
        let (tables, all) = (&self.manifest.tables, ChannelGrant::all());
        let effects = EffectBatch::check_granted(out.arena, out.records, tables, &depths, &all)
            .map_err(|error| Trap::new(TrapKind::Output, error.to_string()))?;
        Ok(Outcome { handled, effects, failure })
    }

    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        if reason == FlushReason::Tick {
            self.watch.flushes.fetch_add(1, Ordering::SeqCst);
            if self.watch.ticks_count.load(Ordering::SeqCst) {
                *self.state.counts.entry("ticks".into()).or_default() += 1;
                self.watch.counted_ticks.fetch_add(1, Ordering::SeqCst);
            }
        }
        let tenant = &self.context.tenant;
        if reason == FlushReason::Swap {
            *self.watch.swaps.lock().expect("test").entry(tenant.to_string()).or_default() += 1;
        }
        if self.watch.flush_fails.lock().expect("test").as_ref() == Some(tenant) {
            return Ok(Err(Failure { kind: FailureKind::Retry, message: "told to fail".into() }));
        }
        let mut out = Out::default();
        if reason == FlushReason::Tick {
            for agg_id in std::mem::take(&mut self.state.sums) {
                out.push(EffectKind::Emit, 0, [agg_id.as_bytes(), b"thing", b"add", b"null"]);
            }
        }
        for payload in std::mem::take(&mut self.state.later) {
            out.append(0, &serde_json::from_str(&payload).expect("a good payload"));
        }
        let (tables, all) = (&self.manifest.tables, ChannelGrant::all());
        let effects = EffectBatch::check_granted(out.arena, out.records, tables, &[], &all)
            .map_err(|error| Trap::new(TrapKind::Output, error.to_string()))?;
        Ok(Ok(effects))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        if self.snapshot_traps {
            return Err(Trap::new(TrapKind::Trap, "told to fall in snapshot"));
        }
        if self.shows(FlawKind::TrapsInSnapshot) {
            return Err(Trap::new(TrapKind::Limit, "made to be too large"));
        }
        let mut state = serde_json::to_vec(&self.state).expect("the state is JSON");
        if self.shows(FlawKind::ImpureSnapshot) {
            self.snapshots = self.snapshots.wrapping_add(1);
            state.extend(std::iter::repeat_n(b' ', 1 + usize::from(self.snapshots)));
        }
        if self.shows(FlawKind::ForgetsItsFormat) {
            state.splice(0..0, *b"new ");
        }
        Ok(state)
    }

    fn memory_bytes(&self) -> u64 {
        let kept = if self.shows(FlawKind::Leaks) { self.seen } else { 0 };
        (1 << 20) + (u64::from(kept) << 20)
    }
}

/// How long this thread has had a core.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("it does not run backwards");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("less than a second of nanoseconds fits"))
}
