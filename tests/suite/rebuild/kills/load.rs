//! Events without end for a host that is killed, somebody who watches what becomes of them, and what must be seen.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millrace::live::{LiveQuery, Mode};
use millrace::tables::{Order, Query};
use millrace_tests::viewer::Viewer;
use reqwest::{Client, Response};
use serde_json::{Value as Json, json};

use super::super::tenant;

pub(super) const TABLE: &str = "counters";
pub(super) const QUERY: &str = "order=events:desc&limit=8";
const WINDOW: usize = 8;
/// More than the window has rows, so that rows enter and leave it.
const KEYS: u64 = 12;
const TYPES: [&str; 3] = ["added", "changed", "seen"];
/// Of one upload. The next one follows its answer at once.
const UPLOAD: u64 = 20;
/// Windows after which the viewer breaks off and comes back with its last id.
const WINDOWS_AT_ONCE: usize = 100;
const AGAIN: Duration = Duration::from_millis(5);
/// A host that has started knows nothing of what its former process told, and tells all. Nobody else does.
const PROCESSES: usize = 2;

/// The events of a run by their numbers. The first ones have a key each, and none of the others'.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    pub(super) single: u64,
}

impl Events {
    fn of(self, number: u64) -> (String, &'static str) {
        let index = usize::try_from(number % 3).expect("small");
        if number < self.single {
            return (format!("single-{number}"), TYPES[index]);
        }
        // Nearly level, so that rows change places all the time.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (format!("key-{:02}", mixed % KEYS), TYPES[index])
    }

    pub(super) fn upload(self, numbers: Range<u64>) -> String {
        numbers.fold(String::new(), |text, number| {
            let (agg_id, event_type) = self.of(number);
            let line = json!({
                "aggregate": "thing", "agg_id": agg_id, "version": number + 1, "type": event_type,
                "at": "2013-01-01T00:00:00Z", "payload": {},
            });
            text + &line.to_string() + "\n"
        })
    }
}

/// Publishes one event behind the other, as fast as they are taken.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    pub(super) url: String,
    pub(super) events: Events,
    /// Events that are acknowledged.
    pub(super) done: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Publisher {
    /// Answers how many there are in the end. What has no answer is published again.
    pub(super) async fn run(self) -> Result<u64> {
        let client = Client::builder().no_proxy().build()?;
        let mut is_open = false;
        loop {
            let from = self.done.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) && !is_open {
                return Ok(from);
            }
            is_open = true;
            let body = self.events.upload(from..from + UPLOAD);
            let request = client.post(format!("{}/v1/events", self.url));
            let answer = request.header("content-type", "application/x-ndjson").body(body).send().await;
            let text = match answer {
                Ok(answer) if answer.status().is_success() => answer.text().await.unwrap_or_default(),
                _ => String::new(),
            };
            let taken = text.lines().filter(|line| line.contains("\"position\"")).count() as u64;
            if taken == UPLOAD {
                self.done.store(from + UPLOAD, Ordering::SeqCst);
                is_open = false;
            } else {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// A row as it is shown. The old version has no second column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    key: String,
    events: u64,
    last_type: Option<Json>,
}

/// Rows of a window or a page.
pub(super) fn rows(of: &[Json]) -> Result<Vec<Row>> {
    let row = |row: &Json| {
        let key = row["key"].as_str().context("a row has a key")?.to_owned();
        let events = row["events"].as_u64().with_context(|| format!("a row has a count: {row}"))?;
        Ok(Row { key, events, last_type: row.get("last_type").cloned() })
    };
    of.iter().map(row).collect()
}

/// A window that somebody was shown, and what it is exact at.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) revision: u64,
    pub(super) rows: Vec<Row>,
    /// It was told whole, and not by what is different.
    anew: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fold {
    Old,
    New,
}

impl Shown {
    fn fold(&self) -> Result<Fold> {
        let with = self.rows.iter().filter(|row| row.last_type.is_some()).count();
        match with {
            0 => Ok(Fold::Old),
            all if all == self.rows.len() => Ok(Fold::New),
            _ => bail!("rows of both versions at once: {self:?}"),
        }
    }
}

pub(super) type Seen = Arc<Mutex<Vec<Shown>>>;

/// Watches the window for as long as it may, and comes back with its last id whenever it was cut off.
pub(super) async fn watch(url: String, seen: Seen) -> Result<()> {
    let client = Client::builder().no_proxy().build()?;
    let order = vec![Order { column: "events".into(), descending: true }];
    let query = Query { limit: 8, order, ..Query::all(TABLE) };
    let mut viewer = Viewer::new(tenant(), LiveQuery { query, mode: Mode::Maintained, columns: None });
    loop {
        let mut request =
            client.get(format!("{url}/v1/live?table={TABLE}&{QUERY}")).header("accept", "text/event-stream");
        if let Some(token) = &viewer.token {
            request = request.header("last-event-id", token);
        }
        match request.send().await {
            Ok(stream) if stream.status().is_success() => follow(stream, &mut viewer, &seen).await?,
            Ok(refused) if refused.status().is_client_error() => bail!("refused: {}", refused.text().await?),
            // It is down.
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Takes in what comes, until it is cut off or has had enough. What came of a commit without its end is forgotten:
/// the id is that of the commit before, and all of it comes again.
async fn follow(mut stream: Response, viewer: &mut Viewer, seen: &Seen) -> Result<()> {
    let mut whole = (viewer.rows.clone(), viewer.ready);
    let (mut rest, mut windows) = (Vec::<u8>::new(), 0);
    while windows < WINDOWS_AT_ONCE {
        let Some(at) = rest.windows(2).position(|two| two == b"\n\n") else {
            match stream.chunk().await {
                Ok(Some(chunk)) => rest.extend_from_slice(&chunk),
                _ => break,
            }
            continue;
        };
        let event: Vec<u8> = rest.drain(..at + 2).collect();
        let event = String::from_utf8(event)?;
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let Some(data) = field("data: ") else { continue };
        if field("event: ") == Some("error") {
            break;
        }
        viewer.obey(&serde_json::from_str(data)?);
        let Some(id) = field("id: ") else { continue };
        let revision: u64 = id.split('.').nth(1).context("an id has a revision")?.parse()?;
        ensure!(revision >= viewer.revision, "back from {} to {revision}", viewer.revision);
        (viewer.revision, viewer.token) = (revision, Some(id.to_owned()));
        let anew = viewer.names.iter().any(|name| name == "reset");
        viewer.names.clear();
        whole = (viewer.rows.clone(), viewer.ready);
        if viewer.ready {
            let rows = rows(&viewer.rows)?;
            seen.lock().expect("test").push(Shown { revision, rows, anew });
            windows += 1;
        }
    }
    (viewer.rows, viewer.ready) = whole;
    viewer.names.clear();
    Ok(())
}

/// What both versions make of the first so many events: plain counts, with nothing of guest or host in it.
#[derive(Debug)]
struct Model {
    events: Events,
    at: u64,
    counts: BTreeMap<String, (u64, &'static str)>,
}

impl Model {
    fn step(&mut self) {
        let (key, event_type) = self.events.of(self.at);
        self.at += 1;
        // A single event never comes into a window of those that have many.
        if self.at > self.events.single {
            let (count, last_type) = self.counts.entry(key).or_default();
            (*count, *last_type) = (*count + 1, event_type);
        }
    }

    fn shows(&self, fold: Fold, rows: &[Row]) -> bool {
        let is = |row: &Row| {
            self.counts.get(&row.key).is_some_and(|(events, last_type)| {
                let last_type = (fold == Fold::New).then(|| Json::from(*last_type));
                row.events == *events && row.last_type == last_type
            })
        };
        if !rows.iter().all(is) {
            return false;
        }
        let mut all: Vec<_> = self.counts.iter().map(|(key, (events, _))| (Reverse(*events), key)).collect();
        all.sort();
        all.truncate(WINDOW);
        all.into_iter().map(|(_, key)| key).eq(rows.iter().map(|row| &row.key))
    }
}

/// Every window is what one version makes of the first so many events, never of fewer than the window before; the
/// old version's come first, then the new one's, and the last one is of all events. Whoever watches is told what is
/// different, also where the one version's windows end and the other's begin.
pub(super) fn check(seen: &[Shown], events: Events, published: u64) -> Result<()> {
    let mut model = Model { events, at: 0, counts: BTreeMap::new() };
    let mut before: Option<(&Shown, Fold)> = None;
    let mut of_each = [0, 0];
    for shown in seen {
        let fold = shown.fold()?;
        if let Some((last, its_fold)) = before {
            ensure!(last.revision <= shown.revision, "{shown:?} comes after {last:?}");
            let differs = last.revision == shown.revision && last.rows != shown.rows;
            ensure!(!differs, "two windows of one revision: {last:?} and {shown:?}");
            ensure!(fold == Fold::New || its_fold == Fold::Old, "the old version is back: {shown:?}");
        }
        let from = model.at;
        while !model.shows(fold, &shown.rows) {
            ensure!(
                model.at < published,
                "of no {from} or more events: {fold:?} {shown:?}, after {before:?}"
            );
            model.step();
        }
        of_each[usize::from(fold == Fold::New)] += 1;
        before = Some((shown, fold));
    }
    ensure!(of_each.iter().all(|windows| *windows > 0), "windows of either version: {of_each:?}");
    while model.at < published {
        model.step();
    }
    let anew: Vec<u64> = seen.iter().filter(|shown| shown.anew).map(|shown| shown.revision).collect();
    ensure!(anew.len() <= PROCESSES, "more than one whole window of a process, at {anew:?}");
    let last = seen.last().context("something was shown")?;
    ensure!(model.shows(Fold::New, &last.rows), "the last window is not of all {published} events: {last:?}");
    Ok(())
}

#[test]
fn a_window_of_no_beginning_of_the_events_is_found() {
    let events = Events { single: 3 };
    let mut model = Model { events, at: 0, counts: BTreeMap::new() };
    let mut seen = Vec::new();
    for revision in 0..400 {
        model.step();
        let fold = if revision < 200 { Fold::Old } else { Fold::New };
        let mut rows: Vec<Row> = model
            .counts
            .iter()
            .map(|(key, (events, last_type))| Row {
                key: key.clone(),
                events: *events,
                last_type: (fold == Fold::New).then(|| Json::from(*last_type)),
            })
            .collect();
        rows.sort_by(|one, other| (Reverse(one.events), &one.key).cmp(&(Reverse(other.events), &other.key)));
        rows.truncate(WINDOW);
        if revision > 100 {
            seen.push(Shown { revision, rows, anew: revision == 101 });
        }
    }
    check(&seen, events, 400).expect("every window is exact");
    let wrong: [fn(&mut Vec<Shown>); 7] = [
        |seen| seen[20].rows[0].events += 3,
        |seen| seen[20].rows.swap(0, 1),
        |seen| drop(seen[20].rows.pop()),
        |seen| seen[20].rows[3] = seen[20].rows[2].clone(),
        |seen| seen.swap(20, 90),
        |seen| drop(seen.drain(250..)),
        |seen| [150, 160].into_iter().for_each(|at| seen[at].anew = true),
    ];
    for (number, spoil) in wrong.iter().enumerate() {
        let mut spoiled = seen.clone();
        spoil(&mut spoiled);
        assert!(check(&spoiled, events, 400).is_err(), "mistake {number} is not seen");
    }
}
