//! Claims about a host that answers while it still starts what was deployed.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use millrace::error::{BackendError, Retry};
use millrace::event::{Revision, TenantId};
use millrace::plugins::{Candidate, Deployment, DeploymentStore};
use millrace::tables::{Row, RowChanges, RowPage, TableError, TableSchema};

use super::*;

fn refused<T: std::fmt::Debug>(answer: Result<T, ControlError>) {
    let error = answer.expect_err("nobody knows yet what it would change");
    assert_eq!(error.code(), "host_starting");
    assert!(matches!(error.retry(), Retry::After(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_refused_until_what_was_deployed_has_been_started() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert!(scene.registry.shut_down(Duration::from_secs(20)).await, "it stops in time");
    scene.registry = Registry::new(scene.parts.clone());
    scene.registry.refuse_changes();
    refused(scene.deploy("alpha 2").await);
    refused(scene.deploy("beta 1").await);
    refused(scene.registry.pause("alpha").await);
    refused(scene.registry.resume("alpha").await);
    refused(scene.registry.remove("alpha").await);
    refused(scene.registry.rollback("alpha", None, "api:test", DeployOptions::default()).await);
    refused(scene.registry.confirm("alpha").await);
    refused(scene.registry.show("alpha").await);
    scene.registry.start_deployed().await.expect("what was deployed can be listed");
    assert_eq!(scene.show("alpha").await.deployment.version, "1.0.0");
    scene.deploy("alpha 2").await.expect("it takes over");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 2));
    assert_eq!(scene.registry.show("beta").await.expect_err("it was refused").code(), "plugin_unknown");
}

/// Fails so often at declaring tables, in a way that passes.
#[derive(Debug)]
struct Unwilling {
    store: SqliteStore,
    left: AtomicUsize,
}

impl TableStore for Unwilling {
    fn declare(&self, plugin: &str, tables: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        let less = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            let detail = "told to fail".into();
            return ready(Err(BackendError::Failed { detail }.into())).boxed();
        }
        self.store.declare(plugin, tables)
    }

    fn check(&self, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError> {
        self.store.check(plugin, tables)
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        TableStore::list(&self.store)
    }

    fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        self.store.schema(table)
    }

    fn query(&self, tenant: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        self.store.query(tenant, query)
    }

    fn get(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        TableStore::get(&self.store, tenant, table, key)
    }

    fn watch(&self, tenant: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        self.store.watch(tenant, table)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_a_passing_failure_kept_from_starting_is_started_again() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    scene.parts.tables = Arc::new(Unwilling { store: scene.store.clone(), left: AtomicUsize::new(2) });
    scene.restart().await;
    let failed = scene.show("alpha").await;
    assert_eq!((failed.state, failed.message.contains("told to fail")), (PluginState::Failed, true));
    scene.registry.keep_starting().await;
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 1));
}

/// Cannot list deployments, so often.
#[derive(Debug)]
struct Unreadable {
    store: SqliteStore,
    left: AtomicUsize,
}

impl DeploymentStore for Unreadable {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>> {
        let less = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return ready(Err(BackendError::Failed { detail: "told to fail".into() })).boxed();
        }
        DeploymentStore::list(&self.store)
    }

    fn put(&self, deployment: Deployment) -> BoxFuture<'_, Result<(), BackendError>> {
        self.store.put(deployment)
    }

    fn withdraw(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>> {
        self.store.withdraw(plugin)
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>> {
        self.store.remove(plugin)
    }

    fn digests(&self) -> BoxFuture<'_, Result<BTreeSet<String>, BackendError>> {
        self.store.digests()
    }

    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>> {
        self.store.history(plugin)
    }

    fn put_candidate(&self, plugin: &str, candidate: Candidate) -> BoxFuture<'_, Result<(), BackendError>> {
        self.store.put_candidate(plugin, candidate)
    }

    fn candidates(&self) -> BoxFuture<'_, Result<BTreeMap<String, Candidate>, BackendError>> {
        self.store.candidates()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_could_not_read_what_was_deployed_is_tried_again_as_a_whole() {
    let mut scene = Scene::new();
    for name in ["alpha", "beta"] {
        scene.deploy(format!("{name} 1")).await.expect("it is deployed");
    }
    scene.publish(X).await;
    for name in ["alpha", "beta"] {
        scene.settle(name).await;
    }
    assert!(scene.registry.shut_down(Duration::from_secs(20)).await, "it stops in time");
    scene.parts.deployments = Arc::new(Unreadable { store: scene.store.clone(), left: AtomicUsize::new(2) });
    scene.registry = Registry::new(scene.parts.clone());
    scene.registry.refuse_changes();
    for _ in 0..2 {
        let failed = scene.registry.start_deployed().await.expect_err("nothing can be listed");
        assert!(failed.to_string().contains("told to fail") && failed.retry() != Retry::Never, "{failed}");
        refused(scene.registry.list().await);
        refused(scene.registry.show("alpha").await);
        refused(scene.deploy("gamma 1").await);
    }
    scene.registry.start_deployed().await.expect("what was deployed can be listed");
    assert_eq!(scene.registry.list().await.expect("it has started").len(), 2);
    scene.publish(X).await;
    for name in ["alpha", "beta"] {
        scene.settle(name).await;
        assert_eq!(scene.count(name).await, ints(2, 1), "{name}");
    }
}
