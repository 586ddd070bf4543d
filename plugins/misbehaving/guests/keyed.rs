//! Behaves: counts the events of each aggregate instance in the keyed state. An event of type
//! `keyed.reset` deletes its entry; one of type `keyed.sum` writes what a scan of all of them finds.

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, OrderingKey, Processor, Saved, Table,
};
use serde::Serialize;

static COUNTS: Table = Table::new("keyed_counts", &[Column::int("events"), Column::int("keys").nullable()]);

#[derive(Serialize)]
struct Row {
    events: u64,
    keys: Option<u64>,
}

struct Keyed;

impl Processor for Keyed {
    fn manifest() -> Manifest {
        Manifest::new("keyed", "1.0.0").ordering_key(OrderingKey::Single).tables(&[&COUNTS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let key = [b"count/", event.agg_id().as_bytes()].concat();
        match event.event_type() {
            "keyed.reset" => {
                out.state().delete(&key)?;
                out.delete(&COUNTS, event.agg_id(), 0)
            }
            "keyed.sum" => {
                let row = sum(out)?;
                out.put(&COUNTS, event.agg_id(), 0, &row)
            }
            _ => {
                let events = out.state().get_json::<u64>(&key)?.unwrap_or(0) + 1;
                out.state().put_json(&key, &events)?;
                out.put(&COUNTS, event.agg_id(), 0, &Row { events, keys: None })
            }
        }
    }
}

/// What all entries together count.
fn sum(out: &mut Effects) -> Result<Row, Failure> {
    let (mut events, mut keys) = (0, 0);
    for entry in out.state().scan(b"count/") {
        let count: u64 = serde_json::from_slice(&entry.value)
            .map_err(|e| Failure::fatal(format!("a count is broken: {e}")))?;
        events += count;
        keys += 1;
    }
    Ok(Row { events, keys: Some(keys) })
}

millrace_guest::export!(Keyed);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};

    use super::*;

    /// 30 keys, of which every third is deleted and every seventh counted twice.
    fn events() -> Vec<TestEvent> {
        let event = |n: u64, kind: &str| TestEvent::new("thing", &format!("{n:02}"), 1, kind);
        let mut events: Vec<_> = (0..30).map(|n| event(n, "changed")).collect();
        events.extend((0..30).step_by(3).map(|n| event(n, "keyed.reset")));
        events.extend((0..30).step_by(7).map(|n| event(n, "changed")));
        events.push(event(99, "keyed.sum"));
        events
    }

    #[test]
    fn a_scan_sees_committed_and_fresh_entries_in_order() {
        // 20 keys are left; of 0, 7, 14, 21, 28 two come back and three count twice.
        for cut in [0, 10, 30, 35, 40, 43] {
            let mut driver = Driver::<Keyed>::new();
            let events = events();
            driver.send(&events[..cut]).unwrap();
            driver.send(&events[cut..]).unwrap();
            let row = driver.row("keyed_counts", "99").unwrap();
            assert_eq!((row["events"].as_u64(), row["keys"].as_u64()), (Some(25), Some(22)), "cut at {cut}");
        }
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<Keyed>(&events());
    }
}
