//! Claims about plugins in languages that bring an engine with them.

mod chance;
mod clocks;
mod hostile;
pub(super) mod js;
mod parking;
pub(super) mod python;
mod same;
mod samples;
mod shadow;
mod swaps;

/// The payload of an event that tells of a channel's entry, and what that says, which is no text.
const ENTRY: &str = r#"{ "process": "p", "channel": "c", "position": 1, "epoch": 0, "sequence": 1, "senderid": "ada",
    "type": "data", "payload": "QQD/" }"#;
const ENTRY_BYTES: &[u8] = b"A\x00\xff";
