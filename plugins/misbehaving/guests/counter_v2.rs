//! Behaves: `counter` 2.0.0. It reads the state of 1.0.0 and adds a nullable column.

use std::collections::BTreeMap;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::{Deserialize, Serialize};

const STATE_V1: &str = "application/vnd.millrace.counter.v1+json";
const STATE: &str = "application/vnd.millrace.counter.v2+json";

static COUNTERS: Table = Table::new(
    "counters",
    &[Column::int("events").filterable().sortable(), Column::text("last_type").nullable().filterable()],
);

#[derive(Serialize)]
struct Row<'a> {
    events: u64,
    last_type: &'a str,
}

#[derive(Default, Deserialize, Serialize)]
struct Counted {
    events: u64,
    /// Not known of what 1.0.0 counted.
    last_type: Option<String>,
}

struct Counter {
    /// By agg-id.
    counted: BTreeMap<String, Counted>,
}

impl Processor for Counter {
    fn manifest() -> Manifest {
        Manifest::new("counter", "2.0.0")
            .summary("Counts the events of each aggregate instance and keeps the last type")
            .state(STATE)
            .tables(&[&COUNTERS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let Some(saved) = saved else { return Ok(Self { counted: BTreeMap::new() }) };
        let counted = saved
            .migrate()
            .json(STATE, |counted| counted)
            .json(STATE_V1, |old: BTreeMap<String, u64>| {
                let counted = |events| Counted { events, last_type: None };
                old.into_iter().map(|(agg_id, events)| (agg_id, counted(events))).collect()
            })
            .finish()?;
        Ok(Self { counted })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let events = self.counted.get(event.agg_id()).map_or(0, |counted| counted.events) + 1;
        out.put(&COUNTERS, event.agg_id(), 0, &Row { events, last_type: event.event_type() })?;
        let counted = Counted { events, last_type: Some(event.event_type().into()) };
        self.counted.insert(event.agg_id().into(), counted);
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.counted).expect("texts and numbers can be written as JSON")
    }
}

millrace_guest::export!(Counter);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, Setup, TestEvent};

    use super::*;

    #[test]
    fn the_state_of_the_first_version_is_taken_over() {
        let saved = Some(Saved { content_type: STATE_V1.into(), state: br#"{"a":7}"#.to_vec() });
        let mut driver = Driver::<Counter>::start(Setup { saved, ..Setup::default() }).unwrap();
        driver.send(&[TestEvent::new("thing", "a", 8, "changed")]).unwrap();
        assert_eq!(driver.row("counters", "a").unwrap()["events"], 8);
        driver.restart().unwrap();
    }
}
