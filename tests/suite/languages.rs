//! Claims about plugins in languages that bring an engine with them.

mod clocks;
mod hostile;
pub(super) mod js;
mod parking;
pub(super) mod python;
mod same;
mod samples;
mod shadow;
mod swaps;
