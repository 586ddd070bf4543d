//! Behaves: what benchmarks give to each language to do. It reads a departure, counts by carrier and adds up delays; with
//! the setting `rows` it also writes a row for each event. `plugins/fold-js` and `plugins/fold-python` do the same.

use std::collections::BTreeMap;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table, config};
use serde::{Deserialize, Serialize};

const STATE: &str = "application/vnd.millrace.fold.v1+json";

static FOLDED: Table = Table::new(
    "folded",
    &[Column::text("carrier").filterable(), Column::int("departures").sortable(), Column::int("minutes")],
);

#[derive(Deserialize)]
struct Departure<'a> {
    carrier: &'a str,
    dep_delay_minutes: i64,
}

#[derive(Serialize)]
struct Row<'a> {
    carrier: &'a str,
    departures: u64,
    minutes: i64,
}

#[derive(Debug)]
pub struct Fold {
    /// Departures of each carrier, and the minutes that they were late by.
    carriers: BTreeMap<String, (u64, i64)>,
    writes_rows: bool,
}

impl Processor for Fold {
    fn manifest() -> Manifest {
        Manifest::new("fold", "1.0.0")
            .summary("Counts departures of each carrier, and adds up their delays")
            .state(STATE)
            .tables(&[&FOLDED])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let carriers = saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default();
        Ok(Self { carriers, writes_rows: config::get_or("rows", false)? })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let Departure { carrier, dep_delay_minutes } = event.payload_as()?;
        let (departures, minutes) = self.carriers.get(carrier).copied().unwrap_or_default();
        let (departures, minutes) = (departures + 1, minutes + dep_delay_minutes);
        if self.writes_rows {
            out.put(&FOLDED, event.agg_id(), 0, &Row { carrier, departures, minutes })?;
        }
        match self.carriers.get_mut(carrier) {
            Some(kept) => *kept = (departures, minutes),
            None => {
                self.carriers.insert(carrier.into(), (departures, minutes));
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.carriers).expect("texts and numbers can be written as JSON")
    }
}

millrace_guest::export!(Fold);
