//! Claims about plugins in languages that bring an engine with them.

mod hostile;
mod parking;
mod swaps;
