//! How the work of a call is bounded.

use serde::{Deserialize, Serialize};

/// What a guest's call is measured by. Code is compiled for one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metering {
    /// Time, which depends on the machine and on who else is at work.
    #[default]
    Epoch,
    /// Instructions: the same call ends at the same place everywhere. It costs more, and a long call does not make way
    /// for others.
    Fuel,
}

impl Metering {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Fuel => "fuel",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Epoch, Self::Fuel].into_iter().find(|metering| metering.as_str() == text)
    }
}
