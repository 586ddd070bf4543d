//! What a live query comes down to: a normal form, so that the same question is one view however it was put,
//! and its columns as places in a row, so that no name is looked up per change.

use std::sync::Arc;

use super::sort_key::SortKey;
use super::window::{Held, Keyed};
use super::{LiveError, LiveQuery, Mode};
use crate::limits::{LIVE_SPARE_ROWS_MAX, LIVE_STREAMED_ROWS_MAX};
use crate::tables::{Condition, Filter, Operator, Order, Row, TableSchema, Value};

/// Brings a checked query into its normal form.
pub(super) fn normalise(mut live: LiveQuery, schema: &TableSchema) -> Result<LiveQuery, LiveError> {
    if let Some(columns) = &mut live.columns {
        let unknown = columns.iter().find(|name| *name != "key" && schema.column(name).is_none());
        if let Some(column) = unknown {
            let column = column.chars().take(80).collect();
            return Err(LiveError::Column { table: schema.name.clone(), column });
        }
        let place = |name: &String| schema.column(name).map(|(place, _)| place);
        columns.retain(|name| name != "key");
        columns.sort_by_key(place);
        columns.dedup();
    }
    let query = &mut live.query;
    query.filter = simplify(std::mem::take(&mut query.filter));
    query.scope = simplify(std::mem::take(&mut query.scope));
    if live.mode == Mode::Streamed {
        // It has no order, and no place to begin at.
        query.order.clear();
        query.after = None;
    }
    Ok(live)
}

/// Flat groups, sorted and each part once; values of lists likewise.
fn simplify(filter: Filter) -> Filter {
    match filter {
        Filter::All(parts) => group(parts, Filter::All, |part| match part {
            Filter::All(parts) => Ok(parts),
            other => Err(other),
        }),
        Filter::Any(parts) => group(parts, Filter::Any, |part| match part {
            Filter::Any(parts) => Ok(parts),
            other => Err(other),
        }),
        Filter::Not(part) => match simplify(*part) {
            Filter::Not(inner) => *inner,
            other => Filter::Not(Box::new(other)),
        },
        Filter::Is(condition) => Filter::Is(Condition { values: listed(&condition), ..condition }),
    }
}

fn group(
    parts: Vec<Filter>,
    of: fn(Vec<Filter>) -> Filter,
    same: fn(Filter) -> Result<Vec<Filter>, Filter>,
) -> Filter {
    let mut flat = Vec::new();
    for part in parts {
        match same(simplify(part)) {
            Ok(parts) => flat.extend(parts),
            Err(part) => flat.push(part),
        }
    }
    flat.sort_by_cached_key(|part| format!("{part:?}"));
    flat.dedup();
    match flat.pop() {
        Some(only) if flat.is_empty() => only,
        Some(last) => {
            flat.push(last);
            of(flat)
        }
        None => of(flat),
    }
}

fn listed(condition: &Condition) -> Vec<Value> {
    let mut values = condition.values.clone();
    if matches!(condition.operator, Operator::In | Operator::NotIn) {
        values.sort_by_cached_key(|value| format!("{value:?}"));
        values.dedup();
    }
    values
}

/// A row as views hold it; the encoded form of all its columns is made once, for whichever view is the first.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) row: Arc<Row>,
    pub(super) json: std::sync::OnceLock<Box<[u8]>>,
}

impl Shown {
    pub(super) fn new(row: Arc<Row>) -> Arc<Self> {
        Arc::new(Self { row, json: std::sync::OnceLock::new() })
    }
}

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        self.row == other.row
    }
}

impl Keyed for Arc<Shown> {
    fn key(&self) -> &str {
        &self.row.key
    }
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Key,
    Version,
    Revision,
    Cell(usize),
}

impl Source {
    pub(super) fn of(schema: &TableSchema, column: &str) -> Option<Self> {
        match column {
            "key" => Some(Self::Key),
            "version" => Some(Self::Version),
            "revision" => Some(Self::Revision),
            named => schema.column(named).map(|(place, _)| Self::Cell(place)),
        }
    }

    /// Its value in a row.
    pub(super) fn with<T>(self, row: &Row, look: impl FnOnce(&Value) -> T) -> T {
        let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        match self {
            Self::Cell(place) => look(row.cells.get(place).unwrap_or(&Value::Null)),
            Self::Key => look(&Value::Text(row.key.clone())),
            Self::Version => look(&number(row.version)),
            Self::Revision => look(&number(row.revision.0)),
        }
    }
}

/// A filter with places instead of names.
#[derive(Clone, Debug)]
enum Predicate {
    All(Vec<Predicate>),
    Any(Vec<Predicate>),
    Not(Box<Predicate>),
    Is(Source, Condition),
}

impl Predicate {
    fn of(schema: &TableSchema, filter: &Filter) -> Option<Self> {
        let many =
            |parts: &[Filter]| parts.iter().map(|part| Self::of(schema, part)).collect::<Option<Vec<_>>>();
        Some(match filter {
            Filter::All(parts) => Self::All(many(parts)?),
            Filter::Any(parts) => Self::Any(many(parts)?),
            Filter::Not(part) => Self::Not(Box::new(Self::of(schema, part)?)),
            Filter::Is(condition) => Self::Is(Source::of(schema, &condition.column)?, condition.clone()),
        })
    }

    fn holds(&self, row: &Row) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(row)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(row)),
            Self::Not(part) => !part.holds(row),
            Self::Is(source, condition) => source.with(row, |value| condition.holds(value)),
        }
    }
}

/// A query with the places of its columns.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) query: LiveQuery,
    predicate: Predicate,
    order: Vec<(Source, Order)>,
    /// The places that frames show; none for all.
    shown: Option<Vec<usize>>,
    pub(super) schema: Arc<TableSchema>,
}

impl Plan {
    /// None when the schema lacks a column of the query.
    pub(super) fn new(query: LiveQuery, schema: Arc<TableSchema>) -> Option<Self> {
        // What the reader may see at all counts like what it asks for.
        let asked = Filter::All(vec![query.query.scope.clone(), query.query.filter.clone()]);
        let predicate = Predicate::of(&schema, &simplify(asked))?;
        let place = |part: &Order| Some((Source::of(&schema, &part.column)?, part.clone()));
        let order = query.query.order.iter().map(place).collect::<Option<_>>()?;
        let shown = match &query.columns {
            Some(columns) => {
                let places = columns.iter().map(|name| Some(schema.column(name)?.0));
                Some(places.collect::<Option<_>>()?)
            }
            None => None,
        };
        Some(Self { query, predicate, order, shown, schema })
    }

    pub(super) fn holds(&self, row: &Row) -> bool {
        self.predicate.holds(row)
    }

    pub(super) fn is_streamed(&self) -> bool {
        self.query.mode == Mode::Streamed
    }

    pub(super) fn limit(&self) -> usize {
        self.query.query.limit as usize
    }

    /// Rows that a window shows. In streamed mode it is all that match.
    pub(super) fn shown_max(&self) -> usize {
        if self.is_streamed() { LIVE_STREAMED_ROWS_MAX } else { self.limit() }
    }

    /// Rows that a window holds beyond those, so that one that leaves can be followed at once.
    pub(super) fn spare(&self) -> usize {
        if self.is_streamed() {
            return 0;
        }
        LIVE_SPARE_ROWS_MAX.min((self.schema.window_rows_max as usize).saturating_sub(self.limit()))
    }

    pub(super) fn anchor(&self) -> Option<SortKey> {
        let after = self.query.query.after.as_ref()?;
        Some(SortKey::new(&self.query.query.order, &after.values, &after.key))
    }

    /// Where a row stands in the order.
    pub(super) fn place(&self, row: &Row) -> SortKey {
        match self.order.as_slice() {
            [] => SortKey::new(&[], [], &row.key),
            [(Source::Cell(place), order)] => {
                SortKey::new(std::slice::from_ref(order), [&row.cells[*place]], &row.key)
            }
            _ => SortKey::new(&self.query.query.order, &self.order_values(row), &row.key),
        }
    }

    fn order_values(&self, row: &Row) -> Vec<Value> {
        self.order.iter().map(|(source, _)| source.with(row, Value::clone)).collect()
    }

    /// Looks at the value of each part of the order.
    pub(super) fn each_order_value(&self, row: &Row, mut look: impl FnMut(&Value)) {
        self.order.iter().for_each(|(source, _)| source.with(row, &mut look));
    }

    pub(super) fn held(&self, row: &Arc<Shown>) -> Held<Arc<Shown>> {
        Held { at: self.place(&row.row), row: Arc::clone(row) }
    }

    /// The columns that frames show, with their places.
    pub(super) fn shown(&self) -> Option<&[usize]> {
        self.shown.as_deref()
    }

    /// The outermost conditions that name values which a matching row must have: of them the index makes use.
    pub(super) fn wanted(&self) -> Vec<(Source, &Condition)> {
        let parts = match &self.predicate {
            Predicate::All(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        let wanted = |part| match part {
            &Predicate::Is(source, ref condition)
                if matches!(condition.operator, Operator::Eq | Operator::In) =>
            {
                Some((source, condition))
            }
            _ => None,
        };
        parts.iter().filter_map(wanted).collect()
    }
}
