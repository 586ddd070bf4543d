//! `cargo xtask chaos`: builds the host, kills it and cuts its power some hundred times.

use anyhow::Result;

use crate::run::{cargo, finish, say};
use crate::{guests, web};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    guests::build_all()?;
    web::ensure_programs();
    say("building the host");
    finish(cargo().args(["build", "--quiet", "--workspace", "--bins", "--locked"]))?;
    finish(
        cargo()
            .args(["run", "--quiet", "--locked", "-p", "millrace-tests", "--bin", "millrace-chaos", "--"])
            .args(arguments),
    )
}
