//! Behaves: counts the events of each aggregate instance, and forgets it after ten seconds without one. An event of
//! type `expiring.keep` counts for good; one of type `expiring.large` leaves 900 KiB; one of type `expiring.sum` writes
//! what a scan finds.

use std::time::Duration;

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, OrderingKey, Processor, Saved, Table,
};
use serde::Serialize;

const TIME_TO_LIVE: Duration = Duration::from_secs(10);
const LARGE_BYTES: usize = 900 << 10;

static COUNTS: Table = Table::new("expiring_counts", &[Column::int("events"), Column::int("bytes")]);

#[derive(Default, Serialize)]
struct Row {
    events: usize,
    bytes: usize,
}

struct Expiring;

impl Processor for Expiring {
    fn manifest() -> Manifest {
        Manifest::new("expiring", "1.0.0").ordering_key(OrderingKey::Single).tables(&[&COUNTS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let key = [b"count/", event.agg_id().as_bytes()].concat();
        let mut row = Row::default();
        match event.event_type() {
            "expiring.sum" => {
                for entry in out.state().scan(b"count/") {
                    row.events += 1;
                    row.bytes += entry.value.len();
                }
            }
            "expiring.large" => out.state().put_for(&key, &vec![b'1'; LARGE_BYTES], TIME_TO_LIVE)?,
            "expiring.keep" => out.state().put_json(&key, &1)?,
            _ => {
                row.events = out.state().get_json::<usize>(&key)?.unwrap_or(0) + 1;
                out.state().put_json_for(&key, &row.events, TIME_TO_LIVE)?;
            }
        }
        out.put(&COUNTS, event.agg_id(), 0, &row)
    }
}

millrace_guest::export!(Expiring);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};
    use millrace_guest::{StateValue, Timestamp};

    use super::*;

    fn event(agg_id: &str, kind: &str, second: u64) -> TestEvent {
        TestEvent::new("thing", agg_id, second + 1, kind).at(&format!("2013-01-01T00:00:{second:02}Z"))
    }

    fn events(driver: &Driver<Expiring>, key: &str) -> Option<u64> {
        driver.row("expiring_counts", key).and_then(|row| row["events"].as_u64())
    }

    #[test]
    fn an_entry_is_gone_for_the_event_at_its_end_and_there_for_the_one_before() {
        let mut driver = Driver::<Expiring>::new();
        driver.send(&[event("a", "x", 0), event("a", "x", 9)]).unwrap();
        assert_eq!(events(&driver, "a"), Some(2));
        driver.send(&[event("a", "x", 19)]).unwrap();
        assert_eq!(events(&driver, "a"), Some(1), "the entry ended at 19 s");
        driver.send(&[event("a", "x", 28)]).unwrap();
        assert_eq!(events(&driver, "a"), Some(2));
    }

    #[test]
    fn a_late_event_finds_what_was_there_at_its_time() {
        let mut driver = Driver::<Expiring>::new();
        driver.send(&[event("a", "x", 0), event("b", "x", 30), event("a", "x", 5)]).unwrap();
        assert_eq!(events(&driver, "a"), Some(2));
    }

    #[test]
    fn a_scan_leaves_out_what_is_gone_and_deletes_it() {
        let mut driver = Driver::<Expiring>::new();
        driver.send(&[event("a", "x", 0), event("b", "expiring.keep", 1), event("c", "x", 5)]).unwrap();
        driver.send(&[event("all", "expiring.sum", 12)]).unwrap();
        assert_eq!(events(&driver, "all"), Some(2));
        let keys: Vec<_> = driver.state().into_keys().collect();
        assert_eq!(keys, [b"count/b", b"count/c"]);
    }

    #[test]
    fn one_event_deletes_a_bounded_number_of_what_is_gone() {
        let ended = |n: u32| {
            let entry = StateValue { value: b"1".to_vec(), expires_at: Some(Timestamp(1)) };
            (format!("count/{n:05}").into_bytes(), entry)
        };
        let state = (0..3_000).map(ended).collect();
        let setup = millrace_guest::testing::Setup { state, ..Default::default() };
        let mut driver = Driver::<Expiring>::start(setup).unwrap();
        driver.send(&[event("all", "expiring.sum", 1), event("again", "expiring.sum", 2)]).unwrap();
        assert_eq!((events(&driver, "all"), events(&driver, "again")), (Some(0), Some(0)));
        assert_eq!(driver.state().len(), 3_000 - 2 * 64);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        let mut mixed = Vec::new();
        for second in 0..50 {
            let agg_id = ["a", "b", "c", "d", "e"][(second * 7 % 5) as usize];
            mixed.push(event(agg_id, if second % 11 == 0 { "expiring.keep" } else { "x" }, second));
            // Every so often one comes late.
            if second % 6 == 0 {
                mixed.push(event("c", "x", second / 2));
            }
            if second % 9 == 0 {
                mixed.push(event(&format!("sum-{second}"), "expiring.sum", second));
            }
        }
        batch_equals_singles::<Expiring>(&mixed);
    }
}
