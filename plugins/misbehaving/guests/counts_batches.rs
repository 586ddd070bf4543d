//! Lets its rows depend on how events are cut into batches, which no processor may: it writes down how many effects
//! its call has had before.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde_json::json;

static PLACES: Table = Table::new("batch_places", &[Column::int("effects_before")]);

struct CountsBatches;

impl Processor for CountsBatches {
    fn manifest() -> Manifest {
        Manifest::new("counts-batches", "1.0.0").tables(&[&PLACES])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let before = out.len();
        out.put(&PLACES, event.agg_id(), 0, &json!({ "effects_before": before }))
    }
}

millrace_guest::export!(CountsBatches);
