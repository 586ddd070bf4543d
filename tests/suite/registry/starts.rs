//! Claims about a host that answers while it still starts what was deployed.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use millrace::error::{BackendError, Retry};
use millrace::event::{Revision, TenantId};
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
