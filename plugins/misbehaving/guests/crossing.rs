//! Behaves, and measures what crossing costs: looks at every part of every event, text as text, and
//! does nothing else.

use std::hint::black_box;

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved};

struct Crossing;

impl Processor for Crossing {
    fn manifest() -> Manifest {
        Manifest::new("crossing", "1.0.0").summary("Looks at every part of every event")
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        black_box((event.id(), event.aggregate(), event.agg_id(), event.event_type()));
        black_box((event.scope(), event.kind(), event.cursor(), event.traceparent()));
        black_box((event.position(), event.version(), event.at(), event.schema_version(), event.depth()));
        // JSON text is UTF-8; an author who parses it pays for that once, and so does this guest.
        let payload = std::str::from_utf8(event.payload());
        black_box(payload).map(|_| ()).map_err(|e| Failure::reject(e.to_string()))
    }
}

millrace_guest::export!(Crossing);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn it_takes_any_event_and_asks_for_nothing() {
        let mut driver = Driver::<Crossing>::new();
        let mut event = TestEvent::new("thing", "ü", 1, "changed");
        event.scope = "s".into();
        driver.send(&[event]).unwrap();
        assert!(driver.emitted().is_empty());
    }
}
