//! The seams that the store implements: checks at the border, then a request or a read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::catalog::check;
use super::event_rows::appended_at;
use super::request::{Request, Trimmed};
use super::{SqliteStore, keyed_state, letters, pages, select};
use crate::checkpoints::{
    Checkpoint, CheckpointStore, Commit, CommitError, Committed, DeadLetterRow, Generation, ScanLimit,
    StatePage, StateValue, TaskId, TaskRow,
};
use crate::error::BackendError;
use crate::event::{Epoch, EventBatch, Micros, Page, Position, Revision, TenantId};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::plugins::{Candidate, Deployment, DeploymentStore, is_shadow_name};
use crate::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, PageLimit, Retention, StreamError, StreamName,
    StreamPage, Tail,
};
use crate::tables::{LastChanged, Query, Row, RowChanges, RowPage, TableError, TableSchema, TableStore};

impl EventLog for SqliteStore {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let checked = check_batch(&batch).and_then(|()| Ok(self.inner.shared.check_disk()?));
        match checked {
            Err(refused) => ready(Err(refused)).boxed(),
            Ok(()) if batch.is_empty() => ready(Ok(Vec::new())).boxed(),
            Ok(()) => self.request(|reply| Request::Append { batch, reply }),
        }
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        let tenant = tenant.clone();
        SqliteStore::read(self, move |conn, shared| pages::page(conn, shared, &tenant, after, limit))
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let stream = stream.clone();
        let checked = check_batch(&batch).and_then(|()| Ok(self.inner.shared.check_disk()?));
        match checked {
            Err(refused) => ready(Err(refused)).boxed(),
            Ok(()) if batch.is_empty() => ready(Ok(Vec::new())).boxed(),
            Ok(()) => self.request(|reply| Request::AppendTo { stream, batch, reply }),
        }
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        let (tenant, stream) = (tenant.clone(), stream.clone());
        SqliteStore::read(self, move |conn, shared| {
            pages::stream_page(conn, shared, &tenant, &stream, (after, limit))
        })
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        let (owner, declarations) = (owner.to_owned(), declarations.to_vec());
        self.request(|reply| Request::DeclareScopes { owner, declarations, reply })
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.inner.shared.scopes()
    }

    fn appended_at(
        &self,
        tenant: &TenantId,
        after: Position,
    ) -> BoxFuture<'_, Result<Option<Micros>, StreamError>> {
        let tenant = tenant.clone();
        SqliteStore::read(self, move |conn, shared| match shared.tenant_number(conn, &tenant)? {
            Some(number) => Ok(appended_at(conn, number, after)?),
            None => Ok(None),
        })
    }

    fn bounds(&self) -> Bounds {
        self.inner.shared.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.inner.shared.epoch.clone()
    }

    fn tail(&self) -> &Tail {
        &self.inner.shared.tail
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.inner.shared.tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        async move {
            let mut events = 0;
            loop {
                let step: Trimmed = self.request(|reply| Request::Trim { retention, reply }).await?;
                events += step.events;
                if !step.more {
                    return Ok(events);
                }
            }
        }
        .boxed()
    }
}

/// The bounds of a batch, which also protect the queue.
fn check_batch(batch: &EventBatch) -> Result<(), StreamError> {
    if batch.len() > BATCH_EVENTS_MAX {
        return Err(StreamError::TooManyEvents { events: batch.len(), max: BATCH_EVENTS_MAX });
    }
    if batch.bytes() > BATCH_BYTES_MAX {
        return Err(StreamError::TooManyBytes { bytes: batch.bytes(), max: BATCH_BYTES_MAX });
    }
    Ok(())
}

impl CheckpointStore for SqliteStore {
    fn claim(&self, task: &TaskId) -> BoxFuture<'_, Result<(Generation, Option<Checkpoint>), CommitError>> {
        let task = task.clone();
        self.request(|reply| Request::Claim { task, reply })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.request(|reply| Request::Commit { commit: Box::new(commit), reply })
    }

    fn forget(
        &self,
        task: &TaskId,
        generation: Generation,
        position: Position,
    ) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let task = task.clone();
        self.request(|reply| Request::Forget { task, generation, position, reply })
    }

    fn checkpoint(&self, task: &TaskId) -> BoxFuture<'_, Result<Option<Checkpoint>, CommitError>> {
        let task = task.clone();
        SqliteStore::read(self, move |conn, _| keyed_state::checkpoint(conn, &task))
    }

    fn state_get(&self, task: &TaskId, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        self.inner.readers.read(|conn| keyed_state::state_get(conn, task, key))
    }

    fn state_scan(
        &self,
        task: &TaskId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<StatePage, CommitError> {
        self.inner.readers.read(|conn| keyed_state::state_scan(conn, task, prefix, after, limit))
    }

    fn tasks(&self, processor: Option<&str>) -> BoxFuture<'_, Result<Vec<TaskRow>, CommitError>> {
        let processor = processor.map(str::to_owned);
        SqliteStore::read(self, move |conn, _| pages::tasks(conn, processor.as_deref()))
    }

    fn dead_letters(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, CommitError>> {
        let (processor, tenant) = (processor.to_owned(), tenant.cloned());
        SqliteStore::read(self, move |conn, _| Ok(letters::newest(conn, &processor, tenant.as_ref(), limit)?))
    }

    fn dead_letter(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        position: Position,
    ) -> BoxFuture<'_, Result<Option<DeadLetterRow>, CommitError>> {
        let (processor, tenant) = (processor.to_owned(), tenant.cloned());
        SqliteStore::read(self, move |conn, _| Ok(letters::one(conn, &processor, tenant.as_ref(), position)?))
    }
}

impl TableStore for SqliteStore {
    fn declare(&self, plugin: &str, tables: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        let (plugin, tables) = (plugin.to_owned(), tables.to_vec());
        self.request(|reply| Request::Declare { plugin, tables, reply })
    }

    fn check(&self, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError> {
        self.inner.shared.with_catalog(|catalog| check(catalog, plugin, tables))
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        self.inner.shared.with_catalog(|catalog| {
            let shown = catalog.values().filter(|e| !is_shadow_name(&e.schema.name));
            shown.map(|e| (e.owner.clone().unwrap_or_default(), e.schema.clone())).collect()
        })
    }

    fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        self.inner.shared.schema(table)
    }

    fn query(&self, tenant: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        let (tenant, query) = (tenant.clone(), query.clone());
        SqliteStore::read(self, move |conn, shared| select::query(conn, shared, &tenant, &query))
    }

    fn get(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        let (tenant, table, key) = (tenant.clone(), table.to_owned(), key.to_owned());
        SqliteStore::read(self, move |conn, shared| select::get(conn, shared, &tenant, &table, &key))
    }

    fn watch(&self, tenant: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        let answer = self.inner.shared.schema(table).map(|_| self.inner.shared.watches.begin(tenant, table));
        Box::pin(async { answer?.await.map_err(|_| BackendError::Closed.into()) })
    }

    fn last_changed(&self) -> Option<&LastChanged> {
        Some(&self.inner.shared.last_changed)
    }
}

impl DeploymentStore for SqliteStore {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>> {
        SqliteStore::read(self, |conn, _| pages::deployments(conn))
    }

    fn put(&self, deployment: Deployment) -> BoxFuture<'_, Result<(), BackendError>> {
        self.request(|reply| Request::Deploy { deployment: Box::new(deployment), reply })
    }

    fn withdraw(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>> {
        let plugin = plugin.to_owned();
        self.request(|reply| Request::Withdraw { plugin, reply })
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>> {
        let plugin = plugin.to_owned();
        self.request(|reply| Request::Remove { plugin, reply })
    }

    fn digests(&self) -> BoxFuture<'_, Result<BTreeSet<String>, BackendError>> {
        SqliteStore::read(self, |conn, _| pages::deployed_digests(conn))
    }

    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>> {
        let plugin = plugin.to_owned();
        SqliteStore::read(self, move |conn, _| pages::deployment_history(conn, &plugin))
    }

    fn put_candidate(&self, plugin: &str, candidate: Candidate) -> BoxFuture<'_, Result<(), BackendError>> {
        let (plugin, candidate) = (plugin.to_owned(), Box::new(candidate));
        self.request(|reply| Request::PutCandidate { plugin, candidate, reply })
    }

    fn candidates(&self) -> BoxFuture<'_, Result<BTreeMap<String, Candidate>, BackendError>> {
        SqliteStore::read(self, |conn, _| pages::candidates(conn))
    }
}
