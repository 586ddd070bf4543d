//! What a client is sent next, and how it is written.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::binary;
use super::commands::{About, Reference};
use crate::channels::{Appended, Entry, Place};
use crate::event::Position;
use crate::gateway::channels::entry_json;
use crate::gateway::json::write_text;
use crate::gateway::live::pulse::in_time;
use crate::gateway::live::{Broken, Fault, Framed, Frames, MessageKind, millis};
use crate::gateway::metrics;
use crate::gateway::problem::Problem;
use crate::gateway::serve::WriteBound;
use crate::limits::{CHANNEL_RETRY_MAX, CHANNEL_SOCKET_WRITE_BYTES};

/// Messages that go out in one write, as they go over the wire.
#[derive(Debug, Default)]
pub(super) struct Out {
    frames: Frames,
    /// Of the messages themselves.
    bytes: usize,
    entries: usize,
    /// Where answers are put together.
    answer: Vec<u8>,
}

/// A text message that is ready, and may wait for others.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn text(json: &Value) -> Self {
        Self(json.to_string().into())
    }

    /// Where the entries of an append lie.
    pub(super) fn appended(reference: &Reference, places: &[Appended]) -> Self {
        let mut out = Vec::new();
        write_appended(&mut out, reference, places);
        Self(out)
    }

    /// A request that was refused. It is counted.
    pub(super) fn refusal(about: &About, problem: &Problem) -> Self {
        metrics::problem(problem.code(), 1);
        let mut frame = problem.to_json();
        if let Some(members) = frame.as_object_mut() {
            members.insert("op".into(), "error".into());
            match about {
                About::Nothing => {}
                About::Subscription(id) => drop(members.insert("id".into(), id.as_str().into())),
                About::Append(reference) => drop(members.insert("ref".into(), json!(reference))),
            }
            if let Some(wait) = problem.retry() {
                members.insert("retry_ms".into(), millis(wait.min(CHANNEL_RETRY_MAX)).into());
            }
        }
        Self::text(&frame)
    }
}

impl Out {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether what is ready waits for the next write.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= CHANNEL_SOCKET_WRITE_BYTES
    }

    pub(super) fn push(&mut self, Message(text): &Message) {
        self.bytes += text.len();
        self.frames.push_parts(MessageKind::Text, &[text]);
    }

    /// [`Message::appended`] for an answer that waits for nobody.
    pub(super) fn appended(&mut self, reference: &Reference, places: &[Appended]) {
        self.answer.clear();
        write_appended(&mut self.answer, reference, places);
        self.bytes += self.answer.len();
        self.frames.push_parts(MessageKind::Text, &[&self.answer]);
    }

    pub(super) fn text(&mut self, json: &Value) {
        self.push(&Message::text(json));
    }

    pub(super) fn refuse(&mut self, about: &About, problem: &Problem) {
        self.push(&Message::refusal(about, problem));
    }

    /// Entries of a subscription in one message. `head` is how it begins; see [`entries_head`]. `newest` was the newest
    /// position when the subscription began, and `last` is where it stands behind them.
    pub(super) fn entries(&mut self, head: &Bytes, newest: Position, entries: &[Arc<Entry>], last: Place) {
        let mut parts = Vec::with_capacity(2 * entries.len() + 1);
        for entry in entries {
            parts.push(if parts.is_empty() { head.clone() } else { Bytes::from_static(b",") });
            parts.push(entry_json::followed(entry, newest));
        }
        // No letter of a cursor has to be escaped.
        parts.push(format!("],\"cursor\":\"{last}\"}}").into());
        self.entries += entries.len();
        self.bytes += parts.iter().map(Bytes::len).sum::<usize>();
        self.frames.push_parts(MessageKind::Text, &parts);
    }

    /// The same with a binary message for each.
    pub(super) fn binary_entries(&mut self, number: u32, entries: &[Arc<Entry>]) {
        self.entries += entries.len();
        for entry in entries {
            let length = binary::entry_length(entry);
            self.bytes += length;
            self.frames.push(MessageKind::Binary, length, |out| binary::write_entry(out, number, entry));
        }
    }

    /// The last message.
    pub(super) fn closing(&mut self, fault: &Fault) {
        let mut frame = fault.frame(fault.retry_ms());
        frame["op"] = "closing".into();
        self.text(&frame);
    }

    /// Writes all of it, in one go. Answers the entries and bytes that were in it.
    pub(super) async fn write(
        &mut self,
        conn: &mut Framed<WriteBound>,
        within: std::time::Duration,
    ) -> Result<(usize, usize), Broken> {
        // Its memory is not kept: most sockets are idle most of the time.
        let Self { frames, bytes, entries, answer: _ } = std::mem::take(self);
        in_time(within, conn.write_frames(&frames)).await?;
        Ok((entries, bytes))
    }
}

/// How messages with entries of a subscription begin.
pub(super) fn entries_head(id: &str) -> Bytes {
    format!("{{\"op\":\"entries\",\"id\":{},\"entries\":[", json!(id)).into()
}

fn write_appended(out: &mut Vec<u8>, reference: &Reference, places: &[Appended]) {
    out.extend_from_slice(b"{\"op\":\"appended\",\"ref\":");
    match reference {
        Reference::Number(number) => write_whole(out, *number),
        Reference::Text(text) => write_text(out, text),
    }
    let mut open: &[u8] = b",\"appended\":[{\"position\":";
    for Appended { position, sequence, epoch, repeated } in places {
        out.extend_from_slice(open);
        write_whole(out, position.0);
        out.extend_from_slice(b",\"sequence\":");
        write_whole(out, *sequence);
        out.extend_from_slice(b",\"epoch\":");
        write_whole(out, u64::from(*epoch));
        out.extend_from_slice(if *repeated { b",\"repeated\":true}" } else { b",\"repeated\":false}" });
        open = b",{\"position\":";
    }
    out.extend_from_slice(if places.is_empty() { b",\"appended\":[]}" } else { b"]}" });
}

/// A number, without the ceremony of formatting: there are four in each answer.
fn write_whole(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b'0'; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] += (number % 10).to_le_bytes()[0];
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::channels::views::AppendedView;

    #[test]
    fn numbers_are_whole() {
        for number in [0, 1, 9, 10, 99, 100, 1_234_567_890, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            write_whole(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn where_entries_lie_is_said_as_it_is_over_http() {
        let place = |number: u64| Appended {
            position: Position(number),
            epoch: 3,
            sequence: u64::MAX - number,
            repeated: number == 2,
        };
        let references = [Reference::Number(u64::MAX), Reference::Text("a \"b\"\n\u{e9}".to_owned())];
        for (reference, count) in references.iter().zip([0, 3]).chain(references.iter().zip([3, 1])) {
            let places: Vec<_> = (0..count).map(place).collect();
            let Message(text) = Message::appended(reference, &places);
            let said: Value = serde_json::from_slice(&text).unwrap();
            let views: Vec<_> = places.into_iter().map(AppendedView::from).collect();
            assert_eq!(said, json!({ "op": "appended", "ref": reference, "appended": views }));
        }
    }
}
