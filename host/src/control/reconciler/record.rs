//! Writing down how far a plugin is.

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::task::Task;
use super::trouble::Trouble;
use super::want::{Want, spec_digest};
use crate::control::breaker::Tripped;
use crate::control::report::PLUGIN_FAILED;
use crate::control::{ObservedRow, Phase, PluginSpec, Result, cut};
use crate::plugins::{PluginState, PluginStatus};
use crate::telemetry::metrics::{CONTROL_RECONCILED, CONTROL_SET_ASIDE};

/// Code of a version that was taken back for its traps.
pub(super) const TRIPPED: &str = "breaker_tripped";

/// Code of a version whose build no key vouches for, in the list of the time.
const UNTRUSTED: &str = "control_event_untrusted";

/// A revision that is not carried out here, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) identity: String,
    pub(super) code: String,
    pub(super) reason: String,
}

/// A version that was taken back for its traps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trip {
    pub(super) tripped: Tripped,
    /// With which configuration and bounds: another one may do.
    pub(super) spec: String,
    /// Names the deployment that tripped: once another one serves, the way back is done.
    pub(super) deployed_at: i64,
}

/// What is to be seen of a plugin.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) phase: Phase,
    pub(super) serving: Option<String>,
    pub(super) reason: Option<(String, String)>,
}

impl Task {
    /// Durable when it answers. What is there already is not written again.
    pub(super) async fn observe(&mut self, want: &Want, seen: Seen) -> Result<()> {
        let known = self.row.as_ref().filter(|row| row.revision == want.revision);
        let since = known.filter(|row| row.phase == seen.phase).map_or_else(|| self.now(), |row| row.since);
        let reason = seen.reason.map(|(code, reason)| (code, cut(&reason)));
        let row = ObservedRow {
            plugin: want.plugin.clone(),
            revision: want.revision,
            phase: seen.phase,
            serving: seen.serving,
            reason,
            since,
            attempts: self.attempts(want),
        };
        if self.row.as_ref() != Some(&row) {
            self.shared.parts.store.observe(&row).await?;
            self.row = Some(row);
            self.shared.observed.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }

    /// The next phase of a version that is being brought. Another try begins where the last one came to, for whoever looks.
    pub(super) async fn reach(&mut self, want: &Want, phase: Phase) -> Result<()> {
        let reached =
            self.row.as_ref().filter(|row| row.revision == want.revision).and_then(|row| rank(row.phase));
        if rank(phase).is_some_and(|next| reached.is_some_and(|reached| next <= reached)) {
            return Ok(());
        }
        let serving = self.serving.clone();
        self.observe(want, Seen { phase, serving, reason: None }).await
    }

    /// What hinders it for now. The phase that it has reached stays.
    pub(super) async fn hinder(&mut self, want: &Want, trouble: &Trouble) -> Result<()> {
        let reached = self.row.as_ref().filter(|row| row.revision == want.revision);
        let phase = reached.map_or(Phase::Absent, |row| row.phase);
        if phase == Phase::Quarantined {
            // Why it was set aside is still to be acted on.
            return Ok(());
        }
        let (serving, reason) = (self.serving.clone(), Some((trouble.code.clone(), trouble.reason.clone())));
        self.observe(want, Seen { phase, serving, reason }).await
    }

    /// It is where it should be.
    pub(super) async fn arrive(
        &mut self,
        want: &Want,
        phase: Phase,
        status: Option<&PluginStatus>,
    ) -> Result<()> {
        self.serving = status.and_then(serving);
        let failed = status.filter(|status| status.state == PluginState::Failed);
        let reason = failed.map(|status| (PLUGIN_FAILED.to_owned(), status.message.clone()));
        let is_news = self.row.as_ref().is_none_or(|row| row.revision != want.revision || row.phase != phase);
        let serving = self.serving.clone();
        self.observe(want, Seen { phase, serving, reason }).await?;
        if is_news {
            let outcome = name(phase);
            metrics::counter!(CONTROL_RECONCILED, "outcome" => outcome).increment(1);
            info!(
                plugin.name = want.plugin,
                revision = want.revision,
                outcome,
                "plugin is as the feed wants it"
            );
        }
        Ok(())
    }

    /// Sets a revision aside: first on what account, then that it is so. A start in between tries it again.
    pub(super) async fn set_aside(&mut self, want: &Want, verdict: &Verdict) -> Result<()> {
        let (store, note) = (&self.shared.parts.store, note(&want.plugin));
        if store.note(&note).await?.as_deref() != Some(verdict.identity.as_str()) {
            store.set_note(&note, Some(&verdict.identity)).await?;
        }
        let is_news = self
            .row
            .as_ref()
            .is_none_or(|row| row.revision != want.revision || row.phase != Phase::Quarantined);
        let reason = Some((verdict.code.clone(), verdict.reason.clone()));
        let serving = self.serving.clone();
        self.observe(want, Seen { phase: Phase::Quarantined, serving, reason }).await?;
        if is_news {
            metrics::counter!(CONTROL_SET_ASIDE, "code" => verdict.code.clone()).increment(1);
            warn!(
                error.kind = verdict.code,
                error.blame = "caller",
                plugin.name = want.plugin,
                revision = want.revision,
                reason = verdict.reason,
                "a revision is not carried out here"
            );
        }
        Ok(())
    }

    /// What a verdict of that code is about. A build that nobody vouches for may only be ahead of its key: those come by
    /// ways of their own.
    pub(super) fn identity(&self, want: &Want, code: &str) -> String {
        let identity = want.identity();
        if code == UNTRUSTED { format!("{identity} {}", self.keys) } else { identity }
    }

    /// The verdict on what is wanted, if there is one.
    pub(super) async fn verdict(&mut self, want: &Want) -> Result<Option<Verdict>> {
        // One of other keys is over, and this try may end with the next.
        let remembered = self.verdict.take();
        self.verdict = remembered.filter(|verdict| verdict.identity == self.identity(want, &verdict.code));
        if self.verdict.is_some() {
            return Ok(self.verdict.clone());
        }
        let set_aside = |row: &&ObservedRow| row.revision == want.revision && row.phase == Phase::Quarantined;
        let Some((code, reason)) = self.row.as_ref().filter(set_aside).and_then(|row| row.reason.clone())
        else {
            return Ok(None);
        };
        let about = self.shared.parts.store.note(&note(&want.plugin)).await?;
        let identity = self.identity(want, &code);
        // Another event of this revision has taken its place, or this host was given other labels or keys.
        let is_it = about.as_deref() == Some(identity.as_str());
        Ok(is_it.then_some(Verdict { identity, code, reason }))
    }

    /// What tripped, if it is what is wanted and nobody has released it again.
    pub(super) async fn trip(&self, want: &Want, spec: &PluginSpec) -> Result<Option<Trip>> {
        let trip = match &self.trip {
            Some(trip) => Some(trip.clone()),
            None => {
                let written = self.shared.parts.store.note(&trip_note(&want.plugin)).await?;
                written.and_then(|text| serde_json::from_str(&text).ok())
            }
        };
        Ok(trip.filter(|trip: &Trip| {
            trip.spec == spec_digest(spec)
                && trip.tripped.blocks(&want.desired, want.revision, &spec.component.digest)
        }))
    }

    /// Remembers what tripped.
    pub(super) async fn write_trip(&self, want: &Want, trip: &Trip) -> Result<()> {
        let (store, note) = (&self.shared.parts.store, trip_note(&want.plugin));
        let text = serde_json::to_string(trip).unwrap_or_default();
        if store.note(&note).await?.as_deref() != Some(text.as_str()) {
            store.set_note(&note, Some(&text)).await?;
        }
        Ok(())
    }

    /// Nothing is known of the plugin any more.
    pub(super) async fn forget(&mut self, plugin: &str) -> Result<()> {
        self.shared.unpin_all(plugin).await?;
        let store = &self.shared.parts.store;
        store.set_note(&note(plugin), None).await?;
        store.set_note(&trip_note(plugin), None).await?;
        store.forget_observed(plugin).await?;
        self.shared.observed.send_modify(|count| *count = count.wrapping_add(1));
        self.row = None;
        Ok(())
    }

    /// One more try of what is wanted, if this one is not counted yet.
    pub(super) fn count_try(&mut self, want: &Want) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.tries = self.attempts(want).saturating_add(1);
        }
    }

    fn attempts(&self, want: &Want) -> u32 {
        let known = self.row.as_ref().filter(|row| row.revision == want.revision);
        known.map_or(0, |row| row.attempts).max(self.tries)
    }

    pub(super) fn now(&self) -> i64 {
        self.shared.parts.clock.now().0
    }
}

/// The digest of what serves, if something does.
pub(super) fn serving(status: &PluginStatus) -> Option<String> {
    let serves = !status.deployment.paused && status.manifest.is_some();
    serves.then(|| format!("sha256:{}", status.deployment.digest))
}

/// The order of the phases on the way to serving.
fn rank(phase: Phase) -> Option<u8> {
    let way =
        [Phase::Absent, Phase::Fetched, Phase::Verified, Phase::Compiled, Phase::Validated, Phase::Shadow];
    way.into_iter().zip(0..).find(|(step, _)| *step == phase).map(|(_, rank)| rank)
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Paused => "paused",
        Phase::Retired => "retired",
        _ => "active",
    }
}

fn note(plugin: &str) -> String {
    format!("set-aside:{plugin}")
}

fn trip_note(plugin: &str) -> String {
    format!("tripped:{plugin}")
}
