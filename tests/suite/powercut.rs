//! Claims about power cuts: what was acknowledged is there, and rows agree with positions.

mod channels;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::CheckpointStore;
use millrace::event::{Position, TenantId};
use millrace::streams::{ChangeStream, EventLog, PageLimit, StreamName};
use millrace::tables::{Query, TableStore, Value};
use millrace_tests::cuts::same_folder;
use millrace_tests::powercut::{Action, Record, Shim, Unsynced, build_shim, read_journal, rebuild};
use millrace_tests::workspace_binary;

const EVENTS: u64 = 240;
const CUTS: usize = 60;

/// Runs the process under the shim; answers its folder and what it did to it.
fn run(synchronous: &str) -> (tempfile::TempDir, Vec<Record>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = dir.path().join("store");
    std::fs::create_dir(&store).expect("a folder");
    let shim = Shim {
        library: build_shim(dir.path()).expect("the shim is built"),
        folder: store.clone(),
        journal: dir.path().join("journal"),
    };
    let status = Command::new(workspace_binary("millrace-powercut"))
        .args([store.to_str().expect("a UTF-8 path"), synchronous, &EVENTS.to_string()])
        .envs(shim.env())
        .status()
        .expect("the process starts");
    assert!(status.success(), "{status}");
    let records = read_journal(&dir.path().join("journal")).expect("a journal");
    (dir, records)
}

/// Cut points all over the run: just before and after syncs, and in between.
fn cuts(records: &[Record]) -> Vec<usize> {
    let step = (records.len() / CUTS).max(1);
    let mut cuts: Vec<usize> = (step..records.len()).step_by(step).collect();
    let syncs = records.iter().enumerate().filter(|(_, r)| matches!(r.action, Action::Sync { .. }));
    let syncs: Vec<usize> = syncs.map(|(index, _)| index).collect();
    let stride = (syncs.len() / 20).max(1);
    cuts.extend(syncs.iter().step_by(stride).flat_map(|index| [*index, index + 1]));
    cuts
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Whole,
    Lost(String),
}

/// What is left in a folder after a cut, held against the notes in it.
async fn look(dir: &Path) -> Found {
    let notes = std::fs::read_to_string(dir.join("acknowledged")).unwrap_or_default();
    let store = match SqliteStore::open(SqliteOptions::new(dir)) {
        Ok(store) => store,
        Err(error) => return Found::Lost(format!("the store does not open: {error}")),
    };
    let tenant = TenantId::new("default").expect("a good name");
    let mut events = BTreeMap::new();
    let mut after = Position::START;
    loop {
        let limit = PageLimit { events: 1_000, bytes: 1 << 20 };
        let page = match store.read(&tenant, after, limit).await {
            Ok(page) => page,
            Err(error) => return Found::Lost(format!("the log cannot be read: {error}")),
        };
        if page.events.is_empty() {
            break;
        }
        for event in page.events.iter() {
            events.insert(event.position.0, (event.agg_id.to_owned(), event.version));
        }
        after = page.next;
    }
    if let Err(lost) = channels::look(&store, &tenant, &notes).await {
        return Found::Lost(lost);
    }
    for line in notes.lines().filter(|line| !line.starts_with("entry ")) {
        let mut words = line.split(' ');
        let (Some(agg_id), Some(version), Some(position)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let expected = (agg_id.to_owned(), version.parse().expect("a version"));
        if events.get(&position.parse().expect("a position")) != Some(&expected) {
            return Found::Lost(format!("acknowledged and gone: {line}"));
        }
    }
    if let Err(lost) = look_at_changes(&store, &tenant, &events).await {
        return Found::Lost(lost);
    }
    let Ok(tasks) = store.tasks(Some("scripted")).await else { return Found::Lost("no tasks".into()) };
    let committed = tasks.first().map_or(0, |task| task.position.0);
    let mut expected = std::collections::BTreeMap::new();
    for (agg_id, _) in events.range(..=committed).map(|(_, event)| event) {
        *expected.entry(agg_id.clone()).or_insert(0_i64) += 1;
    }
    let rows = match store.query(&tenant, &Query::all("counts")).await {
        Ok(page) => page.rows,
        Err(error) if committed == 0 => {
            assert_eq!(millrace::error::Classify::code(&error), "table_unknown", "{error}");
            Vec::new()
        }
        Err(error) => return Found::Lost(format!("the table cannot be read: {error}")),
    };
    let found: std::collections::BTreeMap<String, i64> = rows
        .into_iter()
        .map(|row| (row.key, if let Value::Int(count) = row.cells[0] { count } else { -1 }))
        .collect();
    store.close().await;
    if found == expected {
        Found::Whole
    } else {
        Found::Lost(format!("rows {found:?}, events say {expected:?}"))
    }
}

/// Change streams have the events that the log has, whichever they are.
async fn look_at_changes(
    store: &SqliteStore,
    tenant: &TenantId,
    events: &BTreeMap<u64, (String, u64)>,
) -> Result<(), String> {
    let mut expected: BTreeMap<StreamName, Vec<u64>> = BTreeMap::new();
    for (position, (agg_id, _)) in events {
        for (scope, id) in [("id", agg_id.as_str()), ("tenant", "")] {
            let stream = StreamName::Changes(ChangeStream::new("thing", scope, id));
            expected.entry(stream).or_default().push(*position);
        }
    }
    for (stream, expected) in expected {
        let limit = PageLimit { events: 1_000, bytes: 1 << 20 };
        let page = store.read_stream(tenant, &stream, Position::START, limit).await;
        let page = page.map_err(|error| format!("{stream} cannot be read: {error}"))?;
        let found: Vec<u64> = page.events.records().iter().map(|record| record.position).collect();
        if found != expected {
            return Err(format!("{stream} has {found:?}, the log has {expected:?}"));
        }
    }
    Ok(())
}

async fn look_after(run: &Path, records: &[Record], cut: usize, unsynced: Unsynced) -> Found {
    let target = tempfile::tempdir().expect("a temporary folder");
    rebuild(records, cut, unsynced, &run.join("store"), target.path(), Some("acknowledged"))
        .expect("an image");
    look(target.path()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let (dir, records) = run("full");
    let notes = records.iter().filter(|r| r.path.ends_with("acknowledged")).count();
    assert!(notes as u64 >= EVENTS, "the notes are in the journal");
    let whole = tempfile::tempdir().expect("a temporary folder");
    let store = dir.path().join("store");
    rebuild(&records, records.len(), Unsynced::Kept, &store, whole.path(), None).expect("an image");
    same_folder(&store, whole.path()).expect("the journal tells all that was done");
    for (seed, cut) in (1_u64..).zip(cuts(&records)) {
        for unsynced in [Unsynced::Dropped, Unsynced::Torn(seed * 0x9e37_79b9)] {
            let found = look_after(dir.path(), &records, cut, unsynced).await;
            assert_eq!(found, Found::Whole, "cut after record {cut} of {}, {unsynced:?}", records.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_harness_sees_the_loss_when_syncs_are_off() {
    let (dir, records) = run("off");
    let mut lost = 0;
    for cut in cuts(&records) {
        if look_after(dir.path(), &records, cut, Unsynced::Dropped).await != Found::Whole {
            lost += 1;
        }
    }
    assert!(lost > 0, "synchronous=OFF must lose something, or the harness is blind");
}

#[test]
fn a_journal_of_something_that_the_shim_does_not_record_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("file"), "text").expect("a file");
    let library = build_shim(dir.path()).expect("the shim is built");
    let shim = Shim { library, folder: folder.clone(), journal: dir.path().join("journal") };
    let mut linked = Command::new("ln");
    linked.arg(folder.join("file")).arg(folder.join("other")).envs(shim.env());
    assert!(linked.status().expect("`ln` starts").success());
    let why = read_journal(&shim.journal).expect_err("a second name is not recorded");
    assert!(why.to_string().contains("the shim does not record link"), "{why}");
}
