//! Bounds of rollouts, of what hosts say of themselves, and of what the controller does.

use std::time::Duration;

/// How often a host says how it is, and after how long without a word it counts as silent: several words were lost.
pub const CONTROL_REPORT_EVERY: Duration = Duration::from_secs(5);
pub const CONTROL_HOST_SILENT_AFTER: Duration = Duration::from_secs(30);
/// The least time between two reports of a host, however much becomes of its plugins.
pub const CONTROL_REPORT_GAP: Duration = Duration::from_millis(250);
/// How often copies that nothing pins are looked for, and how old they are when they go: a rollout that is taken up again
/// finds what it had.
pub const CONTROL_COPIES_COLLECT_EVERY: Duration = Duration::from_secs(3_600);
pub const CONTROL_COPIES_AGE: Duration = Duration::from_secs(24 * 3_600);
/// How often the origin looks which artifacts the fleet needs.
pub const CONTROL_PIN_EVERY: Duration = Duration::from_secs(5);
/// Rows that one answer about the fleet lists: events that were set aside, and dead letters.
pub const CONTROL_PAGE_MAX: usize = 1_000;
/// After which a silent host is no part of the fleet: rollouts wait for it no longer.
pub const CONTROL_HOST_GONE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// What a report keeps of a reason.
pub const CONTROL_REPORT_REASON_BYTES_MAX: usize = 256;
/// How often the controller looks at rollouts, and how long it has to have looked before it takes back what was not healthy
/// in time: after a start of its own, or of the board, nobody has reported yet.
pub const CONTROL_CONTROLLER_EVERY: Duration = Duration::from_secs(1);
pub const CONTROL_CONTROLLER_SETTLE: Duration = Duration::from_secs(60);
/// Waits of the controller after an error: doubled from the first to the second, with jitter.
pub const CONTROL_CONTROLLER_RETRY_MIN: Duration = Duration::from_millis(500);
pub const CONTROL_CONTROLLER_RETRY_MAX: Duration = Duration::from_secs(30);
/// The least time between two marks: each comes with a snapshot of all that is desired.
pub const CONTROL_MARK_GAP: Duration = Duration::from_secs(2);
/// Events that stay in the feed behind the newest snapshot, for hosts that were away, and by how many control versions more it
/// grows before it is trimmed.
pub const CONTROL_FEED_EVENTS_KEPT: u64 = 10_000;
pub const CONTROL_FEED_TRIM_EVERY: u64 = 1_000;
/// So many traps in such a time, while a version is new, take it back on this host: more than one bad event brings about
/// with its retries.
pub const CONTROL_BREAKER_TRAPS: u64 = 10;
pub const CONTROL_BREAKER_WINDOW: Duration = Duration::from_secs(60);
/// How long after its activation a version is new. Then it has earned its place, and failing events are dealt with one by one.
pub const CONTROL_BREAKER_ARMED_FOR: Duration = Duration::from_secs(3_600);
/// Looks that a breaker remembers; of more the oldest are thinned out.
pub const CONTROL_BREAKER_LOOKS_MAX: usize = 256;

const _: () = assert!(
    CONTROL_REPORT_EVERY.as_secs() * 4 <= CONTROL_HOST_SILENT_AFTER.as_secs(),
    "a lost report does not make a host silent"
);
const _: () = assert!(
    CONTROL_HOST_SILENT_AFTER.as_secs() < CONTROL_CONTROLLER_SETTLE.as_secs(),
    "who has looked for so long has heard of every host that talks"
);
