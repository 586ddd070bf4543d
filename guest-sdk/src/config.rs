//! Settings that the operator gave this plugin.

use std::str::FromStr;

use crate::imports;

/// The setting's value; none where it is not set.
pub fn get(name: &str) -> Option<String> {
    imports::config_get(name)
}

/// The setting, parsed; `default` where it is not set. An error names the
/// setting and its value, ready to be what `load` refuses with.
pub fn get_or<T: FromStr>(name: &str, default: T) -> Result<T, String> {
    match get(name) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|_| {
            format!("setting `{name}` is `{value}`, which is not a {}", std::any::type_name::<T>())
        }),
    }
}
