//! A control feed in a database that the processes of one machine share.
//!
//! Promises: an event that is acknowledged outlives a power cut; no control version is given twice, whoever writes, and there
//! are no holes between them, unless somebody has read further than it goes: then it is an older copy, and all that it has
//! gets new versions above that; an id stands for one event for ever. Its file is its own: nothing of it is in the host's
//! store.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rusqlite::Connection;
use tokio::time::Instant;

use super::control_feed_rows::{self as rows, Found};
use super::database::backend;
use crate::backends::group_append::{self, Appends, WritesTogether};
use crate::clock::{Clock, SystemClock};
use crate::control::{
    Board, ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, FleetMark, Polled,
    Result, check_report,
};
use crate::error::BackendError;
use crate::limits::{CONTROL_HOSTS_MAX, CONTROL_LOCK_WAIT, CONTROL_POLL_EVENTS_MAX, CONTROL_SQLITE_POLL};

/// How to open a feed in a database. `SqliteFeedOptions::new(dir)` has the defaults.
#[derive(Clone, Debug)]
pub struct SqliteFeedOptions {
    /// Holds `feed.db` and its WAL.
    pub dir: PathBuf,
    /// How often a poll that waits looks again.
    pub poll: Duration,
    /// How long a write waits for other processes.
    pub busy_wait: Duration,
    pub clock: Arc<dyn Clock>,
}

/// Source, sink and board in a database. Clones share a connection; others open it again.
#[derive(Clone, Debug)]
pub struct SqliteFeed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conn: Mutex<Connection>,
    options: SqliteFeedOptions,
    appends: Appends,
    /// The newest version that this process knows to have been there.
    seen: AtomicU64,
}

impl SqliteFeedOptions {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            poll: CONTROL_SQLITE_POLL,
            busy_wait: CONTROL_LOCK_WAIT,
            clock: Arc::new(SystemClock),
        }
    }
}

impl SqliteFeed {
    /// Opens the feed, or creates it. Blocks.
    pub fn open(options: SqliteFeedOptions) -> Result<Self> {
        let dir = options.dir.display().to_string();
        super::make_folder(&options.dir)
            .map_err(|error| BackendError::Failed { detail: format!("{dir}: {error}") })?;
        let conn = match rows::open(&options.dir.join("feed.db"), options.busy_wait) {
            Ok(Ok(conn)) => conn,
            Ok(Err(found)) => {
                let known = rows::SCHEMA_VERSION;
                return Err(ControlFeedError::Settings {
                    setting: "control.dir".into(),
                    detail: format!(
                        "the feed in `{dir}` has schema {found}, this version knows up to {known}; use a newer millrace"
                    ),
                });
            }
            Err(error) => {
                let detail = format!("{dir}/feed.db: {error}");
                return Err(match backend(&error) {
                    BackendError::DiskFull { .. } => BackendError::DiskFull { detail },
                    _ => BackendError::Failed { detail },
                }
                .into());
            }
        };
        let inner =
            Inner { conn: Mutex::new(conn), options, appends: Appends::default(), seen: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs something on the connection, off the async threads.
    fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let done = tokio::task::spawn_blocking(move || inner.with(work)).await;
            done.unwrap_or_else(|_| Err(BackendError::Closed.into()))
        }
        .boxed()
    }
}

impl Inner {
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut conn).map_err(|error| backend(&error).into())
    }
}

impl WritesTogether for Inner {
    fn appends(&self) -> &Appends {
        &self.appends
    }

    fn write(&self, events: &[ControlEvent]) -> Result<Vec<Result<ControlVersion>>> {
        let (seen, now) = (self.seen.load(Ordering::SeqCst), self.options.clock.now().0);
        let found = self.with(|conn| rows::append(conn, events, seen, now))?;
        let answer = |(event, found): (&ControlEvent, Found)| match found {
            Found::At(version) => Ok(version),
            Found::Taken => Err(ControlFeedError::EventIdTaken { event_id: event.id().to_string() }),
        };
        Ok(events.iter().zip(found).map(answer).collect())
    }
}

impl ControlSource for SqliteFeed {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        let limit = limit.clamp(1, CONTROL_POLL_EVENTS_MAX);
        let end = Instant::now() + wait;
        async move {
            loop {
                let read = self.off(move |conn| rows::read(conn, after.0, limit)).await?;
                if after.0 > read.newest {
                    let now = self.inner.options.clock.now().0;
                    self.off(move |conn| rows::begin_again(conn, after.0, now)).await?;
                    let floor = self.off(move |conn| rows::read(conn, after.0, 1)).await?.floor;
                    return Err(ControlFeedError::BehindRetention { asked: after.0, oldest: floor + 1 });
                }
                if after.0 < read.trimmed {
                    let oldest = read.floor + 1;
                    return Err(ControlFeedError::BehindRetention { asked: after.0, oldest });
                }
                if !read.events.is_empty() || Instant::now() >= end {
                    let oldest = if read.floor < read.newest { read.floor + 1 } else { 0 };
                    return Ok(Polled {
                        events: read.events,
                        oldest: ControlVersion(oldest),
                        newest: ControlVersion(read.newest),
                    });
                }
                let next = Instant::now() + self.inner.options.poll;
                tokio::time::sleep_until(next.min(end)).await;
            }
        }
        .boxed()
    }
}

impl ControlSink for SqliteFeed {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        group_append::append(&self.inner, event)
    }

    fn saw(&self, version: ControlVersion) {
        self.inner.seen.fetch_max(version.0, Ordering::SeqCst);
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        async move {
            let mut all = 0;
            loop {
                let (gone, done) = self.off(move |conn| rows::trim(conn, through.0)).await?;
                all += gone;
                if done {
                    return Ok(all);
                }
            }
        }
        .boxed()
    }
}

impl Board for SqliteFeed {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        let checked = check_report(host, report);
        let (host, report, at) = (host.to_owned(), report.to_owned(), self.inner.options.clock.now().0);
        async move {
            checked?;
            self.off(move |conn| rows::report(conn, &host, at, &report)).await
        }
        .boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        let now = self.inner.options.clock.now().0;
        self.off(move |conn| rows::reports(conn, now, CONTROL_HOSTS_MAX))
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        let host = host.to_owned();
        self.off(move |conn| rows::forget(conn, &host))
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        let mark = mark.clone();
        self.off(move |conn| rows::set_mark(conn, &mark))
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        self.off(|conn| rows::forget_mark(conn))
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        self.off(|conn| rows::mark(conn))
    }
}
