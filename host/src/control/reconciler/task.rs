//! One plugin on its way, from what is to what should be.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tracing::{Instrument as _, info_span, warn};

use super::Shared;
use super::record::{Trip, Verdict, serving};
use super::trouble::{Hope, Trouble};
use super::want::{Target, Want, spec_digest};
use crate::control::backoff::Backoff;
use crate::control::breaker::{Breaker, Tripped};
use crate::control::{ObservedRow, Phase};
use crate::error::Classify as _;
use crate::plugins::{ControlError, PluginStatus};
use crate::telemetry::metrics::{CONTROL_BREAKER_TRIPS, CONTROL_RECONCILE_TROUBLES};

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) wants: watch::Receiver<Arc<Want>>,
    /// What the store has of it.
    pub(super) row: Option<ObservedRow>,
    /// What serves, as far as is known.
    pub(super) serving: Option<String>,
    /// What was decided here; the store may not have it yet.
    pub(super) verdict: Option<Verdict>,
    pub(super) trip: Option<Trip>,
    /// The list of keys as this try began.
    pub(super) keys: String,
    /// How often the present want was tried, with what the task before this one had tried.
    pub(super) tries: u32,
    pub(super) is_counted: bool,
    doubts: u32,
}

/// How a try ended that did not fail.
pub(super) enum Done {
    /// It is as it should be, and is left alone.
    Settled,
    /// It has begun to serve, and is to be looked after for a while.
    Serves { status: Box<PluginStatus>, since: i64 },
}

enum Guarded {
    Over,
    News,
    Tripped(Trip),
}

impl Task {
    pub(super) fn new(
        shared: Arc<Shared>,
        wants: watch::Receiver<Arc<Want>>,
        row: Option<ObservedRow>,
    ) -> Self {
        let serving = row.as_ref().and_then(|row| row.serving.clone());
        Self {
            shared,
            wants,
            row,
            serving,
            verdict: None,
            trip: None,
            keys: String::new(),
            tries: 0,
            is_counted: false,
            doubts: 0,
        }
    }

    /// Answers what is carried out now.
    pub(super) async fn run(mut self) -> Arc<Want> {
        let plugin = self.wants.borrow().plugin.clone();
        let span = info_span!("control.reconcile", plugin.name = plugin);
        async move { self.work().await }.instrument(span).await
    }

    async fn work(&mut self) -> Arc<Want> {
        let options = self.shared.options;
        let mut backoff = Backoff::new(options.retry_min, options.retry_max);
        let mut want = Arc::clone(&self.wants.borrow_and_update());
        loop {
            match Box::pin(self.try_once(&want)).await {
                Ok(Done::Settled) if !self.is_superseded() => return want,
                Ok(Done::Settled) => {}
                Ok(Done::Serves { status, since }) => match self.guard(&want, &status, since).await {
                    Guarded::Over => return want,
                    Guarded::News => {}
                    Guarded::Tripped(trip) => {
                        self.trip = Some(trip);
                        continue;
                    }
                },
                Err(trouble) if !self.is_superseded() => {
                    if self.note(&want, trouble).await == Hope::None {
                        continue;
                    }
                    // News come to it before the wait is over. Without anybody to bring some it is dropped anyway.
                    let _ = tokio::time::timeout(backoff.next(), self.wants.changed()).await;
                }
                Err(_) => {}
            }
            let next = Arc::clone(&self.wants.borrow_and_update());
            if next != want {
                (self.tries, self.doubts, self.verdict) = (0, 0, None);
                backoff.reset();
                want = next;
            }
        }
    }

    async fn try_once(&mut self, want: &Want) -> Result<Done, Trouble> {
        self.is_counted = false;
        self.keys = self.shared.parts.vet.list();
        if self.row.is_none() {
            let rows = self.shared.parts.store.observed().await?;
            self.row = rows.into_iter().find(|row| row.plugin == want.plugin);
        }
        let found = match self.shared.parts.plugins.show(&want.plugin).await {
            Ok(status) => Some(status),
            Err(ControlError::Unknown { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.serving = found.as_ref().and_then(serving);
        match &want.target {
            Target::Present { spec, paused } => self.bring(want, spec, *paused, found).await,
            Target::Unreached if found.as_ref().is_some_and(|status| want.leaves(&status.deployment)) => {
                if self.row.is_some() {
                    self.forget(&want.plugin).await?;
                }
                Ok(Done::Settled)
            }
            Target::Elsewhere | Target::Unreached => self.retire(want, found).await,
            Target::Removed => self.remove(want, found).await,
        }
    }

    /// The right to fetch and to deploy. What stops or goes back asks for none: others may hold them for as long as the
    /// network takes.
    pub(super) async fn turn(&self) -> Result<Option<OwnedSemaphorePermit>, Trouble> {
        let news = Self::superseded(self.wants.clone());
        tokio::select! {
            // The semaphore is never closed; without it the bound would be missing, and nothing else.
            turn = Arc::clone(&self.shared.turns).acquire_owned() => Ok(turn.ok()),
            () = news => Err(Trouble::superseded()),
        }
    }

    /// What it is worth after a try that failed.
    async fn note(&mut self, want: &Want, trouble: Trouble) -> Hope {
        metrics::counter!(CONTROL_RECONCILE_TROUBLES, "code" => trouble.code.clone()).increment(1);
        warn!(
            error.kind = trouble.code,
            error.blame = trouble.blame,
            revision = want.revision,
            reason = trouble.reason,
            "a plugin is not as the feed wants it yet"
        );
        self.count_try(want);
        // There is nothing to set aside but a version, and that only once.
        let may_end = matches!(want.target, Target::Present { .. }) && self.verdict.is_none();
        let mut hope = if may_end { trouble.hope } else { Hope::Passes };
        if hope == Hope::Doubtful {
            self.doubts += 1;
            hope = if self.doubts > self.shared.options.doubts_max { Hope::None } else { hope };
        }
        if hope == Hope::None {
            let Trouble { code, reason, .. } = trouble;
            self.verdict = Some(Verdict { identity: self.identity(want, &code), code, reason });
        } else if let Err(error) = self.hinder(want, &trouble).await {
            warn!(error.kind = error.code(), error.blame = "host", %error, "how far a plugin is cannot be written down");
        }
        hope
    }

    /// It runs elsewhere.
    async fn retire(&mut self, want: &Want, found: Option<PluginStatus>) -> Result<Done, Trouble> {
        let Some(status) = found else {
            if self.row.is_some() {
                self.forget(&want.plugin).await?;
            }
            return Ok(Done::Settled);
        };
        if !status.deployment.paused {
            self.reach(want, Phase::Draining).await?;
            self.shared.parts.plugins.pause(&want.plugin).await?;
        }
        self.arrive(want, Phase::Retired, None).await?;
        Ok(Done::Settled)
    }

    async fn remove(&mut self, want: &Want, found: Option<PluginStatus>) -> Result<Done, Trouble> {
        if found.is_some() {
            self.reach(want, Phase::Draining).await?;
            match self.shared.parts.plugins.remove(&want.plugin).await {
                Ok(()) | Err(ControlError::Unknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.row.is_some() {
            self.forget(&want.plugin).await?;
        }
        Ok(Done::Settled)
    }

    /// Looks after what began to serve, until it is not new any more, or something else is wanted, or it traps too often.
    async fn guard(&mut self, want: &Want, began: &PluginStatus, since: i64) -> Guarded {
        let rule = self.shared.options.breaker;
        let Target::Present { spec, .. } = &want.target else { return Guarded::Over };
        // What was counted before is another version's, or from before this host was started.
        let mut breaker = Breaker::armed(rule, since.min(self.now()), began.counters.traps);
        while self.is_new(since) {
            if tokio::time::timeout(self.shared.options.breaker_poll, self.wants.changed()).await.is_ok() {
                return Guarded::News;
            }
            let Ok(status) = self.shared.parts.plugins.show(&want.plugin).await else { continue };
            let deployed_at = status.deployment.deployed_at;
            if deployed_at != began.deployment.deployed_at || status.deployment.paused {
                return Guarded::Over;
            }
            // It may stop without a trap; whoever looks at this host is to see it.
            if let Err(error) = self.arrive(want, Phase::Active, Some(&status)).await {
                warn!(error.kind = error.code(), error.blame = "host", %error, "how a plugin is cannot be written down");
            }
            if let Some(traps) = breaker.look(self.now(), status.counters.traps) {
                metrics::counter!(CONTROL_BREAKER_TRIPS).increment(1);
                let digest = &spec.component.digest;
                let tripped = Tripped::new(&want.desired, want.revision, digest, traps, self.now());
                return Guarded::Tripped(Trip { tripped, spec: spec_digest(spec), deployed_at });
            }
        }
        if self.is_superseded() { Guarded::News } else { Guarded::Over }
    }

    fn is_new(&self, since: i64) -> bool {
        // A clock that went back makes it look new.
        let age = u64::try_from(self.now().saturating_sub(since)).unwrap_or(0);
        Duration::from_micros(age) <= self.shared.options.breaker.armed_for
    }

    pub(super) fn is_superseded(&self) -> bool {
        self.wants.has_changed().unwrap_or(false)
    }

    /// Ends once something else is wanted; never when nobody tells.
    pub(super) async fn superseded(mut wants: watch::Receiver<Arc<Want>>) {
        if wants.changed().await.is_err() {
            std::future::pending::<()>().boxed().await;
        }
    }
}
