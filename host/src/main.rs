//! The `millrace` binary. What it can do stands in `cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::cli::main()
}
