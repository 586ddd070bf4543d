//! Live queries as clients write them, in JSON.
//!
//! Everything is checked here against the table: names, types, counts, sizes. Fields may begin with a capital, and
//! `entity` stands for `table`. A parameter list of a URL is turned into the same JSON first.

use serde_json::{Map, Value as Json};

use super::super::filters::{Filters, read_json};
use super::super::params;
use super::super::problem::Problem;
use crate::limits::QUERY_ROWS_DEFAULT;
use crate::live::{LiveQuery, Mode};
use crate::tables::{
    Filter, InvalidQuery, Order, Query, RowCursor, TableError, TableSchema, TableStore, Value, column_of,
};

/// The fields of a query, each at most once, by their lower-case names.
#[derive(Default)]
struct Fields<'a> {
    table: Option<&'a Json>,
    conditions: Option<&'a Json>,
    sort: Option<&'a Json>,
    limit: Option<&'a Json>,
    cursor: Option<&'a Json>,
    mode: Option<&'a Json>,
    columns: Option<&'a Json>,
}

/// Reads and checks a query.
pub(super) fn read_query(tables: &dyn TableStore, json: &Json) -> Result<LiveQuery, Problem> {
    let Json::Object(object) = json else { return Err(wrong("the query is not a JSON object")) };
    let fields = Fields::of(object)?;
    let table = fields.table.and_then(Json::as_str).ok_or_else(|| wrong("`table` is missing, or no text"))?;
    let schema = tables.schema(&params::cut(table))?;
    let order = read_order(fields.sort)?;
    let limit = match fields.limit {
        None => QUERY_ROWS_DEFAULT.min(schema.window_rows_max),
        Some(limit) => read_limit(&schema, limit)?,
    };
    let query = Query {
        table: schema.name.clone(),
        filter: read_filter(&schema, fields.conditions)?,
        scope: Filter::default(),
        limit,
        after: None,
        order,
    };
    // Before the cursor is read by the types of the order.
    query.validate(&schema).map_err(TableError::from)?;
    let after = fields.cursor.map_or(Ok(None), |cursor| read_cursor(&schema, &query.order, cursor))?;
    let columns = fields.columns.map(|columns| read_columns(&schema, columns)).transpose()?;
    Ok(LiveQuery { query: Query { after, ..query }, mode: read_mode(fields.mode)?, columns })
}

/// Another place and size for a query. 0 rows keep its size.
pub(super) fn read_anchor(
    schema: &TableSchema,
    query: &LiveQuery,
    cursor: Option<&Json>,
    limit: Option<i64>,
) -> Result<LiveQuery, Problem> {
    let mut moved = query.clone();
    if let Some(cursor) = cursor {
        moved.query.after = read_cursor(schema, &query.query.order, cursor)?;
    }
    if let Some(limit) = limit.filter(|limit| *limit != 0) {
        moved.query.limit = read_limit(schema, &limit.into())?;
    }
    moved.query.validate(schema).map_err(TableError::from)?;
    Ok(moved)
}

impl<'a> Fields<'a> {
    fn of(object: &'a Map<String, Json>) -> Result<Self, Problem> {
        let mut fields = Self::default();
        for (name, value) in object {
            let place = match name.as_str() {
                "table" | "Table" | "entity" | "Entity" => &mut fields.table,
                "where" | "Where" => &mut fields.conditions,
                "sort" | "Sort" => &mut fields.sort,
                "limit" | "Limit" => &mut fields.limit,
                "cursor" | "Cursor" => &mut fields.cursor,
                "mode" | "Mode" => &mut fields.mode,
                "columns" | "Columns" => &mut fields.columns,
                "tenant" | "Tenant" => {
                    return Err(Problem::new("tenant_in_body", "the query has a field `tenant`"));
                }
                other => {
                    let other = params::cut(other);
                    return Err(wrong(format!(
                        "there is no field `{other}`; there are table, where, sort, limit, cursor, mode, columns"
                    )));
                }
            };
            // Some clients write what they leave out as null.
            if !value.is_null() && place.replace(value).is_some() {
                return Err(wrong(format!("`{}` stands twice", name.to_ascii_lowercase())));
            }
        }
        Ok(fields)
    }
}

fn read_filter(schema: &TableSchema, conditions: Option<&Json>) -> Result<Filter, Problem> {
    let mut filters = Filters::new(schema);
    let parts = match conditions {
        None => Vec::new(),
        Some(Json::Array(parts)) => parts
            .iter()
            .map(|part| match part {
                Json::String(text) => filters.text(text),
                other => filters.json(other),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => vec![filters.json(other)?],
    };
    Ok(Filter::All(parts))
}

fn read_order(sort: Option<&Json>) -> Result<Vec<Order>, Problem> {
    let Some(sort) = sort else { return Ok(Vec::new()) };
    let wanted = "`sort` is a list of {\"column\":…,\"desc\":true}";
    let Json::Array(parts) = sort else { return Err(wrong(wanted)) };
    let mut order: Vec<Order> = Vec::new();
    for part in parts {
        let Json::Object(part) = part else { return Err(wrong(wanted)) };
        let (mut column, mut descending) = (None, false);
        for (name, value) in part {
            match (name.as_str(), value) {
                ("column" | "Column", Json::String(name)) => column = Some(name.as_str()),
                ("desc" | "Desc", Json::Bool(desc)) => descending = *desc,
                ("desc" | "Desc", Json::Null) => {}
                _ => return Err(wrong(format!("{wanted}; it has `{}`", params::cut(name)))),
            }
        }
        let column = column.ok_or_else(|| wrong(wanted))?;
        if order.iter().any(|known| known.column == column) {
            return Err(wrong(format!("`sort` names `{}` twice", params::cut(column))));
        }
        order.push(Order { column: column.to_owned(), descending });
    }
    Ok(order)
}

fn read_limit(schema: &TableSchema, limit: &Json) -> Result<u32, Problem> {
    let max = schema.window_rows_max;
    let whole = limit.as_i64().and_then(|limit| u32::try_from(limit).ok());
    match whole {
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(TableError::from(InvalidQuery::Limit { table: schema.name.clone(), limit, max }).into())
        }
        None => {
            let asked = params::cut(&limit.to_string());
            let problem =
                wrong(format!("limit is {asked}; table `{}` gives 1 to {max} rows a query", schema.name));
            Err(problem.with("limit", "window_rows_max".into()).with("max", max.into()))
        }
    }
}

/// `{"values":[…the sort's values…, key]}`; no values are the head.
fn read_cursor(schema: &TableSchema, order: &[Order], cursor: &Json) -> Result<Option<RowCursor>, Problem> {
    let shape = || wrong("`cursor` is {\"values\":[…]}: a value for each sort column, then the key");
    let Json::Object(object) = cursor else { return Err(shape()) };
    let mut values = None;
    for (name, value) in object {
        match (name.as_str(), value) {
            ("values" | "Values", Json::Null) => {}
            ("values" | "Values", Json::Array(list)) => values = Some(list),
            _ => return Err(shape()),
        }
    }
    let Some(values) = values else { return Ok(None) };
    let Some((key, sorted)) = values.split_last().filter(|(_, sorted)| sorted.len() == order.len()) else {
        let wanted = order.len() + 1;
        return Err(wrong(format!(
            "`cursor` has {} values; this query has {wanted}: one for each sort column, then the key",
            values.len()
        )));
    };
    let key = key.as_str().ok_or_else(|| wrong("the last value of `cursor` is the row's key, a text"))?;
    let typed = |(value, order): (&Json, &Order)| {
        if value.is_null() {
            return Ok(Value::Null);
        }
        let expected = column_of(schema, &order.column)?.column_type;
        read_json(value, expected).ok_or_else(|| InvalidQuery::Type {
            column: order.column.clone(),
            expected,
            value: params::cut(&value.to_string()),
        })
    };
    let values = sorted.iter().zip(order).map(typed).collect::<Result<_, _>>().map_err(TableError::from)?;
    Ok(Some(RowCursor { values, key: key.to_owned() }))
}

fn read_mode(mode: Option<&Json>) -> Result<Mode, Problem> {
    let Some(mode) = mode else { return Ok(Mode::default()) };
    match (mode.as_u64(), mode.as_str()) {
        (Some(0), _) | (_, Some("maintained" | "0")) => Ok(Mode::Maintained),
        (Some(1), _) | (_, Some("streamed" | "1")) => Ok(Mode::Streamed),
        _ => {
            let mode = params::cut(&mode.to_string());
            Err(wrong(format!("`mode` is {mode}; there are `maintained` (0) and `streamed` (1)")))
        }
    }
}

fn read_columns(schema: &TableSchema, columns: &Json) -> Result<Vec<String>, Problem> {
    let wanted = || wrong("`columns` is a list of column names");
    let mut names: Vec<String> = Vec::new();
    for column in columns.as_array().ok_or_else(wanted)? {
        let name = column.as_str().ok_or_else(wanted)?;
        if name == "key" || names.iter().any(|known| known == name) {
            continue; // The key is always there.
        }
        if schema.column(name).is_none() {
            let known = schema.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
            let (table, name) = (&schema.name, params::cut(name));
            return Err(wrong(format!("table `{table}` has no column `{name}` to show; it has {known}")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new("query_invalid", detail)
}
