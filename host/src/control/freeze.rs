//! The global freeze: nothing new goes out. What stops something or takes it back still does.
//!
//! It is a note of the origin, so it holds for what is proposed there; a fleet with two origins is frozen at both.

use serde::{Deserialize, Serialize};

use super::changes::desired_of;
use super::rollout::Progress;
use super::{ControlEvent, ControlFeedError, ControlStore, Desired, EventBody, Kind, Result, RunState};

const NOTE: &str = "freeze";

/// Who froze the fleet, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Freeze {
    pub by: String,
    pub reason: String,
    /// Microseconds since 1970.
    pub at: i64,
}

/// Freezes the fleet, or with none lets it go on.
pub async fn set(store: &dyn ControlStore, freeze: Option<&Freeze>) -> Result<()> {
    let text = freeze
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| ControlFeedError::Settings { setting: NOTE.into(), detail: error.to_string() })?;
    store.set_note(NOTE, text.as_deref()).await
}

pub async fn present(store: &dyn ControlStore) -> Result<Option<Freeze>> {
    let Some(text) = store.note(NOTE).await? else { return Ok(None) };
    // Whoever wrote what cannot be read wanted a freeze.
    let unknown = |_| Freeze { by: "somebody".into(), reason: "the note cannot be read".into(), at: 0 };
    Ok(Some(serde_json::from_str(&text).unwrap_or_else(unknown)))
}

/// Why an event may not be proposed now, if it may not.
pub async fn refusal(store: &dyn ControlStore, event: &ControlEvent) -> Result<Option<ControlFeedError>> {
    let Some(Freeze { by, reason, .. }) = present(store).await? else { return Ok(None) };
    if event.unsigned().kind == Kind::TrustChanged || only_stops(store, event).await? {
        return Ok(None);
    }
    Ok(Some(ControlFeedError::Frozen { by, reason }))
}

/// Whether an event only stops something, or takes it back. A kind says why, and whoever signs chooses it: what counts is
/// how far the event goes from what stands.
async fn only_stops(store: &dyn ControlStore, event: &ControlEvent) -> Result<bool> {
    let unsigned = event.unsigned();
    if !matches!(unsigned.kind, Kind::RolloutHalted | Kind::Paused | Kind::RolledBack) {
        return Ok(false);
    }
    let EventBody::Plugin { plugin, desired } = &unsigned.body else { return Ok(false) };
    let rows = store.proposed().await?;
    let stands = rows.iter().filter_map(desired_of).find(|(name, _)| name == plugin);
    Ok(stands.is_some_and(|(_, stands)| is_no_further(stands, desired)))
}

fn is_no_further(stands: &Desired, next: &Desired) -> bool {
    let same_versions =
        (&stands.spec, &stands.stable, &stands.targets) == (&next.spec, &next.stable, &next.targets);
    let stops =
        stands.state == next.state || (stands.state, next.state) == (RunState::Running, RunState::Paused);
    let goes_back = match (&stands.rollout, &next.rollout) {
        (None, None) => true,
        (Some(stands), Some(next)) => {
            let same_plan = (&stands.id, &stands.plan) == (&next.id, &next.plan);
            let back = stands.progress == next.progress
                || next.progress == Progress::RolledBack
                || (stands.progress, next.progress) == (Progress::Running, Progress::Halted);
            same_plan && next.wave <= stands.wave && back
        }
        _ => false,
    };
    same_versions && stops && goes_back
}
