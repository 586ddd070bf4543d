//! What goes wrong, and whether it may pass.

use std::fmt::Display;

use crate::control::ControlFeedError;
use crate::error::{Blame, Classify, Retry};
use crate::plugins::{ControlError, PluginError, ShadowFault};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) hope: Hope,
    pub(super) code: String,
    pub(super) blame: &'static str,
    pub(super) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// It is tried until it works.
    Passes,
    /// It is this host's or the way's fault as it seems, and may be for ever: it is tried some times.
    Doubtful,
    /// Never, for this revision.
    None,
}

impl Trouble {
    pub(super) fn lasting(code: &str, reason: impl Display) -> Self {
        let (hope, code, reason) = (Hope::None, code.to_owned(), reason.to_string());
        Self { hope, code, blame: Blame::Caller.as_str(), reason }
    }

    /// Something else is wanted by now; nobody is told.
    pub(super) fn superseded() -> Self {
        let (code, blame, reason) = ("superseded".into(), Blame::Caller.as_str(), String::new());
        Self { hope: Hope::Passes, code, blame, reason }
    }

    fn of(error: &(impl Classify + Display), hope: Hope) -> Self {
        let (code, blame) = (error.code().to_owned(), error.blame().as_str());
        Self { hope, code, blame, reason: error.to_string() }
    }
}

impl From<ControlFeedError> for Trouble {
    fn from(error: ControlFeedError) -> Self {
        let hope = match &error {
            ControlFeedError::Backend(_) => Hope::Passes,
            error if error.retry() != Retry::Never => Hope::Passes,
            // What came may have been changed on its way, or where it lies.
            error if error.blame() == Blame::Host || error.code().starts_with("artifact_") => Hope::Doubtful,
            _ => Hope::None,
        };
        Self::of(&error, hope)
    }
}

impl From<ControlError> for Trouble {
    fn from(error: ControlError) -> Self {
        let hope = match &error {
            ControlError::Backend(_) | ControlError::Plugin(PluginError::Storage { .. }) => Hope::Passes,
            // Somebody else did something with the plugin.
            ControlError::Shadow { refusal, .. } if refusal.fault == ShadowFault::Stopped => Hope::Passes,
            error if error.retry() != Retry::Never => Hope::Passes,
            error if error.blame() == Blame::Host => Hope::Doubtful,
            _ => Hope::None,
        };
        Self::of(&error, hope)
    }
}
