//! What a processor says of itself.

use serde::{Deserialize, Serialize};

use crate::limits::TABLES_MAX;
use crate::streams::{AggregateScopes, ChangeScopes, ScopeError};
use crate::tables::{InvalidSchema, TableSchema};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    pub name: String,
    #[schema(value_type = String)]
    pub version: semver::Version,
    pub summary: String,
    /// None for a processor without state of its own.
    pub state_content_type: Option<String>,
    pub ordering_key: OrderingKey,
    pub subscription: Subscription,
    pub tables: Vec<TableSchema>,
    /// Grants it needs, such as `clock`.
    pub grants: Vec<String>,
    pub flush_interval_ms: Option<u32>,
    /// By what the changes of which aggregates can be followed.
    #[serde(default)]
    pub changes: Vec<AggregateScopes>,
}

/// What keeps events in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderingKey {
    Aggregate,
    /// A top-level member of the payload.
    PayloadField(String),
    Single,
}

/// Which events a processor gets. An empty list lets all pass; a trailing `*` stands for any ending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Subscription {
    pub types: Vec<String>,
    pub aggregates: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    #[error("plugin name `{name}` is not 1 to 62 of a-z, 0-9 and `-`, beginning with a letter")]
    Name { name: String },
    #[error("plugin version `{version}` is not a semantic version such as 1.2.0")]
    Version { version: String },
    #[error("{tables} tables; tables_max is {TABLES_MAX}")]
    Tables { tables: usize },
    #[error("table `{table}` is declared twice")]
    TwiceTable { table: String },
    #[error("the ordering key names no payload field")]
    OrderingKey,
    #[error("flush_interval_ms is {interval_ms}; the shortest is 10")]
    FlushInterval { interval_ms: u32 },
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
    #[error(transparent)]
    Changes(#[from] ScopeError),
}

impl Manifest {
    /// Whether a plugin can have this name.
    pub fn is_name(name: &str) -> bool {
        name.len() <= 62
            && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }

    /// Checks names, counts and schemas.
    pub fn validate(&self) -> Result<(), InvalidManifest> {
        let name = &self.name;
        if !Self::is_name(name) {
            return Err(InvalidManifest::Name { name: name.chars().take(80).collect() });
        }
        if self.tables.len() > TABLES_MAX {
            return Err(InvalidManifest::Tables { tables: self.tables.len() });
        }
        for (index, table) in self.tables.iter().enumerate() {
            table.validate()?;
            if self.tables[..index].iter().any(|t| t.name == table.name) {
                return Err(InvalidManifest::TwiceTable { table: table.name.clone() });
            }
        }
        if matches!(&self.ordering_key, OrderingKey::PayloadField(field) if field.is_empty()) {
            return Err(InvalidManifest::OrderingKey);
        }
        ChangeScopes::default().check(name, &self.changes)?;
        match self.flush_interval_ms {
            Some(interval_ms) if interval_ms < 10 => Err(InvalidManifest::FlushInterval { interval_ms }),
            _ => Ok(()),
        }
    }
}

impl Subscription {
    /// Whether an event passes.
    pub fn matches(&self, aggregate: &str, event_type: &str) -> bool {
        passes(&self.types, event_type) && passes(&self.aggregates, aggregate)
    }
}

fn passes(patterns: &[String], text: &str) -> bool {
    patterns.is_empty()
        || patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => text.starts_with(beginning),
            None => text == pattern,
        })
}
