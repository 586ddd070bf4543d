//! Where the way of a rebuild can be cut.

use tracing::trace;

/// Where the way of a rebuild can be cut, in its order. Each is told as a message that nobody hears unless
/// `telemetry.filter` asks for `millrace::rebuild=trace`. It exists so that tests can end a host at this very step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildStep {
    /// It is written down; whoever asked has no answer.
    Begun,
    /// Part of the log is handled, and about to be committed. Only plugins with state come by here.
    Filling,
    /// It has all but the newest events, and is about to try to take over.
    CaughtUp,
    /// Both versions stand still at one position.
    Holding,
    /// Its tables have the names of the former ones, in a transaction that is not committed.
    Flipping,
    /// The flip is committed; the former version is not cut off.
    Flipped,
    /// The next slice of what is left is about to be removed.
    Sweeping,
}

impl RebuildStep {
    pub const ALL: [Self; 7] = [
        Self::Begun,
        Self::Filling,
        Self::CaughtUp,
        Self::Holding,
        Self::Flipping,
        Self::Flipped,
        Self::Sweeping,
    ];

    /// As the message has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Filling => "filling",
            Self::CaughtUp => "caught_up",
            Self::Holding => "holding",
            Self::Flipping => "flipping",
            Self::Flipped => "flipped",
            Self::Sweeping => "sweeping",
        }
    }

    /// Tells that a rebuild has come to it.
    pub fn reached(self) {
        trace!(target: "millrace::rebuild", { rebuild.step = %self.name() }, "a rebuild has come to a step");
    }
}
