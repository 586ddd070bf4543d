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
    rewritten("resident", "resident-000000", &format!("resident-{number:06}"))
}

/// The guest `variant` under a number and with a nature (see there): a version of its own.
pub fn variant(number: usize, nature: &str) -> Vec<u8> {
    let version = format!("1.{}.0+{nature:-<10}", 1_000_000 + number);
    rewritten("variant", "1.1000000.0+nature----", &version)
}

/// A guest whose placeholder is overwritten, byte for byte.
fn rewritten(name: &str, placeholder: &str, text: &str) -> Vec<u8> {
    let (placeholder, text) = (placeholder.as_bytes(), text.as_bytes());
    let mut bytes = std::fs::read(guest(name)).expect("the guest is built");
    assert_eq!(text.len(), placeholder.len(), "the text fits the placeholder");
    let starts = 0..=bytes.len() - placeholder.len();
    let places: Vec<usize> = starts.filter(|at| bytes[*at..].starts_with(placeholder)).collect();
    assert!(!places.is_empty(), "the component holds its placeholder");
    for at in places {
        bytes[at..at + text.len()].copy_from_slice(text);
    }
    bytes
}
