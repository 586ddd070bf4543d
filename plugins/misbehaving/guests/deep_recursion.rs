//! Calls itself without end on an event of type `poison`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("recursion_seen");

struct DeepRecursion;

fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 16]);
    // The sum comes after the call, so that no compiler makes a loop of it.
    if frame[0] == 0 { 0 } else { deeper(depth + 1) + std::hint::black_box(frame)[1] }
}

impl Processor for DeepRecursion {
    fn manifest() -> Manifest {
        Manifest::new("deep-recursion", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            std::hint::black_box(deeper(1));
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(DeepRecursion);
