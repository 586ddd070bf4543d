//! Bounds of sources: events that come from another system.

use std::time::Duration;

use super::{BATCH_EVENTS_MAX, EVENT_PAYLOAD_BYTES_MAX};

/// Most foreign events that are handled together, and most of their bytes. What has arrived is taken; nothing is waited for.
pub const SOURCE_BATCH_EVENTS_MAX: usize = 1_000;
pub const SOURCE_BATCH_BYTES_MAX: usize = 4 << 20;
/// How many of the newest cursors a run remembers, so that an event that comes twice counts once.
pub const SOURCE_RING_CURSORS: usize = 1_024;
/// How many events are read again after a reconnect: one that was published late, behind a newer cursor, is found there.
pub const SOURCE_OVERLAP_EVENTS: usize = 64;
/// How often a checkpoint is put at least, while something changes; also after so many events or bytes.
pub const SOURCE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);
pub const SOURCE_CHECKPOINT_EVENTS: u64 = 1_000;
pub const SOURCE_CHECKPOINT_BYTES: u64 = 256 << 10;
/// Events that are handled while no put succeeds. Beyond, the stream is not read, which holds the server up.
pub const SOURCE_BEHIND_EVENTS_MAX: u64 = 100_000;
/// How long to wait before connecting again: doubled each time without an event, half of it by chance.
pub const SOURCE_RECONNECT_MIN: Duration = Duration::from_secs(1);
pub const SOURCE_RECONNECT_MAX: Duration = Duration::from_secs(30);
/// A stream that says nothing for so long is taken for dead, and opened again where there is a place to go on from.
pub const SOURCE_IDLE_MAX: Duration = Duration::from_secs(600);
/// The least of these times in settings: servers that have nothing to say are not taken for dead.
pub const SOURCE_IDLE_LEAST: Duration = Duration::from_secs(20);
/// How often the newest events are read again while the stream lives.
pub const SOURCE_RECHECK: Duration = Duration::from_secs(300);
/// The least of these times in settings: each look is a stream that the server has to open, and servers count those.
pub const SOURCE_RECHECK_LEAST: Duration = Duration::from_secs(5);
/// The longest of these times that can be asked for. Longer is refused in settings, and means this in a library.
pub const SOURCE_TIME_MAX: Duration = Duration::from_secs(31 * 24 * 3_600);
/// The longest that a server is believed when it says when to come back.
pub const SOURCE_ASKED_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long the last save may take when a run ends.
pub const SOURCE_LAST_SAVE_MAX: Duration = Duration::from_secs(5);
/// Bytes of a checkpoint that is put, as a text and as a message: what a server takes as one message, less what is around
/// it. More ends the run.
pub const SOURCE_PUT_BYTES_MAX: usize = (4 << 20) - (64 << 10);
/// A message of a checkpoint that is longer, and refused without a word about when to come back, is taken to be refused for
/// its length.
pub const SOURCE_PUT_BYTES_SAFE: usize = 1 << 20;
/// Levels of objects and lists that a checkpoint's value may have as such. A deeper one goes as text: readers of the
/// protocol stop at a hundred messages within each other, and a level takes three.
pub const SOURCE_VALUE_DEPTH_MAX: usize = 24;
/// Foreign events that could not become ours, kept to be looked at. With one more the oldest goes.
pub const SOURCE_LETTERS_MAX: usize = 1_000;
/// Characters of such an event, and of the reason, that are kept.
pub const SOURCE_LETTER_CHARS_MAX: usize = 160;
/// Longest message that is read from a server. A longer one stops the source: it cannot be passed over unread.
pub const SOURCE_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How long one call of a server may take, and connecting to it.
pub const SOURCE_CALL_MAX: Duration = Duration::from_secs(20);
pub const SOURCE_CONNECT_MAX: Duration = Duration::from_secs(10);
/// How often a quiet connection is asked over HTTP/2 whether it lives, and how long it has to answer.
pub const SOURCE_KEEPALIVE: Duration = Duration::from_secs(310);
pub const SOURCE_KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(10);
/// After so long without anything the operating system asks the other one, which no server counts: so often, and so many
/// times before the connection is taken for dead.
pub const SOURCE_TCP_KEEPALIVE: Duration = Duration::from_secs(20);
pub const SOURCE_TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const SOURCE_TCP_KEEPALIVE_TRIES: u32 = 3;
/// A key, certificate or token file is not longer.
pub const SOURCE_FILE_BYTES_MAX: usize = 1 << 20;
/// A source that stopped is tried again after so many times its longest wait: what was wrong may be mended elsewhere.
pub const SOURCE_STOPPED_WAITS: u32 = 10;

const _: () =
    assert!(SOURCE_BATCH_EVENTS_MAX <= BATCH_EVENTS_MAX, "what is handled together is appended together");
/// The least time between questions over HTTP/2 that servers of gRPC put up with where nothing else is sent, unless they
/// are told otherwise. Who asks more often is cut off by the third, so a quiet stream would break each minute.
const SERVERS_PING_LEAST_SECS: u64 = 300;
const _: () =
    assert!(SOURCE_KEEPALIVE.as_secs() > SERVERS_PING_LEAST_SECS, "servers close quiet streams otherwise");
const _: () = assert!(SOURCE_OVERLAP_EVENTS < SOURCE_RING_CURSORS, "what is read again is remembered");
const _: () = assert!(EVENT_PAYLOAD_BYTES_MAX < SOURCE_MESSAGE_BYTES_MAX, "any event that fits can be read");
