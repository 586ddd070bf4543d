//! Standard output: lines, aligned tables, JSON.

use std::fmt;
use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::CliError;

/// Where a command writes what was asked for. Everything else goes to standard error.
pub struct Output(Box<dyn Write>);

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

impl Output {
    pub fn stdout() -> Self {
        Self::new(BufWriter::new(io::stdout()))
    }

    pub fn new(writer: impl Write + 'static) -> Self {
        Self(Box::new(writer))
    }

    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        self.0.write_all(text.as_bytes())?;
        self.0.write_all(b"\n")?;
        Ok(())
    }

    /// One line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        serde_json::to_writer(&mut self.0, value).map_err(io::Error::from)?;
        self.0.write_all(b"\n")?;
        Ok(())
    }

    /// A table with a head, columns two blanks apart.
    pub fn table(&mut self, head: &[(&str, Align)], rows: &[Vec<String>]) -> Result<(), CliError> {
        for line in aligned(head, rows) {
            self.line(&line)?;
        }
        Ok(())
    }

    /// Writes out what is buffered. Whoever waits for the network calls this before.
    pub fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.0.flush()?)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

/// The lines of a table. Width counts characters.
pub fn aligned(head: &[(&str, Align)], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = head.iter().map(|(name, _)| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), (_, align)) in cells.zip(&widths).zip(head) {
            if !text.is_empty() {
                text.push_str("  ");
            }
            let blanks = " ".repeat(width - cell.chars().count());
            match align {
                Align::Left => text.extend([cell, &blanks]),
                Align::Right => text.extend([&blanks, cell]),
            }
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().map(|(name, _)| *name))];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

/// Text for a terminal: what would steer it is written as an escape. Events and
/// rows come from others; their text must not move a cursor or set a title.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        // Bidirectional controls reorder what stands around them.
        let bidi = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || bidi {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}
