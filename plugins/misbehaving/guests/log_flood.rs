//! Logs far more than it may on an event of type `poison`, in messages that are too long, and goes on.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("log_seen");

struct LogFlood;

impl Processor for LogFlood {
    fn manifest() -> Manifest {
        Manifest::new("log-flood", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            let message = "far too much to say ".repeat(1_000);
            for _ in 0..10_000 {
                millrace_guest::log::warn(&message);
            }
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(LogFlood);
