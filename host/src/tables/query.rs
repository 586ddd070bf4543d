//! What can be asked of a table: a filter, order, limit and a keyset cursor.

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::schema::{ColumnType, TableSchema};
use crate::event::Micros;
use crate::limits::{QUERY_CONDITIONS_MAX, QUERY_NESTING_MAX, QUERY_ROWS_DEFAULT};

/// An owned value of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// JSON text, as written.
    Json(String),
    Timestamp(Micros),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operator {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    NotIn,
    /// `%` any run, `_` one character; case matters.
    Like,
    /// The same, ASCII case does not matter.
    ILike,
    IsNull,
    IsNotNull,
}

/// One condition. Anything compared with null is false.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub column: String,
    pub operator: Operator,
    /// None for `isnull` and `isnotnull`, one or more for `in` and `notin`, else one.
    pub values: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub column: String,
    pub descending: bool,
}

/// The last row of a page: the value of each order column, then the key. The
/// next page begins strictly after it. Nulls come first when ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCursor {
    pub values: Vec<Value>,
    pub key: String,
}

/// A checked question. `key`, `version` and `revision` may stand wherever a column may.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub table: String,
    /// What the asker wants to see.
    pub filter: Filter,
    /// What the asker may see: holds beside the filter, and may be about columns that are not filterable. It
    /// never comes from a request. Two queries with different scopes are different queries.
    pub scope: Filter,
    pub order: Vec<Order>,
    pub limit: u32,
    pub after: Option<RowCursor>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidQuery {
    #[error("table `{table}` has no column `{column}`; it has {columns}")]
    UnknownColumn { table: String, column: String, columns: String },
    #[error("column `{column}` of table `{table}` is not filterable")]
    NotFilterable { table: String, column: String },
    #[error("column `{column}` of table `{table}` is not sortable")]
    NotSortable { table: String, column: String },
    #[error("`{column}` {operator:?} takes {wanted}")]
    Values { column: String, operator: Operator, wanted: &'static str },
    #[error("`{value}` is not a value of column `{column}` ({expected:?})")]
    Type { column: String, expected: ColumnType, value: String },
    #[error("limit is {limit}; table `{table}` gives 1 to {max} rows a query")]
    Limit { table: String, limit: u32, max: u32 },
    #[error("{conditions} conditions; query_conditions_max is {QUERY_CONDITIONS_MAX}")]
    TooManyConditions { conditions: usize },
    #[error("conditions are nested deeper than query_nesting_max, {QUERY_NESTING_MAX}")]
    TooDeep,
    #[error("the cursor does not belong to this query")]
    Cursor,
}

impl Query {
    /// All rows of a table, by key, one default page.
    pub fn all(table: &str) -> Self {
        Self {
            table: table.into(),
            filter: Filter::default(),
            scope: Filter::default(),
            order: vec![],
            limit: QUERY_ROWS_DEFAULT,
            after: None,
        }
    }

    /// Checks the query against its table: columns, flags, types, counts.
    pub fn validate(&self, table: &TableSchema) -> Result<(), InvalidQuery> {
        if self.limit == 0 || self.limit > table.window_rows_max {
            return Err(InvalidQuery::Limit {
                table: table.name.clone(),
                limit: self.limit,
                max: table.window_rows_max,
            });
        }
        self.filter.validate(table)?;
        self.scope.validate_scope(table)?;
        for order in &self.order {
            if !column_of(table, &order.column)?.sortable {
                return Err(InvalidQuery::NotSortable {
                    table: table.name.clone(),
                    column: order.column.clone(),
                });
            }
        }
        if let Some(after) = &self.after {
            if after.values.len() != self.order.len() {
                return Err(InvalidQuery::Cursor);
            }
            for (value, order) in after.values.iter().zip(&self.order) {
                let known = column_of(table, &order.column)?;
                if *value != Value::Null && !value.is(known.column_type) {
                    return Err(InvalidQuery::Cursor);
                }
            }
        }
        Ok(())
    }

    /// Whether a row belongs to the answer, whatever the order, the limit and the cursor. The row's values are
    /// given by column name, `key`, `version` and `revision` among them.
    pub fn holds<'a>(&self, value: &impl Fn(&str) -> &'a Value) -> bool {
        self.scope.holds(value) && self.filter.holds(value)
    }

    /// The conditions of the scope and of the filter.
    pub fn conditions(&self) -> Vec<&Condition> {
        let mut all = self.scope.conditions();
        all.extend(self.filter.conditions());
        all
    }
}

impl Value {
    /// Whether a value has a column's type. Null has none.
    pub fn is(&self, expected: ColumnType) -> bool {
        matches!(
            (self, expected),
            (Self::Bool(_), ColumnType::Bool)
                | (Self::Int(_), ColumnType::Int)
                | (Self::Float(_), ColumnType::Float)
                | (Self::Text(_), ColumnType::Text)
                | (Self::Bytes(_), ColumnType::Bytes)
                | (Self::Json(_), ColumnType::Json)
                | (Self::Timestamp(_), ColumnType::Timestamp)
        )
    }
}

/// What a query may do with a column, the three built-in ones among them.
#[derive(Clone, Copy, Debug)]
pub struct ColumnUse {
    pub column_type: ColumnType,
    pub filterable: bool,
    pub sortable: bool,
}

/// Finds a column by name. `key` is text and sortable; `version` and `revision` are integers and filterable.
pub fn column_of(table: &TableSchema, name: &str) -> Result<ColumnUse, InvalidQuery> {
    match name {
        "key" => return Ok(ColumnUse { column_type: ColumnType::Text, filterable: true, sortable: true }),
        "version" | "revision" => {
            return Ok(ColumnUse { column_type: ColumnType::Int, filterable: true, sortable: false });
        }
        _ => {}
    }
    let Some((_, column)) = table.column(name) else {
        let columns = table.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(InvalidQuery::UnknownColumn {
            table: table.name.clone(),
            column: name.chars().take(80).collect(),
            columns,
        });
    };
    Ok(ColumnUse {
        column_type: column.column_type,
        filterable: column.filterable,
        sortable: column.sortable,
    })
}
