//! What can go wrong with sources. All but the first are shown of a source, and answer no request.

use super::{ProblemKind, caller, host};
use crate::error::Blame;

pub(super) const SOURCES: &[ProblemKind] = &[
    caller(
        404,
        "source_unknown",
        "there is no such source",
        "see /v1/sources for those that there are; settings name them, such as [source.grpc]",
    ),
    caller(
        424,
        "source_unreachable",
        "the server of a source does not answer, or its connection broke",
        "nothing, if it restarts: the source comes back by itself; otherwise look at source.grpc.endpoint",
    ),
    caller(
        424,
        "source_exhausted",
        "the server of a source has more requests than it takes",
        "nothing: the source waits as long as it is asked to; raise that server's limits if it lasts",
    ),
    caller(
        424,
        "source_denied",
        "the server of a source refuses who asks",
        "correct source.grpc.api_key or bearer_token, or what that server allows the client",
    ),
    caller(
        424,
        "source_refused",
        "the server of a source does not take what is asked",
        "compare the settings in [source.grpc] with what that server can do; the message has its words",
    ),
    caller(
        424,
        "source_checkpoint_foreign",
        "the checkpoint of a source belongs to another client than its API key",
        "make source.grpc.client_id the client that the key was given to, or keep checkpoints in the store",
    ),
    caller(
        424,
        "checkpoint_taken_over",
        "another process saves under the client id of a source",
        "let one of the two have another client id, or stop it",
    ),
    caller(
        424,
        "content_type_mismatch",
        "the checkpoint of a source was saved by something else",
        "give the source a client id of its own; what was saved is left as it is",
    ),
    caller(
        424,
        "checkpoint_not_loaded",
        "the checkpoint of a source cannot be taken up",
        "see the message; where the checkpoint is removed the source begins at source.grpc.after_cursor",
    ),
    caller(
        424,
        "cursor_lost",
        "the server of a source no longer knows how far the source was",
        "decide with source.grpc.on_cursor_lost: oldest, tail or rebuild; or stop the host and set lastEventCursor in sources/CLIENT.json to a cursor that the server knows",
    ),
    caller(
        424,
        "source_put_bytes_max",
        "a checkpoint is larger than a server takes",
        "keep less in the state, or keep checkpoints in the store",
    ),
    caller(
        424,
        "source_message_bytes_max",
        "the server of a source sends a message that is longer than is read",
        "have it send less at once; or stop the host, set lastEventCursor in sources/CLIENT.json to the cursor of that message, and start the host",
    ),
    caller(
        424,
        "source_message_unreadable",
        "the server of a source sends a message that is none of memory.v1",
        "compare what that server speaks; to pass over the message, stop the host and set lastEventCursor in sources/CLIENT.json to its cursor",
    ),
    ProblemKind {
        code: "source_processor_failed",
        status: 424,
        title: "what takes the events of a source could not go on",
        fix: "see the message; what was handled is saved",
        blame: Blame::Guest,
    },
    host(
        503,
        "source_store_failed",
        "what a source brings cannot be kept",
        "see the message, such as for a full disk; the events wait at the server",
    ),
];
