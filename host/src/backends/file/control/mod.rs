//! A control feed in a folder, which several processes share.
//!
//! ```text
//! <dir>/events/000000000000/00000000000000000012.json   one readable file for each event, by its control version
//!       ids/01JZ/evt_01JZ…                              a link that says version and digest, and leads to no file: a
//!                                                       repeat costs no look at the events
//!       head                                            the newest and the oldest control version
//!       quarantine/…                                    what was dropped and is no event, each with a `.reason`
//!       board/hosts/<host>.json, board/mark.json        what hosts and the controller say
//!       LOCK                                            held while something is written
//!       anything.json                                   dropped by anybody, by rename, to become an event
//! ```
//!
//! Promises: an event that is acknowledged outlives a power cut, and so does the version that it was given; events that come
//! together are made durable together, with one sync for each of them and two for all. No control version is given twice,
//! whoever writes, and there are no holes between them, unless somebody has read further than the folder goes: then it is an
//! older copy, or was emptied, and all that it has gets new versions above that. A poll costs the same whatever lies before
//! its cursor. The lock binds those who write here with this code; who drops a file needs none. Deliberately absent: watching
//! the folder, which does not work on every file system. A copy of the folder has to keep its links.

mod board;
pub(super) mod disk;
mod drops;
mod layout;
mod log;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

pub use disk::FileWork;

use disk::{Disk, failed};
use layout::{Format, Head, Layout};
use log::{FileLog, New, Writing, json};

use crate::backends::group_append::{self, Appends, WritesTogether};
use crate::clock::{Clock, SystemClock};
use crate::control::{
    Board, Carried, ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, FleetMark,
    Polled, Received, Result,
};
use crate::error::{BackendError, Classify as _};
use crate::limits::{
    CONTROL_FILE_BEGIN_AGAIN_PAUSE, CONTROL_FILE_POLL, CONTROL_FILE_SHARD_EVENTS, CONTROL_LOCK_WAIT,
    CONTROL_POLL_BYTES_MAX, CONTROL_POLL_EVENTS_MAX,
};

const FORMAT: u32 = 1;
const FORMAT_BYTES_MAX: usize = 4 << 10;

/// How to open a feed in a folder. `FileFeedOptions::new(dir)` has the defaults.
#[derive(Clone, Debug)]
pub struct FileFeedOptions {
    pub dir: PathBuf,
    /// Events in one folder; what was said first in a folder holds.
    pub shard_events: u64,
    /// How often a poll that waits looks again.
    pub poll: Duration,
    /// How long a write waits for others.
    pub lock_wait: Duration,
    /// How long after it failed to begin again a folder is left alone: each try copies all that it has.
    pub begin_again_pause: Duration,
    pub clock: Arc<dyn Clock>,
}

/// Source, sink and board in a folder. Clones share their handles; others open it again.
#[derive(Clone, Debug)]
pub struct FileFeed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: FileLog,
    options: FileFeedOptions,
    appends: Appends,
    /// Drops could not be settled here; it was said once.
    unsettled: AtomicBool,
    /// The newest version that this process knows to have been there.
    seen: AtomicU64,
    /// When it last failed to begin again.
    failed_at: Mutex<Option<Instant>>,
}

impl FileFeedOptions {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            shard_events: CONTROL_FILE_SHARD_EVENTS,
            poll: CONTROL_FILE_POLL,
            lock_wait: CONTROL_LOCK_WAIT,
            begin_again_pause: CONTROL_FILE_BEGIN_AGAIN_PAUSE,
            clock: Arc::new(SystemClock),
        }
    }
}

impl FileFeed {
    /// Opens the feed to read and to write, or creates it. Finishes what a process that was killed has left. Blocks.
    pub fn open(options: FileFeedOptions) -> Result<Self> {
        let unmade = Layout::new(&options.dir, options.shard_events);
        let made = [&unmade.root, &unmade.events, &unmade.ids, &unmade.staging, &unmade.settling]
            .into_iter()
            .chain([&unmade.quarantine, &unmade.hosts])
            .try_for_each(|folder| disk::make_folder(folder));
        made.map_err(|e| failed(&options.dir, &e))?;
        let lock = locked(&unmade, options.lock_wait)?;
        tidy(&unmade).map_err(|e| failed(&unmade.staging, &e))?;
        let feed = Self::at(options)?;
        let Inner { log, options, .. } = &*feed.inner;
        if !log.disk.exists(&log.layout.format).map_err(|e| failed(&log.layout.format, &e))? {
            let format = Format { format: FORMAT, shard_events: log.layout.shard_events };
            let written = json(&format)
                .and_then(|bytes| log.disk.replace(&log.layout.staging, &log.layout.format, &bytes));
            written.map_err(|e| failed(&log.layout.format, &e))?;
        }
        log.tidy_reports(options.clock.now()).map_err(|e| failed(&log.layout.hosts, &e))?;
        log.begin(lock)?;
        Ok(feed)
    }

    /// Opens the feed to read. In a folder that this process may only read it reads; drops then wait for others. Blocks.
    pub fn open_source(options: FileFeedOptions) -> Result<Self> {
        match Self::open(options.clone()) {
            Err(error @ ControlFeedError::Backend(_)) if options.dir.join("events").is_dir() => {
                tracing::warn!(
                    error.kind = error.code(),
                    error.blame = error.blame().as_str(),
                    %error,
                    "the folder of the control feed is only read here"
                );
                Self::at(options)
            }
            opened => opened,
        }
    }

    /// What it has looked at since it was opened.
    pub fn work(&self) -> FileWork {
        self.inner.log.disk.work()
    }

    fn at(options: FileFeedOptions) -> Result<Self> {
        let disk = Disk::default();
        let path = Layout::new(&options.dir, 1).format;
        let wrong = |detail: String| ControlFeedError::Settings { setting: "control.dir".into(), detail };
        let format = match disk.read(&path, FORMAT_BYTES_MAX).map_err(|e| failed(&path, &e))? {
            None => Format { format: FORMAT, shard_events: options.shard_events },
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))?,
        };
        if format.format != FORMAT || format.shard_events == 0 {
            let (dir, found) = (options.dir.display(), format.format);
            return Err(wrong(format!(
                "the feed in `{dir}` has format {found}, and this version knows {FORMAT}"
            )));
        }
        let layout = Layout::new(&options.dir, format.shard_events);
        let log = FileLog { layout, disk };
        let (appends, unsettled, seen) = (Appends::default(), AtomicBool::new(false), AtomicU64::new(0));
        let inner = Inner { log, options, appends, unsettled, seen, failed_at: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs something that blocks off the async threads.
    fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let done = tokio::task::spawn_blocking(move || work(&inner)).await;
            done.unwrap_or_else(|_| Err(BackendError::Closed.into()))
        }
        .boxed()
    }
}

/// Removes what a process that was killed has left in the staging folder. Only under the lock: whoever has it may be
/// about to give those files their names.
fn tidy(layout: &Layout) -> io::Result<()> {
    for entry in fs::read_dir(&layout.staging)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

fn locked(layout: &Layout, wait: Duration) -> Result<File> {
    let lock = disk::lock(&layout.lock, wait).map_err(|e| failed(&layout.lock, &e))?;
    lock.ok_or_else(|| {
        let detail = format!("{}: another process has held the lock for {wait:?}", layout.lock.display());
        BackendError::Failed { detail }.into()
    })
}

impl Inner {
    fn begin(&self) -> Result<Writing> {
        self.log.begin(locked(&self.log.layout, self.options.lock_wait)?)
    }

    /// Settles drops if there are any and nobody else is writing. That this fails keeps nobody from reading.
    fn settle(&self) {
        let settle = || -> Result<()> {
            let layout = &self.log.layout;
            let (_, stood) = self.log.head()?;
            if stood && !self.log.has_drops().map_err(|e| failed(&layout.root, &e))? {
                return Ok(());
            }
            match disk::lock(&layout.lock, Duration::ZERO).map_err(|e| failed(&layout.lock, &e))? {
                Some(lock) => self.log.settle(&mut self.log.begin(lock)?),
                None => Ok(()),
            }
        };
        self.tell(settle());
    }

    fn tell(&self, settled: Result<()>) {
        let failed = settled.is_err();
        if !self.unsettled.swap(failed, Ordering::Relaxed)
            && let Err(error) = settled
        {
            tracing::warn!(
                error.kind = error.code(),
                error.blame = error.blame().as_str(),
                %error,
                "what was dropped in the folder of the control feed cannot be settled here"
            );
        }
    }

    /// For who is beyond the newest: the head, unless it only said less than there is. The folder is an older copy then, or
    /// was emptied, and begins again.
    fn begin_again(&self, after: u64) -> Result<Head> {
        let head = self.log.head_for(after)?;
        if after <= head.newest {
            return Ok(head);
        }
        let begin = || -> Result<()> {
            let layout = &self.log.layout;
            match disk::lock(&layout.lock, Duration::ZERO).map_err(|e| failed(&layout.lock, &e))? {
                Some(lock) => self.begin_above(&mut self.log.begin(lock)?, after),
                None => Ok(()),
            }
        };
        if let Err(error) = begin() {
            tracing::warn!(
                error.kind = error.code(),
                error.blame = error.blame().as_str(),
                %error,
                "the folder of the control feed has lost its end, and this host cannot let it begin again"
            );
        }
        let head = self.log.head_for(after)?;
        if after < head.oldest || after > head.newest {
            return Err(ControlFeedError::BehindRetention { asked: after, oldest: head.oldest });
        }
        Ok(head)
    }

    fn begin_above(&self, writing: &mut Writing, place: u64) -> Result<()> {
        if place <= writing.head.newest {
            return Ok(());
        }
        let mut failed_at = self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = self.options.begin_again_pause;
        if failed_at.is_some_and(|at| at.elapsed() < pause) {
            let dir = self.log.layout.root.display();
            let detail = format!("{dir}: to begin again has failed here, and is tried {pause:?} after that");
            return Err(BackendError::Failed { detail }.into());
        }
        let begun = self.log.begin_again(writing, place, self.options.clock.now());
        *failed_at = begun.is_err().then(Instant::now);
        begun
    }

    fn look(&self, after: u64, limit: usize) -> Result<Polled> {
        self.settle();
        let mut head = self.log.head()?.0;
        if after > head.newest {
            head = self.begin_again(after)?;
        }
        retained(head, after)?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        for version in after.saturating_add(1).max(head.oldest)..=head.newest {
            let (received, read) = match self.log.received(version)? {
                Some(received) => received,
                None => {
                    // Unless it was trimmed just now.
                    let now = self.log.head()?.0;
                    retained(now, version - 1)?;
                    if now.oldest > version {
                        // It has another place now.
                        return self.look(after, limit);
                    }
                    let name = format!("{version:020}.json");
                    let version = ControlVersion(version);
                    (Received::missing(version, name, "its file is missing"), 0)
                }
            };
            events.push(received);
            bytes += read;
            if events.len() >= limit || bytes >= CONTROL_POLL_BYTES_MAX {
                break;
            }
        }
        let oldest = if head.oldest <= head.newest { head.oldest } else { 0 };
        Ok(Polled { events, oldest: ControlVersion(oldest), newest: ControlVersion(head.newest) })
    }
}

fn retained(head: Head, after: u64) -> Result<()> {
    if after < head.missed_below() {
        return Err(ControlFeedError::BehindRetention { asked: after, oldest: head.oldest });
    }
    Ok(())
}

impl WritesTogether for Inner {
    fn appends(&self) -> &Appends {
        &self.appends
    }

    fn write(&self, events: &[ControlEvent]) -> Result<Vec<Result<ControlVersion>>> {
        let mut writing = self.begin()?;
        let seen = self.seen.load(Ordering::SeqCst);
        self.begin_above(&mut writing, seen)?;
        // What was dropped before comes before.
        if self.log.has_drops().map_err(|e| failed(&self.log.layout.root, &e))? {
            self.tell(self.log.settle(&mut writing));
        }
        let taken = |event: &Carried| ControlFeedError::EventIdTaken { event_id: event.id().to_string() };
        let mut outcomes = Vec::new();
        let mut new: Vec<New> = Vec::new();
        for event in events.iter().map(Carried::from) {
            let earlier = new.iter().position(|new| matches!(new, New::Event(new) if new.id() == event.id()));
            let outcome = match (earlier, self.log.known(event.id())?) {
                (Some(place), _) => match &new[place] {
                    New::Event(new) if new.digest() == event.digest() => Outcome::Placed(place),
                    _ => Outcome::Known(Err(taken(&event))),
                },
                (None, Some(known)) if known.digest == event.digest() => {
                    Outcome::Known(Ok(ControlVersion(known.control_version)))
                }
                (None, Some(_)) => Outcome::Known(Err(taken(&event))),
                (None, None) => {
                    new.push(New::Event(event));
                    Outcome::Placed(new.len() - 1)
                }
            };
            outcomes.push(outcome);
        }
        let mut versions = Vec::new();
        if !new.is_empty() {
            versions = self.log.place(&mut writing, &new)?;
            self.log.publish(&writing)?;
        }
        let answer = |outcome| match outcome {
            Outcome::Known(known) => known,
            Outcome::Placed(place) => Ok(ControlVersion(versions[place])),
        };
        Ok(outcomes.into_iter().map(answer).collect())
    }
}

/// What becomes of one of several events.
enum Outcome {
    Known(Result<ControlVersion>),
    /// It is this one of those that get a place.
    Placed(usize),
}

impl ControlSource for FileFeed {
    fn name(&self) -> &'static str {
        "file"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        let limit = limit.clamp(1, CONTROL_POLL_EVENTS_MAX);
        let end = Instant::now() + wait;
        async move {
            loop {
                let polled = self.off(move |inner| inner.look(after.0, limit)).await?;
                if !polled.events.is_empty() || Instant::now() >= end {
                    return Ok(polled);
                }
                let next = Instant::now() + self.inner.options.poll;
                tokio::time::sleep_until(next.min(end)).await;
            }
        }
        .boxed()
    }
}

impl ControlSink for FileFeed {
    fn name(&self) -> &'static str {
        "file"
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        group_append::append(&self.inner, event)
    }

    fn saw(&self, version: ControlVersion) {
        self.inner.seen.fetch_max(version.0, Ordering::SeqCst);
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.off(move |inner| inner.log.trim(&mut inner.begin()?, through.0))
    }
}

impl Board for FileFeed {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        let (host, report) = (host.to_owned(), report.to_owned());
        self.off(move |inner| inner.log.report(&host, &report))
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        self.off(|inner| inner.log.reports(inner.options.clock.now()))
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        let host = host.to_owned();
        self.off(move |inner| inner.log.forget(&host))
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        let mark = mark.clone();
        self.off(move |inner| {
            let _lock = locked(&inner.log.layout, inner.options.lock_wait)?;
            inner.log.set_mark(&mark)
        })
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        self.off(|inner| {
            let _lock = locked(&inner.log.layout, inner.options.lock_wait)?;
            inner.log.forget_mark()
        })
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        self.off(|inner| inner.log.mark())
    }
}
