//! What was sent and not answered: bounded, and enough to go on after a break.

use std::collections::VecDeque;

use super::Chunk;

/// Bytes that may be sent without an answer. At the bound sending waits.
const UNANSWERED_BYTES_MAX: usize = 32 << 20;

/// Chunks in the order of the input. Pure: it sends nothing.
#[derive(Clone, Debug, Default)]
pub struct Window {
    chunks: VecDeque<Chunk>,
    /// How many of `chunks`, from the first on, this attempt has sent.
    sent: usize,
    /// Events of the first chunk that were answered.
    answered: u64,
    bytes: usize,
    input_bytes: u64,
}

impl Window {
    /// Whether another chunk may come in.
    pub fn has_room(&self) -> bool {
        self.chunks.is_empty() || self.bytes < UNANSWERED_BYTES_MAX
    }

    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.chunks.push_back(chunk);
    }

    /// The next chunk to send, in this attempt.
    pub fn next_unsent(&self) -> Option<&Chunk> {
        self.chunks.get(self.sent)
    }

    pub fn mark_sent(&mut self) {
        self.sent = (self.sent + 1).min(self.chunks.len());
    }

    /// So many more events were answered. `Err` when they were never sent.
    pub fn answer(&mut self, events: u64) -> Result<(), String> {
        self.answered += events;
        while let Some(front) = self.chunks.front().filter(|front| front.events <= self.answered) {
            if self.sent == 0 {
                return Err("the host answered events that were not sent".into());
            }
            self.answered -= front.events;
            self.sent -= 1;
            self.bytes -= front.bytes.len();
            self.input_bytes = front.input_bytes;
            self.chunks.pop_front();
        }
        match self.answered {
            0 => Ok(()),
            _ if self.sent > 0 => Ok(()),
            _ => Err("the host answered events that were not sent".into()),
        }
    }

    /// Begins a new attempt with the first event that has no answer.
    pub fn restart(&mut self) {
        if self.answered > 0
            && let Some(front) = self.chunks.front_mut()
        {
            let rest = front.without_first(self.answered);
            self.bytes -= front.bytes.len() - rest.bytes.len();
            *front = rest;
        }
        self.answered = 0;
        self.sent = 0;
    }

    /// Whether everything that came in was answered.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether everything that was sent in this attempt was answered.
    pub fn owes_nothing(&self) -> bool {
        self.sent == 0 && self.answered == 0
    }

    /// How far the input is answered, in its own bytes.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }
}
