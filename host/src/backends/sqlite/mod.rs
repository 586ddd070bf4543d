//! The embedded store: log, tables, checkpoints and deployments in one SQLite database.
//!
//! Promises: what is acknowledged has been through fdatasync; one thread
//! writes, in group commits without a timer; reads never wait for it, and each
//! sees one moment. One process owns a directory at a time. A full disk refuses
//! new work and loses nothing that was acknowledged. Deliberately absent: a
//! cache of rows, and anything that knows what events mean.

mod append;
mod catalog;
mod changes;
mod channel_book;
mod channel_events;
mod channel_reads;
mod channel_run_bytes;
mod channel_runs;
mod channel_unsettled;
mod channels;
mod commit;
mod committer;
mod control;
mod control_feed;
mod control_feed_rows;
mod database;
mod dedup;
mod deployments;
mod event_rows;
mod flip;
mod forget;
mod group_letters;
mod groups;
mod keeper;
mod keyed_state;
mod letters;
mod line;
mod lock;
mod options;
mod outbox;
mod pages;
mod readers;
mod rebuilds;
mod recent;
mod request;
mod row_writes;
mod seams;
mod select;
mod shared;
mod wal_room;
mod watches;

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

pub use control::{SqliteControlOptions, SqliteControlStore};
pub use control_feed::{SqliteFeed, SqliteFeedOptions};
pub use options::{CommitStep, LogPlace, OpenError, SqliteOptions, StepObserver, Synchronous};

use committer::Committer;
use database::backend;
use keeper::{Keeper, keeper_channel};
use line::Line;
use lock::StoreLock;
use readers::{ReadStop, Readers};
use request::Request;
use shared::Shared;

use crate::error::BackendError;
use crate::limits::COMMIT_QUEUE_MAX;

/// The store. A clone is another handle on the same store; the last one to go closes it.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    readers: Readers,
    /// None once the store is dropped, which is what ends the committer.
    requests: Option<mpsc::Sender<Request>>,
    line: Arc<Line>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

/// Makes a folder and what is missing above it. Each new name is synced in the folder above: what is
/// acknowledged in the store must not go with a folder's name when the power does.
fn make_folder(dir: &Path) -> std::io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    make_folder(dir.parent().unwrap_or(Path::new("")))?;
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !dir.is_dir() => Err(error),
        _ => File::open(dir.join(".."))?.sync_all(),
    }
}

impl SqliteStore {
    /// Opens the store in a directory, or creates it. Blocks: it takes the lock,
    /// recovers the WAL and fills the dedup window.
    pub fn open(options: SqliteOptions) -> Result<Self, OpenError> {
        let directory = |e: std::io::Error| OpenError::Directory {
            dir: options.dir.display().to_string(),
            detail: e.to_string(),
        };
        make_folder(&options.dir).map_err(directory)?;
        let lock = StoreLock::take(&options.dir, options.clock.now())?;
        let path = options.dir.join(database::DATABASE_FILE);
        let conn = database::open_writer(&path, &options)?;
        let failed = |e: rusqlite::Error| OpenError::Backend(backend(&e));
        outbox::check_place(&conn, options.log, &options.dir.display().to_string())?;
        let shared = Arc::new(Shared::load(&conn, &options).map_err(failed)?);
        let readers = Readers::open(&path).map_err(failed)?;
        let (keeper_handle, wake) = keeper_channel(readers.watch());
        let committer = Committer::new(conn, Arc::clone(&shared), &options, keeper_handle).map_err(failed)?;
        let (requests, queue) = mpsc::channel(COMMIT_QUEUE_MAX);
        let keeper = Keeper {
            conn: database::open_checkpointer(&path).map_err(failed)?,
            shared: Arc::clone(&shared),
            clock: Arc::clone(&options.clock),
            retention: options.retention,
            tombstone_age_max: options.tombstone_age_max,
            state_expired_keep: options.state_expired_keep,
            requests: requests.downgrade(),
            dir: options.dir.clone(),
        };
        keeper.look_at_disk();
        let keeper = named("store-keeper", move || keeper.run(wake)).map_err(directory)?;
        // The committer's end is the store's end: it takes the keeper with it and then lets the lock go.
        let committer = named("store-committer", move || {
            committer.run(queue);
            if keeper.join().is_err() {
                tracing::error!(error.kind = "panicked", error.blame = "host", "the store's keeper panicked");
            }
            drop(lock);
        })
        .map_err(directory)?;
        let (requests, committer) = (Some(requests), Mutex::new(Some(committer)));
        let inner = Inner { shared, readers, requests, line: Arc::default(), committer };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finishes what waits, copies the WAL back and lets the directory go.
    /// Later calls that write answer `store_closed`. A second close does nothing.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        self.inner.enqueue(Request::Close { reply }).await;
        // No answer means that the committer is gone, which is what is wanted.
        let _ = answer.await;
        let inner = Arc::clone(&self.inner);
        // Only a panic of `join` could fail here, and it has none.
        let _ = tokio::task::spawn_blocking(move || inner.join()).await;
    }

    /// Runs a read off the async threads.
    fn read<T, E>(
        &self,
        read: impl FnOnce(&rusqlite::Connection, &Shared) -> Result<T, ReadStop<E>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, E>>
    where
        T: Send + 'static,
        E: From<BackendError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        async move {
            tokio::task::spawn_blocking(move || inner.readers.read(|conn| read(conn, &inner.shared)))
                .await
                .unwrap_or_else(|_| Err(E::from(BackendError::Closed)))
        }
        .boxed()
    }

    /// Sends a request now, so that calls take effect in their order, and answers it when awaited.
    fn request<T, E>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request,
    ) -> BoxFuture<'static, Result<T, E>>
    where
        T: Send + 'static,
        E: From<BackendError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let queued = self.inner.enqueue(request(reply));
        async move {
            queued.await;
            answer.await.unwrap_or_else(|_| Err(BackendError::Closed.into()))
        }
        .boxed()
    }
}

impl Inner {
    /// Takes a place in the queue before it returns, or in the line before it; the future is only there to wait for that.
    fn enqueue(&self, request: Request) -> impl Future<Output = ()> + Send + 'static + use<> {
        let queued = self.requests.as_ref().map(|queue| self.line.enqueue(queue, request));
        async move {
            if let Some(queued) = queued {
                queued.await;
            }
        }
    }

    fn join(&self) {
        let committer = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(committer) = committer
            && committer.join().is_err()
        {
            tracing::error!(error.kind = "panicked", error.blame = "host", "the store's committer panicked");
        }
    }
}

impl Drop for Inner {
    /// Waits for the committer, so that the directory is free when the last handle is gone.
    fn drop(&mut self) {
        self.requests = None;
        self.join();
    }
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}
