//! Bounds of processes and their channels.

use std::time::Duration;

/// Longest name of a process, of a channel, and of a party. Longer is refused.
pub const PROCESS_NAME_BYTES_MAX: usize = 128;
pub const CHANNEL_NAME_BYTES_MAX: usize = 64;
pub const PARTY_BYTES_MAX: usize = 256;
/// Processes of one tenant that are kept, closed ones included. One more is refused.
pub const PROCESSES_MAX: usize = 100_000;
/// Channels of one process. One more is refused.
pub const CHANNELS_MAX: usize = 100;
/// Epochs of a process: each assignment begins one. After the last, rights are taken and no more are given.
pub const PROCESS_EPOCHS_MAX: u32 = u32::MAX;
/// Parties that may read a process without taking part.
pub const PROCESS_OBSERVERS_MAX: usize = 32;
/// Largest payload of one entry. Larger is refused.
pub const CHANNEL_PAYLOAD_BYTES_MAX: usize = 10 << 20;
/// Largest payload of an entry that is also an event. Larger is refused: as base64 and as text, however it must be
/// escaped, it still fits an event.
pub const CHANNEL_EVENT_PAYLOAD_BYTES_MAX: usize = 120 << 10;
/// Longest text of an `error` entry.
pub const CHANNEL_ERROR_BYTES_MAX: usize = 4 << 10;
/// Entries and bytes that a channel holds; what happens beyond is the channel's policy.
pub const CHANNEL_ENTRIES_MAX: u64 = 10_000;
pub const CHANNEL_BYTES_MAX: u64 = 256 << 20;
/// Bytes that all channels of a process hold together. More are refused.
pub const PROCESS_BYTES_MAX: u64 = 1 << 30;
/// Bytes and entries of a channel's archive: empty entries take room, too. Beyond, its oldest entries go.
pub const CHANNEL_ARCHIVE_BYTES_MAX: u64 = 512 << 20;
pub const CHANNEL_ARCHIVE_ENTRIES_MAX: u64 = 100_000;
/// Entries that leave an archive with one append, or twice as many as an append may have: where the bound was lowered, the
/// rest goes with those that follow.
pub const CHANNEL_ARCHIVE_DROP_ENTRIES: u64 = 10_000;
/// Largest `end` or `error` entry that a full channel still takes: each sender has one in each of its epochs.
pub const CHANNEL_CLOSING_BYTES_MAX: usize = 64 << 10;
/// Such entries of executors, and their bytes, that a channel takes beyond all other bounds, ever since it was made: a
/// process can be assigned any number of times. Those that come later count like data. The submitter's is always taken.
pub const CHANNEL_CLOSINGS_MAX: u64 = 256;
pub const CHANNEL_CLOSINGS_BYTES_MAX: u64 = 4 << 20;
/// Entries and bytes of one append. More are refused.
pub const CHANNEL_BATCH_ENTRIES_MAX: usize = 1_000;
pub const CHANNEL_BATCH_BYTES_MAX: usize = 16 << 20;
/// Entries and bytes of one page of a read; a page holds at least one entry.
pub const CHANNEL_PAGE_ENTRIES_MAX: usize = 10_000;
pub const CHANNEL_PAGE_BYTES_MAX: usize = 4 << 20;
/// Senders, each in each of its epochs, that a channel remembers. Those of long ago, who cannot append any more, go first.
pub const CHANNEL_SENDERS_MAX: usize = 64;
/// Stretches of numbers that a sender has sent ahead, on a channel that takes entries as they arrive. More are refused.
pub const CHANNEL_AHEAD_MAX: usize = 64;
/// The largest number of an entry: what JavaScript counts to.
pub const CHANNEL_SEQUENCE_MAX: u64 = (1 << 53) - 1;
/// How long an entry whose forerunner is missing waits for it, and how many of one sender do.
pub const CHANNEL_HOLD: Duration = Duration::from_secs(5);
pub const CHANNEL_HOLD_ENTRIES_MAX: usize = 64;
/// Bytes of the appends to one process that wait so on a host, and of all that do. More are refused.
pub const CHANNEL_HOLD_BYTES_MAX: usize = 32 << 20;
pub const CHANNEL_HOLD_HOST_BYTES_MAX: usize = 256 << 20;
/// What an entry that has not reached the store takes of such bounds beside its payload and its text.
pub const CHANNEL_ENTRY_BYTES: usize = 128;
/// Entries that a process and one sender may append at once, and how many come back each second.
pub const CHANNEL_BURST: f64 = 500.0;
pub const CHANNEL_RATE: f64 = 100.0;
pub const CHANNEL_SENDER_BURST: f64 = 500.0;
pub const CHANNEL_SENDER_RATE: f64 = 100.0;
/// Processes whose rate limiters are in memory; those that were not asked for longest are dropped beyond, and begin anew.
/// The same of the senders of one process.
pub const CHANNEL_LIMITERS_MAX: usize = 100_000;
pub const CHANNEL_LIMITER_SENDERS_MAX: usize = 64;
/// How long a token of its process is kept for a sender that was denied one, after the time that it was told, and the
/// most of that time which counts. A token that is not fetched is anybody's.
pub const CHANNEL_TURN_KEPT: Duration = Duration::from_secs(2);
pub const CHANNEL_TURN_WAIT_MAX: Duration = Duration::from_secs(60);
/// How far a follower may be behind before it is told that it is.
pub const CHANNEL_SUBSCRIBER_ENTRIES_MAX: u64 = 10_000;
/// Followers of one channel on one host. More are refused.
pub const CHANNEL_SUBSCRIBERS_MAX: usize = 10_000;
/// Newest entries and bytes of a channel that somebody follows, kept in memory. Who is further behind reads the store.
pub const CHANNEL_TAIL_ENTRIES_MAX: usize = 256;
pub const CHANNEL_TAIL_BYTES_MAX: usize = 256 << 10;
/// Entries and bytes that a follower is given together; one entry at least.
pub const CHANNEL_FOLLOW_ENTRIES_MAX: usize = 256;
pub const CHANNEL_FOLLOW_BYTES_MAX: usize = 256 << 10;
/// Channels that nobody follows whose state stays in memory. Where more than half as many are in use, as many as those.
pub const CHANNEL_TAILS_IDLE_MAX: usize = 20_000;
/// How long the channels of a process that was closed can be read.
pub const CHANNEL_KEEP: Duration = Duration::from_secs(24 * 3_600);
/// How often processes are looked for whose time is over, and how many go in one transaction.
pub const CHANNEL_SWEEP: Duration = Duration::from_secs(10);
pub const CHANNEL_SWEEP_PROCESSES_MAX: usize = 100;
/// The most that `channel_batch_bytes_max` and `channel_hold_ms` may be set to: an append is held in memory, and whoever
/// sends it waits for the answer.
pub const CHANNEL_BATCH_BYTES_CEILING: usize = 64 << 20;
pub const CHANNEL_HOLD_CEILING: Duration = Duration::from_secs(60);
/// Levels of arrays and objects that JSON in a payload may have to be shown among other JSON. What is deeper is shown as
/// base64: with the levels around it, readers that take 127 would take no entry of the page.
pub const CHANNEL_JSON_DEPTH_MAX: usize = 120;
/// The longest that a read waits for an entry. More is refused.
pub const CHANNEL_WAIT_MAX: Duration = Duration::from_secs(30);
/// What the JSON of an entry has beside its payload, about: with it and base64's third, the body of an append is bound.
pub const CHANNEL_ENTRY_EXTRA_BYTES: usize = 512;
/// Bytes of the body of any other request about processes and channels.
pub const CHANNEL_REQUEST_BYTES_MAX: u64 = 256 << 10;
/// Longest reason that a process is closed with. Longer is refused.
pub const CHANNEL_REASON_BYTES_MAX: usize = 1 << 10;
/// Processes of one page of a list, when the request does not say and at most.
pub const PROCESS_LIST_DEFAULT: usize = 100;
pub const PROCESS_LIST_MAX: usize = 1_000;
/// Processes that one page looks at for those that the caller may see. A page may be shorter for it, and has a next one.
pub const PROCESS_LIST_LOOKS_MAX: usize = 1_000;
/// How many of them it reads with their channels, of one of which the caller may be the executor.
pub const PROCESS_LIST_READS_MAX: usize = 100;
/// Processes whose records the embedded store keeps in memory; others are read again.
pub const CHANNEL_RECORDS_CACHED_MAX: usize = 20_000;
/// Entries and bytes of removed channels that are deleted in one transaction.
pub const CHANNEL_PURGE_ENTRIES: usize = 1_000;
pub const CHANNEL_PURGE_BYTES: u64 = 16 << 20;
/// Such transactions in a row, before the keeper looks at other things.
pub const CHANNEL_PURGE_ROUNDS: usize = 8;

const _: () = assert!(CHANNEL_BATCH_BYTES_MAX <= CHANNEL_BATCH_BYTES_CEILING, "the default is possible");
const _: () = assert!(CHANNEL_PAYLOAD_BYTES_MAX <= CHANNEL_BATCH_BYTES_MAX, "any entry fits an append");
const _: () = assert!(
    CHANNEL_BATCH_BYTES_MAX + CHANNEL_BATCH_ENTRIES_MAX * CHANNEL_ENTRY_BYTES <= CHANNEL_HOLD_BYTES_MAX,
    "any append can wait for its forerunner"
);
const _: () =
    assert!(CHANNEL_HOLD_BYTES_MAX <= CHANNEL_HOLD_HOST_BYTES_MAX, "a process has no more than all");
const _: () = assert!(
    CHANNEL_CLOSING_BYTES_MAX as u64 <= CHANNEL_CLOSINGS_BYTES_MAX,
    "the first executor's last word is always taken"
);
const _: () = assert!(
    CHANNEL_EVENT_PAYLOAD_BYTES_MAX / 3 * 4
        + 6 * (CHANNEL_EVENT_PAYLOAD_BYTES_MAX + CHANNEL_ERROR_BYTES_MAX)
        + 4096
        <= super::EVENT_PAYLOAD_BYTES_MAX,
    "an entry that is also an event fits one: base64 takes 4 bytes for 3, and JSON escapes a byte with 6 at most"
);
const _: () =
    assert!(CHANNEL_SUBSCRIBER_ENTRIES_MAX <= CHANNEL_ENTRIES_MAX, "a follower can be so far behind");
/// Bytes that were appended to channels and lie in runs, and what each entry counts beside its own: about what it takes
/// in memory. What is beyond is settled, oldest first. It bounds what they take in memory, what a start reads, and what an
/// end writes. Not counted is the JSON that an entry of up to [`CHANNEL_TAIL_BYTES_MAX`] keeps once it was sent to a follower
/// as it came: it takes somewhat more than twice as much then.
pub const CHANNEL_UNSETTLED_BYTES_MAX: usize = 128 << 20;
pub const CHANNEL_UNSETTLED_ENTRY_BYTES: usize = 256;
/// What a transaction appends to one channel goes into a run up to so many bytes. More is settled at once, since it would
/// be written twice and gain nothing.
pub const CHANNEL_RUN_BYTES_MAX: usize = 64 << 10;
/// How much of that is settled in one transaction: one entry more at most, or twice what the transaction appends. Only what
/// changes a channel itself settles all that it has.
pub const CHANNEL_SETTLE_BYTES: usize = 128 << 10;
/// Transactions of that kind that a look of the store's keeper asks for.
pub const CHANNEL_SETTLE_ROUNDS: usize = 32;
/// The most looks that it leaves out after such transactions have failed.
pub const CHANNEL_SETTLE_PAUSE_MAX: u32 = 32;

const _: () = assert!(
    CHANNEL_SETTLE_BYTES * CHANNEL_SETTLE_ROUNDS <= CHANNEL_UNSETTLED_BYTES_MAX,
    "one look of the keeper is not more than there may be"
);
