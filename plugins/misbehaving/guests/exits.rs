//! Ends its process on an event of type `poison`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("exits_seen");

struct Exits;

impl Processor for Exits {
    fn manifest() -> Manifest {
        Manifest::new("exits", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            std::process::exit(3);
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(Exits);
