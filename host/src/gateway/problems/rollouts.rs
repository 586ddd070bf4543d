//! What can go wrong with changes of what a fleet runs.

use super::{ProblemKind, caller, guest};

pub(super) const ROLLOUTS: &[ProblemKind] = &[
    caller(
        409,
        "control_change_refused",
        "this change cannot be made of what stands",
        "look at the plugin in the fleet's status, and make a change that fits its state",
    ),
    caller(
        409,
        "control_frozen",
        "the fleet is frozen",
        "unfreeze it first; halting, pausing and rolling back need not wait for that",
    ),
    caller(
        400,
        "control_report_invalid",
        "this is no report of a host",
        "bring the host that sent it up to date",
    ),
    // Reasons for which a host does not run what it should, see `GET /v1/fleet/status`.
    guest(
        409,
        "breaker_tripped",
        "the version was taken back on this host for its traps",
        "correct it and roll the correction out; to have this very version tried again, roll it out again",
    ),
    guest(
        409,
        "plugin_failed",
        "the version took over and does not run",
        "`plugin show` on that host says why; roll it back, or correct it",
    ),
    caller(
        409,
        "plugin_other_build",
        "the component has another version or world than it was released with",
        "release it again as what it is: `millrace rollout start` asks the component, unless --version-is speaks for it",
    ),
    caller(
        422,
        "plugin_config_invalid",
        "the plugin's configuration is not usable",
        "give it a JSON object of texts with `millrace fleet config`",
    ),
];
