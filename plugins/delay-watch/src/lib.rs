//! Watches each airport's departure delays over an hour, and raises an alert while they are bad.
//!
//! At each departure, over the departures of the last 60 minutes (the one now included): an alert is
//! raised when none is open, there are at least 5 and their mean delay is over 30 minutes; it is
//! cleared when the mean is under 20. Time is the events' own, never a clock's, so that a replay
//! raises the same alerts. Time does not go back either: a departure that comes late is counted at its
//! own time, while that is in the window, and judged at the newest one.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use millrace_guest::{
    ChangeScope, Column, Context, Effects, Event, Failure, Manifest, NewEvent, OrderingKey, Processor, Saved,
    Table, Timestamp,
};
use serde::{Deserialize, Serialize};

const STATE: &str = "application/vnd.millrace.delay-watch.v1+json";
const WINDOW_MINUTES: i64 = 60;
const RAISE_DEPARTURES_MIN: i64 = 5;
const RAISE_OVER_MINUTES: i64 = 30;
const CLEAR_UNDER_MINUTES: i64 = 20;

static AIRPORTS: Table = Table::new(
    "airports",
    &[
        Column::timestamp("at").filterable().sortable(),
        Column::int("departures").filterable().sortable(),
        Column::int("delay_sum_min"),
        Column::float("delay_mean_min").filterable().sortable(),
        Column::int("alerts_raised").filterable().sortable(),
        Column::int("alerts_cleared"),
        Column::text("open_alert").nullable().filterable(),
    ],
);

/// What this processor reads of a flight's payload.
#[derive(Debug, Deserialize)]
struct Flight<'a> {
    #[serde(borrow)]
    origin: Cow<'a, str>,
    /// 32 bits, so that no sum of what a publisher sends overflows.
    dep_delay_min: Option<i32>,
}

/// The alert that is open, as it was raised.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
struct Open {
    raised_at: Timestamp,
    departures: i64,
    delay_sum_min: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
struct Airport {
    /// Time in microseconds and delay in minutes of each departure in the window, by time.
    window: VecDeque<(i64, i32)>,
    delay_sum_min: i64,
    raised: u64,
    cleared: u64,
    open: Option<Open>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    at: Timestamp,
    departures: i64,
    delay_sum_min: i64,
    delay_mean_min: f64,
    alerts_raised: u64,
    alerts_cleared: u64,
    open_alert: Option<&'a str>,
}

/// The payload of `alert.raised` and `alert.cleared`: all there is to know of the alert.
#[derive(Debug, Serialize)]
struct Alert<'a> {
    airport: &'a str,
    status: &'a str,
    raised_at: Timestamp,
    cleared_at: Option<Timestamp>,
    departures: i64,
    mean_delay_min: f64,
    cleared_mean_delay_min: Option<f64>,
}

/// The processor.
#[derive(Debug)]
pub struct DelayWatch {
    airports: BTreeMap<String, Airport>,
}

impl Airport {
    /// Counts a departure and forgets those that are no longer in the window. Answers the time now.
    fn add(&mut self, at: Timestamp, delay: i32) -> Timestamp {
        let now = self.window.back().map_or(at, |(newest, _)| at.max(Timestamp(*newest)));
        let begin = now.plus_minutes(-WINDOW_MINUTES).0;
        if at.0 > begin {
            let place = self.window.partition_point(|(time, _)| *time <= at.0);
            self.window.insert(place, (at.0, delay));
            self.delay_sum_min += i64::from(delay);
        }
        while let Some((_, delay)) = self.window.pop_front_if(|(time, _)| *time <= begin) {
            self.delay_sum_min -= i64::from(delay);
        }
        now
    }

    fn departures(&self) -> i64 {
        i64::try_from(self.window.len()).expect("a window has far fewer than 2^63 departures")
    }

    fn must_raise(&self) -> bool {
        self.open.is_none()
            && self.departures() >= RAISE_DEPARTURES_MIN
            && self.delay_sum_min > RAISE_OVER_MINUTES * self.departures()
    }

    fn must_clear(&self) -> bool {
        self.open.is_some() && self.delay_sum_min < CLEAR_UNDER_MINUTES * self.departures()
    }

    /// Adds a departure and asks for what follows from it. What an event can get wrong was checked before.
    fn depart(&mut self, origin: &str, at: Timestamp, delay: i32, out: &mut Effects) -> Result<(), Failure> {
        let now = self.add(at, delay);
        let mean = mean(self.delay_sum_min, self.departures());
        if self.must_raise() {
            self.raised += 1;
            let open =
                Open { raised_at: now, departures: self.departures(), delay_sum_min: self.delay_sum_min };
            self.open = Some(open);
            self.emit(origin, "alert.raised", now, &open.alert(origin), out)?;
        } else if self.must_clear()
            && let Some(open) = self.open.take()
        {
            self.cleared += 1;
            let alert = Alert {
                status: "cleared",
                cleared_at: Some(now),
                cleared_mean_delay_min: Some(mean),
                ..open.alert(origin)
            };
            self.emit(origin, "alert.cleared", now, &alert, out)?;
        }
        let open_alert = self.open.map(|_| self.alert_id(origin));
        let row = Row {
            at: now,
            departures: self.departures(),
            delay_sum_min: self.delay_sum_min,
            delay_mean_min: mean,
            alerts_raised: self.raised,
            alerts_cleared: self.cleared,
            open_alert: open_alert.as_deref(),
        };
        out.put(&AIRPORTS, origin, 0, &row)
    }

    /// The alert that was raised last.
    fn alert_id(&self, origin: &str) -> String {
        format!("{origin}/{}", self.raised)
    }

    fn emit(
        &self,
        origin: &str,
        event_type: &str,
        at: Timestamp,
        alert: &Alert<'_>,
        out: &mut Effects,
    ) -> Result<(), Failure> {
        let agg_id = self.alert_id(origin);
        let version = if alert.cleared_at.is_some() { 2 } else { 1 };
        let event = NewEvent {
            aggregate: "alert",
            agg_id: &agg_id,
            event_type,
            version,
            at: Some(at),
            ..NewEvent::default()
        };
        out.emit(&event, alert)
    }
}

impl Open {
    fn alert<'a>(&self, airport: &'a str) -> Alert<'a> {
        Alert {
            airport,
            status: "open",
            raised_at: self.raised_at,
            cleared_at: None,
            departures: self.departures,
            mean_delay_min: mean(self.delay_sum_min, self.departures),
            cleared_mean_delay_min: None,
        }
    }
}

/// Zero departures cannot be: the one that is asked about may have come too late for the window, but
/// then the newest is in it.
fn mean(sum: i64, departures: i64) -> f64 {
    sum as f64 / departures as f64
}

impl Processor for DelayWatch {
    fn manifest() -> Manifest {
        Manifest::new("delay-watch", env!("CARGO_PKG_VERSION"))
            .summary("Departure delays of each airport over an hour, and alerts while they are bad")
            .types(&["flight.departed"])
            .aggregates(&["flight"])
            .ordering_key(OrderingKey::PayloadField("origin"))
            .state(STATE)
            .tables(&[&AIRPORTS])
            .changes("alert", &[ChangeScope::Id, ChangeScope::Tenant, ChangeScope::field("airport")])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let airports = saved.map(|saved| saved.json(STATE)).transpose()?.unwrap_or_default();
        Ok(Self { airports })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let flight = event.payload_as::<Flight>()?;
        let delay = flight.dep_delay_min.ok_or_else(|| {
            Failure::reject(format!("flight {} departed without `dep_delay_min`", event.agg_id()))
        })?;
        check_airport(&flight.origin)?;
        if !self.airports.contains_key(&*flight.origin) {
            self.airports.insert(flight.origin.clone().into_owned(), Airport::default());
        }
        let airport = self.airports.get_mut(&*flight.origin).expect("it was put there if it was missing");
        airport.depart(&flight.origin, event.at(), delay, out)
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.airports).expect("texts and numbers can be written as JSON")
    }
}

/// An airport's code stands in keys and event ids: what could be refused there is refused here, before
/// the state changes.
fn check_airport(code: &str) -> Result<(), Failure> {
    const CODE_BYTES_MAX: usize = 64;
    if code.is_empty() || code.len() > CODE_BYTES_MAX || code.bytes().any(|b| b.is_ascii_control()) {
        return Err(Failure::reject(format!(
            "`origin` has {} bytes or holds a control character; 1 to {CODE_BYTES_MAX} are possible",
            code.len()
        )));
    }
    Ok(())
}

millrace_guest::export!(DelayWatch);

#[cfg(test)]
mod tests {
    use millrace_guest::FailureKind;
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};
    use serde_json::{Value, json};

    use super::*;

    /// A departure so many minutes after ten o'clock.
    fn departure(minute: i64, delay: i64) -> TestEvent {
        let payload = json!({"origin": "EWR", "dep_delay_min": delay});
        let mut event =
            TestEvent::new("flight", &format!("f{minute}"), 2, "flight.departed").payload(&payload);
        event.at = Timestamp::parse("2013-01-01T10:00:00Z").unwrap().plus_minutes(minute);
        event
    }

    fn types(driver: &Driver<DelayWatch>) -> Vec<(&str, &str, u64)> {
        driver.emitted().iter().map(|e| (e.event_type.as_str(), e.agg_id.as_str(), e.version)).collect()
    }

    #[test]
    fn the_fifth_departure_raises_when_the_mean_is_over_30() {
        let mut driver = Driver::<DelayWatch>::new();
        driver.send(&[1, 2, 3, 4].map(|m| departure(m, 31))).unwrap();
        assert!(driver.emitted().is_empty(), "four are too few");
        driver.send(&[departure(5, 31)]).unwrap();
        assert_eq!(types(&driver), [("alert.raised", "EWR/1", 1)]);
        let row = driver.row("airports", "EWR").unwrap();
        assert_eq!((&row["open_alert"], &row["departures"]), (&json!("EWR/1"), &json!(5)));
        assert_eq!(driver.emitted()[0].at, Timestamp::parse("2013-01-01T10:05:00Z").unwrap());
        assert_eq!(driver.emitted()[0].depth, 1);
    }

    #[test]
    fn a_mean_of_30_does_not_raise_and_one_of_20_does_not_clear() {
        let mut driver = Driver::<DelayWatch>::new();
        driver.send(&[1, 2, 3, 4, 5].map(|m| departure(m, 30))).unwrap();
        assert!(driver.emitted().is_empty());
        driver.send(&[departure(6, 36)]).unwrap(); // 186 / 6 = 31
        driver.send(&[departure(7, -46)]).unwrap(); // 140 / 7 = 20
        assert_eq!(types(&driver), [("alert.raised", "EWR/1", 1)]);
        driver.send(&[departure(8, 19)]).unwrap(); // 159 / 8 < 20
        assert_eq!(types(&driver)[1..], [("alert.cleared", "EWR/1", 2)]);
        let cleared = driver.emitted()[1].json();
        assert_eq!(cleared["raised_at"], "2013-01-01T10:06:00Z");
        assert_eq!(cleared["cleared_at"], "2013-01-01T10:08:00Z");
        assert_eq!((&cleared["departures"], &cleared["mean_delay_min"]), (&json!(6), &json!(31.0)));
        assert_eq!(driver.row("airports", "EWR").unwrap()["open_alert"], Value::Null);
    }

    #[test]
    fn a_departure_an_hour_ago_is_out_of_the_window() {
        let mut driver = Driver::<DelayWatch>::new();
        driver.send(&[departure(0, 100), departure(59, 1)]).unwrap();
        assert_eq!(driver.row("airports", "EWR").unwrap()["departures"], 2);
        driver.send(&[departure(60, 2)]).unwrap();
        let row = driver.row("airports", "EWR").unwrap();
        assert_eq!((&row["departures"], &row["delay_sum_min"]), (&json!(2), &json!(3)));
    }

    #[test]
    fn a_late_departure_is_counted_at_its_own_time() {
        let mut driver = Driver::<DelayWatch>::new();
        driver.send(&[departure(70, 5), departure(30, 7), departure(10, 9)]).unwrap();
        let row = driver.row("airports", "EWR").unwrap();
        assert_eq!((&row["departures"], &row["delay_sum_min"]), (&json!(2), &json!(12)), "10:10 is too old");
        assert_eq!(row["at"], "2013-01-01T11:10:00Z");
    }

    #[test]
    fn a_restart_keeps_the_window_and_the_open_alert() {
        let mut driver = Driver::<DelayWatch>::new();
        driver.send(&[1, 2, 3, 4, 5].map(|m| departure(m, 40))).unwrap();
        driver.restart().unwrap();
        driver.send(&[departure(6, 40), departure(7, -300)]).unwrap();
        assert_eq!(types(&driver), [("alert.raised", "EWR/1", 1), ("alert.cleared", "EWR/1", 2)]);
    }

    #[test]
    fn a_bad_departure_is_rejected_and_not_counted() {
        let mut driver = Driver::<DelayWatch>::new();
        let bad = departure(2, 1).payload(&json!({"origin": "", "dep_delay_min": 1}));
        let failed = driver.send(&[departure(1, 1), bad]).unwrap_err();
        assert_eq!((failed.index, failed.failure.kind), (1, FailureKind::Reject));
        assert_eq!(driver.rows("airports").len(), 1);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<DelayWatch>(&[1, 2, 3, 4, 5, 6].map(|m| departure(m, 40 * (6 - m))));
    }
}
