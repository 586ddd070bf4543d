//! Claims about the types of the JavaScript client, which TypeScript checks.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::web;

const RIGHT: &str = "right.ts";
const WRONG: &str = "wrong.ts";

/// What TypeScript says of the programs in `tests/web/types`: file, line and number of each error.
fn errors() -> BTreeSet<(String, usize, String)> {
    let compiler = web().join("node_modules/typescript/lib/tsc.js");
    assert!(compiler.exists(), "{} is missing: `cargo xtask test` installs it", compiler.display());
    let mut node = Command::new("node");
    node.arg(compiler).args(["--noEmit", "--strict", "--noUncheckedIndexedAccess", "--pretty", "false"]);
    // The types of browsers are TypeScript's own.
    node.args(["--target", "es2022", "--lib", "es2022,dom", "--module", "nodenext", "--skipDefaultLibCheck"]);
    let output = node.args([RIGHT, WRONG]).current_dir(web().join("types")).stdin(Stdio::null()).output();
    let output = output.expect("Node starts; on Debian as root: apt-get install nodejs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = |line: &str| {
        let (place, rest) = line.split_once("): error TS")?;
        let (file, place) = place.split_once('(')?;
        let line = place.split_once(',')?.0.parse().ok()?;
        Some((file.to_owned(), line, rest.split_once(':')?.0.to_owned()))
    };
    let errors: BTreeSet<_> = text.lines().filter_map(error).collect();
    let whole = !text.contains("\nerror TS") && !text.starts_with("error TS");
    assert!(whole && output.status.success() == errors.is_empty(), "{text}");
    errors
}

#[test]
fn programs_that_use_the_client_as_it_is_meant_compile_and_no_others() {
    let program = std::fs::read_to_string(web().join("types").join(WRONG)).expect("the program");
    let marked = program.lines().enumerate().filter_map(|(at, line)| {
        let number = line.rsplit_once("// ")?.1;
        number.parse::<u32>().is_ok().then(|| (WRONG.to_owned(), at + 1, number.to_owned()))
    });
    let marked: BTreeSet<_> = marked.collect();
    assert!(marked.len() > 10, "{marked:?}");
    assert_eq!(errors(), marked, "the errors of the wrong program, and none of the right one");
}

#[test]
fn the_program_that_compiles_uses_all_that_the_client_exports() {
    let types = web().join("../../host/src/gateway/client/client.d.ts");
    let types = std::fs::read_to_string(types).expect("the types");
    let program = std::fs::read_to_string(web().join("types").join(RIGHT)).expect("the program");
    let exported = |line: &str| {
        let mut words = line.strip_prefix("export ")?.split(|c: char| !c.is_alphanumeric());
        words.nth(1).map(str::to_owned)
    };
    let exported: Vec<_> = types.lines().filter_map(exported).collect();
    assert!(exported.len() > 15, "{exported:?}");
    let unused: Vec<_> = exported.iter().filter(|name| !program.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "the program uses everything but {unused:?}");
}
