//! Rows as a test sees them.

use std::ops::Index;

use serde_json::{Map, Value};

use crate::wire::Manifest;
use crate::{ColumnType, Timestamp};

/// A row: its version and its cells by column. A timestamp is RFC 3339 text, bytes are a list of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// 0 in a table without versions, if the plugin gave none.
    pub version: u64,
    pub cells: Map<String, Value>,
}

impl Index<&str> for Row {
    type Output = Value;

    /// Panics where there is no such column.
    fn index(&self, column: &str) -> &Value {
        self.cells.get(column).unwrap_or_else(|| panic!("there is no column `{column}`"))
    }
}

/// Reads the cells of a row. Panics, with a sentence, where they do not fit the table.
pub(crate) fn read(manifest: &Manifest, table: u32, version: u64, mut cells: &[u8]) -> Row {
    let table = &manifest.tables[table as usize];
    let mut row = Map::new();
    for column in &table.columns {
        let (tag, value) = cell(&mut cells);
        let fits = match tag {
            0 => column.nullable,
            1 | 2 => column.type_ == ColumnType::Bool,
            3 => column.type_ == ColumnType::Int,
            4 => column.type_ == ColumnType::Float,
            5 => column.type_ == ColumnType::Text,
            6 => column.type_ == ColumnType::Bytes,
            7 => column.type_ == ColumnType::Json,
            _ => column.type_ == ColumnType::Timestamp,
        };
        assert!(fits, "column `{}` of table `{}` cannot hold {value}", column.name, table.name);
        row.insert(column.name.clone(), value);
    }
    assert!(cells.is_empty(), "a row of table `{}` has more cells than columns", table.name);
    Row { version, cells: row }
}

fn cell(cells: &mut &[u8]) -> (u8, Value) {
    let tag = take(cells, 1)[0];
    let value = match tag {
        0 => Value::Null,
        1 | 2 => Value::from(tag == 2),
        3 => Value::from(i64::from_le_bytes(take_8(cells))),
        4 => Value::from(f64::from_le_bytes(take_8(cells))),
        5 => Value::from(text(take_list(cells))),
        6 => Value::from(take_list(cells)),
        7 => serde_json::from_slice(take_list(cells)).expect("a JSON cell holds JSON"),
        8 => Value::from(Timestamp(i64::from_le_bytes(take_8(cells))).to_string()),
        _ => panic!("{tag} is not a cell's tag"),
    };
    (tag, value)
}

fn take<'a>(cells: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (taken, rest) = cells.split_at_checked(bytes).expect("a row does not end inside a cell");
    *cells = rest;
    taken
}

fn take_8(cells: &mut &[u8]) -> [u8; 8] {
    take(cells, 8).try_into().expect("8 bytes were taken")
}

fn take_list<'a>(cells: &mut &'a [u8]) -> &'a [u8] {
    let length = take(cells, 4).try_into().expect("4 bytes were taken");
    take(cells, u32::from_le_bytes(length) as usize)
}

pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the SDK writes UTF-8")
}
