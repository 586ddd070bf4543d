//! Where the built guests are.

use std::path::{Path, PathBuf};

/// The component of a guest crate or example, by name. `cargo xtask guests` builds them.
pub fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("MILLRACE_GUESTS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from);
    // Packages are named with hyphens, examples with underscores; a caller may write either.
    let names = [name.to_owned(), name.replace('-', "_"), name.replace('_', "-")];
    let found = names.iter().map(|name| dir.join(format!("{name}.wasm"))).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("the guest `{name}` is not in {}: build the guests with `cargo xtask guests`", dir.display())
    })
}
