//! Claims about the change scopes that plugins declare.

use millrace::backends::memory::MemoryLeases;
use millrace::cluster::Ownerships;
use millrace::processors::SharedLog;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

impl Scene {
    /// The scopes of `asset` that are in effect.
    fn scopes(&self) -> Option<AggregateScopes> {
        self.store.scopes().of("asset").cloned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployed_plugins_scopes_are_declared_shown_and_kept_over_a_restart() {
    let mut scene = Scene::new();
    assert_eq!(scene.scopes(), None);
    let status = scene.deploy("alpha 1 scopes").await.expect("it is deployed");
    assert_eq!(status.manifest.expect("it is known").changes, asset_scopes());
    assert_eq!(scene.scopes(), asset_scopes().pop());
    scene.restart().await;
    assert_eq!(scene.scopes(), asset_scopes().pop());
    scene.deploy("alpha 2 fewer").await.expect("it takes over");
    assert_eq!(scene.scopes(), fewer_scopes().pop(), "the version that runs has declared them");
    scene.registry.remove("alpha").await.expect("it is removed");
    assert_eq!(scene.scopes(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_that_disagree_about_an_aggregate_are_not_both_deployed() {
    let scene = Scene::new();
    scene.deploy("alpha 1 scopes").await.expect("it is deployed");
    scene.deploy("beta 1 scopes").await.expect("it says the same");
    let refused = scene.deploy("gamma 1 fewer").await.expect_err("it says something else");
    assert_eq!(refused.code(), "change_scopes_taken");
    assert!(refused.to_string().contains("alpha"), "{refused}");
    let refused = scene.deploy("beta 2 fewer").await.expect_err("alpha still says otherwise");
    assert_eq!(refused.code(), "change_scopes_taken");
    assert_eq!(scene.show("beta").await.deployment.version, "1.0.0");
    assert_eq!(scene.scopes(), asset_scopes().pop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_is_refused_leaves_the_scopes_as_they_were() {
    let scene = Scene::new();
    scene.deploy("alpha 1 scopes").await.expect("it is deployed");
    scene.publish(&[("x", "add", "1"), ("y", "add", "1")]).await;
    scene.settle("alpha").await;
    scene.deploy("alpha 2 traps fewer").await.expect_err("it falls");
    assert_eq!(scene.scopes(), asset_scopes().pop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_a_plugin_that_another_host_runs_leaves_its_scopes() {
    let mut scene = Scene::new();
    let leases = Arc::new(MemoryLeases::default());
    let long = Duration::from_secs(60);
    let (this, other) =
        (Ownerships::new(leases.clone(), "this", long), Ownerships::new(leases, "other", long));
    let (mut theirs, keeper) = other.keep("alpha", CancellationToken::new());
    let mut kept = JoinSet::new();
    kept.spawn(keeper);
    theirs.gained().await;
    let outbox = Arc::new(scene.store.clone());
    scene.parts.engine.shared_log = Some(SharedLog { owners: this, outbox });
    scene.registry = Registry::new(scene.parts.clone());
    scene.deploy("alpha 1 scopes").await.expect("it is deployed, and stands by");
    scene.registry.remove("alpha").await.expect("it is removed");
    assert_eq!(scene.scopes(), asset_scopes().pop());
    scene.deploy("beta 1 scopes").await.expect("it is deployed, and runs");
    scene.registry.remove("beta").await.expect("it is removed");
    scene.store.declare_scopes("alpha", &[]).await.expect("they are withdrawn");
    assert_eq!(scene.scopes(), None, "beta's are gone");
}
