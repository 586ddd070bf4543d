//! What the edge counts. Labels have few values: routes are the patterns of
//! the router, never what a client wrote.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use crate::telemetry::metrics as names;

pub(super) fn request(route: &str, method: &'static str, status: u16, took: Duration) {
    let class = match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    counter!(names::HTTP_REQUESTS, "route" => route.to_owned(), "method" => method, "status" => class)
        .increment(1);
    histogram!(names::HTTP_REQUEST_SECONDS, "route" => route.to_owned()).record(took.as_secs_f64());
}

pub(super) fn problem(code: &'static str, count: u64) {
    counter!(names::HTTP_PROBLEMS, "code" => code).increment(count);
}

pub(super) fn published(appended: u64, repeated: u64) {
    counter!(names::PUBLISHED_EVENTS).increment(appended);
    if repeated > 0 {
        counter!(names::PUBLISHED_REPEATS).increment(repeated);
    }
}

pub(super) fn connection_refused() {
    counter!(names::HTTP_CONNECTIONS_REFUSED).increment(1);
}

#[cfg(feature = "grpc")]
pub(super) fn grpc_call(method: &'static str, code: &'static str) {
    counter!(names::GRPC_CALLS, "method" => method, "code" => code).increment(1);
}

#[cfg(feature = "grpc")]
pub(super) fn grpc_untaken() {
    counter!(names::GRPC_UNTAKEN).increment(1);
}

/// Counts something as long as it lives.
#[derive(Debug)]
pub(super) struct Living(&'static str);

impl Living {
    pub(super) fn sse_client() -> Self {
        Self::of(names::SSE_CLIENTS)
    }

    pub(super) fn connection() -> Self {
        Self::of(names::HTTP_CONNECTIONS)
    }

    #[cfg(feature = "grpc")]
    pub(super) fn grpc_stream() -> Self {
        Self::of(names::GRPC_STREAMS)
    }

    fn of(name: &'static str) -> Self {
        gauge!(name).increment(1);
        Self(name)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1);
    }
}
