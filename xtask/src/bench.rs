//! `cargo xtask bench`: builds what the benchmarks need, in release, and runs them.

use anyhow::Result;

use crate::run::{cargo, finish, say};
use crate::{guests, node, paths, web};

/// Those with plugins in other languages than Rust.
const WITH_ALL_GUESTS: [&str; 1] = ["guests"];

pub(crate) fn run(suites: &[String]) -> Result<()> {
    let all = suites.is_empty() || suites.iter().any(|name| WITH_ALL_GUESTS.contains(&name.as_str()));
    if all {
        return node::with(|| {
            guests::build_all()?;
            go(suites)
        });
    }
    guests::build()?;
    go(suites)
}

fn go(suites: &[String]) -> Result<()> {
    web::ensure_programs();
    web::ensure_peer();
    say("building the host and the benchmarks in release");
    finish(cargo().args(["build", "--release", "--locked", "-p", "millrace", "--bin", "millrace"]))?;
    let results = paths::workspace().join("target/bench");
    finish(
        cargo()
            .args([
                "run",
                "--release",
                "--quiet",
                "--locked",
                "-p",
                "millrace-tests",
                "--bin",
                "millrace-bench",
                "--",
            ])
            .args(suites)
            .env("MILLRACE_BENCH_DIR", results)
            .env("MILLRACE_BENCH_HOST", paths::target().join("release/millrace"))
            .env("MILLRACE_BENCH_GUESTS", paths::guests()),
    )
}
