//! What a view has sent of late: the one queue that all of its subscribers read, each from its own place.
//!
//! Nobody has a queue of their own. Who is slow is behind, and who is so far behind that what it missed is gone
//! gets the rows anew; so a slow subscriber costs nothing and holds nobody up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::LiveError;
use super::ahead;
use super::engine::Asked;
use super::frames::Batch;
use crate::limits::{LIVE_RING_AGE_MAX, LIVE_TAKEN_BATCHES_MAX};

/// What a view shares with its subscribers.
#[derive(Debug)]
pub(super) struct Ring {
    kept: Mutex<Kept>,
    /// Wakes whoever waits for the next batch.
    news: Notify,
    subscribers: AtomicUsize,
    asked: OnceLock<Arc<Asked>>,
}

#[derive(Debug)]
struct Kept {
    batches: VecDeque<(Instant, Batch)>,
    bytes: usize,
    /// The number of the oldest batch that is kept.
    first: u64,
    ended: Option<Box<LiveError>>,
}

/// What there is for a subscriber at its place.
#[derive(Debug)]
pub(super) enum Taken {
    /// Some batches, and the place behind them.
    Batches(Vec<Batch>, u64),
    /// Nothing yet.
    Nothing,
    /// What it wants is gone.
    Behind,
    Ended(LiveError),
}

impl Ring {
    pub(super) fn new() -> Arc<Self> {
        let kept = Kept { batches: VecDeque::new(), bytes: 0, first: 0, ended: None };
        Arc::new(Self {
            kept: Mutex::new(kept),
            news: Notify::new(),
            subscribers: AtomicUsize::new(0),
            asked: OnceLock::new(),
        })
    }

    /// What the view was first asked for as: the same as what whoever watches it has asked for.
    pub(super) fn share(&self, asked: Arc<Asked>) -> Arc<Asked> {
        Arc::clone(self.asked.get_or_init(|| asked))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch, and keeps so many bytes of them. Subscribers are not woken yet.
    pub(super) fn push(&self, batch: Batch, now: Instant, bytes_max: usize) {
        let mut kept = self.lock();
        batch.stamp(now);
        kept.bytes += batch.bytes();
        kept.batches.push_back((now, batch));
        // What is too old goes when the views are looked over.
        if kept.bytes > bytes_max {
            kept.shrink(now, bytes_max);
        }
    }

    /// Asks for its memory, or for most of it.
    pub(super) fn ask_for(&self) {
        ahead::all(&self.kept);
        ahead::line(&self.news);
    }

    /// Asks for the places that the next batch takes, and the oldest one leaves.
    pub(super) fn ask_for_ends(&self) {
        let kept = self.lock();
        let (first, second) = kept.batches.as_slices();
        if let Some(last) = second.last().or(first.last()) {
            ahead::all(last);
        }
        if let Some(oldest) = first.first() {
            ahead::all(oldest);
        }
    }

    /// And then for the oldest batch.
    pub(super) fn ask_for_oldest(&self) {
        if let Some((_, oldest)) = self.lock().batches.front() {
            oldest.ask_for();
        }
    }

    /// And then for what it refers to.
    pub(super) fn ask_for_oldest_text(&self) {
        if let Some((_, oldest)) = self.lock().batches.front() {
            oldest.ask_for_text();
        }
    }

    /// Wakes whoever waits.
    pub(super) fn wake(&self) {
        self.news.notify_waiters();
    }

    /// Drops what is too old.
    pub(super) fn shrink(&self, now: Instant, bytes_max: usize) {
        self.lock().shrink(now, bytes_max);
    }

    /// All batches from a place on, if they are all kept.
    pub(super) fn since(&self, place: u64) -> Option<Vec<Batch>> {
        let kept = self.lock();
        if place > kept.next() {
            return None;
        }
        let skip = usize::try_from(place.checked_sub(kept.first)?).ok()?;
        Some(kept.batches.iter().skip(skip).map(|(_, batch)| batch.clone()).collect())
    }

    pub(super) fn take(&self, from: u64) -> Taken {
        let kept = self.lock();
        let Some(skip) = from.checked_sub(kept.first) else { return Taken::Behind };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let taken: Vec<_> = kept
            .batches
            .iter()
            .skip(skip)
            .take(LIVE_TAKEN_BATCHES_MAX)
            .map(|(_, batch)| batch.clone())
            .collect();
        if !taken.is_empty() {
            let next = from + taken.len() as u64;
            return Taken::Batches(taken, next);
        }
        kept.ended.as_deref().cloned().map_or(Taken::Nothing, Taken::Ended)
    }

    /// No batch will follow.
    pub(super) fn end(&self, why: LiveError) {
        self.lock().ended = Some(Box::new(why));
        self.wake();
    }

    /// Waits for the next call of `wake` after this has been enabled.
    pub(super) fn listen(&self) -> Notified<'_> {
        self.news.notified()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.subscribers.load(Ordering::Acquire) > 0
    }
}

impl Kept {
    fn next(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    fn shrink(&mut self, now: Instant, bytes_max: usize) {
        while let Some((at, oldest)) = self.batches.front() {
            // The newest one stays, whatever its size, for those who are not behind.
            let is_large = self.bytes > bytes_max && self.batches.len() > 1;
            if !is_large && now.saturating_duration_since(*at) <= LIVE_RING_AGE_MAX {
                return;
            }
            self.bytes = self.bytes.saturating_sub(oldest.bytes());
            self.first += 1;
            self.batches.pop_front();
        }
        self.bytes = 0;
    }
}

/// One who watches a view. While there is one, the view stays.
#[derive(Debug)]
pub(super) struct Watching(pub(super) Arc<Ring>);

impl Watching {
    pub(super) fn new(ring: &Arc<Ring>) -> Self {
        ring.subscribers.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(ring))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.subscribers.fetch_sub(1, Ordering::AcqRel);
    }
}
