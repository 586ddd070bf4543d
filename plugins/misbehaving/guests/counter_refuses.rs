//! `counter` 3.0.0, which refuses any saved state.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};

static COUNTERS: Table = Table::new("counters", &[Column::int("events").filterable().sortable()]);

struct Counter;

impl Processor for Counter {
    fn manifest() -> Manifest {
        Manifest::new("counter", "3.0.0")
            .state("application/vnd.millrace.counter.v3+json")
            .tables(&[&COUNTERS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        match saved {
            Some(saved) => Err(format!("content type `{}` is not for me", saved.content_type)),
            None => Ok(Self),
        }
    }

    fn handle(&mut self, _: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        b"{}".to_vec()
    }
}

millrace_guest::export!(Counter);
