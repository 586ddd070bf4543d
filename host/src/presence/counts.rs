//! What is counted of rooms. Whoever carries a change out counts it, so over all hosts each counts once.

use metrics::counter;

use super::LeaveReason;
use crate::telemetry::metrics as names;

/// A thing that is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Join,
    Update,
    Leave(LeaveReason),
    Message,
}

pub(crate) fn count(what: Counted, times: u64) {
    if times == 0 {
        return;
    }
    match what {
        Counted::Join => counter!(names::PRESENCE_JOINS).increment(times),
        Counted::Update => counter!(names::PRESENCE_UPDATES).increment(times),
        Counted::Leave(reason) => {
            counter!(names::PRESENCE_LEAVES, "reason" => reason.as_str()).increment(times);
        }
        Counted::Message => counter!(names::PRESENCE_MESSAGES).increment(times),
    }
}
