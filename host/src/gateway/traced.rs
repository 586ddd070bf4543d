//! The trace of a publish: `traceparent` in, the spans `publish` and `log.append` out, and events that carry
//! the trace on.

use axum::http::HeaderMap;

use super::problem::Problem;
use crate::event::{EventBatch, Micros};
use crate::limits::{BATCH_BYTES_MAX, SPAN_LINKS_MAX};
use crate::streams::{Appended, EventLog, StreamError, StreamName};
use crate::telemetry::fields;
use crate::telemetry::traces::{
    Span, SpanFailure, TraceContext, Tracer, contexts_of, field, number, parse_traceparent, tracer,
};

/// What a request's `traceparent` header said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestTrace(Option<(TraceContext, bool)>);

impl RequestTrace {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = headers.get("traceparent").and_then(|value| value.to_str().ok());
        Self(text.and_then(parse_traceparent))
    }

    /// Appends a batch, under a span if its trace is sampled. Events without a trace of their own get the
    /// request's.
    pub(super) async fn append(
        self,
        log: &dyn EventLog,
        stream: &StreamName,
        mut batch: EventBatch,
    ) -> Result<Vec<Appended>, StreamError> {
        let Some(tracer) = tracer() else {
            if let Some((context, true)) = self.0 {
                fill(&mut batch, context);
            }
            return append(log, stream, batch).await;
        };
        let Some(span) = PublishSpan::begin(tracer, self, &mut batch) else {
            return append(log, stream, batch).await;
        };
        let began = tracer.now();
        let answer = append(log, stream, batch).await;
        span.end(stream, began, &answer);
        answer
    }
}

async fn append(
    log: &dyn EventLog,
    stream: &StreamName,
    batch: EventBatch,
) -> Result<Vec<Appended>, StreamError> {
    match stream {
        StreamName::Events => log.append(batch).await,
        other => log.append_to(other, batch).await,
    }
}

struct PublishSpan {
    tracer: &'static Tracer,
    context: TraceContext,
    parent: Option<TraceContext>,
    links: Vec<TraceContext>,
    began: Micros,
    tenant: String,
    events: usize,
}

impl PublishSpan {
    /// None when nobody wants this trace.
    fn begin(tracer: &'static Tracer, request: RequestTrace, batch: &mut EventBatch) -> Option<Self> {
        let began = tracer.now();
        let mut own = contexts_of(batch, SPAN_LINKS_MAX);
        let (parent, context) = match request.0 {
            Some((asked, true)) => (Some(asked), tracer.child(asked)),
            // The sender decided against its trace; events may still have one of their own.
            _ if !own.is_empty() => {
                let first = own.remove(0);
                (Some(first), tracer.child(first))
            }
            Some((_, false)) => return None,
            None => (None, tracer.root()?),
        };
        // A trace that an event brought is that event's alone.
        if parent.is_none() || matches!(request.0, Some((_, true))) {
            fill(batch, context);
        }
        Some(Self {
            tracer,
            context,
            parent,
            links: own,
            began,
            tenant: batch.tenant.to_string(),
            events: batch.len(),
        })
    }

    fn end(self, stream: &StreamName, append_began: Micros, answer: &Result<Vec<Appended>, StreamError>) {
        let mut all = vec![
            field(fields::TENANT, self.tenant),
            field(fields::STREAM_NAME, stream.to_string()),
            number(fields::EVENTS, self.events as u64),
        ];
        let last = answer.as_ref().ok().and_then(|appended| appended.last());
        all.extend(last.map(|last| number(fields::STREAM_POSITION, last.position.0)));
        let failure = answer.as_ref().err().map(|error| {
            let problem = Problem::from(error.clone());
            SpanFailure { kind: problem.code().into(), blame: problem.blame(), message: error.to_string() }
        });
        self.tracer.record(Span {
            name: "log.append",
            context: self.tracer.child(self.context),
            parent: Some(self.context),
            began: append_began,
            fields: all.clone(),
            links: Vec::new(),
            failure: failure.clone(),
        });
        self.tracer.record(Span {
            name: "publish",
            context: self.context,
            parent: self.parent,
            began: self.began,
            fields: all,
            links: self.links,
            failure,
        });
    }
}

/// A batch that is full to the brim stays without.
fn fill(batch: &mut EventBatch, context: TraceContext) {
    let text = context.to_string();
    if batch.bytes() + batch.len() * text.len() <= BATCH_BYTES_MAX {
        batch.fill_traceparent(&text);
    }
}
