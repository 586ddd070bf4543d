//! Bounds of control events and of the keys that they are believed by.

use std::time::Duration;

/// Bytes of one control event as it is stored and carried, with its signatures. Larger is refused: whatever is large is an
/// artifact. It fits a message of every feed there is.
pub const CONTROL_EVENT_BYTES_MAX: usize = 256 << 10;
/// How deep its JSON may be nested. Deeper is refused: it is read by recursion.
pub const CONTROL_EVENT_DEPTH_MAX: usize = 32;
/// The largest whole number in signed content, up or down: every reader of JSON keeps those exactly. Larger is refused.
pub const CONTROL_NUMBER_MAX: u64 = (1 << 53) - 1;
/// Longest name of a kind.
pub const CONTROL_KIND_BYTES_MAX: usize = 64;
/// Longest actor and reason. Longer is refused: they stand in lists for people.
pub const CONTROL_ACTOR_BYTES_MAX: usize = 256;
pub const CONTROL_REASON_BYTES_MAX: usize = 2 << 10;
/// Longest version and world of a plugin.
pub const CONTROL_VERSION_BYTES_MAX: usize = 64;
pub const CONTROL_WORLD_BYTES_MAX: usize = 128;
/// Bytes of a plugin's configuration, an artifact of its own.
pub const CONTROL_CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Labels of a selector, and the longest name or value of one. More are refused: every host looks at each.
pub const CONTROL_LABELS_MAX: usize = 32;
pub const CONTROL_LABEL_BYTES_MAX: usize = 63;
/// Waves of a rollout, and how long one may soak or be waited for.
pub const CONTROL_WAVES_MAX: usize = 32;
pub const CONTROL_SOAK_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Signatures of an event or an artifact. More are refused: each costs the time of a verification.
pub const CONTROL_SIGNATURES_MAX: usize = 16;
/// Keys of a list, and the longest owner of one. More are refused.
pub const CONTROL_KEYS_MAX: usize = 256;
pub const CONTROL_OWNER_BYTES_MAX: usize = 256;
/// Bytes of a file of trusted keys, and of one with a private key. Larger is refused.
pub const CONTROL_TRUST_BYTES_MAX: usize = 256 << 10;
pub const CONTROL_KEY_FILE_BYTES_MAX: usize = 4 << 10;
/// How far in the future an event may be issued: clocks differ. Beyond, it is set aside.
pub const CONTROL_CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// For how long news that an expired key has signed in its time is still taken from the feed. Long enough for a host that
/// was away over a holiday; beyond, whoever finds the key can date nothing back to its time.
pub const CONTROL_KEY_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

const _: () = assert!(
    super::GUEST_ENV_BYTES_MAX * 2 <= CONTROL_EVENT_BYTES_MAX,
    "a new and a stable version with all that their environments may hold fit an event"
);

// Feeds: see `backends/file/control` and `backends/sqlite/control_feed.rs`.

/// How often a waiting poll looks at a feed in files, and at one in SQLite: a few system calls each time.
pub const CONTROL_FILE_POLL: Duration = Duration::from_millis(50);
pub const CONTROL_SQLITE_POLL: Duration = Duration::from_millis(50);
/// Events in one folder of a feed in files, and what a trim removes at a time.
pub const CONTROL_FILE_SHARD_EVENTS: u64 = 1_000;
/// How long an append waits for another process that writes to the same feed, and how often it looks. Then it fails
/// and is repeated.
pub const CONTROL_LOCK_WAIT: Duration = Duration::from_secs(10);
pub const CONTROL_LOCK_POLL: Duration = Duration::from_millis(2);
/// Files that are synced at the same time: a file system makes one write of them.
pub const CONTROL_FILE_SYNCS_AT_ONCE: usize = 8;
/// Dropped files that are settled at a time; the others wait for the next look.
pub const CONTROL_DROPS_AT_ONCE_MAX: usize = 256;
/// What is kept of a dropped file's name.
pub const CONTROL_DROP_NAME_BYTES_MAX: usize = 100;
/// Appends that are written together, each with two open files, and those that may wait for their turn. More are refused.
pub const CONTROL_APPENDS_AT_ONCE_MAX: usize = 64;
pub const CONTROL_APPENDS_WAITING_MAX: usize = 4_096;
/// Events and bytes that one poll answers at most.
pub const CONTROL_POLL_EVENTS_MAX: usize = 1_000;
pub const CONTROL_POLL_BYTES_MAX: usize = 8 << 20;
/// Rows that a trim removes in one transaction: others write in between.
pub const CONTROL_TRIM_ROWS_AT_ONCE: u64 = 1_000;
/// Longest name of a host: it names files and keys.
pub const CONTROL_HOST_BYTES_MAX: usize = 64;
/// Largest report of a host. Larger is refused.
pub const CONTROL_REPORT_BYTES_MAX: usize = 256 << 10;
/// Hosts whose reports are answered.
pub const CONTROL_HOSTS_MAX: usize = 10_000;
/// How old a half-written report must be to count as left behind.
pub const CONTROL_TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3_600);
