//! What becomes of a row.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::write;
use crate::testing::read_row;
use crate::{Column, Failure, FailureKind, Manifest, Table, Timestamp};

static TABLE: Table = Table::new(
    "things",
    &[
        Column::text("name"),
        Column::int("count").nullable(),
        Column::float("share").nullable(),
        Column::bool("good").nullable(),
        Column::bytes("raw").nullable(),
        Column::json("any").nullable(),
        Column::timestamp("at").nullable(),
    ],
);

/// Writes a row and reads it back.
fn cells<R: Serialize>(row: &R) -> Result<Value, Failure> {
    let mut out = b"before".to_vec();
    write(&mut out, &TABLE, row).map_err(|e| e.into_failure(&TABLE, "k"))?;
    assert_eq!(&out[..6], b"before");
    let manifest = Manifest::new("test", "1.0.0").tables(&[&TABLE]).to_wire();
    Ok(Value::Object(read_row(&manifest, 0, 0, &out[6..]).cells))
}

/// A row with a value in one column beside the name.
fn with<T: Serialize>(column: &'static str, value: T) -> Result<Value, Failure> {
    struct One<T>(&'static str, T);

    impl<T: Serialize> Serialize for One<T> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeMap;
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry("name", "n")?;
            map.serialize_entry(self.0, &self.1)?;
            map.end()
        }
    }

    cells(&One(column, value)).map(|row| row[column].clone())
}

fn kind(result: Result<Value, Failure>) -> FailureKind {
    result.unwrap_err().kind
}

#[derive(Serialize)]
struct InOrder<'a> {
    name: &'a str,
    count: i64,
    share: f64,
    good: bool,
    raw: &'a [u8],
    any: Vec<Option<u8>>,
    at: Timestamp,
}

#[derive(Serialize)]
struct Mixed<'a> {
    at: Timestamp,
    name: &'a str,
    any: BTreeMap<&'a str, u64>,
    good: Option<bool>,
}

#[test]
fn fields_in_the_order_of_the_columns_are_written_as_they_come() {
    let row = InOrder {
        name: "ä",
        count: i64::MIN,
        share: 0.1 + 0.2,
        good: true,
        raw: b"\0\xff",
        any: vec![None, Some(1)],
        at: Timestamp(1),
    };
    assert_eq!(
        cells(&row).unwrap(),
        json!({"name": "ä", "count": i64::MIN, "share": 0.1 + 0.2, "good": true, "raw": [0, 255],
               "any": [null, 1], "at": "1970-01-01T00:00:00.000001Z"})
    );
}

#[test]
fn fields_in_another_order_find_their_columns_and_missing_ones_are_null() {
    let row = Mixed { at: Timestamp(0), name: "n", any: BTreeMap::from([("x", u64::MAX)]), good: None };
    assert_eq!(
        cells(&row).unwrap(),
        json!({"name": "n", "count": null, "share": null, "good": null, "raw": null,
               "any": {"x": u64::MAX}, "at": "1970-01-01T00:00:00Z"})
    );
}

#[test]
fn any_order_of_a_map_gives_the_same_row() {
    // serde_json keeps a map's keys sorted: any, at, count, good, name.
    let row =
        json!({"name": "n", "count": 7, "good": false, "at": "2013-01-01T00:00:00Z", "any": {"a": [1]}});
    let mut expected = row.clone();
    expected["share"] = Value::Null;
    expected["raw"] = Value::Null;
    assert_eq!(cells(&row).unwrap(), expected);
}

#[test]
fn all_64_bits_of_a_whole_number_are_kept_and_a_65th_is_rejected() {
    assert_eq!(with("count", u64::MAX >> 1).unwrap(), json!(i64::MAX));
    assert_eq!(with("count", i128::from(i64::MIN)).unwrap(), json!(i64::MIN));
    assert_eq!(kind(with("count", u64::MAX)), FailureKind::Reject);
    assert_eq!(kind(with("count", i128::MIN)), FailureKind::Reject);
}

#[test]
fn a_float_takes_whole_numbers_that_it_holds_exactly() {
    assert_eq!(with("share", 1_u64 << 53).unwrap(), json!(9_007_199_254_740_992.0));
    assert_eq!(kind(with("share", (1_i64 << 53) + 1)), FailureKind::Reject);
    assert_eq!(kind(with("share", f64::NAN)), FailureKind::Reject);
    assert_eq!(kind(with("share", f64::INFINITY)), FailureKind::Reject);
}

#[test]
fn a_timestamp_takes_text_and_microseconds() {
    assert_eq!(with("at", "2013-01-01T01:00:00+01:00").unwrap(), json!("2013-01-01T00:00:00Z"));
    assert_eq!(with("at", 1_000_000).unwrap(), json!("1970-01-01T00:00:01Z"));
    assert_eq!(kind(with("at", "yesterday")), FailureKind::Reject);
}

#[test]
fn bytes_take_sequences_of_bytes_and_nothing_else() {
    assert_eq!(with("raw", vec![1_u8, 2]).unwrap(), json!([1, 2]));
    assert_eq!(with("raw", Vec::<u8>::new()).unwrap(), json!([]));
    assert_eq!(kind(with("raw", vec![256])), FailureKind::Fatal);
    assert_eq!(kind(with("raw", "text")), FailureKind::Fatal);
}

#[test]
fn a_json_null_is_a_null_where_the_column_is_nullable() {
    assert_eq!(with("any", Value::Null).unwrap(), Value::Null);
    assert_eq!(with("any", None::<u8>).unwrap(), Value::Null);
    assert_eq!(with("any", "null").unwrap(), json!("null"));
}

#[test]
fn a_row_that_does_not_fit_its_table_is_fatal_and_says_why() {
    let unknown = with("colour", 1).unwrap_err();
    assert_eq!(unknown.kind, FailureKind::Fatal);
    assert!(unknown.message.contains("no column `colour`; it has name, count"), "{unknown}");
    let wrong = with("count", "seven").unwrap_err();
    assert_eq!(wrong.message, "table `things`: column `count` is int and cannot hold text");
    let missing = cells(&json!({"count": 1})).unwrap_err();
    assert!(missing.message.contains("no `name`") && missing.kind == FailureKind::Fatal, "{missing}");
    assert_eq!(kind(cells(&7)), FailureKind::Fatal);
    assert_eq!(kind(with("good", BTreeMap::from([("a", 1)]))), FailureKind::Fatal);
}

#[test]
fn a_null_where_none_may_be_is_the_fault_of_the_event() {
    let null = cells(&json!({"name": null})).unwrap_err();
    assert_eq!(null.kind, FailureKind::Reject);
    assert_eq!(null.message, "row `k` of table `things`: `name` is null, and the column is not nullable");
}

#[test]
fn a_unit_variant_is_its_name() {
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Status {
        Departed,
    }
    #[derive(Serialize)]
    struct Row {
        name: Status,
    }
    assert_eq!(cells(&Row { name: Status::Departed }).unwrap()["name"], "departed");
}
