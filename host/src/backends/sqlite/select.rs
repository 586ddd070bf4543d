//! Queries on rows: the SQL of a checked query, and its rows.
//!
//! Values are always parameters; identifiers come from the table's validated schema.

use std::fmt::Write as _;

use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql};

use super::catalog::{column_name, rows_table};
use super::database::unsigned;
use super::pages::ReadResult;
use super::readers::ReadStop;
use super::shared::{Shared, revision};
use crate::event::{Micros, Revision, TenantId};
use crate::limits::{QUERY_VALUES_MAX, ROW_PAGE_BYTES_MAX};
use crate::tables::{
    ColumnType, Condition, Filter, InvalidQuery, Operator, Query, Row, RowCursor, RowPage, TableError,
    TableSchema, Value,
};

/// The built-in columns that every answer begins with.
const BUILT_IN: &str = "key, _version, _revision";
const BUILT_IN_COUNT: usize = 3;

/// One page of a query.
pub(super) fn query(
    conn: &Connection,
    shared: &Shared,
    tenant: &TenantId,
    query: &Query,
) -> ReadResult<RowPage, TableError> {
    let table = shared.schema(&query.table).map_err(ReadStop::Refused)?;
    query.validate(&table).map_err(|e| ReadStop::Refused(e.into()))?;
    check_value_count(query).map_err(|e| ReadStop::Refused(e.into()))?;
    let revision = Revision(revision(conn)?);
    let Some(number) = shared.tenant_number(conn, tenant)? else {
        return Ok(RowPage { rows: Vec::new(), next: None, revision });
    };
    let mut sql = Sql::new(&table);
    sql.filter(&query.scope);
    sql.filter(&query.filter);
    if let Some(after) = &query.after {
        sql.after(query, after);
    }
    let text = sql.finish(query);
    let mut statement = conn.prepare_cached(&text)?;
    statement.raw_bind_parameter(1, number)?;
    for (index, value) in sql.values.iter().enumerate() {
        statement.raw_bind_parameter(index + 2, Bound(value))?;
    }
    let mut found = statement.raw_query();
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    while let Some(row) = found.next()? {
        if rows.len() == query.limit as usize || bytes > ROW_PAGE_BYTES_MAX {
            more = true;
            break;
        }
        rows.push(read_row(row, &table, &mut bytes)?);
    }
    let next = if more { rows.last().map(|row| cursor_of(&table, query, row)) } else { None };
    Ok(RowPage { rows, next, revision })
}

/// One row by its key.
pub(super) fn get(
    conn: &Connection,
    shared: &Shared,
    tenant: &TenantId,
    table: &str,
    key: &str,
) -> ReadResult<(Revision, Option<Row>), TableError> {
    let table = shared.schema(table).map_err(ReadStop::Refused)?;
    let revision = Revision(revision(conn)?);
    let Some(number) = shared.tenant_number(conn, tenant)? else { return Ok((revision, None)) };
    let sql = format!(
        "SELECT {} FROM {} WHERE _tenant = ?1 AND key = ?2 AND _deleted = 0",
        selection(&table),
        rows_table(&table.name)
    );
    let row = conn
        .prepare_cached(&sql)?
        .query_row((number, key), |row| read_row(row, &table, &mut 0))
        .optional()?;
    Ok((revision, row))
}

fn check_value_count(query: &Query) -> Result<(), InvalidQuery> {
    let mut values = 0;
    for condition in query.conditions() {
        values += condition.values.len();
        if values > QUERY_VALUES_MAX {
            return Err(InvalidQuery::Values {
                column: condition.column.clone(),
                operator: condition.operator,
                wanted: "fewer values: a query takes 4,096 in all",
            });
        }
    }
    Ok(())
}

const _: () = assert!(QUERY_VALUES_MAX == 4_096, "the message above says the number");

fn selection(table: &TableSchema) -> String {
    let mut out = BUILT_IN.to_owned();
    for column in &table.columns {
        out.push_str(", ");
        out.push_str(&column_name(&column.name));
    }
    out
}

/// A statement in the making. Parameter 1 is the tenant, the values follow.
struct Sql<'a> {
    table: &'a TableSchema,
    text: String,
    values: Vec<Value>,
}

impl<'a> Sql<'a> {
    fn new(table: &'a TableSchema) -> Self {
        let text = format!(
            "SELECT {} FROM {} WHERE _tenant = ?1 AND _deleted = 0",
            selection(table),
            rows_table(&table.name)
        );
        Self { table, text, values: Vec::new() }
    }

    /// Adds a value and answers its parameter.
    fn bind(&mut self, value: &Value) -> String {
        self.values.push(value.clone());
        format!("?{}", self.values.len() + 1)
    }

    /// Every one of the outermost conditions stands alone, where an index can use it.
    fn filter(&mut self, filter: &Filter) {
        let parts = match filter {
            Filter::All(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        for part in parts {
            let sql = self.part(part);
            // Writing to a String cannot fail.
            let _ = write!(self.text, " AND {sql}");
        }
    }

    fn part(&mut self, filter: &Filter) -> String {
        match filter {
            Filter::All(parts) => self.group(parts, " AND ", "TRUE"),
            Filter::Any(parts) => self.group(parts, " OR ", "FALSE"),
            // What is unknown to SQL, a comparison with null, is false here.
            Filter::Not(part) => format!("({} IS NOT TRUE)", self.part(part)),
            Filter::Is(condition) => self.condition(condition),
        }
    }

    fn group(&mut self, parts: &[Filter], between: &str, empty: &str) -> String {
        if parts.is_empty() {
            return empty.into();
        }
        let parts: Vec<String> = parts.iter().map(|part| self.part(part)).collect();
        format!("({})", parts.join(between))
    }

    fn condition(&mut self, condition: &Condition) -> String {
        let column = column_name(&condition.column);
        let comparison = match condition.operator {
            Operator::IsNull => return format!("{column} IS NULL"),
            Operator::IsNotNull => return format!("{column} IS NOT NULL"),
            Operator::In => return format!("{column} IN ({})", self.list(&condition.values)),
            Operator::NotIn => return format!("{column} NOT IN ({})", self.list(&condition.values)),
            Operator::Like => return format!("mr_like({}, {column})", self.list(&condition.values)),
            Operator::ILike => return format!("mr_ilike({}, {column})", self.list(&condition.values)),
            Operator::Eq => "=",
            Operator::Ne => "<>",
            Operator::Gt => ">",
            Operator::Gte => ">=",
            Operator::Lt => "<",
            Operator::Lte => "<=",
        };
        format!("{column} {comparison} {}", self.list(&condition.values))
    }

    fn list(&mut self, values: &[Value]) -> String {
        values.iter().map(|value| self.bind(value)).collect::<Vec<_>>().join(", ")
    }

    /// Rows strictly after the cursor: equal in the first columns and after it
    /// in the next, for every number of first columns; the key comes last.
    fn after(&mut self, query: &Query, after: &RowCursor) {
        let mut equal = String::new();
        let mut cases = Vec::new();
        for (index, (order, value)) in query.order.iter().zip(&after.values).enumerate() {
            let column = column_name(&order.column);
            let parameter = self.bind(value);
            if let Some(beyond) = self.beyond(&order.column, order.descending, value, &parameter) {
                cases.push(format!("({equal}{beyond})"));
            }
            if index == 0 && *value != Value::Null {
                self.narrow(&order.column, order.descending, &parameter);
            }
            // A null parameter is bound all the same: IS holds for it.
            let _ = write!(equal, "{column} IS {parameter} AND ");
        }
        let key = self.bind(&Value::Text(after.key.clone()));
        cases.push(format!("({equal}key > {key})"));
        let _ = write!(self.text, " AND ({})", cases.join(" OR "));
    }

    /// Being after a value in one column; none where nothing is. Nulls come first when ascending.
    fn beyond(&self, column: &str, descending: bool, value: &Value, parameter: &str) -> Option<String> {
        let name = column_name(column);
        match (*value == Value::Null, descending) {
            (true, false) => Some(format!("{name} IS NOT NULL")),
            (true, true) => None,
            (false, false) => Some(format!("{name} > {parameter}")),
            (false, true) if self.nullable(column) => {
                Some(format!("({name} < {parameter} OR {name} IS NULL)"))
            }
            (false, true) => Some(format!("{name} < {parameter}")),
        }
    }

    /// Says again what follows from the cases, in a form that bounds the index.
    fn narrow(&mut self, column: &str, descending: bool, parameter: &str) {
        let name = column_name(column);
        if !descending {
            let _ = write!(self.text, " AND {name} >= {parameter}");
        } else if !self.nullable(column) {
            let _ = write!(self.text, " AND {name} <= {parameter}");
        }
    }

    fn nullable(&self, column: &str) -> bool {
        self.table.column(column).is_some_and(|(_, column)| column.nullable)
    }

    fn finish(&mut self, query: &Query) -> String {
        let mut text = std::mem::take(&mut self.text);
        text.push_str(" ORDER BY ");
        for order in &query.order {
            let direction = if order.descending { "DESC" } else { "ASC" };
            let _ = write!(text, "{} {direction}, ", column_name(&order.column));
        }
        // One row more than asked for tells whether there is a next page.
        let _ = write!(text, "key LIMIT {}", u64::from(query.limit) + 1);
        text
    }
}

/// A value of a query as SQLite takes it.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null => ToSqlOutput::Owned(SqlValue::Null),
            Value::Bool(value) => ToSqlOutput::Owned(SqlValue::Integer(i64::from(*value))),
            Value::Int(value) => ToSqlOutput::Owned(SqlValue::Integer(*value)),
            Value::Timestamp(value) => ToSqlOutput::Owned(SqlValue::Integer(value.0)),
            Value::Float(value) => ToSqlOutput::Owned(SqlValue::Real(*value)),
            Value::Text(text) | Value::Json(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Value::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

fn read_row(row: &rusqlite::Row<'_>, table: &TableSchema, bytes: &mut usize) -> rusqlite::Result<Row> {
    let key: String = row.get(0)?;
    *bytes += key.len();
    let mut cells = Vec::with_capacity(table.columns.len());
    for (index, column) in table.columns.iter().enumerate() {
        let stored = row.get_ref(BUILT_IN_COUNT + index)?;
        let cell = match (stored, column.column_type) {
            (ValueRef::Null, _) => Value::Null,
            (stored, ColumnType::Bool) => Value::Bool(stored.as_i64()? != 0),
            (stored, ColumnType::Int) => Value::Int(stored.as_i64()?),
            (stored, ColumnType::Timestamp) => Value::Timestamp(Micros(stored.as_i64()?)),
            (stored, ColumnType::Float) => Value::Float(stored.as_f64()?),
            (stored, ColumnType::Text) => Value::Text(stored.as_str()?.to_owned()),
            (stored, ColumnType::Json) => Value::Json(stored.as_str()?.to_owned()),
            (stored, ColumnType::Bytes) => Value::Bytes(stored.as_bytes()?.to_vec()),
        };
        *bytes += match &cell {
            Value::Text(text) | Value::Json(text) => text.len(),
            Value::Bytes(blob) => blob.len(),
            _ => size_of::<Value>(),
        };
        cells.push(cell);
    }
    Ok(Row { key, version: unsigned(row.get(1)?), revision: Revision(unsigned(row.get(2)?)), cells })
}

/// The cursor that stands on a row.
fn cursor_of(table: &TableSchema, query: &Query, row: &Row) -> RowCursor {
    let value = |column: &str| match column {
        "key" => Value::Text(row.key.clone()),
        declared => table.column(declared).map_or(Value::Null, |(index, _)| row.cells[index].clone()),
    };
    RowCursor { values: query.order.iter().map(|order| value(&order.column)).collect(), key: row.key.clone() }
}
