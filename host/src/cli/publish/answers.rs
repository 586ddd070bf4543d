//! Reads the host's answer lines, as little of them as is needed.

use serde::Deserialize;

use crate::cli::client::Problem;

/// Most bytes of one answer line.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Refusals that are kept as text.
const REFUSALS_MAX: usize = 10;

/// What the answers said so far.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Answered events, refused ones included.
    pub events: u64,
    pub repeated: u64,
    pub refused: u64,
    /// The first refusals.
    pub refusals: Vec<String>,
    /// The beginning of a line whose end has not come.
    carry: Vec<u8>,
    /// The last line that gave a position.
    last: Vec<u8>,
}

#[derive(Deserialize)]
struct ErrorLine {
    error: Problem,
}

#[derive(Deserialize)]
struct PositionLine {
    position: String,
}

impl Answers {
    /// Takes bytes, cut anywhere, and says how many events they answer. `Err`
    /// is why the events from there on must be sent again: the answers up to
    /// there are counted.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<u64, String> {
        let before = self.events;
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.carry.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole)?;
            }
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
        if self.carry.len() > ANSWER_BYTES_MAX {
            return Err(format!("an answer line is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        Ok(self.events - before)
    }

    /// Forgets half a line: its connection is gone.
    pub fn reconnect(&mut self) {
        self.carry.clear();
    }

    /// The position of the last event that was taken.
    pub fn position(&self) -> Option<String> {
        serde_json::from_slice::<PositionLine>(&self.last).ok().map(|line| line.position)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        if line.starts_with(b"{\"error\"") {
            let ErrorLine { error } =
                serde_json::from_slice(line).map_err(|e| format!("an answer line is no answer: {e}"))?;
            if error.is_transient() {
                return Err(error.sentence());
            }
            self.events += 1;
            self.refused += 1;
            if self.refusals.len() < REFUSALS_MAX {
                self.refusals.push(format!("event {}: {}", self.events, error.sentence()));
            }
            return Ok(());
        }
        self.events += 1;
        self.repeated += u64::from(line.ends_with(b"true}"));
        self.last.clear();
        self.last.extend_from_slice(line);
        Ok(())
    }
}
