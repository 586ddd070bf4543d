//! The second level as the engine uses it: bounded in time, left alone for a while after an error, and never asked
//! while it has not been told of an invalidation.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use tokio::time::{Instant, timeout};

use super::{Cache, Entry, Lookup, Stamp, Stored};
use crate::error::{BackendError, Classify as _};
use crate::limits::{CACHE_OWED_MAX, CACHE_PAUSE, CACHE_TTL_CEILING, CACHE_WAIT_MAX};
use crate::telemetry::metrics::CACHE_ERRORS;

#[derive(Debug)]
pub(super) struct Second {
    cache: Arc<dyn Cache>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Not asked before.
    paused: Option<Instant>,
    /// What it has not been told of.
    owed: Owed,
}

/// With the number of the last invalidation that owes it: what was owed again while it was told stays.
#[derive(Clone, Debug, Default)]
struct Owed {
    last: u64,
    names: BTreeMap<String, u64>,
    marks: BTreeMap<String, u64>,
}

impl Owed {
    fn add(&mut self, names: Vec<String>, marks: Vec<String>) {
        self.last += 1;
        self.names.extend(names.into_iter().map(|name| (name, self.last)));
        self.marks.extend(marks.into_iter().map(|mark| (mark, self.last)));
    }

    fn settle(&mut self, told: &Self) {
        self.names.retain(|name, owed| told.names.get(name) != Some(owed));
        self.marks.retain(|mark, owed| told.marks.get(mark) != Some(owed));
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.marks.is_empty()
    }

    fn len(&self) -> usize {
        self.names.len() + self.marks.len()
    }
}

impl Second {
    pub(super) fn new(cache: Arc<dyn Cache>) -> Self {
        Self { cache, state: Mutex::default() }
    }

    /// None when it cannot say.
    pub(super) async fn get(&self, entry: &Entry) -> Option<Lookup> {
        if !self.settle().await {
            return None;
        }
        self.ask("get", self.cache.get(entry)).await
    }

    pub(super) async fn put(
        &self,
        entry: &Entry,
        stamp: &Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> Option<Stored> {
        if self.pauses() {
            return None;
        }
        self.ask("put", self.cache.put(entry, stamp, value, ttl)).await
    }

    /// Removes and invalidates. What does not reach it now is told before it is asked the next time, also when the
    /// caller goes away meanwhile.
    pub(super) async fn invalidate(&self, names: Vec<String>, marks: Vec<String>) {
        {
            let mut state = self.lock();
            state.owed.add(names, marks);
            if state.owed.len() > CACHE_OWED_MAX {
                tracing::warn!(
                    error.kind = "cache_owed_max",
                    error.blame = "host",
                    "the second level of the cache was away for too many invalidations and is left alone until all that it holds has expired"
                );
                state.owed = Owed { last: state.owed.last, ..Owed::default() };
                state.paused = Some(Instant::now() + CACHE_TTL_CEILING);
            }
        }
        self.settle().await;
    }

    /// Tells it what is owed. Answers whether it may be asked.
    async fn settle(&self) -> bool {
        if self.pauses() {
            return false;
        }
        let owed = self.lock().owed.clone();
        if owed.is_empty() {
            return true;
        }
        let names: Vec<String> = owed.names.keys().cloned().collect();
        let marks: Vec<String> = owed.marks.keys().cloned().collect();
        let told = async {
            if !names.is_empty() {
                self.cache.remove(&names).await?;
            }
            if !marks.is_empty() {
                self.cache.invalidate(&marks).await?;
            }
            Ok(())
        };
        if self.ask("invalidate", told).await.is_none() {
            return false;
        }
        self.lock().owed.settle(&owed);
        true
    }

    fn pauses(&self) -> bool {
        self.lock().paused.is_some_and(|until| Instant::now() < until)
    }

    async fn ask<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, BackendError>>,
    ) -> Option<T> {
        let kind = match timeout(CACHE_WAIT_MAX, answer).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%error, call, "the second level of the cache fails");
                error.code()
            }
            Err(_) => "cache_wait_max",
        };
        counter!(CACHE_ERRORS, "call" => call).increment(1);
        let mut state = self.lock();
        let until = Instant::now() + CACHE_PAUSE;
        if state.paused.is_none_or(|paused| paused < until) {
            state.paused = Some(until);
        }
        drop(state);
        tracing::warn!(
            error.kind = kind,
            error.blame = "host",
            call,
            "the second level of the cache is left alone"
        );
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
