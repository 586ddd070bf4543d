//! Claims about plugins in languages that bring an engine with them.

mod clocks;
mod hostile;
mod js;
mod parking;
mod python;
mod same;
mod samples;
mod swaps;
