//! Upcasting: payloads of earlier schema versions in the shape that consumers know.
//!
//! A step takes the payload of one event type from one schema version to the
//! next. Steps are applied in order, from the version that an event was
//! published with, until there is none; the log keeps what was published, and
//! every consumer (processors, tails, change streams, pages) sees the result.
//! An event whose step fails stays as it was published: it is counted, said in
//! the log, and its schema version tells the consumer.
//!
//! Which change streams an event is in is decided by its payload as it was
//! published, before any step: a scope by a field reads the name that the
//! field had then. Where an upcast renames such a field, events of the earlier
//! schema version are found in that scope's streams only if the scope was
//! declared with the earlier name, too.

mod declared;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use declared::{DeclaredUpcast, UpcastStep};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::counter;

use super::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, LogView, PageLimit, Retention, StreamError,
    StreamName, StreamPage, Tail,
};
use crate::cluster::Fence;
use crate::event::{Epoch, Event, EventBatch, Micros, Page, Position, TenantId};
use crate::limits::EVENT_PAYLOAD_BYTES_MAX;
use crate::telemetry::metrics::UPCASTS_FAILED;

/// Takes a payload one schema version further. Pure: the same payload gives the same result.
pub type Upcast = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// The steps, by event type and the schema version that they start from.
#[derive(Clone, Default)]
pub struct Upcasters {
    steps: HashMap<String, HashMap<u32, Upcast>>,
}

/// Why a step is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUpcast {
    #[error("an upcast names no event type")]
    Type,
    #[error("the upcast of `{event_type}` starts from schema version 0; they count from 1")]
    Version { event_type: String },
    #[error("the upcast of `{event_type}` starts from schema version {}, the last there can be", u32::MAX)]
    Last { event_type: String },
    #[error("`{event_type}` has two upcasts from schema version {from}")]
    Twice { event_type: String, from: u32 },
    #[error(
        "the upcasts of `{event_type}` have a gap: none takes it from schema version {missing} to {}", missing + 1
    )]
    Gap { event_type: String, missing: u32 },
    #[error("the upcast of `{event_type}` from schema version {from}: {why}")]
    Step { event_type: String, from: u32, why: String },
}

impl Upcasters {
    /// Adds the step of an event type from a schema version to the one after it.
    pub fn register(
        &mut self,
        event_type: &str,
        from: u32,
        step: impl Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Result<(), InvalidUpcast> {
        if event_type.is_empty() {
            return Err(InvalidUpcast::Type);
        }
        let event_type = event_type.to_owned();
        if from == 0 {
            return Err(InvalidUpcast::Version { event_type });
        }
        if from == u32::MAX {
            return Err(InvalidUpcast::Last { event_type });
        }
        if self.steps.get(&event_type).is_some_and(|steps| steps.contains_key(&from)) {
            return Err(InvalidUpcast::Twice { event_type, from });
        }
        self.steps.entry(event_type).or_default().insert(from, Arc::new(step));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The payload and schema version that consumers see; none where the event stays as it is. An error says
    /// which step failed, and why.
    pub fn apply(&self, event: &Event<'_>) -> Result<Option<(Vec<u8>, u32)>, String> {
        let Some(steps) = self.steps.get(event.event_type) else { return Ok(None) };
        let mut done: Option<(Vec<u8>, u32)> = None;
        loop {
            let (payload, version) =
                done.as_ref().map_or((event.payload, event.schema_version), |(p, v)| (p.as_slice(), *v));
            let Some(step) = steps.get(&version) else { return Ok(done) };
            // It runs where the log is written: a panic in it must not end that.
            let next = catch_unwind(AssertUnwindSafe(|| step(payload)))
                .unwrap_or_else(|_| Err("it panicked".to_owned()));
            let next = next.map_err(|why| format!("from schema version {version}: {why}"))?;
            if next.len() > EVENT_PAYLOAD_BYTES_MAX {
                let bytes = next.len();
                return Err(format!(
                    "from schema version {version}: {bytes} bytes are over event_payload_bytes_max = {EVENT_PAYLOAD_BYTES_MAX}"
                ));
            }
            // No step starts from the last version, so this ends.
            done = Some((next, version.saturating_add(1)));
        }
    }

    /// A batch as consumers see it; none where all of it stays as it is.
    pub fn batch(&self, batch: &EventBatch) -> Option<EventBatch> {
        if !(0..batch.len()).any(|index| self.steps.contains_key(batch.routing(index).1)) {
            return None;
        }
        let mut seen = EventBatch::with_capacity(batch.tenant.clone(), batch.len(), batch.bytes());
        for (index, event) in batch.iter().enumerate() {
            match self.apply(&event) {
                Ok(None) => seen.push_from(batch, index),
                Ok(Some((payload, schema_version))) => {
                    seen.push_checked(&Event { payload: &payload, schema_version, ..event });
                }
                Err(why) => {
                    counter!(UPCASTS_FAILED).increment(1);
                    tracing::warn!(
                        error.kind = "upcast_failed",
                        error.blame = "host",
                        stream.position = event.position.0,
                        event.r#type = event.event_type,
                        why,
                        "an event could not be upcast and stays as it was published"
                    );
                    seen.push_from(batch, index);
                }
            }
        }
        for mark in batch.marks() {
            seen.mark(mark.index as usize, Arc::clone(&mark.stream));
        }
        Some(seen)
    }

    pub(super) fn shared(&self, batch: Arc<EventBatch>) -> Arc<EventBatch> {
        self.batch(&batch).map_or(batch, Arc::new)
    }
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.iter().map(|(event_type, steps)| (event_type, steps.len()));
        f.debug_map().entries(steps).finish()
    }
}

/// A log as its consumers see it. Appends, and what is compared with them, are the log's own.
#[derive(Clone, Debug)]
pub struct UpcastLog {
    log: Arc<dyn EventLog>,
    upcasters: Arc<Upcasters>,
}

impl UpcastLog {
    /// Also the log's tail shows upcast events from now on.
    pub fn new(log: Arc<dyn EventLog>, upcasters: Arc<Upcasters>) -> Self {
        log.tail().upcast(Arc::clone(&upcasters));
        Self { log, upcasters }
    }
}

impl EventLog for UpcastLog {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.log.append(batch)
    }

    fn append_fenced(
        &self,
        batch: EventBatch,
        fence: &Fence,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.log.append_fenced(batch, fence)
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        let page = self.log.read(tenant, after, limit);
        async move {
            let page = page.await?;
            Ok(Page { events: self.upcasters.shared(page.events), ..page })
        }
        .boxed()
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.log.append_to(stream, batch)
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        let page = self.log.read_stream(tenant, stream, after, limit);
        async move {
            let page = page.await?;
            Ok(StreamPage { events: self.upcasters.shared(page.events), ..page })
        }
        .boxed()
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        self.log.declare_scopes(owner, declarations)
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.log.scopes()
    }

    fn appended_at(
        &self,
        tenant: &TenantId,
        after: Position,
    ) -> BoxFuture<'_, Result<Option<Micros>, StreamError>> {
        self.log.appended_at(tenant, after)
    }

    fn bounds(&self) -> Bounds {
        self.log.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn view(&self) -> LogView {
        self.log.view()
    }

    fn tail(&self) -> &Tail {
        self.log.tail()
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.log.tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        self.log.trim(retention)
    }
}
