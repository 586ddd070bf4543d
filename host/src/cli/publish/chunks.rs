//! Cuts the input at line ends.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::limits::BATCH_BYTES_MAX;

/// Bytes of one read, and about the size of a chunk: large enough that a chunk's own cost does not count.
const READ_BYTES: usize = 128 << 10;
/// Chunks a second at a rate: small enough to look even, large enough to be cheap.
const PACED_CHUNKS_PER_SECOND: f64 = 50.0;

/// Whole lines of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub bytes: Bytes,
    /// Lines in it, each ended.
    pub events: u64,
    /// Bytes of the input, compressed as it may be, that were read when it was cut.
    pub input_bytes: u64,
}

/// How large chunks become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Reading goes on until there is this much. 1 sends what is there, for an input that comes slowly.
    pub bytes_min: usize,
    /// Events in a chunk.
    pub events_max: u64,
}

impl ChunkLimits {
    /// Full chunks from a file, what there is from a pipe, small ones at a rate.
    pub fn for_rate(rate: Option<f64>, from_file: bool) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is positive, and `as` saturates"
        )]
        let events_max =
            rate.map_or(u64::MAX, |rate| (rate / PACED_CHUNKS_PER_SECOND).ceil().max(1.0) as u64);
        Self { bytes_min: if from_file { READ_BYTES } else { 1 }, events_max }
    }
}

/// Reads an input as chunks. Blank lines are left out: they get no answer.
#[derive(Debug)]
pub struct Chunker<R> {
    input: R,
    limits: ChunkLimits,
    buffer: Vec<u8>,
    /// Where the next chunk begins in `buffer`.
    start: usize,
    ended: bool,
    read: Arc<AtomicU64>,
}

impl<R: Read> Chunker<R> {
    /// `read` is where the input counts its bytes.
    pub fn new(input: R, limits: ChunkLimits, read: Arc<AtomicU64>) -> Self {
        Self { input, limits, buffer: Vec::new(), start: 0, ended: false, read }
    }

    /// The next chunk; `None` at the end.
    pub fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        loop {
            if self.whole_lines() == 0 {
                self.fill()?;
            }
            let whole = self.whole_lines();
            if whole == 0 {
                return Ok(None);
            }
            let end = self.start + self.cut(whole);
            let lines = without_blank_lines(&self.buffer[self.start..end]);
            self.start = end;
            let events = line_ends(&lines);
            if events > 0 {
                return Ok(Some(Chunk {
                    bytes: lines,
                    events,
                    input_bytes: self.read.load(Ordering::Relaxed),
                }));
            }
        }
    }

    /// Bytes up to the last line end.
    fn whole_lines(&self) -> usize {
        self.buffer[self.start..].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
    }

    /// Of so many bytes of whole lines, those of the first `events_max`.
    fn cut(&self, whole: usize) -> usize {
        if self.limits.events_max == u64::MAX {
            return whole;
        }
        let mut left = self.limits.events_max;
        let is_last = |b: &u8| {
            left -= u64::from(*b == b'\n');
            left == 0
        };
        self.buffer[self.start..self.start + whole].iter().position(is_last).map_or(whole, |at| at + 1)
    }

    /// Reads until there is a line end and `bytes_min`, or the end.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        while !self.ended {
            let had = self.buffer.len();
            self.buffer.resize(had + READ_BYTES, 0);
            let got = loop {
                match self.input.read(&mut self.buffer[had..]) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer.truncate(had + got.as_ref().copied().unwrap_or(0));
            if got? == 0 {
                self.ended = true;
                if self.buffer.last().is_some_and(|b| *b != b'\n') {
                    self.buffer.push(b'\n');
                }
            }
            let has_line = self.buffer[had..].contains(&b'\n');
            if has_line && self.buffer.len() >= self.limits.bytes_min {
                return Ok(());
            }
            if !has_line && self.buffer.len() > 2 * BATCH_BYTES_MAX {
                let text = format!(
                    "a line has more than {} bytes; batch_bytes_max is {BATCH_BYTES_MAX}",
                    2 * BATCH_BYTES_MAX
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }
}

impl Chunk {
    /// The same without its first lines.
    #[must_use]
    pub fn without_first(&self, lines: u64) -> Self {
        let mut bytes = self.bytes.clone();
        for _ in 0..lines {
            let end = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes = bytes.slice(end..);
        }
        Self { bytes, events: self.events.saturating_sub(lines), input_bytes: self.input_bytes }
    }
}

/// Counting in bytes first lets the compiler use vector instructions.
fn line_ends(bytes: &[u8]) -> u64 {
    bytes.chunks(255).map(|part| u64::from(part.iter().fold(0_u8, |n, b| n + u8::from(*b == b'\n')))).sum()
}

fn without_blank_lines(lines: &[u8]) -> Bytes {
    let blank = |line: &[u8]| line.iter().all(u8::is_ascii_whitespace);
    let suspicious = lines.first().is_some_and(u8::is_ascii_whitespace)
        || lines.windows(2).any(|pair| pair[0] == b'\n' && pair[1].is_ascii_whitespace());
    if !suspicious {
        return Bytes::copy_from_slice(lines);
    }
    let kept: Vec<&[u8]> = lines.split_inclusive(|b| *b == b'\n').filter(|line| !blank(line)).collect();
    kept.concat().into()
}
