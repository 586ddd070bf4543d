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
/// Entries in one answer of a scan.
pub const SCAN_ENTRIES_MAX: u32 = 1_000;
/// Bytes of a failure's message; the rest is cut off.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 4 << 10;
