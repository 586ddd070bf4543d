//! What was sent and not answered: bounded, and enough to go on after a break.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::Chunk;
use crate::limits::BATCH_EVENTS_MAX;

/// Bytes that may be sent without an answer. At the bound sending waits.
const UNANSWERED_BYTES_MAX: usize = 32 << 20;

/// Chunks in the order of the input. Pure: it sends nothing.
///
/// An event whose batch was refused because of another one is innocent: it is
/// sent again before anything new, in an upload that holds nothing else. Each
/// time such uploads become half as long, so that the offenders end up alone:
/// no event is sent more often than that takes.
#[derive(Clone, Debug, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
    /// How many of `entries`, from the first on, this attempt has sent.
    sent: usize,
    /// Events of the first entry that were answered, and where the next begins in it.
    answered: u64,
    answered_bytes: usize,
    /// Innocent events: they go first in the next attempt.
    again: Vec<Again>,
    bytes: usize,
    input_bytes: u64,
    /// Events that came in.
    events: u64,
    resent: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    chunk: Chunk,
    numbers: Numbers,
    /// How often these events shared the fate of another.
    rounds: u32,
}

/// Which events of the input they are, counted from 1.
#[derive(Clone, Debug)]
enum Numbers {
    From(u64),
    Each(Vec<u64>),
}

#[derive(Clone, Debug)]
struct Again {
    line: Bytes,
    number: u64,
    rounds: u32,
    input_bytes: u64,
}

impl Window {
    /// Whether another chunk may come in.
    pub fn has_room(&self) -> bool {
        self.is_empty() || self.bytes < UNANSWERED_BYTES_MAX
    }

    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        let numbers = Numbers::From(self.events + 1);
        self.events += chunk.events;
        self.entries.push_back(Entry { chunk, numbers, rounds: 0 });
    }

    /// The next chunk to send, in this attempt.
    pub fn next_unsent(&self) -> Option<&Chunk> {
        self.entries.get(self.sent).map(|entry| &entry.chunk)
    }

    pub fn mark_sent(&mut self) {
        self.sent = (self.sent + 1).min(self.entries.len());
    }

    /// Whether what comes next must not share an upload with what this attempt has sent.
    pub fn must_part(&self) -> bool {
        let is_again = |at: usize| self.entries.get(at).is_some_and(|entry| entry.rounds > 0);
        self.has_innocent() || is_again(self.sent) || self.sent.checked_sub(1).is_some_and(is_again)
    }

    /// So many more events were answered. `Err` when they were never sent.
    pub fn answer(&mut self, events: u64) -> Result<(), String> {
        for _ in 0..events {
            self.next_answered()?;
            self.step();
        }
        Ok(())
    }

    /// The next event was refused because of another. True when it will be sent
    /// again; false when it stood alone and so cannot be innocent.
    pub fn answer_innocent(&mut self) -> Result<bool, String> {
        let number = self.next_answered()?;
        let range = self.line();
        let Entry { chunk, rounds, .. } = &self.entries[0];
        if upload_events_max(*rounds) == 1 && *rounds > 0 {
            return Ok(false);
        }
        let again = Again {
            line: chunk.bytes.slice(range),
            number,
            rounds: rounds + 1,
            input_bytes: chunk.input_bytes,
        };
        self.bytes += again.line.len();
        self.again.push(again);
        self.resent += 1;
        self.step();
        Ok(true)
    }

    /// The number of the event that the next answer is for. `Err` when none was sent.
    pub fn next_answered(&self) -> Result<u64, String> {
        match self.entries.front() {
            Some(entry) if self.sent > 0 => Ok(entry.number(self.answered)),
            _ => Err("the host answered events that were not sent".into()),
        }
    }

    /// Begins a new attempt: with the innocent, then with the first event that has no answer.
    pub fn restart(&mut self) {
        if self.answered > 0
            && let Some(front) = self.entries.front_mut()
        {
            let rest = front.chunk.without_first(self.answered);
            self.bytes -= front.chunk.bytes.len() - rest.bytes.len();
            let rest_events = rest.events;
            front.chunk = rest;
            match &mut front.numbers {
                Numbers::From(first) => *first += self.answered,
                Numbers::Each(numbers) => {
                    let left = numbers.len().min(usize::try_from(rest_events).unwrap_or(usize::MAX));
                    numbers.drain(..numbers.len() - left);
                }
            }
        }
        (self.answered, self.answered_bytes, self.sent) = (0, 0, 0);
        let again = std::mem::take(&mut self.again);
        for same in again.chunk_by(|a, b| a.rounds == b.rounds).rev() {
            for part in same.chunks(upload_events_max(same[0].rounds)).rev() {
                self.entries.push_front(Entry::again(part));
            }
        }
    }

    /// Whether everything that came in was answered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.again.is_empty()
    }

    /// Whether everything that was sent in this attempt was answered.
    pub fn owes_nothing(&self) -> bool {
        self.sent == 0 && self.answered == 0
    }

    /// How far the input is answered, in its own bytes.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Whether events wait for the next attempt.
    pub fn has_innocent(&self) -> bool {
        !self.again.is_empty()
    }

    /// How often events were sent again because of another in their batch.
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Where the line of the next answer is in the first entry.
    fn line(&self) -> Range<usize> {
        let rest = &self.entries[0].chunk.bytes[self.answered_bytes..];
        let length = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
        self.answered_bytes..self.answered_bytes + length
    }

    /// Leaves the next answer's event behind.
    fn step(&mut self) {
        self.answered_bytes = self.line().end;
        self.answered += 1;
        let Some(front) = self.entries.pop_front_if(|front| front.chunk.events <= self.answered) else {
            return;
        };
        (self.answered, self.answered_bytes) = (0, 0);
        self.sent -= 1;
        self.bytes -= front.chunk.bytes.len();
        self.input_bytes = self.input_bytes.max(front.chunk.input_bytes);
    }
}

impl Entry {
    fn again(part: &[Again]) -> Self {
        let lines: Vec<&[u8]> = part.iter().map(|again| &again.line[..]).collect();
        let chunk = Chunk {
            bytes: lines.concat().into(),
            events: part.len() as u64,
            input_bytes: part.last().map_or(0, |again| again.input_bytes),
        };
        let numbers = Numbers::Each(part.iter().map(|again| again.number).collect());
        Self { chunk, numbers, rounds: part.first().map_or(1, |again| again.rounds) }
    }

    fn number(&self, index: u64) -> u64 {
        match &self.numbers {
            Numbers::From(first) => first + index,
            Numbers::Each(numbers) => {
                usize::try_from(index).ok().and_then(|index| numbers.get(index)).copied().unwrap_or(0)
            }
        }
    }
}

/// Events of an upload that is sent for the nth time: a batch, then halves of it, then each alone.
fn upload_events_max(rounds: u32) -> usize {
    (BATCH_EVENTS_MAX >> rounds.saturating_sub(1).min(usize::BITS - 1)).max(1)
}
