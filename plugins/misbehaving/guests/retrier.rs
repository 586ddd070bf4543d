//! Asks for another try: on an event of type `flaky` as often as the setting `failures` says (2 where it
//! does not), on one of type `stuck` always. It counts tries in memory only, which no snapshot holds.

use std::collections::BTreeMap;

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table, config};
use misbehaving::{note, seen_table};

static SEEN: Table = seen_table("retrier_seen");

struct Retrier {
    failures: u32,
    /// How often each event was tried, by its id.
    tries: BTreeMap<String, u32>,
}

impl Processor for Retrier {
    fn manifest() -> Manifest {
        Manifest::new("retrier", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self { failures: config::get_or("failures", 2)?, tries: BTreeMap::new() })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        match event.event_type() {
            "stuck" => return Err(Failure::retry(format!("{} is stuck", event.agg_id()))),
            "flaky" => {
                let tries = self.tries.entry(event.id().into()).or_default();
                *tries += 1;
                if *tries <= self.failures {
                    return Err(Failure::retry(format!("try {tries} of {} failed", event.agg_id())));
                }
            }
            _ => {}
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(Retrier);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn the_third_try_succeeds() {
        let mut driver = Driver::<Retrier>::new();
        let event = [TestEvent::new("thing", "a", 1, "flaky")];
        assert!(driver.send(&event).is_err());
        assert!(driver.send(&event).is_err());
        driver.send(&event).unwrap();
        assert_eq!(driver.row("retrier_seen", "a").unwrap()["event_type"], "flaky");
    }
}
