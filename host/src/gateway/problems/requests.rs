//! What is wrong with a request before anybody looks at what it asks.

use super::{ProblemKind, caller, host};

pub(super) const REQUESTS: &[ProblemKind] = &[
    caller(404, "path_unknown", "there is no such path", "look up the paths at /docs or in /openapi.json"),
    caller(
        405,
        "method_not_allowed",
        "this path does not take this method",
        "use a method of the Allow header",
    ),
    caller(
        415,
        "content_type_unsupported",
        "the body has a content type that is not taken here",
        "send one of the types listed in `supported`",
    ),
    caller(
        415,
        "content_encoding_unsupported",
        "compressed bodies are not taken",
        "send the body without Content-Encoding",
    ),
    caller(
        413,
        "body_bytes_max",
        "the body is too large",
        "send less at once, stream it as application/x-ndjson, or raise gateway.body_bytes_max",
    ),
    caller(
        413,
        "upload_bytes_max",
        "the upload is too large",
        "go on in another request after the last line that was answered, or raise gateway.upload_bytes_max",
    ),
    caller(
        408,
        "body_idle_max",
        "the body stopped arriving",
        "send without long breaks, or raise gateway.body_idle_ms_max; repeats of what was not answered are recognised by id",
    ),
    caller(400, "body_broken", "the body broke off or is not valid HTTP", "send it again"),
    caller(400, "json_malformed", "this is not JSON", "check the JSON at the place that the detail names"),
    caller(400, "parameter_invalid", "a query parameter has a wrong value", "see the parameter at /docs"),
    caller(
        400,
        "parameter_unknown",
        "a query parameter is not known here",
        "leave it out, or see /docs for its name",
    ),
    caller(
        503,
        "connections_max",
        "the host has as many connections as it takes",
        "close idle ones, or raise gateway.connections_max",
    ),
    host(
        503,
        "host_stopping",
        "the host is stopping",
        "connect again in a moment and go on where the answers ended",
    ),
    host(
        500,
        "internal",
        "something failed inside the host",
        "see the host's log at the time of this request",
    ),
];
