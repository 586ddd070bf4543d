//! Windows against a sorted list that is always right.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::tables::{Order, Value};

/// A row's key and a value to sort by, and something that changes without a move.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    key: String,
    rank: i64,
    note: u32,
}

fn by_rank(descending: bool) -> Vec<Order> {
    vec![Order { column: "rank".into(), descending }]
}

fn held(row: &Row, descending: bool) -> Held<Row> {
    let at = SortKey::new(&by_rank(descending), [&Value::Int(row.rank)], &row.key);
    Held { at, row: row.clone() }
}

/// What a client does with steps.
fn follow(array: &mut Vec<Row>, steps: &[Step<Row>]) {
    for step in steps {
        match step {
            Step::Enter { to, row } => array.insert(*to, row.row.clone()),
            Step::Leave { from, row } => {
                let gone = array.remove(*from);
                assert_eq!(gone.key, row.row.key, "a row leaves from where it stands");
            }
            Step::Move { from, to, row } => {
                let moved = array.remove(*from);
                assert_eq!(moved.key, row.row.key, "a row moves from where it stands");
                array.insert(*to, row.row.clone());
            }
            Step::Update { at, row } => {
                assert_eq!(array[*at].key, row.row.key, "a row is updated where it stands");
                array[*at] = row.row.clone();
            }
        }
    }
}

/// All rows, the window, and a client.
struct Model {
    descending: bool,
    limit: usize,
    rows: BTreeMap<String, Row>,
    anchor: Option<SortKey>,
    window: Window<Row>,
    client: Vec<Row>,
    rereads: usize,
}

/// Rows match while their note is no multiple of 5.
fn matches(row: &Row) -> bool {
    !row.note.is_multiple_of(5)
}

impl Model {
    fn new(limit: usize, spare: usize, descending: bool, anchor: Option<i64>) -> Self {
        let anchor = anchor.map(|rank| SortKey::new(&by_rank(descending), [&Value::Int(rank)], "m"));
        let window = Window::new(limit, spare, anchor.clone());
        let (rows, client) = (BTreeMap::new(), Vec::new());
        Self { descending, limit, rows, anchor, window, client, rereads: 0 }
    }

    /// The store's answer: rows that match, in order, behind the anchor.
    fn read(&self, count: usize) -> Vec<Held<Row>> {
        let matching = self.rows.values().filter(|row| matches(row));
        let mut rows: Vec<_> = matching.map(|row| held(row, self.descending)).collect();
        rows.retain(|row| self.anchor.as_ref().is_none_or(|anchor| row.at > *anchor));
        rows.sort_by(|a, b| a.at.cmp(&b.at));
        rows.truncate(count);
        rows
    }

    fn put(&mut self, row: Option<Row>, key: &str, steps: &mut Vec<Step<Row>>) {
        let old = match &row {
            Some(row) => self.rows.insert(key.into(), row.clone()),
            None => self.rows.remove(key),
        };
        let old = old.filter(matches).map(|row| held(&row, self.descending).at);
        let new = row.filter(matches).map(|row| held(&row, self.descending));
        let before: BTreeSet<_> = self.window.held().map(|held| held.row.key.clone()).collect();
        let kept = self.window.apply(old.as_ref(), new, steps);
        let after: BTreeSet<_> = self.window.held().map(|held| held.row.key.clone()).collect();
        assert_eq!(kept.held, after.contains(key), "it says whether the row is held");
        let gone = kept.pushed_out.map(|at| String::from_utf8_lossy(at.key()).into_owned());
        let expected: Vec<_> = before.difference(&after).filter(|gone| *gone != key).cloned().collect();
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), expected, "it says which row was pushed out");
    }

    /// A commit: some changes at once. When the window cannot tell, the store is read, as it may be at any time.
    fn commit(&mut self, changes: &[(u8, Option<(i64, u32)>)], read_early: bool) {
        let mut steps = Vec::new();
        for (key, change) in changes {
            let key = format!("{}", (b'a' + key % 26) as char);
            let row = change.map(|(rank, note)| Row { key: key.clone(), rank, note });
            self.put(row, &key, &mut steps);
        }
        if self.window.is_starved() || (read_early && self.window.is_low()) {
            self.rereads += 1;
            // One row more tells whether there are more.
            let rows = self.read(self.window.held_max() + 1);
            let complete = rows.len() <= self.window.held_max();
            steps.clear();
            let seen: Vec<_> = self.client.iter().map(|row| held(row, self.descending)).collect();
            self.window.replace(rows, complete);
            difference(&seen, self.window.visible(), &mut steps);
        }
        follow(&mut self.client, &steps);
        let expected: Vec<_> = self.read(self.limit).into_iter().map(|held| held.row).collect();
        assert_eq!(self.client, expected, "after {changes:?}: {steps:?}");
        let known = self.read(self.window.held().len());
        assert_eq!(
            self.window.held().cloned().collect::<Vec<_>>(),
            known,
            "what is held is a prefix of the query"
        );
    }
}

type Change = (u8, Option<(i64, u32)>);

fn commits() -> impl Strategy<Value = Vec<(Vec<Change>, bool)>> {
    let change = (any::<u8>(), proptest::option::weighted(0.8, (-4..5_i64, any::<u32>())));
    proptest::collection::vec((proptest::collection::vec(change, 1..4), any::<bool>()), 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_clients_array_is_the_query_after_every_commit(
        limit in prop_oneof![1..4_usize, 4..=50_usize],
        spare in 0..20_usize,
        descending in any::<bool>(),
        anchor in proptest::option::of(-3..3_i64),
        commits in commits(),
    ) {
        let mut model = Model::new(limit, spare, descending, anchor);
        for (changes, read_early) in &commits {
            model.commit(changes, *read_early);
        }
    }
}

/// A window with these ranks as rows, keyed a, b, c, and so on, that are all there are where it is complete.
fn window(limit: usize, spare: usize, ranks: &[i64]) -> Model {
    let mut model = Model::new(limit, spare, false, None);
    for (index, rank) in (0_u8..).zip(ranks) {
        let key = format!("{}", (b'a' + index) as char);
        model.rows.insert(key.clone(), Row { key, rank: *rank, note: 1 });
    }
    model.commit(&[], true);
    model
}

/// What a change makes a client do, in short.
fn told(model: &mut Model, key: &str, row: Option<i64>) -> Vec<String> {
    let mut steps = Vec::new();
    let note = model.rows.get(key).map_or(1, |row| row.note + 5);
    let row = row.map(|rank| Row { key: key.into(), rank, note });
    model.put(row, key, &mut steps);
    follow(&mut model.client, &steps);
    let short = |step: &Step<Row>| match step {
        Step::Enter { to, row } => format!("enter {} {to}", row.row.key),
        Step::Leave { from, row } => format!("leave {} {from}", row.row.key),
        Step::Move { from, to, row } => format!("move {} {from} {to}", row.row.key),
        Step::Update { at, row } => format!("update {} {at}", row.row.key),
    };
    steps.iter().map(short).collect()
}

#[test]
fn m1_a_row_enters_where_it_belongs() {
    let mut model = window(5, 2, &[10, 30]);
    assert_eq!(told(&mut model, "n", Some(20)), ["enter n 1"]);
}

#[test]
fn m2_a_change_that_moves_nothing_is_one_update() {
    let mut model = window(3, 2, &[10, 30, 50]);
    assert_eq!(told(&mut model, "a", Some(10)), ["update a 0"]);
}

#[test]
fn m3_a_row_that_no_longer_matches_leaves_and_the_next_one_enters() {
    let mut model = window(2, 2, &[10, 20, 30, 40, 50]);
    let mut steps = Vec::new();
    // A multiple of 5 does not match.
    model.put(Some(Row { key: "a".into(), rank: 10, note: 5 }), "a", &mut steps);
    follow(&mut model.client, &steps);
    assert!(
        matches!(&steps[..], [Step::Leave { from: 0, row: gone }, Step::Enter { to: 1, row: next }]
            if gone.row.key == "a" && next.row.key == "c"),
        "{steps:?}"
    );
}

#[test]
fn m4_a_row_that_stays_and_is_sorted_elsewhere_moves() {
    let mut model = window(3, 2, &[10, 30, 50]);
    assert_eq!(told(&mut model, "a", Some(40)), ["move a 0 1"]);
}

#[test]
fn m5_a_row_that_enters_a_full_window_pushes_the_last_one_out() {
    let mut model = window(2, 2, &[10, 30]);
    assert_eq!(told(&mut model, "n", Some(20)), ["enter n 1", "leave b 2"]);
    let seen: Vec<_> = model.client.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(seen, ["a", "n"]);
}

#[test]
fn n1_a_row_that_comes_out_of_the_spare_rows_pushes_another_out() {
    let mut model = window(2, 2, &[10, 20, 30, 40, 50]);
    assert_eq!(told(&mut model, "d", Some(15)), ["enter d 1", "leave b 2"]);
    assert_eq!(told(&mut model, "d", Some(35)), ["leave d 1", "enter b 1"]);
}

#[test]
fn n2_nothing_is_put_behind_the_last_known_row_of_an_incomplete_window() {
    let mut model = window(2, 2, &[10, 20, 30, 40, 50]);
    assert_eq!(told(&mut model, "a", None), ["leave a 0", "enter c 1"]);
    assert_eq!(model.window.held().len(), 3);
    // 50 is unknown and stands before it.
    assert!(told(&mut model, "z", Some(60)).is_empty());
    assert_eq!(model.window.held().len(), 3);
}

#[test]
fn n3_a_row_that_moves_behind_the_last_known_one_leaves() {
    let mut model = window(2, 1, &[10, 20, 30, 40, 50]);
    assert_eq!(told(&mut model, "a", Some(45)), ["leave a 0", "enter c 1"]);
    assert_eq!(told(&mut model, "b", Some(60)), ["leave b 0"]);
    assert!(model.window.is_starved());
}

#[test]
fn n7_rows_before_the_anchor_are_no_part_of_the_window() {
    let mut model = Model::new(2, 2, false, Some(0));
    model.commit(&[], true);
    assert!(told(&mut model, "a", Some(-1)).is_empty());
    assert!(told(&mut model, "a", Some(0)).is_empty(), "a comes before the anchor's key");
    assert_eq!(told(&mut model, "z", Some(0)), ["enter z 0"]);
    assert_eq!(told(&mut model, "z", Some(-5)), ["leave z 0"]);
}

#[test]
fn a_window_that_was_read_again_moves_by_difference() {
    let mut model = window(4, 2, &[10, 20, 30, 40]);
    let row = |key: &str, rank| held(&Row { key: key.into(), rank, note: 9 }, false);
    let mut steps = Vec::new();
    // b is gone, d moved to the front, a has changed, n is new; c is as it was.
    let c = model.window.held().nth(2).unwrap().clone();
    let before = model.window.replace(vec![row("d", 5), row("a", 10), row("n", 25), c], true);
    difference(model.window.seen(&before), model.window.visible(), &mut steps);
    follow(&mut model.client, &steps);
    assert_eq!(steps.len(), 4, "{steps:?}");
    let keys: Vec<_> = model.client.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["d", "a", "n", "c"]);
}
