//! Builds Rust crates to WebAssembly components, on any machine where that is possible.
//!
//! Promises: picks the way by itself (a toolchain with the target; one that can
//! fetch it; Debian's packages), says what it installs before it does, waits a
//! bounded time for a download, and where nothing works says what a person has
//! to run. Deliberately absent: which crates there are.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use super::programs::limited;
use super::{Say, ToolError, captured};

/// The target of every guest.
pub const TARGET: &str = "wasm32-wasip2";
/// The cargo profile of every guest.
pub const PROFILE: &str = "plugin";
/// Overrides the choice of the way: `rustup` or `debian`.
pub const TOOLCHAIN_VARIABLE: &str = "MILLRACE_GUEST_TOOLCHAIN";
/// What cargo takes flags of the compiler from, and what stands between them: folders may have spaces.
const FLAGS_VARIABLE: &str = "CARGO_ENCODED_RUSTFLAGS";
const FLAGS_BETWEEN: &str = "\u{1f}";
/// How long rustup may take to fetch the target. Closed networks hang rather than refuse.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long apt may take to install the packages.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long cargo may take, with all that it fetches and compiles the first time.
const BUILD_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a compiler may take to say what it is.
const VERSION_WAIT_MAX: Duration = Duration::from_secs(30);
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
    /// Whether the lock file must be there and stay as it is.
    pub locked: bool,
}

/// A guest and its component's file.
#[derive(Clone, Debug)]
pub struct Component {
    pub guest: Guest,
    pub path: PathBuf,
}

impl GuestBuild {
    /// Builds all guests. `say` gets what a person should know, a line at a time.
    pub fn run(&self, say: &mut dyn Say) -> Result<Vec<Component>, ToolError> {
        let toolchain = self.choose(say)?;
        self.run_by(toolchain, None, say)
    }

    /// The same by a way that was chosen, and of a crate elsewhere: the workspace's settings and toolchain count for it.
    pub(super) fn run_by(
        &self,
        toolchain: Toolchain,
        elsewhere: Option<&Path>,
        say: &mut dyn Say,
    ) -> Result<Vec<Component>, ToolError> {
        let target_dir = self.target_dir(toolchain);
        let mut command = match toolchain {
            Toolchain::Rustup => self.rustup_cargo(),
            Toolchain::Debian => self.debian_cargo()?,
        };
        command.args(["build", "--profile", PROFILE, "--target", TARGET]);
        if self.locked {
            command.arg("--locked");
        }
        if let Some(manifest) = elsewhere {
            command.arg("--manifest-path").arg(manifest);
        }
        command.args(self.selection());
        command.current_dir(&self.workspace).env("CARGO_TARGET_DIR", &target_dir);
        let guests = match self.guests.as_slice() {
            [one] => one.target.clone(),
            many => format!("{} guests", many.len()),
        };
        say.say(&format!("building {guests} ({toolchain})"));
        limited("cargo build", &mut command, BUILD_WAIT_MAX)?;
        let dir = target_dir.join(TARGET).join(PROFILE);
        self.guests.iter().map(|guest| component(guest, &dir)).collect()
    }

    /// Where a way leaves its files.
    pub(super) fn target_dir(&self, toolchain: Toolchain) -> PathBuf {
        self.build_dir.join(toolchain.name())
    }

    /// What the compiler of a way says of itself.
    pub(super) fn compiler(&self, toolchain: Toolchain) -> Result<String, ToolError> {
        let mut rustc = match toolchain {
            Toolchain::Rustup => Command::new("rustc"),
            Toolchain::Debian => {
                let mut rustc = Command::new(DEBIAN_RUSTC);
                // Another compiler's libraries are not its own.
                rustc.env_remove("LD_LIBRARY_PATH");
                rustc
            }
        };
        rustc.arg("-vV").current_dir(&self.workspace);
        Ok(captured("rustc -vV", &mut rustc, VERSION_WAIT_MAX)?.stdout)
    }

    /// The way that this machine has, installing what it takes.
    pub fn choose(&self, say: &mut dyn Say) -> Result<Toolchain, ToolError> {
        let wanted = match env::var(TOOLCHAIN_VARIABLE) {
            Ok(text) if !text.is_empty() => Some(text.parse::<Toolchain>()?),
            _ => None,
        };
        if wanted != Some(Toolchain::Debian) {
            if self.sysroot()?.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
                return Ok(Toolchain::Rustup);
            }
            // What is there needs no network.
            if wanted.is_none() && debian_packages_are_there() {
                return Ok(Toolchain::Debian);
            }
            say.say(&format!("installing the {TARGET} target: rustup target add {TARGET}"));
            let mut add = Command::new("rustup");
            add.args(["target", "add", TARGET]).current_dir(&self.workspace);
            match limited("rustup target add", &mut add, FETCH_WAIT_MAX) {
                Ok(()) => return Ok(Toolchain::Rustup),
                Err(error) if wanted == Some(Toolchain::Rustup) => return Err(error),
                Err(error) => say.say(&format!("that did not work ({error}); trying Debian's packages")),
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
        // Flags for the host's own build mean something else to a guest. Those of the project's own configuration count.
        command.env_remove("RUSTFLAGS").env_remove(FLAGS_VARIABLE);
        let list: Vec<String> = remaps().iter().map(|flag| format!("'{flag}'")).collect();
        if !list.is_empty() {
            command.arg("--config").arg(format!("target.{TARGET}.rustflags=[{}]", list.join(",")));
        }
        command
    }

    fn debian_cargo(&self) -> Result<Command, ToolError> {
        let tools = self.sysroot()?.join("lib/rustlib").join(host_triple()).join("bin");
        if !tools.join("wasm-component-ld").is_file() {
            return Err(ToolError::LinkerMissing { dir: tools });
        }
        let mut path = OsString::from(&tools);
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut flags = vec!["-L/usr/lib/wasm32-wasi".to_owned()];
        flags.extend(remaps());
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
            .env(FLAGS_VARIABLE, flags.join(FLAGS_BETWEEN))
            .env("PATH", path)
            .arg("-Zbuild-std=std,panic_abort");
        Ok(command)
    }

    /// The active toolchain's folder.
    fn sysroot(&self) -> Result<PathBuf, ToolError> {
        let program = "rustc --print sysroot";
        let output = Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(&self.workspace)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|cause| ToolError::NotStarted { program: program.into(), cause })?;
        if !output.status.success() {
            return Err(ToolError::Failed {
                program: program.into(),
                status: output.status.to_string(),
                said: String::new(),
            });
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

/// Flags by which a component does not tell in whose folders it was built: messages of panics name files of libraries.
pub(super) fn remaps() -> Vec<String> {
    let home = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    // What is no text, or would end the text that it stands in, stays as it is.
    let Some(home) = home.as_deref().and_then(Path::to_str).filter(|home| !home.contains('\'')) else {
        return Vec::new();
    };
    [("registry/src", "registry"), ("git/checkouts", "git")]
        .map(|(folder, name)| format!("--remap-path-prefix={home}/{folder}={name}"))
        .into()
}

fn component(guest: &Guest, dir: &Path) -> Result<Component, ToolError> {
    let path = match guest.kind {
        GuestKind::Library => dir.join(format!("{}.wasm", guest.target.replace('-', "_"))),
        GuestKind::Example => dir.join("examples").join(format!("{}.wasm", guest.target)),
        GuestKind::Binary => dir.join(format!("{}.wasm", guest.target)),
    };
    if path.is_file() {
        Ok(Component { guest: guest.clone(), path })
    } else {
        Err(ToolError::ComponentMissing { path })
    }
}

fn debian_packages_are_there() -> bool {
    [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_SOURCE, DEBIAN_LIBC].iter().all(|path| Path::new(path).exists())
}

fn install_debian_packages(say: &mut dyn Say) -> Result<(), ToolError> {
    if debian_packages_are_there() {
        return Ok(());
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", PACKAGES.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(ToolError::NoWay { why: "there is no apt-get either".into() });
    }
    if !is_root() {
        return Err(ToolError::NoWay { why: format!("run this as root: {line}") });
    }
    say.say(&format!("installing Debian's packages: {line}"));
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]);
    // Old lists are often good enough; the install says so if they are not.
    if let Err(error) = limited("apt-get update", &mut update, FETCH_WAIT_MAX) {
        say.say(&format!("{error}; going on with the package lists there are"));
    }
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive");
    limited("apt-get install", &mut install, INSTALL_WAIT_MAX)?;
    if debian_packages_are_there() {
        return Ok(());
    }
    Err(ToolError::NoWay { why: format!("the packages {} do not have what it takes", PACKAGES.join(", ")) })
}

/// Whether this process may install packages: who owns its own `/proc` entry is who it runs as.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

fn host_triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

impl Toolchain {
    pub(super) fn name(self) -> &'static str {
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
    type Err = ToolError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "rustup" => Ok(Self::Rustup),
            "debian" => Ok(Self::Debian),
            _ => Err(ToolError::UnknownToolchain { text: text.into() }),
        }
    }
}
