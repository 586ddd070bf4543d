//! Entries of the stream, and what one look at it shows.

use std::cmp::Ordering;

use redis::Value;

use crate::backends::redis::scripts::{bytes, list, number, text};
use crate::control::{ControlEvent, ControlVersion, Polled, Received};
use crate::limits::CONTROL_POLL_BYTES_MAX;

/// What is there after a version.
pub(super) struct Read {
    /// Entries with nothing missing in between.
    pub(super) entries: Vec<Received>,
    /// What the first of them says was before it.
    before: Before,
    oldest: u64,
    newest: u64,
    bytes: usize,
    /// As many were found as were asked for: there may be more.
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Version(u64),
    /// It is the first that the server knows of.
    Unknown,
    /// It does not say: somebody else has put it there.
    Unsaid,
}

/// An entry as it lies there.
struct Entry {
    version: u64,
    /// The whole id.
    id: String,
    event_id: Option<String>,
    event: Option<String>,
    before: Before,
}

impl Entry {
    fn new(value: Value) -> Option<Self> {
        let mut parts = list(value)?;
        let fields = list(parts.pop()?)?;
        let id = text(parts.first()?)?.to_owned();
        let version = id.split('-').next()?.parse().ok()?;
        let field = |name: &str| {
            let pairs = fields.chunks_exact(2);
            pairs
                .into_iter()
                .find(|pair| bytes(&pair[0]) == Some(name.as_bytes()))
                .and_then(|pair| text(&pair[1]))
        };
        let before = match field("p") {
            Some("none") => Before::Unknown,
            Some(number) => number.parse().map_or(Before::Unsaid, Before::Version),
            None => Before::Unsaid,
        };
        let owned = |name: &str| field(name).map(str::to_owned);
        Some(Self { version, id: id.clone(), event_id: owned("i"), event: owned("e"), before })
    }

    fn size(&self) -> usize {
        self.event.as_ref().map_or(0, String::len)
    }

    fn read(self) -> Received {
        let version = ControlVersion(self.version);
        let name = self.event_id.unwrap_or(self.id);
        match &self.event {
            None => Received::unreadable(version, name, "the entry of the stream holds no event"),
            Some(json) => match ControlEvent::parse(json) {
                Ok(event) => Received::Event { version, event },
                Err(error) => Received::refused(version, name, &error),
            },
        }
    }
}

impl Read {
    /// From the version that was given last, the first and the last entry, and those that were asked for. None for answers
    /// of another shape.
    pub(super) fn new(given: &Value, [first, last]: [Value; 2], read: Value, limit: usize) -> Option<Self> {
        let given = match given {
            Value::Nil => 0,
            given => number(given)?,
        };
        let version = |range| match list(range)?.into_iter().next() {
            Some(entry) => Some(Entry::new(entry)?.version),
            None => Some(0),
        };
        let (oldest, newest) = (version(first)?, version(last)?.max(given));
        let found = match read {
            Value::Nil => Vec::new(),
            read => list(read)?.pop().and_then(list)?.pop().and_then(list)?,
        };
        let full = found.len() >= limit;
        let mut answer = Self { entries: Vec::new(), before: Before::Unsaid, oldest, newest, bytes: 0, full };
        let mut last = None;
        for entry in found {
            let entry = Entry::new(entry)?;
            match last {
                None => answer.before = entry.before,
                Some(last) if last == entry.version => continue,
                Some(last) if matches!(entry.before, Before::Version(before) if before > last) => break,
                Some(_) => {}
            }
            last = Some(entry.version);
            answer.newest = answer.newest.max(entry.version);
            answer.bytes += entry.size();
            answer.entries.push(entry.read());
        }
        // The first of a life may be younger than the look at what is oldest.
        if answer.oldest == 0 {
            answer.oldest = answer.entries.first().map_or(0, |entry| entry.version().0);
        }
        Some(answer)
    }

    /// After which version, and how many, may still be answered.
    pub(super) fn goes_on(&self, limit: usize) -> Option<(u64, usize)> {
        let rest = limit.saturating_sub(self.entries.len());
        let last = self.entries.last()?.version().0;
        (self.full && rest > 0 && self.bytes < CONTROL_POLL_BYTES_MAX).then_some((last, rest))
    }

    /// Adds what was read after it; whether there was anything.
    pub(super) fn add(&mut self, more: Self) -> bool {
        (self.newest, self.full) = (self.newest.max(more.newest), more.full);
        self.bytes += more.bytes;
        let found = !more.entries.is_empty();
        self.entries.extend(more.entries);
        found
    }

    /// Where the feed goes on, when some of what was after a version is gone or the version is not of this feed.
    pub(super) fn is_behind(&self, after: u64) -> Option<u64> {
        let Some(first) = self.entries.first().map(|entry| entry.version().0) else {
            // What the server knows of was removed; or it was emptied, or went back.
            return match after.cmp(&self.newest) {
                Ordering::Equal => None,
                Ordering::Greater if self.oldest > 0 => Some(self.oldest),
                _ => Some(self.newest + 1),
            };
        };
        let missing = match self.before {
            Before::Version(before) => before > after,
            // Who has seen nothing misses nothing.
            Before::Unknown => after > 0 && after + 1 < first,
            Before::Unsaid => false,
        };
        missing.then_some(first)
    }

    pub(super) fn polled(self) -> Polled {
        Polled {
            events: self.entries,
            oldest: ControlVersion(self.oldest),
            newest: ControlVersion(self.newest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(id: &str, before: &str) -> Value {
        let fields = ["i", "evt", "e", "{}", "p", before].map(text).to_vec();
        Value::Array(vec![text(id), Value::Array(fields)])
    }

    fn read(newest: u64, oldest: &[(&str, &str)], entries: &[(&str, &str)]) -> Read {
        let array = |list: &[(&str, &str)]| Value::Array(list.iter().map(|(id, p)| entry(id, p)).collect());
        let streams = match entries {
            [] => Value::Nil,
            entries => Value::Array(vec![Value::Array(vec![text("key"), array(entries)])]),
        };
        let newest = text(&newest.to_string());
        Read::new(&newest, [array(oldest), array(&entries[entries.len().saturating_sub(1)..])], streams, 10)
            .unwrap()
    }

    fn versions(read: &Read) -> Vec<u64> {
        read.entries.iter().map(|entry| entry.version().0).collect()
    }

    #[test]
    fn a_place_before_what_an_entry_follows_is_behind() {
        let first = [("100-0", "90")];
        let found = read(100, &first, &first);
        assert_eq!((found.is_behind(90), found.is_behind(99), found.is_behind(89)), (None, None, Some(100)));
        let first = [("100-0", "none")];
        let found = read(100, &first, &first);
        assert_eq!((found.is_behind(0), found.is_behind(99), found.is_behind(98)), (None, None, Some(100)));
    }

    #[test]
    fn a_place_that_the_server_knows_nothing_of_is_behind() {
        assert_eq!(read(0, &[], &[]).is_behind(0), None);
        assert_eq!(read(0, &[], &[]).is_behind(7), Some(1));
        assert_eq!(read(9, &[("8-0", "7")], &[]).is_behind(10), Some(8));
        assert_eq!(read(9, &[], &[]).is_behind(9), None);
        assert_eq!(read(9, &[], &[]).is_behind(5), Some(10));
    }

    #[test]
    fn entries_are_answered_up_to_a_hole_and_each_version_once() {
        let list = [("5-0", "4"), ("6-0", "5"), ("6-1", "no"), ("9-0", "8")];
        let found = read(9, &list[..1], &list);
        assert_eq!((versions(&found), found.goes_on(10)), (vec![5, 6], None));
        assert_eq!((found.is_behind(4), found.is_behind(3)), (None, Some(5)));
    }
}
