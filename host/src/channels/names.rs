//! Names of processes, channels and parties.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ChannelError;
use crate::event::TenantId;
use crate::limits::{CHANNEL_NAME_BYTES_MAX, PARTY_BYTES_MAX, PROCESS_NAME_BYTES_MAX};

/// The name of a process, unique in its tenant: 1 to 128 of `a-z A-Z 0-9 . : -`, beginning with a letter or digit. It has
/// no `_`, so that a channel's id is taken apart in one way only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessName(Arc<str>);

/// The name of a channel, unique in its process: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Whoever takes part: the name of a credential. 1 to 256 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Party(Arc<str>);

/// One process of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    pub tenant: TenantId,
    pub name: ProcessName,
}

/// One channel of one process. Its id on the wire is `<process>_<channel>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId {
    pub process: ProcessId,
    pub name: ChannelName,
}

fn checked(what: &'static str, name: &str, max: usize, marks: &[u8]) -> Result<Arc<str>, ChannelError> {
    let valid = name.len() <= max
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || marks.contains(&b));
    if valid { Ok(name.into()) } else { Err(invalid(what, name)) }
}

fn invalid(what: &'static str, name: &str) -> ChannelError {
    ChannelError::Name { what, name: name.chars().take(80).collect() }
}

impl ProcessName {
    pub fn new(name: &str) -> Result<Self, ChannelError> {
        checked("process", name, PROCESS_NAME_BYTES_MAX, b".:-").map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ChannelName {
    pub fn new(name: &str) -> Result<Self, ChannelError> {
        checked("channel", name, CHANNEL_NAME_BYTES_MAX, b"._-").map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Party {
    pub fn new(name: &str) -> Result<Self, ChannelError> {
        let valid = !name.is_empty() && name.len() <= PARTY_BYTES_MAX && !name.chars().any(char::is_control);
        if valid { Ok(Self(name.into())) } else { Err(invalid("party", name)) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ChannelId {
    /// Takes an id on the wire apart.
    pub fn parse(tenant: TenantId, id: &str) -> Result<Self, ChannelError> {
        let (process, channel) = id.split_once('_').ok_or_else(|| invalid("channel's id", id))?;
        let process = ProcessId { tenant, name: ProcessName::new(process)? };
        Ok(Self { process, name: ChannelName::new(channel)? })
    }

    /// There is none.
    pub(crate) fn unknown(&self) -> ChannelError {
        ChannelError::Unknown { process: self.process.to_string(), channel: self.name.to_string() }
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.process.name, self.name)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&name).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(ProcessName, ChannelName, Party);
