//! The changes of one tenant's rows of a table, as they are committed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::Row;
use crate::event::Revision;
use crate::limits::ROW_CHANGES_BYTES_MAX;

/// A row as a commit left it.
#[derive(Clone, Debug, PartialEq)]
pub enum RowChange {
    Put(Arc<Row>),
    /// It is gone, if it was ever there.
    Delete {
        key: String,
        version: u64,
    },
}

impl RowChange {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(row) => &row.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// The rows of a table that one commit changed, each once.
#[derive(Clone, Debug, PartialEq)]
pub struct CommitChanges {
    pub revision: Revision,
    pub rows: Vec<RowChange>,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// Commits in their order. Those that left the table alone are not among them.
    Commits(Arc<Vec<CommitChanges>>),
    /// More was committed than was kept for this watcher, or the table's columns changed: read the table again.
    /// What follows was committed after this revision.
    Lost { after: Revision },
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Changed>,
    bytes: usize,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// The store is closed.
    closed: bool,
    /// Nobody listens any more.
    dropped: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that a store holds. Dropping it tells the other end that the store is closed.
#[derive(Debug)]
pub struct RowChangesSender(Arc<Shared>);

/// The end that a watcher holds. Dropping it ends the watch.
#[derive(Debug)]
pub struct RowChanges {
    shared: Arc<Shared>,
    after: Revision,
    committed: Option<Instant>,
}

/// Begins a watch: everything after this revision is sent.
pub fn row_changes(after: Revision) -> (RowChangesSender, RowChanges) {
    let shared = Arc::new(Shared::default());
    (RowChangesSender(Arc::clone(&shared)), RowChanges { shared, after, committed: None })
}

impl RowChangesSender {
    /// Sends commits; it never waits. What exceeds `ROW_CHANGES_BYTES_MAX` is lost, and the watcher is told.
    /// Answers whether anybody listens.
    pub fn send(&self, commits: &Arc<Vec<CommitChanges>>, bytes: usize) -> bool {
        let mut queue = self.0.lock();
        if queue.dropped {
            return false;
        }
        let Some(last) = commits.last() else { return true };
        if queue.bytes + bytes > ROW_CHANGES_BYTES_MAX {
            queue.waiting.clear();
            queue.bytes = 0;
            queue.waiting.push_back(Changed::Lost { after: last.revision });
        } else {
            queue.bytes += bytes;
            queue.since.get_or_insert_with(Instant::now);
            queue.waiting.push_back(Changed::Commits(Arc::clone(commits)));
        }
        drop(queue);
        self.0.more.notify_one();
        true
    }

    /// Says that the table must be read again. Answers whether anybody listens.
    pub fn lose(&self, after: Revision) -> bool {
        let mut queue = self.0.lock();
        queue.waiting.clear();
        queue.bytes = 0;
        queue.waiting.push_back(Changed::Lost { after });
        let listens = !queue.dropped;
        drop(queue);
        self.0.more.notify_one();
        listens
    }
}

impl Drop for RowChangesSender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.more.notify_one();
    }
}

impl RowChanges {
    /// What was committed up to here is not sent; a read that begins now sees it.
    pub fn after(&self) -> Revision {
        self.after
    }

    /// When the first commit of what [`next`](Self::next) answered last was sent.
    pub fn committed(&self) -> Option<Instant> {
        self.committed
    }

    /// What was committed next, all that waits. None once the store is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<VecDeque<Changed>> {
        loop {
            {
                let mut queue = self.shared.lock();
                if !queue.waiting.is_empty() {
                    queue.bytes = 0;
                    self.committed = queue.since.take();
                    return Some(std::mem::take(&mut queue.waiting));
                }
                if queue.closed {
                    return None;
                }
            }
            self.shared.more.notified().await;
        }
    }
}

impl Drop for RowChanges {
    fn drop(&mut self) {
        self.shared.lock().dropped = true;
    }
}
