//! Claims about `millrace plugin new`, `build` and `test`: what a person gets who begins a plugin.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;

use millrace::cli::toolchain::{
    Language, copy_tree, fingerprint_of, fingerprint_of_packages, is_source, place, vendor,
};
use millrace::cli::{Exit, embedded_paths};
use millrace_tests::walk::{self, Terminal};
use millrace_tests::workspace_binary;
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::ran;

mod copies;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A new project with this name in a folder of its own.
async fn begun(language: &str, name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("project");
    let (ended, _) = ran(&["plugin", "new", "--lang", language, name, "--dir", text(&dir)]).await;
    ended.expect("it begins");
    (folder, dir)
}

// What is in the executable.

/// All files below a folder of the repository, by their paths from there.
fn files_of(folder: &str) -> BTreeSet<String> {
    fn below(root: &Path, relative: PathBuf, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(root.join(&relative)).expect("a folder of the repository") {
            let entry = entry.expect("an entry");
            let path = relative.join(entry.file_name());
            if entry.file_type().expect("a kind").is_dir() {
                // What tools leave behind.
                let name = entry.file_name();
                if !["__pycache__", "node_modules", "target", ".venv"].iter().any(|left| name == *left) {
                    below(root, path, found);
                }
            } else {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    below(&repository(), folder.into(), &mut found);
    found
}

#[test]
fn every_file_of_the_sdks_is_in_the_executable() {
    let own_test = |path: &String| {
        let parts: Vec<&str> = path.split('/').collect();
        parts.contains(&"tests") && !parts.contains(&"template")
    };
    // Its documentation is for readers of the repository.
    let readme = |path: &String| path.ends_with("README.md");
    let wanted: BTreeSet<String> = ["guest-sdk", "wit"]
        .into_iter()
        .flat_map(files_of)
        .filter(|path| !own_test(path) && !readme(path))
        .collect();
    let embedded: BTreeSet<String> = embedded_paths().map(str::to_owned).collect();
    let missing: Vec<String> = wanted.difference(&embedded).map(|path| format!("    {path:?},")).collect();
    let gone: Vec<&String> = embedded.difference(&wanted).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "in host/src/cli/plugin/embedded.rs, add\n{}\nand remove {gone:?}",
        missing.join("\n")
    );
}

#[test]
fn the_templates_of_all_languages_are_tried_with_the_same_events_and_expect_the_same() {
    let read = |language: Language, name: &str| {
        let folder = match language {
            Language::Rust => "guest-sdk/template".to_owned(),
            _ => format!("guest-sdk/{}/template", language.name()),
        };
        fs::read_to_string(repository().join(folder).join("tests").join(name))
            .unwrap_or_else(|error| panic!("the template for {} has no {name}: {error}", language.name()))
    };
    for language in Language::ALL {
        assert_eq!(read(language, "events.ndjson"), read(Language::Rust, "events.ndjson"), "{language:?}");
        let json = |language| serde_json::from_str::<Value>(&read(language, "expected.json")).expect("JSON");
        assert_eq!(json(language), json(Language::Rust), "{language:?}");
    }
    // `new` writes plugin.toml itself; the other name is that of the config file of a host.
    let odd = |path: &&str| path.ends_with("/plugin.toml") || path.ends_with("/millrace.toml");
    let odd: Vec<&str> = embedded_paths().filter(odd).collect();
    assert!(odd.is_empty(), "a host started in a new project would read it: {odd:?}");
}

/// Whoever follows the README has the command before it is used.
#[test]
fn the_readme_says_how_the_command_is_installed_before_it_is_used() {
    let readme = walk::readme().expect("it is read");
    let install = "\ncargo install --locked --path host ";
    let (before, after) = readme.split_once(install).expect("it says how");
    let used =
        |text: &str| text.lines().any(|line| line.starts_with("millrace ") || line.contains("| millrace "));
    assert!(!used(before) && used(after), "it is used where it is not there yet");
    let manifest = fs::read_to_string(repository().join("host/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains("[[bin]]\nname = \"millrace\"\n"), "that folder makes the command");
}

// How a project begins.

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let long = "a".repeat(63);
    for name in ["", "Upper", "1st", "a_b", "a b", "../up", "ü", long.as_str()] {
        let dir = folder.path().join("project");
        let (ended, _) = ran(&["plugin", "new", "--lang", "rust", "--dir", text(&dir), "--", name]).await;
        let error = ended.expect_err("no name");
        assert_eq!(error.exit(), Exit::Usage, "{name}: {error}");
        assert!(error.sentence().contains("is no plugin's name"), "{name}: {error}");
        assert!(!dir.exists(), "nothing is left behind for `{name}`");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_something_in_it_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("notes.txt"), "mine").expect("the folder is the test's");
    let dir = text(folder.path());
    let (ended, _) = ran(&["plugin", "new", "--lang", "rust", "hello", "--dir", dir]).await;
    assert!(ended.expect_err("it is taken").sentence().contains("is there and not empty"));
    let there: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(there.len(), 1, "{there:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_project_has_all_that_it_needs_beside_itself() {
    let (_folder, dir) = begun("rust", "day-sums").await;
    for name in [
        "plugin.toml",
        "Cargo.toml",
        "Cargo.lock",
        ".gitignore",
        "src/lib.rs",
        "tests/events.ndjson",
        "tests/expected.json",
        "millrace/VERSION",
        "millrace/guest-sdk/Cargo.toml",
        "millrace/guest-sdk/src/lib.rs",
        "millrace/wit/v0.1/world.wit",
    ] {
        assert!(dir.join(name).is_file(), "{name} is missing");
    }
    let toml = fs::read_to_string(dir.join("plugin.toml")).expect("a file");
    assert!(toml.contains("name = \"day-sums\"") && toml.contains("language = \"rust\""), "{toml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_project_says_which_table_it_fills() {
    for language in Language::ALL {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("project");
        let arguments = ["plugin", "new", "--lang", language.name(), "day-sums", "--dir", text(&dir)];
        let (ended, said) = ran(&arguments).await;
        ended.expect("it begins");
        let asked = said.lines().last().and_then(|line| line.strip_prefix("  millrace query "));
        assert_eq!(asked, Some("day_sums"), "{said}");
        let expected = fs::read_to_string(dir.join("tests/expected.json")).expect("a file");
        let expected: Value = serde_json::from_str(&expected).expect("JSON");
        let tables: Vec<&String> = expected["rows"].as_object().expect("tables").keys().collect();
        assert_eq!(tables, ["day_sums"], "{language:?}");
    }
}

#[test]
fn an_older_copy_of_the_sdk_is_replaced_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sdk, wit, project) =
        (folder.path().join("sdk"), folder.path().join("wit"), folder.path().join("project"));
    let write = |path: PathBuf, text: &str| {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
        fs::write(path, text).expect("the folder is the test's");
    };
    write(sdk.join("millrace/index.mjs"), "new");
    write(sdk.join("package.json"), "for building");
    write(wit.join("world.wit"), "world");
    write(project.join("millrace/VERSION"), "older\n");
    write(project.join("millrace/gone.mjs"), "old");
    write(project.join("src/plugin.mjs"), "mine");

    assert!(vendor(&sdk, &wit, &project).expect("it is copied"), "it was older");
    let read = |name: &str| fs::read_to_string(project.join(name)).ok();
    assert_eq!(read("millrace/index.mjs").as_deref(), Some("new"));
    assert_eq!(read("millrace/wit/world.wit").as_deref(), Some("world"));
    assert_eq!(read("millrace/gone.mjs"), None, "what the SDK no longer has goes");
    assert_eq!(read("millrace/package.json"), None, "what is for building stays where it is");
    assert_eq!(read("src/plugin.mjs").as_deref(), Some("mine"));

    assert!(!vendor(&sdk, &wit, &project).expect("it is looked at"), "it is the same");
    write(sdk.join("millrace/index.mjs"), "newer");
    assert!(vendor(&sdk, &wit, &project).expect("it is copied"), "the SDK changed");
    assert_eq!(read("millrace/index.mjs").as_deref(), Some("newer"));
}

#[test]
fn builds_that_begin_at_once_bring_the_copy_of_the_sdk_once() {
    const BUILDS: usize = 8;
    let folder = tempfile::tempdir().expect("a folder");
    let [sdk, wit, project] = ["sdk", "wit", "project"].map(|name| folder.path().join(name));
    for (path, text) in (0..40).map(|n| (sdk.join(format!("millrace/{n}.mjs")), n.to_string())) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
        fs::write(path, text).expect("the folder is the test's");
    }
    fs::create_dir_all(&wit).expect("the folder is the test's");
    fs::create_dir_all(project.join("millrace")).expect("the folder is the test's");
    for round in 0..10 {
        fs::write(project.join("millrace/VERSION"), "older").expect("the folder is the test's");
        let start = Barrier::new(BUILDS);
        let brought = std::thread::scope(|scope| {
            let build = || {
                start.wait();
                vendor(&sdk, &wit, &project).expect("it is brought or there")
            };
            let builds: Vec<_> = (0..BUILDS).map(|_| scope.spawn(build)).collect();
            builds.into_iter().filter_map(|build| build.join().expect("no panic").then_some(())).count()
        });
        assert_eq!(brought, 1, "round {round}");
        assert_eq!(fs::read_to_string(project.join("millrace/39.mjs")).expect("it is there"), "39");
    }
}

#[test]
fn what_lies_beside_a_plugins_sources_is_no_part_of_its_component() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
        fs::write(path, text).expect("the folder is the test's");
    };
    let packages = ".venv/lib/python3.11/site-packages";
    let of = || {
        let sources = fingerprint_of(&[("", folder.path())], &[], &is_source).expect("it is read");
        (sources, fingerprint_of_packages(folder.path()))
    };
    write("src/plugin.mjs", "1");
    let first = of();
    for beside in [
        "tests/expected.json",
        "tests/deep/x.mjs",
        "plugin.toml",
        "README.md",
        "target/a.wasm",
        "node_modules/a.js",
    ] {
        write(beside, "2");
        assert_eq!(of(), first, "{beside}");
    }
    let mut seen = BTreeSet::from([first]);
    for part in [
        "src/plugin.mjs",
        "src/tests/x.mjs",
        "src/target/x.mjs",
        "millrace/index.mjs",
        &format!("{packages}/six-1.0.dist-info/RECORD"),
        &format!("{packages}/six-1.1.dist-info/METADATA"),
    ] {
        write(part, "3");
        assert!(seen.insert(of()), "{part}");
    }
}

#[test]
fn a_linked_file_or_folder_counts_by_what_it_leads_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let [project, beside, copy] = ["project", "beside", "copy"].map(|name| folder.path().join(name));
    for dir in [project.join("src"), beside.clone()] {
        fs::create_dir_all(dir).expect("the folder is the test's");
    }
    let write =
        |name: &str, text: &str| fs::write(beside.join(name), text).expect("the folder is the test's");
    write("one.py", "1");
    for (target, link) in [
        (beside.join("one.py"), "src/one.py"),
        (beside.clone(), "shared"),
        // Neither of these has an end, or leads anywhere.
        (folder.path().into(), "up"),
        (project.clone(), "src/round"),
        (beside.join("nothing"), "src/gone.py"),
    ] {
        symlink(target, project.join(link)).expect("the folder is the test's");
    }
    let of = || {
        let only_file = |path: &Path| path.starts_with("src");
        let all = fingerprint_of(&[("", &project)], &[], &|_| true).expect("it is read");
        (all, fingerprint_of(&[("", &project)], &[], &only_file).expect("it is read"))
    };
    let first = of();
    write("one.py", "2");
    let second = of();
    assert_ne!(second.1, first.1, "the file that a link leads to changed");
    write("two.py", "1");
    let third = of();
    assert_ne!(third.0, second.0, "the folder that a link leads to has another file");
    assert_eq!(third.1, second.1);
    fs::write(folder.path().join("other"), "1").expect("the folder is the test's");
    assert_eq!(of(), third, "what is above a project is no part of it");
    copy_tree(&project.join("src"), &copy).expect("it is copied");
    assert_eq!(fs::read_to_string(copy.join("one.py")).ok().as_deref(), Some("2"), "as it is counted");
}

#[test]
fn a_package_may_have_a_folder_of_any_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    for inside in ["target", "tests", "deep/target"] {
        fs::create_dir_all(from.join(inside)).expect("the folder is the test's");
        fs::write(from.join(inside).join("a.py"), inside).expect("the folder is the test's");
    }
    copy_tree(&from, &to).expect("it is copied");
    for inside in ["target", "tests", "deep/target"] {
        assert_eq!(fs::read_to_string(to.join(inside).join("a.py")).ok().as_deref(), Some(inside));
    }
}

// From a name to a running plugin.

/// By its name in `tests/`.
fn a_test_that_fails(language: &str) -> (&'static str, &'static str) {
    match language {
        "rust" => ("bad.rs", "#[test]\nfn fails() {\n    panic!(\"as asked\");\n}\n"),
        "js" => (
            "bad.test.mjs",
            "import { test } from 'node:test';\ntest('fails', () => {\n  throw new Error('as asked');\n});\n",
        ),
        _ => (
            "test_bad.py",
            "import unittest\n\n\nclass Bad(unittest.TestCase):\n    def test_fails(self):\n        self.fail()\n",
        ),
    }
}

/// What the README shows from no plugin to its rows, and what `plugin new` says to go on with.
async fn new_to_a_running_guest(language: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    // What two plugins share is compiled once. Cargo reads this also above a project.
    let shared = format!("build.target-dir = '{}'", text(&folder.path().join("native")));
    place(shared.as_bytes(), &folder.path().join(".cargo/config.toml")).expect("it is written");
    let mut terminal = Terminal::new(&workspace_binary("millrace"), folder.path()).expect("a terminal");
    let host = terminal.host().expect("a host");
    let steps = walk::steps_in(language).expect("the README has them");
    let (new, then) = steps.split_first().expect("it begins");
    let (query, between) = then.split_last().expect("it ends");

    let said = terminal.run(new).expect("it begins");
    let next: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let shown: Vec<&str> = then.iter().map(|step| walk::command(step)).collect();
    assert_eq!(next, shown, "what it says to go on with is what the README shows");
    let dir = folder.path().join("hello");
    let stamp = fs::read_to_string(dir.join("millrace/VERSION")).expect("a file");
    fs::write(dir.join("millrace/VERSION"), "older\n").expect("the folder is the test's");

    let component = dir.join("target/hello.wasm");
    let mut built = None;
    for step in between {
        terminal.run(step).expect("what the README shows works");
        if component.exists() {
            // Two builds differ in most languages.
            let now = fs::read(&component).expect("it is built");
            assert!(*built.get_or_insert_with(|| now.clone()) == now, "`{step}` built it again");
        }
    }
    let again = fs::read_to_string(dir.join("millrace/VERSION")).expect("a file");
    assert_eq!(again, stamp, "the copy of the SDK was brought up to date");
    let counts = [("o-1", "13"), ("o-2", "9"), ("o-3", "4")];
    terminal.until(query, |said| walk::rows(said) == counts).expect("it has counted");
    let once = |said: &str| said.matches("\"hello.tenth\"").count() == 1;
    terminal.until("millrace tail --json", once).expect("it has told of a tenth event");

    let (script, fails) = a_test_that_fails(language);
    let script = dir.join("tests").join(script);
    fs::write(&script, fails).expect("the folder is the test's");
    let (ended, _) = ran(&["plugin", "test", text(&dir)]).await;
    let error = ended.expect_err("its own test fails");
    assert!(error.sentence().contains("the project's own tests failed"), "{error}");
    fs::remove_file(&script).expect("the folder is the test's");
    fs::write(dir.join("README.md"), "for people").expect("the folder is the test's");

    let (ended, said) = ran(&["plugin", "check", text(&dir), "--json"]).await;
    ended.unwrap_or_else(|error| panic!("something is found: {error}\n{said}"));
    assert!(fs::read(&component).ok() == built, "what was tested was built again");
    let report: Value = serde_json::from_str(&said).expect("a report");
    assert_eq!(
        (report["ok"].as_bool(), report["findings"].as_array().map(Vec::len)),
        (Some(true), Some(0)),
        "{report:#}"
    );
    let imports = report["imports"].as_array().expect("a list");
    if language == "rust" {
        the_plugin_in_the_readme_runs(&mut terminal, folder.path());
    } else {
        assert!(imports.is_empty(), "it imports nothing but its world: {imports:?}");
    }
    assert!(host.terminate().expect("it is asked to"), "the host ends well");
}

/// Beside the one that was begun before, on the same host.
fn the_plugin_in_the_readme_runs(terminal: &mut Terminal, folder: &Path) {
    let source =
        walk::block(&walk::readme().expect("it is read"), "orders source").expect("there is a plugin");
    let steps = walk::steps("orders").expect("the README has them");
    let (new, then) = steps.split_first().expect("it begins");
    let (query, between) = then.split_last().expect("it ends");
    terminal.run(new).expect("it begins");
    fs::write(folder.join("orders/src/lib.rs"), source).expect("the folder is the test's");
    for step in between {
        terminal.run(step).expect("what the README shows works");
    }
    let one = |said: &str| {
        let lines: Vec<&str> = said.lines().skip(1).collect();
        lines.len() == 1 && ["b-1", "ada", "1250"].iter().all(|part| lines[0].contains(part))
    };
    terminal.until(query, one).expect("there is one row");
    // Without `--update` as well, from now on.
    terminal.run("millrace plugin test --no-native").expect("what comes out is what was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_to_a_running_guest_rust() {
    new_to_a_running_guest("rust").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_to_a_running_guest_js() {
    new_to_a_running_guest("js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_to_a_running_guest_python() {
    new_to_a_running_guest("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_expected_is_told_by_its_place_and_taken_with_update() {
    let (_folder, dir) = begun("rust", "wrong-counts").await;
    let expected = dir.join("tests/expected.json");
    let right = fs::read_to_string(&expected).expect("a file");
    fs::write(&expected, right.replace("\"events\": 9", "\"events\": 8")).expect("the folder is the test's");
    let test = |more: &'static [&'static str]| {
        let mut arguments = vec!["plugin".to_owned(), "test".into(), text(&dir).into(), "--no-native".into()];
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        async move { ran(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let (ended, said) = test(&[]).await;
    assert_eq!(ended.expect_err("a row differs").exit(), Exit::Refused);
    assert_eq!(said.trim_end(), "rows.wrong_counts[o-2].events: expected 8, found 9");
    test(&["--update"]).await.0.expect("it is written");
    test(&[]).await.0.expect("it is as expected now");
    let now = fs::read_to_string(&expected).expect("a file");
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!(json(&now), json(&right), "what came out is what the template said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_with_another_name_than_its_plugin_is_refused() {
    let (_folder, dir) = begun("rust", "one-name").await;
    let source = dir.join("src/lib.rs");
    let text_of = fs::read_to_string(&source).expect("a file");
    let renamed = text_of.replace("Manifest::new(\"one-name\"", "Manifest::new(\"other-name\"");
    assert_ne!(renamed, text_of);
    fs::write(&source, renamed).expect("the folder is the test's");
    let (ended, _) = ran(&["plugin", "build", text(&dir)]).await;
    let error = ended.expect_err("two names");
    assert_eq!(error.exit(), Exit::Refused);
    assert!(error.sentence().contains("`other-name`") && error.sentence().contains("`one-name`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_only_the_project_names_is_refused() {
    let (_folder, dir) = begun("rust", "two-minds").await;
    let file = dir.join("plugin.toml");
    let content = fs::read_to_string(&file).expect("a file");
    let with = |grants: &str| {
        let changed = content.replace("grants = []", &format!("grants = [{grants}]"));
        assert_ne!(changed, content);
        fs::write(&file, changed).expect("the folder is the test's");
    };
    with("\"clocks\"");
    let error = ran(&["plugin", "build", text(&dir)]).await.0.expect_err("there is no such grant");
    assert_eq!(error.exit(), Exit::Config);
    assert!(error.sentence().contains("`clocks` is no grant; there are: clock, random"), "{error}");
    with("\"random\", \"clock\"");
    let error = ran(&["plugin", "build", text(&dir)]).await.0.expect_err("the manifest names none");
    assert_eq!(error.exit(), Exit::Refused);
    for part in ["these grants: none;", "plugin.toml names: clock, random"] {
        assert!(error.sentence().contains(part), "`{part}` is missing in: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_no_project_says_how_to_begin_one() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in ["build", "test", "check"] {
        let (ended, _) = ran(&["plugin", command, text(folder.path())]).await;
        let error = ended.expect_err("no project");
        assert_eq!(error.exit(), Exit::Usage, "{command}: {error}");
        assert!(error.next_step().contains("millrace plugin new"), "{command}: {error}");
    }
    fs::write(folder.path().join("plugin.toml"), "[plugin]\nname = \"a\"\nlanguage = \"cobol\"\n")
        .expect("ours");
    let (ended, _) = ran(&["plugin", "build", text(folder.path())]).await;
    let error = ended.expect_err("no language");
    assert_eq!(error.exit(), Exit::Config);
    assert!(error.sentence().contains("`cobol` is no language"), "{error}");
}

// Tools that are missing, old or out of reach.

/// The command in a process of its own, with this environment.
fn built(project: &Path, environment: &[(&str, String)]) -> Output {
    let mut command = Command::new(workspace_binary("millrace"));
    command.args(["plugin", "build", text(project)]).stdin(Stdio::null());
    command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    command.output().expect("it starts")
}

/// Programs by their names, each of which says this and ends.
fn programs(names: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, says) in names {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("the folder is the test's");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the folder is the test's");
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_node_is_named_with_what_is_needed() {
    let (_folder, dir) = begun("js", "old-node").await;
    let (path, tools) =
        (programs(&[("node", "v18.19.0"), ("npm", "9.2.0")]), tempfile::tempdir().expect("a folder"));
    let environment = [
        ("PATH", format!("{}:/usr/bin:/bin", text(path.path()))),
        ("XDG_CACHE_HOME", text(tools.path()).to_owned()),
    ];
    let output = built(&dir, &environment);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["Node 20.19, 22.12 or later is needed", "v18.19.0", "https://nodejs.org"] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_without_network_says_what_it_wanted() {
    // Nobody listens on the first port.
    let nowhere = "http://127.0.0.1:1/".to_owned();
    type Settings<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Settings<'_>, &str); 2] = [
        ("js", &[("npm_config_registry", "/"), ("npm_config_fetch_retries", "0")], "componentize-js"),
        ("python", &[("PIP_INDEX_URL", "/simple"), ("PIP_RETRIES", "0")], "componentize-py"),
    ];
    for (language, settings, wanted) in cases {
        let (_folder, dir) = begun(language, "far-off").await;
        let empty = tempfile::tempdir().expect("a folder");
        let mut environment: Vec<(&str, String)> = settings
            .iter()
            .map(|(name, value)| match value.strip_prefix('/') {
                Some(path) => (*name, format!("{nowhere}{path}")),
                None => (*name, (*value).to_owned()),
            })
            .collect();
        let cache = |name: &str| text(&empty.path().join(name)).to_owned();
        environment.extend([
            ("XDG_CACHE_HOME", cache("tools")),
            ("npm_config_cache", cache("npm")),
            ("PIP_NO_CACHE_DIR", "1".to_owned()),
            ("PIP_CONFIG_FILE", "/dev/null".to_owned()),
        ]);
        let output = built(&dir, &environment);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{language}: {said}");
        for part in [wanted, "cannot be installed from", "look at the network"] {
            assert!(said.contains(part), "{language}: `{part}` is missing in: {said}");
        }
        assert!(!dir.join("target/far-off.wasm").exists(), "{language}: nothing is there to be deployed");
    }
}
