//! Claims about the shape of the source: which module names which, and what no file may hold.
//!
//! A new arrow shows in `layering.txt`; accept it with `UPDATE_EXPECT=1` when it is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use expect_test::expect_file;

const LINES_MAX: usize = 600;

#[test]
fn arrows_between_modules_are_those_of_the_snapshot() {
    let lines: Vec<String> = arrows().iter().map(|(from, to)| format!("{from} -> {to}\n")).collect();
    expect_file!["./layering.txt"].assert_eq(&lines.concat());
}

#[test]
fn nobody_but_the_host_names_a_backend() {
    let wrong: Vec<_> = arrows()
        .into_iter()
        .filter(|(from, to)| to == "backends" && !matches!(from.as_str(), "host" | "backends"))
        .collect();
    assert!(wrong.is_empty(), "these name `backends`, which is for host.rs: {wrong:?}");
}

#[test]
fn vocabulary_has_no_dependencies_on_domains() {
    let vocabulary = ["event", "limits", "error", "clock"];
    let wrong: Vec<_> = arrows()
        .into_iter()
        .filter(|(from, to)| vocabulary.contains(&from.as_str()) && !vocabulary.contains(&to.as_str()))
        .collect();
    assert!(wrong.is_empty(), "the vocabulary stands below everything: {wrong:?}");
}

#[test]
fn domains_do_not_know_the_edge_or_the_command_line() {
    let wrong: Vec<_> = arrows()
        .into_iter()
        .filter(|(from, to)| match to.as_str() {
            "gateway" => !matches!(from.as_str(), "host" | "config" | "cli"),
            "cli" => true,
            "host" => from != "cli",
            _ => false,
        })
        .collect();
    assert!(wrong.is_empty(), "data flows one way: {wrong:?}");
}

/// The files of the transport of live queries: they know seams, and nothing that is behind them.
#[test]
fn the_transport_of_live_queries_names_no_web_framework_and_no_backend() {
    let foreign = ["axum", "hyper", "tungstenite", "backends", "redis", "rusqlite", "Edge", "http::"];
    let files = ["shell.rs", "sse.rs", "socket.rs", "pulse.rs", "commands.rs", "meter.rs"];
    let found: Vec<_> = sources(&["host/src/gateway/live"])
        .into_iter()
        .filter(|(path, _)| files.iter().any(|file| path.ends_with(file)))
        .collect();
    assert_eq!(found.len(), files.len(), "the files are there");
    for (path, text) in found {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let wrong: Vec<_> = code.filter(|line| foreign.iter().any(|name| line.contains(name))).collect();
        assert!(wrong.is_empty(), "{} names what it must not know: {wrong:?}", path.display());
    }
}

#[test]
fn every_metric_that_is_described_is_counted_somewhere() {
    let (mut names, mut rest) = (Vec::new(), String::new());
    for (path, text) in sources(&["host"]) {
        if path.ends_with("telemetry/metrics.rs") {
            let consts = text.lines().filter(|line| line.contains("\"millrace_"));
            let name =
                |line: &str| line.split_whitespace().nth(2).map(|word| word.trim_end_matches(':').to_owned());
            names.extend(consts.filter_map(name));
        } else {
            rest.push_str(&text);
        }
    }
    assert!(names.len() > 10, "{names:?}");
    names.retain(|name| !rest.contains(name.as_str()));
    assert!(names.is_empty(), "described and never counted: {names:?}");
}

#[test]
fn no_file_is_longer_than_six_hundred_lines() {
    let long: Vec<_> = sources(&["host", "guest-sdk", "plugins", "tests", "xtask"])
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "look for the second idea in these: {long:?}");
}

#[test]
fn no_test_is_switched_off() {
    let ignored = concat!("#[", "ignore");
    let found = holding(&[ignored]);
    assert!(found.is_empty(), "a test that does not run claims nothing: {found:?}");
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    let folders = [concat!("\"/wo", "rk"), concat!("\"/ro", "ot"), concat!("\"/ho", "me/")];
    let found = holding(&folders);
    assert!(found.is_empty(), "these name a folder that other machines do not have: {found:?}");
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let vague = ["utils", "util", "common", "types", "core", "helpers", "misc"];
    let found: Vec<_> = sources(&["host", "guest-sdk", "plugins", "tests", "xtask"])
        .into_keys()
        .filter(|path| {
            path.iter().any(|part| vague.contains(&part.to_string_lossy().trim_end_matches(".rs")))
        })
        .collect();
    assert!(found.is_empty(), "name these after what they hold: {found:?}");
}

#[test]
fn arrows_are_found_in_every_form() {
    let text = "use crate::event::Id;\nuse crate::{limits, streams::{EventLog, Tail}};\n\
                fn f() -> crate::tables::Row { todo() }\n// crate::gateway in a comment\n//! [`crate::cli`]\n";
    let found: Vec<String> = named_modules(text).into_iter().collect();
    assert_eq!(found, ["event", "limits", "streams", "tables"]);
}

/// Which top-level module of the host names which other.
fn arrows() -> BTreeSet<(String, String)> {
    let files = sources(&["host/src"]);
    let modules: BTreeSet<String> = files.keys().filter_map(|path| top_level(path)).collect();
    let mut arrows = BTreeSet::new();
    for (path, text) in &files {
        let Some(from) = top_level(path) else { continue };
        for to in named_modules(text) {
            if to != from && modules.contains(&to) {
                arrows.insert((from.clone(), to));
            }
        }
    }
    arrows
}

/// `host/src/streams/tail.rs` is part of `streams`; `lib.rs` and `main.rs` are of none.
fn top_level(path: &Path) -> Option<String> {
    let inner = path.strip_prefix("host/src").ok()?;
    let first = inner.iter().next()?.to_string_lossy();
    let name = first.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// What stands behind `crate::`, in paths and in (nested) use lists. Comments do not count.
fn named_modules(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        // `$crate::` in a macro is somebody else's root.
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + word.len()..];
        match rest.strip_prefix('{') {
            None => found.extend(identifier(rest)),
            Some(list) => found.extend(first_names(list)),
        }
    }
    found
}

/// The first name of each path of a use list, up to its closing brace.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut at_start) = (0_usize, Vec::new(), true);
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if letter.is_whitespace() => {}
            _ if at_start => {
                names.extend(identifier(&list[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn holding(needles: &[&str]) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for (path, text) in sources(&["host", "guest-sdk", "plugins", "tests", "xtask", "wit"]) {
        for (index, line) in text.lines().enumerate() {
            if needles.iter().any(|needle| line.contains(needle)) {
                found.push((path.clone(), index + 1));
            }
        }
    }
    found
}

/// Source files below these folders of the workspace, by their path in it.
pub(super) fn sources(folders: &[&str]) -> BTreeMap<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace");
    let mut files = BTreeMap::new();
    for folder in folders {
        collect(workspace, &workspace.join(folder), &mut files);
    }
    assert!(!files.is_empty(), "there are sources");
    files
}

fn collect(workspace: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            // What is built or installed is nobody's source.
            if !["target", "node_modules", ".venv"].iter().any(|other| path.ends_with(other)) {
                collect(workspace, &path, files);
            }
        } else if path
            .extension()
            .is_some_and(|kind| matches!(kind.to_str(), Some("rs" | "wit" | "html" | "js" | "css")))
        {
            let inner = path.strip_prefix(workspace).expect("it lies in the workspace").to_path_buf();
            files.insert(inner, fs::read_to_string(&path).expect("sources are UTF-8"));
        }
    }
}
