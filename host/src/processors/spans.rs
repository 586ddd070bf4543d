//! A call of `handle` and a commit, as metrics and traces see them.
//!
//! Spans: `lane.batch` (child of the first sampled trace that an event of the
//! batch carries, linked to the others), in it `guest.handle`; `checkpoint.commit`
//! below the first `lane.batch` that it makes durable, linked to the others.
//! Without a collector, or without a sampled event, nothing of this is built.

use std::sync::Arc;
use std::time::Instant;

use super::counters::Counters;
use super::{FailureKind, Outcome, Trap};
use crate::checkpoints::{CommitError, Committed, EffectBatch, TaskId};
use crate::error::{Blame, Classify as _};
use crate::event::{EventBatch, Micros, Position};
use crate::limits::SPAN_LINKS_MAX;
use crate::telemetry::fields;
use crate::telemetry::traces::{
    Span, SpanFailure, TraceContext, Tracer, contexts_of, field, number, parse_traceparent, tracer,
};

/// A call of `handle` that is under way.
#[derive(Debug)]
pub(super) struct HandleCall {
    began: Instant,
    span: Option<BatchSpan>,
}

/// The span `lane.batch`; it is recorded when this is dropped.
#[derive(Debug)]
pub(super) struct BatchSpan {
    tracer: &'static Tracer,
    context: TraceContext,
    /// The traces of the batch's events: the first is the parent, the others are links.
    causes: Vec<TraceContext>,
    began: Micros,
    events: usize,
    position: Position,
    task: TaskId,
    counters: Arc<Counters>,
}

/// What commits that wait for an answer are told from.
#[derive(Debug)]
pub(super) struct CommitCall {
    pub(super) began: Instant,
    traces: CommitTraces,
    began_at: Option<Micros>,
}

/// The `lane.batch` spans that one commit makes durable.
#[derive(Debug, Default)]
pub(super) struct CommitTraces(Vec<TraceContext>);

impl HandleCall {
    pub(super) fn begin(task: &TaskId, counters: &Arc<Counters>, batch: &EventBatch) -> Self {
        let span = tracer().and_then(|tracer| BatchSpan::begin(tracer, task, counters, batch));
        Self { began: Instant::now(), span }
    }

    /// Counts the call. What the guest emitted goes on in the batch's trace.
    pub(super) fn end(
        self,
        counters: &Counters,
        batch: &EventBatch,
        answer: &mut Result<Outcome, Trap>,
    ) -> Option<BatchSpan> {
        counters.batch(batch.len(), self.began.elapsed());
        let span = self.span?;
        span.handled(answer);
        if let Ok(outcome) = answer {
            span.carry_on(&mut outcome.effects);
        }
        Some(span)
    }
}

impl BatchSpan {
    fn begin(
        tracer: &'static Tracer,
        task: &TaskId,
        counters: &Arc<Counters>,
        batch: &EventBatch,
    ) -> Option<Self> {
        let causes = contexts_of(batch, SPAN_LINKS_MAX);
        let context = tracer.child(*causes.first()?);
        Some(Self {
            tracer,
            context,
            causes,
            began: tracer.now(),
            events: batch.len(),
            position: batch.last_position(),
            task: task.clone(),
            counters: Arc::clone(counters),
        })
    }

    fn handled(&self, answer: &Result<Outcome, Trap>) {
        let failure = match answer {
            Ok(Outcome { failure: None, .. }) => None,
            Ok(Outcome { failure: Some(failure), .. }) => {
                let kind = match failure.kind {
                    FailureKind::Retry => "retry",
                    FailureKind::Reject => "reject",
                    FailureKind::Fatal => "fatal",
                };
                Some((kind.to_owned(), Blame::Guest, failure.message.clone()))
            }
            Err(trap) => Some((trap.kind.to_string(), trap.kind.blame(), trap.message.clone())),
        };
        self.tracer.record(Span {
            name: "guest.handle",
            context: self.tracer.child(self.context),
            parent: Some(self.context),
            began: self.began,
            fields: self.fields(),
            links: Vec::new(),
            failure: failure.map(|(kind, blame, message)| SpanFailure { kind, blame, message }),
        });
    }

    /// An emitted event whose cause belongs to this span's trace becomes a child of the span. One of another
    /// trace keeps its cause's context: this span is only linked to that.
    fn carry_on(&self, effects: &mut EffectBatch) {
        effects.map_traceparents(|cause| match parse_traceparent(cause) {
            Some((cause, true)) if cause.same_trace(self.context) => Some(self.context.to_string()),
            _ => None,
        });
    }

    fn fields(&self) -> Vec<opentelemetry::KeyValue> {
        let mut all = task_fields(&self.task, &self.counters);
        all.push(number(fields::STREAM_POSITION, self.position.0));
        all.push(number(fields::EVENTS, self.events as u64));
        all
    }
}

impl Drop for BatchSpan {
    fn drop(&mut self) {
        self.tracer.record(Span {
            name: "lane.batch",
            context: self.context,
            parent: self.causes.first().copied(),
            began: self.began,
            fields: self.fields(),
            links: self.causes.split_off(1),
            failure: None,
        });
    }
}

impl CommitTraces {
    /// What this call did becomes durable with the next commit.
    pub(super) fn add(&mut self, span: Option<&BatchSpan>) {
        if let Some(span) = span
            && self.0.len() < SPAN_LINKS_MAX
        {
            self.0.push(span.context);
        }
    }
}

impl CommitCall {
    pub(super) fn begin(traces: CommitTraces) -> Self {
        let began_at = if traces.0.is_empty() { None } else { tracer().map(Tracer::now) };
        Self { began: Instant::now(), traces, began_at }
    }

    pub(super) fn end(
        &mut self,
        task: &TaskId,
        counters: &Counters,
        position: Position,
        answer: &Result<Committed, CommitError>,
    ) {
        let (Some(began), Some(tracer)) = (self.began_at, tracer()) else { return };
        let mut batches = std::mem::take(&mut self.traces.0).into_iter();
        let Some(parent) = batches.next() else { return };
        let mut all = task_fields(task, counters);
        all.push(number(fields::STREAM_POSITION, position.0));
        let failure = answer.as_ref().err().map(|error| SpanFailure {
            kind: error.code().to_owned(),
            blame: error.blame(),
            message: error.to_string(),
        });
        tracer.record(Span {
            name: "checkpoint.commit",
            context: tracer.child(parent),
            parent: Some(parent),
            began,
            fields: all,
            links: batches.collect(),
            failure,
        });
    }
}

fn task_fields(task: &TaskId, counters: &Counters) -> Vec<opentelemetry::KeyValue> {
    vec![
        field(fields::PLUGIN_NAME, Arc::clone(&task.processor)),
        field(fields::PLUGIN_VERSION, Arc::clone(&counters.version)),
        field(fields::TENANT, task.tenant.to_string()),
        number(fields::LANE, task.lane.into()),
        field(fields::TASK_ID, task.to_string()),
    ]
}
