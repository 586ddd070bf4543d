//! Upcasts as a configuration says them: renamed, added and removed members of the payload.
//!
//! A payload is an object. Only the names of its own members are read; what they hold is kept byte by byte, so that
//! no digit of a number is lost, and they stay in their order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{InvalidUpcast, Upcasters};

/// The way of one event type's payload from a schema version to the one after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredUpcast {
    #[serde(rename = "type")]
    pub event_type: String,
    pub from: u32,
    /// One after the other.
    pub steps: Vec<UpcastStep>,
}

/// What is done with the payload's own members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpcastStep {
    /// Old names and new ones, all at the same time. A new name that the payload has already is an error.
    Rename(BTreeMap<String, String>),
    /// Members that are added where the payload has none of that name; one that is null is there.
    Default(BTreeMap<String, serde_json::Value>),
    Remove(Vec<String>),
}

impl Upcasters {
    /// Adds upcasts of a configuration, and checks that each type's have no gap.
    pub fn declare(&mut self, declared: &[DeclaredUpcast]) -> Result<(), InvalidUpcast> {
        for upcast in declared {
            let (event_type, from) = (upcast.event_type.clone(), upcast.from);
            if let Some(why) = upcast.steps.iter().find_map(mistake) {
                return Err(InvalidUpcast::Step { event_type, from, why });
            }
            let steps: Vec<Prepared> = upcast.steps.iter().map(Prepared::new).collect();
            self.register(&event_type, from, move |payload| apply(&steps, payload))?;
        }
        let types: BTreeSet<&str> = declared.iter().map(|upcast| upcast.event_type.as_str()).collect();
        for event_type in types {
            let Some(steps) = self.steps.get(event_type) else { continue };
            let first = steps.keys().copied().min().unwrap_or_default();
            let last = steps.keys().copied().max().unwrap_or_default();
            if let Some(missing) = (first..last).find(|from| !steps.contains_key(from)) {
                return Err(InvalidUpcast::Gap { event_type: event_type.to_owned(), missing });
            }
        }
        Ok(())
    }
}

fn mistake(step: &UpcastStep) -> Option<String> {
    let UpcastStep::Rename(names) = step else { return None };
    let mut new = BTreeSet::new();
    let twice = names.values().find(|name| !new.insert(name.as_str()));
    twice.map(|name| format!("`rename` gives two members the name `{name}`"))
}

/// A step with its values as they are written into payloads.
#[derive(Debug)]
enum Prepared {
    Rename(BTreeMap<String, String>),
    Default(Vec<(String, Box<RawValue>)>),
    Remove(BTreeSet<String>),
}

impl Prepared {
    fn new(step: &UpcastStep) -> Self {
        let raw = |(name, value): (&String, &serde_json::Value)| {
            let value = serde_json::value::to_raw_value(value).expect("a JSON value can be written");
            (name.clone(), value)
        };
        match step {
            UpcastStep::Rename(names) => Self::Rename(names.clone()),
            UpcastStep::Default(values) => Self::Default(values.iter().map(raw).collect()),
            UpcastStep::Remove(names) => Self::Remove(names.iter().cloned().collect()),
        }
    }
}

fn apply(steps: &[Prepared], payload: &[u8]) -> Result<Vec<u8>, String> {
    let members: Members<'_> =
        serde_json::from_slice(payload).map_err(|error| format!("the payload is no JSON object: {error}"))?;
    let Members(mut members) = members;
    for step in steps {
        match step {
            Prepared::Rename(names) => {
                for (name, _) in &mut members {
                    if let Some(new) = names.get(name.as_ref()) {
                        *name = Cow::Owned(new.clone());
                    }
                }
                let mut seen = BTreeSet::new();
                let is_new = |name: &str| names.values().any(|new| new == name);
                for (name, _) in &members {
                    if !seen.insert(name.as_ref()) && is_new(name) {
                        return Err(format!("`rename`: the payload has a member `{name}` already"));
                    }
                }
            }
            Prepared::Default(values) => {
                for (name, value) in values {
                    if !members.iter().any(|(known, _)| known == name) {
                        members.push((Cow::Borrowed(name), value));
                    }
                }
            }
            Prepared::Remove(names) => members.retain(|(name, _)| !names.contains(name.as_ref())),
        }
    }
    serde_json::to_vec(&Members(members)).map_err(|error| error.to_string())
}

/// An object's members in their order, their values as they are written.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((Cow::Owned(name), value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
