//! What can go wrong with changes of what a fleet runs.

use super::{ProblemKind, caller};

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
];
