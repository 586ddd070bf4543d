//! What the embedded store keeps of change streams: over a restart, a refusal, a cap and a cut.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millrace::backends::sqlite::{CommitStep, SqliteOptions, SqliteStore, StepObserver};
use millrace::checkpoints::CheckpointStore;
use millrace::config::Layers;
use millrace::event::{Position, TenantId};
use millrace::streams::{AggregateScopes, EventLog, Scope, StreamName};
use millrace_tests::conformance::change_streams::{asset_scopes, change, named, stream};
use millrace_tests::conformance::checkpoints::dead_letter;
use millrace_tests::conformance::effects::{Effects, commit, task, tenant};
use millrace_tests::conformance::event_log::{ALL, batch};

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions::new(dir)).unwrap()
}

async fn positions(store: &SqliteStore, stream: &StreamName) -> Vec<u64> {
    let page = store.read_stream(&tenant("acme"), stream, Position::START, ALL).await.unwrap();
    page.events.records().iter().map(|record| record.position).collect()
}

/// Scopes of the aggregate that [`Effects::emit`] emits events of.
fn leg_scopes() -> Vec<AggregateScopes> {
    let gate = Scope::Field { name: "gate".to_owned(), member: "gate".to_owned() };
    vec![AggregateScopes { aggregate: "leg".to_owned(), scopes: vec![Scope::Tenant, gate] }]
}

#[tokio::test]
async fn a_reopened_store_keeps_scopes_entries_values_and_named_streams() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.declare_scopes("assets", &asset_scopes()).await.unwrap();
    store.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    store.append_to(&named("orders"), batch(&tenant("acme"), &[("o", "{}")])).await.unwrap();
    store.close().await;
    drop(store);

    let store = open(dir.path());
    assert_eq!(store.scopes().of("asset"), asset_scopes().first(), "before any plugin has been started");
    store.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#)).await.unwrap();
    assert_eq!(positions(&store, &stream("asset", "site", "S1")).await, [1, 3]);
    let again = store.append_to(&named("orders"), batch(&tenant("acme"), &[("o", "{}")])).await.unwrap();
    assert!(again[0].repeated, "the dedup window knows streams apart after a restart, too");
    assert_eq!(positions(&store, &named("orders")).await, [2]);
}

#[test]
fn a_cap_of_change_streams_goes_with_a_log_of_either_kind() {
    let dir = tempfile::tempdir().unwrap();
    for elsewhere in ["", "[serve]\nlog = \"redis://127.0.0.1\"\n"] {
        let file = dir.path().join("millrace.toml");
        std::fs::write(&file, format!("{elsewhere}[store]\nchange_stream_events_max = 5\n")).unwrap();
        let mut layers = Layers::new();
        layers.file(&file).unwrap();
        let config = layers.resolve().unwrap().config;
        assert_eq!(config.store.change_stream_events_max, Some(5), "{elsewhere}");
    }
}

#[tokio::test]
async fn emitted_events_are_in_change_streams_and_refused_commits_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.declare_scopes("legs", &leg_scopes()).await.unwrap();
    let owner = task("board", "acme", 0);
    let (generation, _) = store.claim(&owner).await.unwrap();
    let emit = |version, payload: &str| {
        let mut effects = Effects::default();
        effects.emit("L", version, payload);
        effects
    };
    store.commit(commit(&owner, generation, 1, &[], &mut emit(1, r#"{"gate":"A"}"#))).await.unwrap();
    // The second of these has an id that is taken: what the first did is undone with it.
    let mut refused = emit(2, r#"{"gate":"B"}"#);
    refused.emit("L", 1, r#"{"gate":"other"}"#);
    store.commit(commit(&owner, generation, 2, &[], &mut refused)).await.unwrap_err();
    assert_eq!(positions(&store, &stream("leg", "gate", "B")).await, [0_u64; 0]);
    store.commit(commit(&owner, generation, 2, &[], &mut emit(2, r#"{"gate":"C"}"#))).await.unwrap();
    assert_eq!(positions(&store, &stream("leg", "gate", "A")).await, [1, 2]);
    assert_eq!(positions(&store, &stream("leg", "gate", "B")).await, [0_u64; 0]);
    assert_eq!(positions(&store, &stream("leg", "tenant", "")).await, [1, 2]);
}

/// A commit that is refused after its events were written: the numbers and values that it has left in memory
/// must go with what it has left in the store.
#[tokio::test]
async fn a_commit_that_is_refused_late_leaves_no_value_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { dead_letters_max: 0, ..SqliteOptions::new(dir.path()) };
    let store = SqliteStore::open(options).unwrap();
    store.declare_scopes("legs", &leg_scopes()).await.unwrap();
    let owner = task("board", "acme", 0);
    let (generation, _) = store.claim(&owner).await.unwrap();
    let mut effects = Effects::default();
    effects.emit("L", 1, r#"{"gate":"A"}"#);
    let mut refused = commit(&owner, generation, 1, &[], &mut effects);
    refused.dead.push(dead_letter(&owner.tenant, "d", 1));
    store.commit(refused).await.unwrap_err();
    effects.emit("L", 1, r#"{"gate":"B"}"#);
    store.commit(commit(&owner, generation, 1, &[], &mut effects)).await.unwrap();
    assert_eq!(positions(&store, &stream("leg", "gate", "A")).await, [0_u64; 0]);
    assert_eq!(positions(&store, &stream("leg", "gate", "B")).await, [1]);
    effects.emit("L", 2, r#"{"gate":"C"}"#);
    store.commit(commit(&owner, generation, 2, &[], &mut effects)).await.unwrap();
    assert_eq!(positions(&store, &stream("leg", "gate", "A")).await, [0_u64; 0]);
}

/// What is left by a host that ends at any step has an event and all of its entries, or none of them.
#[tokio::test]
async fn an_event_and_its_entries_are_there_together_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let copies = tempfile::tempdir().unwrap();
    let taken: Arc<Mutex<Vec<(CommitStep, PathBuf)>>> = Arc::default();
    let (source, target, list) = (dir.path().to_owned(), copies.path().to_owned(), Arc::clone(&taken));
    let observer = StepObserver(Arc::new(move |step| {
        let mut list = list.lock().unwrap();
        let copy = target.join(list.len().to_string());
        std::fs::create_dir(&copy).unwrap();
        for name in ["millrace.db", "millrace.db-wal"] {
            if source.join(name).exists() {
                std::fs::copy(source.join(name), copy.join(name)).unwrap();
            }
        }
        list.push((step, copy));
    }));
    let options = SqliteOptions { observer: Some(observer), ..SqliteOptions::new(dir.path()) };
    let store = SqliteStore::open(options).unwrap();
    store.declare_scopes("legs", &leg_scopes()).await.unwrap();
    let owner = task("board", "acme", 0);
    let (generation, _) = store.claim(&owner).await.unwrap();
    let mut effects = Effects::default();
    effects.emit("L", 1, r#"{"gate":"A"}"#).emit("L", 2, r#"{"gate":"B"}"#);
    store.commit(commit(&owner, generation, 1, &[], &mut effects)).await.unwrap();
    store.append(change("leg", "L", 3, "changed", r#"{"gate":"C"}"#)).await.unwrap();
    store.close().await;
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    assert!(CommitStep::ALL.iter().all(|step| taken.iter().any(|(taken, _)| taken == step)));
    let mut lengths = std::collections::BTreeSet::new();
    for (step, copy) in taken {
        let left = open(&copy);
        let acme = TenantId::new("acme").unwrap();
        let events = left.read(&acme, Position::START, ALL).await.unwrap().events.len() as u64;
        let all: Vec<u64> = (1..=events).collect();
        assert_eq!(positions(&left, &stream("leg", "tenant", "")).await, all, "{step:?}");
        let of_gate = |gate, of: &[u64]| {
            let expected: Vec<u64> = of.iter().copied().filter(|position| *position <= events).collect();
            (stream("leg", "gate", gate), expected)
        };
        for (stream, expected) in [of_gate("A", &[1, 2]), of_gate("B", &[2, 3]), of_gate("C", &[3])] {
            assert_eq!(positions(&left, &stream).await, expected, "{step:?}: {stream}");
        }
        lengths.insert(events);
        left.close().await;
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 2, 3]);
}
