//! The names of streams, all of them made and read here.
//!
//! `events` is the main stream, `changes:{aggregate}:{scope}:{id}` what concerns
//! one subject (`changes:{aggregate}:tenant` for all of a tenant's), and any
//! other name is a stream that somebody appends to. Two streams never share a
//! name: parts are escaped. The tenant stands in no name, since it comes from
//! the credential; the aggregate does, so that who may read one entity's
//! changes learns nothing of another's.

use std::fmt;
use std::str::FromStr;

use crate::limits::STREAM_NAME_BYTES_MAX;

/// The main stream's name.
pub const EVENTS: &str = "events";
/// The scope of all of a tenant's changes of an aggregate. Its streams have no id.
pub const TENANT_SCOPE: &str = "tenant";
/// The scope of one aggregate's changes.
pub const ID_SCOPE: &str = "id";

const CHANGES: &str = "changes:";

/// Which stream of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamName {
    /// What processors handle.
    Events,
    /// An index over `events`: its entries are positions there.
    Changes(ChangeStream),
    /// Appended to by name; processors of `events` never see it.
    Named(Box<str>),
}

/// The changes of one subject: an aggregate's, those of a scope, or all of a tenant's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeStream {
    pub aggregate: String,
    pub scope: String,
    /// Empty for the scope `tenant` and for no other.
    pub id: String,
}

/// Text that names no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a stream's name: `events`, or 1 to {STREAM_NAME_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit"
)]
pub struct InvalidStreamName {
    text: String,
}

impl FromStr for StreamName {
    type Err = InvalidStreamName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == EVENTS {
            return Ok(Self::Events);
        }
        if let Some(rest) = text.strip_prefix(CHANGES) {
            return ChangeStream::parse(rest).map(Self::Changes).ok_or_else(|| InvalidStreamName::of(text));
        }
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = text.len() <= STREAM_NAME_BYTES_MAX
            && text.bytes().next().is_some_and(good)
            && text.bytes().all(|b| good(b) || matches!(b, b'.' | b'_' | b'-'))
            // Somebody who leaves the rest of a change stream's name out must not get another stream.
            && text != "changes";
        if valid { Ok(Self::Named(text.into())) } else { Err(InvalidStreamName::of(text)) }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events => f.write_str(EVENTS),
            Self::Changes(changes) => changes.fmt(f),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl InvalidStreamName {
    fn of(text: &str) -> Self {
        Self { text: text.chars().take(80).collect() }
    }
}

impl ChangeStream {
    pub fn new(aggregate: &str, scope: &str, id: &str) -> Self {
        Self { aggregate: aggregate.to_owned(), scope: scope.to_owned(), id: id.to_owned() }
    }

    /// The part after `changes:`. Only what [`fmt::Display`] writes is taken, so that a stream has one name.
    fn parse(rest: &str) -> Option<Self> {
        let mut parts = rest.split(':').map(unescape);
        let (aggregate, scope) = (parts.next()??, parts.next()??);
        let id = match parts.next() {
            Some(id) => id?,
            None => String::new(),
        };
        let found = Self { aggregate, scope, id };
        let whole = !found.aggregate.is_empty() && !found.scope.is_empty();
        let canonical = || found.to_string().strip_prefix(CHANGES) == Some(rest);
        (whole && parts.next().is_none() && canonical()).then_some(found)
    }
}

impl fmt::Display for ChangeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CHANGES)?;
        escape(f, &self.aggregate)?;
        f.write_str(":")?;
        escape(f, &self.scope)?;
        if self.id.is_empty() {
            return Ok(());
        }
        f.write_str(":")?;
        escape(f, &self.id)
    }
}

/// Writes a part: a colon would be read as a border, a percent sign as an escape, and control characters
/// have no place in a name that is shown.
fn escape(out: &mut impl fmt::Write, part: &str) -> fmt::Result {
    let mut rest = part;
    while let Some(at) = rest.find(|c: char| c == ':' || c == '%' || c.is_ascii_control()) {
        out.write_str(&rest[..at])?;
        write!(out, "%{:02X}", rest.as_bytes()[at])?;
        rest = &rest[at + 1..];
    }
    out.write_str(rest)
}

fn unescape(part: &str) -> Option<String> {
    let mut text = String::with_capacity(part.len());
    let mut rest = part;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let byte = u8::from_str_radix(rest.get(at + 1..at + 3)?, 16).ok()?;
        if !byte.is_ascii() {
            return None;
        }
        text.push(char::from(byte));
        rest = &rest[at + 3..];
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_no_two_streams_share_one() {
        let parts = ["a", "a:b", "a%3Ab", "%", "ü", "a\u{1}"];
        let mut names = std::collections::BTreeSet::new();
        let mut streams = vec![StreamName::Events, StreamName::Named("orders".into())];
        for aggregate in parts {
            for scope in parts {
                for id in ["", "a", "a:b", "a%3Ab", "/"] {
                    streams.push(StreamName::Changes(ChangeStream::new(aggregate, scope, id)));
                }
            }
        }
        for stream in &streams {
            let name = stream.to_string();
            assert_eq!(name.parse::<StreamName>().as_ref(), Ok(stream), "{name}");
            assert!(names.insert(name), "{stream:?} shares its name");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for text in [
            "",
            "Events",
            "changes",
            "a b",
            "-a",
            "ä",
            "a:b",
            "changes:",
            "changes:a",
            "changes::id:x",
            "changes:a:id:",
            "changes:a:id:x:y",
            "changes:a:id:%3a",
            "changes:a:id:%41",
            "changes:a:id:%",
            "changes:a:id:%zz",
        ] {
            assert!(text.parse::<StreamName>().is_err(), "{text}");
        }
        assert!("a".repeat(STREAM_NAME_BYTES_MAX).parse::<StreamName>().is_ok());
        assert!("a".repeat(STREAM_NAME_BYTES_MAX + 1).parse::<StreamName>().is_err());
    }
}
