//! What can go wrong with sources.

use super::{ProblemKind, caller};

pub(super) const SOURCES: &[ProblemKind] = &[caller(
    404,
    "source_unknown",
    "there is no such source",
    "see /v1/sources for those that there are; settings name them, such as [source.grpc]",
)];
