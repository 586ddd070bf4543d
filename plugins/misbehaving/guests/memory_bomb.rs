//! Takes all the memory it can get on an event of type `poison`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

static SEEN: Table = seen_table("bomb_seen");

struct MemoryBomb;

impl Processor for MemoryBomb {
    fn manifest() -> Manifest {
        Manifest::new("memory-bomb", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            let mut hoard = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(MemoryBomb);
