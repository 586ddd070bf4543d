//! Sleeps for an hour on an event of type `poison`: it waits inside the host, where no epoch ends it.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("sleeper_seen");

struct Sleeper;

impl Processor for Sleeper {
    fn manifest() -> Manifest {
        Manifest::new("sleeper", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            std::thread::sleep(std::time::Duration::from_secs(3_600));
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(Sleeper);
