//! JSON without doubt: what is signed must mean the same to everybody who reads it.
//!
//! Promises: a member that stands twice, a number that is not whole, and too much depth are refused, wherever they are; so
//! one text has one value. The canonical form of a value depends on nothing but the value: it is that of RFC 8785, which
//! the bound on numbers makes easy for every language.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{ControlFeedError, Result};
use crate::limits::{CONTROL_EVENT_BYTES_MAX, CONTROL_EVENT_DEPTH_MAX, CONTROL_NUMBER_MAX};

/// Reads a text.
pub(super) fn parse(text: &str) -> Result<Value> {
    check_bytes(text.len())?;
    let invalid = |error: serde_json::Error| ControlFeedError::InvalidEvent { detail: error.to_string() };
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: CONTROL_EVENT_DEPTH_MAX }.deserialize(&mut reader).map_err(invalid)?;
    reader.end().map_err(invalid)?;
    Ok(value)
}

/// Whether a value is one that [`parse`] answers, with numbers that every reader keeps.
pub(super) fn check(value: &Value) -> Result<()> {
    walk(value, CONTROL_EVENT_DEPTH_MAX).map_err(|detail| ControlFeedError::InvalidEvent { detail })
}

pub(super) fn check_bytes(bytes: usize) -> Result<()> {
    if bytes <= CONTROL_EVENT_BYTES_MAX {
        return Ok(());
    }
    let (asked, max) = (bytes as u64, CONTROL_EVENT_BYTES_MAX as u64);
    Err(ControlFeedError::Limit { limit: "control_event_bytes_max", asked, max })
}

/// No whitespace, members in the order of the UTF-16 of their names, whatever order the map has.
pub(super) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            let mut before = '{';
            for (name, value) in members {
                out.push(std::mem::replace(&mut before, ','));
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push_str(if before == '{' { "{}" } else { "}" });
        }
        Value::Array(values) => {
            let mut before = '[';
            for value in values {
                out.push(std::mem::replace(&mut before, ','));
                write(value, out);
            }
            out.push_str(if before == '[' { "[]" } else { "]" });
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn walk(value: &Value, depth: usize) -> std::result::Result<(), String> {
    let below = || depth.checked_sub(1).ok_or_else(too_deep);
    match value {
        Value::Number(number) => {
            let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            match whole {
                Some(whole) if whole <= CONTROL_NUMBER_MAX => Ok(()),
                Some(_) => Err(format!("{number} is beyond {CONTROL_NUMBER_MAX}: write it as a text")),
                None => Err(not_whole()),
            }
        }
        Value::Array(values) => {
            let below = below()?;
            values.iter().try_for_each(|value| walk(value, below))
        }
        Value::Object(members) => {
            let below = below()?;
            members.iter().try_for_each(|(name, value)| check_name(name).and_then(|()| walk(value, below)))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// The library gives such members a meaning of their own, in which another depth and other rules hold.
fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.starts_with("$serde_json::") {
        return Err("a member's name begins with `$serde_json::`".into());
    }
    Ok(())
}

fn too_deep() -> String {
    format!("it is nested deeper than control_event_depth_max = {CONTROL_EVENT_DEPTH_MAX}")
}

fn not_whole() -> String {
    "it has a number that is not whole: write it as a text".into()
}

/// Reads one value with at most so many levels.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn below<E: Error>(self) -> std::result::Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
            None => Err(E::custom(too_deep())),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, _: f64) -> std::result::Result<Value, E> {
        Err(E::custom(not_whole()))
    }

    fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<Value, A::Error> {
        let (below, mut values) = (self.below()?, Vec::new());
        while let Some(value) = elements.next_element_seed(below)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let (below, mut values) = (self.below()?, Map::new());
        while let Some(name) = members.next_key::<String>()? {
            check_name(&name).map_err(A::Error::custom)?;
            let value = members.next_value_seed(below)?;
            if values.contains_key(&name) {
                let name: String = name.chars().take(80).collect();
                return Err(A::Error::custom(format!("the member `{name}` stands twice")));
            }
            values.insert(name, value);
        }
        Ok(Value::Object(values))
    }
}
