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

/// The guest `resident` under a number: a plugin of its own with another name and another digest. The number
/// takes the place of the digits of a placeholder that is as long.
pub fn resident(number: usize) -> Vec<u8> {
    const PLACEHOLDER: &[u8] = b"resident-000000";
    let mut bytes = std::fs::read(guest("resident")).expect("the guest is built");
    let name = format!("resident-{number:06}");
    assert_eq!(name.len(), PLACEHOLDER.len(), "the number fits the placeholder");
    let starts = 0..=bytes.len() - PLACEHOLDER.len();
    let places: Vec<usize> = starts.filter(|at| bytes[*at..].starts_with(PLACEHOLDER)).collect();
    assert!(!places.is_empty(), "the component holds its name");
    for at in places {
        bytes[at..at + PLACEHOLDER.len()].copy_from_slice(name.as_bytes());
    }
    bytes
}
