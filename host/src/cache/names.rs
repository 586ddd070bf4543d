//! Names of entries and marks, all derived here. Clients never name one.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::event::TenantId;

/// A kind of values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keyspace {
    pub name: Arc<str>,
    /// Of the code that makes the values. Values of another version are not found.
    pub version: u64,
    pub holds: Holds,
}

/// What invalidates the values beside their time, their removal, and [`invalidate_keyspace`].
///
/// [`invalidate_keyspace`]: super::ReadThrough::invalidate_keyspace
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holds {
    /// Nothing.
    Values,
    /// Any change of this entity: they may be made of any of its rows.
    ResultsOf(Arc<str>),
    /// A change of the row of this entity whose id is the key.
    RowsOf(Arc<str>),
}

/// Whose values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Partition {
    /// Everybody's. For what is no tenant's.
    Global,
    Tenant(TenantId),
    /// One scope of a tenant's; "" is what has none.
    Scope(TenantId, Arc<str>),
}

/// What was changed, as its events say it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub tenant: &'a TenantId,
    /// Without a scope the change concerns every scope of the tenant.
    pub scope: &'a str,
    pub entity: &'a str,
    pub ids: &'a [&'a str],
}

/// The name of one value, and the marks that it is valid under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub name: String,
    pub marks: Vec<String>,
}

impl Keyspace {
    /// A keyspace of the first version.
    pub fn new(name: &str, holds: Holds) -> Self {
        Self { name: name.into(), version: 1, holds }
    }

    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    pub(super) fn entity(&self) -> Option<&Arc<str>> {
        match &self.holds {
            Holds::Values => None,
            Holds::ResultsOf(entity) | Holds::RowsOf(entity) => Some(entity),
        }
    }

    /// A key of it.
    pub fn entry(&self, partition: &Partition, key: &str) -> Entry {
        let mut name = String::with_capacity(64 + key.len());
        escape(&mut name, &self.name);
        // Writing to a String cannot fail.
        let _ = write!(name, "/v{}/", self.version);
        partition.write(&mut name);
        name.push('/');
        // Last, so it may hold anything.
        name.push_str(key);
        let mut marks = vec![self.mark(partition)];
        match (&self.holds, partition) {
            (Holds::ResultsOf(entity), _) => marks.push(entity_mark(entity, partition)),
            (Holds::Values | Holds::RowsOf(_), _) => {}
        }
        if let (Some(entity), Partition::Scope(tenant, _)) = (self.entity(), partition) {
            marks.push(all_scopes_mark(entity, tenant));
        }
        Entry { name, marks }
    }

    /// What all values of the keyspace in a partition have.
    pub(super) fn mark(&self, partition: &Partition) -> String {
        let mut mark = "k/".to_owned();
        escape(&mut mark, &self.name);
        mark.push('/');
        partition.write(&mut mark);
        mark
    }
}

impl Change<'_> {
    /// The partitions whose values may be made of what was changed.
    fn partitions(&self) -> [Partition; 3] {
        let tenant = || self.tenant.clone();
        [Partition::Global, Partition::Tenant(tenant()), Partition::Scope(tenant(), self.scope.into())]
    }

    pub(super) fn marks(&self) -> Vec<String> {
        let mut marks = self.partitions().map(|partition| entity_mark(self.entity, &partition)).to_vec();
        if self.scope.is_empty() {
            marks.push(all_scopes_mark(self.entity, self.tenant));
        }
        marks
    }

    /// The rows themselves, in a keyspace that holds them.
    pub(super) fn names(&self, keyspace: &Keyspace) -> Vec<String> {
        let partitions = self.partitions();
        let of = |id: &&str| partitions.clone().map(|partition| keyspace.entry(&partition, id).name);
        self.ids.iter().flat_map(of).collect()
    }
}

impl Partition {
    fn write(&self, out: &mut String) {
        match self {
            Self::Global => out.push('g'),
            Self::Tenant(tenant) => {
                out.push_str("t:");
                out.push_str(tenant.as_str());
            }
            Self::Scope(tenant, scope) => {
                out.push_str("s:");
                out.push_str(tenant.as_str());
                out.push(':');
                escape(out, scope);
            }
        }
    }
}

fn entity_mark(entity: &str, partition: &Partition) -> String {
    let mut mark = "e/".to_owned();
    escape(&mut mark, entity);
    mark.push('/');
    partition.write(&mut mark);
    mark
}

/// Values of every scope of a tenant have it.
fn all_scopes_mark(entity: &str, tenant: &TenantId) -> String {
    let mut mark = "e/".to_owned();
    escape(&mut mark, entity);
    mark.push_str("/a:");
    mark.push_str(tenant.as_str());
    mark
}

/// So that no two lists of parts make the same name.
fn escape(out: &mut String, part: &str) {
    for c in part.chars() {
        match c {
            '/' => out.push_str("%2F"),
            '%' => out.push_str("%25"),
            c => out.push(c),
        }
    }
}
