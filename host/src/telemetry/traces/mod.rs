//! Traces: from a publish through the log and the guests to the commit.
//!
//! Promises: without a configured collector there is no [`tracer`], and asking
//! for it is one load; recording a span never waits: what the bounded queue does
//! not hold is dropped and counted; a collector that is away costs its spans and
//! nothing else. Spans are recorded whole, when they have ended, so that one may
//! begin on a guest thread and end in a commit's answer. Deliberately absent:
//! spans of what is not sampled; whether a trace is, its root decides.

mod context;
mod export;

use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

pub use context::{TraceContext, contexts_of, parse_traceparent};
pub use export::{Exporter, OtlpOptions};

use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

use super::metrics::SPANS_DROPPED;
use crate::clock::{Clock as _, SystemClock};
use crate::event::Micros;

static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Where spans go; none unless a collector is configured.
pub fn tracer() -> Option<&'static Tracer> {
    TRACER.get()
}

/// Records spans for the exporter.
#[derive(Debug)]
pub struct Tracer {
    queue: mpsc::Sender<SpanData>,
    scope: InstrumentationScope,
    sample_ratio: f64,
}

/// A span that has ended.
#[derive(Debug)]
pub struct Span {
    pub name: &'static str,
    pub context: TraceContext,
    pub parent: Option<TraceContext>,
    pub began: Micros,
    /// Fields by their names in [`super::fields`].
    pub fields: Vec<KeyValue>,
    /// Other traces that this span worked for.
    pub links: Vec<TraceContext>,
    pub failure: Option<SpanFailure>,
}

/// Why what the span tells of failed.
#[derive(Clone, Debug)]
pub struct SpanFailure {
    /// The error's stable code.
    pub kind: String,
    pub blame: crate::error::Blame,
    pub message: String,
}

impl Tracer {
    fn new(queue: mpsc::Sender<SpanData>, sample_ratio: f64) -> Self {
        let scope = InstrumentationScope::builder("millrace").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { queue, scope, sample_ratio }
    }

    /// The time as spans tell it.
    pub fn now(&self) -> Micros {
        SystemClock.now()
    }

    /// A new trace, if the ratio takes this one.
    pub fn root(&self) -> Option<TraceContext> {
        let ids = RandomIdGenerator::default();
        let trace_id = ids.new_trace_id();
        // As the OpenTelemetry SDKs do it: the id decides, so that all of them decide alike.
        let bytes = trace_id.to_bytes();
        let low = u64::from_be_bytes(bytes[8..].try_into().expect("eight bytes"));
        let share = (low >> 11) as f64 / (1_u64 << 53) as f64;
        (share < self.sample_ratio).then(|| TraceContext { trace_id, span_id: ids.new_span_id() })
    }

    /// A place for a new span in the trace of another.
    pub fn child(&self, parent: TraceContext) -> TraceContext {
        TraceContext { span_id: RandomIdGenerator::default().new_span_id(), ..parent }
    }

    /// Hands a span over, which ends now. Never waits.
    pub fn record(&self, span: Span) {
        let mut fields = span.fields;
        let status = match span.failure {
            None => Status::Unset,
            Some(failure) => {
                fields.push(KeyValue::new(super::fields::ERROR_KIND, failure.kind));
                fields.push(KeyValue::new(super::fields::ERROR_BLAME, failure.blame.as_str()));
                Status::error(failure.message)
            }
        };
        let mut links = SpanLinks::default();
        links.links = span.links.into_iter().map(|other| Link::with_context(sampled(other))).collect();
        let data = SpanData {
            span_context: sampled(span.context),
            parent_span_id: span.parent.map_or(opentelemetry::trace::SpanId::INVALID, |p| p.span_id),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: system_time(span.began),
            end_time: system_time(self.now().max(span.began)),
            attributes: fields,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status,
            instrumentation_scope: self.scope.clone(),
        };
        if self.queue.try_send(data).is_err() {
            dropped("queue_full", 1);
        }
    }
}

/// A field of a span. The name comes from [`super::fields`].
pub fn field(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}

/// A number as a field; beyond what OpenTelemetry can say it is the largest it can.
pub fn number(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

fn dropped(reason: &'static str, spans: usize) {
    metrics::counter!(SPANS_DROPPED, "reason" => reason).increment(spans as u64);
}

fn sampled(context: TraceContext) -> SpanContext {
    let TraceContext { trace_id, span_id } = context;
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn system_time(at: Micros) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(at.0).unwrap_or(0))
}
