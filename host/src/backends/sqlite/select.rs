//! Queries on rows: the SQL of a checked query, and its rows.
//!
//! Values are always parameters; identifiers come from the table's validated schema.

use std::fmt::Write as _;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql};

use super::catalog::{column_name, index_name, rows_table};
use super::database::unsigned;
use super::pages::ReadResult;
use super::readers::ReadStop;
use super::shared::{Shared, TableEntry, revision};
use crate::error::BackendError;
use crate::event::{Micros, Revision, TenantId};
use crate::limits::{QUERY_VALUES_MAX, ROW_PAGE_BYTES_MAX};
use crate::tables::{
    ColumnType, Condition, Filter, InvalidQuery, Operator, Query, Row, RowCursor, RowPage, TableError,
    TableSchema, Value,
};

/// The built-in columns that every answer begins with.
const BUILT_IN: &str = "key, _version, _revision";
const BUILT_IN_COUNT: usize = 3;

/// How often a read looks for the moment after a flip, and how long it waits between two looks: the committer makes it
/// known as soon as it is durable.
const FLIP_LOOKS_MAX: u32 = 1_000;
const FLIP_LOOK: Duration = Duration::from_millis(1);

/// One page of a query.
pub(super) fn query(
    conn: &Connection,
    shared: &Shared,
    tenant: &TenantId,
    query: &Query,
) -> ReadResult<RowPage, TableError> {
    let TableEntry { schema: table, indexes, .. } = entry_as_of(conn, shared, &query.table)?;
    query.validate(&table).map_err(|e| ReadStop::Refused(e.into()))?;
    check_value_count(query).map_err(|e| ReadStop::Refused(e.into()))?;
    let revision = Revision(revision(conn)?);
    let Some(number) = shared.tenant_number(conn, tenant)? else {
        return Ok(RowPage { rows: Vec::new(), next: None, revision });
    };
    let mut sql = Sql::new(&table, &indexes);
    sql.filter(&query.scope);
    sql.filter(&query.filter);
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    'stretches: for text in sql.finish(query) {
        let mut statement = conn.prepare_cached(&text)?;
        statement.raw_bind_parameter(1, number)?;
        for (index, value) in sql.values.iter().enumerate() {
            statement.raw_bind_parameter(index + 2, Bound(value))?;
        }
        // One row more than asked for tells whether there is a next page.
        let wanted = i64::from(query.limit) + 1 - i64::try_from(rows.len()).unwrap_or(i64::MAX);
        statement.raw_bind_parameter(sql.values.len() + 2, wanted)?;
        let mut found = statement.raw_query();
        while let Some(row) = found.next()? {
            if rows.len() == query.limit as usize || bytes > ROW_PAGE_BYTES_MAX {
                more = true;
                break 'stretches;
            }
            rows.push(read_row(row, &table, &mut bytes)?);
        }
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
    let table = entry_as_of(conn, shared, table)?.schema;
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

/// The table as it is known, where the read transaction sees the rows that this speaks of. Rows that come in the place
/// of others are committed a moment before they are known of.
fn entry_as_of(conn: &Connection, shared: &Shared, table: &str) -> ReadResult<TableEntry, TableError> {
    for _ in 0..FLIP_LOOKS_MAX {
        let entry = shared.entry(table).map_err(ReadStop::Refused)?;
        let seen: Option<String> = conn
            .prepare_cached("SELECT coalesce(indexes, name) FROM tables WHERE name = ?1")?
            .query_row([table], |row| row.get(0))
            .optional()?;
        if seen.as_deref() == Some(entry.indexes.as_str()) {
            return Ok(entry);
        }
        // Nothing was read in this transaction yet.
        conn.execute_batch("ROLLBACK")?;
        std::thread::sleep(FLIP_LOOK);
        conn.execute_batch("BEGIN")?;
    }
    let detail = format!("table `{table}` is not what the catalog says");
    Err(ReadStop::Refused(BackendError::Failed { detail }.into()))
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
    /// Under which name its indexes were made.
    indexes: &'a str,
    /// The conditions, each with an AND before it.
    text: String,
    values: Vec<Value>,
}

impl<'a> Sql<'a> {
    fn new(table: &'a TableSchema, indexes: &'a str) -> Self {
        Self { table, indexes, text: String::new(), values: Vec::new() }
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

    /// The conditions of rows strictly after the cursor: equal in the first columns and after it in the next, for
    /// every number of first columns. Each is one stretch of the order, and stands alone: an index leads to its
    /// first row, however deep it lies, where a single condition of several cases would be read from the head on.
    fn stretches(&mut self, query: &Query, after: &RowCursor) -> Vec<String> {
        let mut equal = String::new();
        let mut stretches = Vec::new();
        for (order, value) in query.order.iter().zip(&after.values) {
            let parameter = self.bind(value);
            let beyond = self.beyond(&order.column, order.descending, value, &parameter);
            stretches.push(beyond.into_iter().map(|beyond| format!("{equal} AND {beyond}")).collect());
            // Not `IS ?` for both: with it the planner would rather read by key.
            let equals = if *value == Value::Null { "IS NULL".into() } else { format!("= {parameter}") };
            let _ = write!(equal, " AND {} {equals}", column_name(&order.column));
        }
        let key = self.bind(&Value::Text(after.key.clone()));
        stretches.push(vec![format!("{equal} AND key > {key}")]);
        // The more columns are equal, the nearer.
        stretches.into_iter().rev().flatten().collect()
    }

    /// Being after a value in one column, nearest first; none where nothing is. Nulls come first when ascending.
    fn beyond(&self, column: &str, descending: bool, value: &Value, parameter: &str) -> Vec<String> {
        let name = column_name(column);
        match (*value == Value::Null, descending) {
            (true, false) => vec![format!("{name} IS NOT NULL")],
            (true, true) => Vec::new(),
            (false, false) => vec![format!("{name} > {parameter}")],
            (false, true) if self.nullable(column) => {
                vec![format!("{name} < {parameter}"), format!("{name} IS NULL")]
            }
            (false, true) => vec![format!("{name} < {parameter}")],
        }
    }

    fn nullable(&self, column: &str) -> bool {
        self.table.column(column).is_some_and(|(_, column)| column.nullable)
    }

    /// The statements whose rows, one after the other, are the answer. The last parameter is the limit.
    fn finish(&mut self, query: &Query) -> Vec<String> {
        let stretches = match &query.after {
            Some(after) => self.stretches(query, after),
            None => vec![String::new()],
        };
        let mut order = String::new();
        for by in &query.order {
            let direction = if by.descending { "DESC" } else { "ASC" };
            let _ = write!(order, "{} {direction}, ", column_name(&by.column));
        }
        let (selection, rows) = (selection(self.table), rows_table(&self.table.name));
        let (by, conditions, limit) = (self.index(query), &self.text, self.values.len() + 2);
        let statement = |stretch: String| {
            format!(
                "SELECT {selection} FROM {rows}{by} WHERE _tenant = ?1 AND _deleted = 0{conditions}{stretch} \
                 ORDER BY {order}key LIMIT ?{limit}"
            )
        };
        stretches.into_iter().map(statement).collect()
    }

    /// The index that a page behind a cursor is read by, where the planner would choose badly: it takes a tenant
    /// for a few rows, and reads them by key. None where a condition on another column may lead to fewer rows.
    fn index(&self, query: &Query) -> String {
        let sortable = |column: &str| self.table.column(column).is_some_and(|(_, column)| column.sortable);
        let Some(first) =
            query.order.first().filter(|first| query.after.is_some() && sortable(&first.column))
        else {
            return String::new();
        };
        let leads_elsewhere =
            |condition: &&Condition| condition.column != first.column && sortable(&condition.column);
        if query.conditions().iter().any(leads_elsewhere) {
            return String::new();
        }
        format!(" INDEXED BY {}", index_name(self.indexes, &first.column))
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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::{Bound, Sql};
    use crate::backends::sqlite::catalog::{column_name, create_sql};
    use crate::tables::{Column, ColumnType, Order, Query, RowCursor, TableSchema, Value};

    fn things() -> TableSchema {
        let column = |name: &str, nullable| Column {
            name: name.into(),
            column_type: ColumnType::Int,
            nullable,
            filterable: true,
            sortable: true,
        };
        let columns = vec![column("size", false), column("delay", true)];
        TableSchema { name: "things".into(), columns, versioned: true, window_rows_max: 1_000 }
    }

    /// What SQLite does for each statement of a query.
    fn plans(conn: &Connection, table: &TableSchema, query: &Query) -> Vec<String> {
        let mut sql = Sql::new(table, &table.name);
        let texts = sql.finish(query);
        let plan = |text: String| {
            let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).expect("it compiles");
            statement.raw_bind_parameter(1, 1).expect("bound");
            for (index, value) in sql.values.iter().enumerate() {
                statement.raw_bind_parameter(index + 2, Bound(value)).expect("bound");
            }
            let (mut rows, mut plan) = (statement.raw_query(), String::new());
            while let Some(row) = rows.next().expect("a step") {
                plan.push_str(&row.get::<_, String>(3).expect("text"));
                plan.push('\n');
            }
            plan
        };
        texts.into_iter().map(plan).collect()
    }

    #[test]
    fn a_page_begins_at_its_cursor_by_the_index_and_reads_nothing_before_it() {
        let table = things();
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch(&create_sql(&table, &table.name)).expect("a table");
        let mut looked_at = 0;
        for (column, value, descending) in [
            ("size", Value::Int(7), false),
            ("size", Value::Int(7), true),
            ("delay", Value::Int(7), false),
            ("delay", Value::Int(7), true),
            ("delay", Value::Null, false),
            ("delay", Value::Null, true),
        ] {
            let order = vec![Order { column: column.into(), descending }];
            let after = Some(RowCursor { values: vec![value.clone()], key: "k".into() });
            let query = Query { order, after, limit: 50, ..Query::all("things") };
            for plan in plans(&conn, &table, &query) {
                let bound = ["=? AND key>?", ">?", "<?", "=?"];
                let name = column_name(column);
                let bounds = bound.map(|bound| format!("(_tenant=? AND {}{bound}", name.trim_matches('"')));
                assert!(bounds.iter().any(|bound| plan.contains(bound)), "{column} {value:?}: {plan}");
                assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE FOR ORDER BY"), "{plan}");
                looked_at += 1;
            }
        }
        assert_eq!(looked_at, 2 + 2 + 2 + 3 + 2 + 1);
        let by_key =
            Query { after: Some(RowCursor { values: vec![], key: "k".into() }), ..Query::all("things") };
        let plan = plans(&conn, &table, &by_key).concat();
        assert!(plan.contains("(_tenant=? AND key>?") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
