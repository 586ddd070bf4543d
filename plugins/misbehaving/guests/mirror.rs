//! Behaves: a row for each aggregate instance, of the event's version, with the payload as it came. An event of type
//! `thing.deleted` deletes it. Versions may come in any order: the table's gate decides.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::{Deserialize, Serialize};

static MIRROR: Table = Table::new(
    "mirror",
    &[Column::int("n").nullable(), Column::text("payload"), Column::int("schema_version")],
)
.versioned();

#[derive(Deserialize)]
struct Payload {
    n: Option<i64>,
}

#[derive(Serialize)]
struct Row<'a> {
    n: Option<i64>,
    payload: &'a str,
    schema_version: u32,
}

struct Mirror;

impl Processor for Mirror {
    fn manifest() -> Manifest {
        Manifest::new("mirror", "1.0.0").aggregates(&["thing"]).tables(&[&MIRROR])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == "thing.deleted" {
            return out.delete(&MIRROR, event.agg_id(), event.version());
        }
        let payload = std::str::from_utf8(event.payload()).map_err(|e| Failure::reject(e.to_string()))?;
        let n = event.payload_as::<Payload>()?.n;
        let row = Row { n, payload, schema_version: event.schema_version() };
        out.put(&MIRROR, event.agg_id(), event.version(), &row)
    }
}

millrace_guest::export!(Mirror);
