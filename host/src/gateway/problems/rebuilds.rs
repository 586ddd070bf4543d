//! What can go wrong with making a plugin's tables again.

use super::{ProblemKind, caller};

pub(super) const REBUILDS: &[ProblemKind] = &[
    caller(
        409,
        "rebuild_running",
        "the plugin is being rebuilt",
        "wait until it has taken over, or abandon it with DELETE /v1/plugins/{plugin}/rebuild",
    ),
    caller(
        404,
        "rebuild_none",
        "the plugin is not being rebuilt",
        "begin with POST /v1/plugins/{plugin}/rebuild",
    ),
    caller(
        409,
        "rebuild_refused",
        "the plugin cannot be rebuilt now",
        "the detail says what stands against it; the plugin goes on as it was",
    ),
    caller(
        409,
        "rebuild_unemitted",
        "the two versions have not handled the same events",
        "replay or discard the dead letters that it lists, or accept with accept_unemitted=true that these events are emitted never or twice",
    ),
];
