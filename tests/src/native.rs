//! A plugin's own code as a processor, without WebAssembly: what the component is compared with.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use millrace::checkpoints::{ChannelGrant, EffectBatch, EffectRecord, SavedState, ScanLimit};
use millrace::event::EventBatch;
use millrace::processors::{
    Failure, FailureKind, FlushReason, LoadError, Manifest, OrderingKey, Outcome, Processor,
    ProcessorFactory, StateReader, Subscription, TaskContext, Trap, TrapKind,
};
use millrace::streams::{AggregateScopes, Scope};
use millrace::tables::{Column, ColumnType, TableSchema};
use millrace_guest::native::{Host, NativeInstance};
use millrace_guest::{Entry, StatePage, StateValue, Timestamp, wire};

/// Makes native instances of a plugin.
pub struct Native<P> {
    manifest: Manifest,
    digest: String,
    settings: Arc<BTreeMap<String, String>>,
    plugin: PhantomData<fn() -> P>,
}

impl<P> Debug for Native<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Native").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl<P: millrace_guest::Processor> Native<P> {
    pub fn new() -> Self {
        let manifest = manifest(P::manifest().to_wire());
        let digest = format!("native-{}-{}", manifest.name, manifest.version);
        Self { manifest, digest, settings: Arc::default(), plugin: PhantomData }
    }

    /// The same with settings of an operator.
    #[must_use]
    pub fn with_settings(self, settings: BTreeMap<String, String>) -> Self {
        Self { settings: Arc::new(settings), ..self }
    }
}

impl<P: millrace_guest::Processor> Default for Native<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: millrace_guest::Processor + Send> ProcessorFactory for Native<P> {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        Ok(Box::new(Instance::<P> {
            manifest: self.manifest.clone(),
            settings: Arc::clone(&self.settings),
            context,
            inner: None,
            records: Vec::new(),
            depths: Vec::new(),
        }))
    }
}

struct Instance<P> {
    manifest: Manifest,
    settings: Arc<BTreeMap<String, String>>,
    context: TaskContext,
    inner: Option<NativeInstance<P>>,
    records: Vec<u8>,
    depths: Vec<u32>,
}

/// Keyed state, from the host's seam, and settings.
#[derive(Debug)]
struct State {
    entries: Arc<dyn StateReader>,
    settings: Arc<BTreeMap<String, String>>,
}

impl Host for State {
    fn config_get(&self, name: &str) -> Option<String> {
        self.settings.get(name).cloned()
    }

    fn state_get(&self, key: &[u8]) -> Option<StateValue> {
        let found = self.entries.get(key).expect("the store can be read")?;
        Some(StateValue { value: found.value, expires_at: found.expires_at.map(|at| Timestamp(at.0)) })
    }

    fn state_scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> StatePage {
        let page = self.entries.scan(prefix, after, ScanLimit::new(limit)).expect("the store can be read");
        let entry = |entry: millrace::checkpoints::StateEntry| Entry {
            key: entry.key,
            value: entry.value,
            expires_at: entry.expires_at.map(|at| Timestamp(at.0)),
        };
        StatePage { entries: page.entries.into_iter().map(entry).collect(), more: page.more }
    }
}

impl<P: millrace_guest::Processor> Instance<P> {
    fn effects(&self, effects: wire::Effects) -> Result<EffectBatch, Trap> {
        let (tables, all) = (&self.manifest.tables, ChannelGrant::all());
        EffectRecord::read_wire(&effects.records)
            .and_then(|records| {
                EffectBatch::check_granted(effects.arena, records, tables, &self.depths, &all)
            })
            .map_err(|error| Trap::new(TrapKind::Output, error.to_string()))
    }

    fn inner(&mut self) -> &mut NativeInstance<P> {
        self.inner.as_mut().expect("`load` comes first")
    }
}

impl<P: millrace_guest::Processor + Send> Processor for Instance<P> {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        let context = millrace_guest::Context {
            tenant: self.context.tenant.to_string(),
            lane: self.context.lane,
            lanes: self.context.lanes,
        };
        let saved = saved
            .map(|s| millrace_guest::Saved { content_type: s.content_type.clone(), state: s.state.clone() });
        let (entries, settings) = (Arc::clone(&self.context.state), Arc::clone(&self.settings));
        let host = Arc::new(State { entries, settings });
        let inner =
            NativeInstance::load(host, context, saved).map_err(|message| LoadError::Refused { message })?;
        self.inner = Some(inner);
        Ok(())
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let mut records = std::mem::take(&mut self.records);
        records.clear();
        batch.records().iter().for_each(|record| record.write_wire(&mut records));
        self.depths.clear();
        self.depths.extend(batch.records().iter().map(|r| r.depth));
        let outcome = self.inner().handle(batch.arena(), &records);
        self.records = records;
        let mut effects = self.effects(outcome.effects)?;
        effects.carry_on(batch);
        Ok(Outcome { handled: outcome.handled as usize, effects, failure: outcome.failure.map(failure) })
    }

    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        let reason = match reason {
            FlushReason::Tick => millrace_guest::FlushReason::Tick,
            FlushReason::Shutdown => millrace_guest::FlushReason::Shutdown,
            FlushReason::Swap => millrace_guest::FlushReason::Swap,
        };
        self.depths.clear();
        match self.inner().flush(reason) {
            Ok(effects) => Ok(Ok(self.effects(effects)?)),
            Err(failed) => Ok(Err(failure(failed))),
        }
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        Ok(self.inner().snapshot())
    }
}

fn failure(f: wire::Failure) -> Failure {
    let kind = match f.kind {
        wire::FailureKind::Retry => FailureKind::Retry,
        wire::FailureKind::Reject => FailureKind::Reject,
        wire::FailureKind::Fatal => FailureKind::Fatal,
    };
    Failure { kind, message: f.message }
}

fn manifest(m: wire::Manifest) -> Manifest {
    let column = |c: wire::Column| Column {
        name: c.name,
        column_type: match c.type_ {
            wire::ColumnType::Bool => ColumnType::Bool,
            wire::ColumnType::Int => ColumnType::Int,
            wire::ColumnType::Float => ColumnType::Float,
            wire::ColumnType::Text => ColumnType::Text,
            wire::ColumnType::Bytes => ColumnType::Bytes,
            wire::ColumnType::Json => ColumnType::Json,
            wire::ColumnType::Timestamp => ColumnType::Timestamp,
        },
        nullable: c.nullable,
        filterable: c.filterable,
        sortable: c.sortable,
    };
    let table = |t: wire::Table| TableSchema {
        name: t.name,
        columns: t.columns.into_iter().map(column).collect(),
        versioned: t.versioned,
        window_rows_max: t.window_rows_max,
    };
    Manifest {
        name: m.name,
        version: m.version.parse().expect("a plugin has a semantic version"),
        summary: m.summary,
        state_content_type: m.state_content_type,
        ordering_key: match m.ordering_key {
            wire::OrderingKey::Aggregate => OrderingKey::Aggregate,
            wire::OrderingKey::PayloadField(field) => OrderingKey::PayloadField(field),
            wire::OrderingKey::Single => OrderingKey::Single,
        },
        subscription: Subscription { types: m.subscription.types, aggregates: m.subscription.aggregates },
        tables: m.tables.into_iter().map(table).collect(),
        grants: m.grants,
        flush_interval_ms: m.flush_interval_ms,
        changes: m.changes.into_iter().map(scopes_of).collect(),
    }
}

fn scopes_of(declared: wire::ChangeScopes) -> AggregateScopes {
    let scope = |scope| match scope {
        wire::ChangeScope::Id => Scope::Id,
        wire::ChangeScope::Tenant => Scope::Tenant,
        wire::ChangeScope::Field(wire::ChangeField { name, member }) => Scope::Field { name, member },
    };
    AggregateScopes {
        aggregate: declared.aggregate,
        scopes: declared.scopes.into_iter().map(scope).collect(),
    }
}
