//! A shadow run from its beginning to its end: live traffic where there is any,
//! the newest of the log where there is not, and a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::ProcessorFactory;
use super::super::runner::{Runner, Shared};
use super::replay::{Replay, Wanted, newest, replay};
use super::{
    Expect, Shadow, ShadowFault, ShadowOutcome, ShadowRefusal, ShadowReport, ShadowSettings, lock, per_event,
};
use crate::limits::{SHADOW_QUIET, SHADOW_TASKS_MAX};

/// Ends a run however it is left.
struct Run<'a> {
    shared: &'a Arc<Shared>,
    shadow: Arc<Shadow>,
    begun: Instant,
    settings: ShadowSettings,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.shared.shadow.set(None);
        self.shadow.abandon();
    }
}

impl Runner {
    /// Has a candidate handle what this processor handles, beside it, and
    /// compares what both make of it. Nothing of the candidate is committed,
    /// and the processor never waits for it. One run at a time; a second one
    /// would end the first. Ends early when it is cancelled.
    pub async fn shadow(
        &self,
        factory: &Arc<dyn ProcessorFactory>,
        settings: &ShadowSettings,
        cancel: &CancellationToken,
    ) -> ShadowOutcome {
        let shared = self.shared();
        let old = shared.factory();
        let pool = shared.pool.clone();
        let shadow = Arc::new(Shadow::new(old.manifest(), Arc::clone(factory), *settings, pool));
        let run = Run { shared, shadow, begun: Instant::now(), settings: *settings };
        if settings.events > 0 {
            tokio::select! {
                () = run.go(&old) => {}
                () = cancel.cancelled() => run.shadow.refuse(ShadowRefusal {
                    fault: ShadowFault::Stopped,
                    message: "the shadow run was ended by another change of the plugin".into(),
                }),
            }
        }
        run.outcome()
    }
}

impl Run<'_> {
    async fn go(&self, old: &Arc<dyn ProcessorFactory>) {
        let shadow = &self.shadow;
        self.shared.shadow.set(Some(Arc::clone(shadow)));
        self.watch().await;
        shadow.close();
        self.shared.shadow.set(None);
        self.settle().await;
        if !shadow.is_refused() && shadow.events() < self.settings.events && self.left() > Duration::ZERO {
            self.replay(old).await;
        }
    }

    /// Until there was enough traffic, or it is quiet, or something went wrong.
    async fn watch(&self) {
        let shadow = &self.shadow;
        let activity = || (shadow.offered.load(Ordering::SeqCst), shadow.done.load(Ordering::SeqCst));
        let mut seen = activity();
        let mut seen_at = Instant::now();
        loop {
            let now = activity();
            if now != seen {
                (seen, seen_at) = (now, Instant::now());
            }
            // Before the time is over the stream may still bring events; after it, it has had its chance.
            let over = self.begun.elapsed() >= self.settings.time;
            let quiet = seen_at.elapsed() >= SHADOW_QUIET.min(self.settings.time);
            if shadow.is_refused() || over || (quiet && shadow.events() < self.settings.events) {
                return;
            }
            let rest = self.settings.time.saturating_sub(self.begun.elapsed());
            let look = SHADOW_QUIET.saturating_sub(seen_at.elapsed());
            let look = if look.is_zero() { SHADOW_QUIET } else { look };
            tokio::select! {
                () = shadow.changed.notified() => {}
                () = tokio::time::sleep(rest.min(look)) => {}
            }
        }
    }

    /// Until the last call has ended and what was done is compared.
    async fn settle(&self) {
        let shadow = &self.shadow;
        while !shadow.is_idle() && !shadow.is_refused() {
            if self.left() == Duration::ZERO {
                shadow.refuse(ShadowRefusal {
                    fault: ShadowFault::Timeout,
                    message: "it was still in a call at the end of shadow_ms_max".into(),
                });
                return;
            }
            tokio::select! {
                () = shadow.changed.notified() => {}
                () = tokio::time::sleep(SHADOW_QUIET.min(self.left())) => {}
            }
        }
    }

    async fn replay(&self, old: &Arc<dyn ProcessorFactory>) {
        let stop = Arc::new(AtomicBool::new(false));
        let _stop_with_me = StopOnDrop(Arc::clone(&stop));
        let deadline = self.begun + self.settings.time_max;
        let mut replayed = 0;
        for task in self.shared.tasks() {
            let wanted_events = self.settings.events.saturating_sub(self.shadow.events());
            if wanted_events == 0 || replayed == SHADOW_TASKS_MAX || self.shadow.is_refused() {
                return;
            }
            // An ended task has nothing to compare with.
            let Some(basis) = task.basis().await else { continue };
            let wanted = Wanted {
                old: old.manifest(),
                new: self.shadow.factory.manifest(),
                lane: task.id.lane,
                lanes: self.shared.settings.lanes,
                events: wanted_events,
            };
            let events = match newest(&*self.shared.log, &task.id.tenant, wanted, deadline).await {
                Ok(events) if events.is_empty() => continue,
                Ok(events) => events,
                Err(error) => {
                    warn!(task.id = %task.id, error.kind = "shadow_unread", error.blame = "host", %error, "no events could be read for a candidate");
                    continue;
                }
            };
            replayed += 1;
            let of_task = Replay {
                task: task.id.clone(),
                basis,
                old: Arc::clone(old),
                events,
                deadline,
                stop: Arc::clone(&stop),
            };
            let shadow = Arc::clone(&self.shadow);
            let (group, tenant) = (Arc::clone(&shadow.group), task.id.tenant.clone());
            let done = self.shared.pool.run_back(group, tenant, move || replay(&shadow, &of_task));
            match tokio::time::timeout(self.left(), done).await {
                Ok(Ok(Ok(()))) => self.shadow.stretch_over(false),
                Ok(Ok(Err(refusal))) => self.shadow.refuse(refusal),
                Ok(Err(error)) => {
                    self.shadow.refuse(ShadowRefusal { fault: ShadowFault::Host, message: error.to_string() })
                }
                Err(_) => self.shadow.refuse(ShadowRefusal {
                    fault: ShadowFault::Timeout,
                    message: "it was still handling events at the end of shadow_ms_max".into(),
                }),
            }
        }
    }

    fn left(&self) -> Duration {
        self.settings.time_max.saturating_sub(self.begun.elapsed())
    }

    fn outcome(&self) -> ShadowOutcome {
        let state_bytes: std::collections::HashMap<_, _> =
            self.shared.tasks().iter().map(|task| (task.id.clone(), task.holds().state_bytes)).collect();
        let mut found = lock(&self.shadow.found);
        let mut report: ShadowReport = found.report.clone();
        report.milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        for (id, figures) in &found.figures {
            let old_state =
                if figures.old_state > 0 { Some(figures.old_state) } else { state_bytes.get(id).copied() };
            report.old.state_bytes += old_state.unwrap_or_default();
            report.new.state_bytes += figures.new_state;
            report.old.memory_bytes += figures.old_memory;
            report.new.memory_bytes += figures.new_memory;
        }
        let (mut old, mut new) = per_event(&found.samples);
        for (times, figures) in [(&mut old, &mut report.old), (&mut new, &mut report.new)] {
            times.sort_unstable();
            figures.nanoseconds_per_event = times.get(times.len() / 2).copied().unwrap_or_default();
        }
        let judged = found.refusal.take();
        let refusal = judged
            .or_else(|| self.shadow.too_slow(&found.samples))
            .or_else(|| differs(&report, self.settings.expect));
        ShadowOutcome { report, refusal }
    }
}

/// What was expected to be equal and is not.
fn differs(report: &ShadowReport, expect: Expect) -> Option<ShadowRefusal> {
    let any = report.rows.any() || report.emitted.any() || report.appended.any();
    if expect == Expect::Anything || !any {
        return None;
    }
    let example = report.examples.first().map(|example| {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "null".into());
        format!(
            "; such as table `{}`, key `{}`, column `{}`: {} became {}",
            example.table,
            example.key,
            example.column,
            value(&example.old),
            value(&example.new)
        )
    });
    let other = |differences: &super::Differences| {
        differences.different + differences.only_old + differences.only_new
    };
    Some(ShadowRefusal {
        fault: ShadowFault::RowsDiffer,
        message: format!(
            "identical rows were expected; {} rows, {} emitted events and {} appended entries differ{}",
            other(&report.rows),
            other(&report.emitted),
            other(&report.appended),
            example.unwrap_or_default()
        ),
    })
}

/// A replay that nobody waits for any more ends with its present call.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
