//! Bounds of making a plugin's tables again beside those that are served.

use std::time::Duration;

/// How often a rebuild is looked at, and how often what it has come to is written down.
pub const REBUILD_LOOK: Duration = Duration::from_millis(50);
pub const REBUILD_NOTE_EVERY: Duration = Duration::from_secs(5);
/// One that has not moved for as long stands still: until then it has the pace of its last commit.
pub const REBUILD_STEP_MAX: Duration = Duration::from_secs(10);
/// Events that a rebuild may be behind the log when it is tried to take over: both versions stand still while it
/// handles them. Where more come in a second, that many.
pub const REBUILD_NEAR_EVENTS: u64 = 2_000;
/// How long both versions wait for each other at one position. Then they go on, and it is tried again later.
pub const REBUILD_HOLD_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether they stand.
pub const REBUILD_HOLD_LOOK: Duration = Duration::from_millis(2);
/// After how long a task that could not be flushed is asked again to come to stand.
pub const REBUILD_HOLD_AGAIN: Duration = Duration::from_millis(250);
/// Instances that one rebuild has at a time, but for one or two of each guest thread, and after how long a task that
/// finds no room for one looks again.
pub const REBUILD_INSTANCES_MAX: usize = 100;
pub const REBUILD_ROOM_LOOK: Duration = Duration::from_millis(250);
/// How long a task of a rebuild keeps an instance that has nothing to do. The instances are those of all plugins.
pub const REBUILD_IDLE_MAX: Duration = Duration::from_secs(5);
/// Waits between two tries: doubled from the first to the second.
pub const REBUILD_AGAIN_MIN: Duration = Duration::from_millis(250);
pub const REBUILD_AGAIN_MAX: Duration = Duration::from_secs(30);
/// Tries one after the other at which the two were late, after which they are this long apart: the plugin stands still
/// while each of them lasts.
pub const REBUILD_LATE_MAX: u32 = 10;
pub const REBUILD_AGAIN_LATE: Duration = Duration::from_secs(600);
/// Positions that the report of a rebuild lists of each kind; the rest is counted.
pub const REBUILD_LISTED_MAX: usize = 100;
/// Rows that one transaction removes of what rebuilds have left, which others wait for, and transactions of one look at it.
pub const REBUILD_SWEEP_ROWS_MAX: u64 = 500;
pub const REBUILD_SWEEP_ROUNDS: usize = 80;

const _: () =
    assert!(REBUILD_HOLD_LOOK.as_millis() * 10 < REBUILD_HOLD_MAX.as_millis(), "it is looked at often");
