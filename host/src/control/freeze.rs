//! The global freeze: nothing new goes out. What stops something or takes it back still does.
//!
//! It is a note of the origin, so it holds for what is proposed there; a fleet with two origins is frozen at both.

use serde::{Deserialize, Serialize};

use super::rollout::Progress;
use super::{ControlEvent, ControlFeedError, ControlStore, EventBody, Kind, Result};

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
    if passes(event) {
        return Ok(None);
    }
    let freeze = present(store).await?;
    Ok(freeze.map(|Freeze { by, reason, .. }| ControlFeedError::Frozen { by, reason }))
}

/// Whether an event only stops something, takes it back, or says whom to believe.
fn passes(event: &ControlEvent) -> bool {
    match &event.unsigned().kind {
        Kind::RolloutHalted | Kind::Paused | Kind::TrustChanged => true,
        // Without a rollout it may name any version.
        Kind::RolledBack => match &event.unsigned().body {
            EventBody::Plugin { desired, .. } => {
                desired.rollout.as_ref().is_some_and(|rollout| rollout.progress == Progress::RolledBack)
            }
            _ => false,
        },
        _ => false,
    }
}
