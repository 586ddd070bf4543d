//! The `millrace` binary. What it can do stands in `cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A host compiles components in children of its own executable.
    millrace::plugins::compiler_main(std::env::args_os().skip(1)).unwrap_or_else(millrace::cli::main)
}
