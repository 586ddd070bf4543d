//! What the host offers: the imports of the world. Off WebAssembly they go to
//! the [`Host`](crate::native::Host) that the caller of the instance provided.

use crate::log::Level;
use crate::{StatePage, StateValue};

#[cfg(target_arch = "wasm32")]
mod to {
    use super::{Level, StatePage, StateValue};
    use crate::Entry;
    use crate::bindings::millrace::processor::{config, log, state};
    use crate::state::from_wire;

    pub(crate) fn state_get(key: &[u8]) -> Option<StateValue> {
        let found = state::get(key)?;
        Some(StateValue { value: found.value, expires_at: from_wire(found.expires_at) })
    }

    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> StatePage {
        let page = state::scan(prefix, after, limit);
        let entry = |entry: state::Entry| Entry {
            key: entry.key,
            value: entry.value,
            expires_at: from_wire(entry.expires_at),
        };
        StatePage { entries: page.entries.into_iter().map(entry).collect(), more: page.more }
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
    use super::{Level, StatePage, StateValue};
    use crate::native::with_host;

    pub(crate) fn state_get(key: &[u8]) -> Option<StateValue> {
        with_host(|host| host.state_get(key))
    }

    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> StatePage {
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
