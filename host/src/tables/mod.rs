//! The rows that projections write.
//!
//! Promises: a table has typed columns, a key and one owner (a plugin); a row
//! belongs to the task that first wrote it; a versioned table leaves stale
//! writes out, and remembers deletes for a while, so that a late older write
//! cannot bring a row back. Every row carries the revision that wrote it.
//! Nothing here writes rows: that happens in a checkpoint's commit, beside the
//! position the rows came from. Every read is inside one tenant.

mod cell;
mod changes;
mod filter;
mod json;
mod last_changed;
mod like;
mod query;
mod schema;

use std::fmt::Debug;

pub use cell::{Cell, CellError, Cells, CellsBuilder};
pub use changes::{Changed, CommitChanges, RowChange, RowChanges, RowChangesSender, row_changes};
pub use filter::Filter;
pub use json::{write_integer, write_number, write_text, write_value};
pub use last_changed::{LastChanged, RowNote};
pub use like::{matches_ilike, matches_like};
pub use query::{ColumnUse, Condition, InvalidQuery, Operator, Order, Query, RowCursor, Value, column_of};
pub use schema::{Column, ColumnType, InvalidSchema, TableSchema};

use futures_util::future::BoxFuture;

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{Revision, TenantId};

/// One row. Cells stand in the order of the table's columns, or of the query's.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: String,
    /// 0 in a table without versions.
    pub version: u64,
    /// The commit that wrote it.
    pub revision: Revision,
    pub cells: Vec<Value>,
}

/// The answer to a query, read in one read transaction.
#[derive(Clone, Debug)]
pub struct RowPage {
    pub rows: Vec<Row>,
    /// Where the next page begins; none when this was the last.
    pub next: Option<RowCursor>,
    /// What the answer is exact at.
    pub revision: Revision,
}

/// Tables and the reads on them.
///
/// Calls may wait for storage, but never for a writer. All are safe to repeat.
pub trait TableStore: Send + Sync + Debug {
    /// Makes a plugin's tables exist. A known table with the same columns is
    /// left alone; added nullable columns and changed flags are applied in place, and a nullable
    /// column that is no longer declared stays, null in what is written from then on; any other
    /// difference is [`TableError::SchemaChanged`], another plugin's table
    /// [`TableError::Owned`]. All or nothing.
    fn declare(&self, plugin: &str, tables: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>>;

    /// What `declare` would answer, changing nothing.
    fn check(&self, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError>;

    /// Every table with its owner.
    fn list(&self) -> Vec<(String, TableSchema)>;

    /// A table's schema.
    fn schema(&self, table: &str) -> Result<TableSchema, TableError>;

    /// One page of rows in the query's order, then by key.
    fn query(&self, tenant: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>>;

    /// One row by its key, with the revision of the read.
    fn get(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>>;

    /// Every change to a tenant's rows of a table that is committed from now on. What was committed before the
    /// answer is seen by every read that begins after it. Commits come in their order, after they are durable.
    fn watch(&self, tenant: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>>;

    /// At which revision rows changed last, noted before a commit can be read. None from a store that cannot say
    /// that; then nobody keeps copies of its rows.
    fn last_changed(&self) -> Option<&LastChanged> {
        None
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    #[error("there is no table `{table}`")]
    Unknown { table: String },
    #[error("table `{table}` belongs to plugin `{owner}`")]
    Owned { table: String, owner: String },
    #[error("table `{table}` cannot change in place: {difference}; a rebuild fills it anew")]
    SchemaChanged { table: String, difference: String },
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
    #[error(transparent)]
    Query(#[from] InvalidQuery),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for TableError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "table_unknown",
            Self::Owned { .. } => "table_owned",
            Self::SchemaChanged { .. } => "schema_changed",
            Self::Schema(_) => "schema_invalid",
            Self::Query(_) => "query_invalid",
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(e) => e.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Unknown { .. } | Self::Query(_) => Blame::Caller,
            Self::Owned { .. } | Self::SchemaChanged { .. } | Self::Schema(_) => Blame::Guest,
            Self::Backend(e) => e.blame(),
        }
    }
}
