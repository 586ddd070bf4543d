//! Carries out on this host what is desired.
//!
//! Promises: it compares what should be with what is and does what is missing, at news, at start and now and then; so it
//! goes on from any point at which it ended, and what runs already is left alone. One plugin never waits for another, up
//! to `CONTROL_RECONCILE_PLUGINS_MAX` at a time, and to stop or to go back it never waits at all. What serves goes on
//! serving until the version after it has proved itself; a revision that cannot be carried out is set aside with its
//! reason, and the next one is tried again. What may pass is tried until it does. A version that traps soon after it took
//! over goes back to the one before it, if that is what the others run, without any network. The way back from what the
//! fleet has taken back is not measured beside that one; where it is barred, the plugin is paused. How far each plugin is
//! stands in the store.
//! Deliberately absent: what should run. Whoever deploys another way what the feed names is refused
//! (`plugins::ManagedPlugins`), also with `--insecure-dev`: it would be undone a moment later. What others have deployed
//! before is theirs until its first rollout comes here.

mod bring;
mod deploy;
mod pins;
mod record;
mod supply;
mod task;
mod trouble;
mod want;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use supply::{Supply, Vet};

use self::task::Task;
use self::want::{Target, Want};
use super::backoff::Backoff;
use super::breaker::BreakerRule;
use super::{ControlStore, Result};
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::limits::{
    CONTROL_BREAKER_POLL, CONTROL_GIVE_UP_EVERY, CONTROL_RECONCILE_DOUBTS_MAX, CONTROL_RECONCILE_EVERY,
    CONTROL_RECONCILE_PLUGINS_MAX, CONTROL_RECONCILE_RETRY_MAX, CONTROL_RECONCILE_RETRY_MIN,
};
use crate::plugins::{ManagedPlugins, PluginControl, PluginSettings};

/// What a reconciler works with.
#[derive(Clone, Debug)]
pub struct ReconcilerParts {
    pub store: Arc<dyn ControlStore>,
    /// For the feed's changes: `plugins::Registry::for_feed`.
    pub plugins: Arc<dyn PluginControl>,
    /// Is told which plugins the feed names.
    pub managed: ManagedPlugins,
    pub supply: Arc<dyn Supply>,
    pub vet: Arc<dyn Vet>,
    pub clock: Arc<dyn Clock>,
    /// This host's id and labels, by which rollouts find it.
    pub host: String,
    pub labels: BTreeMap<String, String>,
    /// The operator's settings by plugin, for what no event says: `http_ca_file`, `on_failure`, `on_position_lost`.
    pub settings: BTreeMap<String, PluginSettings>,
}

#[derive(Clone, Copy, Debug)]
pub struct ReconcilerOptions {
    pub every: Duration,
    pub plugins_max: usize,
    pub retry_min: Duration,
    pub retry_max: Duration,
    pub doubts_max: u32,
    pub give_up_every: Duration,
    pub breaker: BreakerRule,
    pub breaker_poll: Duration,
}

impl Default for ReconcilerOptions {
    fn default() -> Self {
        Self {
            every: CONTROL_RECONCILE_EVERY,
            plugins_max: CONTROL_RECONCILE_PLUGINS_MAX,
            retry_min: CONTROL_RECONCILE_RETRY_MIN,
            retry_max: CONTROL_RECONCILE_RETRY_MAX,
            doubts_max: CONTROL_RECONCILE_DOUBTS_MAX,
            give_up_every: CONTROL_GIVE_UP_EVERY,
            breaker: BreakerRule::default(),
            breaker_poll: CONTROL_BREAKER_POLL,
        }
    }
}

/// Brings every plugin of this host to its desired state, and keeps it there.
#[derive(Clone, Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: ReconcilerParts,
    options: ReconcilerOptions,
    /// The right to fetch and deploy a version.
    turns: Arc<Semaphore>,
    /// Counts what was written down of plugins.
    observed: watch::Sender<u64>,
}

/// Which plugins are being worked on, and what was carried out last of the others.
#[derive(Default)]
struct Work {
    tasks: JoinSet<Arc<Want>>,
    running: BTreeMap<String, watch::Sender<Arc<Want>>>,
    names: HashMap<Id, String>,
    done: BTreeMap<String, Arc<Want>>,
    /// By which keys.
    keys: String,
    /// Those that were worked on with the keys before.
    again: BTreeSet<String>,
}

/// Whether what was carried out is compared with what runs, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    News,
    Everything,
}

impl Reconciler {
    pub fn new(parts: ReconcilerParts, options: ReconcilerOptions) -> Self {
        let turns = Arc::new(Semaphore::new(options.plugins_max.max(1)));
        Self { shared: Arc::new(Shared { parts, options, turns, observed: watch::Sender::new(0) }) }
    }

    /// Changes whenever the store has news of how far a plugin is.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.shared.observed.subscribe()
    }

    /// Works until it is told to stop, and looks again whenever `news` changes: `Applier::follow`. What is under way then is
    /// dropped: a deploy that has begun ends by itself, and everything else is done again.
    pub async fn run<T>(&self, mut news: watch::Receiver<T>, stop: &CancellationToken) {
        // Cut at any await, see above.
        stop.run_until_cancelled(self.work(&mut news)).await;
    }

    async fn work<T>(&self, news: &mut watch::Receiver<T>) {
        let options = &self.shared.options;
        let mut backoff = Backoff::new(options.retry_min, options.retry_max);
        let mut work = Work::default();
        let mut look = Look::Everything;
        let mut news_end = false;
        loop {
            let wait = match self.look(look, &mut work).await {
                Ok(()) => {
                    backoff.reset();
                    options.every
                }
                Err(problem) => {
                    warn!(
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        %problem,
                        "what is desired here cannot be read; what runs goes on"
                    );
                    backoff.next()
                }
            };
            let next = tokio::time::sleep(wait);
            tokio::pin!(next);
            look = loop {
                tokio::select! {
                    changed = news.changed(), if !news_end => match changed {
                        Ok(()) => break Look::News,
                        // Nobody tells any more; it still looks now and then.
                        Err(_) => news_end = true,
                    },
                    Some(ended) = work.tasks.join_next_with_id() => self.ended(ended, &mut work),
                    () = &mut next => break Look::Everything,
                }
            };
        }
    }

    /// Tells every plugin's task what is desired, and starts those that have something to do.
    async fn look(&self, look: Look, work: &mut Work) -> Result<()> {
        let parts = &self.shared.parts;
        let keys = parts.vet.list();
        let are_new = work.keys != keys;
        let look = if are_new { Look::Everything } else { look };
        let unreadable = parts.store.unreadable().await?;
        let (_, rows) = parts.store.desired().await?;
        let observed = parts.store.observed().await?;
        let wants: Vec<Want> =
            rows.iter().filter_map(|row| Want::of(row, &parts.host, &parts.labels)).collect();
        let mut managed = self.managed(&wants).await;
        managed.extend(unreadable.plugins());
        parts.managed.set(managed);
        for want in wants {
            if let Some(running) = work.running.get(&want.plugin) {
                if are_new {
                    work.again.insert(want.plugin.clone());
                }
                running.send_if_modified(|known| {
                    let is_other = **known != want;
                    if is_other {
                        *known = Arc::new(want);
                    }
                    is_other
                });
                continue;
            }
            if look == Look::News && work.done.get(&want.plugin).is_some_and(|done| **done == want) {
                continue;
            }
            let row = observed.iter().find(|row| row.plugin == want.plugin).cloned();
            if let Some(row) = row.as_ref().filter(|row| row.revision > want.revision) {
                warn!(
                    error.kind = "control_revision_past",
                    error.blame = "host",
                    plugin.name = want.plugin,
                    revision = want.revision,
                    carried_out = row.revision,
                    "what is desired is older than what was carried out; it is left as it is"
                );
                continue;
            }
            self.start(Arc::new(want), work, |wants| Task::new(Arc::clone(&self.shared), wants, row));
        }
        work.keys = keys;
        Ok(())
    }

    /// The plugins that only the feed may change here.
    async fn managed(&self, wants: &[Want]) -> BTreeSet<String> {
        let mut managed = BTreeSet::new();
        for want in wants {
            let is_others = want.target == Target::Unreached
                && self
                    .shared
                    .parts
                    .plugins
                    .show(&want.plugin)
                    .await
                    .is_ok_and(|status| want.leaves(&status.deployment));
            if !is_others {
                managed.insert(want.plugin.clone());
            }
        }
        managed
    }

    fn start(&self, want: Arc<Want>, work: &mut Work, task: impl FnOnce(watch::Receiver<Arc<Want>>) -> Task) {
        let plugin = want.plugin.clone();
        let (wants, follow) = watch::channel(want);
        let handle = work.tasks.spawn(task(follow).run());
        work.names.insert(handle.id(), plugin.clone());
        work.running.insert(plugin, wants);
    }

    /// A plugin is where it should be, unless it was told more in its last moment, or had asked other keys.
    fn ended(&self, ended: std::result::Result<(Id, Arc<Want>), JoinError>, work: &mut Work) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(plugin) = work.names.remove(&id) else { return };
        let Some(wants) = work.running.remove(&plugin) else { return };
        let is_again = work.again.remove(&plugin);
        match ended {
            Ok((_, done)) => {
                let latest = Arc::clone(&wants.borrow());
                if latest == done && !is_again {
                    work.done.insert(plugin, done);
                } else {
                    // What the task knew is in the store; it reads it again.
                    self.start(latest, work, |wants| Task::new(Arc::clone(&self.shared), wants, None));
                }
            }
            Err(problem) => {
                work.done.remove(&plugin);
                error!(error.kind = "panic", error.blame = "host", plugin.name = plugin, %problem, "a plugin's reconciler fell; it begins again at the next look");
            }
        }
    }
}
