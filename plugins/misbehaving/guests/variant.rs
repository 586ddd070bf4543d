//! Is what its version says: one of many versions of a plugin, good ones and bad ones. A test writes number and
//! nature over the placeholder in the component's bytes, and has another version, with another digest.
//!
//! It counts the events of each aggregate instance; an event of type `make` makes another one.

use std::collections::BTreeMap;
use std::hint::black_box;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, NewEvent, Processor, Saved, Table};
use serde::{Deserialize, Serialize};

/// Number and nature are replaced, byte for byte; nothing else in the component looks like it.
const VERSION: &str = "1.1000000.0+nature----";
const STATE: &str = "application/vnd.millrace.variant.v1+json";

static VARIANTS: Table = Table::new("variants", &[Column::int("events").filterable().sortable()]);

/// What makes a version different. Each shows at every event, or where it says so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    Good,
    /// Falls over.
    Traps,
    /// Takes some tens of milliseconds: so much more than a good one that no machine is too busy to tell.
    Slow,
    /// Refuses any state.
    Refuses,
    /// Takes all the memory it can get in `load`, once there is a state.
    Greedy,
    /// Keeps a mebibyte.
    Leaks,
    /// Counts one too many in its rows, not in its state.
    Wrong,
    /// Wrong rows, other events made, a larger state, and some microseconds.
    Other,
    /// Its state grows by a mebibyte.
    Swells,
}

fn nature() -> Nature {
    let (_, nature) = black_box(VERSION).split_once('+').unwrap_or_default();
    match nature.trim_end_matches('-') {
        "traps" => Nature::Traps,
        "slow" => Nature::Slow,
        "refuses" => Nature::Refuses,
        "greedy" => Nature::Greedy,
        "leaks" => Nature::Leaks,
        "wrong" => Nature::Wrong,
        "other" => Nature::Other,
        "swells" => Nature::Swells,
        _ => Nature::Good,
    }
}

#[derive(Serialize)]
struct Row {
    events: u64,
}

#[derive(Serialize)]
struct Made {
    from: u64,
    other: bool,
}

#[derive(Default, Deserialize, Serialize)]
struct Counted {
    /// Events by agg-id.
    events: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ballast: String,
}

struct Variant {
    nature: Nature,
    counted: Counted,
    kept: Vec<Vec<u8>>,
}

impl Processor for Variant {
    fn manifest() -> Manifest {
        Manifest::new("variant", VERSION).aggregates(&["thing"]).state(STATE).tables(&[&VARIANTS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let nature = nature();
        let Some(saved) = saved else {
            return Ok(Self { nature, counted: Counted::default(), kept: Vec::new() });
        };
        if nature == Nature::Refuses {
            return Err("it is not in the mood".into());
        }
        if nature == Nature::Greedy {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        Ok(Self { nature, counted: saved.json(STATE)?, kept: Vec::new() })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        match self.nature {
            Nature::Traps => panic!("it is made to fall"),
            Nature::Slow => spin(100_000_000),
            // Taken and not touched, so that it is not slow as well.
            Nature::Leaks => self.kept.push(black_box(Vec::with_capacity(1 << 20))),
            Nature::Swells => self.counted.ballast.push_str(&"x".repeat(1 << 20)),
            Nature::Other => {
                spin(10_000);
                self.counted.ballast = "x".repeat(1_000);
            }
            _ => {}
        }
        let events = self.counted.events.entry(event.agg_id().into()).or_default();
        *events += 1;
        let other = self.nature == Nature::Other;
        let too_many = u64::from(other || self.nature == Nature::Wrong);
        out.put(&VARIANTS, event.agg_id(), 0, &Row { events: *events + too_many })?;
        if event.event_type() == "make" {
            let made = NewEvent {
                aggregate: "made",
                agg_id: event.agg_id(),
                event_type: "made",
                version: event.version(),
                ..NewEvent::default()
            };
            out.emit(&made, &Made { from: event.version(), other })?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.counted).expect("texts and numbers can be written as JSON")
    }
}

fn spin(rounds: u64) {
    for round in 0..rounds {
        black_box(round);
    }
}

millrace_guest::export!(Variant);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};

    use super::*;

    #[test]
    fn unless_it_is_told_otherwise_it_is_good() {
        let event = |agg_id, version, event_type| TestEvent::new("thing", agg_id, version, event_type);
        let mut driver = Driver::<Variant>::new();
        driver.send(&[event("a", 1, "changed"), event("b", 1, "make")]).unwrap();
        driver.restart().unwrap();
        driver.send(&[event("a", 2, "changed")]).unwrap();
        assert_eq!(driver.row("variants", "a").unwrap()["events"], 2);
        assert_eq!(driver.emitted().len(), 1);
        batch_equals_singles::<Variant>(&[event("a", 1, "make"), event("a", 2, "changed")]);
    }
}
