//! Tables whose single rows are read through the cache. What they answer is what the store would answer.
//!
//! Each copy says as of which revision it was read, and the store says at which revision the row changed last,
//! before a commit can be read ([`LastChanged`](crate::tables::LastChanged)). So no invalidation has to reach anybody, and a copy that a level
//! should have lost does no harm. Copies in the second level belong to one life of the store in one process: what
//! happened to the store between two of them is not known.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use metrics::counter;

use super::{Ask, Holds, Keyspace, Loaded, Partition, ReadThrough};
use crate::event::{Micros, Revision, TenantId};
use crate::tables::{
    Cell, Cells, CellsBuilder, LastChanged, Query, Row, RowChanges, RowPage, TableError, TableSchema,
    TableStore, Value,
};
use crate::telemetry::metrics::CACHE_ERRORS;

/// A [`TableStore`] over another one.
#[derive(Clone, Debug)]
pub struct CachedTables {
    tables: Arc<dyn TableStore>,
    cache: ReadThrough,
}

impl CachedTables {
    pub fn new(tables: Arc<dyn TableStore>, cache: ReadThrough) -> Self {
        Self { tables, cache }
    }

    async fn row(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> Result<(Revision, Option<Row>), TableError> {
        let Some(changes) = self.tables.last_changed() else {
            return self.tables.get(tenant, table, key).await;
        };
        let schema = self.tables.schema(table)?;
        let note = changes.row(tenant, table, key);
        let keyspace = keyspace(changes, &schema);
        let ask = Ask::new(&keyspace, &Partition::Tenant(tenant.clone()), key).as_of(note.oldest.0);
        let loaded = self.cache.get_or_load(&ask, async {
            let (revision, row) = self.tables.get(tenant, table, key).await?;
            let value = row.map(|row| encode(&row));
            Ok::<_, TableError>(Loaded { value, as_of: revision.0 })
        });
        let loaded = loaded.await?;
        let row = match &loaded.value {
            None => None,
            Some(bytes) => match decode(key, &schema, bytes) {
                Some(row) => Some(row),
                // Somebody else has written there.
                None => {
                    counter!(CACHE_ERRORS, "call" => "decode").increment(1);
                    return self.tables.get(tenant, table, key).await;
                }
            },
        };
        // Nothing has changed the row between.
        let told = if loaded.as_of >= note.oldest.0 { note.committed.0 } else { 0 };
        Ok((Revision(loaded.as_of.max(told)), row))
    }
}

/// One for each table, its columns, and each life of the store.
fn keyspace(changes: &LastChanged, schema: &TableSchema) -> Keyspace {
    let mut columns = std::hash::DefaultHasher::new();
    schema.versioned.hash(&mut columns);
    for column in &schema.columns {
        (&column.name, std::mem::discriminant(&column.column_type)).hash(&mut columns);
    }
    Keyspace::new(&format!("row/{}/{}", changes.life(), schema.name), Holds::Values).version(columns.finish())
}

fn encode(row: &Row) -> Bytes {
    let mut cells = CellsBuilder::default();
    for value in &row.cells {
        cells.push(match value {
            Value::Null => Cell::Null,
            Value::Bool(value) => Cell::Bool(*value),
            Value::Int(value) => Cell::Int(*value),
            Value::Float(value) => Cell::Float(*value),
            Value::Text(text) => Cell::Text(text),
            Value::Bytes(bytes) => Cell::Bytes(bytes),
            Value::Json(text) => Cell::Json(text),
            Value::Timestamp(Micros(at)) => Cell::Timestamp(*at),
        });
    }
    let cells = cells.finish();
    let mut out = Vec::with_capacity(16 + cells.len());
    out.put_u64_le(row.version);
    out.put_u64_le(row.revision.0);
    out.extend_from_slice(&cells);
    out.into()
}

fn decode(key: &str, schema: &TableSchema, bytes: &[u8]) -> Option<Row> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (revision, cells) = rest.split_first_chunk::<8>()?;
    let cells: Vec<Value> =
        Cells::new(cells).map(|cell| cell.ok().map(Value::from)).collect::<Option<_>>()?;
    (cells.len() == schema.columns.len()).then(|| Row {
        key: key.to_owned(),
        version: u64::from_le_bytes(*version),
        revision: Revision(u64::from_le_bytes(*revision)),
        cells,
    })
}

impl TableStore for CachedTables {
    fn declare(&self, plugin: &str, tables: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        self.tables.declare(plugin, tables)
    }

    fn check(&self, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError> {
        self.tables.check(plugin, tables)
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        self.tables.list()
    }

    fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        self.tables.schema(table)
    }

    fn query(&self, tenant: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        self.tables.query(tenant, query)
    }

    fn get(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        let (tenant, table, key) = (tenant.clone(), table.to_owned(), key.to_owned());
        async move { self.row(&tenant, &table, &key).await }.boxed()
    }

    fn watch(&self, tenant: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        self.tables.watch(tenant, table)
    }

    fn last_changed(&self) -> Option<&LastChanged> {
        self.tables.last_changed()
    }
}
