//! Reads the host's answer lines, as little of them as is needed.

use serde::Deserialize;

use super::Window;
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

/// Why the answers of an upload are not read on. What they said up to there is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswersEnd {
    /// The rest may be taken later.
    Again(String),
    /// The upload has reached a bound of the host; another one goes on. Holds what the host said.
    NextUpload(String),
    /// This is no answer that was asked for.
    Unexpected(String),
}

impl Answers {
    /// Takes bytes, cut anywhere, and tells the window which events they answer.
    pub fn feed(&mut self, mut bytes: &[u8], window: &mut Window) -> Result<(), AnswersEnd> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.carry.is_empty() {
                self.line(line, window)?;
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole, window)?;
            }
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
        if self.carry.len() > ANSWER_BYTES_MAX {
            let detail = format!("an answer line is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(AnswersEnd::Unexpected(detail));
        }
        Ok(())
    }

    /// Forgets half a line: its connection is gone.
    pub fn reconnect(&mut self) {
        self.carry.clear();
    }

    /// The position of the last event that was taken.
    pub fn position(&self) -> Option<String> {
        serde_json::from_slice::<PositionLine>(&self.last).ok().map(|line| line.position)
    }

    fn line(&mut self, line: &[u8], window: &mut Window) -> Result<(), AnswersEnd> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        if line.starts_with(b"{\"error\"") {
            return self.error(line, window);
        }
        window.answer(1).map_err(AnswersEnd::Unexpected)?;
        self.events += 1;
        self.repeated += u64::from(line.ends_with(b"true}"));
        self.last.clear();
        self.last.extend_from_slice(line);
        Ok(())
    }

    fn error(&mut self, line: &[u8], window: &mut Window) -> Result<(), AnswersEnd> {
        let ErrorLine { error } = serde_json::from_slice(line)
            .map_err(|e| AnswersEnd::Unexpected(format!("an answer line is no answer: {e}")))?;
        match error.code.as_str() {
            // These are of the upload and not of an event.
            "upload_bytes_max" | "body_idle_max" => return Err(AnswersEnd::NextUpload(error.sentence())),
            _ if error.is_transient() => return Err(AnswersEnd::Again(error.sentence())),
            "batch_refused" if window.answer_innocent().map_err(AnswersEnd::Unexpected)? => return Ok(()),
            _ => {}
        }
        let number = window.next_answered().map_err(AnswersEnd::Unexpected)?;
        window.answer(1).map_err(AnswersEnd::Unexpected)?;
        self.events += 1;
        self.refused += 1;
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push(format!("event {number}: {}", error.sentence()));
        }
        Ok(())
    }
}
