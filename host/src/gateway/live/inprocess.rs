//! Live queries of this host, for one client.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::Value as Json;

use super::super::native::json_problem;
use super::super::params;
use super::super::problem::Problem;
use super::query::{read_anchor, read_query};
use super::shell::{Anchor, Ask, Backend, Fault, Rows, Sub};
use crate::event::TenantId;
use crate::limits::NAME_BYTES_MAX;
use crate::live::{LiveError, LiveQueries, LiveQuery, Subscribe};
use crate::tables::{Filter, TableSchema, TableStore};

/// Reads a client's queries and hands them to the engine, as its tenant's.
#[derive(Clone)]
pub struct InProcess {
    pub live: Arc<dyn LiveQueries>,
    pub tables: Arc<dyn TableStore>,
    pub tenant: TenantId,
    /// What limits the client in a table.
    pub(super) access: Access,
}

/// The scope of a client's queries of a table: none where it may see all rows, an error where it may see none.
pub(super) type Access = Arc<dyn Fn(&TableSchema) -> Result<Option<Filter>, Problem> + Send + Sync>;

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl InProcess {
    /// For whoever may see all rows of a tenant.
    pub fn new(live: Arc<dyn LiveQueries>, tables: Arc<dyn TableStore>, tenant: TenantId) -> Self {
        Self { live, tables, tenant, access: Arc::new(|_| Ok(None)) }
    }

    /// Checks a query and subscribes to it.
    pub(in super::super) async fn open(&self, query: &Json, resume: Option<String>) -> Result<Sub, Problem> {
        if let Some(token) = resume.as_ref().filter(|token| token.len() > NAME_BYTES_MAX) {
            let detail = format!("has {} bytes; no token is this long", token.len());
            return Err(params::invalid("resume", detail));
        }
        let query = Query { text: query.to_string().into(), ..Query::default() };
        let batches = self.rows(self.read(&query)?, resume).await?;
        let id = format!("{:032x}", rand::random::<u128>());
        let (backend, query) = (self.clone(), Arc::new(tokio::sync::Mutex::new(query)));
        let sub = Sub::new(id, batches).on_reanchor(move |anchor| {
            let (backend, query) = (backend.clone(), Arc::clone(&query));
            async move {
                let mut query = query.lock().await;
                Ok(Some(backend.moved(&mut query, anchor).await?))
            }
            .boxed()
        });
        Ok(sub)
    }

    /// The query that a client's words mean, where it now is.
    fn read(&self, query: &Query) -> Result<LiveQuery, Problem> {
        let words = json(&query.text)?;
        let mut live = read_query(&*self.tables, &words)?;
        let schema = self.tables.schema(&live.query.table)?;
        live.query.scope = (self.access)(&schema)?.unwrap_or_default();
        let cursor = query.cursor.as_deref().map(json).transpose()?;
        read_anchor(&schema, &live, cursor.as_ref(), query.limit)
    }

    async fn moved(&self, query: &mut Query, anchor: Anchor) -> Result<Rows, Problem> {
        let cursor = anchor.cursor.map(|raw| raw.get().into()).or_else(|| query.cursor.clone());
        let limit = anchor.limit.filter(|limit| *limit != 0).or(query.limit);
        let moved = Query { text: query.text.clone(), cursor, limit };
        let rows = self.rows(self.read(&moved)?, None).await?;
        *query = moved;
        Ok(rows)
    }

    async fn rows(&self, query: LiveQuery, resume: Option<String>) -> Result<Rows, Problem> {
        let subscribe = Subscribe { tenant: self.tenant.clone(), query, resume };
        let subscription = self.live.subscribe(subscribe).await?;
        Ok(subscription.batches.map(|batch| batch.map_err(fault)).boxed())
    }
}

/// A client's query, kept for when it is moved. As text: an open subscription has no use for more.
#[derive(Default)]
struct Query {
    text: Box<str>,
    /// Where it was moved to, and the size that it was given.
    cursor: Option<Box<str>>,
    limit: Option<i64>,
}

fn json(text: &str) -> Result<Json, Problem> {
    serde_json::from_str(text).map_err(|error| json_problem(&error))
}

impl Backend for InProcess {
    fn subscribe(&self, ask: Ask) -> BoxFuture<'_, Result<Sub, Fault>> {
        async move {
            let query = serde_json::from_str(ask.query.get()).map_err(|error| json_problem(&error))?;
            Ok(self.open(&query, ask.resume).await?)
        }
        .boxed()
    }
}

/// What went wrong behind an open subscription. Causes on the host's side go to its log.
fn fault(error: LiveError) -> Fault {
    Problem::from(error).into()
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self { retry: problem.retry(), ..Self::new(problem.code(), problem.detail()) }
    }
}
