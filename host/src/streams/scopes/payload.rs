//! Reading the members of a payload that field scopes name, and nothing else of it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{AggregateScopes, Scope};
use crate::limits::NAME_BYTES_MAX;

/// What a payload says of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// Nothing, also when the payload is no object.
    Absent,
    /// Null, a number, an empty text: nothing to follow it by.
    NoText,
    /// Text longer than any id may be.
    TooLong,
    Text(String),
}

/// The members of the field scopes, in their order.
pub(super) fn members(scopes: &AggregateScopes, payload: &[u8]) -> Vec<Member> {
    let wanted: Vec<&str> = scopes
        .scopes
        .iter()
        .filter_map(|scope| match scope {
            Scope::Field { member, .. } => Some(member.as_str()),
            _ => None,
        })
        .collect();
    let mut found = vec![Member::Absent; wanted.len()];
    if !payload.trim_ascii_start().starts_with(b"{") {
        return found;
    }
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let object = Object { wanted: &wanted, found: &mut found };
    // The edge has checked that it is JSON; what is not says nothing.
    if reader.deserialize_map(object).is_err() {
        return vec![Member::Absent; wanted.len()];
    }
    found
}

struct Object<'a> {
    wanted: &'a [&'a str],
    found: &'a mut [Member],
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(places) = map.next_key_seed(Key(self.wanted))? {
            if places == 0 {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = read(map.next_value::<&RawValue>()?);
            for (place, found) in self.found.iter_mut().enumerate() {
                if places & (1 << place) != 0 {
                    *found = value.clone();
                }
            }
        }
        Ok(())
    }
}

/// A key, as the set of scopes that want it.
struct Key<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<u32, E> {
        let matching = self.0.iter().enumerate().filter(|(_, wanted)| **wanted == key);
        Ok(matching.fold(0, |places, (place, _)| places | 1 << place))
    }
}

const _: () = assert!(crate::limits::CHANGE_SCOPES_MAX <= 32, "the scopes that want a key fit a u32");

/// What a member's value is to a scope.
fn read(value: &RawValue) -> Member {
    let text = value.get();
    if !text.starts_with('"') {
        return Member::NoText;
    }
    match serde_json::from_str::<String>(text) {
        Ok(text) if text.len() > NAME_BYTES_MAX => Member::TooLong,
        Ok(text) if !text.is_empty() => Member::Text(text),
        _ => Member::NoText,
    }
}
