//! What can go wrong with checkpoints that clients keep here.

use super::{ProblemKind, caller, host};

pub(super) const CLIENT_CHECKPOINTS: &[ProblemKind] = &[
    caller(
        404,
        "checkpoint_not_found",
        "there is no such checkpoint, or it is another client's",
        "put one first; a static token with a name sees the client of that name only",
    ),
    caller(
        400,
        "content_type_missing",
        "a checkpoint has no content type",
        "say in contentType what the value is to be read as",
    ),
    caller(400, "client_id_invalid", "this is no name of a client", "use a name of 1 to 256 bytes"),
    caller(
        413,
        "client_checkpoint_bytes_max",
        "the checkpoint is too large",
        "keep less in it; what was kept before is still there",
    ),
    caller(
        409,
        "client_checkpoints_max",
        "too many clients of the tenant have a checkpoint",
        "let processors keep the name that they have",
    ),
    caller(
        409,
        "checkpoints_not_shared",
        "a host that shares its log keeps no checkpoints of clients",
        "keep them elsewhere; or say grpc.checkpoints = \"host\" and have each client always come to the same host",
    ),
    host(
        500,
        "checkpoint_unreadable",
        "the checkpoint cannot be opened",
        "see the host's log; bring client-checkpoints.key and the folder beside it back from one backup",
    ),
];
