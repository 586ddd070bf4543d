//! Bounds of a control feed on NATS.

use std::time::Duration;

/// Time to connect to a server, and for an answer of JetStream. Then it counts as away.
pub const NATS_CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);
pub const NATS_ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// First and longest wait before the next try to reach a server; doubles in between.
pub const NATS_RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
pub const NATS_RETRY_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a silent connection is tried.
pub const NATS_PING_EVERY: Duration = Duration::from_secs(5);
/// Commands that wait for the connection, and messages of one subscription that wait to be read. Beyond, the server's
/// are dropped and handed out again.
pub const NATS_QUEUE_MAX: usize = 1_024;
/// Messages that one request asks for: they may be large.
pub const NATS_PULL_MAX: usize = 64;
/// How long the server keeps a request for more. A request is made again then, and the stream looked at.
pub const NATS_PULL_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked whether a stream that was missing is there.
pub const NATS_STREAM_LOOK_EVERY: Duration = Duration::from_millis(250);
/// After how long the server hands out again what was not acknowledged. An apply takes milliseconds.
pub const NATS_ACK_WAIT: Duration = Duration::from_secs(60);
/// Events that a host may have without acknowledging them. Beyond, the server hands out no others.
pub const NATS_ACKS_WAITING_MAX: usize = 256;
/// How often in one poll a consumer is made again that was removed. Then the poll fails and is repeated.
pub const NATS_ATTACH_TRIES_MAX: usize = 3;
/// How often a stream is looked for that another one is about to make.
pub const NATS_MAKING_LOOKS_MAX: usize = 20;
/// In how many looks a sink may find another's claim to move the stream on before it takes it over, and how often it looks
/// at all. Between two of them is [`NATS_RETRY_WAIT_MIN`]; together they take longer than the other waits for an answer.
pub const NATS_CLAIM_LOOKS_MAX: usize = 60;
pub const NATS_BEGIN_LOOKS_MAX: usize = 3 * NATS_CLAIM_LOOKS_MAX;
/// After how long without a request the server forgets a host's consumer. It is made again from the host's own cursor.
pub const NATS_CONSUMER_IDLE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How old events become, when nothing else is said. A host that was away for longer starts from a snapshot.
pub const NATS_EVENTS_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// For how long the ids of events are known, when nothing else is said: an origin that was cut off for a day does not
/// append anything twice.
pub const NATS_DUPLICATES_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// How far above all that is known a stream begins again that has lost its end.
pub const NATS_LIFE_STEP: u64 = 1 << 20;
/// How often a mark is written again because somebody else was quicker.
pub const NATS_MARK_TURNS_MAX: usize = 64;

const _: () = assert!(NATS_PULL_MAX < NATS_QUEUE_MAX, "what a request brings fits its subscription");
const _: () = assert!(
    NATS_RETRY_WAIT_MIN.as_millis() * NATS_CLAIM_LOOKS_MAX as u128 > NATS_ANSWER_WAIT_MAX.as_millis(),
    "who moves a stream on has had its answer before another one does"
);
