//! Entries as they lie in the server: a short header and the payload, and what is found out without reading them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use redis::Value;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::records::{shape, to_json};
use crate::backends::redis::scripts::{bytes, list, text};
use crate::channels::{Entry, EntryType, Party};
use crate::error::BackendError;
use crate::event::{Micros, Position};

/// Everything but position and payload. The names are short: each entry has them.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "s")]
    sender: Party,
    #[serde(rename = "e")]
    epoch: u32,
    #[serde(rename = "q")]
    sequence: u64,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    in_reply_to: Option<u64>,
    #[serde(rename = "a")]
    at: Micros,
    #[serde(rename = "t")]
    entry_type: EntryType,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    error: Option<Box<str>>,
    /// It has no payload, which is another thing than an empty one.
    #[serde(rename = "n", default, skip_serializing_if = "std::ops::Not::not")]
    nothing: bool,
}

/// What the script is given of an entry.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) header: String,
    pub(super) payload: Bytes,
    pub(super) mark: String,
}

pub(super) fn encode(entry: &Entry) -> Result<Encoded, BackendError> {
    let header = to_json(&Header {
        sender: entry.sender.clone(),
        epoch: entry.epoch,
        sequence: entry.sequence,
        in_reply_to: entry.in_reply_to,
        at: entry.at,
        entry_type: entry.entry_type,
        error: entry.error.clone(),
        nothing: entry.payload.is_none(),
    })?;
    let mark = mark(&entry.sender, entry.epoch, entry.sequence);
    let payload = entry.payload.clone().unwrap_or_default();
    Ok(Encoded { header, payload, mark: format!("{}:{mark}", entry.bytes()) })
}

/// By what an entry is found, behind its bytes: what it says of its sender is as short for a long name.
pub(super) fn mark(sender: &Party, epoch: u32, sequence: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(epoch.to_le_bytes());
    hash.update(sender.as_str());
    let mut sender = [0; 8];
    sender.copy_from_slice(&hash.finalize()[..8]);
    format!("{sequence}:{:016x}", u64::from_be_bytes(sender))
}

/// Entries as the server lists them.
pub(super) fn decode(entries: Value) -> Result<Vec<Arc<Entry>>, BackendError> {
    list(entries).ok_or_else(shape)?.into_iter().map(|entry| decode_one(entry).map(Arc::new)).collect()
}

fn decode_one(entry: Value) -> Result<Entry, BackendError> {
    let mut parts = list(entry).ok_or_else(shape)?;
    let mut fields = parts.pop().and_then(list).ok_or_else(shape)?;
    let id = parts.first().and_then(text).and_then(|id| id.strip_suffix("-0"));
    let position = id.and_then(|id| id.parse().ok()).ok_or_else(shape)?;
    let Some(Value::BulkString(payload)) = fields.pop() else { return Err(shape()) };
    let header = fields.get(1).and_then(bytes).ok_or_else(shape)?;
    let header: Header = serde_json::from_slice(header).map_err(|_| shape())?;
    Ok(Entry {
        position: Position(position),
        sender: header.sender,
        epoch: header.epoch,
        sequence: header.sequence,
        in_reply_to: header.in_reply_to,
        at: header.at,
        entry_type: header.entry_type,
        error: header.error,
        payload: (!header.nothing).then(|| Bytes::from(payload)),
        wire: OnceLock::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(payload: Option<&'static [u8]>) -> Entry {
        Entry {
            position: Position(1 << 40),
            sender: Party::new("Zoë <a@b.example>").unwrap(),
            epoch: 7,
            sequence: (1 << 53) - 1,
            in_reply_to: Some(3),
            at: Micros(-5),
            entry_type: EntryType::Error,
            error: Some("it \"broke\"".into()),
            payload: payload.map(Bytes::from_static),
            wire: OnceLock::new(),
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_and_no_payload_is_not_an_empty_one() {
        for payload in [None, Some(&b""[..]), Some(&b"\x00\xff\r\n"[..])] {
            let entry = entry(payload);
            let encoded = encode(&entry).unwrap();
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            let payload = Value::BulkString(encoded.payload.to_vec());
            let fields = Value::Array(vec![text("h"), text(&encoded.header), text("p"), payload]);
            let listed = Value::Array(vec![Value::Array(vec![text("1099511627776-0"), fields])]);
            assert_eq!(*decode(listed).unwrap()[0], entry);
            assert_eq!(encoded.mark.split(':').next(), Some(entry.bytes().to_string().as_str()));
        }
    }

    #[test]
    fn a_mark_is_of_one_sender_in_one_epoch_under_one_number() {
        let of = |name: &str, epoch, sequence| mark(&Party::new(name).unwrap(), epoch, sequence);
        let marks = [of("ann", 0, 1), of("ann", 0, 2), of("ann", 1, 1), of("eve", 0, 1)];
        for (index, one) in marks.iter().enumerate() {
            assert!(marks[..index].iter().all(|other| other != one), "{marks:?}");
        }
        assert_eq!(of("ann", 0, 1), marks[0]);
    }
}
