//! Bounds of a log on Redis, of what is carried to it, and of the hosts that share it.

use std::time::Duration;

use super::{BATCH_EVENTS_MAX, CHANNEL_BATCH_BYTES_MAX};

/// Events that a log on Redis keeps when nothing else is said: they lie in memory there. Older ones are trimmed.
pub const REDIS_EVENTS_MAX: u64 = 1_000_000;
/// How long an append is tried over lost connections and failovers. Beyond, its caller is told that its fate is
/// unknown; a repeat with the same ids is safe within the dedup window.
pub const REDIS_APPEND_WAIT_MAX: Duration = Duration::from_secs(15);
/// Appends that wait for the server. When full, callers wait: that is the back-pressure.
pub const REDIS_QUEUE_MAX: usize = 4_096;
/// Events, requests and bytes of one script call, which the server runs without serving anybody else meanwhile.
pub const REDIS_GROUP_EVENTS_MAX: usize = 4_000;
/// Events after which a script call takes in no more requests: the server works on one call while the host encodes the
/// next, and another part of the host waits until the one before is durable.
pub const REDIS_GROUP_EVENTS_AIM: usize = 400;
/// Script calls under way at a time.
pub const REDIS_CALLS_MAX: usize = 2;
pub const REDIS_GROUP_REQUESTS_MAX: usize = 2_000;
/// Entries of one append to a channel that are events, too: the script numbers its events in two bytes.
pub const REDIS_CALL_EVENTS_MAX: usize = u16::MAX as usize;
pub const REDIS_GROUP_BYTES_MAX: usize = 4 << 20;
/// Bytes of events after which an entry of the stream takes in no more; one event may be larger.
pub const REDIS_ENTRY_BYTES_MAX: usize = 64 << 10;
/// Entries of one blocking read, where they are small, and the bytes that it is aimed at.
pub const REDIS_READ_ENTRIES_MAX: usize = 1_024;
pub const REDIS_READ_BYTES: usize = 2 << 20;
/// How long a blocking read waits, and how often the log is compared with what is known of it.
pub const REDIS_CHECK_EVERY: Duration = Duration::from_millis(250);
/// Time to connect, and for an answer beyond what a command itself may wait.
pub const REDIS_CONNECT_WAIT_MAX: Duration = Duration::from_secs(1);
pub const REDIS_ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long replicas or the append-only file are waited for before it is said that they lag.
pub const REDIS_DURABLE_WAIT: Duration = Duration::from_millis(1_000);
/// First and longest wait before the next try to reach the server; doubles in between.
pub const REDIS_RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
pub const REDIS_RETRY_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest wait before the log is looked for again. With a look of [`REDIS_CHECK_EVERY`] it makes up what a log that
/// was replaced may stay unnoticed for, also where it is replaced again and again, or its server was away for long.
pub const REDIS_FIND_WAIT_MAX: Duration = Duration::from_millis(250);
/// Entries that one script call trims, so that others get their turn in between.
pub const REDIS_TRIM_ENTRIES_MAX: usize = 256;
/// Entries that a change stream on Redis keeps when nothing else is said, about. Older ones are dropped.
pub const REDIS_CHANGE_STREAM_EVENTS_MAX: u64 = 500;
/// Change streams that one script call compares with what they keep, and those that a host remembers to have
/// appended to since it did that last.
pub const REDIS_CAP_STREAMS_MAX: usize = 100;
pub const REDIS_GROWN_STREAMS_MAX: usize = 100_000;
/// How often retention is applied, and the caps of change streams.
pub const REDIS_RETENTION_EVERY: Duration = Duration::from_secs(1);
/// How often an append is sent again because the log has an event of it in another spelling, or other last known
/// values of its fields than when they were read. Each turn settles one event at least, unless others change the same.
pub const REDIS_TURNS_MAX: usize = 2 * BATCH_EVENTS_MAX;
/// What the positions of a new life of a log are rounded up to: far above what any host can know of the former one.
pub const REDIS_LIFE_STEP: u64 = 1 << 32;
/// How often it is looked whether other hosts have made something of a group free, while reads of it wait; one of them
/// looks for all.
pub const REDIS_CONSUMERS_LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a call about a group is tried over lost connections and failovers.
pub const REDIS_CONSUMERS_CALL_WAIT_MAX: Duration = Duration::from_secs(5);
/// Leases and waits that end in one script call, so that others get their turn in between; the next call goes on.
pub const REDIS_CONSUMERS_DUE_MAX: usize = 1_000;
/// Entries that a script counts when it is asked how far a group is behind. With more, the answer is "at least".
pub const REDIS_CONSUMERS_COUNT_MAX: usize = 10_000;
/// Groups that one script call looks after.
pub const REDIS_CONSUMERS_SWEEP_MAX: usize = 64;
/// Such calls of one round of upkeep; the next round goes on.
pub const REDIS_CONSUMERS_SWEEP_CALLS_MAX: usize = 100;
/// Events of one page that a group takes in with one script call.
pub const REDIS_CONSUMERS_PAGE_MAX: usize = 1_000;
/// The least of them: what waits behind a key may leave little of a smaller page.
pub const REDIS_CONSUMERS_PAGE_MIN: usize = 64;

/// Changes of processes and channels that the stream keeps in which hosts hear of them. A host that reads later reads
/// again what its followers follow.
pub const REDIS_CHANNELS_FEED_MAX: usize = 4_096;
/// How long a call about a process or a channel is tried over lost connections and failovers. Appends take as long as
/// those to the log.
pub const REDIS_CHANNELS_CALL_WAIT_MAX: Duration = Duration::from_secs(5);
/// Appends to channels that wait for the server, and their bytes. More are refused, and can be tried again.
pub const REDIS_CHANNELS_WAITING_MAX: usize = 16_384;
pub const REDIS_CHANNELS_WAITING_BYTES_MAX: usize = 256 << 20;
/// Entries and bytes after which a script call takes in no more appends to a channel; one append may be larger.
pub const REDIS_CHANNELS_GROUP_ENTRIES_MAX: usize = 1_000;
pub const REDIS_CHANNELS_GROUP_BYTES_MAX: usize = 4 << 20;
/// Calls whose answers wait to become durable together.
pub const REDIS_CHANNELS_SETTLING_MAX: usize = 1_024;
/// How often a change is decided again because others were faster, and the longest wait before.
pub const REDIS_CHANNELS_TURNS_MAX: usize = 256;
pub const REDIS_CHANNELS_TURN_WAIT_MAX: Duration = Duration::from_millis(10);
/// Entries that one script call looks at for one that is repeated, and that one answers: others get their turn in
/// between.
pub const REDIS_CHANNELS_FIND_MAX: usize = 10_000;
pub const REDIS_CHANNELS_PAGE_ENTRIES_MAX: usize = 2_000;
/// Processes that one script call lists.
pub const REDIS_CHANNELS_LIST_MAX: usize = 1_000;
/// Keys that one script call removes before it begins with no more processes.
pub const REDIS_CHANNELS_PURGE_KEYS: usize = 2_000;
/// Entries of one plugin and tenant that channels on Redis recognise when they are carried once more: the newest so many,
/// while the log has the event that was its newest when they were appended.
pub const REDIS_CHANNELS_CARRIED_MAX: u64 = 1_000_000;
/// Plugins and tenants for which one script call forgets what is older, each time that closed processes are removed.
pub const REDIS_CHANNELS_CARRIED_SWEEP: usize = 64;
/// Processes and channels that a host reads at a time because others have changed them.
pub const REDIS_CHANNELS_REFRESH_MAX: usize = 16;

/// Ids of control events that a feed on Redis remembers. An older repeat is appended again; hosts know it by its id.
pub const REDIS_CONTROL_IDS_MAX: u64 = 100_000;
/// Control events that one script call removes, so that others get their turn in between.
pub const REDIS_CONTROL_TRIM_MAX: u64 = 1_000;
/// Control events of one read; they may be large.
pub const REDIS_CONTROL_PAGE_MAX: usize = 64;
/// Connections of waiting polls that are kept for the next ones.
pub const REDIS_CONTROL_READERS_MAX: usize = 2;

/// Emitted events and appended entries of one plugin that wait in the store for a log elsewhere. A commit that adds more
/// is refused, and tried again.
pub const OUTBOX_EVENTS_MAX: u64 = 100_000;
/// Those that were refused for good and that are kept to be looked at.
pub const OUTBOX_REFUSED_MAX: u64 = 1_000;
/// Those that are read from the store, and carried, together.
pub const OUTBOX_PAGE_EVENTS: u32 = 2_000;
pub const OUTBOX_PAGE_BYTES: usize = 4 << 20;
/// Entries that are carried to one channel together, and their bytes; one entry may be larger.
pub const OUTBOX_APPENDS_MAX: usize = 500;
pub const OUTBOX_APPENDS_BYTES: usize = 2 << 20;
/// How long an entry is carried again to a channel that has no room for it. Then it is refused, and so are others to that
/// channel until it takes one.
pub const OUTBOX_FULL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Full channels that are remembered; beyond, all are given their time anew.
pub const OUTBOX_FULL_CHANNELS_MAX: usize = 10_000;
/// How long after a failure the outbox is tried again.
pub const OUTBOX_RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
pub const OUTBOX_RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a processor that stops waits until the log has what it emitted, and how often that is looked at.
pub const OUTBOX_DRAIN_MAX: Duration = Duration::from_secs(2);
pub const OUTBOX_LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often a host writes down how far a log elsewhere has come.
pub const LOG_MARK_EVERY: Duration = Duration::from_millis(500);

/// How long a host owns what one host at a time may do, unless it renews that. It tries three times within it.
pub const LEASE_TTL: Duration = Duration::from_secs(6);
/// How long a plugin that is started waits for a log elsewhere to take its change scopes.
pub const SCOPES_DECLARE_WAIT_MAX: Duration = Duration::from_secs(15);
/// How often a host that stands by asks for what it waits for.
pub const LEASE_ASK_EVERY: Duration = Duration::from_secs(1);
pub const LEASE_TTL_MIN: Duration = Duration::from_millis(300);

const _: () = assert!(BATCH_EVENTS_MAX <= REDIS_GROUP_EVENTS_MAX, "any batch fits a script call");
const _: () =
    assert!(REDIS_GROUP_EVENTS_MAX <= REDIS_CALL_EVENTS_MAX, "an event's number in its group has two bytes");
const _: () = assert!(
    REDIS_CHANNELS_GROUP_ENTRIES_MAX <= REDIS_CALL_EVENTS_MAX,
    "appends that are sent together can be numbered"
);
const _: () = assert!(
    CHANNEL_BATCH_BYTES_MAX <= REDIS_CHANNELS_WAITING_BYTES_MAX,
    "any append to a channel can wait for the server"
);
