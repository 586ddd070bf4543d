//! Which views a row is shown to: never too few.

use super::*;
use crate::event::Revision;
use crate::live::shape::Columns;
use crate::live::{LiveQuery, Mode};
use crate::tables::{Column, ColumnType, Condition, Filter, Operator, Query, TableSchema, Value};

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column {
        name: name.into(),
        column_type,
        nullable: true,
        filterable: true,
        sortable: true,
    };
    TableSchema {
        name: "assets".into(),
        columns: vec![
            column("kind", ColumnType::Text),
            column("site", ColumnType::Text),
            column("size", ColumnType::Int),
            column("ratio", ColumnType::Float),
        ],
        versioned: false,
        window_rows_max: 100,
    }
}

fn plan(filter: Filter) -> Plan {
    let query = Query { filter, ..Query::all("assets") };
    let query = LiveQuery { query, mode: Mode::Maintained, columns: None };
    Plan::new(query, Columns::new(schema())).expect("a good query")
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn is(column: &str, operator: Operator, values: &[Value]) -> Filter {
    Filter::Is(Condition { column: column.into(), operator, values: values.to_vec() })
}

fn eq(column: &str, value: Value) -> Filter {
    is(column, Operator::Eq, &[value])
}

fn row(kind: &str, site: &str, size: i64, ratio: f64) -> Row {
    let cells = vec![text(kind), text(site), Value::Int(size), Value::Float(ratio)];
    Row { key: "k".into(), version: 0, revision: Revision(1), cells }
}

fn index(plans: &[Plan]) -> Index {
    let mut index = Index::default();
    for (id, plan) in (0..).zip(plans) {
        index.add(id, plan);
    }
    index
}

/// Views that a row is looked at for, and of them those that it belongs to.
fn views(index: &Index, plans: &[Plan], row: &Row) -> (Vec<ViewId>, Vec<ViewId>) {
    let mut found = Vec::new();
    index.candidates(row, &mut found);
    found.sort_unstable();
    let count = found.len();
    found.dedup();
    assert_eq!(found.len(), count, "each view is named once");
    let holds = (0..).zip(plans).filter(|(_, plan)| plan.holds(row)).map(|(id, _)| id).collect();
    (found, holds)
}

#[test]
fn i1_a_row_is_led_to_views_by_one_value_by_several_by_a_list_and_by_none() {
    let plans = [
        plan(Filter::All(vec![eq("kind", text("pump")), eq("site", text("north"))])),
        plan(eq("kind", text("pump"))),
        plan(is("kind", Operator::In, &[text("pump"), text("valve")])),
        plan(is("size", Operator::Gt, &[Value::Int(5)])),
    ];
    let index = index(&plans);
    for (row, belongs, never) in [
        (row("pump", "north", 9, 0.0), vec![0, 1, 2, 3], vec![]),
        (row("pump", "south", 9, 0.0), vec![1, 2, 3], vec![]),
        (row("valve", "north", 1, 0.0), vec![2], vec![1]),
        (row("motor", "east", 9, 0.0), vec![3], vec![0, 1, 2]),
    ] {
        let (found, holds) = views(&index, &plans, &row);
        assert_eq!(holds, belongs, "{row:?}");
        assert!(holds.iter().all(|view| found.contains(view)), "none is left out: {found:?}, {row:?}");
        assert!(!found.iter().any(|view| never.contains(view)), "a value leads past it: {found:?}, {row:?}");
    }
}

#[test]
fn i2_numbers_meet_whatever_their_sign_of_zero_and_stay_apart_in_every_digit() {
    let large = 9_007_199_254_740_993;
    let plans = [
        plan(eq("ratio", Value::Float(0.0))),
        plan(eq("ratio", Value::Float(3.0))),
        plan(eq("size", Value::Int(large))),
    ];
    let index = index(&plans);
    for (row, belongs) in [
        (row("", "", 0, -0.0), vec![0]),
        (row("", "", 0, 3.0), vec![1]),
        (row("", "", large, 1.0), vec![2]),
        // The next one, which a float cannot tell from it.
        (row("", "", large - 1, 1.0), vec![]),
    ] {
        let (found, holds) = views(&index, &plans, &row);
        assert_eq!((&found, &holds), (&belongs, &belongs), "{row:?}");
    }
}

#[test]
fn i3_a_group_of_alternatives_leads_nowhere_and_a_value_beside_it_still_does() {
    let either = || Filter::Any(vec![eq("site", text("north")), is("size", Operator::Gt, &[Value::Int(5)])]);
    let plans = [
        plan(either()),
        plan(Filter::All(vec![eq("kind", text("pump")), either()])),
        plan(Filter::Not(Box::new(eq("kind", text("pump"))))),
    ];
    let index = index(&plans);
    for (row, found_is, belongs) in [
        (row("pump", "north", 1, 0.0), vec![0, 1, 2], vec![0, 1]),
        (row("pump", "south", 1, 0.0), vec![0, 1, 2], vec![]),
        (row("valve", "north", 1, 0.0), vec![0, 2], vec![0, 2]),
    ] {
        let (found, holds) = views(&index, &plans, &row);
        assert_eq!((found, holds), (found_is, belongs), "{row:?}");
    }
}

#[test]
fn i4_a_view_that_is_taken_out_is_found_no_more() {
    let plans = [
        plan(eq("kind", text("pump"))),
        plan(is("kind", Operator::In, &[text("pump"), text("valve")])),
        plan(Filter::default()),
    ];
    let mut index = index(&plans);
    let pump = row("pump", "north", 1, 0.0);
    assert_eq!(views(&index, &plans, &pump).0, [0, 1, 2]);
    for (gone, left) in [(1, vec![0, 2]), (2, vec![0]), (0, vec![])] {
        index.remove(gone);
        // A second time changes nothing.
        index.remove(gone);
        assert_eq!(views(&index, &plans, &pump).0, left);
    }
}
