//! When a task of a processor commits, beside how many events and bytes there are.

use std::time::Duration;

/// After which a busy task commits what it has done, so that slow events are shown before there are many.
pub const COMMIT_AGE_MAX: Duration = Duration::from_secs(1);
/// A large state is not saved over and over for a few slow events: its task waits a second for so many bytes of it, and
/// so many times as long as its last snapshot took, but no longer than this.
pub const COMMIT_AGE_STATE_BYTES: usize = 8 << 20;
pub const COMMIT_AGE_SNAPSHOTS: u32 = 10;
pub const COMMIT_AGE_CEILING: Duration = Duration::from_secs(5);

const _: () =
    assert!(COMMIT_AGE_CEILING.as_secs() < super::REBUILD_STEP_MAX.as_secs(), "a rebuild's pace is seen");
