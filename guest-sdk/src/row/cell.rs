//! One cell: a byte of tag and its value. `wit/v0.1/types.wit` has the list of tags.

use serde::ser::{Impossible, Serialize, SerializeSeq, SerializeTuple, Serializer};

use super::RowError;
use crate::{Column, ColumnType, Timestamp};

pub(super) const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const TEXT: u8 = 5;
const BYTES: u8 = 6;
const JSON: u8 = 7;
const TIMESTAMP: u8 = 8;

/// The largest whole number up to which every one is a float, too.
const FLOAT_INT_MAX: u64 = 1 << 53;

/// Appends a column's cell.
pub(super) fn write<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    column: &Column,
    value: &T,
) -> Result<(), RowError> {
    match column.column_type {
        ColumnType::Json => write_json(out, column, value),
        _ => value.serialize(CellSerializer { out, column }),
    }
}

fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, column: &Column, value: &T) -> Result<(), RowError> {
    let start = begin_list(out, JSON);
    serde_json::to_writer(&mut *out, value)
        .map_err(|e| RowError::Value(format!("`{}` cannot be written: {e}", column.name)))?;
    if column.nullable && &out[start..] == b"null" {
        out.truncate(start - 5);
        out.push(NULL);
        return Ok(());
    }
    end_list(out, start);
    Ok(())
}

/// The bytes of the first cell of `cells`, which this module wrote.
pub(super) fn length(cells: &[u8]) -> usize {
    match cells.first() {
        Some(&(INT | FLOAT | TIMESTAMP)) => 9,
        Some(&(TEXT | BYTES | JSON)) => {
            let length = cells[1..5].try_into().expect("4 bytes are 4 bytes");
            5 + u32::from_le_bytes(length) as usize
        }
        _ => 1,
    }
}

/// Writes a tag and room for a length; answers where the bytes begin.
fn begin_list(out: &mut Vec<u8>, tag: u8) -> usize {
    out.extend_from_slice(&[tag, 0, 0, 0, 0]);
    out.len()
}

fn end_list(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start).expect("a cell is far below 4 GiB");
    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
}

struct CellSerializer<'a> {
    out: &'a mut Vec<u8>,
    column: &'a Column,
}

impl<'a> CellSerializer<'a> {
    #[cold]
    fn unfit<T>(&self, what: &str) -> Result<T, RowError> {
        let name = self.column.name;
        let held = match self.column.column_type {
            ColumnType::Bool => "bool",
            ColumnType::Int => "int",
            ColumnType::Float => "float",
            ColumnType::Text => "text",
            ColumnType::Bytes => "bytes",
            ColumnType::Json => "json",
            ColumnType::Timestamp => "timestamp",
        };
        Err(RowError::Shape(format!("column `{name}` is {held} and cannot hold {what}")))
    }

    #[cold]
    fn out_of_range<T>(&self, value: impl std::fmt::Display, why: &str) -> Result<T, RowError> {
        Err(RowError::Value(format!("`{}` is {value}, {why}", self.column.name)))
    }

    fn eight(self, tag: u8, bytes: [u8; 8]) -> Result<(), RowError> {
        let mut cell = [tag; 9];
        cell[1..].copy_from_slice(&bytes);
        self.out.extend_from_slice(&cell);
        Ok(())
    }

    fn list(self, tag: u8, bytes: &[u8]) -> Result<(), RowError> {
        let start = begin_list(self.out, tag);
        self.out.extend_from_slice(bytes);
        end_list(self.out, start);
        Ok(())
    }

    fn null(self) -> Result<(), RowError> {
        if !self.column.nullable {
            return self.out_of_range("null", "and the column is not nullable");
        }
        self.out.push(NULL);
        Ok(())
    }

    fn sequence(self) -> Result<ByteSequence<'a>, RowError> {
        match self.column.column_type {
            ColumnType::Bytes => {
                let start = begin_list(self.out, BYTES);
                Ok(ByteSequence { out: self.out, column: self.column, start })
            }
            _ => self.unfit("a sequence"),
        }
    }
}

/// Bytes that come one by one, as those of a `Vec<u8>` do.
struct ByteSequence<'a> {
    out: &'a mut Vec<u8>,
    column: &'a Column,
    start: usize,
}

impl ByteSequence<'_> {
    fn byte<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RowError> {
        // Borrows the rules of whole numbers: what it writes is one INT cell, of which the byte is kept.
        let before = self.out.len();
        let number = Column::int(self.column.name);
        value.serialize(CellSerializer { out: self.out, column: &number })?;
        let mut cell = [0; 8];
        cell.copy_from_slice(&self.out[before + 1..before + 9]);
        self.out.truncate(before);
        let Ok(byte) = u8::try_from(i64::from_le_bytes(cell)) else {
            return Err(RowError::Shape(format!(
                "column `{}` is bytes and its sequence holds more than bytes",
                self.column.name
            )));
        };
        self.out.push(byte);
        Ok(())
    }
}

impl SerializeSeq for ByteSequence<'_> {
    type Ok = ();
    type Error = RowError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RowError> {
        self.byte(value)
    }

    fn end(self) -> Result<(), RowError> {
        end_list(self.out, self.start);
        Ok(())
    }
}

impl SerializeTuple for ByteSequence<'_> {
    type Ok = ();
    type Error = RowError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RowError> {
        self.byte(value)
    }

    fn end(self) -> Result<(), RowError> {
        end_list(self.out, self.start);
        Ok(())
    }
}

impl<'a> Serializer for CellSerializer<'a> {
    type Ok = ();
    type Error = RowError;
    type SerializeSeq = ByteSequence<'a>;
    type SerializeTuple = ByteSequence<'a>;
    type SerializeTupleStruct = Impossible<(), RowError>;
    type SerializeTupleVariant = Impossible<(), RowError>;
    type SerializeMap = Impossible<(), RowError>;
    type SerializeStruct = Impossible<(), RowError>;
    type SerializeStructVariant = Impossible<(), RowError>;

    /// Numbers, not text: a [`Timestamp`] hands out its microseconds.
    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Result<(), RowError> {
        match self.column.column_type {
            ColumnType::Bool => {
                self.out.push(if value { TRUE } else { FALSE });
                Ok(())
            }
            _ => self.unfit("a bool"),
        }
    }

    fn serialize_i64(self, value: i64) -> Result<(), RowError> {
        match self.column.column_type {
            ColumnType::Int => self.eight(INT, value.to_le_bytes()),
            ColumnType::Timestamp => self.eight(TIMESTAMP, value.to_le_bytes()),
            ColumnType::Float if value.unsigned_abs() <= FLOAT_INT_MAX => {
                #[expect(clippy::cast_precision_loss, reason = "it was checked to be exact")]
                let float = value as f64;
                self.eight(FLOAT, float.to_le_bytes())
            }
            ColumnType::Float => self.out_of_range(value, "which a float does not hold exactly"),
            _ => self.unfit("a whole number"),
        }
    }

    fn serialize_u64(self, value: u64) -> Result<(), RowError> {
        match i64::try_from(value) {
            Ok(value) => self.serialize_i64(value),
            Err(_) => self.out_of_range(value, "which is more than a signed 64-bit number holds"),
        }
    }

    fn serialize_i128(self, value: i128) -> Result<(), RowError> {
        match i64::try_from(value) {
            Ok(value) => self.serialize_i64(value),
            Err(_) => self.out_of_range(value, "which a signed 64-bit number does not hold"),
        }
    }

    fn serialize_u128(self, value: u128) -> Result<(), RowError> {
        match i64::try_from(value) {
            Ok(value) => self.serialize_i64(value),
            Err(_) => self.out_of_range(value, "which a signed 64-bit number does not hold"),
        }
    }

    fn serialize_i8(self, value: i8) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u8(self, value: u8) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), RowError> {
        self.serialize_i64(value.into())
    }

    fn serialize_f32(self, value: f32) -> Result<(), RowError> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), RowError> {
        match self.column.column_type {
            ColumnType::Float if value.is_finite() => self.eight(FLOAT, value.to_le_bytes()),
            ColumnType::Float => self.out_of_range(value, "which is not finite"),
            _ => self.unfit("a float"),
        }
    }

    fn serialize_char(self, value: char) -> Result<(), RowError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), RowError> {
        match self.column.column_type {
            ColumnType::Text => self.list(TEXT, value.as_bytes()),
            ColumnType::Timestamp => match Timestamp::parse(value) {
                Ok(time) => self.eight(TIMESTAMP, time.0.to_le_bytes()),
                Err(e) => Err(RowError::Value(format!("`{}`: {e}", self.column.name))),
            },
            _ => self.unfit("text"),
        }
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), RowError> {
        match self.column.column_type {
            ColumnType::Bytes => self.list(BYTES, value),
            _ => self.unfit("bytes"),
        }
    }

    fn serialize_none(self) -> Result<(), RowError> {
        self.null()
    }

    fn serialize_unit(self) -> Result<(), RowError> {
        self.null()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), RowError> {
        self.null()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), RowError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), RowError> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), RowError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), RowError> {
        self.unfit("an enum with a value; declare the column as json")
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<ByteSequence<'a>, RowError> {
        self.sequence()
    }

    fn serialize_tuple(self, _: usize) -> Result<ByteSequence<'a>, RowError> {
        self.sequence()
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, RowError> {
        self.unfit("a tuple; declare the column as json")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, RowError> {
        self.unfit("an enum with values; declare the column as json")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, RowError> {
        self.unfit("a map; declare the column as json")
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, RowError> {
        self.unfit("a struct; declare the column as json")
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, RowError> {
        self.unfit("an enum with values; declare the column as json")
    }
}
