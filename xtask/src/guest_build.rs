//! Builds Rust crates to WebAssembly components, on any machine where that is possible.
//!
//! Promises: picks the way by itself (a toolchain with the target; one that can
//! fetch it; Debian's packages), says what it installs before it does, waits a
//! bounded time for a download, never reads standard input, and where nothing
//! works says what a person has to run. Nothing but the standard library, so
//! that any tool can have it. Deliberately absent: which crates there are.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// The target of every guest.
pub const TARGET: &str = "wasm32-wasip2";
/// The cargo profile of every guest.
pub const PROFILE: &str = "plugin";
/// Overrides the choice of the way: `rustup` or `debian`.
pub const TOOLCHAIN_VARIABLE: &str = "MILLRACE_GUEST_TOOLCHAIN";
/// How long rustup may take to fetch the target. Closed networks hang rather than refuse.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long apt may take to install the packages.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(600);
/// Debian's way: a compiler with its sources, and the C library that std links.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "wasi-libc"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";
const DEBIAN_LIBC: &str = "/usr/lib/wasm32-wasi/libc.a";

/// A way to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The active toolchain, with its precompiled standard library for the target.
    Rustup,
    /// Debian's compiler, building the standard library itself, with the active toolchain's linker.
    Debian,
}

/// What kind of cargo target a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    Library,
    Example,
    Binary,
}

/// One component to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub package: String,
    /// The cargo target's name.
    pub target: String,
    pub kind: GuestKind,
}

/// Where to build what.
#[derive(Clone, Debug)]
pub struct GuestBuild {
    /// The workspace's folder.
    pub workspace: PathBuf,
    /// Build folders, one a way, lie in here: the ways' files do not fit together.
    pub build_dir: PathBuf,
    pub guests: Vec<Guest>,
}

/// A guest and its component's file.
#[derive(Clone, Debug)]
pub struct Component {
    pub guest: Guest,
    pub path: PathBuf,
}

/// Why there are no components.
#[derive(Debug)]
#[non_exhaustive]
pub enum GuestBuildError {
    UnknownToolchain { text: String },
    NotStarted { program: String, cause: io::Error },
    Failed { program: String, status: String },
    TimedOut { program: String, limit: Duration },
    LinkerMissing { dir: PathBuf },
    NoWay { why: String },
    ComponentMissing { path: PathBuf },
}

impl GuestBuild {
    /// Builds all guests. `say` gets what a person should know, a line at a time.
    pub fn run(&self, say: &mut dyn FnMut(&str)) -> Result<Vec<Component>, GuestBuildError> {
        let toolchain = self.choose(say)?;
        let target_dir = self.build_dir.join(toolchain.name());
        let mut command = match toolchain {
            Toolchain::Rustup => self.rustup_cargo(),
            Toolchain::Debian => self.debian_cargo()?,
        };
        command.args(["build", "--profile", PROFILE, "--target", TARGET, "--locked"]);
        command.args(self.selection());
        command.current_dir(&self.workspace).env("CARGO_TARGET_DIR", &target_dir).stdin(Stdio::null());
        say(&format!("building {} guests ({toolchain})", self.guests.len()));
        finish("cargo build", &mut command)?;
        let dir = target_dir.join(TARGET).join(PROFILE);
        self.guests.iter().map(|guest| component(guest, &dir)).collect()
    }

    /// The way that this machine has, installing what it takes.
    pub fn choose(&self, say: &mut dyn FnMut(&str)) -> Result<Toolchain, GuestBuildError> {
        let wanted = match env::var(TOOLCHAIN_VARIABLE) {
            Ok(text) if !text.is_empty() => Some(text.parse::<Toolchain>()?),
            _ => None,
        };
        if wanted != Some(Toolchain::Debian) {
            if self.sysroot()?.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
                return Ok(Toolchain::Rustup);
            }
            say(&format!("installing the {TARGET} target: rustup target add {TARGET}"));
            let mut add = Command::new("rustup");
            add.args(["target", "add", TARGET]).current_dir(&self.workspace).stdin(Stdio::null());
            match limited("rustup target add", &mut add, FETCH_WAIT_MAX) {
                Ok(()) => return Ok(Toolchain::Rustup),
                Err(error) if wanted == Some(Toolchain::Rustup) => return Err(error),
                Err(error) => say(&format!("that did not work ({error}); trying Debian's packages")),
            }
        }
        install_debian_packages(say)?;
        Ok(Toolchain::Debian)
    }

    /// `-p …` for libraries; examples and binaries have to be named.
    fn selection(&self) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut libraries = false;
        for guest in &self.guests {
            if !arguments.contains(&guest.package) {
                arguments.extend(["-p".into(), guest.package.clone()]);
            }
            match guest.kind {
                GuestKind::Library => libraries = true,
                GuestKind::Example => arguments.extend(["--example".into(), guest.target.clone()]),
                GuestKind::Binary => arguments.extend(["--bin".into(), guest.target.clone()]),
            }
        }
        if libraries {
            arguments.push("--lib".into());
        }
        arguments
    }

    fn rustup_cargo(&self) -> Command {
        let mut command = Command::new("cargo");
        // Flags for the host's own build mean something else to a guest.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }

    fn debian_cargo(&self) -> Result<Command, GuestBuildError> {
        let tools = self.sysroot()?.join("lib/rustlib").join(host_triple()).join("bin");
        if !tools.join("wasm-component-ld").is_file() {
            return Err(GuestBuildError::LinkerMissing { dir: tools });
        }
        let mut path = OsString::from(&tools);
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(DEBIAN_CARGO);
        // What a rustup cargo leaves for its children would send Debian's to the wrong compiler and libraries.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            let kept = matches!(&*name_text, "CARGO_HOME" | "CARGO_NET_OFFLINE")
                || name_text.starts_with("CARGO_HTTP_");
            let foreign = name_text.starts_with("CARGO")
                || name_text.starts_with("RUST")
                || name_text == "LD_LIBRARY_PATH";
            if foreign && !kept {
                command.env_remove(name);
            }
        }
        command
            .env("RUSTC", DEBIAN_RUSTC)
            // Building std needs an unstable flag; Debian's compiler is a release, and this is how it takes one.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-L/usr/lib/wasm32-wasi")
            .env("PATH", path)
            .arg("-Zbuild-std=std,panic_abort");
        Ok(command)
    }

    /// The active toolchain's folder.
    fn sysroot(&self) -> Result<PathBuf, GuestBuildError> {
        let program = "rustc --print sysroot";
        let output = Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(&self.workspace)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|cause| GuestBuildError::NotStarted { program: program.into(), cause })?;
        if !output.status.success() {
            return Err(GuestBuildError::Failed {
                program: program.into(),
                status: output.status.to_string(),
            });
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

fn component(guest: &Guest, dir: &Path) -> Result<Component, GuestBuildError> {
    let path = match guest.kind {
        GuestKind::Library => dir.join(format!("{}.wasm", guest.target.replace('-', "_"))),
        GuestKind::Example => dir.join("examples").join(format!("{}.wasm", guest.target)),
        GuestKind::Binary => dir.join(format!("{}.wasm", guest.target)),
    };
    if path.is_file() {
        Ok(Component { guest: guest.clone(), path })
    } else {
        Err(GuestBuildError::ComponentMissing { path })
    }
}

fn install_debian_packages(say: &mut dyn FnMut(&str)) -> Result<(), GuestBuildError> {
    let present = || {
        [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_SOURCE, DEBIAN_LIBC].iter().all(|path| Path::new(path).exists())
    };
    if present() {
        return Ok(());
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", PACKAGES.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(GuestBuildError::NoWay { why: "there is no apt-get either".into() });
    }
    if !is_root() {
        return Err(GuestBuildError::NoWay { why: format!("run this as root: {line}") });
    }
    say(&format!("installing Debian's packages: {line}"));
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]).stdin(Stdio::null());
    // Old lists are often good enough; the install says so if they are not.
    if let Err(error) = limited("apt-get update", &mut update, FETCH_WAIT_MAX) {
        say(&format!("{error}; going on with the package lists there are"));
    }
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    limited("apt-get install", &mut install, INSTALL_WAIT_MAX)?;
    if present() {
        return Ok(());
    }
    Err(GuestBuildError::NoWay {
        why: format!("the packages {} do not have what it takes", PACKAGES.join(", ")),
    })
}

/// Whether this process may install packages: who owns its own `/proc` entry is who it runs as.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

fn host_triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

fn finish(program: &str, command: &mut Command) -> Result<(), GuestBuildError> {
    let status =
        command.status().map_err(|cause| GuestBuildError::NotStarted { program: program.into(), cause })?;
    ended(program, status)
}

/// Runs a program that may hang; at the limit it is killed.
fn limited(program: &str, command: &mut Command, limit: Duration) -> Result<(), GuestBuildError> {
    let not_started = |cause| GuestBuildError::NotStarted { program: program.into(), cause };
    let mut child = command.spawn().map_err(not_started)?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(not_started)? {
            return ended(program, status);
        }
        if begun.elapsed() > limit {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
            return Err(GuestBuildError::TimedOut { program: program.into(), limit });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn ended(program: &str, status: std::process::ExitStatus) -> Result<(), GuestBuildError> {
    if status.success() {
        return Ok(());
    }
    Err(GuestBuildError::Failed { program: program.into(), status: status.to_string() })
}

impl Toolchain {
    fn name(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::Debian => "debian",
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rustup => "the active toolchain's target",
            Self::Debian => "Debian's compiler; the first time also its standard library, half a minute",
        })
    }
}

impl FromStr for Toolchain {
    type Err = GuestBuildError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "rustup" => Ok(Self::Rustup),
            "debian" => Ok(Self::Debian),
            _ => Err(GuestBuildError::UnknownToolchain { text: text.into() }),
        }
    }
}

impl fmt::Display for GuestBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToolchain { text } => {
                write!(f, "{TOOLCHAIN_VARIABLE} is `{text}`; it may be `rustup` or `debian`")
            }
            Self::NotStarted { program, cause } => write!(f, "`{program}` does not start: {cause}"),
            Self::Failed { program, status } => write!(f, "`{program}` failed: {status}"),
            Self::TimedOut { program, limit } => {
                write!(f, "`{program}` did not end within {} s", limit.as_secs())
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
            Self::ComponentMissing { path } => {
                write!(f, "cargo built no {}; the crate needs crate-type = [\"cdylib\"]", path.display())
            }
        }
    }
}

impl std::error::Error for GuestBuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotStarted { cause, .. } => Some(cause),
            _ => None,
        }
    }
}
