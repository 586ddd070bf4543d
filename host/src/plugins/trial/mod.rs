//! A processor over recorded events, in memory: what it makes of them, and whether it makes the same of them however
//! they come.
//!
//! Promises: any [`ProcessorFactory`] is driven as a lane drives it (batches, a snapshot after each, restarts from the
//! last one, events one by one after a fall, keys held by what failed), and nothing outside of the process is touched.
//! Deliberately absent: waits, other lanes, the log. What is emitted is collected and not handed in again, since
//! where it would stand in the log is not the processor's to say.
//!
//! [`ProcessorFactory`]: crate::processors::ProcessorFactory

mod fold;
mod keyed;
mod model;
mod prove;
mod report;

pub use fold::{Cut, Fold, FoldError};
pub use model::{Appended, Difference, Emitted, Fault, Folded, Letter, Row};
pub use prove::{Finding, Proof, Prove};
