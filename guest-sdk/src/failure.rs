//! Why an event could not be handled, and what the host should do about it.

use std::fmt;

use crate::bindings::millrace::processor::types as wire;
use crate::limits::FAILURE_MESSAGE_BYTES_MAX;

pub use wire::FailureKind;

/// An event could not be handled.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For the people who read dead letters: what was wrong, with the value.
    pub message: String,
}

impl Failure {
    /// Transient: the host tries again later.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Retry, message: message.into() }
    }

    /// The event itself is bad: it becomes a dead letter, and work goes on after it.
    pub fn reject(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Reject, message: message.into() }
    }

    /// The processor cannot go on: the host stops it.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Fatal, message: message.into() }
    }

    pub(crate) fn into_wire(self, index: usize) -> wire::Failure {
        let mut message = self.message;
        if message.len() > FAILURE_MESSAGE_BYTES_MAX {
            let mut end = FAILURE_MESSAGE_BYTES_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        let index = u32::try_from(index).expect("a batch has far fewer than 2^32 events");
        wire::Failure { index, kind: self.kind, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FailureKind::Retry => "retry",
            FailureKind::Reject => "reject",
            FailureKind::Fatal => "fatal",
        };
        write!(f, "{kind}: {}", self.message)
    }
}

impl std::error::Error for Failure {}
