//! Names of groups and consumers, and the receipts that stand for leases.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::error::GroupError;
use crate::event::{Position, TenantId};
use crate::limits::GROUP_NAME_BYTES_MAX;

/// One group: of a tenant, on one of its streams.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    pub tenant: TenantId,
    /// The stream's name, as clients write it.
    pub stream: Arc<str>,
    pub name: GroupName,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream, self.name)
    }
}

/// 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit: names stand in paths and metrics.
fn checked(what: &'static str, name: &str) -> Result<Arc<str>, GroupError> {
    let good = |b: u8| b.is_ascii_alphanumeric();
    let valid = name.len() <= GROUP_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(good)
        && name.bytes().all(|b| good(b) || matches!(b, b'.' | b'_' | b'-'));
    if valid {
        Ok(name.into())
    } else {
        Err(GroupError::Name { what, name: name.chars().take(80).collect() })
    }
}

/// The name of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(Arc<str>);

/// The name that a consumer gives itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerName(Arc<str>);

impl GroupName {
    pub fn new(name: &str) -> Result<Self, GroupError> {
        checked("group", name).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ConsumerName {
    pub fn new(name: &str) -> Result<Self, GroupError> {
        checked("consumer", name).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Stands for one lease of one entry. Opaque to clients; a backend may keep other things in it.
///
/// It names the group's incarnation, so that a receipt of another group, or of one that was removed and made
/// again, acknowledges nothing; and which delivery it was, so that a late one is told from the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub incarnation: u64,
    /// Of the process that leased. Leases do not outlive it.
    pub life: u64,
    pub position: Position,
    /// Counts the leases of one life.
    pub sequence: u64,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}.{:x}", self.incarnation, self.life, self.position.0, self.sequence)
    }
}

impl FromStr for Receipt {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let invalid = || GroupError::Receipt { receipt: text.chars().take(80).collect() };
        let mut parts = text.split('.').map(|part| {
            // `from_str_radix` also takes a sign.
            let digits = part.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u64::from_str_radix(part, 16).map_err(|_| invalid()) } else { Err(invalid()) }
        });
        let mut next = || parts.next().ok_or_else(invalid)?;
        let receipt =
            Self { incarnation: next()?, life: next()?, position: Position(next()?), sequence: next()? };
        if parts.next().is_some() { Err(invalid()) } else { Ok(receipt) }
    }
}
