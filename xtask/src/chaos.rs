//! `cargo xtask chaos`: builds the host, kills it and cuts its power some hundred times.

use anyhow::Result;

use crate::run::{cargo, finish, say};
use crate::{guests, node, web};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let built = guests::build()?;
    if plugins(arguments).any(|name| !built.contains_key(name)) {
        // Whoever has a name wrong hears of it when it is built and not there.
        return node::with(|| {
            guests::build_others()?;
            go(arguments)
        });
    }
    go(arguments)
}

/// The plugins that `--plugins` names.
fn plugins(arguments: &[String]) -> impl Iterator<Item = &str> {
    let named = arguments.iter().enumerate().filter_map(move |(at, argument)| {
        argument.strip_prefix("--plugins=").or_else(|| match argument.as_str() {
            "--plugins" => arguments.get(at + 1).map(String::as_str),
            _ => None,
        })
    });
    named.flat_map(|list| list.split(','))
}

fn go(arguments: &[String]) -> Result<()> {
    web::ensure_servers();
    say("building the host");
    finish(cargo().args(["build", "--quiet", "--workspace", "--bins", "--locked"]))?;
    finish(
        cargo()
            .args(["run", "--quiet", "--locked", "-p", "millrace-tests", "--bin", "millrace-chaos", "--"])
            .args(arguments),
    )
}
