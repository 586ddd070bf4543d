//! Messages for the operator. The host bounds their size and rate, and puts
//! the plugin, tenant and lane beside them.

use crate::bindings::millrace::processor::log as wire;
use crate::imports;

pub use wire::Level;

/// For who looks closely.
pub fn debug(message: impl AsRef<str>) {
    imports::log(Level::Debug, message.as_ref());
}

/// A change of state.
pub fn info(message: impl AsRef<str>) {
    imports::log(Level::Info, message.as_ref());
}

/// Something was wrong, and was coped with.
pub fn warn(message: impl AsRef<str>) {
    imports::log(Level::Warn, message.as_ref());
}

/// Somebody should act.
pub fn error(message: impl AsRef<str>) {
    imports::log(Level::Error, message.as_ref());
}
