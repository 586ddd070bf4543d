//! Where the built guests are, and what they were compiled to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use millrace::plugins::{PluginError, PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::ProcessorFactory;
use ring::digest::{SHA256, digest};

/// Of a runtime that only compiles, and asks a guest what it is.
const LENDING_INSTANCES: usize = 4;

/// The component of a guest crate or example, by name. `cargo xtask guests` builds them.
pub fn guest(name: &str) -> PathBuf {
    let dir = folder();
    // Packages are named with hyphens, examples with underscores; a caller may write either.
    let names = [name.to_owned(), name.replace('-', "_"), name.replace('_', "-")];
    let found = names.iter().map(|name| dir.join(format!("{name}.wasm"))).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("the guest `{name}` is not in {}: build the guests with `cargo xtask guests`", dir.display())
    })
}

fn folder() -> PathBuf {
    std::env::var_os("MILLRACE_GUESTS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from)
}

/// What guests were compiled to, for all tests: one with an engine in it takes ten seconds.
fn code() -> PathBuf {
    std::env::var_os("MILLRACE_TEST_CODE").map_or_else(|| folder().join("code"), PathBuf::from)
}

/// The folder of a project that stays from one run of the tests to the next, empty but for what was built in it and its copy
/// of the SDK, which a build brings up to date. Each belongs to one test.
pub fn lasting_project(name: &str) -> Result<PathBuf> {
    let dir = folder().join("projects").join(name);
    fs::create_dir_all(&dir)?;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.ends_with("target") || path.ends_with("millrace") {
            continue;
        }
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| path.display().to_string())?;
    }
    Ok(dir)
}

/// Options of a runtime that takes compiled guests from where other tests have left them.
pub fn sharing_code(options: RuntimeOptions) -> RuntimeOptions {
    RuntimeOptions { cache_dir: Some(code()), cache_shared: true, ..options }
}

/// Loads a guest into such a runtime. One test at a time, so that none compiles what another is about to.
pub fn load_shared(
    runtime: &WasmRuntime,
    bytes: &[u8],
    settings: &PluginSettings,
) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
    let lock = File::create(code().join("lock")).expect("the runtime has made the folder");
    lock.lock().expect("a file of ours can be locked");
    runtime.load(bytes, &|_| settings.clone())
}

/// Puts what these components compile to into a store, for the host that will open it: as an earlier start would have
/// left it. They are compiled unless another test has done so.
pub fn lend_code(store: &Path, components: &[Bytes]) -> Result<()> {
    let options = RuntimeOptions { instances_max: LENDING_INSTANCES, ..RuntimeOptions::default() };
    let runtime = WasmRuntime::new(sharing_code(options))?;
    for component in components {
        // What a component may do is no part of its code.
        let settings = PluginSettings {
            grants: ["clock", "random"].map(String::from).to_vec(),
            ..PluginSettings::default()
        };
        load_shared(&runtime, component, &settings)?;
    }
    let digest_of = |bytes: &Bytes| {
        digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let digests: Vec<String> = components.iter().map(digest_of).collect();
    let (from, to) = (code(), store.join("precompiled"));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(&from).with_context(|| format!("{} is there", from.display()))? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text == "key" || digests.iter().any(|digest| text.starts_with(digest.as_str())) {
            // Both keep the file's mode. The folders may lie on different file systems.
            if fs::hard_link(from.join(&name), to.join(&name)).is_err() {
                fs::copy(from.join(&name), to.join(&name))?;
            }
        }
    }
    Ok(())
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

/// The guest `hostile-js` or `hostile-python` as a build that does this when it is asked what it is.
pub fn hostile_in_describe(guest: &str, nature: &str) -> Vec<u8> {
    rewritten(guest, "hostile-nature:--------", &format!("hostile-nature:{nature:-<8}"))
}

/// The version that a variant says it has; `1.0.0`, which most others say, of what is none.
pub fn version_of(bytes: &[u8]) -> String {
    let is_version = |text: &&[u8]| {
        text.starts_with(b"1.1") && text[3..9].iter().all(u8::is_ascii_digit) && &text[9..12] == b".0+"
    };
    let found = bytes.windows("1.1000000.0+nature----".len()).find(is_version);
    found.map_or_else(|| "1.0.0".into(), |text| String::from_utf8_lossy(text).into_owned())
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

/// Puts code with another bit in its middle in the place of all precompiled code in a folder; answers how much there was.
/// What is mapped stays as it was.
pub fn forge_code(dir: &Path) -> usize {
    use std::os::unix::fs::PermissionsExt as _;
    let entries = std::fs::read_dir(dir).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let code: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm")).collect();
    for path in &code {
        let mut bytes = std::fs::read(path).expect("code can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let forged = path.with_extension("forged");
        std::fs::write(&forged, bytes).expect("the folder is the test's");
        std::fs::set_permissions(&forged, std::fs::Permissions::from_mode(0o400)).expect("ours");
        std::fs::rename(forged, path).expect("the folder is the test's");
    }
    code.len()
}
