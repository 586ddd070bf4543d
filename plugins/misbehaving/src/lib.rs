//! What the test guests share. Each stands in `guests/` and becomes a component of its own.
//!
//! Those that misbehave do so on an event of type [`POISON`], or as their own doc says, and otherwise
//! note each event in a table, so that a test sees who went on.

use millrace_guest::{Column, Effects, Event, Failure, Table, Timestamp};
use serde::Serialize;

/// The type of event that sets a guest off.
pub const POISON: &str = "poison";

static SEEN_COLUMNS: [Column; 3] =
    [Column::text("event_type"), Column::int("event_version"), Column::timestamp("at")];

/// A table with a row for each aggregate instance whose events were handled. Not versioned: the last one stays.
pub const fn seen_table(name: &'static str) -> Table {
    Table::new(name, &SEEN_COLUMNS)
}

#[derive(Debug, Serialize)]
struct Seen<'a> {
    event_type: &'a str,
    event_version: u64,
    at: Timestamp,
}

/// Notes an event.
pub fn note(event: &Event<'_>, table: &Table, out: &mut Effects) -> Result<(), Failure> {
    let seen = Seen { event_type: event.event_type(), event_version: event.version(), at: event.at() };
    out.put(table, event.agg_id(), 0, &seen)
}
