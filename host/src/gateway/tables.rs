//! `GET /v1/tables…`: schemas, pages of rows, single rows.
//!
//! A page's cursor belongs to the table and the order it came from. Answers
//! carry an ETag made of the store's revision, so that polling what has not
//! changed costs no transfer.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::auth::{Caller, Reader};
use super::params::{self, Params};
use super::problem::Problem;
use super::wire::{ConditionText, TableView};
use super::{Edge, json as text, native};
use crate::event::{Micros, Revision};
use crate::limits::{QUERY_CONDITIONS_MAX, QUERY_ROWS_DEFAULT, ROW_KEY_BYTES_MAX};
use crate::tables::{
    ColumnType, Condition, InvalidQuery, Operator, Order, Query, RowCursor, TableError, TableSchema, Value,
    column_of,
};

/// The tables of all plugins, with their columns.
#[utoipa::path(get, path = "/v1/tables", tag = "tables",
    responses((status = 200, description = "The tables", body = super::wire::TableList)))]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(_): Reader,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let tables: Vec<TableView> = edge
        .services
        .tables
        .list()
        .into_iter()
        .map(|(plugin, schema)| TableView { plugin, schema })
        .collect();
    Ok(axum::Json(json!({ "tables": tables })).into_response())
}

/// Rows of a table: those that meet every condition, in order, one page.
#[utoipa::path(
    get,
    path = "/v1/tables/{table}",
    tag = "tables",
    params(
        ("table" = String, Path, description = "The table's name"),
        ("where" = Option<Vec<String>>, Query, description = "`column:op:value`, several times for several conditions; `in` and `notin` take values separated by commas; or a JSON condition `{\"column\",\"op\",\"value\"}` or an array of them. Operators: eq ne gt gte lt lte in notin like ilike isnull isnotnull"),
        ("order" = Option<String>, Query, description = "`column:desc,column`; then by key"),
        ("limit" = Option<u32>, Query, description = "Rows of the page"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before"),
        ("If-None-Match" = Option<String>, Header, description = "An ETag; the answer is 304 while the store has not changed"),
    ),
    responses(
        (status = 200, description = "A page of rows", body = super::wire::RowList),
        (status = 304, description = "Nothing has changed since the ETag"),
    )
)]
pub(super) async fn query(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(table): Path<String>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let tables = &edge.services.tables;
    let schema = tables.schema(&params::cut(&table))?;
    let query = parse_query(&schema, &mut params)?;
    params.finish()?;
    query.validate(&schema).map_err(TableError::from)?;
    let page = tables.query(&caller.tenant, &query).await?;
    let etag = etag(&edge, &caller, page.revision);
    if matches_etag(&headers, &etag) {
        return Ok(not_modified(&etag));
    }
    let mut out = Vec::with_capacity(256 * page.rows.len() + 128);
    out.extend_from_slice(b"{\"table\":");
    text::write_text(&mut out, &schema.name);
    out.extend_from_slice(b",\"revision\":");
    text::write_number(&mut out, page.revision);
    out.extend_from_slice(b",\"rows\":[");
    for (index, row) in page.rows.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        text::write_row(&mut out, row, &schema);
    }
    out.push(b']');
    if let Some(next) = &page.next {
        out.extend_from_slice(b",\"next\":");
        text::write_text(&mut out, &write_cursor(&schema, &query.order, next));
    }
    out.push(b'}');
    Ok(fresh(&etag, out))
}

/// One row by its key. The key may hold slashes.
#[utoipa::path(
    get,
    path = "/v1/tables/{table}/{key}",
    tag = "tables",
    params(
        ("table" = String, Path, description = "The table's name"),
        ("key" = String, Path, description = "The row's key, percent-encoded; `/` may stand as it is"),
        ("If-None-Match" = Option<String>, Header, description = "An ETag; the answer is 304 while the store has not changed"),
    ),
    responses(
        (status = 200, description = "The row", body = super::wire::OneRow),
        (status = 304, description = "Nothing has changed since the ETag"),
    )
)]
pub(super) async fn row(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path((table, key)): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    if key.len() > ROW_KEY_BYTES_MAX {
        let detail = format!("the key has {} bytes; row_key_bytes_max is {ROW_KEY_BYTES_MAX}", key.len());
        let problem = Problem::new("row_key_bytes_max", detail);
        return Err(problem.limit("row_key_bytes_max", key.len() as u64, ROW_KEY_BYTES_MAX as u64));
    }
    let schema = edge.services.tables.schema(&params::cut(&table))?;
    let (revision, row) = edge.services.tables.get(&caller.tenant, &schema.name, &key).await?;
    let Some(row) = row else {
        let detail = format!("table `{}` has no row `{}`", schema.name, params::cut(&key));
        return Err(Problem::new("row_unknown", detail));
    };
    let etag = etag(&edge, &caller, revision);
    if matches_etag(&headers, &etag) {
        return Ok(not_modified(&etag));
    }
    let mut out = b"{\"table\":".to_vec();
    text::write_text(&mut out, &schema.name);
    out.extend_from_slice(b",\"revision\":");
    text::write_number(&mut out, revision);
    out.extend_from_slice(b",\"row\":");
    text::write_row(&mut out, &row, &schema);
    out.push(b'}');
    Ok(fresh(&etag, out))
}

/// The tenant is in it: under one address each tenant has an answer of its own.
fn etag(edge: &Edge, caller: &Caller, revision: Revision) -> String {
    format!("\"{}.{revision}.{}\"", edge.services.log.epoch().0, caller.tenant)
}

fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|one| {
            let one = one.trim();
            one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag
        })
    })
}

/// Rows are one tenant's: no shared cache may keep them.
fn caching(etag: &str) -> [(header::HeaderName, String); 3] {
    [
        (header::ETAG, etag.to_owned()),
        (header::CACHE_CONTROL, "private, no-cache".into()),
        (header::VARY, "Authorization".into()),
    ]
}

fn fresh(etag: &str, body: Vec<u8>) -> Response {
    (caching(etag), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn not_modified(etag: &str) -> Response {
    (StatusCode::NOT_MODIFIED, caching(etag)).into_response()
}

fn parse_query(schema: &TableSchema, params: &mut Params) -> Result<Query, Problem> {
    let mut conditions = Vec::new();
    for text in params.take_all("where") {
        parse_conditions(schema, &text, &mut conditions)?;
        if conditions.len() > QUERY_CONDITIONS_MAX {
            let error = InvalidQuery::TooManyConditions { conditions: conditions.len() };
            let asked = conditions.len() as u64;
            return Err(Problem::from(TableError::from(error)).limit(
                "query_conditions_max",
                asked,
                QUERY_CONDITIONS_MAX as u64,
            ));
        }
    }
    let order = parse_order(params.take("order")?.as_deref().unwrap_or_default())?;
    let limit = params.number("limit")?.unwrap_or(QUERY_ROWS_DEFAULT.min(schema.window_rows_max));
    let after = match params.take("cursor")? {
        Some(cursor) => {
            Some(read_cursor(schema, &order, &cursor).ok_or(TableError::from(InvalidQuery::Cursor))?)
        }
        None => None,
    };
    Ok(Query { table: schema.name.clone(), conditions, order, limit, after })
}

fn parse_order(text: &str) -> Result<Vec<Order>, Problem> {
    let mut order: Vec<Order> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (column, descending) = match part.split_once(':') {
            None | Some((_, "asc")) => (part.split(':').next().unwrap_or(part), false),
            Some((column, "desc")) => (column, true),
            Some(_) => {
                let detail =
                    format!("has `{}`; write `column`, `column:asc` or `column:desc`", params::cut(part));
                return Err(params::invalid("order", detail));
            }
        };
        if order.iter().any(|known| known.column == column) {
            return Err(params::invalid("order", format!("names `{}` twice", params::cut(column))));
        }
        order.push(Order { column: column.to_owned(), descending });
    }
    Ok(order)
}

fn parse_conditions(schema: &TableSchema, text: &str, out: &mut Vec<Condition>) -> Result<(), Problem> {
    if text.starts_with(['{', '[']) {
        let many: Vec<ConditionText> = if text.starts_with('[') {
            serde_json::from_str(text)
        } else {
            serde_json::from_str(text).map(|one| vec![one])
        }
        .map_err(|e| params::invalid("where", format!("is not a condition: {e}")))?;
        for one in many {
            out.push(json_condition(schema, one)?);
        }
        return Ok(());
    }
    let mut parts = text.splitn(3, ':');
    let (column, operator, value) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let Some(operator) = operator else {
        return Err(params::invalid("where", format!("is `{}`; write column:op:value", params::cut(text))));
    };
    let operator = parse_operator(operator)?;
    let column_type = column_of(schema, column).map_err(TableError::from)?.column_type;
    let typed = |text: &str| {
        read_text(text, column_type).ok_or_else(|| {
            TableError::from(InvalidQuery::Type {
                column: column.to_owned(),
                expected: column_type,
                value: params::cut(text),
            })
        })
    };
    let values = match (operator, value) {
        (Operator::In | Operator::NotIn, Some(list)) => {
            list.split(',').map(typed).collect::<Result<_, _>>()?
        }
        (Operator::IsNull | Operator::IsNotNull, Some("")) | (_, None) => Vec::new(),
        (_, Some(one)) => vec![typed(one)?],
    };
    out.push(Condition { column: column.to_owned(), operator, values });
    Ok(())
}

fn parse_operator(text: &str) -> Result<Operator, Problem> {
    Operator::deserialize(serde_json::Value::from(text)).map_err(|_| {
        let detail = format!(
            "has the operator `{}`; there are eq, ne, gt, gte, lt, lte, in, notin, like, ilike, isnull, isnotnull",
            params::cut(text)
        );
        params::invalid("where", detail)
    })
}

fn json_condition(schema: &TableSchema, one: ConditionText) -> Result<Condition, Problem> {
    let operator = parse_operator(&one.op)?;
    let column_type = column_of(schema, &one.column).map_err(TableError::from)?.column_type;
    let typed = |value: &serde_json::Value| {
        read_json(value, column_type).ok_or_else(|| {
            TableError::from(InvalidQuery::Type {
                column: one.column.clone(),
                expected: column_type,
                value: params::cut(&value.to_string()),
            })
        })
    };
    let values = match (operator, &one.value) {
        (Operator::In | Operator::NotIn, serde_json::Value::Array(list)) => {
            list.iter().map(typed).collect::<Result<_, _>>()?
        }
        (Operator::IsNull | Operator::IsNotNull, serde_json::Value::Null) => Vec::new(),
        (_, value) => vec![typed(value)?],
    };
    Ok(Condition { column: one.column, operator, values })
}

/// A value as it stands in a short condition.
fn read_text(text: &str, column_type: ColumnType) -> Option<Value> {
    match column_type {
        ColumnType::Bool => text.parse().ok().map(Value::Bool),
        ColumnType::Int => text.parse().ok().map(Value::Int),
        ColumnType::Float => text.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float),
        ColumnType::Text => Some(Value::Text(text.to_owned())),
        ColumnType::Bytes => STANDARD.decode(text).ok().map(Value::Bytes),
        ColumnType::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).ok().map(|_| Value::Json(text.to_owned()))
        }
        ColumnType::Timestamp => native::parse_time(text).ok().map(Value::Timestamp),
    }
}

/// A value as it stands in a JSON condition.
fn read_json(value: &serde_json::Value, column_type: ColumnType) -> Option<Value> {
    match column_type {
        ColumnType::Bool => value.as_bool().map(Value::Bool),
        ColumnType::Int => value.as_i64().map(Value::Int),
        ColumnType::Float => value.as_f64().map(Value::Float),
        ColumnType::Json => Some(Value::Json(value.to_string())),
        ColumnType::Text | ColumnType::Bytes | ColumnType::Timestamp => {
            read_text(value.as_str()?, column_type)
        }
    }
}

/// What a page's cursor holds: which query it belongs to, and the last row's place.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorText {
    q: String,
    v: Vec<serde_json::Value>,
    k: String,
}

/// Names a table and an order.
fn query_mark(schema: &TableSchema, order: &[Order]) -> String {
    let mut hash = Sha256::new();
    hash.update(schema.name.as_bytes());
    for one in order {
        hash.update([0, u8::from(one.descending)]);
        hash.update(one.column.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..9])
}

fn write_cursor(schema: &TableSchema, order: &[Order], cursor: &RowCursor) -> String {
    let values = cursor.values.iter().map(|value| match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) | Value::Timestamp(Micros(value)) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) | Value::Json(text) => text.as_str().into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
    });
    let cursor = CursorText { q: query_mark(schema, order), v: values.collect(), k: cursor.key.clone() };
    let json = serde_json::to_vec(&cursor).expect("a cursor has text keys only");
    URL_SAFE_NO_PAD.encode(json)
}

fn read_cursor(schema: &TableSchema, order: &[Order], text: &str) -> Option<RowCursor> {
    let json = URL_SAFE_NO_PAD.decode(text).ok()?;
    let cursor: CursorText = serde_json::from_slice(&json).ok()?;
    if cursor.q != query_mark(schema, order) || cursor.v.len() != order.len() {
        return None;
    }
    let values = cursor.v.iter().zip(order).map(|(value, order)| {
        let column_type = column_of(schema, &order.column).ok()?.column_type;
        match (value, column_type) {
            (serde_json::Value::Null, _) => Some(Value::Null),
            (value, ColumnType::Timestamp) => value.as_i64().map(|micros| Value::Timestamp(Micros(micros))),
            (value, column_type) => read_json(value, column_type),
        }
    });
    Some(RowCursor { values: values.collect::<Option<_>>()?, key: cursor.k })
}
