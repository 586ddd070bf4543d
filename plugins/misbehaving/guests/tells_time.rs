//! Asks a clock what time it is without wanting the grant: the host answers with the time of the event.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table, Timestamp,
};
use serde::Serialize;

static TIMES: Table =
    Table::new("told_times", &[Column::timestamp("event_at"), Column::timestamp("clock_at")]);

#[derive(Serialize)]
struct Times {
    event_at: Timestamp,
    clock_at: Timestamp,
}

struct TellsTime;

impl Processor for TellsTime {
    fn manifest() -> Manifest {
        Manifest::new("tells-time", "1.0.0").tables(&[&TIMES])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    #[expect(clippy::disallowed_methods, reason = "this guest is about asking the clock")]
    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock_at = Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        out.put(&TIMES, event.agg_id(), 0, &Times { event_at: event.at(), clock_at })
    }
}

millrace_guest::export!(TellsTime);
