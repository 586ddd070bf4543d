//! `counter` 4.0.0, which keeps no state: what earlier versions saved stays as it is.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};

static COUNTERS: Table = Table::new("counters", &[Column::int("events").filterable().sortable()]);

struct Counter;

impl Processor for Counter {
    fn manifest() -> Manifest {
        Manifest::new("counter", "4.0.0").tables(&[&COUNTERS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, _: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        Ok(())
    }
}

millrace_guest::export!(Counter);
