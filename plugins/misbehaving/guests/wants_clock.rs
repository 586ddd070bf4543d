//! Asks the machine what time it is, which needs the grant `clock`.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table, Timestamp,
};
use serde::Serialize;

static TIMES: Table =
    Table::new("clock_times", &[Column::timestamp("event_at"), Column::timestamp("clock_at")]);

#[derive(Serialize)]
struct Times {
    event_at: Timestamp,
    clock_at: Timestamp,
}

struct WantsClock;

impl Processor for WantsClock {
    fn manifest() -> Manifest {
        Manifest::new("wants-clock", "1.0.0").grants(&["clock"]).tables(&[&TIMES])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    #[expect(clippy::disallowed_methods, reason = "this guest is about asking the machine's clock")]
    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock_at = Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        out.put(&TIMES, event.agg_id(), 0, &Times { event_at: event.at(), clock_at })
    }
}

millrace_guest::export!(WantsClock);
