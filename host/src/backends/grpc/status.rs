//! What a server's status means: whether trying again helps, and what to say.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

use super::messages::RetryInfo;
use crate::error::Retry;
use crate::limits::SOURCE_MESSAGE_BYTES_MAX;
use crate::processors::source::{SourceError, SourceFault};

/// Which call it was: some codes mean something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Subscribe,
    GetCheckpoint,
    PutCheckpoint,
}

impl Call {
    fn says(self) -> &'static str {
        match self {
            Self::Subscribe => "the stream of events",
            Self::GetCheckpoint => "asking for the checkpoint",
            Self::PutCheckpoint => "putting the checkpoint",
        }
    }
}

/// Lost connections and servers that restart pass; who is not let in, and what is not understood, does not.
pub(super) fn source_error(call: Call, client_id: &str, status: Status) -> SourceError {
    let usual = Retry::After(Duration::ZERO);
    let (fault, retry) = match status.code() {
        Code::Ok
        | Code::Unavailable
        | Code::Internal
        | Code::Unknown
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::DataLoss => (SourceFault::Unreachable, usual),
        Code::ResourceExhausted => {
            let asked = RetryInfo::of(status.details()).and_then(RetryInfo::wait);
            (SourceFault::Exhausted, Retry::After(asked.unwrap_or_default()))
        }
        Code::Unauthenticated | Code::PermissionDenied => (SourceFault::Denied, Retry::Never),
        Code::NotFound if call == Call::PutCheckpoint => (SourceFault::ForeignCheckpoint, Retry::Never),
        Code::OutOfRange => (SourceFault::MessageTooLarge, Retry::Never),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented => (SourceFault::Refused, Retry::Never),
    };
    let said = match status.message() {
        "" => "no reason was given".to_owned(),
        text => text.chars().take(300).collect(),
    };
    let name = code_name(status.code());
    let mut message = format!("{} failed: {name}: {said}", call.says());
    match fault {
        SourceFault::ForeignCheckpoint => {
            message.push_str(&format!(
                "; the API key belongs to another client than client_id = `{client_id}`, so its checkpoints are hidden"
            ));
        }
        SourceFault::MessageTooLarge => {
            message.push_str(&format!("; source_message_bytes_max is {SOURCE_MESSAGE_BYTES_MAX}"));
        }
        _ => {}
    }
    let mut cause = status.source();
    // A chain has an end; this one comes from elsewhere.
    for _ in 0..8 {
        let Some(error) = cause else { break };
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    SourceError { fault, retry, ..SourceError::stop(fault, message) }.because(status)
}

/// As the protocol writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        use Code::{
            Aborted, Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound,
            OutOfRange, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable, Unimplemented,
            Unknown,
        };
        let wait = |code| source_error(Call::Subscribe, "a", Status::new(code, "x")).wait();
        for code in [Unavailable, Internal, Unknown, Aborted, DeadlineExceeded, Cancelled, ResourceExhausted]
        {
            assert_eq!(wait(code), Some(Duration::ZERO), "{code:?}");
        }
        for code in [
            Unauthenticated,
            PermissionDenied,
            InvalidArgument,
            Unimplemented,
            NotFound,
            OutOfRange,
            FailedPrecondition,
        ] {
            assert_eq!(wait(code), None, "{code:?}");
        }
    }

    #[test]
    fn a_server_says_when_to_come_back() {
        let asked = Duration::from_millis(700);
        let details = RetryInfo::after(asked).in_status(8, "rate limit exceeded").encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "rate limit exceeded", details.into());
        assert_eq!(source_error(Call::PutCheckpoint, "a", status).wait(), Some(asked));
    }

    #[test]
    fn a_checkpoint_that_is_hidden_says_whose_the_key_is() {
        let error = source_error(Call::PutCheckpoint, "b", Status::not_found("checkpoint not found"));
        assert_eq!(error.fault, SourceFault::ForeignCheckpoint);
        assert!(error.to_string().contains("belongs to another client than client_id = `b`"), "{error}");
    }
}
