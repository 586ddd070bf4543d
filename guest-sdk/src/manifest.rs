//! What a processor says of itself.

use std::time::Duration;

use crate::Table;
use crate::bindings::millrace::processor::types as wire;

/// What keeps events in order: those with the same key reach the same instance, in the order of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderingKey {
    /// The aggregate and its id.
    #[default]
    Aggregate,
    /// A top-level member of the payload, such as `carrier`.
    PayloadField(&'static str),
    /// All events are one sequence, on one lane.
    Single,
}

/// By what the changes of an aggregate can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeScope {
    /// One stream for each aggregate, by its id.
    Id,
    /// One stream for all of the tenant's.
    Tenant,
    /// One stream for each value of a top-level member of the payload. Only text that is not empty counts.
    Field { name: &'static str, member: &'static str },
}

impl ChangeScope {
    /// A field that subscribers call as the payload does.
    pub const fn field(member: &'static str) -> Self {
        Self::Field { name: member, member }
    }

    fn to_wire(self) -> wire::ChangeScope {
        match self {
            Self::Id => wire::ChangeScope::Id,
            Self::Tenant => wire::ChangeScope::Tenant,
            Self::Field { name, member } => {
                wire::ChangeScope::Field(wire::ChangeField { name: name.into(), member: member.into() })
            }
        }
    }
}

/// A processor's name, and what it wants. The default: every event, in order by aggregate, no tables,
/// no state, no grants, no flush.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub(crate) name: &'static str,
    version: &'static str,
    summary: &'static str,
    pub(crate) state_content_type: Option<&'static str>,
    ordering_key: OrderingKey,
    types: Vec<&'static str>,
    aggregates: Vec<&'static str>,
    pub(crate) tables: Vec<&'static Table>,
    grants: Vec<&'static str>,
    flush_interval: Option<Duration>,
    changes: Vec<(&'static str, Vec<ChangeScope>)>,
}

impl Manifest {
    /// `name`: lower-case letters, digits and `-`, beginning with a letter.
    /// `version`: a semantic version; `env!("CARGO_PKG_VERSION")` is one.
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            name,
            version,
            summary: "",
            state_content_type: None,
            ordering_key: OrderingKey::Aggregate,
            types: vec![],
            aggregates: vec![],
            tables: vec![],
            grants: vec![],
            flush_interval: None,
            changes: vec![],
        }
    }

    /// One line for people.
    pub fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// The types of events it gets; a trailing `*` stands for any ending. All, where it is not said.
    pub fn types(mut self, types: &[&'static str]) -> Self {
        self.types = types.to_vec();
        self
    }

    /// The aggregates whose events it gets; a trailing `*` stands for any ending. All, where it is not said.
    pub fn aggregates(mut self, aggregates: &[&'static str]) -> Self {
        self.aggregates = aggregates.to_vec();
        self
    }

    /// What keeps events in order.
    pub fn ordering_key(mut self, key: OrderingKey) -> Self {
        self.ordering_key = key;
        self
    }

    /// The tables it writes.
    pub fn tables(mut self, tables: &[&'static Table]) -> Self {
        self.tables = tables.to_vec();
        self
    }

    /// It keeps state: `snapshot` writes this content type. Change it when the bytes change their meaning.
    pub fn state(mut self, content_type: &'static str) -> Self {
        self.state_content_type = Some(content_type);
        self
    }

    /// The grants it needs: `clock`, `random`, `env`, `http`, `read_dir`, `channels`.
    pub fn grants(mut self, grants: &[&'static str]) -> Self {
        self.grants = grants.to_vec();
        self
    }

    /// How often `flush(tick)` is wanted; never, where it is not said.
    pub fn flush_every(mut self, interval: Duration) -> Self {
        self.flush_interval = Some(interval);
        self
    }

    /// Lets the changes of an aggregate be followed, by these scopes. Once for each aggregate. Each of its events
    /// is then written into one stream for each scope, whoever publishes it.
    pub fn changes(mut self, aggregate: &'static str, scopes: &[ChangeScope]) -> Self {
        self.changes.push((aggregate, scopes.to_vec()));
        self
    }

    #[doc(hidden)]
    pub fn to_wire(&self) -> wire::Manifest {
        let strings = |list: &[&'static str]| list.iter().map(|s| String::from(*s)).collect();
        wire::Manifest {
            name: self.name.into(),
            version: self.version.into(),
            summary: self.summary.into(),
            state_content_type: self.state_content_type.map(Into::into),
            ordering_key: match self.ordering_key {
                OrderingKey::Aggregate => wire::OrderingKey::Aggregate,
                OrderingKey::PayloadField(field) => wire::OrderingKey::PayloadField(field.into()),
                OrderingKey::Single => wire::OrderingKey::Single,
            },
            subscription: wire::Subscription {
                types: strings(&self.types),
                aggregates: strings(&self.aggregates),
            },
            tables: self.tables.iter().map(|table| table.to_wire()).collect(),
            grants: strings(&self.grants),
            flush_interval_ms: self
                .flush_interval
                .map(|interval| u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)),
            changes: self
                .changes
                .iter()
                .map(|(aggregate, scopes)| wire::ChangeScopes {
                    aggregate: (*aggregate).into(),
                    scopes: scopes.iter().map(|scope| scope.to_wire()).collect(),
                })
                .collect(),
        }
    }
}
