//! What a server's status means: whether trying again helps, and what to say.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

use super::messages::RetryInfo;
use crate::error::Retry;
use crate::limits::{SOURCE_MESSAGE_BYTES_MAX, SOURCE_PUT_BYTES_SAFE};
use crate::processors::source::{SourceError, SourceFault};

/// Which call it was: some codes mean something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Subscribe,
    GetCheckpoint,
    /// With how many bytes the message had.
    PutCheckpoint {
        bytes: usize,
    },
}

impl Call {
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::Subscribe => "the stream of events",
            Self::GetCheckpoint => "asking for the checkpoint",
            Self::PutCheckpoint { .. } => "putting the checkpoint",
        }
    }
}

/// What a message that is none says, in the words of our own decoder.
const NO_MESSAGE: &str = "failed to decode Protobuf message";
/// How servers, ours among them, say that a message is too long.
const TOO_LONG: [&str; 5] =
    ["larger than max", "exceeds maximum", "exceeds the maximum", "too large", "_bytes_max"];

/// Whether a put was refused for its length. The code is that of too many requests, which come back; a put of this length
/// is refused for ever.
fn is_too_long(call: Call, status: &Status) -> bool {
    let Call::PutCheckpoint { bytes } = call else { return false };
    let said = status.message();
    match status.code() {
        Code::OutOfRange => true,
        Code::ResourceExhausted if RetryInfo::of(status.details()).is_some() => false,
        Code::ResourceExhausted => {
            let long = bytes > SOURCE_PUT_BYTES_SAFE && !said.contains("rate limit");
            long || TOO_LONG.iter().any(|words| said.contains(words))
        }
        _ => false,
    }
}

/// Lost connections and servers that restart pass; who is not let in, and what is not understood, does not.
pub(super) fn source_error(call: Call, client_id: &str, status: Status) -> SourceError {
    let usual = Retry::After(Duration::ZERO);
    let asked = || {
        let wait = RetryInfo::of(status.details()).and_then(RetryInfo::wait);
        Retry::After(wait.unwrap_or_default())
    };
    let (fault, retry) = match status.code() {
        _ if is_too_long(call, &status) => (SourceFault::TooLarge, Retry::Never),
        // It comes again as it is.
        Code::Internal if status.message().starts_with(NO_MESSAGE) => (SourceFault::Unreadable, Retry::Never),
        Code::Ok
        | Code::Internal
        | Code::Unknown
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::DataLoss => (SourceFault::Unreachable, usual),
        // Who is busy, or about to stop, may say so with a time, too.
        Code::Unavailable => (SourceFault::Unreachable, asked()),
        Code::ResourceExhausted => (SourceFault::Exhausted, asked()),
        Code::Unauthenticated | Code::PermissionDenied => (SourceFault::Denied, Retry::Never),
        Code::NotFound if matches!(call, Call::PutCheckpoint { .. }) => {
            (SourceFault::ForeignCheckpoint, Retry::Never)
        }
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
        SourceFault::TooLarge => {
            message.push_str("; keep less in the state, or keep checkpoints in the store")
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
    use crate::memory_v1::EventNotification;

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
        let error = source_error(Call::PutCheckpoint { bytes: 3 << 20 }, "a", status);
        assert_eq!((error.fault, error.wait()), (SourceFault::Exhausted, Some(asked)));
        let details = RetryInfo::after(asked).in_status(14, "it is drained").encode_to_vec();
        let status = Status::with_details(Code::Unavailable, "it is drained", details.into());
        let error = source_error(Call::Subscribe, "a", status);
        assert_eq!((error.fault, error.wait()), (SourceFault::Unreachable, Some(asked)));
    }

    #[test]
    fn a_checkpoint_that_is_hidden_says_whose_the_key_is() {
        let put = Call::PutCheckpoint { bytes: 10 };
        let error = source_error(put, "b", Status::not_found("checkpoint not found"));
        assert_eq!(error.fault, SourceFault::ForeignCheckpoint);
        assert!(error.to_string().contains("belongs to another client than client_id = `b`"), "{error}");
    }

    #[test]
    fn a_put_that_is_too_long_is_told_from_too_many_requests() {
        let put = |bytes, text: &str| {
            let error = source_error(Call::PutCheckpoint { bytes }, "a", Status::resource_exhausted(text));
            (error.fault, error.wait())
        };
        let (too_large, exhausted) =
            ((SourceFault::TooLarge, None), (SourceFault::Exhausted, Some(Duration::ZERO)));
        for text in [
            "grpc: received message larger than max (5242886 vs. 4194304)",
            "gRPC message exceeds maximum size 4194304: 5242886",
            "the value has 3500000 bytes; client_checkpoint_bytes_max is 3145728",
        ] {
            assert_eq!(put(1_000, text), too_large, "{text}");
        }
        assert_eq!(put(2 << 20, "no"), too_large, "nobody says when to come back");
        assert_eq!(put(1_000, "no"), exhausted);
        assert_eq!(put(2 << 20, "rate limit exceeded"), exhausted);
        let subscribe = source_error(Call::Subscribe, "a", Status::resource_exhausted("larger than max"));
        assert_eq!(subscribe.fault, SourceFault::Exhausted);
    }

    /// It would be asked for again and again, and come as it is each time.
    #[test]
    fn a_message_that_is_none_does_not_pass() {
        let none = EventNotification::decode([0xff].as_slice()).unwrap_err();
        let error = source_error(Call::Subscribe, "a", Status::internal(none.to_string()));
        assert_eq!((error.fault, error.wait()), (SourceFault::Unreadable, None), "{error}");
    }
}
