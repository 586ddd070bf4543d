//! What errors of the edge are over gRPC.

use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};

use crate::gateway::metrics;
use crate::gateway::problem::Problem;
use crate::limits::GRPC_RETRY_AFTER;
use crate::memory_v1::RetryInfo;

/// A problem as a status: its detail is the message, and the time to wait, if there is one, is told as a `RetryInfo`.
pub(super) fn status(problem: &Problem) -> Status {
    metrics::problem(problem.code(), 1);
    let (code, message) = (code(problem), problem.detail());
    match problem.retry() {
        None => Status::new(code, message),
        Some(wait) => later(code, message, wait),
    }
}

/// A status that says when to come again.
pub(super) fn later(code: Code, message: &str, wait: Duration) -> Status {
    let details = RetryInfo::after(wait).in_status(code.into(), message).encode_to_vec();
    Status::with_details(code, message, details.into())
}

/// The server has as many of something as it takes.
pub(super) fn full(limit: &str, max: usize) -> Status {
    later(Code::ResourceExhausted, &format!("{limit} = {max} are open on this host"), GRPC_RETRY_AFTER)
}

fn code(problem: &Problem) -> Code {
    match problem.status().as_u16() {
        _ if problem.code() == "rate_limited" || problem.code().ends_with("_max") => Code::ResourceExhausted,
        _ if problem.code() == "checkpoints_not_shared" => Code::FailedPrecondition,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        429 | 507 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

/// What a status is called where calls are counted.
pub(super) fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::PermissionDenied => "permission_denied",
        Code::Unauthenticated => "unauthenticated",
        Code::ResourceExhausted => "resource_exhausted",
        Code::Unimplemented => "unimplemented",
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::FailedPrecondition => "failed_precondition",
        Code::Internal => "internal",
        _ => "other",
    }
}
