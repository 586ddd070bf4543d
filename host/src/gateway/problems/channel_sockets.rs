//! What can go wrong on a WebSocket of channels.

use super::{ProblemKind, caller};

pub(super) const CHANNEL_SOCKETS: &[ProblemKind] = &[
    caller(
        429,
        "channel_socket_subscriptions_max",
        "the socket has as many subscriptions as it may",
        "unsubscribe from some, or open another socket; 1,000 are possible on one",
    ),
    caller(
        400,
        "channel_credit_max",
        "a subscription has too much credit",
        "give credit as entries are worked off; 1,000,000 are possible at once",
    ),
    caller(
        413,
        "channel_message_bytes_max",
        "the message is too large",
        "append fewer entries at once, or send payloads in binary messages, which are smaller",
    ),
    caller(
        400,
        "channel_frame_invalid",
        "the binary message is not an append",
        "see GET /v1/channels/ws at /docs for its layout",
    ),
    caller(
        409,
        "channel_end_after_refusal",
        "something before this end was refused",
        "append that again and then the end; or repeat the end as it is, which closes the half without it",
    ),
];
