//! Bounds of artifacts: what a fleet runs, by its content.

use std::time::Duration;

use super::COMPONENT_BYTES_MAX;

/// Bytes of one artifact. Larger is refused before all of it came.
pub const ARTIFACT_BYTES_MAX: u64 = COMPONENT_BYTES_MAX as u64;
/// Longest name of a pin or a note: it is that of a file.
pub const ARTIFACT_NAME_BYTES_MAX: usize = 128;
/// Pins of one artifact, and its notes, and bytes of a note. More are refused: each listing shows the pins.
pub const ARTIFACT_PINS_MAX: usize = 256;
pub const ARTIFACT_NOTES_MAX: usize = 64;
pub const ARTIFACT_NOTE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request that brings build signatures.
pub const ARTIFACT_SIGNATURES_BYTES_MAX: u64 = 64 << 10;
/// Artifacts of one page of a list: where nothing is said, and at most.
pub const ARTIFACT_PAGE_DEFAULT: usize = 100;
pub const ARTIFACT_PAGE_MAX: usize = 1_000;
/// How old an artifact must be to be collected, where nothing is said: whatever was pushed for a rollout has begun by then.
pub const ARTIFACT_COLLECT_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes that are written to, or read from, a folder at a time.
pub const ARTIFACT_PIECE_BYTES: usize = 256 << 10;
/// How long a put or a pin waits for a collection by another process, and the other way round, and how often it looks.
pub const ARTIFACT_LOCK_WAIT: Duration = Duration::from_secs(10);
pub const ARTIFACT_LOCK_POLL: Duration = Duration::from_millis(2);
/// Bytes of one value on a server: while it writes one, it serves nobody else.
pub const ARTIFACT_CHUNK_BYTES_MAX: usize = 512 << 10;
/// How long the chunks of a put stay that did not come to its end. Whoever takes longer for one has to begin again.
pub const ARTIFACT_UPLOAD_KEEP: Duration = Duration::from_secs(3_600);
/// How often a put looks again because others store, replace or remove the same artifact on a server.
pub const ARTIFACT_KEEP_TRIES_MAX: usize = 8;
/// Artifacts that one script call looks at.
pub const ARTIFACT_SCAN_MAX: usize = 100;
/// How long a host waits for the next piece of an artifact that it copies.
pub const ARTIFACT_FETCH_IDLE_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(ARTIFACT_NOTE_BYTES_MAX <= ARTIFACT_CHUNK_BYTES_MAX, "a note is one value");
const _: () = assert!(ARTIFACT_PIECE_BYTES <= ARTIFACT_CHUNK_BYTES_MAX, "a piece fits a value");
