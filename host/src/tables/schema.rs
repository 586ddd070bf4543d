//! What a table looks like, as its plugin declares it.

use serde::{Deserialize, Serialize};

use crate::limits::{COLUMNS_MAX, QUERY_ROWS_MAX};

/// A table's columns and rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TableSchema {
    pub name: String,
    pub columns: Vec<Column>,
    /// Whether a put or delete with a version not above the stored one is left out as stale.
    pub versioned: bool,
    /// The most rows one query may ask for.
    pub window_rows_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    pub nullable: bool,
    /// May stand in `where`.
    pub filterable: bool,
    /// May stand in `order`; has an index.
    pub sortable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    Bool,
    /// 64-bit signed.
    Int,
    /// 64-bit IEEE 754, finite.
    Float,
    Text,
    Bytes,
    Json,
    /// Microseconds since 1970; RFC 3339 on the wire.
    Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSchema {
    #[error("`{name}` is not a name of 1 to 62 of a-z, 0-9 and `_`, beginning with a letter")]
    Name { name: String },
    #[error("table `{table}` has {columns} columns; 1 to {COLUMNS_MAX} are possible")]
    Columns { table: String, columns: usize },
    #[error("table `{table}` has two columns `{column}`")]
    TwiceColumn { table: String, column: String },
    #[error(
        "`key`, `version` and `revision` are columns of every table; rename `{column}` of table `{table}`"
    )]
    ReservedColumn { table: String, column: String },
    #[error("column `{column}` of table `{table}` cannot be sortable: its type has no order")]
    Unsortable { table: String, column: String },
    #[error("table `{table}` allows {rows} rows a query; 1 to {QUERY_ROWS_MAX} are possible")]
    Window { table: String, rows: u32 },
}

impl TableSchema {
    /// Checks names, counts and types.
    pub fn validate(&self) -> Result<(), InvalidSchema> {
        let table = || self.name.clone();
        check_name(&self.name)?;
        if self.columns.is_empty() || self.columns.len() > COLUMNS_MAX {
            return Err(InvalidSchema::Columns { table: table(), columns: self.columns.len() });
        }
        if self.window_rows_max == 0 || self.window_rows_max > QUERY_ROWS_MAX {
            return Err(InvalidSchema::Window { table: table(), rows: self.window_rows_max });
        }
        for (index, column) in self.columns.iter().enumerate() {
            check_name(&column.name)?;
            let column_name = || column.name.clone();
            if matches!(column.name.as_str(), "key" | "version" | "revision") {
                return Err(InvalidSchema::ReservedColumn { table: table(), column: column_name() });
            }
            if self.columns[..index].iter().any(|c| c.name == column.name) {
                return Err(InvalidSchema::TwiceColumn { table: table(), column: column_name() });
            }
            if column.sortable && matches!(column.column_type, ColumnType::Bytes | ColumnType::Json) {
                return Err(InvalidSchema::Unsortable { table: table(), column: column_name() });
            }
        }
        Ok(())
    }

    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, c)| c.name == name)
    }
}

fn check_name(name: &str) -> Result<(), InvalidSchema> {
    let valid = name.len() <= 62
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if valid { Ok(()) } else { Err(InvalidSchema::Name { name: name.chars().take(80).collect() }) }
}
