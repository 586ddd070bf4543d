//! Claims about projects in Rust on one machine: what they share is built once, and nothing else is shared.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use millrace::cli::toolchain::{Language, copy_built};
use millrace::config::DATA_DIR;
use millrace_tests::workspace_binary;

use crate::commands::ran;

const NAME: &str = "same-name";
/// What each of the two says of itself.
const SUMMARIES: [&str; 2] = ["Counts on this side", "Counts on the other side"];

/// Projects with one name, neither of which is younger than what the other's build leaves.
async fn begun(folder: &Path) -> [PathBuf; 2] {
    let dirs = ["one", "two"].map(|name| folder.join(name));
    for (dir, summary) in dirs.iter().zip(SUMMARIES) {
        let text = dir.to_str().expect("UTF-8");
        ran(&["plugin", "new", "--lang", "rust", NAME, "--dir", text]).await.0.expect("it begins");
        let source = dir.join("src/lib.rs");
        let before = fs::read_to_string(&source).expect("a file");
        let after = before.replace("Counts the events of each order\")", &format!("{summary}\")"));
        assert_ne!(before, after);
        fs::write(&source, after).expect("the folder is the test's");
    }
    dirs
}

/// Builds in a process of its own, and answers what it says meanwhile.
fn built(dir: &Path) -> String {
    let mut command = Command::new(workspace_binary("millrace"));
    command.args(["plugin", "build"]).arg(dir).stdin(Stdio::null()).env("CARGO_TERM_COLOR", "never");
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", dir.display());
    said
}

/// Which of the summaries are in a project's component.
fn told(dir: &Path) -> Vec<&'static str> {
    let bytes = fs::read(dir.join("target").join(format!("{NAME}.wasm"))).expect("it is built");
    let has = |summary: &&str| bytes.windows(summary.len()).any(|part| part == summary.as_bytes());
    SUMMARIES.into_iter().filter(has).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_of_one_name_get_their_own_components() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] = begun(folder.path()).await;

    // At once, and one of them twice.
    thread::scope(|scope| {
        let builds = [&one, &two, &one].map(|dir| scope.spawn(move || built(dir)));
        for build in builds {
            build.join().expect("it is built");
        }
    });
    assert_eq!([told(&one), told(&two)], SUMMARIES.map(|summary| vec![summary]));

    // One after the other, where the first is gone.
    fs::remove_dir_all(one.join("target")).expect("the folder is the test's");
    let said = built(&one);
    assert_eq!(told(&one), [SUMMARIES[0]]);
    assert!(said.contains(&format!("Compiling {NAME} ")), "it was gone: {said}");
    assert!(!said.contains("Compiling serde "), "what all share is built once a machine: {said}");

    // With other sources, none of which Cargo has to do with.
    fs::write(two.join("README.md"), "for people").expect("the folder is the test's");
    let said = built(&two);
    assert_eq!(told(&two), [SUMMARIES[1]]);
    assert!(said.contains(&format!("building {NAME}")), "Cargo is asked: {said}");
    assert!(!said.contains("Compiling"), "its own build is as it was: {said}");
}

/// Only Cargo knows of what is not in the project's folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_crate_beside_the_project_is_built_again_when_it_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, _] = begun(folder.path()).await;
    let beside = folder.path().join("beside");
    let says = |summary: &str| {
        let text = format!("pub const SUMMARY: &str = \"{summary}\";\n");
        fs::write(beside.join("src/lib.rs"), text).expect("the folder is the test's");
    };
    fs::create_dir_all(beside.join("src")).expect("the folder is the test's");
    let manifest = "[package]\nname = \"beside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    fs::write(beside.join("Cargo.toml"), manifest).expect("the folder is the test's");
    for (name, from, to) in [
        ("Cargo.toml", "[dependencies]\n".to_owned(), "[dependencies]\nbeside = { path = \"../beside\" }\n"),
        ("src/lib.rs", format!("\"{}\"", SUMMARIES[0]), "beside::SUMMARY"),
    ] {
        let before = fs::read_to_string(one.join(name)).expect("a file");
        let after = before.replace(&from, to);
        assert_ne!(before, after, "{name}");
        fs::write(one.join(name), after).expect("the folder is the test's");
    }
    for summary in SUMMARIES {
        says(summary);
        built(&one);
        assert_eq!(told(&one), [summary]);
    }
}

#[test]
fn a_copied_build_folder_keeps_the_times_of_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    let before = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for (name, later) in [("deep/older", 0), ("younger", 1), ("own/left", 2)] {
        let path = from.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
        let file = File::create(&path).expect("the folder is the test's");
        file.set_modified(before + Duration::from_nanos(later)).expect("the file is the test's");
    }
    copy_built(&from, &to, &|path| !path.starts_with("own")).expect("it is copied");
    for name in ["deep/older", "younger"] {
        let time =
            |dir: &Path| fs::metadata(dir.join(name)).and_then(|about| about.modified()).expect("a time");
        assert_eq!(time(&to), time(&from), "{name}");
    }
    assert!(!to.join("own").exists(), "it was to be left out");
}

#[test]
fn a_new_project_ignores_what_is_built_and_what_a_host_stores() {
    for language in Language::ALL {
        let folder = match language {
            Language::Rust => "template".to_owned(),
            Language::Js | Language::Python => format!("{}/template", language.name()),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk").join(folder).join(".gitignore");
        let text = fs::read_to_string(&path).expect("a file");
        for name in ["target", DATA_DIR] {
            assert!(text.lines().any(|line| line == format!("/{name}")), "{language:?}: {name} is missing");
        }
    }
}
