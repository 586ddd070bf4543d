//! The names of what the edge counts. Labels have few values: routes are the
//! patterns of the router, never what a client wrote.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const REQUESTS: &str = "millrace_http_requests_total";
const REQUEST_SECONDS: &str = "millrace_http_request_seconds";
const PROBLEMS: &str = "millrace_http_problems_total";
const PUBLISHED: &str = "millrace_published_events_total";
const REPEATED: &str = "millrace_published_repeats_total";
const SSE_CLIENTS: &str = "millrace_sse_clients";
const CONNECTIONS: &str = "millrace_http_connections";
const CONNECTIONS_REFUSED: &str = "millrace_http_connections_refused_total";

/// Says what each name means. Once, after the recorder is there.
pub(super) fn describe() {
    describe_counter!(REQUESTS, "HTTP requests by route, method and class of status");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time until the head of the answer, by route");
    describe_counter!(PROBLEMS, "Refused requests and refused lines of uploads, by problem code");
    describe_counter!(PUBLISHED, "Events that were appended over HTTP");
    describe_counter!(REPEATED, "Published events that were known already and not appended again");
    describe_gauge!(SSE_CLIENTS, "Clients that follow a stream now");
    describe_gauge!(CONNECTIONS, "Connections that are open now");
    describe_counter!(CONNECTIONS_REFUSED, "Connections refused at connections_max");
}

pub(super) fn request(route: &str, method: &'static str, status: u16, took: Duration) {
    let class = match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    counter!(REQUESTS, "route" => route.to_owned(), "method" => method, "status" => class).increment(1);
    histogram!(REQUEST_SECONDS, "route" => route.to_owned()).record(took.as_secs_f64());
}

pub(super) fn problem(code: &'static str, count: u64) {
    counter!(PROBLEMS, "code" => code).increment(count);
}

pub(super) fn published(appended: u64, repeated: u64) {
    counter!(PUBLISHED).increment(appended);
    if repeated > 0 {
        counter!(REPEATED).increment(repeated);
    }
}

pub(super) fn connection_refused() {
    counter!(CONNECTIONS_REFUSED).increment(1);
}

/// Counts something as long as it lives.
#[derive(Debug)]
pub(super) struct Living(&'static str);

impl Living {
    pub(super) fn sse_client() -> Self {
        Self::of(SSE_CLIENTS)
    }

    pub(super) fn connection() -> Self {
        Self::of(CONNECTIONS)
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
