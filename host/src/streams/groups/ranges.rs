//! Sets of positions of one group's stream, kept as ranges.
//!
//! A group's own positions have gaps: events of other tenants lie between. A range from a to b says something of
//! every event of the group's stream from a to b, so that what is done in order is one range, however many
//! others' events lie in it.

use std::collections::BTreeMap;
use std::fmt;

/// Ranges by their first position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub fn contains(&self, position: u64) -> bool {
        self.0.range(..=position).next_back().is_some_and(|(_, last)| *last >= position)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order: first and last position.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Adds a position. `apart` says whether an event of the group lies strictly between two positions that is
    /// not in the set; without one, ranges grow together.
    pub fn add(&mut self, position: u64, apart: impl Fn(u64, u64) -> bool) {
        if self.contains(position) {
            return;
        }
        let (mut first, mut last) = (position, position);
        if let Some((&before, &end)) = self.0.range(..position).next_back()
            && !apart(end, position)
        {
            first = before;
        }
        if let Some((&next, &end)) = self.0.range(position..).next()
            && !apart(position, next)
        {
            self.0.remove(&next);
            last = end;
        }
        self.0.insert(first, last);
    }

    /// Leaves out everything up to a position.
    pub fn cut(&mut self, until: u64) {
        while let Some((&first, &last)) = self.0.first_key_value() {
            if first > until {
                return;
            }
            self.0.remove(&first);
            if last > until {
                self.0.insert(until + 1, last);
            }
        }
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut ranges = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if first > last {
                return None;
            }
            ranges.insert(first, last);
        }
        Some(Self(ranges))
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (first, last) in &self.0 {
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}
