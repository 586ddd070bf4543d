//! A control feed in memory: for tests, and for several hosts in one process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::{Clock as _, SystemClock};
use crate::control::rules;
use crate::control::{
    Acker, Board, ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, EventId,
    FleetMark, Polled, Received, Result, check_report,
};
use crate::limits::CONTROL_POLL_EVENTS_MAX;

/// Source, sink and board. Clones are the same feed.
#[derive(Clone, Debug, Default)]
pub struct MemoryFeed {
    inner: Arc<Inner>,
}

/// One host's way of reading a [`MemoryFeed`] as a broker hands it out: what was not acknowledged comes again.
#[derive(Clone, Debug)]
pub struct MemoryConsumer {
    feed: MemoryFeed,
    host: String,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Received>,
    /// Version and digest by id; they outlive the events.
    ids: HashMap<EventId, (ControlVersion, String)>,
    newest: u64,
    trimmed: u64,
    /// Versions up to here that are not trimmed were given up: what had them has others now.
    begun: u64,
    consumers: HashMap<String, Consumer>,
    reports: BTreeMap<String, (Instant, String)>,
    mark: Option<FleetMark>,
}

#[derive(Debug, Default)]
struct Consumer {
    /// None before the first poll, which says where it begins.
    delivered: Option<u64>,
    waiting: BTreeSet<u64>,
    acknowledged: Vec<(EventId, ControlVersion)>,
}

impl MemoryFeed {
    pub fn new() -> Self {
        Self::default()
    }

    /// The place of a host among those that acknowledge. It outlives what this answers.
    pub fn consumer(&self, host: &str) -> MemoryConsumer {
        MemoryConsumer { feed: self.clone(), host: host.to_owned() }
    }

    /// Puts something into the feed that is no event.
    pub fn append_broken(&self, name: &str, reason: &str) -> ControlVersion {
        let version = self.state().place(|version| Received::unreadable(version, name, reason));
        self.inner.changed.notify_waiters();
        version
    }

    /// The same of what a host of this version refuses as an event.
    pub fn append_refused(&self, name: &str, error: &ControlFeedError) -> ControlVersion {
        let version = self.state().place(|version| Received::refused(version, name, error));
        self.inner.changed.notify_waiters();
        version
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until there are events, or the time is over.
    async fn wait(&self, wait: Duration, ask: impl Fn(&mut State) -> Result<Polled>) -> Result<Polled> {
        let end = Instant::now() + wait;
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let polled = ask(&mut self.state())?;
            if !polled.events.is_empty() || tokio::time::timeout_at(end, changed).await.is_err() {
                return Ok(polled);
            }
        }
    }
}

impl State {
    fn place(&mut self, entry: impl FnOnce(ControlVersion) -> Received) -> ControlVersion {
        self.newest += 1;
        let version = ControlVersion(self.newest);
        self.entries.insert(self.newest, entry(version));
        version
    }

    fn check_retained(&mut self, after: u64) -> Result<()> {
        let is_beyond = after > self.newest;
        self.begin_again(after);
        if is_beyond || after < self.trimmed {
            return Err(ControlFeedError::BehindRetention { asked: after, oldest: self.floor() + 1 });
        }
        Ok(())
    }

    fn floor(&self) -> u64 {
        self.trimmed.max(self.begun)
    }

    /// Gives all that is there new versions, above a place that is beyond the newest.
    fn begin_again(&mut self, place: u64) {
        let Some(begun) = rules::new_life(place, self.newest, SystemClock.now().0) else { return };
        let floor = self.floor();
        let step = begun - floor;
        let moved = |version: &mut ControlVersion| version.0 += step;
        for mut entry in std::mem::take(&mut self.entries).into_values() {
            match &mut entry {
                Received::Event { version, .. } | Received::Broken { version, .. } => moved(version),
            }
            self.entries.insert(entry.version().0, entry);
        }
        self.ids
            .values_mut()
            .filter(|(version, _)| version.0 > floor)
            .for_each(|(version, _)| moved(version));
        (self.newest, self.begun) = (self.newest + step, begun);
    }

    fn polled(&self, events: Vec<Received>) -> Polled {
        let oldest = self.entries.first_key_value().map_or(0, |(version, _)| *version);
        Polled { events, oldest: ControlVersion(oldest), newest: ControlVersion(self.newest) }
    }
}

impl ControlSource for MemoryFeed {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        let limit = limit.clamp(1, CONTROL_POLL_EVENTS_MAX);
        self.wait(wait, move |state| {
            state.check_retained(after.0)?;
            let new = state.entries.range(after.0.saturating_add(1)..);
            Ok(state.polled(new.take(limit).map(|(_, entry)| entry.clone()).collect()))
        })
        .boxed()
    }
}

impl ControlSink for MemoryFeed {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        let mut state = self.state();
        let digest = event.digest();
        let known = state.ids.get(event.id()).map(|(version, known)| (*version, *known == digest));
        let appended = match known {
            Some((version, true)) => Ok(version),
            Some((_, false)) => Err(ControlFeedError::EventIdTaken { event_id: event.id().to_string() }),
            None => {
                let version = state.place(|version| Received::Event { version, event: event.clone() });
                state.ids.insert(event.id().clone(), (version, digest));
                self.inner.changed.notify_waiters();
                Ok(version)
            }
        };
        ready(appended).boxed()
    }

    fn saw(&self, version: ControlVersion) {
        self.state().begin_again(version.0);
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        let mut state = self.state();
        let through = through.0.min(state.newest);
        state.trimmed = state.trimmed.max(through);
        let before = state.entries.len();
        state.entries.retain(|version, _| *version > through);
        let gone = before - state.entries.len();
        ready(Ok(gone as u64)).boxed()
    }
}

impl MemoryConsumer {
    /// What this host has acknowledged, in the order in which it did.
    pub fn acknowledged(&self) -> Vec<(EventId, ControlVersion)> {
        let state = self.feed.state();
        state.consumers.get(&self.host).map(|consumer| consumer.acknowledged.clone()).unwrap_or_default()
    }
}

impl ControlSource for MemoryConsumer {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        let limit = limit.clamp(1, CONTROL_POLL_EVENTS_MAX);
        self.feed
            .wait(wait, move |state| {
                state.check_retained(after.0)?;
                let (newest, begun) = (state.newest, state.begun);
                let consumer = state.consumers.entry(self.host.clone()).or_default();
                let delivered = consumer.delivered.unwrap_or(after.0).max(begun);
                let again = consumer.waiting.iter().copied();
                let new = delivered.saturating_add(1)..=newest;
                let versions: Vec<u64> = again.chain(new).take(limit).collect();
                consumer.delivered = versions.last().copied().max(Some(delivered));
                let mut events = Vec::new();
                for version in versions {
                    match state.entries.get(&version) {
                        // Nobody can acknowledge it: whoever asks for what is after it has passed it by.
                        Some(Received::Broken { .. }) if version <= after.0 => {}
                        Some(entry) => {
                            events.push(entry.clone());
                            state.consumers.entry(self.host.clone()).or_default().waiting.insert(version);
                            continue;
                        }
                        None => {}
                    }
                    state.consumers.entry(self.host.clone()).or_default().waiting.remove(&version);
                }
                Ok(state.polled(events))
            })
            .boxed()
    }

    fn acker(&self) -> Option<&dyn Acker> {
        Some(self)
    }
}

impl Acker for MemoryConsumer {
    fn acknowledge(&self, event: &EventId, version: ControlVersion) -> BoxFuture<'_, Result<()>> {
        let mut state = self.feed.state();
        let is_it = match state.entries.get(&version.0) {
            Some(Received::Event { event: known, .. }) => known.id() == event,
            _ => false,
        };
        let consumer = state.consumers.entry(self.host.clone()).or_default();
        if is_it && consumer.waiting.remove(&version.0) {
            consumer.acknowledged.push((event.clone(), version));
        }
        ready(Ok(())).boxed()
    }
}

impl Board for MemoryFeed {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        let reported = check_report(host, report).map(|()| {
            self.state().reports.insert(host.to_owned(), (Instant::now(), report.to_owned()));
        });
        ready(reported).boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        let state = self.state();
        let reports = state.reports.iter();
        let reports = reports.map(|(host, (at, report))| (host.clone(), at.elapsed(), report.clone()));
        ready(Ok(reports.collect())).boxed()
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        self.state().reports.remove(host);
        ready(Ok(())).boxed()
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        let mut state = self.state();
        if state.mark.as_ref().is_none_or(|known| known.version <= mark.version) {
            state.mark = Some(mark.clone());
        }
        ready(Ok(())).boxed()
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        self.state().mark = None;
        ready(Ok(())).boxed()
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        ready(Ok(self.state().mark.clone())).boxed()
    }
}
