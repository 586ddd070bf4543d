//! Bounds of projects, and of tries over recorded events.

use std::time::Duration;

/// Recorded events that a project is tried with. What lies behind them is left out, and that is said.
pub const TRIAL_EVENTS_MAX: usize = 10_000;
pub const TRIAL_EVENTS_BYTES_MAX: u64 = 64 << 20;
/// Tries of an event whose processor wants it again. A try over recorded events waits for nothing, so more would tell
/// no more.
pub const TRIAL_RETRIES_MAX: u32 = 3;
/// Events between two ticks of a try, where the plugin wants ticks.
pub const TRIAL_TICK_EVENTS: usize = 77;
/// How far the clock moves between two tries that are to be equal: a processor that tells whole seconds shows.
pub const TRIAL_CLOCK_MOVES: Duration = Duration::from_millis(1_100);
/// Lines of a difference that are shown.
pub const TRIAL_LINES_SHOWN_MAX: usize = 20;
/// Characters of one value in them.
pub const TRIAL_VALUE_CHARS_MAX: usize = 120;
/// `millrace.toml`, and what a try expects.
pub const PROJECT_FILE_BYTES_MAX: u64 = 16 << 20;
