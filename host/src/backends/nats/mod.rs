//! The control feed on NATS JetStream, 2.9 or later, and the board beside it.
//!
//! One stream in files holds the events, each under its plugin's subject; a durable consumer per host hands them out and
//! is told of each that is committed. What a host reports lies in a key-value bucket.
//!
//! Requests are written to the server's JSON interface and not to a library's view of it: each has one deadline and one
//! reading of its errors, and a poll that is dropped loses nothing that the server has sent.

mod api;
mod board;
mod control;
mod link;
mod names;
mod options;

pub use control::NatsControl;
pub use options::{InvalidNatsAddress, NatsAddress, NatsOptions};
