//! Rows: from anything that serializes as a struct or map to the cells of a table, in the declared order.
//!
//! Fields that come in the order of the columns are written where they belong,
//! without a look-up or an allocation. As soon as one does not, the rest is
//! looked up by name and put in order at the end.

mod cell;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};

use serde::ser::{Error as _, Impossible, Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::{Column, Failure, Table};

/// Appends the cells of a row. On an error `out` holds part of a row.
pub(crate) fn write<R: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    table: &Table,
    row: &R,
) -> Result<(), RowError> {
    row.serialize(RowSerializer { out, table })
}

/// Why a row cannot be written.
#[derive(Debug)]
pub(crate) enum RowError {
    /// The row's type and the table do not go together: the plugin is at fault.
    Shape(String),
    /// A value cannot be held: the event is at fault.
    Value(String),
}

impl RowError {
    pub(crate) fn into_failure(self, table: &Table, key: &str) -> Failure {
        match self {
            Self::Shape(problem) => Failure::fatal(format!("table `{}`: {problem}", table.name)),
            Self::Value(problem) => {
                Failure::reject(format!("row `{key}` of table `{}`: {problem}", table.name))
            }
        }
    }
}

impl Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(problem) | Self::Value(problem) => f.write_str(problem),
        }
    }
}

impl std::error::Error for RowError {}

impl serde::ser::Error for RowError {
    fn custom<T: Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

struct RowSerializer<'a> {
    out: &'a mut Vec<u8>,
    table: &'a Table,
}

impl<'a> RowSerializer<'a> {
    fn cells(self) -> Fields<'a> {
        let start = self.out.len();
        Fields { out: self.out, table: self.table, start, next: 0, scattered: None, key: String::new() }
    }
}

/// The fields of a row as they come.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    table: &'a Table,
    /// Where the row begins in `out`.
    start: usize,
    /// The column after the last one that came in order.
    next: usize,
    /// Once a field did not come in order: for each column, where its cell lies.
    scattered: Option<Vec<Option<(usize, usize)>>>,
    /// The key of a map's entry, between its two halves.
    key: String,
}

impl Fields<'_> {
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), RowError> {
        let table = self.table;
        if self.scattered.is_none()
            && let Some(column) = table.columns.get(self.next)
            && column.name == name
        {
            cell::write(self.out, column, value)?;
            self.next += 1;
            return Ok(());
        }
        self.look_up(name, value)
    }

    #[cold]
    fn look_up<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), RowError> {
        let table = self.table;
        let Some(index) = table.columns.iter().position(|column| column.name == name) else {
            let columns = table.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
            return Err(RowError::Shape(format!("it has no column `{name}`; it has {columns}")));
        };
        if self.scattered.is_none() {
            self.scattered = Some(self.spans_so_far());
        }
        let cell_start = self.out.len();
        cell::write(self.out, &table.columns[index], value)?;
        if let Some(spans) = &mut self.scattered {
            spans[index] = Some((cell_start, self.out.len()));
        }
        Ok(())
    }

    /// Where the cells lie that came in order.
    fn spans_so_far(&self) -> Vec<Option<(usize, usize)>> {
        let mut spans = vec![None; self.table.columns.len()];
        let mut at = self.start;
        for span in &mut spans[..self.next] {
            let end = at + cell::length(&self.out[at..]);
            *span = Some((at, end));
            at = end;
        }
        spans
    }

    fn finish(self) -> Result<(), RowError> {
        let Some(spans) = self.scattered else {
            for column in &self.table.columns[self.next..] {
                write_missing(self.out, column)?;
            }
            return Ok(());
        };
        let mut ordered = Vec::with_capacity(self.out.len() - self.start);
        for (column, span) in self.table.columns.iter().zip(spans) {
            match span {
                Some((from, to)) => ordered.extend_from_slice(&self.out[from..to]),
                None => write_missing(&mut ordered, column)?,
            }
        }
        self.out.truncate(self.start);
        self.out.append(&mut ordered);
        Ok(())
    }
}

fn write_missing(out: &mut Vec<u8>, column: &Column) -> Result<(), RowError> {
    if !column.nullable {
        return Err(RowError::Shape(format!(
            "the row has no `{}`, and that column is not nullable",
            column.name
        )));
    }
    out.push(cell::NULL);
    Ok(())
}

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = RowError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), RowError> {
        self.field(name, value)
    }

    fn skip_field(&mut self, name: &'static str) -> Result<(), RowError> {
        self.field(name, &())
    }

    fn end(self) -> Result<(), RowError> {
        self.finish()
    }
}

impl SerializeMap for Fields<'_> {
    type Ok = ();
    type Error = RowError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), RowError> {
        self.key = key.serialize(ColumnName)?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RowError> {
        let name = std::mem::take(&mut self.key);
        self.field(&name, value)
    }

    fn end(self) -> Result<(), RowError> {
        self.finish()
    }
}

/// Says what a value is, for those kinds that cannot be a row or a name.
macro_rules! refuse {
    ($problem:expr; $($method:ident($($argument:ty),*) $(-> $ok:ty)?;)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<refuse!(@ok $($ok)?), RowError> {
            Err(RowError::Shape($problem.into()))
        }
    )*};
    (@ok) => { Self::Ok };
    (@ok $ok:ty) => { $ok };
}

const NOT_A_ROW: &str = "a row is a struct or a map";

impl<'a> Serializer for RowSerializer<'a> {
    type Ok = ();
    type Error = RowError;
    type SerializeSeq = Impossible<(), RowError>;
    type SerializeTuple = Impossible<(), RowError>;
    type SerializeTupleStruct = Impossible<(), RowError>;
    type SerializeTupleVariant = Impossible<(), RowError>;
    type SerializeMap = Fields<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Impossible<(), RowError>;

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, RowError> {
        Ok(self.cells())
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Fields<'a>, RowError> {
        Ok(self.cells())
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

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), RowError> {
        Err(RowError::Shape(NOT_A_ROW.into()))
    }

    refuse! { NOT_A_ROW;
        serialize_bool(bool); serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64);
        serialize_u8(u8); serialize_u16(u16); serialize_u32(u32); serialize_u64(u64);
        serialize_f32(f32); serialize_f64(f64); serialize_char(char); serialize_str(&str);
        serialize_bytes(&[u8]); serialize_none(); serialize_unit(); serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}

const NOT_A_NAME: &str = "a row's keys are texts";

/// Takes a map's key as the name of a column.
struct ColumnName;

impl Serializer for ColumnName {
    type Ok = String;
    type Error = RowError;
    type SerializeSeq = Impossible<String, RowError>;
    type SerializeTuple = Impossible<String, RowError>;
    type SerializeTupleStruct = Impossible<String, RowError>;
    type SerializeTupleVariant = Impossible<String, RowError>;
    type SerializeMap = Impossible<String, RowError>;
    type SerializeStruct = Impossible<String, RowError>;
    type SerializeStructVariant = Impossible<String, RowError>;

    fn serialize_str(self, name: &str) -> Result<String, RowError> {
        Ok(name.into())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<String, RowError> {
        Ok(variant.into())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<String, RowError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<String, RowError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<String, RowError> {
        Err(RowError::custom(NOT_A_NAME))
    }

    refuse! { NOT_A_NAME;
        serialize_bool(bool); serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64);
        serialize_u8(u8); serialize_u16(u16); serialize_u32(u32); serialize_u64(u64);
        serialize_f32(f32); serialize_f64(f64); serialize_char(char); serialize_bytes(&[u8]);
        serialize_none(); serialize_unit(); serialize_unit_struct(&'static str);
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}
