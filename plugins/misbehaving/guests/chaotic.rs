//! Everything at once, for hosts that are killed: state in the snapshot and in the keyed state, a row for
//! each aggregate instance, an event emitted for every tenth of its events (which it gets, too), and failures
//! by the type of the event: `flaky` asks twice for another try, `bad` is rejected, `poison` traps, and `shy`
//! is rejected when an instance meets it first.
//!
//! What it keeps of an aggregate instance depends on that one's events and their order alone, and what it
//! keeps of all of them not on the order: however a run was disturbed, the result must be that of a quiet one.

use std::collections::BTreeMap;

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, NewEvent, Processor, Saved, Table, Timestamp,
};
use serde::{Deserialize, Serialize};

const STATE: &str = "application/vnd.millrace.chaotic.v1+json";
/// The aggregate of what it emits.
const ECHO: &str = "echo";
/// Events of an aggregate instance for one echo.
const ECHO_EVENTS: u64 = 10;
/// How often a `flaky` event fails in one instance.
const FLAKY_FAILURES: u32 = 2;

static COLUMNS: [Column; 4] =
    [Column::int("events"), Column::int("sum"), Column::text("chain"), Column::timestamp("at")];
static CHAINS: Table = Table::new("chaotic_chains", &COLUMNS);

/// What is known of one aggregate instance: a row, and an entry of the keyed state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Chain {
    events: u64,
    sum: i64,
    /// A hash over the versions in the order in which they were handled.
    chain: String,
}

#[derive(Serialize)]
struct Row<'a> {
    events: u64,
    sum: i64,
    chain: &'a str,
    at: Timestamp,
}

#[derive(Deserialize)]
struct Work {
    value: i64,
}

/// What is known of all events together.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Totals {
    events: u64,
    /// A sum over the hashes of the ids: an event lost or doubled shows, whatever the order.
    ids: u64,
}

#[derive(Default)]
struct Chaotic {
    totals: Totals,
    /// Tries of `flaky` and `shy` events by id. In memory only: an instance forgets them when it falls.
    tries: BTreeMap<String, u32>,
}

impl Processor for Chaotic {
    fn manifest() -> Manifest {
        Manifest::new("chaotic", "1.0.0").aggregates(&["work", ECHO]).state(STATE).tables(&[&CHAINS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let totals = saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default();
        Ok(Self { totals, tries: BTreeMap::new() })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        self.fail(&event)?;
        let work: Work = event.payload_as()?;
        let key = format!("chain/{}/{}", event.aggregate(), event.agg_id());
        let before: Chain = out.state().get_json(key.as_bytes())?.unwrap_or_default();
        let link = format!("{}:{}", before.chain, event.version());
        let chain = Chain {
            events: before.events + 1,
            sum: before.sum + work.value,
            chain: format!("{:016x}", fnv(link.as_bytes())),
        };
        out.state().put_json(key.as_bytes(), &chain)?;
        let row = Row { events: chain.events, sum: chain.sum, chain: &chain.chain, at: event.at() };
        out.put(&CHAINS, &format!("{}/{}", event.aggregate(), event.agg_id()), 0, &row)?;
        if event.aggregate() != ECHO && chain.events.is_multiple_of(ECHO_EVENTS) {
            let echo = NewEvent {
                aggregate: ECHO,
                agg_id: event.agg_id(),
                event_type: "echo.made",
                version: chain.events / ECHO_EVENTS,
                ..NewEvent::default()
            };
            out.emit(&echo, &serde_json::json!({"value": chain.sum, "chain": chain.chain}))?;
        }
        self.totals.events += 1;
        self.totals.ids = self.totals.ids.wrapping_add(fnv(event.id().as_bytes()));
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.totals).expect("numbers can be written as JSON")
    }
}

impl Chaotic {
    fn fail(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        match event.event_type() {
            "bad" => Err(Failure::reject(format!("{} is bad", event.agg_id()))),
            "poison" => panic!("{} is poison", event.agg_id()),
            "flaky" => {
                let tries = self.tries.entry(event.id().into()).or_default();
                if *tries < FLAKY_FAILURES {
                    *tries += 1;
                    return Err(Failure::retry(format!("{} is flaky", event.agg_id())));
                }
                Ok(())
            }
            "shy" if self.tries.insert(event.id().into(), 1).is_none() => {
                Err(Failure::reject(format!("{} is shy", event.agg_id())))
            }
            _ => Ok(()),
        }
    }
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

millrace_guest::export!(Chaotic);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};

    use super::*;

    fn event(agg_id: &str, version: u64, kind: &str) -> TestEvent {
        let payload = format!("{{\"value\":{version}}}").into_bytes();
        TestEvent { payload, ..TestEvent::new("work", agg_id, version, kind) }
    }

    #[test]
    fn the_tenth_event_is_echoed_and_the_order_shows() {
        let mut driver = Driver::<Chaotic>::new();
        let events: Vec<_> = (1..=10).map(|version| event("a", version, "step")).collect();
        driver.send(&events).unwrap();
        let echo = driver.emitted().to_vec();
        assert_eq!((echo.len(), echo[0].version), (1, 1));
        driver.send(&echo).unwrap();
        assert_eq!(driver.emitted().len(), 1, "an echo has no echo");
        let chain = driver.row("chaotic_chains", "work/a").unwrap()["chain"].clone();

        let mut other = Driver::<Chaotic>::new();
        let mut swapped = events;
        swapped.swap(3, 4);
        other.send(&swapped).unwrap();
        assert_ne!(other.row("chaotic_chains", "work/a").unwrap()["chain"], chain);
    }

    #[test]
    fn flaky_events_succeed_at_the_third_try_shy_ones_at_the_second_and_bad_ones_never() {
        let mut driver = Driver::<Chaotic>::new();
        let flaky = [event("a", 1, "flaky")];
        assert!(driver.send(&flaky).is_err());
        assert!(driver.send(&flaky).is_err());
        driver.send(&flaky).unwrap();
        assert!(driver.send(&[event("a", 2, "bad")]).is_err());
        let shy = [event("a", 3, "shy")];
        assert!(driver.send(&shy).is_err());
        driver.send(&shy).unwrap();
        batch_equals_singles::<Chaotic>(&[event("a", 1, "step"), event("b", 1, "step")]);
    }
}
