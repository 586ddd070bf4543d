//! Never comes back from an event of type `poison`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("endless_seen");

struct EndlessHandle;

impl Processor for EndlessHandle {
    fn manifest() -> Manifest {
        Manifest::new("endless-handle", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            loop {
                std::hint::spin_loop();
            }
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(EndlessHandle);
