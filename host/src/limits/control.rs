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

// What a host remembers of the feed, and how it applies and publishes.

/// Entries of a feed that are remembered as set aside. The oldest go first: whoever writes into a feed makes them.
pub const CONTROL_QUARANTINE_EVENTS_MAX: u64 = 1_000;
/// What is kept of the name and of the reason of one of them.
pub const CONTROL_QUARANTINE_TEXT_BYTES_MAX: usize = 1 << 10;
/// Proposed events that are not in the feed yet. More are refused until some are.
pub const CONTROL_OUTBOX_EVENTS_MAX: u64 = 10_000;
/// Proposed events in the feed whose ids are remembered, so that a repeat is answered as the first time. A later repeat is
/// refused for its base revision.
pub const CONTROL_TOLD_EVENTS_MAX: u64 = 10_000;
/// How many applied ids are remembered, those that were seen last, and how often older ones are forgotten, in events. A
/// later repeat changes nothing either, for its revision.
pub const CONTROL_APPLIED_EVENTS_KEPT: u64 = 100_000;
pub const CONTROL_FORGET_EVERY: u64 = 1_000;
/// Entries of a feed that are asked for at a time, and that are applied in one transaction.
pub const CONTROL_APPLY_POLL_EVENTS: usize = 256;
pub const CONTROL_APPLY_EVENTS_MAX: usize = 64;
/// How long one poll waits for news, and the least time between two that found none: a source may answer sooner.
pub const CONTROL_POLL_WAIT: Duration = Duration::from_secs(5);
pub const CONTROL_POLL_GAP: Duration = Duration::from_millis(100);
/// How often a host compares itself with what the origin says of the fleet.
pub const CONTROL_HEAL_EVERY: Duration = Duration::from_secs(60);
/// Waits of the applier after an error of the feed or the store: doubled from the first to the second, with jitter.
pub const CONTROL_APPLY_RETRY_MIN: Duration = Duration::from_millis(100);
pub const CONTROL_APPLY_RETRY_MAX: Duration = Duration::from_secs(30);
/// Events of the outbox that are claimed at a time, and entities that are published at the same time: what comes to a feed
/// together may be made durable together.
pub const CONTROL_PUBLISH_EVENTS_MAX: usize = 64;
pub const CONTROL_PUBLISH_ENTITIES_MAX: usize = 64;
/// How long a claim lasts. What is not settled by then may be published by another, too: a sink knows repeats.
pub const CONTROL_PUBLISH_LEASE: Duration = Duration::from_secs(60);
pub const CONTROL_PUBLISH_LEASE_MAX: Duration = Duration::from_secs(600);
/// Waits between two tries of one event, with jitter.
pub const CONTROL_PUBLISH_WAIT_MIN: Duration = Duration::from_millis(100);
pub const CONTROL_PUBLISH_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often in a row a sink may say of itself that it can never take an event, for its credentials or its settings, before
/// that is a dead letter. At the longest waits, about half an hour: people have time to repair it.
pub const CONTROL_PUBLISH_DENIALS_MAX: u32 = 40;
/// How often the outbox is looked at unasked: another process may have proposed something.
pub const CONTROL_PUBLISH_LOOK: Duration = Duration::from_secs(5);
/// Bytes of a snapshot of the desired state. A larger one is refused.
pub const CONTROL_SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

const _: () = assert!(CONTROL_APPLY_EVENTS_MAX <= CONTROL_APPLY_POLL_EVENTS, "a poll fills a transaction");
const _: () = assert!(
    CONTROL_PUBLISH_LEASE.as_secs() <= CONTROL_PUBLISH_LEASE_MAX.as_secs(),
    "a claim that is longer is taken for one of a clock that went back"
);

// Feeds: see `backends/file/control` and `backends/sqlite/control_feed.rs`.

/// How often a waiting poll looks at a feed in files, and at one in SQLite: a few system calls each time.
pub const CONTROL_FILE_POLL: Duration = Duration::from_millis(50);
pub const CONTROL_SQLITE_POLL: Duration = Duration::from_millis(50);
/// Events in one folder of a feed in files, and what a trim removes at a time.
pub const CONTROL_FILE_SHARD_EVENTS: u64 = 1_000;
/// How long a folder is left alone that could not begin again: each try copies all that it has.
pub const CONTROL_FILE_BEGIN_AGAIN_PAUSE: Duration = Duration::from_secs(10);
/// How long an append waits for another process that writes to the same feed, and how often it looks. Then it fails
/// and is repeated.
pub const CONTROL_LOCK_WAIT: Duration = Duration::from_secs(10);
pub const CONTROL_LOCK_POLL: Duration = Duration::from_millis(2);
/// Files that are synced at the same time: a file system makes one write of them.
pub const CONTROL_FILE_SYNCS_AT_ONCE: usize = 16;
/// Dropped files that are settled at a time; the others wait for the next look.
pub const CONTROL_DROPS_AT_ONCE_MAX: usize = 256;
/// What is kept of a dropped file's name.
pub const CONTROL_DROP_NAME_BYTES_MAX: usize = 100;
/// Appends that are written together, each with an open file, and those that may wait for their turn. More are refused.
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

// How a host carries out what is desired.

/// How often everything that is desired is compared with what runs, unasked.
pub const CONTROL_RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// Plugins that are being brought to what is desired at the same time. The others wait for their turn.
pub const CONTROL_RECONCILE_PLUGINS_MAX: usize = 8;
/// Waits of one plugin after what may pass: doubled from the first to the second, with jitter.
pub const CONTROL_RECONCILE_RETRY_MIN: Duration = Duration::from_millis(200);
pub const CONTROL_RECONCILE_RETRY_MAX: Duration = Duration::from_secs(60);
/// How often one revision is tried again after what may be its own fault or this host's: content that is damaged, a
/// compiler that fell. Then it is set aside.
pub const CONTROL_RECONCILE_DOUBTS_MAX: u32 = 5;
/// How often a deploy that is not wanted any more is told to end: before its shadow run there is nothing to end.
pub const CONTROL_GIVE_UP_EVERY: Duration = Duration::from_secs(1);
/// How often the traps of a version are looked at while it is new.
pub const CONTROL_BREAKER_POLL: Duration = Duration::from_secs(2);

const _: () = assert!(
    CONTROL_BREAKER_POLL.as_secs() * 10 <= super::CONTROL_BREAKER_WINDOW.as_secs(),
    "the window of a breaker has several looks"
);
