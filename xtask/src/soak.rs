//! `cargo xtask soak`: live queries against a model, and against writers at full speed, for long.

use anyhow::Result;

use crate::run::{cargo, finish, say};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    say("building the host");
    // All of the workspace, as the tests do: another choice would build dependencies with other features again.
    finish(cargo().args(["build", "--quiet", "--workspace", "--bins", "--locked"]))?;
    finish(
        cargo()
            .args(["run", "--quiet", "--locked", "-p", "millrace-tests", "--bin", "millrace-soak", "--"])
            .args(arguments),
    )
}
