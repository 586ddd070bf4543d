//! Claims about the JavaScript client and the demo's pages: those under `tests/web`, which Node runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BOARD: &str = "board.test.mjs";
const ANSWERS: &str = "answers.test.mjs";

#[test]
fn the_javascript_client_keeps_its_claims() {
    let mut files = claims();
    files.retain(|path| !path.ends_with(BOARD) && !path.ends_with(ANSWERS));
    assert!(files.len() >= 4, "{files:?}");
    run(&files);
}

#[test]
fn the_board_keeps_its_claims_in_a_browser() {
    run_in_a_browser(BOARD);
}

#[test]
fn the_page_of_answers_keeps_its_claims_in_a_browser() {
    run_in_a_browser(ANSWERS);
}

fn run_in_a_browser(file: &str) {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
    assert!(
        starts(&chromium),
        "`{chromium}` does not start: install Chromium, on Debian as root: apt-get install chromium"
    );
    let mut files = claims();
    files.retain(|path| path.ends_with(file));
    assert_eq!(files.len(), 1);
    run(&files);
}

fn claims() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(".test.mjs"));
    files.sort();
    files
}

fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run(files: &[PathBuf]) {
    assert!(
        starts("node"),
        "`node` does not start: install Node 18 or later, on Debian as root: apt-get install nodejs"
    );
    let output = Command::new("node").arg("--test").args(files).stdin(Stdio::null()).output();
    let output = output.expect("it started a moment ago");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0") && !text.contains("pass 0"), "something was run: {text}");
}
