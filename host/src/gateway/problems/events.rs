//! What can be wrong with events on their way in.

use super::{ProblemKind, caller};

pub(super) const EVENTS: &[ProblemKind] = &[
    caller(400, "event_invalid", "an event is not valid", "correct the field that the detail names"),
    caller(
        400,
        "name_bytes_max",
        "an aggregate, id, type or other name is too long",
        "shorten it; long values belong in the payload",
    ),
    caller(
        413,
        "event_payload_bytes_max",
        "a payload is too large",
        "keep the object in a blob store and its address in the event",
    ),
    caller(
        413,
        "event_line_bytes_max",
        "a line is too large for an event",
        "keep the payload under event_payload_bytes_max = 1 MiB, which cannot be raised",
    ),
    caller(
        413,
        "batch_events_max",
        "too many events at once",
        "send fewer, or stream them as application/x-ndjson",
    ),
    caller(
        413,
        "batch_bytes_max",
        "too many bytes at once",
        "send fewer, or stream them as application/x-ndjson",
    ),
    caller(
        409,
        "batch_refused",
        "another event of the same batch was refused, so nothing of it was appended",
        "correct that event and send the batch again",
    ),
    caller(
        409,
        "event_id_taken",
        "the event id belongs to an event with other content",
        "give a new event its own id or version; repeat an old one unchanged",
    ),
];
