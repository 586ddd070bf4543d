//! Frames: what a client is told, in the JSON of the wire, encoded once for everybody who gets it.
//!
//! All frames of one commit travel together as a [`Batch`]. An SSE stream sends it as one event per frame, of
//! which only the last carries the `id`, so that a client that was cut off in the middle of a commit gets the
//! whole commit again.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use super::ahead;
use super::shape::RowText;
use crate::event::Revision;

/// What a builder keeps for the next batch.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

const INFALLIBLE: &str = "writing to memory cannot fail";

/// The encoded frames of one step of a view: of one commit, of a snapshot, or a mark. Clones share the bytes.
///
/// There are two forms of a frame. In a list, for clients that take all frames of a commit as one message, a row
/// that leaves is named only: the client has it. Alone, as an event or a message of its own, the frame shows it.
#[derive(Clone)]
pub struct Batch(Arc<Encoded>);

struct Encoded {
    /// The frames' JSON, separated by commas, as it is in a list.
    json: Bytes,
    ends: Ends,
    /// What the frames have more when they stand alone, in their order.
    inserts: Inserts,
    token: Token,
    revision: Revision,
    sse: OnceLock<Bytes>,
    committed: OnceLock<Instant>,
}

/// Where a frame ends in the JSON, and its name.
type End = (u32, &'static str);

/// Most batches have one frame or two.
enum Ends {
    One(End),
    Two([End; 2]),
    Many(Box<[End]>),
}

impl Ends {
    fn new(ends: &[End]) -> Self {
        match *ends {
            [one] => Self::One(one),
            [one, two] => Self::Two([one, two]),
            _ => Self::Many(ends.into()),
        }
    }

    fn list(&self) -> &[End] {
        match self {
            Self::One(end) => std::slice::from_ref(end),
            Self::Two(ends) => ends,
            Self::Many(ends) => ends,
        }
    }
}

/// A part of a frame that lists leave out, and where it belongs in the JSON.
#[derive(Clone)]
struct Insert {
    frame: u32,
    at: u32,
    text: RowText,
}

/// Few frames have one.
enum Inserts {
    None,
    One(Insert),
    Many(Box<[Insert]>),
}

impl Inserts {
    /// Takes all out of a list.
    fn new(inserts: &mut Vec<Insert>) -> Self {
        match inserts.len() {
            0 => Self::None,
            1 => inserts.pop().map_or(Self::None, Self::One),
            _ => Self::Many(inserts.drain(..).collect()),
        }
    }

    fn list(&self) -> &[Insert] {
        match self {
            Self::None => &[],
            Self::One(insert) => std::slice::from_ref(insert),
            Self::Many(inserts) => inserts,
        }
    }
}

/// What a client resumes from once it has all of a batch; none in the middle of a snapshot.
enum Token {
    None,
    /// It stands there in the JSON.
    Within(Range<u32>),
    Apart(Box<str>),
}

impl Batch {
    /// The frames of one batch, as JSON texts that stand alone.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Bytes> + '_ {
        (0..self.len()).map(|index| {
            let span = self.span(index);
            let Some(insert) = self.insert(index) else { return self.0.json.slice(span) };
            let mut whole = Vec::with_capacity(span.len() + insert.text.json().len());
            self.write_alone(index, &mut whole);
            whole.into()
        })
    }

    pub fn len(&self) -> usize {
        self.0.ends.list().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the frames are called, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.ends.list().iter().map(|(_, name)| *name)
    }

    /// The frames' JSON, separated by commas, without brackets. Rows that leave are named only.
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
        match &self.0.token {
            Token::None => None,
            Token::Within(span) => {
                std::str::from_utf8(&self.0.json[span.start as usize..span.end as usize]).ok()
            }
            Token::Apart(token) => Some(token),
        }
    }

    /// What a client that has this is exact at.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// Asks for its memory.
    pub(super) fn ask_for(&self) {
        ahead::all(&*self.0);
    }

    /// And then for what dropping it takes.
    pub(super) fn ask_for_text(&self) {
        ahead::line(&self.0.json[..]);
    }

    /// What it costs to keep.
    pub fn bytes(&self) -> usize {
        let inserts: usize =
            self.0.inserts.list().iter().map(|insert| size_of::<Insert>() + insert.text.json().len()).sum();
        self.0.json.len() + inserts + self.0.sse.get().map_or(0, Bytes::len) + size_of::<Encoded>()
    }

    fn span(&self, index: usize) -> Range<usize> {
        let ends = self.0.ends.list();
        // After the former one comes a comma.
        let start = index.checked_sub(1).map_or(0, |before| ends[before].0 as usize + 1);
        start..ends[index].0 as usize
    }

    fn insert(&self, index: usize) -> Option<&Insert> {
        self.0.inserts.list().iter().find(|insert| insert.frame as usize == index)
    }

    /// Appends a frame as it stands alone.
    fn write_alone(&self, index: usize, out: &mut Vec<u8>) {
        let span = self.span(index);
        match self.insert(index) {
            Some(insert) => {
                let at = insert.at as usize;
                out.extend_from_slice(&self.0.json[span.start..at]);
                out.extend_from_slice(insert.text.json());
                out.extend_from_slice(&self.0.json[at..span.end]);
            }
            None => out.extend_from_slice(&self.0.json[span]),
        }
    }

    fn encode_sse(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes() + 32 * self.len() + 64);
        for (index, name) in self.names().enumerate() {
            if let Some(token) = self.token().filter(|_| index + 1 == self.len()) {
                writeln!(out, "id: {token}").expect(INFALLIBLE);
            }
            write!(out, "event: {name}\ndata: ").expect(INFALLIBLE);
            self.write_alone(index, &mut out);
            out.extend_from_slice(b"\n\n");
        }
        out.shrink_to_fit();
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

/// A batch in the making. It can be used again for the next one.
#[derive(Default)]
pub struct BatchBuilder {
    json: Vec<u8>,
    ends: Vec<End>,
    inserts: Vec<Insert>,
    token: Option<Range<u32>>,
}

impl fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchBuilder").field("frames", &self.ends.len()).finish_non_exhaustive()
    }
}

impl BatchBuilder {
    /// Adds a frame: its name, and what writes its JSON, which must have no line breaks.
    pub fn frame(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.frame_of_parts(name, |parts| write(parts.json))
    }

    pub(super) fn frame_of_parts(
        &mut self,
        name: &'static str,
        write: impl FnOnce(&mut Parts<'_>),
    ) -> &mut Self {
        if !self.ends.is_empty() {
            self.json.push(b',');
        }
        let frame = small(self.ends.len());
        write(&mut Parts { json: &mut self.json, inserts: &mut self.inserts, token: &mut self.token, frame });
        self.ends.push((small(self.json.len()), name));
        self
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The batch of these frames; what resumes behind it, if anything does.
    pub fn finish(&mut self, token: Option<String>, revision: Revision) -> Batch {
        let token = token.map_or(Token::None, |token| Token::Apart(token.into()));
        self.finish_with(token, revision)
    }

    /// The batch of these frames, the last of which told the token.
    pub(super) fn finish_told(&mut self, revision: Revision) -> Batch {
        let token = self.token.take().map_or(Token::None, Token::Within);
        self.finish_with(token, revision)
    }

    fn finish_with(&mut self, token: Token, revision: Revision) -> Batch {
        let batch = Encoded {
            json: Bytes::copy_from_slice(&self.json),
            ends: Ends::new(&self.ends),
            inserts: Inserts::new(&mut self.inserts),
            token,
            revision,
            sse: OnceLock::new(),
            committed: OnceLock::new(),
        };
        self.json.clear();
        self.json.shrink_to(SCRATCH_BYTES_MAX);
        self.ends.clear();
        self.token = None;
        Batch(Arc::new(batch))
    }
}

/// What a frame is written to.
pub(super) struct Parts<'a> {
    pub(super) json: &'a mut Vec<u8>,
    inserts: &'a mut Vec<Insert>,
    token: &'a mut Option<Range<u32>>,
    frame: u32,
}

impl Parts<'_> {
    /// Leaves this out here when the frame is in a list. Once in a frame.
    pub(super) fn alone(&mut self, text: RowText) {
        self.inserts.push(Insert { frame: self.frame, at: small(self.json.len()), text });
    }

    /// What resumes behind the batch, which ends with this frame.
    pub(super) fn token(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = small(self.json.len());
        write(self.json);
        *self.token = Some(start..small(self.json.len()));
    }
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a batch is far below 4 GiB")
}
