//! Who of several hosts does what.
//!
//! A lease gives one host at a time the right to something; its generation fences out whoever had it before.
//! [`Ownerships`] keeps this host's leases and says at any time whether they hold.

mod lease;
mod ownership;

pub use lease::{Asked, Fence, Lease, LeaseStore};
pub use ownership::{Ownership, Ownerships, Standing};
