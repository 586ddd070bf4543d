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

use super::auth::{Caller, TableReader};
use super::filters::{Filters, read_json};
use super::params::{self, Params};
use super::problem::Problem;
use super::wire::TableView;
use super::{Edge, json as text};
use crate::event::{Micros, Revision};
use crate::limits::{QUERY_ROWS_DEFAULT, ROW_KEY_BYTES_MAX};
use crate::tables::{
    ColumnType, Condition, Filter, InvalidQuery, Operator, Order, Query, Row, RowCursor, TableError,
    TableSchema, Value, column_of,
};

/// The tables of all plugins, with their columns.
#[utoipa::path(get, path = "/v1/tables", tag = "tables",
    responses((status = 200, description = "The tables", body = super::wire::TableList)))]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    TableReader(caller): TableReader,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let tables: Vec<TableView> = edge
        .services
        .tables
        .list()
        .into_iter()
        .filter(|(_, schema)| caller.reads_table(&schema.name))
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
        ("where" = Option<Vec<String>>, Query, description = "`column:op:value`, several times for several conditions; `in` and `notin` take values separated by commas; or JSON: a condition `{\"column\",\"op\",\"value\"}`, groups `{\"and\":[…]}`, `{\"or\":[…]}`, `{\"not\":…}`, or an array, all of which must hold. Operators: eq ne gt gte lt lte in notin like ilike isnull isnotnull"),
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
    TableReader(caller): TableReader,
    Path(table): Path<String>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let tables = &edge.services.tables;
    let schema = tables.schema(&params::cut(&table))?;
    let scope = caller.table_filter(&schema)?;
    let mut query = parse_query(&schema, &mut params)?;
    params.finish()?;
    query.scope = scope.unwrap_or_default();
    query.validate(&schema).map_err(TableError::from)?;
    let page = tables.query(&caller.tenant, &query).await?;
    let etag = etag(&edge, &caller, &query.scope, page.revision);
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
    TableReader(caller): TableReader,
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
    let scope = caller.table_filter(&schema)?.unwrap_or_default();
    let (revision, row) = one_row(&edge, &caller, &schema, &scope, &key).await?;
    let Some(row) = row else {
        let detail = format!("table `{}` has no row `{}`", schema.name, params::cut(&key));
        return Err(Problem::new("row_unknown", detail));
    };
    let etag = etag(&edge, &caller, &scope, revision);
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

/// A row that the caller may see. The store decides it, as it does for a page.
async fn one_row(
    edge: &Edge,
    caller: &Caller,
    schema: &TableSchema,
    scope: &Filter,
    key: &str,
) -> Result<(Revision, Option<Row>), Problem> {
    if *scope == Filter::default() {
        return Ok(edge.services.tables.get(&caller.tenant, &schema.name, key).await?);
    }
    let is =
        Condition { column: "key".into(), operator: Operator::Eq, values: vec![Value::Text(key.to_owned())] };
    let query = Query { filter: Filter::Is(is), scope: scope.clone(), limit: 1, ..Query::all(&schema.name) };
    let page = edge.services.tables.query(&caller.tenant, &query).await?;
    Ok((page.revision, page.rows.into_iter().next()))
}

/// The tenant is in it, and what limits the caller: under one address each has an answer of its own.
fn etag(edge: &Edge, caller: &Caller, scope: &Filter, revision: Revision) -> String {
    let mut mark = String::new();
    if *scope != Filter::default() {
        mark.push('.');
        URL_SAFE_NO_PAD.encode_string(&Sha256::digest(format!("{scope:?}"))[..9], &mut mark);
    }
    format!("\"{}.{revision}.{}{mark}\"", edge.services.log.epoch().0, caller.tenant)
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
        (header::VARY, "Authorization, Cookie".into()),
    ]
}

fn fresh(etag: &str, body: Vec<u8>) -> Response {
    (caching(etag), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn not_modified(etag: &str) -> Response {
    (StatusCode::NOT_MODIFIED, caching(etag)).into_response()
}

fn parse_query(schema: &TableSchema, params: &mut Params) -> Result<Query, Problem> {
    let mut filters = Filters::new(schema);
    let parts = params.take_all("where").iter().map(|text| filters.text(text)).collect::<Result<_, _>>()?;
    let order = parse_order(params.take("order")?.as_deref().unwrap_or_default())?;
    let limit = params.number("limit")?.unwrap_or(QUERY_ROWS_DEFAULT.min(schema.window_rows_max));
    let after = match params.take("cursor")? {
        Some(cursor) => {
            Some(read_cursor(schema, &order, &cursor).ok_or(TableError::from(InvalidQuery::Cursor))?)
        }
        None => None,
    };
    Ok(Query { filter: Filter::All(parts), order, limit, after, ..Query::all(&schema.name) })
}

pub(super) fn parse_order(text: &str) -> Result<Vec<Order>, Problem> {
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
