//! How each carrier does: its flights, cancellations, departures and their delays.
//!
//! Keyed by the carrier, so that all of a carrier's events come to one lane in order. The totals are
//! the snapshot: there are a few dozen carriers, not millions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, OrderingKey, Processor, Saved, Table,
};
use serde::{Deserialize, Serialize};

const STATE: &str = "application/vnd.millrace.carrier-stats.v1+json";

static CARRIERS: Table = Table::new(
    "carriers",
    &[
        Column::text("name"),
        Column::int("flights").filterable().sortable(),
        Column::int("cancelled").filterable().sortable(),
        Column::int("departed").filterable().sortable(),
        Column::int("delay_sum_min"),
        Column::float("delay_mean_min").nullable().filterable().sortable(),
        Column::text("worst_flight").nullable(),
        Column::int("worst_delay_min").nullable().filterable().sortable(),
    ],
);

/// What this processor reads of a flight's payload.
#[derive(Debug, Deserialize)]
struct Flight<'a> {
    #[serde(borrow)]
    carrier: Cow<'a, str>,
    #[serde(borrow)]
    airline: Cow<'a, str>,
    /// 32 bits, so that no sum of what a publisher sends overflows.
    dep_delay_min: Option<i32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
struct Totals {
    flights: i64,
    cancelled: i64,
    departed: i64,
    delay_sum_min: i64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Carrier {
    name: String,
    #[serde(flatten)]
    totals: Totals,
    /// The flight with the largest delay, the first of them where there are several.
    worst: Option<(String, i32)>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    flights: i64,
    cancelled: i64,
    departed: i64,
    delay_sum_min: i64,
    delay_mean_min: Option<f64>,
    worst_flight: Option<&'a str>,
    worst_delay_min: Option<i32>,
}

/// The processor.
#[derive(Debug)]
pub struct CarrierStats {
    carriers: BTreeMap<String, Carrier>,
}

impl Processor for CarrierStats {
    fn manifest() -> Manifest {
        Manifest::new("carrier-stats", env!("CARGO_PKG_VERSION"))
            .summary("Flights, cancellations and departure delays of each carrier")
            .types(&["flight.scheduled", "flight.departed", "flight.cancelled"])
            .aggregates(&["flight"])
            .ordering_key(OrderingKey::PayloadField("carrier"))
            .state(STATE)
            .tables(&[&CARRIERS])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let carriers = saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default();
        Ok(Self { carriers })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let flight = event.payload_as::<Flight>()?;
        let known = self.carriers.get_mut(&*flight.carrier);
        let (mut totals, mut worst) = match &known {
            Some(carrier) => {
                (carrier.totals, carrier.worst.as_ref().map(|(id, delay)| (id.as_str(), *delay)))
            }
            None => (Totals::default(), None),
        };
        let mut is_worst = false;
        match event.event_type() {
            "flight.scheduled" => totals.flights += 1,
            "flight.cancelled" => totals.cancelled += 1,
            "flight.departed" => {
                let delay = flight.dep_delay_min.ok_or_else(|| {
                    Failure::reject(format!("flight {} departed without `dep_delay_min`", event.agg_id()))
                })?;
                totals.departed += 1;
                totals.delay_sum_min += i64::from(delay);
                is_worst = worst.is_none_or(|(_, longest)| delay > longest);
                if is_worst {
                    worst = Some((event.agg_id(), delay));
                }
            }
            _ => return Ok(()),
        }
        // The row first: what can fail must fail before the state changes.
        out.put(&CARRIERS, &flight.carrier, 0, &row(&flight.airline, totals, worst))?;
        let worst = is_worst.then(|| worst.map(|(id, delay)| (id.to_owned(), delay))).flatten();
        match known {
            Some(carrier) => {
                carrier.totals = totals;
                if worst.is_some() {
                    carrier.worst = worst;
                }
                if carrier.name != flight.airline {
                    carrier.name = flight.airline.into_owned();
                }
            }
            None => {
                let carrier = Carrier { name: flight.airline.into_owned(), totals, worst };
                self.carriers.insert(flight.carrier.into_owned(), carrier);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.carriers).expect("texts and numbers can be written as JSON")
    }
}

fn row<'a>(name: &'a str, totals: Totals, worst: Option<(&'a str, i32)>) -> Row<'a> {
    Row {
        name,
        flights: totals.flights,
        cancelled: totals.cancelled,
        departed: totals.departed,
        delay_sum_min: totals.delay_sum_min,
        delay_mean_min: (totals.departed > 0).then(|| totals.delay_sum_min as f64 / totals.departed as f64),
        worst_flight: worst.map(|(id, _)| id),
        worst_delay_min: worst.map(|(_, delay)| delay),
    }
}

millrace_guest::export!(CarrierStats);

#[cfg(test)]
mod tests {
    use millrace_guest::FailureKind;
    use millrace_guest::testing::{Driver, Setup, TestEvent, batch_equals_singles};
    use serde_json::{Value, json};

    use super::*;

    fn flight(id: &str, version: u64, what: &str, delay: Option<i64>) -> TestEvent {
        let payload = json!({"carrier": "UA", "airline": "United", "dep_delay_min": delay});
        TestEvent::new("flight", id, version, &format!("flight.{what}")).payload(&payload)
    }

    fn day() -> Vec<TestEvent> {
        vec![
            flight("a", 1, "scheduled", None),
            flight("b", 1, "scheduled", None),
            flight("c", 1, "scheduled", None),
            flight("a", 2, "departed", Some(-5)),
            flight("b", 2, "departed", Some(30)),
            flight("c", 2, "cancelled", None),
        ]
    }

    #[test]
    fn a_carrier_is_counted() {
        let mut driver = Driver::<CarrierStats>::new();
        driver.send(&day()).unwrap();
        let row = driver.row("carriers", "UA").unwrap();
        assert_eq!((&row["flights"], &row["departed"], &row["cancelled"]), (&json!(3), &json!(2), &json!(1)));
        assert_eq!((&row["delay_sum_min"], &row["delay_mean_min"]), (&json!(25), &json!(12.5)));
        assert_eq!((&row["worst_flight"], &row["worst_delay_min"]), (&json!("b"), &json!(30)));
    }

    #[test]
    fn without_a_departure_there_is_no_mean() {
        let mut driver = Driver::<CarrierStats>::new();
        driver.send(&[flight("a", 1, "scheduled", None)]).unwrap();
        assert_eq!(driver.row("carriers", "UA").unwrap()["delay_mean_min"], Value::Null);
    }

    #[test]
    fn the_first_of_equal_delays_stays_the_worst() {
        let mut driver = Driver::<CarrierStats>::new();
        driver.send(&[flight("a", 2, "departed", Some(9)), flight("b", 2, "departed", Some(9))]).unwrap();
        assert_eq!(driver.row("carriers", "UA").unwrap()["worst_flight"], "a");
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let mut driver = Driver::<CarrierStats>::new();
        let (first, second) = (day(), vec![flight("d", 2, "departed", Some(31))]);
        driver.send(&first).unwrap();
        driver.restart().unwrap();
        driver.send(&second).unwrap();
        assert_eq!(driver.row("carriers", "UA").unwrap()["delay_sum_min"], 56);
        assert_eq!(driver.row("carriers", "UA").unwrap()["worst_flight"], "d");
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let saved = Some(Saved { content_type: "application/other".into(), state: b"{}".to_vec() });
        let refused = Driver::<CarrierStats>::start(Setup { saved, ..Setup::default() }).unwrap_err();
        assert!(refused.contains("application/other") && refused.contains(STATE), "{refused}");
    }

    #[test]
    fn a_departure_without_a_delay_is_rejected_and_not_counted() {
        let mut driver = Driver::<CarrierStats>::new();
        let failed =
            driver.send(&[flight("a", 1, "scheduled", None), flight("a", 2, "departed", None)]).unwrap_err();
        assert_eq!((failed.index, failed.failure.kind), (1, FailureKind::Reject));
        assert_eq!(driver.row("carriers", "UA").unwrap()["departed"], 0);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<CarrierStats>(&day());
    }
}
