//! W3C Trace Context: what a `traceparent` says, and what events carry.

use std::fmt;

use opentelemetry::trace::{SpanId, TraceId};

use crate::event::EventBatch;

/// A place in a sampled trace: the trace and the span that what follows is a child of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
}

impl TraceContext {
    /// Whether both are in one trace.
    pub fn same_trace(self, other: Self) -> bool {
        self.trace_id == other.trace_id
    }
}

impl fmt::Display for TraceContext {
    /// As a `traceparent`, sampled.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace_id, self.span_id)
    }
}

/// What a `traceparent` names and whether it is sampled; none where it is not valid, which W3C Trace Context
/// has treated as if it were not there.
pub fn parse_traceparent(text: &str) -> Option<(TraceContext, bool)> {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| -> Option<&str> {
        let part = text.get(range)?;
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        part.bytes().all(hexadecimal).then_some(part)
    };
    let version = digits(0..2)?;
    // A later version may say more behind the four parts of this one.
    let whole = bytes.len() == 55 || (version != "00" && bytes.get(55) == Some(&b'-'));
    let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    if version == "ff" || !whole || !dashes {
        return None;
    }
    let trace_id = TraceId::from_hex(digits(3..35)?).ok()?;
    let span_id = SpanId::from_hex(digits(36..52)?).ok()?;
    let flags = u8::from_str_radix(digits(53..55)?, 16).ok()?;
    let valid = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
    valid.then_some((TraceContext { trace_id, span_id }, flags & 1 == 1))
}

/// The distinct sampled contexts that a batch's events carry, in order, at most so many. Costs a look at one
/// number an event where there are none.
pub fn contexts_of(batch: &EventBatch, max: usize) -> Vec<TraceContext> {
    let mut found = Vec::new();
    let carrying = batch.records().iter().enumerate().filter(|(_, record)| record.traceparent_bytes > 0);
    for (index, _) in carrying {
        if found.len() >= max {
            break;
        }
        if let Some((context, true)) = parse_traceparent(batch.get(index).traceparent)
            && !found.contains(&context)
        {
            found.push(context);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_what_it_was_after_a_round() {
        let (context, sampled) = parse_traceparent(GOOD).expect("valid");
        assert!(sampled);
        assert_eq!(context.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(parse_traceparent(&unsampled), Some((context, false)));
        let later = format!("{}-more", GOOD.replacen("00-", "01-", 1));
        assert_eq!(parse_traceparent(&later), Some((context, true)));
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse_traceparent(text), None, "{text}");
        }
    }
}
