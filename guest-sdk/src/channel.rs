//! Channels of processes: appending to them, and reading what others have appended.
//!
//! A channel that was made with `events` is an input stream: each of its entries is an event of the aggregate `channel`
//! with the type `channel.data`, `channel.end` or `channel.error`, and [`ChannelEntry`] is its payload.

use std::borrow::Cow;

use serde::Deserialize;

/// What an entry says about its sender's half of the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryType {
    #[default]
    Data,
    /// The sender is done: nothing more comes from it.
    End,
    /// The sender has failed: nothing more comes from it.
    Error,
}

impl EntryType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::End => "end",
            Self::Error => "error",
        }
    }
}

/// An entry to append. Its sender is the plugin, and its number the next one of that sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewEntry<'a> {
    pub entry_type: EntryType,
    /// The number of an entry that somebody else has sent on the same channel.
    pub in_reply_to: Option<u64>,
    /// Only with the type `error`.
    pub error: Option<&'a str>,
    pub payload: Option<&'a [u8]>,
}

impl<'a> NewEntry<'a> {
    pub fn data(payload: &'a [u8]) -> Self {
        Self { payload: Some(payload), ..Self::default() }
    }

    pub fn text(text: &'a str) -> Self {
        Self::data(text.as_bytes())
    }

    /// Closes the plugin's half of the channel: it cannot append there any more.
    pub fn end() -> Self {
        Self { entry_type: EntryType::End, ..Self::default() }
    }

    /// The same, with what went wrong.
    pub fn error(text: &'a str) -> Self {
        Self { entry_type: EntryType::Error, error: Some(text), ..Self::default() }
    }

    pub fn replying_to(mut self, sequence: u64) -> Self {
        self.in_reply_to = Some(sequence);
        self
    }
}

/// An entry as an event tells it: `event.payload_as::<ChannelEntry>()`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChannelEntry<'a> {
    #[serde(borrow)]
    pub process: Cow<'a, str>,
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// Its place in the channel, from 1 on without holes.
    pub position: u64,
    pub epoch: u32,
    /// Counted by its sender.
    pub sequence: u64,
    #[serde(rename = "inreplyto", default)]
    pub in_reply_to: Option<u64>,
    #[serde(rename = "senderid", borrow)]
    pub sender: Cow<'a, str>,
    /// Who executed the channel when this was appended; a plugin is `plugin:<name>`.
    #[serde(rename = "executorid", borrow, default)]
    pub executor: Option<Cow<'a, str>>,
    #[serde(rename = "type")]
    pub entry_type: EntryType,
    /// Base64; [`Self::bytes`] has what it stands for.
    #[serde(borrow)]
    pub payload: Option<Cow<'a, str>>,
    /// The payload, where it is text.
    #[serde(borrow, default)]
    pub text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub error: Option<Cow<'a, str>>,
}

impl ChannelEntry<'_> {
    /// The payload; none where the entry has none.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        self.payload.as_deref().map(from_base64)
    }
}

/// Reads what the host has written: standard base64 with padding. What is something else is left out.
fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            let [byte, ..] = (bits >> count).to_le_bytes();
            bytes.push(byte);
        }
    }
    bytes
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let value = bits >> (18 - 6 * place) & 63;
            text.push(if place <= three.len() { char::from(LETTERS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_one_that_everybody_writes() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"fooba", "Zm9vYmE="),
            (b"foobar", "Zm9vYmFy"),
            (&[0xfb, 0xff, 0x00], "+/8A"),
        ] {
            assert_eq!(to_base64(bytes), text);
            assert_eq!(from_base64(text), bytes);
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_base64(&to_base64(&all)), all);
    }
}
