//! Where somebody stands in a channel, as clients are told: `<incarnation>.<position>`.
//!
//! A position alone says nothing once the process was removed and made again under its name: entry 7 is another entry
//! then. So what clients give back says of which of these processes it is. Plain numbers are taken as well, for tools and
//! people; nobody can tell of which process they are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::ChannelError;
use super::record::Process;
use crate::event::Position;
use crate::limits::CHANNEL_SEQUENCE_MAX;

/// Tells a process from others that have its name, before it and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// Of a process that is made now.
    pub(crate) fn new() -> Self {
        // Any reader of JSON can count so far. 0 is none.
        Self((rand::random::<u64>() & CHANNEL_SEQUENCE_MAX).max(1))
    }

    /// The one place that says which process of its name this is.
    pub fn of(process: &Process) -> Self {
        match process.incarnation {
            // Its record is of a version that had none.
            Self(0) => Self(process.created_at.0.unsigned_abs()),
            incarnation => incarnation,
        }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A place in a channel's log: behind the entry at its position. Clients need not know what is in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// None: it does not say of which process it is.
    pub incarnation: Option<Incarnation>,
    pub position: Position,
}

impl Place {
    /// The beginning, whichever process it is.
    pub const START: Self = Self { incarnation: None, position: Position::START };

    pub fn of(process: &Process, position: Position) -> Self {
        Self { incarnation: Some(Incarnation::of(process)), position }
    }

    /// `<incarnation>.<position>`, or a position alone.
    pub fn parse(text: &str) -> Option<Self> {
        let (incarnation, position) = match text.split_once('.') {
            None => (None, text),
            Some((incarnation, position)) => (Some(hexadecimal(incarnation)?), position),
        };
        let digits = !position.is_empty() && position.bytes().all(|byte| byte.is_ascii_digit());
        let position = position.parse().ok().filter(|position| digits && *position <= CHANNEL_SEQUENCE_MAX);
        Some(Self { incarnation, position: Position(position?) })
    }

    /// Whether it may be a place of this process.
    pub fn is_of(self, process: &Process) -> bool {
        self.incarnation.is_none_or(|incarnation| incarnation == Incarnation::of(process))
    }

    /// Refuses a place of another process of the same name.
    pub fn check(self, process: &Process) -> Result<(), ChannelError> {
        if self.is_of(process) {
            return Ok(());
        }
        Err(ChannelError::CursorForeign { process: process.name.to_string(), cursor: self.to_string() })
    }
}

fn hexadecimal(text: &str) -> Option<Incarnation> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(text, 16).ok().filter(|_| digits).map(Incarnation)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(incarnation) = self.incarnation {
            write!(f, "{incarnation}.")?;
        }
        self.position.fmt(f)
    }
}

impl From<u64> for Place {
    fn from(position: u64) -> Self {
        Self { incarnation: None, position: Position(position) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::{Party, ProcessName};
    use crate::event::Micros;

    fn process(incarnation: u64, created_at: i64) -> Process {
        Process {
            name: ProcessName::new("job").unwrap(),
            incarnation: Incarnation(incarnation),
            submitter: Party::new("ann").unwrap(),
            executor: None,
            epoch: 0,
            observers: Vec::new(),
            created_at: Micros(created_at),
            closed: None,
            version: 1,
        }
    }

    #[test]
    fn a_place_is_read_as_it_was_written_and_fits_its_own_process_only() {
        let (one, other, old) = (process(0xab, 5), process(0xcd, 5), process(0, 0xef));
        let place = Place::of(&one, Position(7));
        assert_eq!(place.to_string(), "ab.7");
        assert_eq!(Place::parse("ab.7"), Some(place));
        assert!(place.check(&one).is_ok());
        assert!(matches!(place.check(&other), Err(ChannelError::CursorForeign { .. })));
        // What was stored before there were incarnations has one, too.
        assert_eq!(Place::of(&old, Position(0)).to_string(), "ef.0");
        let plain = Place::parse("7").unwrap();
        assert_eq!((plain, plain.to_string()), (Place::from(7), "7".to_owned()));
        assert!(plain.is_of(&one) && plain.is_of(&other));
    }

    #[test]
    fn what_no_host_has_written_is_no_place() {
        for text in
            ["", ".", "7.", ".7", "a.b", "G.7", "+a.7", "a.+7", "+7", "-7", "A.7", "a.7.end", "a 7", "7 "]
        {
            assert_eq!(Place::parse(text), None, "{text}");
        }
        assert_eq!(Place::parse("9007199254740992"), None, "more than clients can count to");
        assert_eq!(Place::parse("11112222333344445.7"), None, "longer than an incarnation");
    }
}
