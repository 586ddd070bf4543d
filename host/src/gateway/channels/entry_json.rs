//! Entries as JSON text, written by hand: payloads are encoded in place, and what many are sent is made once.

use std::fmt;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::channels::Entry;
use crate::event::Position;
use crate::gateway::json::{write_number, write_text};
use crate::gateway::params::{self, Params};
use crate::gateway::problem::Problem;
use crate::limits::{CHANNEL_JSON_DEPTH_MAX, CHANNEL_TAIL_BYTES_MAX};

const INFALLIBLE: &str = "writing to memory cannot fail";

/// How payloads are shown. What does not fit `Text` or `Json` is shown as base64, and its member's name says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shape {
    #[default]
    Base64,
    Text,
    Json,
}

impl Shape {
    pub(super) fn take(params: &mut Params) -> Result<Self, Problem> {
        match params.take("payload")?.as_deref() {
            None | Some("base64") => Ok(Self::Base64),
            Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(_) => Err(params::invalid("payload", "is `base64`, `text` or `json`")),
        }
    }
}

/// The usual form of an entry for a follower that began when `newest` was the newest position: what comes after it is
/// sent to others at about the same time, and made once for all. What is replayed or large is not worth keeping as text
/// beside the entry itself.
pub(super) fn followed(entry: &Entry, newest: Position) -> Bytes {
    if entry.position > newest && entry.bytes() <= CHANNEL_TAIL_BYTES_MAX {
        return shared(entry);
    }
    let mut out = Vec::new();
    write(&mut out, entry, Shape::Base64);
    out.into()
}

/// The usual form of an entry, made once for all who are sent it.
fn shared(entry: &Entry) -> Bytes {
    entry.wire(|entry| {
        let mut out = Vec::new();
        write(&mut out, entry, Shape::Base64);
        out.into()
    })
}

/// Appends an entry as a JSON object on one line.
pub(super) fn write(out: &mut Vec<u8>, entry: &Entry, shape: Shape) {
    let payload = entry.payload.as_deref();
    out.reserve(256 + payload.map_or(0, |bytes| base64::encoded_len(bytes.len(), true).unwrap_or(0)));
    write!(out, "{{\"position\":{},\"senderid\":", entry.position).expect(INFALLIBLE);
    write_text(out, entry.sender.as_str());
    write!(out, ",\"epoch\":{},\"sequence\":{}", entry.epoch, entry.sequence).expect(INFALLIBLE);
    if let Some(answered) = entry.in_reply_to {
        out.extend_from_slice(b",\"inreplyto\":");
        write_number(out, answered);
    }
    write!(out, ",\"timestamp\":\"{}\",\"type\":\"{}\"", entry.at, entry.entry_type.as_str())
        .expect(INFALLIBLE);
    if let Some(error) = &entry.error {
        out.extend_from_slice(b",\"error\":");
        write_text(out, error);
    }
    match payload {
        None => out.extend_from_slice(b",\"payload\":null"),
        Some(bytes) => write_payload(out, bytes, shape),
    }
    out.push(b'}');
}

fn write_payload(out: &mut Vec<u8>, bytes: &[u8], shape: Shape) {
    let text = if shape == Shape::Base64 { None } else { std::str::from_utf8(bytes).ok() };
    match (shape, text) {
        (Shape::Text, Some(text)) => {
            out.extend_from_slice(b",\"text\":");
            write_text(out, text);
        }
        (Shape::Json, Some(text)) if Sound::is(text) => {
            out.extend_from_slice(b",\"json\":");
            // Line breaks between tokens; JSON has none inside of strings.
            let line =
                text.trim().bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte });
            out.extend(line);
        }
        _ => {
            out.extend_from_slice(b",\"payload\":\"");
            let from = out.len();
            out.resize(from + base64::encoded_len(bytes.len(), true).unwrap_or(0), 0);
            STANDARD.encode_slice(bytes, &mut out[from..]).expect("there is as much room as it takes");
            out.push(b'"');
        }
    }
}

/// JSON that any reader can take in, down to its strings and its depth: one payload must not make a page unreadable. So
/// many levels it may have.
#[derive(Clone, Copy)]
struct Sound(usize);

impl Sound {
    fn is(text: &str) -> bool {
        let mut from = serde_json::Deserializer::from_str(text);
        Self(CHANNEL_JSON_DEPTH_MAX).deserialize(&mut from).and_then(|()| from.end()).is_ok()
    }

    /// Of what lies in an array or object of this.
    fn within<E: de::Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("it is too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Sound {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while all.next_element_seed(within)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while all.next_key_seed(within)?.is_some() {
            all.next_value_seed(within)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(payload: &[u8], shape: Shape) -> String {
        let mut out = Vec::new();
        write_payload(&mut out, payload, shape);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn a_payload_that_has_not_the_shape_is_base64_and_says_so() {
        assert_eq!(written(b"", Shape::Base64), ",\"payload\":\"\"");
        assert_eq!(written(b"hi", Shape::Base64), ",\"payload\":\"aGk=\"");
        assert_eq!(written(b"a\n\"b", Shape::Text), ",\"text\":\"a\\n\\\"b\"");
        assert_eq!(written(b"\xff", Shape::Text), ",\"payload\":\"/w==\"");
        assert_eq!(written(b" {\"a\":\r\n1.10}\n", Shape::Json), ",\"json\":{\"a\":  1.10}");
        assert_eq!(written(b"hi", Shape::Json), ",\"payload\":\"aGk=\"");
        assert_eq!(written(b"1 2", Shape::Json), ",\"payload\":\"MSAy\"");
    }

    #[test]
    fn json_that_a_reader_might_stumble_over_is_not_put_among_other_json() {
        let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
        for payload in [&deep[..], b"\"\\ud800\"", b"1e999", b"", b" "] {
            let text = written(payload, Shape::Json);
            assert!(text.starts_with(",\"payload\":\""), "{text:.80}");
        }
    }

    #[test]
    fn json_of_as_many_levels_as_fit_a_page_is_shown_and_one_level_more_is_base64() {
        let levels =
            |open: &str, close: &str, count| [open.repeat(count), "1".into(), close.repeat(count)].concat();
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let most = levels(open, close, CHANNEL_JSON_DEPTH_MAX);
            assert_eq!(written(most.as_bytes(), Shape::Json), format!(",\"json\":{most}"));
            let page = format!("{{\"entries\":[{{{}}}]}}", &written(most.as_bytes(), Shape::Json)[1..]);
            assert!(serde_json::from_str::<serde_json::Value>(&page).is_ok(), "a reader takes the page");
            let deeper = written(levels(open, close, CHANNEL_JSON_DEPTH_MAX + 1).as_bytes(), Shape::Json);
            assert!(deeper.starts_with(",\"payload\":\""), "{deeper:.80}");
        }
    }
}
