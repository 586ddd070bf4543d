//! Frames: what a client is told, in the JSON of the wire, encoded once for everybody who gets it.
//!
//! All frames of one commit travel together as a [`Batch`]. An SSE stream sends it as one event per frame, of
//! which only the last carries the `id`, so that a client that was cut off in the middle of a commit gets the
//! whole commit again.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use crate::event::Revision;

const INFALLIBLE: &str = "writing to memory cannot fail";

/// The encoded frames of one step of a view: of one commit, of a snapshot, or a mark. Clones share the bytes.
#[derive(Clone)]
pub struct Batch(Arc<Encoded>);

struct Encoded {
    /// The frames' JSON, separated by commas.
    json: Bytes,
    /// Where each frame ends in it, and its name.
    ends: Box<[(u32, &'static str)]>,
    /// What a client resumes from once it has all of this; none in the middle of a snapshot.
    token: Option<Box<str>>,
    revision: Revision,
    sse: OnceLock<Bytes>,
    committed: OnceLock<Instant>,
}

impl Batch {
    /// The frames of one batch, as JSON texts.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Bytes> + '_ {
        (0..self.0.ends.len()).map(|index| self.0.json.slice(self.span(index)))
    }

    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// What the frames are called, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.ends.iter().map(|(_, name)| *name)
    }

    /// The frames' JSON, separated by commas, without brackets.
    pub fn list(&self) -> Bytes {
        self.0.json.clone()
    }

    /// As server-sent events, encoded at the first call.
    pub fn sse(&self) -> Bytes {
        self.0.sse.get_or_init(|| self.encode_sse()).clone()
    }

    /// When what it tells was committed; none for a snapshot or a mark.
    pub fn committed(&self) -> Option<Instant> {
        self.0.committed.get().copied()
    }

    /// Says when that was. What was said first holds.
    pub(super) fn stamp(&self, committed: Instant) {
        let _ = self.0.committed.set(committed);
    }

    /// What a client resumes from once it has all of this.
    pub fn token(&self) -> Option<&str> {
        self.0.token.as_deref()
    }

    /// What a client that has this is exact at.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// What it costs to keep.
    pub fn bytes(&self) -> usize {
        self.0.json.len() + self.0.sse.get().map_or(0, Bytes::len) + size_of::<Encoded>()
    }

    fn span(&self, index: usize) -> std::ops::Range<usize> {
        // After the former one comes a comma.
        let start = index.checked_sub(1).map_or(0, |before| self.0.ends[before].0 as usize + 1);
        start..self.0.ends[index].0 as usize
    }

    fn encode_sse(&self) -> Bytes {
        let encoded = &*self.0;
        let mut out = Vec::with_capacity(encoded.json.len() + 32 * encoded.ends.len() + 64);
        for (index, (_, name)) in encoded.ends.iter().enumerate() {
            if let Some(token) = encoded.token.as_deref().filter(|_| index + 1 == encoded.ends.len()) {
                writeln!(out, "id: {token}").expect(INFALLIBLE);
            }
            write!(out, "event: {name}\ndata: ").expect(INFALLIBLE);
            out.extend_from_slice(&encoded.json[self.span(index)]);
            out.extend_from_slice(b"\n\n");
        }
        out.into()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("revision", &self.0.revision)
            .field("frames", &String::from_utf8_lossy(&self.0.json))
            .finish()
    }
}

/// A batch in the making.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    json: Vec<u8>,
    ends: Vec<(u32, &'static str)>,
}

impl BatchBuilder {
    /// Adds a frame: its name, and what writes its JSON, which must have no line breaks.
    pub fn frame(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        if !self.json.is_empty() {
            self.json.push(b',');
        }
        write(&mut self.json);
        self.ends.push((u32::try_from(self.json.len()).expect("a batch is far below 4 GiB"), name));
        self
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn finish(&mut self, token: Option<String>, revision: Revision) -> Batch {
        let json = std::mem::take(&mut self.json);
        let ends = std::mem::take(&mut self.ends);
        Batch(Arc::new(Encoded {
            json: json.into(),
            ends: ends.into(),
            token: token.map(String::into_boxed_str),
            revision,
            sse: OnceLock::new(),
            committed: OnceLock::new(),
        }))
    }
}
