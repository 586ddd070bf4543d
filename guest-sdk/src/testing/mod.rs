//! Tests of a plugin's logic with `cargo test`, without WebAssembly.
//!
//! [`Driver`] does what the host does: it keeps rows under the version gate,
//! emitted events, appended entries, keyed state and snapshots. It also looks after the rules
//! that an author can break: it panics, with a sentence, when a failing event
//! has changed the state, when `snapshot` answers two different things, or
//! when state comes from a processor whose manifest names no content type.

mod driver;
mod event;
mod rows;

pub use driver::{Appended, Driver, Failed, Message, Setup, batch_equals_singles};
pub use event::{Batch, TestEvent};
pub use rows::Row;
#[cfg(test)]
pub(crate) use rows::read as read_row;
