//! In which order hosts get a new version, when it goes on, and when it is taken back. Nothing here does anything: whatever
//! is decided is a function of what it is given, so whoever asks again, or in another's place, is told the same.
//!
//! Promises: which wave a host is in depends on its name, its labels and the rollout, and on nothing that changes while the
//! rollout runs; every host finds out for itself, and needs to know no other. A host that a wave of 5 % takes is in any of
//! 25 % of the same rollout. A wave is passed only on reports of the very state that it has; what is not reported is not
//! healthy. The order of reports, and repeats of them, change nothing.
//! Deliberately absent: how many hosts there are. A wave of 5 % of ten hosts may be of nobody, and then there is nothing to
//! go on: small fleets name their first hosts by labels.
//!
//! Reports are not signed. Whoever can write them can hold a rollout up, and can let a bad version pass for good; it cannot
//! make any host run what nobody released.

mod decide;
mod members;
mod plan;
mod samples;

pub use decide::{Broken, Decision, Look, Silence, decide};
pub use members::{bucket, effective_spec, is_target, wave_of};
pub use plan::{Gate, Plan, Progress, RolloutState, Wave};
pub use samples::{Rates, Sample};
