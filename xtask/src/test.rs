//! `cargo xtask test`: everything that can fail, the test run last so that its closing line is the last.

use std::process::Stdio;

use anyhow::Result;

use crate::run::{cargo, finish, say, works};
use crate::{guests, web};

const TEST_THREADS: &str = "NEXTEST_TEST_THREADS";
/// Most tests wait for servers and clocks more than they compute; those that compute count twice (`.config/nextest.toml`).
const TESTS_A_CORE: usize = 3;

pub(crate) fn run(filters: &[String]) -> Result<()> {
    guests::ensure_linker()?;
    guests::build_all()?;
    web::ensure();
    if filters.is_empty() {
        say("checking the documentation and its links");
        finish(
            cargo()
                .args(["doc", "--quiet", "--no-deps", "--locked", "--workspace", "--lib"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )?;
        say("running the documentation's examples");
        finish(cargo().args(["test", "--quiet", "--doc", "--locked", "-p", "millrace-guest"]))?;
    }
    say("building the binaries that the tests start");
    // All of the workspace, as below: another choice would build dependencies with other features again.
    finish(cargo().args(["build", "--quiet", "--workspace", "--bins", "--locked"]))?;
    if has_nextest() {
        let mut tests = cargo();
        tests.args(["nextest", "run", "--workspace", "--locked", "--no-tests", "warn"]).args(filters);
        if std::env::var_os(TEST_THREADS).is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            tests.env(TEST_THREADS, (TESTS_A_CORE * cores).to_string());
        }
        finish(&mut tests)
    } else {
        say("going on with `cargo test`, which is slower to fail and to read");
        finish(
            cargo()
                .args(["test", "--workspace", "--locked", "--lib", "--bins", "--tests", "--"])
                .args(filters),
        )
    }
}

/// Whether cargo-nextest is there, installing it if that is possible.
fn has_nextest() -> bool {
    if works("cargo", &["nextest", "--version"]) {
        return true;
    }
    say("installing cargo-nextest, a few minutes once: cargo install --locked cargo-nextest");
    let installed = cargo().args(["install", "--locked", "cargo-nextest"]).stdout(Stdio::null()).status();
    if installed.is_ok_and(|status| status.success()) && works("cargo", &["nextest", "--version"]) {
        return true;
    }
    say("cargo-nextest cannot be installed here");
    false
}
