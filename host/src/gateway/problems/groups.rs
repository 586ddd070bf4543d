//! What can go wrong with groups of consumers.

use super::{ProblemKind, caller};

pub(super) const GROUPS: &[ProblemKind] = &[
    caller(
        404,
        "group_unknown",
        "there is no such group",
        "make it with PUT /v1/streams/{stream}/groups/{group}",
    ),
    caller(
        400,
        "group_name_invalid",
        "this is no name of a group or consumer",
        "use 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit",
    ),
    caller(
        400,
        "group_option_invalid",
        "a number is not possible here",
        "choose one between `min` and `max`",
    ),
    caller(400, "receipt_invalid", "this is not a receipt", "use receipts exactly as a read answered them"),
    caller(
        404,
        "receipt_unknown",
        "the receipt is not of this group",
        "read again: the receipt is another group's, or the group was removed or moved since",
    ),
    caller(
        409,
        "lease_expired",
        "the lease has ended",
        "read again; renew leases while you work, or make the group with a longer lease_ms",
    ),
    caller(
        410,
        "entry_lost",
        "retention removed the entry before it was acknowledged",
        "there is nothing left to do for it; keep more with store.retention_events or store.retention_age_seconds",
    ),
    caller(
        410,
        "group_position_lost",
        "what the group had not acknowledged is gone, by retention or with a former life of the log, and it has stopped",
        "move it with POST …/seek to oldest or newest, or make it with on_lost from_oldest or tail",
    ),
    caller(
        404,
        "group_dead_letter_unknown",
        "the group has no such dead letter",
        "GET …/dead-letters lists them; one that was acknowledged or discarded is gone",
    ),
    caller(
        409,
        "group_interrupted",
        "the group was removed or moved in between",
        "read again; receipts of before are good for nothing",
    ),
    caller(
        409,
        "groups_max",
        "the stream has as many groups as it may",
        "remove some, or raise groups.groups_max",
    ),
    caller(
        409,
        "tenant_groups_max",
        "the tenant has as many groups as it may, on all of its streams",
        "remove some that nobody reads, or raise groups.tenant_groups_max",
    ),
    caller(
        429,
        "group_consumers_max",
        "the group has as many consumers as it may",
        "use the same consumer name each time, or raise groups.group_consumers_max",
    ),
    caller(
        429,
        "group_in_flight_max",
        "the group's consumers have as many entries as they may",
        "acknowledge some, wait for leases to end, or raise groups.group_in_flight_max",
    ),
    caller(
        429,
        "group_consumer_in_flight_max",
        "the consumer has as many entries as it may",
        "acknowledge some before reading more, or raise groups.group_consumer_in_flight_max",
    ),
    caller(
        429,
        "group_waiters_max",
        "as many reads of the group wait as may",
        "ask with fewer consumers or without wait_ms, or raise groups.group_waiters_max",
    ),
    caller(400, "group_read_events_max", "a read has 1 to 1000 entries", "ask for fewer and read again"),
    caller(400, "group_read_bytes_max", "a read has 1 to 4194304 bytes", "ask for fewer and read again"),
    caller(
        413,
        "group_receipts_max",
        "too many receipts at once",
        "send 1000 at most and the rest after them",
    ),
    caller(413, "group_body_bytes_max", "the body is too large", "send fewer receipts at once"),
];
