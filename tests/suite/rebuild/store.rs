//! What the store keeps of rebuilds, and when it lets one take over.

use millrace::checkpoints::{CheckpointStore, TaskId};
use millrace::error::Classify;
use millrace::event::Position;
use millrace::plugins::{
    DeploymentStore, Flip, NewRebuild, PluginControl, RebuildProgress, RebuildRecord, RebuildStore,
};
use millrace::tables::TableStore;

use super::{Rig, tenant};

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
