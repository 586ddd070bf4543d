//! What can go wrong with rooms.

use super::{ProblemKind, caller, host};

pub(super) const PRESENCE: &[ProblemKind] = &[
    caller(
        400,
        "presence_name_invalid",
        "this is no name of a room or member",
        "use 1 to 128 bytes without control characters, percent-encoded in the path",
    ),
    caller(
        400,
        "presence_ttl_ms",
        "the time of a membership is too short or too long",
        "ask for a ttl_ms between `min` and `max`, or leave it out for presence.presence_ttl_ms",
    ),
    caller(
        404,
        "presence_member_unknown",
        "the room has no such member",
        "it has left, or its time was over",
    ),
    caller(
        429,
        "presence_rooms_max",
        "the tenant has as many rooms with members as it may",
        "leave some, or raise presence.presence_rooms_max",
    ),
    caller(
        429,
        "presence_members_max",
        "the room has as many members as it may",
        "use more rooms, or raise presence.presence_members_max",
    ),
    caller(
        413,
        "presence_state_bytes_max",
        "the state is too large",
        "keep it small: what is large belongs in a table; or raise presence.presence_state_bytes_max",
    ),
    caller(
        413,
        "presence_message_bytes_max",
        "the message is too large",
        "publish what is large as an event, or raise presence.presence_message_bytes_max",
    ),
    caller(
        429,
        "presence_followers_max",
        "the room has as many followers on this host as it may",
        "follow it elsewhere, or raise presence.presence_followers_max",
    ),
    caller(
        409,
        "presence_follower_overflow",
        "the follower took less than happened in the room",
        "go on from the roster that comes next; read faster",
    ),
    host(
        503,
        "presence_reconnected",
        "the server that the rooms are on was lost for a while",
        "go on from the roster that comes next",
    ),
    host(
        503,
        "presence_feed_lost",
        "the server that the rooms are on has lost what happened there, or was read too slowly",
        "go on from the roster that comes next; see the host's log",
    ),
];
