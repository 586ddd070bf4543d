//! Claims about what an operator sees: metrics, traces, guest messages, and whose fault a failure was.

mod blame;
mod collector;
mod measures;
mod messages;
mod traces;
