//! Names of rooms and members.

use std::fmt;
use std::sync::Arc;

use super::error::PresenceError;
use crate::event::TenantId;
use crate::limits::PRESENCE_NAME_BYTES_MAX;

/// One room of one tenant. Rooms of two tenants with the same name are two rooms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId {
    pub tenant: TenantId,
    pub name: RoomName,
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tenant, self.name)
    }
}

/// The name of a room: 1 to 128 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName(Arc<str>);

/// The name of a member, unique in its room: 1 to 128 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberName(Arc<str>);

/// A name may be an address, an id with a slash in it, or a person's.
fn checked(what: &'static str, name: &str) -> Result<Arc<str>, PresenceError> {
    let valid =
        !name.is_empty() && name.len() <= PRESENCE_NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if valid {
        Ok(name.into())
    } else {
        Err(PresenceError::Name { what, name: name.chars().take(80).collect() })
    }
}

impl RoomName {
    pub fn new(name: &str) -> Result<Self, PresenceError> {
        checked("room", name).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MemberName {
    pub fn new(name: &str) -> Result<Self, PresenceError> {
        checked("member", name).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
