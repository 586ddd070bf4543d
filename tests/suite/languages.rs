//! Claims about plugins in languages that bring an engine with them.

mod hostile;
mod js;
mod parking;
mod python;
mod same;
mod swaps;
