//! What a component says of itself, taken into the host's own words once its size is bounded.

use super::PluginError;
use super::bindings::wire;
use crate::limits::GUEST_MANIFEST_BYTES_MAX;
use crate::processors::{InvalidManifest, Manifest, OrderingKey, Subscription};
use crate::tables::{Column, ColumnType, TableSchema};

/// The manifest, if it is small and sound enough to be kept, listed and made tables of.
pub(super) fn accept(manifest: wire::Manifest) -> Result<Manifest, PluginError> {
    let bytes = bytes(&manifest);
    if bytes > GUEST_MANIFEST_BYTES_MAX {
        return Err(PluginError::Describe {
            detail: format!(
                "the manifest has {bytes} bytes; guest_manifest_bytes_max is {GUEST_MANIFEST_BYTES_MAX}"
            ),
        });
    }
    let manifest = convert(manifest)?;
    manifest.validate()?;
    Ok(manifest)
}

/// All text, and the records themselves, so that a million empty names count, too.
fn bytes(m: &wire::Manifest) -> usize {
    let texts = |list: &[String]| list.iter().map(|text| text.len() + size_of::<String>()).sum::<usize>();
    let columns = |table: &wire::Table| {
        table.columns.iter().map(|column| column.name.len() + size_of::<wire::Column>()).sum::<usize>()
    };
    let tables = m.tables.iter().map(|table| table.name.len() + size_of::<wire::Table>() + columns(table));
    let key = match &m.ordering_key {
        wire::OrderingKey::PayloadField(field) => field.len(),
        wire::OrderingKey::Aggregate | wire::OrderingKey::Single => 0,
    };
    m.name.len()
        + m.version.len()
        + m.summary.len()
        + m.state_content_type.as_ref().map_or(0, String::len)
        + key
        + texts(&m.subscription.types)
        + texts(&m.subscription.aggregates)
        + texts(&m.grants)
        + tables.sum::<usize>()
}

fn convert(m: wire::Manifest) -> Result<Manifest, InvalidManifest> {
    let column = |c: wire::Column| Column {
        name: c.name,
        column_type: match c.type_ {
            wire::ColumnType::Bool => ColumnType::Bool,
            wire::ColumnType::Int => ColumnType::Int,
            wire::ColumnType::Float => ColumnType::Float,
            wire::ColumnType::Text => ColumnType::Text,
            wire::ColumnType::Bytes => ColumnType::Bytes,
            wire::ColumnType::Json => ColumnType::Json,
            wire::ColumnType::Timestamp => ColumnType::Timestamp,
        },
        nullable: c.nullable,
        filterable: c.filterable,
        sortable: c.sortable,
    };
    let table = |t: wire::Table| TableSchema {
        name: t.name,
        columns: t.columns.into_iter().map(column).collect(),
        versioned: t.versioned,
        window_rows_max: t.window_rows_max,
    };
    let version = m.version.parse().map_err(|_| InvalidManifest::Version { version: m.version.clone() })?;
    Ok(Manifest {
        name: m.name,
        version,
        summary: m.summary,
        state_content_type: m.state_content_type,
        ordering_key: match m.ordering_key {
            wire::OrderingKey::Aggregate => OrderingKey::Aggregate,
            wire::OrderingKey::PayloadField(field) => OrderingKey::PayloadField(field),
            wire::OrderingKey::Single => OrderingKey::Single,
        },
        subscription: Subscription { types: m.subscription.types, aggregates: m.subscription.aggregates },
        tables: m.tables.into_iter().map(table).collect(),
        grants: m.grants,
        flush_interval_ms: m.flush_interval_ms,
    })
}
