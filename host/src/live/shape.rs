//! What a live query comes down to: a normal form, so that the same question is one view however it was put,
//! and its columns as places in a row, so that no name is looked up per change.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use super::ahead;
use super::sort_key::{SortKey, SortKeyWriter};
use super::{LiveError, LiveQuery, Mode};
use crate::limits::{LIVE_SPARE_ROWS_MAX, LIVE_SPARE_ROWS_MIN, LIVE_STREAMED_ROWS_MAX};
use crate::tables::{
    ColumnType, Condition, Filter, Operator, Order, Row, RowChange, TableSchema, Value, write_text,
    write_value,
};

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

/// A table's columns, and how their names begin in a row's JSON.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) schema: TableSchema,
    /// Each as `,"name":`.
    pub(super) names: Vec<Box<[u8]>>,
}

impl Columns {
    pub(super) fn new(schema: TableSchema) -> Arc<Self> {
        let name = |name: &str| {
            let mut out = vec![b','];
            write_text(&mut out, name);
            out.push(b':');
            out.into()
        };
        let names = schema.columns.iter().map(|column| name(&column.name)).collect();
        Arc::new(Self { schema, names })
    }
}

/// A row as frames show it, which is all that views keep of it: `,"row":{…}`, and its version before that. Encoded
/// once; clones share the bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RowText(Arc<[u8]>);

const VERSION_BYTES: usize = 8;

impl RowText {
    /// With these columns, by their places. `scratch` is only used meanwhile.
    pub(super) fn new(
        columns: &Columns,
        row: &Row,
        places: impl Iterator<Item = usize>,
        scratch: &mut Vec<u8>,
    ) -> Self {
        scratch.clear();
        scratch.extend_from_slice(&row.version.to_le_bytes());
        scratch.extend_from_slice(b",\"row\":{\"key\":");
        write_text(scratch, &row.key);
        for place in places {
            let (Some(name), Some(value)) = (columns.names.get(place), row.cells.get(place)) else {
                continue;
            };
            scratch.extend_from_slice(name);
            let start = scratch.len();
            write_value(scratch, value);
            if matches!(value, Value::Json(_)) {
                // It may have line breaks between its tokens, and a frame is one line.
                for byte in &mut scratch[start..] {
                    if matches!(*byte, b'\n' | b'\r') {
                        *byte = b' ';
                    }
                }
            }
        }
        scratch.push(b'}');
        Self(Arc::from(scratch.as_slice()))
    }

    /// Asks for its memory: for all of it, or for what dropping it takes.
    pub(super) fn ask_for(&self, whole: bool) {
        ahead::counts(&self.0);
        if whole {
            ahead::all(&*self.0);
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.0.first_chunk().map_or(0, |version| u64::from_le_bytes(*version))
    }

    /// A member of a frame, with the comma before it.
    pub(super) fn json(&self) -> &[u8] {
        &self.0[VERSION_BYTES..]
    }
}

/// One row of a commit, for all views that it may concern.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    /// None when it is gone.
    pub(super) row: Option<&'a Row>,
    /// Of the key.
    pub(super) hash: Cell<u64>,
    /// With all columns, once a view wants it.
    text: OnceCell<RowText>,
}

impl<'a> Change<'a> {
    pub(super) fn new(change: &'a RowChange) -> Self {
        let row = match change {
            RowChange::Put(row) => Some(&**row),
            RowChange::Delete { .. } => None,
        };
        Self { key: change.key(), row, hash: Cell::new(0), text: OnceCell::new() }
    }
}

impl Change<'_> {
    /// Asks for what its cells refer to.
    pub(super) fn ask_for_cells(&self) {
        for cell in self.row.map_or(&[][..], |row| &row.cells) {
            if let Value::Text(text) | Value::Json(text) = cell {
                ahead::all(text.as_str());
            }
        }
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
    Is(Source, Box<Condition>),
    /// An integer column is this number: what most filters demand, without a look elsewhere.
    IsInt(Source, i64, Box<Condition>),
}

impl Predicate {
    fn of(schema: &TableSchema, filter: &Filter) -> Option<Self> {
        let many =
            |parts: &[Filter]| parts.iter().map(|part| Self::of(schema, part)).collect::<Option<Vec<_>>>();
        Some(match filter {
            Filter::All(parts) => Self::All(many(parts)?),
            Filter::Any(parts) => Self::Any(many(parts)?),
            Filter::Not(part) => Self::Not(Box::new(Self::of(schema, part)?)),
            Filter::Is(condition) => {
                let source = Source::of(schema, &condition.column)?;
                match (condition.operator, condition.values.as_slice()) {
                    (Operator::Eq, [Value::Int(number)]) => {
                        Self::IsInt(source, *number, Box::new(condition.clone()))
                    }
                    _ => Self::Is(source, Box::new(condition.clone())),
                }
            }
        })
    }

    fn holds(&self, row: &Row) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(row)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(row)),
            Self::Not(part) => !part.holds(row),
            Self::Is(source, condition) => source.with(row, |value| condition.holds(value)),
            Self::IsInt(source, number, condition) => source.with(row, |value| match value {
                Value::Int(value) => value == number,
                other => condition.holds(other),
            }),
        }
    }
}

/// A part of the order, with a place instead of a name.
#[derive(Clone, Copy, Debug)]
struct Part {
    source: Source,
    column_type: ColumnType,
    descending: bool,
}

/// The parts of the order: mostly one, which then needs no look elsewhere.
#[derive(Debug)]
enum Parts {
    One(Part),
    Many(Box<[Part]>),
}

impl Parts {
    fn list(&self) -> &[Part] {
        match self {
            Self::One(part) => std::slice::from_ref(part),
            Self::Many(parts) => parts,
        }
    }
}

/// A query with the places of its columns.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) query: Box<LiveQuery>,
    predicate: Predicate,
    order: Parts,
    /// The places that frames show; none for all.
    shown: Option<Vec<usize>>,
    pub(super) columns: Arc<Columns>,
}

impl Plan {
    /// None when the schema lacks a column of the query.
    pub(super) fn new(query: LiveQuery, columns: Arc<Columns>) -> Option<Self> {
        let schema = &columns.schema;
        // What the reader may see at all counts like what it asks for.
        let asked = Filter::All(vec![query.query.scope.clone(), query.query.filter.clone()]);
        let predicate = Predicate::of(schema, &simplify(asked))?;
        let part = |part: &Order| {
            let source = Source::of(schema, &part.column)?;
            let column_type = match source {
                Source::Key => ColumnType::Text,
                Source::Version | Source::Revision => ColumnType::Int,
                Source::Cell(place) => schema.columns.get(place)?.column_type,
            };
            Some(Part { source, column_type, descending: part.descending })
        };
        let order = query.query.order.iter().map(part).collect::<Option<Vec<_>>>()?;
        let order = match order[..] {
            [part] => Parts::One(part),
            _ => Parts::Many(order.into()),
        };
        let shown = match &query.columns {
            Some(columns) => {
                let places = columns.iter().map(|name| Some(schema.column(name)?.0));
                Some(places.collect::<Option<_>>()?)
            }
            None => None,
        };
        Some(Self { query: Box::new(query), predicate, order, shown, columns })
    }

    /// Asks for what a row is compared with.
    pub(super) fn ask_for(&self) {
        if let Predicate::All(parts) | Predicate::Any(parts) = &self.predicate {
            ahead::all(parts.as_slice());
        }
        if let Parts::Many(parts) = &self.order {
            ahead::all(&**parts);
        }
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
        let wanted = (self.limit() / 2).clamp(LIVE_SPARE_ROWS_MIN, LIVE_SPARE_ROWS_MAX);
        wanted.min((self.columns.schema.window_rows_max as usize).saturating_sub(self.limit()))
    }

    pub(super) fn anchor(&self) -> Option<SortKey> {
        let after = self.query.query.after.as_ref()?;
        Some(SortKey::new(&self.query.query.order, &after.values, &after.key))
    }

    /// Where a row stands in the order.
    pub(super) fn place(&self, row: &Row) -> SortKey {
        let mut writer = SortKeyWriter::default();
        for part in self.order.list() {
            match part.source {
                // A row without that cell is none of this table: better no view than a wrong one.
                Source::Cell(place) => writer.part(&row.cells[place], part.descending),
                source => source.with(row, |value| writer.part(value, part.descending)),
            }
        }
        writer.finish(&row.key)
    }

    /// Whether sort keys of both are of the same values.
    pub(super) fn orders_like(&self, other: &Self) -> bool {
        let parts = |plan: &Self| plan.order.list().iter().map(|part| part.column_type).collect::<Vec<_>>();
        parts(self) == parts(other)
    }

    /// The place of a row of which only the key is known.
    pub(super) fn nowhere(&self, key: &[u8]) -> SortKey {
        let mut writer = SortKeyWriter::default();
        for part in self.order.list() {
            writer.part(&Value::Null, part.descending);
        }
        // Keys are text before they are bytes of a sort key.
        writer.finish(std::str::from_utf8(key).unwrap_or_default())
    }

    /// Appends the value of each part of the order as JSON, with a comma behind it.
    pub(super) fn write_order(&self, at: &SortKey, out: &mut Vec<u8>) {
        let mut parts = at.parts();
        for part in self.order.list() {
            write_value(out, &parts.next(part.column_type, part.descending));
            out.push(b',');
        }
    }

    /// A changed row as this view shows it.
    pub(super) fn text_of(&self, change: &Change<'_>, row: &Row, scratch: &mut Vec<u8>) -> RowText {
        if self.shown.is_some() {
            return self.text(row, scratch);
        }
        change.text.get_or_init(|| self.text(row, scratch)).clone()
    }

    /// A row as this view shows it.
    pub(super) fn text(&self, row: &Row, scratch: &mut Vec<u8>) -> RowText {
        match &self.shown {
            Some(places) => RowText::new(&self.columns, row, places.iter().copied(), scratch),
            None => RowText::new(&self.columns, row, 0..self.columns.names.len(), scratch),
        }
    }

    /// The outermost conditions that name values which a matching row must have: of them the index makes use.
    pub(super) fn wanted(&self) -> Vec<(Source, &Condition)> {
        let parts = match &self.predicate {
            Predicate::All(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        let wanted = |part| match part {
            &(Predicate::Is(source, ref condition) | Predicate::IsInt(source, _, ref condition))
                if matches!(condition.operator, Operator::Eq | Operator::In) =>
            {
                Some((source, &**condition))
            }
            _ => None,
        };
        parts.iter().filter_map(wanted).collect()
    }
}
