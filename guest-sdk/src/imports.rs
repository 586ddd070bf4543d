//! What the host offers: the imports of the world. Off WebAssembly they go to
//! the [`Host`](crate::native::Host) that the caller of the instance provided.

use crate::Entry;
use crate::log::Level;

#[cfg(target_arch = "wasm32")]
mod to {
    use super::{Entry, Level};
    use crate::bindings::millrace::processor::{config, log, state};

    pub(crate) fn state_get(key: &[u8]) -> Option<Vec<u8>> {
        state::get(key)
    }

    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Vec<Entry> {
        state::scan(prefix, after, limit)
    }

    pub(crate) fn config_get(name: &str) -> Option<String> {
        config::get(name)
    }

    pub(crate) fn log(level: Level, message: &str) {
        log::write(level, message);
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod to {
    use super::{Entry, Level};
    use crate::native::with_host;

    pub(crate) fn state_get(key: &[u8]) -> Option<Vec<u8>> {
        with_host(|host| host.state_get(key))
    }

    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Vec<Entry> {
        with_host(|host| host.state_scan(prefix, after, limit))
    }

    pub(crate) fn config_get(name: &str) -> Option<String> {
        with_host(|host| host.config_get(name))
    }

    pub(crate) fn log(level: Level, message: &str) {
        with_host(|host| host.log(level, message));
    }
}

pub(crate) use to::{config_get, log, state_get, state_scan};
