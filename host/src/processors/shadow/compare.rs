//! What two versions have made of the same events, side by side. Rows and keyed
//! state count as they are at the end of a stretch: the last write of each. An
//! emitted event and an appended entry count by themselves, since each becomes one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::report::{RowDifference, ShadowReport};
use crate::checkpoints::{AppendRef, EffectBatch, EffectRef, EmitRef};
use crate::event::TenantId;
use crate::limits::{SHADOW_EXAMPLE_CHARS_MAX, SHADOW_EXAMPLES_MAX, SHADOW_STRETCH_BYTES_MAX};
use crate::tables::{Cell, Cells, TableSchema};

/// How the tables of two versions lie on each other. Made once for a candidate.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    /// Of the tables that both declare.
    shared: Vec<SharedTable>,
    /// From a version's table to its place in `shared`.
    old: Vec<Option<usize>>,
    new: Vec<Option<usize>>,
}

#[derive(Debug)]
struct SharedTable {
    name: String,
    versioned: bool,
    /// Name, place in the old row, place in the new one.
    columns: Vec<(String, usize, usize)>,
}

impl Mapping {
    /// Also writes down what only one of them declares.
    pub(super) fn new(old: &[TableSchema], new: &[TableSchema], report: &mut ShadowReport) -> Self {
        let mut mapping = Self { new: vec![None; new.len()], ..Self::default() };
        for table in old {
            let Some((place, now)) = new.iter().enumerate().find(|(_, t)| t.name == table.name) else {
                report.removed_tables.push(table.name.clone());
                mapping.old.push(None);
                continue;
            };
            let mut columns = Vec::new();
            for (index, column) in table.columns.iter().enumerate() {
                match now.column(&column.name) {
                    Some((other, _)) => columns.push((column.name.clone(), index, other)),
                    None => report.removed_columns.push(format!("{}.{}", table.name, column.name)),
                }
            }
            for column in now.columns.iter().filter(|c| table.column(&c.name).is_none()) {
                report.added_columns.push(format!("{}.{}", table.name, column.name));
            }
            mapping.new[place] = Some(mapping.shared.len());
            mapping.old.push(Some(mapping.shared.len()));
            let (name, versioned) = (table.name.clone(), table.versioned);
            mapping.shared.push(SharedTable { name, versioned, columns });
        }
        let added = new.iter().zip(&mapping.new).filter(|(_, place)| place.is_none());
        report.added_tables.extend(added.map(|(table, _)| table.name.clone()));
        mapping
    }
}

/// The last write to a row.
#[derive(Debug, PartialEq)]
struct Write {
    version: u64,
    /// None for a delete.
    cells: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Pair<T> {
    old: Option<T>,
    new: Option<T>,
}

impl<T> Default for Pair<T> {
    fn default() -> Self {
        Self { old: None, new: None }
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Old,
    New,
}

impl<T> Pair<T> {
    fn side(&mut self, side: Side) -> &mut Option<T> {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }
}

/// One stretch of one task.
#[derive(Debug)]
pub(super) struct Comparison {
    mapping: Arc<Mapping>,
    tenant: TenantId,
    rows: BTreeMap<(usize, String), Pair<Write>>,
    /// Writes to tables that the candidate no longer declares.
    removed: u64,
    entries: HashMap<Vec<u8>, Pair<Option<Vec<u8>>>>,
    bytes: usize,
}

impl Comparison {
    pub(super) fn new(mapping: Arc<Mapping>, tenant: TenantId) -> Self {
        let (rows, entries) = (BTreeMap::new(), HashMap::new());
        Self { mapping, tenant, rows, removed: 0, entries, bytes: 0 }
    }

    /// Takes what both made of the same events. Emitted events are compared at once.
    pub(super) fn take(&mut self, old: &EffectBatch, new: &[EffectBatch], report: &mut ShadowReport) {
        self.collect(Side::Old, old);
        for effects in new {
            self.collect(Side::New, effects);
        }
        let (emitted, others) = (old.iter().filter_map(emit), new.iter().flat_map(EffectBatch::iter));
        in_turn(emitted, others.filter_map(emit), |one, other| report.emitted.count(one, other, same_event));
        let (appended, others) = (old.iter().filter_map(append), new.iter().flat_map(EffectBatch::iter));
        in_turn(appended, others.filter_map(append), |one, other| {
            report.appended.count(one, other, same_entry);
        });
    }

    /// Whether it should come to an end for its size.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > SHADOW_STRETCH_BYTES_MAX
    }

    fn collect(&mut self, side: Side, effects: &EffectBatch) {
        for effect in effects.iter() {
            match effect {
                EffectRef::Put { table, key, version, cells } => {
                    self.write(side, table, key, Write { version, cells: Some(cells.to_vec()) });
                }
                EffectRef::Delete { table, key, version } => {
                    self.write(side, table, key, Write { version, cells: None });
                }
                EffectRef::StatePut { key, value, .. } => self.set(side, key, Some(value.to_vec())),
                EffectRef::StateDelete { key } => self.set(side, key, None),
                EffectRef::Emit(_) | EffectRef::Append(_) => {}
            }
        }
    }

    fn write(&mut self, side: Side, table: usize, key: &str, write: Write) {
        let places = match side {
            Side::Old => &self.mapping.old,
            Side::New => &self.mapping.new,
        };
        let Some(place) = places.get(table).copied().flatten() else {
            self.removed += u64::from(matches!(side, Side::Old));
            return;
        };
        let versioned = self.mapping.shared[place].versioned;
        self.bytes += key.len() + write.cells.as_ref().map_or(0, Vec::len);
        let kept = self.rows.entry((place, key.to_owned())).or_default().side(side);
        // As a commit does it: in a versioned table the first of the highest version stays.
        let stale = versioned && kept.as_ref().is_some_and(|kept| write.version <= kept.version);
        if !stale {
            *kept = Some(write);
        }
    }

    fn set(&mut self, side: Side, key: &[u8], value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        *self.entries.entry(key.to_vec()).or_default().side(side) = Some(value);
    }

    /// The end of the stretch.
    pub(super) fn finish(self, report: &mut ShadowReport) {
        report.rows.only_old += self.removed;
        let (mapping, tenant) = (&self.mapping, &self.tenant);
        for ((place, key), pair) in self.rows {
            let table = &mapping.shared[place];
            let Some((column, old, new)) = difference(table, &pair) else {
                report.rows.same += 1;
                continue;
            };
            report.rows.count(pair.old, pair.new, |_, _| false);
            if report.examples.len() < SHADOW_EXAMPLES_MAX {
                report.examples.push(RowDifference {
                    tenant: tenant.to_string(),
                    table: table.name.clone(),
                    key: short(&key),
                    column,
                    old,
                    new,
                });
            }
        }
        for pair in self.entries.into_values() {
            report.state_entries.count(pair.old, pair.new, |old, new| old == new);
        }
    }
}

/// The first column in which two writes differ: its name, and what each holds.
fn difference(table: &SharedTable, pair: &Pair<Write>) -> Option<(String, Option<String>, Option<String>)> {
    let whole = |write: &Option<Write>| {
        write.as_ref().map(|write| if write.cells.is_some() { "written" } else { "deleted" }.to_owned())
    };
    let there = |write: &Option<Write>| write.as_ref().is_some_and(|write| write.cells.is_some());
    let (Some(old), Some(new)) = (&pair.old, &pair.new) else {
        return Some((String::new(), whole(&pair.old), whole(&pair.new)));
    };
    if there(&pair.old) != there(&pair.new) {
        return Some((String::new(), whole(&pair.old), whole(&pair.new)));
    }
    if table.versioned && old.version != new.version {
        return Some(("version".into(), Some(old.version.to_string()), Some(new.version.to_string())));
    }
    let (old, new) = (cells(old), cells(new));
    table.columns.iter().find_map(|(name, at_old, at_new)| {
        let (one, other) = (old.get(*at_old)?, new.get(*at_new)?);
        (!same_cell(one, other)).then(|| (name.clone(), shown(one), shown(other)))
    })
}

/// They were checked when they came in.
fn cells(write: &Write) -> Vec<Cell<'_>> {
    Cells::new(write.cells.as_deref().unwrap_or_default()).filter_map(Result::ok).collect()
}

fn same_cell(one: &Cell<'_>, other: &Cell<'_>) -> bool {
    match (one, other) {
        (Cell::Json(one), Cell::Json(other)) => same_json(one.as_bytes(), other.as_bytes()),
        _ => one == other,
    }
}

fn same_json(one: &[u8], other: &[u8]) -> bool {
    let parsed = |text| serde_json::from_slice::<serde_json::Value>(text).ok();
    one == other || parsed(one).is_some_and(|one| parsed(other) == Some(one))
}

fn same_event(one: &EmitRef<'_>, other: &EmitRef<'_>) -> bool {
    let names = |e: &EmitRef<'_>| (e.aggregate.to_owned(), e.agg_id.to_owned(), e.event_type.to_owned());
    one.version == other.version && names(one) == names(other) && same_json(one.payload, other.payload)
}

fn emit(effect: EffectRef<'_>) -> Option<EmitRef<'_>> {
    if let EffectRef::Emit(event) = effect { Some(event) } else { None }
}

/// Neither depth nor trace is of the version's making.
fn same_entry(one: &AppendRef<'_>, other: &AppendRef<'_>) -> bool {
    let place =
        |entry: &AppendRef<'_>| (entry.process.to_owned(), entry.channel.to_owned(), entry.in_reply_to);
    place(one) == place(other)
        && one.entry_type == other.entry_type
        && one.error == other.error
        && one.payload == other.payload
}

fn append(effect: EffectRef<'_>) -> Option<AppendRef<'_>> {
    if let EffectRef::Append(entry) = effect { Some(entry) } else { None }
}

/// The first of both, the second of both, and so on, until both have come to an end.
fn in_turn<T>(
    mut old: impl Iterator<Item = T>,
    mut new: impl Iterator<Item = T>,
    mut each: impl FnMut(Option<T>, Option<T>),
) {
    loop {
        match (old.next(), new.next()) {
            (None, None) => return,
            (one, other) => each(one, other),
        }
    }
}

fn shown(cell: &Cell<'_>) -> Option<String> {
    Some(match cell {
        Cell::Null => return None,
        Cell::Bool(value) => value.to_string(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Text(text) | Cell::Json(text) => short(text),
        Cell::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Cell::Timestamp(micros) => crate::event::Micros(*micros).to_string(),
    })
}

fn short(text: &str) -> String {
    text.chars().take(SHADOW_EXAMPLE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Differences;
    use super::*;
    use crate::checkpoints::{ChannelGrant, EffectKind, EffectRecord};
    use crate::tables::{CellsBuilder, Column, ColumnType};

    fn table(name: &str, columns: &[&str], versioned: bool) -> TableSchema {
        let column = |name: &&str| Column {
            name: (*name).into(),
            column_type: ColumnType::Int,
            nullable: true,
            filterable: false,
            sortable: false,
        };
        let columns = columns.iter().map(column).collect();
        TableSchema { name: name.into(), columns, versioned, window_rows_max: 10 }
    }

    /// Table, key, version, cells; no cells stand for a delete.
    type RowPut<'a> = (u32, &'a str, u64, &'a [i64]);

    fn effects(tables: &[TableSchema], puts: &[RowPut<'_>]) -> EffectBatch {
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for (table, key, version, values) in puts {
            let mut row = CellsBuilder::default();
            for value in *values {
                row.push(Cell::Int(*value));
            }
            let row = row.finish();
            let length = |bytes: usize| u32::try_from(bytes).expect("small");
            records.push(EffectRecord {
                kind: if values.is_empty() { EffectKind::Delete } else { EffectKind::Put },
                table: *table,
                event: 0,
                version: *version,
                at: 0,
                schema_version: 1,
                start: length(arena.len()),
                key_bytes: length(key.len()),
                aggregate_bytes: 0,
                type_bytes: 0,
                id_bytes: 0,
                body_bytes: length(row.len()),
                depth: 0,
            });
            arena.extend_from_slice(key.as_bytes());
            arena.extend_from_slice(&row);
        }
        EffectBatch::check(arena, records, tables, &[0]).expect("good effects")
    }

    fn compared(old: (&[TableSchema], &[RowPut<'_>]), new: (&[TableSchema], &[RowPut<'_>])) -> ShadowReport {
        let mut report = ShadowReport::default();
        let mapping = Arc::new(Mapping::new(old.0, new.0, &mut report));
        let mut comparison = Comparison::new(mapping, TenantId::new("a").expect("a name"));
        comparison.take(&effects(old.0, old.1), &[effects(new.0, new.1)], &mut report);
        comparison.finish(&mut report);
        report
    }

    #[test]
    fn columns_are_compared_by_name_and_additions_are_no_differences() {
        let old = [table("t", &["a", "b"], false)];
        let new = [table("u", &["x"], false), table("t", &["b", "c", "a"], false)];
        let report = compared(
            (&old, &[(0, "k", 1, &[1, 2]), (0, "l", 1, &[1, 2])]),
            (&new, &[(1, "k", 1, &[2, 9, 1]), (0, "n", 1, &[7]), (1, "l", 1, &[3, 9, 1])]),
        );
        assert_eq!((report.rows.same, report.rows.different), (1, 1));
        assert_eq!((report.rows.only_old, report.rows.only_new), (0, 0));
        let example = &report.examples[0];
        assert_eq!((example.key.as_str(), example.column.as_str()), ("l", "b"));
        assert_eq!((example.old.as_deref(), example.new.as_deref()), (Some("2"), Some("3")));
        assert_eq!(report.added_tables, ["u"]);
        assert_eq!(report.added_columns, ["t.c"]);
    }

    /// Channel and payload of entries that are appended.
    fn appends(entries: &[(&str, &str)]) -> EffectBatch {
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for (channel, payload) in entries {
            let length = |bytes: usize| u32::try_from(bytes).expect("small");
            records.push(EffectRecord {
                kind: EffectKind::Append,
                table: 0,
                event: 0,
                version: 0,
                at: 0,
                schema_version: 1,
                start: length(arena.len()),
                key_bytes: 1,
                aggregate_bytes: length(channel.len()),
                type_bytes: 0,
                id_bytes: 0,
                body_bytes: length(payload.len()),
                depth: 0,
            });
            arena.extend_from_slice(b"p");
            arena.extend_from_slice(channel.as_bytes());
            arena.extend_from_slice(payload.as_bytes());
        }
        EffectBatch::check_granted(arena, records, &[], &[0], &ChannelGrant::all()).expect("good effects")
    }

    #[test]
    fn each_appended_entry_is_compared_with_the_one_in_its_place() {
        let mut report = ShadowReport::default();
        let mapping = Arc::new(Mapping::new(&[], &[], &mut report));
        let mut comparison = Comparison::new(mapping, TenantId::new("a").expect("a name"));
        let old = appends(&[("c", "1"), ("c", "2"), ("c", "3"), ("c", "4")]);
        let new = [appends(&[("c", "1"), ("d", "2")]), appends(&[("c", "3!")])];
        comparison.take(&old, &new, &mut report);
        comparison.finish(&mut report);
        let expected = Differences { same: 1, different: 2, only_old: 1, only_new: 0 };
        assert_eq!((report.appended, report.emitted), (expected, Differences::default()));
    }

    #[test]
    fn rows_count_as_they_are_at_the_end() {
        let tables = [table("t", &["a"], false)];
        let report = compared(
            (&tables, &[(0, "k", 1, &[1]), (0, "k", 1, &[2]), (0, "gone", 1, &[])]),
            (&tables, &[(0, "k", 1, &[2]), (0, "gone", 1, &[5])]),
        );
        assert_eq!((report.rows.same, report.rows.different), (1, 1));
        assert_eq!(report.examples[0].old.as_deref(), Some("deleted"));
        let versioned = [table("t", &["a"], true)];
        let report = compared(
            (&versioned, &[(0, "k", 5, &[1]), (0, "k", 4, &[2])]),
            (&versioned, &[(0, "k", 5, &[1])]),
        );
        assert!(!report.rows.any(), "a stale write leaves the row as it is: {report:?}");
    }

    #[test]
    fn a_table_that_is_no_longer_written_counts_as_lost_rows() {
        let old = [table("t", &["a"], false), table("gone", &["a"], false)];
        let report = compared((&old, &[(1, "k", 1, &[1])]), (&old[..1], &[]));
        assert_eq!((report.rows.only_old, report.removed_tables), (1, vec!["gone".to_owned()]));
    }
}
