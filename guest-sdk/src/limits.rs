//! Bounds of the host that an effect is checked against where it is made, so
//! that the event at fault is named and not the whole batch.

/// Bytes of a row's key.
pub const ROW_KEY_BYTES_MAX: usize = 1_024;
/// Bytes of a row's cells.
pub const ROW_BYTES_MAX: usize = 1 << 20;
/// Bytes of a keyed state's key and value.
pub const STATE_KEY_BYTES_MAX: usize = 512;
pub const STATE_VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of an emitted event's aggregate, agg-id, type and id, each.
pub const NAME_BYTES_MAX: usize = 512;
/// Bytes of an emitted event's payload.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes of the names of a process and of a channel, of an entry's payload, and of the text of an `error` entry. The
/// operator may have set the payload's bound lower; it is lower, too, where entries are events.
pub const PROCESS_NAME_BYTES_MAX: usize = 128;
pub const CHANNEL_NAME_BYTES_MAX: usize = 64;
pub const CHANNEL_PAYLOAD_BYTES_MAX: usize = 10 << 20;
pub const CHANNEL_ERROR_BYTES_MAX: usize = 4 << 10;
/// Entries and bytes in one answer of the host to a scan.
pub const SCAN_ENTRIES_MAX: u32 = 1_000;
pub const SCAN_BYTES_MAX: usize = 4 << 20;
/// Expired entries of the keyed state that one event deletes as it meets them: a batch of events stays far
/// below the effects that a call may hand back.
pub const STATE_EXPIRED_DELETES_MAX: usize = 64;
/// Bytes of a failure's message; the rest is cut off.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 4 << 10;
