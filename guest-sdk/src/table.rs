//! Tables as a plugin declares them: in a `static`, so that a row is written
//! without a look-up.

use crate::bindings::millrace::processor::types as wire;

pub use wire::ColumnType;

/// The most rows one query may ask for, where a table does not say.
const WINDOW_ROWS_DEFAULT: u32 = 1_000;

/// A column. Cannot be null, filtered or sorted by unless it says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    pub(crate) name: &'static str,
    pub(crate) column_type: ColumnType,
    pub(crate) nullable: bool,
    pub(crate) filterable: bool,
    pub(crate) sortable: bool,
}

impl Column {
    const fn new(name: &'static str, column_type: ColumnType) -> Self {
        Self { name, column_type, nullable: false, filterable: false, sortable: false }
    }

    /// True or false.
    pub const fn bool(name: &'static str) -> Self {
        Self::new(name, ColumnType::Bool)
    }

    /// A whole number of 64 bits, signed.
    pub const fn int(name: &'static str) -> Self {
        Self::new(name, ColumnType::Int)
    }

    /// A number of 64 bits, finite.
    pub const fn float(name: &'static str) -> Self {
        Self::new(name, ColumnType::Float)
    }

    pub const fn text(name: &'static str) -> Self {
        Self::new(name, ColumnType::Text)
    }

    /// Takes what serializes as bytes or as a sequence of `u8`.
    pub const fn bytes(name: &'static str) -> Self {
        Self::new(name, ColumnType::Bytes)
    }

    /// Takes anything that serializes. NaN and the infinities are `null` in JSON; a column of floats refuses them.
    pub const fn json(name: &'static str) -> Self {
        Self::new(name, ColumnType::Json)
    }

    /// Takes a [`Timestamp`](crate::Timestamp), microseconds since 1970, or RFC 3339 text.
    pub const fn timestamp(name: &'static str) -> Self {
        Self::new(name, ColumnType::Timestamp)
    }

    /// May be null: `None`, or a field that a row does not have.
    pub const fn nullable(mut self) -> Self {
        self.nullable = true;
        self
    }

    /// May stand in `where`.
    pub const fn filterable(mut self) -> Self {
        self.filterable = true;
        self
    }

    /// May stand in `order`; gets an index.
    pub const fn sortable(mut self) -> Self {
        self.sortable = true;
        self
    }
}

/// A table. Rows are written fastest when the fields of their type stand in the order of the columns.
///
/// ```
/// use millrace_guest::{Column, Table};
///
/// static FLIGHTS: Table = Table::new(
///     "flights",
///     &[Column::text("carrier").filterable(), Column::int("dep_delay_min").nullable().sortable()],
/// )
/// .versioned();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [Column],
    pub(crate) versioned: bool,
    window_rows_max: u32,
}

impl Table {
    /// A table whose rows are ordered by when they are written.
    pub const fn new(name: &'static str, columns: &'static [Column]) -> Self {
        Self { name, columns, versioned: false, window_rows_max: WINDOW_ROWS_DEFAULT }
    }

    /// A put or delete with a version not above the stored one is left out as stale.
    pub const fn versioned(mut self) -> Self {
        self.versioned = true;
        self
    }

    /// The most rows one query may ask for; 1,000 where it is not said.
    pub const fn window_rows_max(mut self, rows: u32) -> Self {
        self.window_rows_max = rows;
        self
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn to_wire(&self) -> wire::Table {
        let column = |c: &Column| wire::Column {
            name: c.name.into(),
            type_: c.column_type,
            nullable: c.nullable,
            filterable: c.filterable,
            sortable: c.sortable,
        };
        wire::Table {
            name: self.name.into(),
            columns: self.columns.iter().map(column).collect(),
            versioned: self.versioned,
            window_rows_max: self.window_rows_max,
        }
    }
}
