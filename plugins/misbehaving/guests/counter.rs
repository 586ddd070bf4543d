//! Behaves: counts the events of each aggregate instance. The first of three versions of `counter`.

use std::collections::BTreeMap;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

const STATE: &str = "application/vnd.millrace.counter.v1+json";

static COUNTERS: Table = Table::new("counters", &[Column::int("events").filterable().sortable()]);

#[derive(Serialize)]
struct Row {
    events: u64,
}

struct Counter {
    /// Events by agg-id.
    events: BTreeMap<String, u64>,
}

impl Processor for Counter {
    fn manifest() -> Manifest {
        Manifest::new("counter", "1.0.0")
            .summary("Counts the events of each aggregate instance")
            .state(STATE)
            .tables(&[&COUNTERS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        Ok(Self { events: saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default() })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let events = self.events.get(event.agg_id()).copied().unwrap_or(0) + 1;
        out.put(&COUNTERS, event.agg_id(), 0, &Row { events })?;
        match self.events.get_mut(event.agg_id()) {
            Some(stored) => *stored = events,
            None => {
                self.events.insert(event.agg_id().into(), events);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.events).expect("texts and numbers can be written as JSON")
    }
}

millrace_guest::export!(Counter);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};

    use super::*;

    #[test]
    fn counts_go_on_after_a_restart() {
        let event = |agg_id, version| TestEvent::new("thing", agg_id, version, "changed");
        let mut driver = Driver::<Counter>::new();
        driver.send(&[event("a", 1), event("b", 1)]).unwrap();
        driver.restart().unwrap();
        driver.send(&[event("a", 2)]).unwrap();
        assert_eq!(driver.row("counters", "a").unwrap()["events"], 2);
        batch_equals_singles::<Counter>(&[event("a", 1), event("b", 1), event("a", 2)]);
    }
}
