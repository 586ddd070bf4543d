//! Claims about `EventSource` and `WebSocket` in Chromium and as packages of npm: those in `tests/web/real`.

use std::process::{Command, Stdio};

use millrace_tests::guests::guest;
use millrace_tests::workspace_binary;

use super::web;

/// Runs a file of claims with Node. Each starts hosts of its own.
fn run(file: &str) {
    let web = web();
    let packages = web.join("node_modules/.installed");
    assert!(packages.exists(), "{} is missing: `cargo xtask test` installs the packages", packages.display());
    let mut node = Command::new("node");
    node.arg("--test").arg(web.join("real").join(file)).stdin(Stdio::null());
    node.env("MILLRACE_BINARY", workspace_binary("millrace")).env("MILLRACE_GUEST", guest("flight-board"));
    let output = node.output().expect("Node starts; on Debian as root: apt-get install nodejs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0") && !text.contains("pass 0"), "something was run: {text}");
}

#[test]
fn pages_without_our_client_follow_a_host_in_chromium() {
    run("browser.test.mjs");
}

#[test]
fn packages_of_npm_follow_a_host() {
    run("node.test.mjs");
}
