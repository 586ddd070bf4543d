//! The departures board: one row per flight with its current status, one per delay alert.
//!
//! Every event carries the whole row after the change, so that this processor keeps no state: the
//! version gate of its tables sees to it that a late event does not overwrite a newer one.

use std::borrow::Cow;

use millrace_guest::{
    Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table, Timestamp,
};
use serde::{Deserialize, Serialize};

static FLIGHTS: Table = Table::new(
    "flights",
    &[
        Column::text("flight").filterable(),
        Column::text("carrier").filterable(),
        Column::text("airline"),
        Column::text("tail").nullable().filterable(),
        Column::text("origin").filterable(),
        Column::text("dest").filterable(),
        Column::text("dest_name").nullable(),
        Column::int("distance_mi").filterable(),
        Column::timestamp("scheduled").filterable().sortable(),
        Column::text("status").filterable(),
        Column::int("dep_delay_min").nullable().filterable().sortable(),
        Column::int("arr_delay_min").nullable().filterable(),
        Column::int("air_time_min").nullable().filterable(),
    ],
)
.versioned();

static ALERTS: Table = Table::new(
    "alerts",
    &[
        Column::text("airport").filterable(),
        Column::text("status").filterable(),
        Column::timestamp("raised_at").filterable().sortable(),
        Column::timestamp("cleared_at").nullable().filterable().sortable(),
        Column::int("departures"),
        Column::float("mean_delay_min"),
        Column::float("cleared_mean_delay_min").nullable(),
    ],
)
.versioned();

/// A flight: the payload of `flight.*` and, field by field, a row of `flights`.
#[derive(Debug, Deserialize, Serialize)]
struct Flight<'a> {
    #[serde(borrow)]
    flight: Cow<'a, str>,
    #[serde(borrow)]
    carrier: Cow<'a, str>,
    #[serde(borrow)]
    airline: Cow<'a, str>,
    #[serde(borrow)]
    tail: Option<Cow<'a, str>>,
    #[serde(borrow)]
    origin: Cow<'a, str>,
    #[serde(borrow)]
    dest: Cow<'a, str>,
    #[serde(borrow)]
    dest_name: Option<Cow<'a, str>>,
    distance_mi: i64,
    scheduled: Timestamp,
    #[serde(borrow)]
    status: Cow<'a, str>,
    dep_delay_min: Option<i64>,
    arr_delay_min: Option<i64>,
    air_time_min: Option<i64>,
}

/// An alert: the payload of `alert.*`, which `delay-watch` emits, and a row of `alerts`.
#[derive(Debug, Deserialize, Serialize)]
struct Alert<'a> {
    #[serde(borrow)]
    airport: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    raised_at: Timestamp,
    cleared_at: Option<Timestamp>,
    /// Departures in the window, and their mean delay, when it was raised.
    departures: i64,
    mean_delay_min: f64,
    cleared_mean_delay_min: Option<f64>,
}

/// The processor.
#[derive(Debug)]
pub struct FlightBoard;

impl Processor for FlightBoard {
    fn manifest() -> Manifest {
        Manifest::new("flight-board", env!("CARGO_PKG_VERSION"))
            .summary("One row per flight with its current status, and one per delay alert")
            .types(&["flight.*", "alert.*"])
            .aggregates(&["flight", "alert"])
            .tables(&[&FLIGHTS, &ALERTS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        match event.aggregate() {
            "flight" => out.put(&FLIGHTS, event.agg_id(), event.version(), &event.payload_as::<Flight>()?),
            "alert" => out.put(&ALERTS, event.agg_id(), event.version(), &event.payload_as::<Alert>()?),
            // The subscription names two aggregates; another one here is none of ours.
            _ => Ok(()),
        }
    }
}

millrace_guest::export!(FlightBoard);

#[cfg(test)]
mod tests {
    use millrace_guest::FailureKind;
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};
    use serde_json::{Value, json};

    use super::*;

    fn flight(version: u64, status: &str, delay: Option<i64>) -> TestEvent {
        TestEvent::new("flight", "2013-01-01/B6806/JFK", version, &format!("flight.{status}")).payload(
            &json!({
                "flight": "B6806", "carrier": "B6", "airline": "JetBlue \"Airways\"", "tail": null,
                "origin": "JFK", "dest": "BOS", "dest_name": "Logan Intl", "distance_mi": 187,
                "scheduled": "2013-01-01T10:59:00Z", "status": status,
                "dep_delay_min": delay, "arr_delay_min": null, "air_time_min": null,
            }),
        )
    }

    #[test]
    fn a_flight_has_one_row_with_its_newest_status() {
        let mut driver = Driver::<FlightBoard>::new();
        driver.send(&[flight(1, "scheduled", None), flight(2, "departed", Some(-3))]).unwrap();
        let row = driver.row("flights", "2013-01-01/B6806/JFK").unwrap();
        assert_eq!(row.version, 2);
        assert_eq!(row["status"], "departed");
        assert_eq!(row["dep_delay_min"], -3);
        assert_eq!(row["airline"], "JetBlue \"Airways\"");
        assert_eq!(row["scheduled"], "2013-01-01T10:59:00Z");
        assert_eq!(row["tail"], Value::Null);
    }

    #[test]
    fn a_late_older_event_is_left_out() {
        let mut driver = Driver::<FlightBoard>::new();
        driver.send(&[flight(2, "departed", Some(4)), flight(1, "scheduled", None)]).unwrap();
        assert_eq!(driver.row("flights", "2013-01-01/B6806/JFK").unwrap()["status"], "departed");
        assert_eq!(driver.stale(), 1);
    }

    #[test]
    fn a_payload_that_is_no_flight_is_rejected_and_the_rest_stands() {
        let mut driver = Driver::<FlightBoard>::new();
        let bad = TestEvent::new("flight", "x", 1, "flight.scheduled").payload(&json!({"flight": 7}));
        let failed = driver.send(&[flight(1, "scheduled", None), bad]).unwrap_err();
        assert_eq!((failed.index, failed.failure.kind), (1, FailureKind::Reject));
        assert_eq!(driver.rows("flights").len(), 1);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<FlightBoard>(&[
            flight(1, "scheduled", None),
            flight(2, "departed", Some(4)),
            flight(3, "arrived", Some(4)),
        ]);
    }
}
