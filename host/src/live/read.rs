//! Reading the rows of a window: off the task that owns it, a bounded number at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::LiveError;
use super::index::ViewId;
use super::owner::Common;
use super::shape::Columns;
use super::view::ReadPage;
use crate::error::{Classify as _, Retry};
use crate::event::TenantId;
use crate::limits::{LIVE_CHECK_SHARE, LIVE_STREAMED_ROWS_MAX, ROW_PAGE_BYTES_MAX};
use crate::tables::{Query, RowCursor};
use crate::tasks::{OnCancel, OnError, TaskKind};

const READ: TaskKind = TaskKind { on_cancel: OnCancel::Abort, on_error: OnError::Log };

/// What is to be read for a view.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) view: ViewId,
    pub(super) born: u64,
    pub(super) tenant: TenantId,
    pub(super) query: Query,
    /// Page after page until there are no more, by key; otherwise one page.
    pub(super) all: bool,
    /// The table's, as its reader knows them.
    pub(super) columns: Arc<Columns>,
    /// It is for a check, which has its turn until this is dropped.
    pub(super) check: Option<OwnedSemaphorePermit>,
}

/// What came of it: pages in order, and whether nothing lies behind them.
#[derive(Debug)]
pub(super) struct ReadDone {
    pub(super) view: ViewId,
    /// Which of the views that have had this number.
    pub(super) born: u64,
    pub(super) check: bool,
    /// What the reader took for the table's columns when it asked.
    pub(super) columns: Arc<Columns>,
    pub(super) result: Result<(Vec<ReadPage>, bool), LiveError>,
}

impl Read {
    /// Reads in a task of its own.
    pub(super) fn start(self, common: &Arc<Common>, done: mpsc::Sender<ReadDone>) {
        let tasks = common.tasks.clone();
        let common = Arc::clone(common);
        tasks.spawn(READ, "live read", async move {
            let turn = common.reads.acquire().await;
            let begun = Instant::now();
            let result = self.pages(&common).await;
            let took = begun.elapsed();
            drop(turn);
            if let (Err(error), None) = (&result, &self.check)
                && let Retry::After(wait) = error.retry()
            {
                tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
            }
            let check = self.check.is_some();
            let read = ReadDone { view: self.view, born: self.born, check, columns: self.columns, result };
            // The owner may have ended.
            let _ = done.send(read).await;
            if check {
                // However long a read takes, checks have no more than their share.
                tokio::time::sleep(took.saturating_mul(LIVE_CHECK_SHARE)).await;
            }
            drop(self.check);
            Ok(())
        });
    }

    async fn pages(&self, common: &Common) -> Result<(Vec<ReadPage>, bool), LiveError> {
        let mut query = self.query.clone();
        let (mut pages, mut rows) = (Vec::new(), 0);
        loop {
            let page = common.tables.query(&self.tenant, &query).await?;
            rows += page.rows.len();
            let more = page.next.is_some();
            if !self.all && more && page.rows.len() < query.limit as usize {
                return Err(LiveError::WindowBytes { rows: page.rows.len(), bytes: ROW_PAGE_BYTES_MAX });
            }
            if rows > LIVE_STREAMED_ROWS_MAX {
                return Err(LiveError::StreamedRows { max: LIVE_STREAMED_ROWS_MAX });
            }
            let last = page.rows.last().map(|row| row.key.clone());
            let goes_on = self.all && more;
            let up_to = last.as_deref().filter(|_| goes_on).map(Into::into);
            pages.push(ReadPage { rows: page.rows, revision: page.revision, up_to });
            let Some(key) = last.filter(|_| goes_on) else { return Ok((pages, !more)) };
            query.after = Some(RowCursor { values: Vec::new(), key });
        }
    }
}
