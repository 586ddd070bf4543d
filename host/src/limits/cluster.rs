//! Bounds of what hosts of a fleet tell each other.

use std::time::Duration;

/// How long a member counts as alive after it was heard of.
pub const CLUSTER_TTL: Duration = Duration::from_secs(6);
/// Longest name of a member.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;
/// Bytes of one message of the buses. Larger is refused.
pub const CLUSTER_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Control messages that wait for one member to acknowledge them. More are refused: none may be lost.
pub const CLUSTER_CONTROL_MAX: usize = 10_000;
/// Deltas that are kept for one member. Older ones go, and it is told that it has lost some.
pub const CLUSTER_DELTAS_MAX: usize = 10_000;
/// Deltas of one call and their bytes, which the server runs without serving anybody else meanwhile.
pub const CLUSTER_DELTAS_AT_ONCE_MAX: usize = 1_000;
pub const CLUSTER_DELTA_BYTES_AT_ONCE_MAX: usize = 4 << 20;
/// Messages that one read answers.
pub const CLUSTER_READ_MAX: usize = 256;
/// First and longest wait before it is asked again whether a control message was acknowledged; doubles in between.
pub const CLUSTER_ASK_MIN: Duration = Duration::from_millis(5);
pub const CLUSTER_ASK_MAX: Duration = Duration::from_millis(100);
/// How long answers to control messages are kept behind the last one of a member.
pub const CLUSTER_ANSWERS_KEEP: Duration = Duration::from_secs(60);
/// Connections for reads that wait, which one host keeps between them.
pub const CLUSTER_READERS_MAX: usize = 4;

const _: () = assert!(CLUSTER_MESSAGE_BYTES_MAX <= CLUSTER_DELTA_BYTES_AT_ONCE_MAX, "any delta fits a call");
