//! Every window that viewers are shown before, during and after a flip, while events come: compared with what the version
//! that served at its revision makes of the events which were handled by then.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millrace::backends::sqlite::{CommitStep, SqliteOptions, StepObserver};
use millrace::event::Position;
use millrace::live::LiveEngine;
use millrace::plugins::RebuildStage;
use millrace::streams::{EventLog, PageLimit};
use millrace_tests::viewer::Viewer;
use tokio::task::JoinSet;

use super::super::{Rig, many, wait};
use super::{borrowed, engine, expected, shown, tenant, window};

/// Windows that are wanted of each time: before, during and after.
const WINDOWS: usize = 20;
/// More than a rebuild may be behind when it tries to take over: it does not have the old version stand before it can.
const BACKLOG: usize = 2_600;
/// Of a window.
const ROWS: usize = 10;

/// Key, count and version.
type Window = Vec<(String, String, String)>;

/// By revision: a task of the plugin, and how far it was.
type Commits = Arc<Mutex<BTreeMap<u64, (i64, u64)>>>;

/// Notes each commit of the plugin's task in the store's own file, before anybody is told of it.
fn noted(dir: Arc<OnceLock<PathBuf>>, commits: Commits) -> StepObserver {
    let db: Mutex<Option<rusqlite::Connection>> = Mutex::default();
    StepObserver(Arc::new(move |step| {
        if step != CommitStep::Synced {
            return;
        }
        let mut db = db.lock().expect("test");
        let db = db.get_or_insert_with(|| {
            let dir = dir.get().expect("the store has a folder");
            rusqlite::Connection::open(dir.join("millrace.db")).expect("it opens")
        });
        let sql = "SELECT id, revision, position FROM tasks WHERE processor = 'alpha' AND revision > 0";
        let mut statement = db.prepare_cached(sql).expect("the store has tasks");
        let mut rows = statement.query([]).expect("they can be read");
        while let Some(row) = rows.next().expect("they can be read") {
            let number = |at| u64::try_from(row.get::<_, i64>(at).expect("a number")).expect("not negative");
            let task = row.get(0).expect("a number");
            commits.lock().expect("test").insert(number(1), (task, number(2)));
        }
    }))
}

/// What a viewer was shown, by revision.
#[derive(Debug, Default)]
struct Shown {
    windows: Mutex<Vec<(u64, Window)>>,
    names: Mutex<Vec<String>>,
}

impl Shown {
    fn count(&self) -> usize {
        self.windows.lock().expect("test").len()
    }
}

/// Takes in what comes until it is told to stop. With `leaves` it goes away after so many batches, and comes back.
async fn watch(live: Arc<LiveEngine>, shown_to: Arc<Shown>, leaves: Option<usize>, stop: Arc<AtomicBool>) {
    let mut viewer = Viewer::new(tenant(), window());
    viewer.connect(&*live).await.expect("it can watch");
    let mut taken = 0;
    while !stop.load(Ordering::SeqCst) {
        let Ok(batch) = tokio::time::timeout(Duration::from_millis(50), viewer.take()).await else {
            continue;
        };
        let batch = batch.expect("the view goes on");
        if viewer.ready && batch.token().is_some() {
            shown_to.windows.lock().expect("test").push((viewer.revision, shown(&viewer)));
            taken += 1;
            if leaves.is_some_and(|leaves| taken % leaves == 0) {
                viewer.disconnect();
                viewer.connect(&*live).await.expect("it comes back");
            }
        }
        shown_to.names.lock().expect("test").append(&mut viewer.names);
    }
}

/// Keys of all events, by position.
async fn log(rig: &Rig) -> Vec<(u64, String)> {
    let (mut found, mut after) = (Vec::new(), Position::START);
    loop {
        let limit = PageLimit { events: 1_000, bytes: 1 << 20 };
        let page = rig.store.read(&tenant(), after, limit).await.expect("the log can be read");
        found.extend(page.events.iter().map(|event| (event.position.0, event.agg_id.to_owned())));
        if page.next <= after {
            return found;
        }
        after = page.next;
    }
}

/// What a version makes of the events up to a position: the old one counts one too many of each key.
fn folded(log: &[(u64, String)], until: u64, is_new: bool) -> Window {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, key) in log.iter().take_while(|(position, _)| *position <= until) {
        *counts.entry(key).or_default() += 1;
    }
    let mut all: Vec<_> = counts.into_iter().map(|(key, count)| (Reverse(count), key)).collect();
    all.sort_unstable();
    let (more, by) = if is_new { (0, "2") } else { (1, "1") };
    let row = |(Reverse(count), key): (Reverse<u64>, &str)| {
        (key.to_owned(), (count + more).to_string(), by.to_owned())
    };
    all.into_iter().take(ROWS).map(row).collect()
}

/// What there was at each revision, by the commits of the store and the flip.
struct Oracle {
    log: Vec<(u64, String)>,
    /// How far the version was that served.
    positions: BTreeMap<u64, u64>,
    flip: u64,
}

impl Oracle {
    fn at(&self, revision: u64) -> Window {
        let position = self.positions.range(..=revision).next_back().map_or(0, |(_, position)| *position);
        folded(&self.log, position, revision >= self.flip)
    }
}

/// Also for who goes away and comes back, and whatever columns there are: after the first window come differences alone.
async fn windows_are_exact(version: &'static str) {
    let (dir, commits) = (Arc::new(OnceLock::new()), Commits::default());
    let observer = noted(Arc::clone(&dir), Arc::clone(&commits));
    let options = |options: SqliteOptions| {
        dir.set(options.dir.clone()).expect("once");
        SqliteOptions { observer: Some(observer), ..options }
    };
    let rig = Arc::new(Rig::with(options, |store| Arc::new(store.clone()), BTreeMap::new()));
    let live = Arc::new(engine(&rig));
    rig.deploy("alpha 1 wrong").await.expect("it is deployed");
    rig.publish(&borrowed(&many(BACKLOG, 15, "add"))).await;
    rig.settle("alpha").await;

    let (stop, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (steady, restless) = (Arc::new(Shown::default()), Arc::new(Shown::default()));
    let mut viewers = JoinSet::new();
    viewers.spawn(watch(Arc::clone(&live), Arc::clone(&steady), None, Arc::clone(&stop)));
    viewers.spawn(watch(Arc::clone(&live), Arc::clone(&restless), Some(3), Arc::clone(&stop)));
    let (publisher, done) = (Arc::clone(&rig), Arc::clone(&over));
    let mut published = JoinSet::new();
    published.spawn(async move {
        let mut round = 0;
        while !done.load(Ordering::SeqCst) {
            // Of other keys each time, so that rows change places.
            let events: Vec<_> =
                (0..5).map(|n| (format!("k{}", (round * 7 + n * n) % 15), "add", "1")).collect();
            publisher.publish(&borrowed(&events)).await;
            round += 1;
            // A scripted processor writes down every event that it ever had: not too many of them.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let more = async |what: &str| {
        let wanted = [steady.count() + WINDOWS, restless.count() + WINDOWS];
        wait(what, async || steady.count() >= wanted[0] && restless.count() >= wanted[1]).await;
    };
    more("windows are shown before").await;
    rig.rebuild("alpha", Some(version)).await.expect("it begins");
    let begun = steady.count();
    more("windows are shown while it fills").await;
    assert_eq!(rig.view("alpha").await.stage, RebuildStage::Filling, "no instance of it is made yet");
    rig.open_gate();
    let flip = rig.flipped("alpha").await.report.expect("it tells what it did");
    more("windows are shown after").await;
    over.store(true, Ordering::SeqCst);
    published.join_next().await.expect("it publishes").expect("it ends well");
    rig.settle("alpha").await;
    let last = expected(&rig).await;
    let are_shown = async || {
        let shows = |shown: &Shown| {
            shown.windows.lock().expect("test").last().is_some_and(|(_, window)| *window == last)
        };
        shows(&steady) && shows(&restless)
    };
    wait("both are shown what is stored", are_shown).await;
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = viewers.join_next().await {
        ended.expect("a viewer ends well");
    }

    let commits = commits.lock().expect("test").clone();
    let old = commits.values().next().expect("it has committed").0;
    // What the new task has committed before the flip nobody saw.
    let served = commits.iter().filter(|(revision, (task, _))| *task == old || **revision > flip.revision);
    let mut positions: BTreeMap<u64, u64> =
        served.map(|(revision, (_, position))| (*revision, *position)).collect();
    positions.insert(flip.revision, flip.barrier);
    let oracle = Oracle { log: log(&rig).await, positions, flip: flip.revision };
    let newest = oracle.log.last().expect("there are events").0;
    assert_eq!(last, folded(&oracle.log, newest, true), "nothing is lost or doubled");
    for shown in [&steady, &restless] {
        let windows = shown.windows.lock().expect("test");
        assert!(windows.is_sorted_by_key(|(revision, _)| *revision), "revisions never go back");
        for (revision, window) in &*windows {
            assert_eq!(*window, oracle.at(*revision), "at revision {revision}, flipped at {}", flip.revision);
        }
        let before = windows.iter().filter(|(revision, _)| *revision < flip.revision).count();
        assert!(before >= WINDOWS && windows.len() - before >= WINDOWS, "{before} of {}", windows.len());
    }
    let during = steady.windows.lock().expect("test")[begun].0;
    assert!(during < flip.revision, "windows were shown while it filled");
    for (who, shown) in [("who stays", &steady), ("who comes back", &restless)] {
        let names = shown.names.lock().expect("test");
        let ready = names.iter().position(|name| name == "ready").expect("it became ready");
        let anew = names[ready + 1..].iter().filter(|name| matches!(name.as_str(), "reset" | "gap")).count();
        assert_eq!(anew, 0, "{who} is told the differences: {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_see_exact_windows_throughout() {
    windows_are_exact("alpha 2 waits").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_see_exact_windows_throughout_where_the_new_version_has_another_column() {
    windows_are_exact("alpha 2 waits int").await;
}
