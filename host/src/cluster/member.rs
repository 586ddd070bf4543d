//! Members of a fleet and their incarnations.

use std::fmt;
use std::sync::Arc;

use super::error::ClusterError;
use crate::limits::CLUSTER_NAME_BYTES_MAX;

/// The name of a member: 1 to 64 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Arc<str>);

impl MemberId {
    pub fn new(name: &str) -> Result<Self, ClusterError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !name.is_empty() && name.len() <= CLUSTER_NAME_BYTES_MAX && name.bytes().all(good) {
            Ok(Self(name.into()))
        } else {
            Err(ClusterError::Name { name: name.chars().take(80).collect() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for MemberId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member from when it came in until it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation {
    pub member: MemberId,
    /// Above those of all incarnations that came in before, whoever they were.
    pub epoch: u64,
}

impl AsRef<str> for Incarnation {
    /// The name alone: a member that comes back owns what it owned.
    fn as_ref(&self) -> &str {
        self.member.as_str()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.member, self.epoch)
    }
}

/// Who is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Grows with every change of the members.
    pub epoch: u64,
    /// By name.
    pub members: Vec<Incarnation>,
}
