//! Counts the events of each order: one row an order, and an event of its own at every tenth.

use std::collections::BTreeMap;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, NewEvent, Processor, Saved, Table};
use serde_json::json;

/// What the saved state is. Another layout gets another name, and `Saved::migrate` reads the former one.
const STATE: &str = "application/vnd.plugin-name.v1+json";

static COUNTS: Table =
    Table::new("plugin_name", &[Column::int("events").sortable(), Column::timestamp("last_at").sortable()]);

pub struct Counter {
    events: BTreeMap<String, u64>,
}

impl Processor for Counter {
    fn manifest() -> Manifest {
        Manifest::new("plugin-name", env!("CARGO_PKG_VERSION"))
            .summary("Counts the events of each order")
            .types(&["order.*"])
            .state(STATE)
            .tables(&[&COUNTS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let events = saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default();
        Ok(Self { events })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let key = event.agg_id();
        let events = self.events.get(key).copied().unwrap_or(0) + 1;
        // What can fail comes before the state changes.
        out.put(&COUNTS, key, 0, &json!({ "events": events, "last_at": event.at() }))?;
        if events.is_multiple_of(10) {
            let tenth = NewEvent {
                aggregate: "plugin-name",
                agg_id: key,
                event_type: "plugin-name.tenth",
                version: events / 10,
                ..NewEvent::default()
            };
            out.emit(&tenth, &json!({ "events": events }))?;
        }
        self.events.insert(key.to_owned(), events);
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

    fn orders(count: u64) -> Vec<TestEvent> {
        (1..=count).map(|version| TestEvent::new("order", "o-1", version, "order.changed")).collect()
    }

    #[test]
    fn an_order_is_counted_and_its_tenth_event_is_told() {
        let mut driver = Driver::<Counter>::new();
        driver.send(&orders(12)).unwrap();
        assert_eq!(driver.row("plugin_name", "o-1").unwrap()["events"], 12);
        assert_eq!(driver.emitted().len(), 1);
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let mut driver = Driver::<Counter>::new();
        let events = orders(11);
        driver.send(&events[..9]).unwrap();
        driver.restart().unwrap();
        driver.send(&events[9..]).unwrap();
        assert_eq!(driver.row("plugin_name", "o-1").unwrap()["events"], 11);
        assert_eq!(driver.emitted().len(), 1);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<Counter>(&orders(25));
    }
}
