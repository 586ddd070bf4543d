//! Bounds of the gRPC server, and of the checkpoints that clients keep here.

use std::time::Duration;

use super::{EVENT_PAYLOAD_BYTES_MAX, REDIS_CHECK_EVERY};

/// Longest message that the gRPC server reads.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Calls and streams of one connection at the same time.
pub const GRPC_STREAMS_MAX: u32 = 1_000;
/// Connections of the gRPC server at the same time. One more is closed at once.
pub const GRPC_CONNECTIONS_MAX: usize = 1_000;
/// Calls about checkpoints that the whole server reads and answers at the same time, until their answers are taken, and as many
/// that open a stream: each may have a message in memory. One more is refused.
pub const GRPC_CALLS_MAX: usize = 128;
/// An answer is handed over in pieces of so many bytes; each must be taken in `write_wait_ms_max`.
pub const GRPC_PIECE_BYTES_MAX: usize = 16 << 10;
/// Event streams of the whole server, until their clients have taken the end. One more is refused.
pub const GRPC_EVENT_STREAMS_MAX: usize = 500;
/// Event streams of one caller who is no administrator. With one more the oldest ends.
pub const GRPC_USER_STREAMS_MAX: usize = 5;
/// Values of all filters of one event stream.
pub const GRPC_FILTER_VALUES_MAX: usize = 1_000;
/// Events that are read from the log at once for a stream, and most of their bytes.
pub const GRPC_PAGE_EVENTS_MAX: usize = 1_000;
pub const GRPC_PAGE_BYTES_MAX: usize = 128 << 10;
/// Events of one stream that are written ahead of what the client takes, and about their bytes. A larger event goes alone.
pub const GRPC_STREAM_QUEUE_MAX: usize = 16;
pub const GRPC_STREAM_QUEUE_BYTES_MAX: u32 = 64 << 10;
/// How long a cursor that another host has shown may be unknown here, and how often it is looked for.
pub const GRPC_CURSOR_WAIT_MAX: Duration = Duration::from_secs(2);
pub const GRPC_CURSOR_LOOK: Duration = Duration::from_millis(20);
/// When a client that found everything taken, or a host that is not as far, should come again.
pub const GRPC_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often a quiet connection is asked whether it lives, and how long it has to answer.
pub const GRPC_KEEPALIVE: Duration = Duration::from_secs(20);
pub const GRPC_KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a client may take to agree on TLS.
pub const GRPC_HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection without a call is kept when the host stops: a client that lives has gone by then.
pub const GRPC_GOODBYE_MAX: Duration = Duration::from_secs(1);
/// Bytes of all headers of one call.
pub const GRPC_HEADER_BYTES_MAX: u32 = 16 << 10;
/// A certificate or key file is not longer.
pub const GRPC_FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the value of one client's checkpoint.
pub const CLIENT_CHECKPOINT_BYTES_MAX: usize = 3 << 20;
/// What the body of a request has besides the value.
pub const CLIENT_CHECKPOINT_EXTRA_BYTES: usize = 4 << 10;
/// Clients of one tenant that have a checkpoint.
pub const CLIENT_CHECKPOINTS_MAX: usize = 10_000;
/// Bytes of a client's name, and of a content type.
pub const CLIENT_NAME_BYTES_MAX: usize = 256;

const _: () = assert!(CLIENT_CHECKPOINT_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX, "a checkpoint fits a message");
const _: () = assert!(EVENT_PAYLOAD_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX, "an event fits a message");
const _: () = assert!(
    GRPC_CURSOR_WAIT_MAX.as_millis() > 2 * REDIS_CHECK_EVERY.as_millis(),
    "what other hosts have seen is seen here in this time"
);
