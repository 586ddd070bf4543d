//! `cargo xtask bench`: builds what the benchmarks need, in release, and runs them.

use anyhow::Result;

use crate::run::{cargo, finish, say};
use crate::{guests, paths, web};

pub(crate) fn run(suites: &[String]) -> Result<()> {
    guests::build()?;
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
