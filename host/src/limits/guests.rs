//! Bounds of guests' engines.

/// Fuel of one call, where guests are metered by it: about one for each instruction and for each byte of a bulk copy.
/// So much is some ten seconds of work.
pub const GUEST_FUEL_MAX: u64 = 20_000_000_000;
/// What the engine keeps beside the memories and tables of one instance of a component, all of its parts together;
/// Python needs some 380 KiB.
pub const GUEST_INSTANCE_BYTES_MAX: usize = 1 << 20;
/// Bytes of what a call printed and logged last, for the message of a trap; what came before is left out.
pub const GUEST_LAST_WORDS_BYTES_MAX: usize = 2 << 10;
