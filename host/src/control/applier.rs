//! Carries the feed into this host's store.
//!
//! Promises: an entry's effect, its id and the cursor are committed together, and only then is the source told; whatever is
//! dropped or fails in between comes again and changes nothing twice. What is wrong for ever is set aside, and what comes
//! behind it is applied; what may pass ends the round, and is tried again after a growing wait. Keys that an event changes
//! count from the next event on. Deliberately absent: anything that takes long. What is to run is fetched, compiled and
//! started by whoever follows [`Applier::follow`].

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::{
    Applied, AppliedOutcome, Believing, ControlEvent, ControlFeedError, ControlSource, ControlStore,
    ControlVersion, DesiredRow, Entry, EventBody, EventId, Quarantined, Received, Restore, Restored, Result,
};
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::limits::{
    CONTROL_APPLIED_EVENTS_KEPT, CONTROL_APPLY_EVENTS_MAX, CONTROL_APPLY_POLL_EVENTS,
    CONTROL_APPLY_RETRY_MAX, CONTROL_APPLY_RETRY_MIN, CONTROL_FORGET_EVERY, CONTROL_HEAL_EVERY,
    CONTROL_POLL_GAP, CONTROL_POLL_WAIT,
};
use crate::telemetry::metrics::{
    CONTROL_ACKS_FAILED, CONTROL_APPLIED, CONTROL_CURSOR, CONTROL_POLLS_FAILED, CONTROL_QUARANTINED,
    CONTROL_RESTORED,
};

/// Brings a store to the state of the fleet by another way than the feed.
pub trait Bootstrap: Send + Sync + Debug {
    /// Restores what the feed does not have any more: everything before `oldest`. Nobody signs how far a snapshot goes, so the
    /// cursor does not go beyond what the feed says is its newest: what is above that would be passed by unread.
    fn bootstrap(&self, oldest: ControlVersion, newest: ControlVersion) -> BoxFuture<'_, Result<Restored>>;

    /// What the feed says is its newest, or that it does not say.
    fn saw_newest(&self, _newest: Option<ControlVersion>) {}

    /// Compares this host with the fleet and repairs what it has missed; the cursor stays. None when there was nothing to
    /// repair.
    fn heal(&self) -> BoxFuture<'_, Result<Option<Restored>>>;

    /// Restores what the fleet has, whether or not this host seems to differ; the cursor stays. None when there is nothing
    /// to restore from.
    fn resync(&self) -> BoxFuture<'_, Result<Option<Restored>>> {
        self.heal()
    }
}

/// For a host that has nowhere to start from.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBootstrap;

impl Bootstrap for NoBootstrap {
    fn bootstrap(&self, oldest: ControlVersion, _newest: ControlVersion) -> BoxFuture<'_, Result<Restored>> {
        let missing = ControlFeedError::BehindRetention { asked: 0, oldest: oldest.0 };
        std::future::ready(Err(missing)).boxed()
    }

    fn heal(&self) -> BoxFuture<'_, Result<Option<Restored>>> {
        std::future::ready(Ok(None)).boxed()
    }
}

/// What an applier works with.
#[derive(Clone, Debug)]
pub struct ApplierSeams {
    pub source: Arc<dyn ControlSource>,
    pub store: Arc<dyn ControlStore>,
    pub keys: Believing,
    pub bootstrap: Arc<dyn Bootstrap>,
    pub clock: Arc<dyn Clock>,
}

#[derive(Clone, Copy, Debug)]
pub struct ApplierOptions {
    /// Entries that are applied in one transaction.
    pub events_max: usize,
    pub poll_wait: Duration,
    pub poll_gap: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
    pub heal_every: Duration,
    /// This host makes the fleet's snapshots. Where the feed has lost what comes after the newest of them, it waits for no
    /// better one: it goes on where the feed does, and the others follow with its next snapshot.
    pub is_origin: bool,
}

impl Default for ApplierOptions {
    fn default() -> Self {
        Self {
            events_max: CONTROL_APPLY_EVENTS_MAX,
            poll_wait: CONTROL_POLL_WAIT,
            poll_gap: CONTROL_POLL_GAP,
            retry_min: CONTROL_APPLY_RETRY_MIN,
            retry_max: CONTROL_APPLY_RETRY_MAX,
            heal_every: CONTROL_HEAL_EVERY,
            is_origin: false,
        }
    }
}

/// How far this host knows the feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// False until the store was read.
    pub loaded: bool,
    pub cursor: ControlVersion,
    pub entities: BTreeMap<String, KnownEntity>,
}

/// Which event an entity's desired state comes from. Another event is another state, also at the same revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownEntity {
    pub revision: u64,
    pub event: EventId,
}

#[derive(Debug)]
pub struct Applier {
    seams: ApplierSeams,
    options: ApplierOptions,
    known: watch::Sender<Known>,
}

/// Between two rounds.
struct Progress {
    loaded: bool,
    /// After an error, entries are applied one by one, so that those before the one that fails get through.
    one_by_one: bool,
    since_forgotten: u64,
    healed_at: Option<Instant>,
}

impl Applier {
    pub fn new(seams: ApplierSeams, options: ApplierOptions) -> Self {
        Self { seams, options, known: watch::Sender::new(Known::default()) }
    }

    /// What is desired here changed whenever this does. It is complete: whoever misses one change sees it in the next.
    pub fn follow(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Brings this host to the state of the fleet now, beside what [`Applier::run`] does.
    pub async fn resync(&self) -> Result<Option<Restored>> {
        let restored = self.seams.bootstrap.resync().await?;
        if let Some(restored) = &restored {
            counter!(CONTROL_RESTORED, "cause" => "asked").increment(1);
            info!(control.version = restored.cursor.0, entities = ?restored.entities, "the state of the fleet was restored");
            self.load().await?;
        }
        Ok(restored)
    }

    /// Polls at once and until it is told to stop. Whatever it awaits then is dropped: a transaction of the store is done or
    /// not, and what was not acknowledged comes again.
    pub async fn run(&self, stop: &CancellationToken) {
        // Cut at any await, see above.
        stop.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        let mut backoff = Backoff::new(self.options.retry_min, self.options.retry_max);
        let mut progress = Progress { loaded: false, one_by_one: false, since_forgotten: 0, healed_at: None };
        loop {
            match self.round(&mut progress).await {
                Ok(()) => {
                    backoff.reset();
                    progress.one_by_one = false;
                }
                Err(problem) => {
                    progress.one_by_one = true;
                    // What was not answered may be done: keys and state are read anew.
                    progress.loaded = false;
                    counter!(CONTROL_POLLS_FAILED).increment(1);
                    warn!(
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        %problem,
                        "the control feed is not read; what runs goes on"
                    );
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn round(&self, progress: &mut Progress) -> Result<()> {
        if !progress.loaded {
            self.load().await?;
            progress.loaded = true;
        }
        let begun = Instant::now();
        let cursor = self.seams.store.cursor().await?;
        let polled = self.seams.source.poll(cursor, CONTROL_APPLY_POLL_EVENTS, self.options.poll_wait).await;
        self.seams.bootstrap.saw_newest(polled.as_ref().ok().map(|polled| polled.newest));
        let polled = match polled {
            Err(ControlFeedError::BehindRetention { oldest, .. }) => {
                return self.catch_up(cursor, ControlVersion(oldest)).await;
            }
            polled => polled?,
        };
        let is_quiet = polled.events.is_empty();
        self.apply(polled.events, progress).await?;
        if is_quiet && progress.healed_at.is_none_or(|at| at.elapsed() >= self.options.heal_every) {
            progress.healed_at = Some(Instant::now());
            if let Err(problem) = self.heal().await {
                // The feed goes on meanwhile.
                progress.loaded = false;
                warn!(
                    error.kind = problem.code(),
                    error.blame = problem.blame().as_str(),
                    %problem,
                    "this host cannot compare itself with the fleet, or repair what it has missed"
                );
            }
        }
        if self.known.borrow().cursor == cursor {
            // Nothing, or only what came before and is not acknowledged: it would come again at once.
            tokio::time::sleep_until(begun + self.options.poll_gap).await;
        }
        Ok(())
    }

    /// Applies entries in their order, several in one transaction.
    async fn apply(&self, received: Vec<Received>, progress: &mut Progress) -> Result<()> {
        let most = if progress.one_by_one { 1 } else { self.options.events_max };
        let mut entries = Vec::new();
        for entry in received {
            let entry = self.judge(entry);
            // What follows is judged by the keys that it brings.
            let changes_keys = trust_of(&entry.0).is_some();
            entries.push(entry);
            if changes_keys || entries.len() >= most {
                self.commit(std::mem::take(&mut entries), progress).await?;
            }
        }
        self.commit(entries, progress).await
    }

    /// What an entry is to this host, and the id to acknowledge it by. What cannot be read has none: whoever asks for what
    /// comes after it has passed it by.
    fn judge(&self, received: Received) -> (Entry, Option<EventId>) {
        let now = self.seams.clock.now();
        let (version, event) = match received {
            Received::Event { version, event } => (version, event),
            Received::Broken { version, name, code, reason } => {
                let quarantined = Quarantined::new(version, &name, code, &reason, now.0);
                return (Entry::SetAside { quarantined, event: None }, None);
            }
        };
        let (keys, id) = (self.seams.keys.keys(), event.id().clone());
        if event.unsigned().body == EventBody::Unknown || keys.is_past(&event) {
            return (Entry::PassedBy { version }, Some(id));
        }
        let entry = match keys.check_event(&event, now) {
            Ok(()) => Entry::Event { version, event },
            Err(refused) => {
                let (code, reason) = (refused.code(), refused.to_string());
                let quarantined = Quarantined::new(version, id.as_str(), code, &reason, now.0);
                Entry::SetAside { quarantined, event: Some(event) }
            }
        };
        (entry, Some(id))
    }

    async fn commit(&self, entries: Vec<(Entry, Option<EventId>)>, progress: &mut Progress) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let (entries, ids): (Vec<Entry>, Vec<Option<EventId>>) = entries.into_iter().unzip();
        let applied = self.seams.store.take(entries.clone()).await?;
        self.committed(&entries, &applied);
        for (entry, id) in entries.iter().zip(ids) {
            if let Some(id) = id {
                self.acknowledge(&id, version_of(entry)).await;
            }
        }
        progress.since_forgotten += entries.len() as u64;
        if progress.since_forgotten >= CONTROL_FORGET_EVERY {
            let through = self.seams.store.applied_beyond(CONTROL_APPLIED_EVENTS_KEPT).await?;
            self.seams.store.forget_applied(through).await?;
            progress.since_forgotten = 0;
        }
        Ok(())
    }

    /// Tells of what is durable now: keys first, since the next entry is judged by them.
    fn committed(&self, entries: &[Entry], applied: &[Applied]) {
        for (entry, applied) in entries.iter().zip(applied) {
            self.tell(entry, applied);
            if let (Some(event), AppliedOutcome::Changed) = (trust_of(entry), &applied.outcome) {
                self.learn(event);
            }
        }
        let cursor = applied.iter().map(|applied| applied.cursor).max().unwrap_or_default();
        gauge!(CONTROL_CURSOR).set(cursor.0 as f64);
        self.known.send_modify(|known| {
            known.cursor = known.cursor.max(cursor);
            for (entry, applied) in entries.iter().zip(applied) {
                if let (Entry::Event { event, .. }, AppliedOutcome::Changed) = (entry, &applied.outcome) {
                    let state =
                        KnownEntity { revision: event.unsigned().revision, event: event.id().clone() };
                    known.entities.insert(event.entity(), state);
                }
            }
        });
    }

    fn tell(&self, entry: &Entry, applied: &Applied) {
        let version = version_of(entry).0;
        let outcome = match &applied.outcome {
            AppliedOutcome::Changed => "changed",
            AppliedOutcome::Repeated => "repeated",
            AppliedOutcome::Superseded => "superseded",
            AppliedOutcome::PassedBy => "passed_by",
            AppliedOutcome::Quarantined { code, reason } => {
                counter!(CONTROL_QUARANTINED, "code" => code.clone()).increment(1);
                warn!(
                    error.kind = code.as_str(),
                    error.blame = "caller",
                    control.version = version,
                    reason = reason.as_str(),
                    "a control event was set aside"
                );
                "quarantined"
            }
        };
        counter!(CONTROL_APPLIED, "outcome" => outcome).increment(1);
        if let Some(ousted) = &applied.ousted {
            counter!(CONTROL_QUARANTINED, "code" => "revision_conflict").increment(1);
            warn!(
                error.kind = "revision_conflict",
                error.blame = "caller",
                control.version = version,
                event = ousted.as_str(),
                "a control event was set aside for one of its revision that is before it in the feed"
            );
        }
    }

    fn learn(&self, event: &ControlEvent) {
        match self.seams.keys.learn(event) {
            Ok(false) => {}
            Ok(true) => info!(
                control.version = self.known.borrow().cursor.0,
                revision = event.unsigned().revision,
                "the trusted keys changed"
            ),
            Err(problem) => error!(
                error.kind = problem.code(),
                error.blame = problem.blame().as_str(),
                %problem,
                "a list of trusted keys cannot be used; the former one stays"
            ),
        }
    }

    /// After the commit. When it fails the event comes again, changes nothing, and is acknowledged then.
    async fn acknowledge(&self, event: &EventId, version: ControlVersion) {
        let Some(acker) = self.seams.source.acker() else { return };
        if let Err(problem) = acker.acknowledge(event, version).await {
            counter!(CONTROL_ACKS_FAILED).increment(1);
            warn!(
                error.kind = problem.code(),
                error.blame = problem.blame().as_str(),
                control.version = version.0,
                %problem,
                "an applied control event was not acknowledged"
            );
        }
    }

    /// Reads what this host knew when it ended.
    async fn load(&self) -> Result<()> {
        let (cursor, rows) = self.seams.store.desired().await?;
        for row in &rows {
            if matches!(row.event.unsigned().body, EventBody::Trust(_)) {
                self.learn(&row.event);
            }
        }
        // What a restore beside this may have told of since is not taken back.
        self.known.send_modify(|known| {
            known.loaded = true;
            known.cursor = known.cursor.max(cursor);
            gauge!(CONTROL_CURSOR).set(known.cursor.0 as f64);
            for DesiredRow { entity, revision, event, .. } in rows {
                if known.entities.get(&entity).is_none_or(|known| known.revision <= revision) {
                    known.entities.insert(entity, KnownEntity { revision, event: event.id().clone() });
                }
            }
        });
        Ok(())
    }

    async fn catch_up(&self, cursor: ControlVersion, oldest: ControlVersion) -> Result<()> {
        warn!(
            error.kind = "control_behind_retention",
            error.blame = "host",
            control.version = cursor.0,
            oldest = oldest.0,
            "the control feed does not go back far enough; this host starts from a snapshot"
        );
        let before = ControlVersion(oldest.0.saturating_sub(1));
        let newest = match self.seams.source.poll(before, 1, Duration::ZERO).await {
            Ok(polled) => polled.newest.max(before),
            Err(ControlFeedError::BehindRetention { .. }) => before,
            Err(problem) => return Err(problem),
        };
        let restored = match self.seams.bootstrap.bootstrap(oldest, newest).await {
            Err(ControlFeedError::BehindRetention { .. }) if self.options.is_origin => {
                self.seams.bootstrap.resync().await?
            }
            restored => Some(restored?),
        };
        counter!(CONTROL_RESTORED, "cause" => "retention").increment(1);
        // Who knows nothing, and finds nothing to start from, would mark an empty fleet.
        let knows = cursor.0 > 0 || restored.is_some();
        if self.options.is_origin && knows && self.seams.store.cursor().await? < before {
            error!(
                error.kind = "control_feed_lost",
                error.blame = "host",
                control.version = cursor.0,
                oldest = oldest.0,
                "the control feed has lost what came after the newest snapshot; the fleet goes on without it"
            );
            self.seams.store.restore(Restore { version: before, ..Restore::default() }).await?;
        }
        self.load().await?;
        let reached = self.seams.store.cursor().await?;
        if reached < before || reached == cursor {
            // The snapshot is older than the feed, and the origin makes a newer one; or the feed is another one, and has
            // nothing yet. Either way the same would be answered at once.
            return Err(ControlFeedError::BehindRetention { asked: reached.0, oldest: oldest.0 });
        }
        Ok(())
    }

    async fn heal(&self) -> Result<()> {
        if let Some(restored) = self.seams.bootstrap.heal().await? {
            counter!(CONTROL_RESTORED, "cause" => "drift").increment(1);
            warn!(
                error.kind = "control_drift",
                error.blame = "host",
                control.version = restored.cursor.0,
                entities = ?restored.entities,
                "this host had missed changes of the fleet and has them now"
            );
        }
        // Also what a restore has brought that was cut off before anybody was told of it: keys, above all.
        self.load().await
    }
}

fn version_of(entry: &Entry) -> ControlVersion {
    match entry {
        Entry::Event { version, .. } | Entry::PassedBy { version } => *version,
        Entry::SetAside { quarantined, .. } => quarantined.version,
    }
}

fn trust_of(entry: &Entry) -> Option<&ControlEvent> {
    match entry {
        Entry::Event { event, .. } if matches!(event.unsigned().body, EventBody::Trust(_)) => Some(event),
        _ => None,
    }
}
