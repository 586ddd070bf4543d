//! Claims about the sample plugins, run as native code over the real flights.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use carrier_stats::CarrierStats;
use delay_watch::DelayWatch;
use flight_board::FlightBoard;
use millrace_guest::Processor;
use millrace_guest::testing::{Driver, TestEvent};
use millrace_tests::flights::{self, Emitted, Expected, Rows};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Line<'a> {
    aggregate: &'a str,
    agg_id: &'a str,
    version: u64,
    #[serde(rename = "type")]
    event_type: &'a str,
    at: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

fn events(lines: &[String]) -> Result<Vec<TestEvent>> {
    lines
        .iter()
        .map(|line| {
            let line: Line<'_> = serde_json::from_str(line)?;
            let event =
                TestEvent::new(line.aggregate, line.agg_id, line.version, line.event_type).at(line.at);
            Ok(TestEvent { payload: line.payload.get().as_bytes().to_vec(), ..event })
        })
        .collect()
}

/// Hands a plugin what it subscribed to, in batches, with a restart now and then.
fn replay<P: Processor>(events: &[TestEvent], wanted: impl Fn(&TestEvent) -> bool) -> Driver<P> {
    let wanted: Vec<TestEvent> = events.iter().filter(|event| wanted(event)).cloned().collect();
    let mut driver = Driver::<P>::new();
    for (index, batch) in wanted.chunks(997).enumerate() {
        driver.send(batch).expect("the real flights can all be handled");
        if index % 7 == 3 {
            driver.restart().expect("a plugin loads what it saved");
        }
    }
    driver
}

fn rows<P: Processor>(driver: &Driver<P>, table: &str) -> Rows {
    driver.rows(table).iter().map(|(key, row)| (key.clone(), Value::Object(row.cells.clone()))).collect()
}

fn versions<P: Processor>(driver: &Driver<P>, table: &str) -> BTreeMap<String, u64> {
    driver.rows(table).iter().map(|(key, row)| (key.clone(), row.version)).collect()
}

/// Says which row differs, rather than printing two tables.
fn assert_same_rows(found: &Rows, expected: &Rows) {
    for (key, row) in expected {
        assert_eq!(found.get(key), Some(row), "row {key}");
    }
    assert_eq!(found.len(), expected.len(), "there are rows that nobody expects");
}

#[test]
fn the_fold_gives_the_known_numbers_of_january() -> Result<()> {
    let expected = Expected::of(&flights::lines()?)?;
    assert_eq!(expected.flights.len(), 26_968);
    let statuses =
        ["arrived", "cancelled", "departed", "scheduled"].map(|status| expected.flights_with_status(status));
    assert_eq!(statuses, [26_080, 512, 228, 148]);
    for (carrier, flights, departed, sum) in
        [("UA", 4_636, 4_584, 37_434), ("EV", 4_162, 3_957, 93_304), ("B6", 4_412, 4_381, 40_115)]
    {
        let row = &expected.carriers[carrier];
        assert_eq!(
            (&row["flights"], &row["departed"], &row["delay_sum_min"]),
            (&json!(flights), &json!(departed), &json!(sum)),
            "{carrier}"
        );
    }
    let mut delays: Vec<(i64, &str)> = expected
        .flights
        .iter()
        .filter_map(|(key, row)| Some((row["dep_delay_min"].as_i64()?, key.as_str())))
        .collect();
    delays.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(delays[0], (1_301, "2013-01-09/HA51/JFK"));
    assert_eq!(delays[1..5].iter().map(|(delay, _)| *delay).collect::<Vec<_>>(), [1_126, 853, 599, 502]);
    let alerts = ["EWR", "JFK", "LGA"].map(|airport| expected.alerts_of(airport));
    assert_eq!(alerts.map(|(raised, _)| raised), [44, 37, 22]);
    assert_eq!(alerts.iter().map(|(_, cleared)| cleared).sum::<u64>(), 101);
    Ok(())
}

#[test]
fn flight_board_and_delay_watch_give_every_expected_row() -> Result<()> {
    let lines = flights::lines()?;
    let (events, expected) = (events(&lines)?, Expected::of(&lines)?);
    let watch = replay::<DelayWatch>(&events, |event| event.event_type == "flight.departed");
    assert_same_rows(&rows(&watch, "airports"), &expected.airports);

    let mut emitted: BTreeMap<String, Vec<Emitted>> = BTreeMap::new();
    for event in watch.emitted() {
        assert_eq!((event.aggregate.as_str(), event.depth), ("alert", 1));
        let (airport, _) = event.agg_id.split_once('/').context("an alert is named airport/number")?;
        emitted.entry(airport.into()).or_default().push(Emitted {
            agg_id: event.agg_id.clone(),
            event_type: event.event_type.clone(),
            version: event.version,
            at: event.at.to_string(),
            payload: event.json(),
        });
    }
    assert_eq!(emitted.keys().collect::<Vec<_>>(), expected.emitted.keys().collect::<Vec<_>>());
    for (airport, events) in &expected.emitted {
        for (index, event) in events.iter().enumerate() {
            assert_eq!(emitted[airport].get(index), Some(event), "event {index} of {airport}");
        }
        assert_eq!(emitted[airport].len(), events.len(), "{airport} has events that nobody expects");
    }

    let mut board = replay::<FlightBoard>(&events, |_| true);
    board.send(watch.emitted()).unwrap();
    assert_same_rows(&rows(&board, "flights"), &expected.flights);
    assert_same_rows(&rows(&board, "alerts"), &expected.alerts);
    assert_eq!(versions(&board, "flights"), expected.flight_versions);
    assert_eq!(versions(&board, "alerts"), expected.alert_versions);
    assert_eq!(board.stale(), 0);
    Ok(())
}

#[test]
fn carrier_stats_gives_every_expected_row() -> Result<()> {
    let lines = flights::lines()?;
    let (events, expected) = (events(&lines)?, Expected::of(&lines)?);
    let stats = replay::<CarrierStats>(&events, |event| event.event_type != "flight.arrived");
    assert_same_rows(&rows(&stats, "carriers"), &expected.carriers);
    Ok(())
}
