//! The housekeeping thread: copies the WAL back beside the committer, and once
//! a second looks at the disk, at retention, at old tombstones and at expired keyed state. What it
//! changes goes through the committer like everything else.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::channels::ChannelRequest;
use super::keyed_state::ExpiredAge;
use super::readers::ReaderWatch;
use super::rebuilds::{RebuildRequest, has_leftovers};
use super::request::Request;
use super::shared::Shared;
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::event::Micros;
use crate::limits::{
    CHANNEL_PURGE_ROUNDS, CHANNEL_SETTLE_PAUSE_MAX, CHANNEL_SETTLE_ROUNDS, READER_CUT_AFTER,
    REBUILD_SWEEP_ROUNDS, WAL_COPY_WAIT_MAX,
};
use crate::streams::Retention;

/// How often disk, retention and tombstones are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Rounds of copying before the committer is asked to finish, and the frames at which that is soon done.
const COPY_ROUNDS_MAX: usize = 4;
const COPY_FRAMES_SMALL: i64 = 512;

const IDLE: u8 = 0;
const ASKED: u8 = 1;
/// Nobody else can checkpoint meanwhile.
const COPYING: u8 = 2;
const COPIED: u8 = 3;

/// The committer's side: one checkpoint is under way at most.
#[derive(Clone, Debug)]
pub(super) struct KeeperHandle {
    state: Arc<AtomicU8>,
    ask: Sender<()>,
    done: Receiver<()>,
    readers: Arc<ReaderWatch>,
}

#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) conn: Connection,
    pub(super) dir: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) retention: Retention,
    pub(super) tombstone_age_max: Duration,
    pub(super) state_expired_keep: Duration,
    /// Weak, so that the committer ends when the store's last handle goes.
    pub(super) requests: mpsc::WeakSender<Request>,
}

/// What wakes the keeper; the thread ends when every handle is gone.
#[derive(Debug)]
pub(super) struct KeeperWake {
    state: Arc<AtomicU8>,
    asked: Receiver<()>,
    done: Sender<()>,
}

pub(super) fn keeper_channel(readers: Arc<ReaderWatch>) -> (KeeperHandle, KeeperWake) {
    let ((ask, asked), (copied, done)) = (bounded(1), bounded(1));
    let state = Arc::new(AtomicU8::new(IDLE));
    (
        KeeperHandle { state: Arc::clone(&state), ask, done, readers },
        KeeperWake { state, asked, done: copied },
    )
}

impl KeeperHandle {
    /// Asks for a checkpoint, unless one is under way.
    pub(super) fn ask_for_checkpoint(&self) {
        if self.state.compare_exchange(IDLE, ASKED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // Only a keeper that has ended does not take it; then nobody waits for it either.
            let _ = self.ask.try_send(());
        }
    }

    /// Whether a checkpoint was copied since it was asked for; true once per checkpoint.
    pub(super) fn take_copied(&self) -> bool {
        self.state.compare_exchange(COPIED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Waits while the keeper copies, within a bound: it alone can checkpoint meanwhile.
    pub(super) fn wait_while_copying(&self) {
        let deadline = Instant::now() + WAL_COPY_WAIT_MAX;
        while self.state.load(Ordering::Acquire) == COPYING {
            // What an earlier copy has left there only makes it look again.
            if self.done.recv_deadline(deadline).is_err() {
                return;
            }
        }
    }

    /// Cuts off readers that keep the WAL from being truncated.
    pub(super) fn cut_readers(&self) {
        let readers = self.readers.cut(READER_CUT_AFTER);
        if readers > 0 {
            tracing::warn!(
                error.kind = "wal_bytes_hard_max",
                error.blame = "host",
                readers,
                "long reads were cut off: the WAL is beyond its hard bound"
            );
        }
    }
}

impl Keeper {
    pub(super) fn run(self, wake: KeeperWake) {
        let mut tick = Instant::now();
        let mut settling = Settling::default();
        loop {
            match wake.asked.recv_timeout(TICK.saturating_sub(tick.elapsed())) {
                Ok(()) => {
                    wake.state.store(COPYING, Ordering::Release);
                    self.copy_wal();
                    wake.state.store(COPIED, Ordering::Release);
                    let _ = wake.done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if tick.elapsed() >= TICK {
                tick = Instant::now();
                self.look_at_disk();
                self.apply_retention();
                self.purge_tombstones();
                self.purge_expired();
                self.purge_channels();
                self.sweep_rebuilds();
                settling.look(|| self.settle_channels());
            }
        }
    }

    /// Copies in rounds, as the committer goes on writing: each finds less left.
    fn copy_wal(&self) {
        for _ in 0..COPY_ROUNDS_MAX {
            let copied = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            });
            match copied {
                Ok((frames, copied)) => {
                    if frames - copied <= COPY_FRAMES_SMALL {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "the WAL could not be copied back");
                    return;
                }
            }
        }
    }

    pub(super) fn look_at_disk(&self) {
        match rustix::fs::statvfs(&self.dir) {
            Ok(disk) => {
                let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
                if self.shared.set_free_bytes(free_bytes) {
                    match self.shared.check_disk() {
                        Ok(()) => tracing::info!(free_bytes, "the disk has room again: events are accepted"),
                        Err(error) => {
                            tracing::error!(error.kind = error.code(), error.blame = "host", %error, "new events are refused")
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "free disk space is unknown")
            }
        }
    }

    fn apply_retention(&self) {
        if self.retention == Retention::default() {
            return;
        }
        loop {
            let (reply, answer) = oneshot::channel();
            let asked = self.ask(Request::Trim { retention: self.retention, reply });
            match asked.then(|| answer.blocking_recv()) {
                Some(Ok(Ok(trimmed))) if trimmed.more => count_trimmed(trimmed.events),
                Some(Ok(Ok(trimmed))) => return count_trimmed(trimmed.events),
                Some(Ok(Err(error))) => {
                    tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "retention could not be applied");
                    return;
                }
                _ => return,
            }
        }
    }

    fn purge_tombstones(&self) {
        let age = i64::try_from(self.tombstone_age_max.as_micros()).unwrap_or(i64::MAX);
        let before = Micros(self.clock.now().0.saturating_sub(age));
        let (reply, answer) = oneshot::channel();
        if !self.shared.has_tombstones_before(&self.conn, before) {
            return;
        }
        if self.ask(Request::PurgeTombstones { before, reply })
            && let Ok(Err(error)) = answer.blocking_recv()
        {
            tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "old tombstones could not be dropped");
        }
    }

    fn purge_expired(&self) {
        let keep = i64::try_from(self.state_expired_keep.as_micros()).unwrap_or(i64::MAX);
        let age = ExpiredAge { now: self.clock.now(), keep };
        while self.shared.has_expired(&self.conn, age) {
            let (reply, answer) = oneshot::channel();
            if !self.ask(Request::PurgeExpired { age, reply }) {
                return;
            }
            match answer.blocking_recv() {
                Ok(Ok(entries)) => {
                    metrics::counter!(crate::telemetry::metrics::STATE_EXPIRED).increment(entries);
                }
                Ok(Err(error)) => {
                    tracing::warn!(error.kind = error.code(), error.blame = "host", %error, "expired keyed state could not be removed");
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Entries of channels that were removed.
    fn purge_channels(&self) {
        for _ in 0..CHANNEL_PURGE_ROUNDS {
            let garbage = self.conn.prepare_cached("SELECT EXISTS(SELECT 1 FROM channel_garbage)");
            let garbage = garbage.and_then(|mut statement| statement.query_row([], |row| row.get(0)));
            // The next look is a second away.
            if !garbage.unwrap_or(false) {
                return;
            }
            let (reply, answer) = oneshot::channel();
            if !self.ask(Request::Channel(ChannelRequest::Purge { reply })) {
                return;
            }
            match answer.blocking_recv() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error.kind = error.code(), error.blame = "host", %error, "entries of removed channels could not be deleted");
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// What rebuilds have left, in slices.
    fn sweep_rebuilds(&self) {
        for _ in 0..REBUILD_SWEEP_ROUNDS {
            let (reply, answer) = oneshot::channel();
            if !has_leftovers(&self.conn) || !self.ask(Request::Rebuild(RebuildRequest::Sweep { reply })) {
                return;
            }
            match answer.blocking_recv() {
                Ok(Ok(true)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error.kind = error.code(), error.blame = "host", %error, "what a rebuild has left could not be removed");
                    return;
                }
                _ => return,
            }
        }
    }

    /// Entries of channels that lie in runs, so that few do while there is little to do. False where that has failed.
    fn settle_channels(&self) -> bool {
        for _ in 0..CHANNEL_SETTLE_ROUNDS {
            let (reply, answer) = oneshot::channel();
            if self.shared.unsettled.is_empty()
                || !self.ask(Request::Channel(ChannelRequest::Settle { reply }))
            {
                return true;
            }
            match answer.blocking_recv() {
                Ok(Ok(true)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error.kind = error.code(), error.blame = "host", %error, "entries of channels could not be settled");
                    return false;
                }
                _ => return true,
            }
        }
        true
    }

    /// False when the queue is full (there is another tick) or the store is closing.
    fn ask(&self, request: Request) -> bool {
        self.requests.upgrade().is_some_and(|requests| requests.try_send(request).is_ok())
    }
}

/// When channels are settled. What fails takes the requests of others along that came with it, so it pauses the longer the
/// more often it has failed.
#[derive(Debug, Default)]
struct Settling {
    pause: u32,
    left: u32,
}

impl Settling {
    fn look(&mut self, settle: impl FnOnce() -> bool) {
        if self.left > 0 {
            self.left -= 1;
            return;
        }
        self.pause = if settle() { 0 } else { (2 * self.pause).clamp(1, CHANNEL_SETTLE_PAUSE_MAX) };
        self.left = self.pause;
    }
}

fn count_trimmed(events: u64) {
    metrics::counter!(crate::telemetry::metrics::EVENTS_TRIMMED).increment(events);
}
