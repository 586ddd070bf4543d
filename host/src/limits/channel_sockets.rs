//! Bounds of WebSockets of channels.

use std::time::Duration;

use super::{CHANNEL_BATCH_BYTES_MAX, CHANNEL_FOLLOW_ENTRIES_MAX, CHANNEL_TAIL_ENTRIES_MAX};

/// Subscriptions of one WebSocket. More are refused.
pub const CHANNEL_SOCKET_SUBSCRIPTIONS_MAX: usize = 1_000;
/// Longest id of a subscription, reference of an append, and nonce of a ping: they are kept and repeated. Longer is
/// refused.
pub const CHANNEL_SOCKET_ID_BYTES_MAX: usize = 64;
/// Entries that a subscription is sent before it is given credit, where it does not say.
pub const CHANNEL_CREDIT: u64 = 256;
/// Credit that a subscription can have at once. More is refused.
pub const CHANNEL_CREDIT_MAX: u64 = 1_000_000;
/// Appends of one WebSocket that the store has and has not answered. Others wait until it has.
pub const CHANNEL_SOCKET_APPENDS_MAX: usize = 256;
/// Appends of one WebSocket that were read and are not answered, those among them that wait for the store, and the bytes of
/// their entries; one may be larger. At either bound nothing is read from the socket until one is answered: then its client
/// waits, as it does for a slow network, and none is refused.
pub const CHANNEL_SOCKET_APPENDS_READ_MAX: usize = 1_024;
pub const CHANNEL_SOCKET_APPEND_BYTES: usize = 16 << 20;
/// Senders of one WebSocket of which it is known that an append was refused, so that no `end` closes their half without it.
/// Of more the oldest are forgotten.
pub const CHANNEL_SOCKET_REFUSALS_MAX: usize = 256;
/// Subscriptions of one WebSocket that are opened at once. Others wait for their turn.
pub const CHANNEL_SOCKET_OPENS_MAX: usize = 4;
/// Reads of the store that are under way for one WebSocket, and the bytes of each; an entry may be larger. With them, and
/// with what one write takes, everything is said that is held for a client that does not read.
pub const CHANNEL_SOCKET_READS_MAX: usize = 4;
pub const CHANNEL_SOCKET_READ_BYTES: usize = 256 << 10;
/// Messages of a client that are obeyed before the host writes again, if they have come together, and the bytes after which
/// it takes in no more of them.
pub const CHANNEL_SOCKET_TURN_MESSAGES_MAX: usize = 128;
pub const CHANNEL_SOCKET_TURN_BYTES: usize = 256 << 10;
/// Bytes of messages after which a write takes in no more; one message may be larger.
pub const CHANNEL_SOCKET_WRITE_BYTES: usize = 64 << 10;
/// The longest wait that a refusal names: some have no end, and who has to wait longer looks again all the same.
pub const CHANNEL_RETRY_MAX: Duration = Duration::from_secs(24 * 3_600);

const _: () = assert!(CHANNEL_CREDIT <= CHANNEL_CREDIT_MAX, "the default is possible");
const _: () = assert!(CHANNEL_CREDIT >= CHANNEL_FOLLOW_ENTRIES_MAX as u64, "one turn needs no second credit");
const _: () =
    assert!(CHANNEL_BATCH_BYTES_MAX <= CHANNEL_SOCKET_APPEND_BYTES, "one append needs no exception");
const _: () =
    assert!(CHANNEL_SOCKET_APPENDS_MAX <= CHANNEL_SOCKET_APPENDS_READ_MAX, "what the store has was read");
const _: () = assert!(
    CHANNEL_SOCKET_TURN_MESSAGES_MAX <= CHANNEL_TAIL_ENTRIES_MAX,
    "who follows finds in memory what was appended one by one in a turn"
);
/// Steps of a turn of a WebSocket: what is done, and subscriptions that are looked at. Then others have theirs.
pub const CHANNEL_SOCKET_TURN_STEPS_MAX: usize = 1_024;
