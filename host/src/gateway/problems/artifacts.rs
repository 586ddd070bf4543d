//! What can go wrong with artifacts.

use super::{ProblemKind, caller, host};

pub(super) const ARTIFACTS: &[ProblemKind] = &[
    caller(404, "artifact_missing", "there is no such artifact", "push it, or deploy the component again"),
    host(500, "artifact_damaged", "an artifact is damaged", "push it with --again, or deploy the component"),
    caller(
        400,
        "digest_invalid",
        "this is no digest",
        "write `sha256:` and 64 lower-case hexadecimal digits, as `sha256sum` prints them",
    ),
    caller(
        400,
        "artifact_name_invalid",
        "this is no name of a pin or a note",
        "use 1 to 128 letters, digits, `.`, `_`, `-` and `:`, not beginning with a dot",
    ),
    caller(
        413,
        "artifact_bytes_max",
        "the artifact is too large",
        "make it smaller, or raise control.artifact_bytes_max on every host that is to have it",
    ),
    caller(
        422,
        "artifact_mismatch",
        "the content has another digest than was announced",
        "send the content that the digest was made of; nothing is stored",
    ),
    caller(
        400,
        "artifact_size",
        "the content has another length than was announced",
        "send all of it; nothing is stored",
    ),
    caller(400, "artifact_broken", "the content broke off", "send it again; nothing of it is stored"),
    caller(
        422,
        "artifact_signature_invalid",
        "this is no build signature",
        "send `{\"signatures\": [{\"plugin\", \"key\", \"signature\"}]}` as `millrace artifact push --sign` does",
    ),
    caller(
        409,
        "artifact_note_taken",
        "the artifact has another note of this name",
        "notes are written once: use another name",
    ),
    caller(
        429,
        "artifact_pins_max",
        "the artifact has as many pins as it may",
        "unpin it under names that are not used any more",
    ),
    caller(
        429,
        "artifact_notes_max",
        "the artifact has as many notes as it may",
        "use those that are there; they go with the artifact",
    ),
    caller(413, "artifact_note_bytes_max", "the note is too large", "store it as an artifact of its own"),
    caller(
        413,
        "artifact_signatures_bytes_max",
        "the list of signatures is too large",
        "send them in several requests",
    ),
];
