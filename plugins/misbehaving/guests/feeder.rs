//! Feeds itself: each event of type `feed.*` makes the next.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, NewEvent, Processor, Saved, Table};
use misbehaving::{note, seen_table};

static SEEN: Table = seen_table("feeder_seen");

struct Feeder;

impl Processor for Feeder {
    fn manifest() -> Manifest {
        Manifest::new("feeder", "1.0.0").types(&["feed.*"]).tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        note(&event, &SEEN, out)?;
        let next = NewEvent {
            aggregate: event.aggregate(),
            agg_id: event.agg_id(),
            event_type: "feed.next",
            version: event.version() + 1,
            at: Some(event.at().plus_minutes(1)),
            ..NewEvent::default()
        };
        out.emit(&next, &event.depth())
    }
}

millrace_guest::export!(Feeder);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn each_event_makes_the_next() {
        let mut driver = Driver::<Feeder>::new();
        driver.send(&[TestEvent::new("chain", "c", 1, "feed.first")]).unwrap();
        let next = driver.emitted().to_vec();
        driver.send(&next).unwrap();
        assert_eq!((driver.emitted()[1].version, driver.emitted()[1].depth), (3, 2));
    }
}
