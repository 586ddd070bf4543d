//! Why there is no component.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{TARGET, TOOLCHAIN_VARIABLE};

/// Why there is no component.
#[derive(Debug)]
#[non_exhaustive]
pub enum ToolError {
    UnknownToolchain {
        text: String,
    },
    NotStarted {
        program: String,
        cause: io::Error,
    },
    /// `said` is the end of what it wrote, where that was read; often empty.
    Failed {
        program: String,
        status: String,
        said: String,
    },
    TimedOut {
        program: String,
        limit: Duration,
    },
    /// A program is not there, or too old: what is needed, what was found, and what to do.
    Unfit {
        program: String,
        needed: String,
        found: String,
        advice: String,
    },
    /// What was to be installed, and where it comes from.
    Install {
        what: String,
        from: String,
        cause: Box<ToolError>,
    },
    LinkerMissing {
        dir: PathBuf,
    },
    /// There is no way to have the target.
    NoWay {
        why: String,
    },
    /// A project's `entry` is not what its language needs.
    Entry {
        entry: String,
        needed: &'static str,
    },
    /// A folder of the project's author, where the copy of the SDK belongs.
    Taken {
        path: PathBuf,
    },
    /// What the SDK of a language lacks; the host's author is to blame.
    Sdk {
        why: String,
    },
    ComponentMissing {
        path: PathBuf,
    },
    File {
        path: PathBuf,
        cause: io::Error,
    },
}

impl ToolError {
    /// For `map_err`: what became of a file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { path, cause }
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToolchain { text } => {
                write!(f, "{TOOLCHAIN_VARIABLE} is `{text}`; it may be `rustup` or `debian`")
            }
            Self::NotStarted { program, cause } => write!(f, "`{program}` does not start: {cause}"),
            Self::Failed { program, status, said } if said.is_empty() => {
                write!(f, "`{program}` failed: {status}")
            }
            Self::Failed { program, status, said } => write!(f, "`{program}` failed: {status}\n{said}"),
            Self::TimedOut { program, limit } => {
                write!(f, "`{program}` did not end within {} s", limit.as_secs())
            }
            Self::Unfit { program, needed, found, advice } => {
                write!(f, "{program} {needed} is needed, {found}: {advice}")
            }
            Self::Install { what, from, cause } => {
                write!(f, "{what} cannot be installed from {from}: {cause}")
            }
            Self::LinkerMissing { dir } => write!(
                f,
                "there is no wasm-component-ld in {}; install Rust with rustup (https://rustup.rs), whose toolchains have it",
                dir.display()
            ),
            Self::NoWay { why } => {
                write!(
                    f,
                    "the {TARGET} target can be had neither from rustup nor from Debian's packages: {why}"
                )
            }
            Self::Entry { entry, needed } => write!(f, "the entry `{entry}` is no {needed}"),
            Self::Taken { path } => write!(
                f,
                "{} is no copy of the SDK, for which a project has this folder: it has no VERSION",
                path.display()
            ),
            Self::Sdk { why } => write!(f, "the SDK in this executable is not whole: {why}"),
            Self::ComponentMissing { path } => {
                write!(
                    f,
                    "the build left no {}; a Rust crate needs crate-type = [\"cdylib\"]",
                    path.display()
                )
            }
            Self::File { path, cause } => write!(f, "{}: {cause}", path.display()),
        }
    }
}

impl std::error::Error for ToolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotStarted { cause, .. } | Self::File { cause, .. } => Some(cause),
            Self::Install { cause, .. } => Some(cause),
            _ => None,
        }
    }
}
