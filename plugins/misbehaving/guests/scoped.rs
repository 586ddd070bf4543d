//! Behaves: a row for each aggregate instance of what another guest makes, with the scope of its last event.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

static SCOPED: Table = Table::new("scoped", &[Column::text("scope").nullable()]);

#[derive(Serialize)]
struct Row<'a> {
    scope: Option<&'a str>,
}

struct Scoped;

impl Processor for Scoped {
    fn manifest() -> Manifest {
        Manifest::new("scoped", "1.0.0").aggregates(&["made"]).tables(&[&SCOPED])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        out.put(&SCOPED, event.agg_id(), 0, &Row { scope: event.scope() })
    }
}

millrace_guest::export!(Scoped);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn it_notes_the_scope_or_that_there_is_none() {
        let mut driver = Driver::<Scoped>::new();
        let mut event = TestEvent::new("made", "a", 1, "made");
        event.scope = "north".into();
        driver.send(&[event, TestEvent::new("made", "b", 1, "made")]).unwrap();
        assert_eq!(driver.row("scoped", "a").unwrap()["scope"], "north");
        assert_eq!(driver.row("scoped", "b").unwrap()["scope"], serde_json::Value::Null);
    }
}
