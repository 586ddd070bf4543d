//! Bounds of rooms and their members.

use std::time::Duration;

/// Longest name of a room or a member.
pub const PRESENCE_NAME_BYTES_MAX: usize = 128;
/// Rooms of one tenant that have members, and members of one room. More are refused: whoever may publish names them.
pub const PRESENCE_ROOMS_MAX: usize = 10_000;
pub const PRESENCE_MEMBERS_MAX: usize = 1_000;
/// Bytes of a member's state, and of a message. Larger is refused.
pub const PRESENCE_STATE_BYTES_MAX: usize = 4 << 10;
pub const PRESENCE_MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Followers of one room on one host. More are refused.
pub const PRESENCE_FOLLOWERS_MAX: usize = 5_000;
/// Changes and bytes that wait for one follower of a room. Beyond, it is told of a gap and given the roster anew.
pub const PRESENCE_QUEUE_MAX: usize = 256;
pub const PRESENCE_QUEUE_BYTES_MAX: usize = 512 << 10;
/// How long a member stays when nothing more is heard of it, where it does not say; the least and the most it may ask for.
pub const PRESENCE_TTL: Duration = Duration::from_secs(30);
pub const PRESENCE_TTL_MIN: Duration = Duration::from_secs(1);
pub const PRESENCE_TTL_MAX: Duration = Duration::from_secs(3_600);
/// How often members whose time is over are looked for: they are told of so much later at most.
pub const PRESENCE_SWEEP: Duration = Duration::from_millis(250);

/// Streams of a Redis server that changes of rooms go through, each room through one: a host reads those whose rooms
/// somebody follows there. The same for all hosts of a server.
pub const PRESENCE_FEEDS: u64 = 16;
/// Changes that such a stream keeps, and how long after its last one. A host that reads later gives its followers
/// the roster anew.
pub const PRESENCE_FEED_CHANGES_MAX: usize = 1_024;
pub const PRESENCE_FEED_KEEP: Duration = Duration::from_secs(60);
/// Members whose time is over that one script call removes; the rest follows in the next one.
pub const PRESENCE_EXPIRED_MAX: usize = 1_000;
/// How long a roster is asked for again because the server does not know of what was read before.
pub const PRESENCE_ROSTER_TRIES_MAX: u32 = 20;

const _: () = assert!(PRESENCE_MEMBERS_MAX <= PRESENCE_EXPIRED_MAX, "a room expires in one call");
const _: () = assert!(PRESENCE_MESSAGE_BYTES_MAX < PRESENCE_QUEUE_BYTES_MAX, "any message fits a queue");
const _: () = assert!(PRESENCE_STATE_BYTES_MAX < PRESENCE_QUEUE_BYTES_MAX, "any state fits a queue");
