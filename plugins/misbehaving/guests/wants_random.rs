//! Uses what std asks the machine for without being told: a `HashMap`'s random seed. Real randomness needs
//! the grant `random`, which it does not ask for; without it, each instance gets the same seed.

use std::collections::HashMap;
use std::hash::BuildHasher;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

static SEEDS: Table = Table::new("random_seeds", &[Column::text("seed")]);

#[derive(Serialize)]
struct Seed {
    seed: String,
}

struct WantsRandom {
    map: HashMap<String, u64>,
}

impl Processor for WantsRandom {
    fn manifest() -> Manifest {
        Manifest::new("wants-random", "1.0.0").tables(&[&SEEDS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self { map: HashMap::new() })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        *self.map.entry(event.agg_id().into()).or_default() += 1;
        let seed = self.map.hasher().hash_one(event.agg_id());
        out.put(&SEEDS, event.agg_id(), 0, &Seed { seed: format!("{seed:016x}") })
    }
}

millrace_guest::export!(WantsRandom);
