//! Reads `text/event-stream`: bytes in, frames out.

use crate::limits::CHANNEL_BATCH_BYTES_CEILING;

/// Most bytes of one frame; a longer one is not from a Millrace host. The largest is an entry of a channel, whose payload
/// is written as base64, and may be as large as any host lets an append be.
const FRAME_BYTES_MAX: usize = CHANNEL_BATCH_BYTES_CEILING.div_ceil(3) * 4 + (64 << 10);

/// One event of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseFrame {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: String,
}

/// Takes bytes as they come, cut anywhere.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    frame: SseFrame,
    has_data: bool,
}

impl SseParser {
    /// The frames that end in these bytes. `Err` when a frame passes all bounds.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<SseFrame>, String> {
        let mut frames = Vec::new();
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.frame.data.len() > FRAME_BYTES_MAX {
                return Err(format!("a frame is longer than {FRAME_BYTES_MAX} bytes"));
            }
            if part.last() != Some(&b'\n') {
                break;
            }
            let line = std::mem::take(&mut self.line);
            let text = String::from_utf8_lossy(&line);
            frames.extend(self.take(text.trim_end_matches(['\r', '\n'])));
        }
        Ok(frames)
    }

    fn take(&mut self, line: &str) -> Option<SseFrame> {
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return std::mem::take(&mut self.has_data).then_some(frame);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.has_data = true;
                self.frame.data.push_str(value);
            }
            "id" => self.frame.id = Some(value.into()),
            "event" => self.frame.event = Some(value.into()),
            // Comments, `retry` and what later versions add.
            _ => {}
        }
        None
    }
}
