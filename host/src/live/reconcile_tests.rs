//! When a view is said to have drifted from the store, and when not.

use std::sync::Arc;

use super::*;
use crate::live::shape::Columns;
use crate::live::sort_key::SortKey;
use crate::tables::{Column, ColumnType, Row, RowChange, TableSchema, Value};

fn row(key: &str, revision: u64, n: i64) -> Row {
    Row { key: key.into(), version: 0, revision: Revision(revision), cells: vec![Value::Int(n)] }
}

fn rows(keys: &str) -> Vec<Row> {
    keys.chars().map(|key| row(&key.to_string(), 1, 0)).collect()
}

/// As a view of all columns, ordered by key, holds them.
fn held(rows: &[Row]) -> Vec<Held<RowText>> {
    let column = Column {
        name: "n".into(),
        column_type: ColumnType::Int,
        nullable: false,
        filterable: false,
        sortable: false,
    };
    let columns = Columns::new(TableSchema {
        name: "t".into(),
        columns: vec![column],
        versioned: false,
        window_rows_max: 10,
    });
    let held = |row: &Row| Held {
        at: SortKey::new(&[], [], &row.key),
        row: RowText::new(&columns, row, 0..1, &mut Vec::new()),
    };
    rows.iter().map(held).collect()
}

/// What a check comes to: of a view that shows these rows at most so many of them and was told up to 10, and of
/// the store's rows as of a revision, with rows that were committed at 10.
fn verdict(shown: &str, limit: usize, read: &str, revision: u64, changed: &str) -> Verdict {
    let shown = held(&rows(shown));
    let standing = Standing { shown: shown.iter().collect(), limit, told: Revision(10), read: Revision(1) };
    let page = ReadPage { rows: rows(read), revision: Revision(revision), up_to: None };
    let changes = rows(changed).into_iter().map(|row| RowChange::Put(Arc::new(row))).collect();
    let commit = CommitChanges { revision: Revision(10), rows: changes };
    let read = held(&page.rows);
    standing.verdict(&[page], &read, std::iter::once(&commit), None)
}

#[test]
fn a_view_that_shows_what_the_store_has_is_right() {
    for (shown, read) in [("", ""), ("abc", "abc"), ("abc", "abcdef")] {
        assert_eq!(verdict(shown, 3, read, 10, ""), Verdict::Same, "{shown} {read}");
    }
}

#[test]
fn another_row_another_order_a_missing_row_and_one_too_many_are_drift() {
    for (shown, read) in [("abc", "abd"), ("abc", "acb"), ("ab", "abc"), ("abc", "ab"), ("", "a"), ("a", "")]
    {
        assert_eq!(verdict(shown, 3, read, 10, ""), Verdict::Drifted, "{shown} {read}");
    }
    let (ours, theirs) = (held(&[row("a", 1, 7)]), row("a", 1, 8));
    let standing = Standing { shown: ours.iter().collect(), limit: 3, told: Revision(10), read: Revision(1) };
    let page = ReadPage { rows: vec![theirs], revision: Revision(10), up_to: None };
    let read = held(&page.rows);
    let verdict = standing.verdict(&[page], &read, std::iter::empty(), None);
    assert_eq!(verdict, Verdict::Drifted, "other cells");
}

#[test]
fn rows_that_were_committed_after_the_read_say_nothing() {
    // c is gone since, x came, and d is seen for it.
    assert_eq!(verdict("xab", 3, "abcd", 9, "cx"), Verdict::Same);
    assert_eq!(verdict("abd", 3, "abcd", 9, "c"), Verdict::Same);
    assert_eq!(verdict("ab", 3, "abc", 9, "c"), Verdict::Same);
    // And those that were not say what they say.
    assert_eq!(verdict("xad", 3, "abcd", 9, "x"), Verdict::Drifted);
    // The read has seen them.
    assert_eq!(verdict("xab", 3, "abcd", 10, "cx"), Verdict::Drifted);
}

#[test]
fn a_read_that_is_ahead_of_the_view_says_something_when_it_says_it_twice() {
    assert_eq!(verdict("abc", 3, "abx", 11, ""), Verdict::Unsure(Revision(10)));
    let (shown, read) = (held(&rows("abc")), rows("abx"));
    let standing = |told| Standing { shown: shown.iter().collect(), limit: 3, told, read: Revision(1) };
    let page = || ReadPage { rows: read.clone(), revision: Revision(12), up_to: None };
    let again =
        |told| standing(told).verdict(&[page()], &held(&read), std::iter::empty(), Some(Revision(10)));
    assert_eq!(again(Revision(10)), Verdict::Drifted, "nothing was told meanwhile");
    assert_eq!(again(Revision(11)), Verdict::Unsure(Revision(11)), "it was told something");
    // The view was read again after this read began.
    let ahead = Standing { read: Revision(13), ..standing(Revision(13)) };
    assert_eq!(ahead.verdict(&[page()], &held(&read), std::iter::empty(), None), Verdict::Same);
}
