//! One run: tables, the engine, those who watch, and the laws.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace::gateway::live::{Anchor, Ask, Backend as _, InProcess};
use millrace::limits::LIVE_CHECK_EVERY;
use millrace::live::{LiveEngine, LiveQuery};
use millrace::tables::{Query, Row, RowCursor, Value};
use serde_json::{Value as Json, json, value::to_raw_value};

use super::ground::{Ground, acme};
use super::{Kind, Step, Tally, VIEWERS, board, query};
use crate::shelf::select;
use crate::viewer::Viewer;

/// Batches that a viewer remembers, to be cut there.
const TRAIL: usize = 24;
/// How long anything is waited for that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a viewer had after a batch, and the frames of that batch.
struct Cut {
    token: String,
    revision: u64,
    rows: Vec<Json>,
    frames: Bytes,
}

struct Watcher {
    viewer: Viewer,
    written: Json,
    trail: VecDeque<Cut>,
}

pub(super) struct World {
    ground: Ground,
    live: Arc<LiveEngine>,
    edge: InProcess,
    watchers: Vec<Option<Watcher>>,
    reads_held: bool,
    /// Since when, and how long at most.
    news_held: Option<Instant>,
    news_held_max: Duration,
    tally: Tally,
}

impl World {
    pub(super) async fn new(kind: Kind) -> Self {
        let (ground, live) = Ground::new(kind).await;
        let live = Arc::new(live);
        let edge = InProcess::new(live.clone(), Arc::new(ground.meddler.clone()), acme());
        let watchers = (0..VIEWERS).map(|_| None).collect();
        Self {
            ground,
            live,
            edge,
            watchers,
            reads_held: false,
            news_held: None,
            news_held_max: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    /// Lets the engine do what it can do.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(changes) => self.ground.commit(changes).await,
            Step::Elsewhere => self.ground.commit_elsewhere(),
            Step::Lose => self.ground.meddler.lose_news(),
            Step::Rebuild(rows) => self.ground.rebuild(rows).await,
            Step::AddColumn => self.ground.add_column().await,
            Step::HoldReads => {
                self.reads_held = true;
                self.ground.meddler.hold_reads();
            }
            Step::LetReadsGo => {
                self.reads_held = false;
                self.ground.meddler.let_reads_go();
            }
            Step::HoldNews => {
                self.news_held.get_or_insert_with(Instant::now);
                self.ground.meddler.hold_news();
            }
            Step::LetNewsGo => self.let_news_go(),
            Step::Ask(number, asked) => {
                let (asked, written) = query(asked);
                self.ask(*number, asked, written).await;
            }
            Step::Reanchor(number, at, limit) => self.reanchor(*number, *at, *limit).await,
            Step::Disconnect(number) => {
                if let Some(watcher) = &mut self.watchers[*number] {
                    watcher.viewer.disconnect();
                }
            }
            Step::Connect(number) => self.connect(*number).await,
            Step::Cut(number, back) => self.cut(*number, *back).await,
            Step::Take(number) => self.take(*number),
        }
        self.settle().await;
    }

    fn let_news_go(&mut self) {
        if let Some(since) = self.news_held.take() {
            self.news_held_max = self.news_held_max.max(since.elapsed());
        }
        self.ground.meddler.let_news_go();
    }

    async fn ask(&mut self, number: usize, asked: LiveQuery, written: Json) {
        let viewer = Viewer::new(acme(), asked);
        self.watchers[number] = Some(Watcher { viewer, written, trail: VecDeque::new() });
        self.connect(number).await;
    }

    /// What comes of it, unless that waits for a read that is held up.
    async fn unless_held<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        if !self.reads_held {
            let done = tokio::time::timeout(PATIENCE, what).await;
            return Some(done.expect("a query is answered unless reads are held up"));
        }
        let settled = async {
            self.settle().await;
            self.settle().await;
        };
        tokio::select! {
            biased;
            done = what => Some(done),
            () = settled => None,
        }
    }

    /// Connects, unless that would wait for a read that is held up: then it asks no more.
    async fn connect(&mut self, number: usize) {
        let Some(mut watcher) = self.watchers[number].take_if(|watcher| !watcher.viewer.is_connected())
        else {
            return;
        };
        let live = Arc::clone(&self.live);
        let connecting = async move {
            watcher.viewer.connect(&*live).await.expect("a good query");
            watcher
        };
        self.watchers[number] = self.unless_held(connecting).await;
    }

    /// Takes what there is, and compares after every batch.
    fn take(&mut self, number: usize) {
        let Some(mut watcher) = self.watchers[number].take() else { return };
        while let Some(batch) = watcher.viewer.take_now() {
            let batch = batch.expect("nothing fails");
            let Some(token) = batch.token() else { continue };
            self.holds(&watcher.viewer);
            if batch.names().any(|name| name == "ready") {
                // What it was told is not what somebody who was there all the time is told.
                watcher.trail.clear();
            } else if watcher.trail.len() == TRAIL {
                watcher.trail.pop_front();
            }
            let (token, revision) = (token.to_owned(), watcher.viewer.revision);
            let (rows, frames) = (watcher.viewer.rows.clone(), batch.list());
            watcher.trail.push_back(Cut { token, revision, rows, frames });
        }
        self.watchers[number] = Some(watcher);
    }

    /// The first law: what a client has is the answer to its query as of its revision.
    fn holds(&mut self, viewer: &Viewer) {
        self.tally.compared += 1;
        let expected = answer(self.ground.rows_at(viewer.revision), &viewer.query.query);
        let rows = plain(&viewer.rows);
        assert_eq!(rows, expected, "{:?} as of {}", viewer.query.query, viewer.revision);
    }

    /// The second law: who was cut off and comes back is told exactly what was told meanwhile to who was not.
    async fn cut(&mut self, number: usize, back: u8) {
        self.take(number);
        let Some(watcher) = self.watchers[number].take_if(|watcher| watcher.viewer.is_connected()) else {
            return;
        };
        let count = watcher.trail.len().max(1);
        let Some(cut) = watcher.trail.get(usize::from(back) % count) else {
            self.watchers[number] = Some(watcher);
            return;
        };
        let token = cut.token.clone();
        let mut other = Viewer::new(acme(), watcher.viewer.query.clone());
        (other.rows, other.token, other.revision) = (cut.rows.clone(), Some(cut.token.clone()), cut.revision);
        let live = Arc::clone(&self.live);
        let resumed = async move {
            other.connect(&*live).await.expect("a good query");
            let mut told: Vec<Bytes> = Vec::new();
            loop {
                let batch = other.take().await.expect("it goes on");
                if other.ready {
                    return (other, told);
                }
                told.push(batch.list());
            }
        };
        let resumed = self.unless_held(resumed).await;
        self.watchers[number] = Some(watcher);
        let Some((other, told)) = resumed else { return };
        assert!(!other.names.iter().any(|name| name == "gap" || name == "reset"), "it can be told all of it");
        self.holds(&other);
        // What came in the meantime has come to both.
        self.take(number);
        let Some(watcher) = &self.watchers[number] else { return };
        let Some(place) = watcher.trail.iter().position(|cut| cut.token == token) else { return };
        let missed: Vec<_> = watcher.trail.iter().skip(place + 1).map(|cut| cut.frames.clone()).collect();
        assert!(missed.starts_with(&told), "it is told what it missed: {missed:?}, not {told:?}");
        if missed.len() == told.len() && !told.is_empty() {
            assert_eq!(other.rows, watcher.viewer.rows, "and has what the other has");
            self.tally.resumed += 1;
        }
    }

    /// The third law: a window that was moved is what a fresh subscription from there is.
    async fn reanchor(&mut self, number: usize, at: u8, limit: u32) {
        let Some(watcher) = &self.watchers[number] else { return };
        let (mut asked, mut written) = (watcher.viewer.query.clone(), watcher.written.clone());
        let sub = self.edge.subscribe(Ask { query: to_raw_value(&written).expect("JSON"), resume: None });
        let before = watcher.viewer.rows.clone();
        let Some(sub) = self.unless_held(sub).await else { return };
        let mut sub = sub.expect("a good query");
        let row = (!before.is_empty()).then(|| &before[usize::from(at) % before.len()]);
        let cursor = row.map(|row| {
            let values = asked.query.order.iter().map(|part| row[&part.column].clone());
            let values: Vec<_> = values.chain([row["key"].clone()]).collect();
            json!({ "values": values })
        });
        let anchor = Anchor {
            cursor: Some(to_raw_value(&cursor.clone().unwrap_or_else(|| json!({}))).expect("JSON")),
            limit: Some(limit.into()),
        };
        let moved = async move {
            sub.reanchor(anchor).await.expect("a good place");
            sub
        };
        let Some(mut sub) = self.unless_held(moved).await else { return };
        asked.query.after = row.map(|row| place(row, &asked.query));
        asked.query.limit = limit;
        written["cursor"] = cursor.unwrap_or(Json::Null);
        written["limit"] = limit.into();
        let mut viewer = Viewer::new(acme(), asked.clone());
        while !viewer.ready {
            let next = tokio::time::timeout(PATIENCE, sub.next()).await.expect("it begins with its rows");
            viewer.follow(&next.expect("it goes on").expect("nothing fails"));
        }
        self.holds(&viewer);
        self.ask(number, asked, written).await;
        let Some(mut watcher) = self.watchers[number].take() else { return };
        let fresh = &mut watcher.viewer;
        let ready = tokio::time::timeout(PATIENCE, fresh.take_until_ready());
        ready.await.expect("it begins with its rows");
        self.holds(fresh);
        if fresh.revision == viewer.revision {
            let (moved, anew) = ((&viewer.rows, &viewer.names), (&fresh.rows, &fresh.names));
            assert_eq!(moved, anew, "moved, and subscribed afresh");
            self.tally.reanchored += 1;
        }
        self.watchers[number] = Some(watcher);
    }

    /// All that is held up is let go. In the end everybody has what there is.
    pub(super) async fn end(mut self) -> Tally {
        self.let_news_go();
        self.ground.meddler.let_reads_go();
        self.reads_held = false;
        for number in 0..VIEWERS {
            self.connect(number).await;
        }
        let begun = Instant::now();
        for number in 0..VIEWERS {
            loop {
                self.settle().await;
                self.take(number);
                let Some(Watcher { viewer, .. }) = &self.watchers[number] else { break };
                let expected = answer(&self.ground.rows(), &viewer.query.query);
                if plain(&viewer.rows) == expected {
                    break;
                }
                let query = &viewer.query.query;
                assert!(
                    begun.elapsed() < PATIENCE,
                    "{query:?} in the end: {:?}, not {expected:?}",
                    viewer.rows
                );
                // The store's own thread tells.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // News that come later than the next check are what a check cannot tell from drift.
        if self.news_held_max < LIVE_CHECK_EVERY / 2 {
            assert_eq!(self.live.repaired(), 0, "no view ever drifted from the store");
        }
        self.tally
    }
}

/// The place of a row in a query's order.
fn place(row: &Json, query: &Query) -> RowCursor {
    let value = |name: &str| match &row[name] {
        Json::Null => Value::Null,
        Json::String(text) => Value::Text(text.clone()),
        number => Value::Int(number.as_i64().expect("an integer")),
    };
    let values = query.order.iter().map(|part| value(&part.column)).collect();
    RowCursor { values, key: row["key"].as_str().expect("a key").into() }
}

/// Rows without the columns that were added in the course of a run, which are null in all of them.
fn plain(rows: &[Json]) -> Vec<Json> {
    let mut rows = rows.to_vec();
    for row in &mut rows {
        let columns = row.as_object_mut().expect("a row is an object");
        columns.retain(|name, value| !(name.starts_with("extra") && value.is_null()));
    }
    rows
}

/// What a client is to see of a row.
fn shown(row: &Row) -> Json {
    let plain = |value: &Value| match value {
        Value::Int(value) => json!(value),
        Value::Text(text) => json!(text),
        _ => Json::Null,
    };
    json!({"key": row.key, "rank": plain(&row.cells[0]), "team": plain(&row.cells[1]), "note": plain(&row.cells[2])})
}

fn answer(rows: &[Arc<Row>], query: &Query) -> Vec<Json> {
    let mut rows = select(&board(), rows, query);
    rows.truncate(query.limit as usize);
    rows.iter().map(|row| shown(row)).collect()
}
