//! How a source is doing, for whoever asks.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

use super::client::Phase;
use super::importer::SourceLetters;
use crate::event::{Micros, TenantId};

/// What can be told of a source at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    pub state: SourceState,
    /// Up to where events are handled.
    pub cursor: Option<String>,
    /// Events that were handled, events that came more than once, and events that are not ours.
    pub events: u64,
    pub repeated: u64,
    pub letters: u64,
    pub puts: u64,
    pub reconnects: u64,
    /// Of what went wrong last: its code and what it said.
    pub last_error: Option<(&'static str, String)>,
    /// Since when the state is what it is.
    pub since: Micros,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    #[default]
    Connecting,
    /// Events come that were kept.
    Replay,
    /// Events come as they happen.
    Live,
    /// It tries again after a while.
    Waiting,
    /// Only a person or the other side can help; it is tried again much later.
    Failed,
    Stopped,
}

impl From<Phase> for SourceState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Replay => Self::Replay,
            Phase::Live => Self::Live,
        }
    }
}

/// A source as the edge shows it.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    pub name: String,
    /// Whose events its events become.
    pub tenant: TenantId,
    pub progress: Progress,
    pub letters: SourceLetters,
}

/// Where a run writes how it is doing. Clones are the same.
#[derive(Clone, Debug)]
pub struct Progress(Arc<watch::Sender<SourceStatus>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(SourceStatus::default())))
    }
}

impl Progress {
    pub fn now(&self) -> SourceStatus {
        self.0.borrow().clone()
    }

    /// Hears of every change.
    pub fn follow(&self) -> watch::Receiver<SourceStatus> {
        self.0.subscribe()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut SourceStatus)) {
        self.0.send_modify(change);
    }

    /// If it waits, it is in this state from now on.
    pub(super) fn waits_no_more(&self, state: SourceState, now: Micros) {
        self.0.send_if_modified(|status| {
            let waits = status.state == SourceState::Waiting;
            if waits {
                (status.state, status.since) = (state, now);
            }
            waits
        });
    }

    pub(super) fn enter(&self, state: SourceState, now: Micros) {
        self.0.send_if_modified(|status| {
            let other = status.state != state;
            if other {
                (status.state, status.since) = (state, now);
            }
            other
        });
    }
}
