//! Hands back more than a call may on an event of type `poison`: bytes, or, if the payload is `"effects"`, a
//! great number of effects.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use misbehaving::{POISON, note, seen_table};

/// More than `guest_effects_max`.
const EFFECTS: u32 = 100_001;
/// Together more than `guest_output_bytes_max`.
const VALUES: u32 = 20;
const VALUE_BYTES: usize = 1_000_000;

static SEEN: Table = seen_table("flood_seen");

struct OutputFlood;

impl Processor for OutputFlood {
    fn manifest() -> Manifest {
        Manifest::new("output-flood", "1.0.0").tables(&[&SEEN])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        if event.event_type() == POISON {
            if event.payload() == b"\"effects\"" {
                for _ in 0..EFFECTS {
                    out.delete(&SEEN, event.agg_id(), 0)?;
                }
            } else {
                for number in 0_u32..VALUES {
                    out.state().put(&number.to_le_bytes(), &vec![7; VALUE_BYTES])?;
                }
            }
        }
        note(&event, &SEEN, out)
    }
}

millrace_guest::export!(OutputFlood);
