//! What the store keeps of rebuilds, and when it lets one take over.

use std::collections::BTreeMap;

use millrace::backends::sqlite::SqliteOptions;
use millrace::checkpoints::{CheckpointStore, TaskId};
use millrace::error::Classify;
use millrace::event::Position;
use millrace::plugins::{
    DeploymentStore, Flip, NewRebuild, PluginControl, RebuildProgress, RebuildRecord, RebuildStore,
};
use millrace::tables::TableStore;

use super::{Arc, Rig, borrowed, many, tenant, wait};

/// A rebuild of `alpha` that nobody carries on.
async fn begun(rig: &Rig) -> RebuildRecord {
    let deployments = DeploymentStore::list(&rig.store).await.expect("they can be read");
    let deployment = deployments.into_iter().find(|d| d.plugin == "alpha").expect("it is deployed");
    let tables = vec![rig.store.schema("counts_alpha").expect("the table is there")];
    let wanted = NewRebuild { deployment, tables, start: Position::START, accept_unemitted: false };
    rig.store.begin(wanted).await.expect("it begins")
}

fn flip(record: &RebuildRecord, barrier: Position) -> Flip {
    let deployment = record.deployment.clone();
    Flip { number: record.number, barrier, deployment, accept_unemitted: false }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_takes_over_that_does_not_stand_where_the_other_does() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let last = rig.publish(&[("x", "add", "1"), ("x", "add", "1")]).await;
    rig.settle("alpha").await;
    rig.registry.pause("alpha").await.expect("it pauses");
    let record = begun(&rig).await;
    let before = rig.rows("counts_alpha").await;
    // The rebuild has no task at all.
    let error = rig.store.flip(flip(&record, last)).await.expect_err("it has handled nothing");
    assert_eq!(error.code(), "rebuild_refused");
    // A task that never committed is none that stands there.
    let shadow = format!("alpha~{}", record.number);
    let task = TaskId { processor: shadow.as_str().into(), tenant: tenant(), lane: 0 };
    rig.store.claim(&task).await.expect("it can be claimed");
    let error = rig.store.flip(flip(&record, last)).await.expect_err("it has handled nothing still");
    assert_eq!(error.code(), "rebuild_refused");
    let error = rig.store.flip(flip(&record, Position(1))).await.expect_err("the old one is elsewhere");
    assert!(error.to_string().contains("stands at 2"), "{error}");
    assert_eq!(rig.rows("counts_alpha").await, before, "what is refused changes nothing");
    let revision = rig.store.tasks(Some("alpha")).await.expect("they can be read")[0].revision;
    rig.store.abandon(record.number, "enough".into()).await.expect("it is open");
    let error = rig.store.flip(flip(&record, last)).await.expect_err("it has ended");
    assert_eq!(error.code(), "rebuild_none");
    rig.swept().await;
    assert_eq!(rig.store.tasks(Some("alpha")).await.expect("they can be read")[0].revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_keeps_one_open_rebuild_of_a_plugin_and_the_last_that_ended() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let first = begun(&rig).await;
    let wanted = NewRebuild {
        deployment: first.deployment.clone(),
        tables: Vec::new(),
        start: Position::START,
        accept_unemitted: false,
    };
    let error = rig.store.begin(wanted).await.expect_err("one is open");
    assert_eq!(error.code(), "rebuild_running");
    let progress = RebuildProgress { tries: 7, ..first.progress.clone() };
    rig.store.note(first.number, progress.clone()).await.expect("it is open");
    let kept = RebuildStore::list(&rig.store).await.expect("they can be read");
    assert_eq!((kept.len(), kept[0].number, &kept[0].progress), (1, first.number, &progress));
    rig.store.abandon(first.number, "enough".into()).await.expect("it is open");
    assert_eq!(
        rig.store.note(first.number, progress).await.expect_err("it has ended").code(),
        "rebuild_none"
    );
    let again = rig.store.abandon(first.number, "enough".into()).await;
    assert_eq!(again.expect_err("it has ended").code(), "rebuild_none");
    let second = begun(&rig).await;
    assert!(second.number > first.number, "no number comes twice");
    let kept = RebuildStore::list(&rig.store).await.expect("they can be read");
    assert_eq!((kept.len(), kept[0].number), (1, second.number));
    assert!(kept[0].is_open());
    let digests = rig.store.digests().await.expect("they can be read");
    assert!(digests.contains(&second.deployment.digest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_plugin_is_not_replaced() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    rig.deploy("beta 1").await.expect("it is deployed");
    let deployments = DeploymentStore::list(&rig.store).await.expect("they can be read");
    let deployment = deployments.into_iter().find(|d| d.plugin == "alpha").expect("it is deployed");
    let tables = vec![rig.store.schema("counts_beta").expect("the table is there")];
    let wanted = NewRebuild { deployment, tables, start: Position::START, accept_unemitted: false };
    assert_eq!(rig.store.begin(wanted).await.expect_err("it is beta's").code(), "table_owned");
    assert!(RebuildStore::list(&rig.store).await.expect("they can be read").is_empty());
}

/// Whoever claims a task is right, and the one before is not told. The log tells no event by its id here, so whatever
/// was emitted twice would be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_task_was_claimed_by_a_newer_one_commits_nothing_more_under_the_old_claim() {
    const ROUNDS: usize = 3;
    let options = |options: SqliteOptions| SqliteOptions { dedup_events_max: 1, ..options };
    let rig = Rig::with(options, |store| Arc::new(store.clone()), BTreeMap::new());
    rig.deploy("alpha 1").await.expect("it is deployed");
    let (adds, emits) = (many(60, 20, "add"), many(40, 4, "emit"));
    for events in [&adds, &emits] {
        rig.publish(&borrowed(events)).await;
    }
    rig.settle("alpha").await;
    let begun = rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    // It handles what there is, and cannot take over.
    rig.registry.pause("alpha").await.expect("it pauses");
    let shadow = format!("alpha~{}", begun.number);
    let row = async || rig.store.tasks(Some(&shadow)).await.expect("they can be read").pop();
    wait("it has claimed its task", async || row().await.is_some()).await;
    let task = TaskId { processor: shadow.as_str().into(), tenant: tenant(), lane: 0 };
    for _ in 0..ROUNDS {
        let (newer, checkpoint) = rig.store.claim(&task).await.expect("it can be claimed");
        let at = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
        let last = rig.publish(&borrowed(&emits)).await;
        rig.open_gate();
        let claims_again = async || {
            let row = row().await.expect("its task stays");
            let is_refused = row.generation.0 > newer.0 || row.position == at;
            assert!(is_refused, "it went from {at} to {} under a claim that is not its own", row.position);
            row.generation.0 > newer.0
        };
        wait("it is refused, and claims its task again", claims_again).await;
        let goes_on = async || row().await.is_some_and(|row| row.position == last);
        wait("it goes on under its new claim", goes_on).await;
    }
    rig.registry.resume("alpha").await.expect("it goes on");
    rig.flipped("alpha").await;
    rig.settle("alpha").await;
    let emitted = rig.events("emitted-").await;
    assert_eq!(emitted.len(), (1 + ROUNDS) * emits.len());
    assert!(emitted.values().all(|times| *times == 1), "{emitted:?}");
    let rows = rig.rows("counts_alpha").await;
    let count = |key: &str| rows.get(key).copied();
    assert_eq!(count("k0"), Some((3 + (1 + 3) * 10, 2)), "each event is counted once");
    assert_eq!(count("k19"), Some((3, 2)));
    assert!(emitted.keys().all(|key| count(key) == Some((1, 2))), "{rows:?}");
    assert_eq!(rows.len(), 20 + emitted.len());
    rig.swept().await;
}
