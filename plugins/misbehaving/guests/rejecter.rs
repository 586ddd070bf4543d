//! Rejects events of type `poison`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("rejecter_seen");

struct Rejecter;

impl Processor for Rejecter {
    fn manifest() -> Manifest {
        Manifest::new("rejecter", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            return Err(Failure::reject(format!("poisoned by {}", event.agg_id())));
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(Rejecter);
