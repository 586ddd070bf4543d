//! The bytes a row crosses in: one cell per column, one byte of tag and the
//! value, numbers little-endian. `wit/v0.1/types.wit` has the list of tags.

use super::query::Value;
use super::schema::{ColumnType, TableSchema};
use crate::event::Micros;
use crate::limits::ROW_BYTES_MAX;

/// One cell, borrowed from a row's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Json(&'a str),
    /// Microseconds since 1970.
    Timestamp(i64),
}

impl From<Cell<'_>> for Value {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Bool(value) => Self::Bool(value),
            Cell::Int(value) => Self::Int(value),
            Cell::Float(value) => Self::Float(value),
            Cell::Text(text) => Self::Text(text.to_owned()),
            Cell::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            Cell::Json(text) => Self::Json(text.to_owned()),
            Cell::Timestamp(at) => Self::Timestamp(Micros(at)),
        }
    }
}

/// Reads a row's bytes cell by cell.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CellError {
    #[error("the row ends in the middle of a cell")]
    Truncated,
    #[error("{tag} is not a cell tag")]
    Tag { tag: u8 },
    #[error("a text cell is not UTF-8")]
    Utf8,
    #[error("a float cell is not finite")]
    NotFinite,
    #[error("a JSON cell is not JSON")]
    Json,
    #[error("the row has {cells} cells, table `{table}` has {columns} columns")]
    Count { table: String, cells: usize, columns: usize },
    #[error("column `{column}` of table `{table}` is {expected:?} and cannot hold this cell")]
    Type { table: String, column: String, expected: ColumnType },
    #[error("column `{column}` of table `{table}` cannot be null")]
    Null { table: String, column: String },
    #[error("the row has {bytes} bytes; row_bytes_max is {ROW_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

impl<'a> Cells<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], CellError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(CellError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_8(&mut self) -> Result<[u8; 8], CellError> {
        Ok(self.take(8)?.try_into().expect("8 bytes were taken"))
    }

    fn take_list(&mut self) -> Result<&'a [u8], CellError> {
        let length: [u8; 4] = self.take(4)?.try_into().expect("4 bytes were taken");
        self.take(u32::from_le_bytes(length) as usize)
    }

    fn take_text(&mut self) -> Result<&'a str, CellError> {
        std::str::from_utf8(self.take_list()?).map_err(|_| CellError::Utf8)
    }

    fn cell(&mut self) -> Result<Cell<'a>, CellError> {
        Ok(match self.take(1)?[0] {
            0 => Cell::Null,
            1 => Cell::Bool(false),
            2 => Cell::Bool(true),
            3 => Cell::Int(i64::from_le_bytes(self.take_8()?)),
            4 => Cell::Float(f64::from_le_bytes(self.take_8()?)),
            5 => Cell::Text(self.take_text()?),
            6 => Cell::Bytes(self.take_list()?),
            7 => Cell::Json(self.take_text()?),
            8 => Cell::Timestamp(i64::from_le_bytes(self.take_8()?)),
            tag => return Err(CellError::Tag { tag }),
        })
    }

    /// Checks a guest's row against its table. What passes can be written as it is.
    pub fn validate(bytes: &[u8], table: &TableSchema) -> Result<(), CellError> {
        if bytes.len() > ROW_BYTES_MAX {
            return Err(CellError::TooLarge { bytes: bytes.len() });
        }
        let mut count = 0;
        let mut cells = Cells::new(bytes);
        for column in &table.columns {
            if cells.rest.is_empty() {
                break;
            }
            let cell = cells.cell()?;
            count += 1;
            let fits = match (cell, column.column_type) {
                (Cell::Null, _) => {
                    if !column.nullable {
                        return Err(CellError::Null {
                            table: table.name.clone(),
                            column: column.name.clone(),
                        });
                    }
                    true
                }
                (Cell::Float(value), ColumnType::Float) if !value.is_finite() => {
                    return Err(CellError::NotFinite);
                }
                (Cell::Json(text), ColumnType::Json) => {
                    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| CellError::Json)?;
                    true
                }
                (Cell::Bool(_), ColumnType::Bool)
                | (Cell::Int(_), ColumnType::Int)
                | (Cell::Float(_), ColumnType::Float)
                | (Cell::Text(_), ColumnType::Text)
                | (Cell::Bytes(_), ColumnType::Bytes)
                | (Cell::Timestamp(_), ColumnType::Timestamp) => true,
                _ => false,
            };
            if !fits {
                return Err(CellError::Type {
                    table: table.name.clone(),
                    column: column.name.clone(),
                    expected: column.column_type,
                });
            }
        }
        if count != table.columns.len() || !cells.rest.is_empty() {
            let cells = count + cells.count();
            return Err(CellError::Count { table: table.name.clone(), cells, columns: table.columns.len() });
        }
        Ok(())
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Result<Cell<'a>, CellError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let cell = self.cell();
        if cell.is_err() {
            self.rest = &[];
        }
        Some(cell)
    }
}

/// Writes a row's bytes.
#[derive(Clone, Debug, Default)]
pub struct CellsBuilder(Vec<u8>);

impl CellsBuilder {
    pub fn push(&mut self, cell: Cell<'_>) -> &mut Self {
        let out = &mut self.0;
        match cell {
            Cell::Null => out.push(0),
            Cell::Bool(value) => out.push(1 + u8::from(value)),
            Cell::Int(value) => {
                out.push(3);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Cell::Float(value) => {
                out.push(4);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Cell::Text(text) => push_list(out, 5, text.as_bytes()),
            Cell::Bytes(bytes) => push_list(out, 6, bytes),
            Cell::Json(text) => push_list(out, 7, text.as_bytes()),
            Cell::Timestamp(value) => {
                out.push(8);
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        self
    }

    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

fn push_list(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("a cell is far below 4 GiB").to_le_bytes());
    out.extend_from_slice(bytes);
}
