//! Subscribing and moving windows while two lanes of the embedded store write as fast as they can: whoever came at
//! whatever moment has, in the end, what the store has; nothing is missing and nothing is there twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, Generation, TaskId};
use millrace::gateway::live::{Anchor, Ask, Backend as _, InProcess, Sub};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQueries as _, LiveQuery, Mode, Subscribe};
use millrace::streams::EventLog as _;
use millrace::tables::{Cell, Order, Query, RowCursor, TableSchema, TableStore, Value};
use serde_json::{json, value::to_raw_value};

use crate::conformance::effects::{Effects, commit, table, task, tenant};
use crate::viewer::Viewer;

const READERS: usize = 4;
/// How long anything is waited for that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a race came to. Its readers panic where a row is missing or there twice.
#[derive(Clone, Copy, Debug)]
pub struct Raced {
    pub subscribed: usize,
    pub reanchored: usize,
    pub commits: usize,
    /// Windows that were compared with the store's answer at the very same revision.
    pub compared: usize,
}

#[derive(Debug, Default)]
struct Counts {
    rounds: AtomicUsize,
    reanchored: AtomicUsize,
    commits: AtomicUsize,
    compared: AtomicUsize,
}

struct Field {
    store: SqliteStore,
    live: Arc<LiveEngine>,
    edge: InProcess,
    counts: Counts,
    over: AtomicBool,
}

fn by_n(limit: u32) -> LiveQuery {
    let order = vec![Order { column: "n".into(), descending: false }];
    LiveQuery { query: Query { order, limit, ..Query::all("rows") }, mode: Mode::Maintained, columns: None }
}

/// Subscribes, or moves a window, so many times. `progress` is told how many are done, now and then.
#[expect(clippy::disallowed_methods, reason = "the race owns its tasks and joins them")]
pub async fn race(rounds: usize, mut progress: impl FnMut(usize)) -> Raced {
    let dir = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a store");
    let tables = [table("rows", false)];
    store.declare("board", &tables).await.expect("a good table");
    // Often, and so that news may be a second late: the machine may have other things to do.
    let every = Duration::from_millis(50);
    let live = LiveEngine::checked_every(every, Arc::new(store.clone()), store.epoch(), LIVE_VIEWS_MAX);
    let live = Arc::new(live);
    let edge = InProcess::new(live.clone(), Arc::new(store.clone()), tenant("acme"));
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    let field = Arc::new(Field { store, live, edge, counts, over });
    let mut writers = Vec::new();
    for lane in 0..2 {
        let owner = task("board", "acme", lane);
        let (generation, _) = field.store.claim(&owner).await.expect("a claim");
        writers.push(tokio::spawn(write(Arc::clone(&field), owner, generation, tables.clone())));
    }
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..READERS {
        let field = Arc::clone(&field);
        readers.spawn(async move {
            for round in 0..rounds / READERS {
                read(&field, number, round).await;
                field.counts.rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            reader = readers.join_next() => match reader {
                Some(reader) => reader.expect("no reader panics"),
                None => break,
            },
            _ = tick.tick() => progress(field.counts.rounds.load(Ordering::Relaxed)),
        }
    }
    field.over.store(true, Ordering::Release);
    for writer in writers {
        writer.await.expect("no writer panics");
    }
    let mut last = Viewer::new(tenant("acme"), by_n(50));
    last.connect(&*field.live).await.expect("a good query");
    last.take_until_ready().await;
    let page = field.store.query(&tenant("acme"), &by_n(50).query).await.expect("a good query");
    assert_eq!(last.keys(), page.rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>());
    assert_eq!(field.live.repaired(), 0, "no view ever drifted from the store");
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let (rounds, reanchored) = (count(&field.counts.rounds), count(&field.counts.reanchored));
    Raced {
        subscribed: rounds - reanchored,
        reanchored,
        commits: count(&field.counts.commits),
        compared: count(&field.counts.compared),
    }
}

/// Rows change places, come and go.
async fn write(field: Arc<Field>, owner: TaskId, generation: Generation, tables: [TableSchema; 1]) {
    let mut n = 0_i64;
    while !field.over.load(Ordering::Acquire) {
        n += 1;
        let mut effects = Effects::default();
        for row in 0..5 {
            let key = format!("l{}-{}", owner.lane, (n * 7 + row * 3) % 20);
            if (n + row) % 4 == 0 {
                effects.delete(&key, 1);
            } else {
                effects.put(&key, 1, &[Cell::Int(n), Cell::Text(&key)]);
            }
        }
        let commit = commit(&owner, generation, 1, &tables, &mut effects);
        field.store.commit(commit).await.expect("a good commit");
        field.counts.commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// One comes: afresh, or with a window that it moves.
async fn read(field: &Field, reader: usize, round: usize) {
    let mut asked = by_n(u32::try_from(1 + 5 * ((round + reader) % 6)).expect("small"));
    asked.query.order[0].descending = round.is_multiple_of(3);
    let mut sub = if round % 2 == 1 {
        field.counts.reanchored.fetch_add(1, Ordering::Relaxed);
        reanchored(field, &mut asked, i64::try_from(8 * (round % 5)).expect("small")).await
    } else {
        let subscribe = Subscribe { tenant: tenant("acme"), query: asked.clone(), resume: None };
        let subscription = field.live.subscribe(subscribe).await.expect("a good query");
        let batches =
            futures_util::StreamExt::map(subscription.batches, |batch| Ok(batch.expect("it goes on")));
        Sub::new("fresh", Box::pin(batches))
    };
    let mut viewer = Viewer::new(tenant("acme"), asked.clone());
    while !viewer.ready {
        let next = tokio::time::timeout(PATIENCE, sub.next()).await.expect("it begins with its rows");
        viewer.follow(&next.expect("it goes on").expect("nothing fails"));
    }
    let soon = Duration::from_millis(3);
    let take = async |viewer: &mut Viewer, sub: &mut Sub| match tokio::time::timeout(soon, sub.next()).await {
        Ok(next) => {
            viewer.follow(&next.expect("it goes on").expect("nothing fails"));
            true
        }
        // Nothing of its window may ever change again.
        Err(_) => false,
    };
    for _ in 0..round % 3 {
        take(&mut viewer, &mut sub).await;
    }
    // What the store has at the viewer's revision is what it has, once it got there.
    let page = field.store.query(&tenant("acme"), &asked.query).await.expect("a good query");
    while viewer.revision < page.revision.0 && take(&mut viewer, &mut sub).await {}
    if viewer.revision == page.revision.0 {
        let keys: Vec<_> = page.rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(viewer.keys(), keys, "as of {}", page.revision);
        field.counts.compared.fetch_add(1, Ordering::Relaxed);
    }
    let gaps = viewer.names.iter().filter(|name| *name == "gap").count();
    assert_eq!(gaps, 0, "nobody who reads is left behind");
    let mut keys = viewer.keys();
    keys.sort_unstable();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count, "no row is there twice");
}

/// Subscribes at the head and moves the window behind a row.
async fn reanchored(field: &Field, asked: &mut LiveQuery, n: i64) -> Sub {
    let desc = asked.query.order[0].descending;
    let query = json!({
        "table": "rows", "sort": [{"column": "n", "desc": desc}], "limit": asked.query.limit,
    });
    let ask = Ask { query: to_raw_value(&query).expect("JSON"), resume: None };
    let mut sub = field.edge.subscribe(ask).await.expect("a good query");
    let cursor = to_raw_value(&json!({"values": [n, "l0-5"]})).expect("JSON");
    sub.reanchor(Anchor { cursor: Some(cursor), limit: None }).await.expect("a good place");
    asked.query.after = Some(RowCursor { values: vec![Value::Int(n)], key: "l0-5".into() });
    sub
}
