//! A rebuilt plugin on a log that does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace::backends::sqlite::SqliteStore;
use millrace::event::{Epoch, EventBatch, Page, Position, TenantId};
use millrace::plugins::{RebuildStage, Registry};
use millrace::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, PageLimit, Retention, StreamError, StreamName,
    StreamPage, Tail,
};

use super::{Arc, Rig, wait};

/// A log that does not answer whoever declares change scopes, for as long as it is silent.
#[derive(Debug)]
struct Silent {
    inner: SqliteStore,
    silent: Arc<AtomicBool>,
}

impl EventLog for Silent {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.inner.append(batch)
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        EventLog::read(&self.inner, tenant, after, limit)
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.inner.append_to(stream, batch)
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        self.inner.read_stream(tenant, stream, after, limit)
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        let (owner, declarations) = (owner.to_owned(), declarations.to_vec());
        async move {
            while self.silent.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            self.inner.declare_scopes(&owner, &declarations).await
        }
        .boxed()
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.inner.scopes()
    }

    fn bounds(&self) -> Bounds {
        self.inner.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn tail(&self) -> &Tail {
        self.inner.tail()
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.inner.tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        self.inner.trim(retention)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_plugin_runs_before_its_scopes_are_declared() {
    let mut rig = Rig::new();
    let silent = Arc::new(AtomicBool::new(false));
    rig.parts.engine.log = Arc::new(Silent { inner: rig.store.clone(), silent: Arc::clone(&silent) });
    rig.registry = Registry::new(rig.parts.clone());
    rig.deploy("alpha 1 scopes").await.expect("it is deployed");
    rig.publish(&[("x", "add", "1")]).await;
    rig.settle("alpha").await;
    silent.store(true, Ordering::SeqCst);
    rig.rebuild("alpha", Some("alpha 2 fewer")).await.expect("it begins");
    wait("it has taken over", async || rig.view("alpha").await.stage == RebuildStage::Flipped).await;
    rig.publish(&[("x", "add", "1")]).await;
    wait("it counts on", async || rig.rows("counts_alpha").await.get("x") == Some(&(2, 2))).await;
    silent.store(false, Ordering::SeqCst);
    rig.deploy("alpha 3 fewer").await.expect("it is over");
    assert_eq!(rig.show("alpha").await.deployment.version, "3.0.0");
}
