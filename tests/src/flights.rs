//! The flights of January 2013, and what the sample plugins must make of them.
//!
//! [`Expected::of`] is a fold over the file that shares no code with the plugins or the SDK: plain JSON
//! values, and windows that are looked at from their beginning each time. Rows are JSON objects by
//! column, as the edge answers them: timestamps as RFC 3339 text, a mean as a float.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use millrace::event::Micros;
use serde_json::{Value, json};

/// Rows of a table by key.
pub type Rows = BTreeMap<String, Value>;

/// Where the file lies, in the source tree.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../plugins/flight-board/data/flights-2013-01.ndjson.gz")
}

/// The file, line by line: one event in JSON each, in the order of time.
pub fn lines() -> Result<Vec<String>> {
    let file = std::fs::File::open(path()).with_context(|| format!("no file {}", path().display()))?;
    BufReader::new(GzDecoder::new(file)).lines().map(|line| Ok(line?)).collect()
}

/// What the tables hold and what was emitted, after a number of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Of `flight-board`: the payload of each flight's last event.
    pub flights: Rows,
    /// Of `flight-board`, out of the alerts.
    pub alerts: Rows,
    /// Of `carrier-stats`.
    pub carriers: Rows,
    /// Of `delay-watch`.
    pub airports: Rows,
    /// Versions of the rows of `flights` and `alerts`.
    pub flight_versions: BTreeMap<String, u64>,
    pub alert_versions: BTreeMap<String, u64>,
    /// The emitted events, airport by airport: type, version, time and payload by agg-id, in order.
    pub emitted: BTreeMap<String, Vec<Emitted>>,
}

/// An emitted event.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    pub agg_id: String,
    pub event_type: String,
    pub version: u64,
    pub at: String,
    pub payload: Value,
}

impl Expected {
    /// Folds over events: all of the file, or its beginning.
    pub fn of<S: AsRef<str>>(lines: &[S]) -> Result<Self> {
        let mut expected = Self::default();
        // Departures of each origin: time and delay.
        let mut departures: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
        for line in lines {
            let event: Value = serde_json::from_str(line.as_ref())?;
            expected.flight(&event)?;
            expected.carrier(&event)?;
            if event["type"] == "flight.departed" {
                expected.departure(&event, &mut departures)?;
            }
        }
        Ok(expected)
    }

    fn flight(&mut self, event: &Value) -> Result<()> {
        let agg_id = text(event, "agg_id")?.to_owned();
        let version = event["version"].as_u64().context("an event has a version")?;
        let before = self.flight_versions.insert(agg_id.clone(), version);
        ensure!(
            before.is_none_or(|before| before < version),
            "the file has the versions of {agg_id} in order"
        );
        self.flights.insert(agg_id, event["payload"].clone());
        Ok(())
    }

    fn carrier(&mut self, event: &Value) -> Result<()> {
        let payload = &event["payload"];
        let event_type = text(event, "type")?;
        if event_type == "flight.arrived" {
            return Ok(());
        }
        let row = self.carriers.entry(text(payload, "carrier")?.to_owned()).or_insert_with(|| {
            json!({"flights": 0, "cancelled": 0, "departed": 0, "delay_sum_min": 0,
                   "delay_mean_min": null, "worst_flight": null, "worst_delay_min": null})
        });
        row["name"] = payload["airline"].clone();
        let mut add = |column: &str, number: i64| {
            row[column] = json!(row[column].as_i64().unwrap_or(0) + number);
            row[column].as_i64().unwrap_or(0)
        };
        match event_type {
            "flight.scheduled" => add("flights", 1),
            "flight.cancelled" => add("cancelled", 1),
            _ => {
                let delay = number(payload, "dep_delay_min")?;
                let departed = add("departed", 1);
                let sum = add("delay_sum_min", delay);
                row["delay_mean_min"] = json!(sum as f64 / departed as f64);
                if row["worst_delay_min"].as_i64().is_none_or(|worst| delay > worst) {
                    row["worst_delay_min"] = json!(delay);
                    row["worst_flight"] = event["agg_id"].clone();
                }
                departed
            }
        };
        Ok(())
    }

    fn departure(&mut self, event: &Value, departures: &mut BTreeMap<String, Vec<(i64, i64)>>) -> Result<()> {
        let payload = &event["payload"];
        let origin = text(payload, "origin")?.to_owned();
        let at = text(event, "at")?;
        let now = Micros::parse(at)?.0;
        let all = departures.entry(origin.clone()).or_default();
        all.push((now, number(payload, "dep_delay_min")?));
        let hour = 3_600_000_000;
        let window: Vec<i64> = all
            .iter()
            .filter(|(time, _)| *time > now - hour && *time <= now)
            .map(|(_, delay)| *delay)
            .collect();
        // What is two hours old is looked at no more; the file is in the order of time.
        all.retain(|(time, _)| *time > now - 2 * hour);

        let (n, sum) = (i64::try_from(window.len())?, window.iter().sum::<i64>());
        let mean = sum as f64 / n as f64;
        let row = self.airports.entry(origin.clone()).or_insert_with(
            || json!({"alerts_raised": 0, "alerts_cleared": 0, "open_alert": null, "departures": 0}),
        );
        row["at"] = json!(at);
        row["departures"] = json!(n);
        row["delay_sum_min"] = json!(sum);
        row["delay_mean_min"] = json!(mean);
        if row["open_alert"].is_null() && n >= 5 && mean > 30.0 {
            let raised = row["alerts_raised"].as_i64().unwrap_or(0) + 1;
            let agg_id = format!("{origin}/{raised}");
            row["alerts_raised"] = json!(raised);
            row["open_alert"] = json!(agg_id);
            let alert = json!({"airport": origin, "status": "open", "raised_at": at, "cleared_at": null,
                "departures": n, "mean_delay_min": mean, "cleared_mean_delay_min": null});
            self.alert(&origin, &agg_id, "alert.raised", 1, at, alert);
        } else if !row["open_alert"].is_null() && mean < 20.0 {
            let agg_id = text(row, "open_alert")?.to_owned();
            row["open_alert"] = Value::Null;
            row["alerts_cleared"] = json!(row["alerts_cleared"].as_i64().unwrap_or(0) + 1);
            let mut alert = self.alerts[&agg_id].clone();
            alert["status"] = json!("cleared");
            alert["cleared_at"] = json!(at);
            alert["cleared_mean_delay_min"] = json!(mean);
            self.alert(&origin, &agg_id, "alert.cleared", 2, at, alert);
        }
        Ok(())
    }

    fn alert(
        &mut self,
        origin: &str,
        agg_id: &str,
        event_type: &str,
        version: u64,
        at: &str,
        payload: Value,
    ) {
        self.alerts.insert(agg_id.into(), payload.clone());
        self.alert_versions.insert(agg_id.into(), version);
        self.emitted.entry(origin.into()).or_default().push(Emitted {
            agg_id: agg_id.into(),
            event_type: event_type.into(),
            version,
            at: at.into(),
            payload,
        });
    }

    /// Flights with this status.
    pub fn flights_with_status(&self, status: &str) -> usize {
        self.flights.values().filter(|flight| flight["status"] == status).count()
    }

    /// Alerts of an airport that were raised, and that were cleared.
    pub fn alerts_of(&self, airport: &str) -> (u64, u64) {
        let row = &self.airports[airport];
        (row["alerts_raised"].as_u64().unwrap_or(0), row["alerts_cleared"].as_u64().unwrap_or(0))
    }
}

fn text<'a>(value: &'a Value, member: &str) -> Result<&'a str> {
    value[member].as_str().with_context(|| format!("`{member}` is a text in {value}"))
}

fn number(value: &Value, member: &str) -> Result<i64> {
    value[member].as_i64().with_context(|| format!("`{member}` is a whole number in {value}"))
}
