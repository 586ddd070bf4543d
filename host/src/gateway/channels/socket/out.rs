//! What a client is sent next, and how it is written.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::binary;
use super::commands::About;
use crate::channels::{Entry, Place};
use crate::event::Position;
use crate::gateway::channels::entry_json;
use crate::gateway::live::pulse::in_time;
use crate::gateway::live::{Broken, Fault, Framed, MessageKind, millis};
use crate::gateway::metrics;
use crate::gateway::problem::Problem;
use crate::gateway::serve::WriteBound;
use crate::limits::{CHANNEL_RETRY_MAX, CHANNEL_SOCKET_WRITE_BYTES};

/// Messages that go out in one write.
#[derive(Debug, Default)]
pub(super) struct Out {
    messages: Vec<Message>,
    bytes: usize,
    entries: usize,
}

/// One message, in parts that follow each other.
#[derive(Debug)]
pub(super) struct Message {
    kind: MessageKind,
    parts: Vec<Bytes>,
}

impl Message {
    pub(super) fn text(json: &Value) -> Self {
        Self { kind: MessageKind::Text, parts: vec![json.to_string().into()] }
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
        self.messages.is_empty()
    }

    /// Whether what is ready waits for the next write.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= CHANNEL_SOCKET_WRITE_BYTES
    }

    pub(super) fn push(&mut self, message: Message) {
        self.bytes += message.parts.iter().map(Bytes::len).sum::<usize>();
        self.messages.push(message);
    }

    pub(super) fn text(&mut self, json: &Value) {
        self.push(Message::text(json));
    }

    pub(super) fn refuse(&mut self, about: &About, problem: &Problem) {
        self.push(Message::refusal(about, problem));
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
        self.push(Message { kind: MessageKind::Text, parts });
    }

    /// The same with a binary message for each.
    pub(super) fn binary_entries(&mut self, number: u32, entries: &[Arc<Entry>]) {
        self.entries += entries.len();
        for entry in entries {
            let payload = entry.payload.clone().unwrap_or_default();
            let parts = vec![binary::entry_head(number, entry), payload];
            self.push(Message { kind: MessageKind::Binary, parts });
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
        let Self { messages, bytes, entries } = std::mem::take(self);
        let parts = messages.iter().map(|message| (message.kind, message.parts.as_slice()));
        in_time(within, conn.write_parts(parts)).await?;
        Ok((entries, bytes))
    }
}

/// How messages with entries of a subscription begin.
pub(super) fn entries_head(id: &str) -> Bytes {
    format!("{{\"op\":\"entries\",\"id\":{},\"entries\":[", json!(id)).into()
}
