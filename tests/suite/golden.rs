//! Claims about a world that is frozen: its text stays as it is, and what was built for it runs on every later host.
//! `wit/README.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use anyhow::Result;
use bytes::Bytes;
use flate2::read::GzDecoder;
use millrace::plugins::{WORLD_NAME, WasmRuntime};
use millrace::processors::ProcessorFactory;
use millrace_tests::embedded::Embedded;
use millrace_tests::guests::{load_shared, sharing_code};
use millrace_tests::kit::{GROUPS, Language, Settings, check, load_once, vectors_in};
use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::kit::says_what_it_is;
use crate::languages::{js, python};
use crate::plugins::rig::options;
use crate::replay;

/// World 0.1, by the digests of its files.
const WORLD_0_1: [(&str, &str); 4] = [
    ("handler.wit", "31caf613842eeeddea3f050225c39f161efd5132657ea4b46e398667a03be7f9"),
    ("host.wit", "3fba00855aa931bf4789923ef9ae1b8be71df5b8d81dc0343f9d96c17e97d351"),
    ("types.wit", "d7288bd98cdd98ac7cc7e7282e819b6c9d8bd83a52cfe6c4acaab74d58864409"),
    ("world.wit", "5f5745a740da67f8c65657b285e90d59903fb2749b7de802bec9a4a2a15541c5"),
];

/// The components that were kept for it.
const COMPONENTS: [&str; 9] = [
    "kit",
    "kit-js",
    "kit-python",
    "kit-wat",
    "flight-board",
    "carrier-stats",
    "delay-watch",
    "debounce",
    "turn-tracer",
];
const VECTORS_MIN: usize = 100;
const TRACER_CASES_MIN: usize = 30;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    repository().join("tests/golden/v0.1")
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn digest_of(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files below a folder, by their paths from there.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let entries = fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside = path.strip_prefix(folder).expect("it lies in the folder");
                found.insert(inside.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found
}

#[test]
fn wit_0_1_is_what_it_was() {
    assert_eq!(WORLD_NAME, "millrace:processor@0.1.0", "what the digests stand for");
    let folder = repository().join("wit/v0.1");
    let advice = "components are built for it elsewhere: what they need beyond it is a new version, \
                  in a folder of its own beside this one (wit/README.md)";
    let expected: BTreeSet<String> = WORLD_0_1.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files_in(&folder), expected, "world 0.1 is frozen, and these are not its files; {advice}");
    for (name, expected) in WORLD_0_1 {
        let found = digest_of(&read(&folder.join(name)));
        assert_eq!(found, expected, "wit/v0.1/{name} is frozen and was changed; {advice}");
    }
}

// What was kept.

/// By the names of files: what their bytes were, before they were compressed.
fn digests() -> BTreeMap<String, String> {
    let path = golden().join("DIGESTS");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: world 0.1 has no golden components; `cargo xtask golden v0.1` keeps them, once",
            path.display()
        )
    });
    let line = |line: &str| {
        let (digest, name) =
            line.split_once("  ").unwrap_or_else(|| panic!("{line:?} is no line of DIGESTS"));
        (name.to_owned(), digest.to_owned())
    };
    text.lines().map(line).collect()
}

/// What was kept under a name in DIGESTS, as it was then.
fn kept(name: &str, digests: &BTreeMap<String, String>) -> Vec<u8> {
    let Some(expected) = digests.get(name) else { panic!("tests/golden/v0.1/DIGESTS does not name {name}") };
    let bytes = if name.ends_with(".wasm") {
        let mut bytes = Vec::new();
        let packed = read(&golden().join(format!("{name}.gz")));
        GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        bytes
    } else {
        read(&golden().join(name))
    };
    assert_eq!(
        digest_of(&bytes),
        *expected,
        "{name} is not what was kept; take it from the history, do not build it"
    );
    bytes
}

#[test]
fn components_in_rust_do_not_tell_in_whose_folders_they_were_built() {
    for name in ["kit", "flight-board", "carrier-stats", "delay-watch"] {
        let component = component(name);
        let text = String::from_utf8_lossy(&component);
        // Messages of panics name the files of libraries.
        assert!(text.contains("registry/"), "{name} names none, and this looks at nothing");
        let found =
            text.find("/registry/src").map(|at| text[..at].chars().rev().take(80).collect::<String>());
        assert_eq!(found, None, "{name}, read backwards");
    }
}

/// How folders begin that belong to somebody, or to the machine that builds.
/// In two parts, since no file here names one whole.
const FOLDERS: [&str; 9] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    "/Users/",
    "\\Users\\",
    "/var/folders/",
    concat!("/wo", "rk/"),
    concat!("/wo", "rkspace/"),
    "/builds/",
    "/github/",
];

/// Folders of those who have built what a language's tools put into every component, the longer ones first.
fn folders_of_tools(name: &str) -> &'static [&'static str] {
    match name {
        "kit-js" | "debounce" => &[concat!("/ho", "me/runner/work/"), concat!("/ho", "me/runner/")],
        "kit-python" | "turn-tracer" => {
            &[concat!("/ho", "me/runner/work/"), concat!("/ho", "me/runner/"), concat!("/ro", "ot/.cargo/")]
        }
        _ => &[],
    }
}

/// What a component says of the folders in which it was built, with the text around it.
fn told_folders(name: &str, component: &[u8]) -> Vec<String> {
    let mut text = String::from_utf8_lossy(component).into_owned();
    for folder in folders_of_tools(name) {
        text = text.replace(folder, "");
    }
    let here = [env::home_dir(), repository().canonicalize().ok()];
    let here = here.iter().flatten().filter_map(|folder| folder.to_str());
    // A folder such as `/` is nobody's.
    let here: Vec<String> =
        here.filter(|folder| folder.len() > 1).map(|folder| format!("{folder}/")).collect();
    let folders = FOLDERS.into_iter().chain(here.iter().map(String::as_str));
    let around = |at: usize| -> String {
        let before: String = text[..at].chars().rev().take(40).collect();
        before.chars().rev().chain(text[at..].chars().take(80)).collect()
    };
    folders
        .flat_map(|folder| text.match_indices(folder).map(move |(at, _)| (at, at + folder.len())))
        .filter(|(_, end)| {
            text[*end..].starts_with(|next: char| next.is_alphanumeric() || "._-".contains(next))
        })
        .map(|(at, _)| around(at))
        .collect()
}

#[test]
fn components_do_not_tell_in_whose_folders_they_were_built() {
    for name in COMPONENTS {
        assert_eq!(told_folders(name, &component(name)), [""; 0], "{name}");
    }
}

#[test]
fn a_component_that_tells_a_folder_is_found_out() {
    for folder in FOLDERS {
        let told = format!("\0src/lib.rs{folder}ann/registry/src/a.rs\0");
        assert!(!told_folders("kit", told.as_bytes()).is_empty(), "{folder}");
        assert_eq!(told_folders("kit", format!("a {folder}\0").as_bytes()), [""; 0], "nobody's {folder}");
    }
    let here = repository().canonicalize().expect("this is built somewhere").join("src/lib.rs");
    assert!(!told_folders("kit", here.to_str().expect("UTF-8").as_bytes()).is_empty());
    for (name, of_its_tools) in [
        ("kit-js", concat!("/ho", "me/runner/work/engine")),
        ("kit-python", concat!("/ro", "ot/.cargo/registry")),
    ] {
        assert_eq!(told_folders(name, of_its_tools.as_bytes()), [""; 0], "{name}");
        assert!(!told_folders("kit", of_its_tools.as_bytes()).is_empty(), "{of_its_tools}");
    }
}

fn component(name: &str) -> Vec<u8> {
    kept(&format!("{name}.wasm"), &digests())
}

#[test]
fn what_was_kept_for_world_0_1_is_whole() {
    let digests = digests();
    for name in COMPONENTS {
        assert!(
            digests.contains_key(&format!("{name}.wasm")),
            "the golden component {name} is missing in DIGESTS"
        );
    }
    let mut named = BTreeSet::from(["DIGESTS".to_owned()]);
    for name in digests.keys() {
        let bytes = kept(name, &digests);
        let is_component = name.ends_with(".wasm");
        if is_component {
            assert!(bytes.starts_with(b"\0asm\x0d\0\x01\0"), "{name} is no component");
        }
        named.insert(if is_component { format!("{name}.gz") } else { name.clone() });
    }
    assert_eq!(files_in(&golden()), named, "the files are those that DIGESTS names");
    let vectors: usize = GROUPS.iter().map(|group| vectors_in(&golden().join("vectors"), group).len()).sum();
    assert!(vectors >= VECTORS_MIN, "{vectors} vectors");
}

// The kit's components, through the vectors of their time.

/// One module for each component, and in it a test for each group of vectors.
macro_rules! golden {
    ($($guest:ident: $language:ident),*) => {$(
        mod $guest {
            use super::{Language, factory, follows_the_kit};

            #[test]
            fn describe() {
                let guest = factory(Language::$language, &super::Settings::new());
                super::says_what_it_is(&*guest, Language::$language);
            }

            golden!(@groups $language: load, crossing, effects, failures, keyed, config, flush, snapshot);
        }
    )*};
    (@groups $language:ident: $($group:ident),*) => {$(
        #[test]
        fn $group() {
            follows_the_kit(Language::$language, stringify!($group));
        }
    )*};
}

golden!(kit_rust: Rust, kit_js: Js, kit_python: Python, kit_wat: Wat);

fn factory(language: Language, settings: &Settings) -> Arc<dyn ProcessorFactory> {
    let name = language.plugin();
    load_once(name, &|| component(name), settings)
}

fn follows_the_kit(language: Language, group: &str) {
    check(&|settings| factory(language, settings), &vectors_in(&golden().join("vectors"), group));
}

// Plugins as people write them.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_plugins_in_rust_give_every_expected_row_of_january() -> Result<()> {
    let host = Embedded::start().await?;
    for name in replay::SAMPLES {
        host.client.deploy_bytes(component(name)).await?.ok()?;
    }
    Box::pin(replay::january_is_as_expected(&host.client)).await?;
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_debounce_tells_what_its_model_tells_of_the_flights() -> Result<()> {
    Box::pin(js::tells_what_the_model_tells(component("debounce").into())).await
}

#[test]
fn golden_turn_tracer_passes_the_cases_of_its_time() {
    let bytes = component("turn-tracer");
    let runtime = WasmRuntime::new(sharing_code(options())).expect("the runtime starts");
    let cases = python::a_tracer_passes(
        &|settings| load_shared(&runtime, &bytes, settings).expect("the guest loads"),
        &golden().join("turn-tracer"),
        "",
    );
    assert!(cases >= TRACER_CASES_MIN, "{cases} cases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_turn_tracer_traces_a_turn_on_a_host() -> Result<()> {
    let tracer = Bytes::from(component("turn-tracer"));
    let host = Embedded::start_with_code_of(vec![tracer.clone()], |_| {}).await?;
    host.client.deploy_bytes(tracer).await?.ok()?;
    let said = |number: u32, role: &str, text: &str| {
        let at = format!("2026-05-19T12:00:0{number}Z");
        let payload = json!({
            "id": format!("e{number}"), "conversationId": "conv-1", "channel": "history", "contentType": "history",
            "content": [{ "role": role, "text": text }], "createdAt": at,
        });
        let event = json!({
            "aggregate": "entry", "agg_id": format!("e{number}"), "version": 1, "type": "entry.created", "at": at,
            "kind": "entry", "cursor": number.to_string(), "payload": payload,
        });
        format!("{event}\n")
    };
    host.client.publish([said(1, "USER", "a question"), said(2, "AI", "an answer")].concat()).await?;
    host.client.settle().await?;
    assert_eq!(host.client.events("turn.closed").await?.len(), 1);
    let rows = host.client.rows("turns", "limit=10").await?;
    let [row] = &rows[..] else { panic!("one turn: {rows:?}") };
    let (conversation, reason) = (&row["values"]["conversation"], &row["values"]["reason"]);
    assert_eq!((conversation, reason), (&json!("conv-1"), &json!("agent_history_entry")));
    host.stop().await;
    Ok(())
}
