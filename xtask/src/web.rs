//! Programs that the tests of the pages, of foreign clients and of foreign servers need: Node and a browser, curl, a Redis
//! server, a NATS server, and packages for Node and for Python (a Valkey server among them) that the lists in `tests/web`
//! and `tests/peer` pin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::paths;
use crate::run::{finish, say, works};

/// How long apt may take, in seconds.
const INSTALL_SECONDS_MAX: &str = "600";

/// A program, how to see that it works, and Debian's names of what brings it.
struct Program {
    name: &'static str,
    arguments: &'static [&'static str],
    packages: &'static [&'static str],
}

/// An old one will do here; see `node`.
static NODE: [Program; 2] = [
    Program { name: "node", arguments: &["--version"], packages: &["nodejs"] },
    Program { name: "npm", arguments: &["--version"], packages: &["npm"] },
];

static PYTHON: [Program; 1] =
    [Program { name: "python3", arguments: &["-c", "import ensurepip, venv"], packages: &["python3-venv"] }];

static CLIENTS: [Program; 2] = [
    // Without a font a browser draws no letters.
    Program { name: "chromium", arguments: &["--version"], packages: &["chromium", "fonts-dejavu-core"] },
    Program { name: "curl", arguments: &["--version"], packages: &["curl", "ca-certificates"] },
];

static SERVERS: [Program; 3] = [
    Program { name: "redis-server", arguments: &["--version"], packages: &["redis-server"] },
    Program { name: "redis-sentinel", arguments: &["--version"], packages: &["redis-sentinel"] },
    Program { name: "nats-server", arguments: &["--version"], packages: &["nats-server"] },
];

/// Installs what is missing where that is possible. Otherwise the tests that need it fail and say what to do.
pub(crate) fn ensure() {
    ensure_programs();
    ensure_packages("tests/web", "node_modules", "package-lock.json", |folder| {
        // A package's own scripts are never run.
        let words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        let mut npm = Command::new("npm");
        npm.args(words).current_dir(folder);
        vec![npm]
    });
    ensure_packages("tests/web", ".venv", "requirements.txt", python_packages);
    ensure_peer();
}

/// The server of another make that sources are tested and measured against.
pub(crate) fn ensure_peer() {
    ensure_each("servers of another make need", PYTHON.iter());
    ensure_packages("tests/peer", ".venv", "requirements.txt", python_packages);
}

fn python_packages(folder: &Path) -> Vec<Command> {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear", ".venv"]).current_dir(folder);
    let mut pip = Command::new(folder.join(".venv/bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--require-hashes", "--only-binary", ":all:", "-r", "requirements.txt"]);
    pip.current_dir(folder);
    vec![venv, pip]
}

/// Servers and clients of others: what tests, benchmarks and chaos run against.
pub(crate) fn ensure_programs() {
    ensure_each("the tests of pages, clients and servers need", CLIENTS.iter().chain(&SERVERS));
}

/// The servers alone.
pub(crate) fn ensure_servers() {
    ensure_each("what fails over needs", SERVERS.iter());
}

/// What builds plugins in JavaScript and Python.
pub(crate) fn ensure_builders() {
    ensure_each("plugins in JavaScript and Python need", NODE.iter().chain(&PYTHON));
}

fn ensure_each(who: &str, programs: impl Iterator<Item = &'static Program> + Clone) {
    let missing = || programs.clone().filter(|program| !works(program.name, program.arguments));
    let packages: Vec<&str> = missing().flat_map(|program| program.packages).copied().collect();
    if packages.is_empty() {
        return;
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
        let names: Vec<&str> = missing().map(|program| program.name).collect();
        let names = names.join(", ");
        say(&format!("{who} {names}; on Debian as root: {line}"));
        return;
    }
    say(&format!("{who} what is not here: {line}"));
    // Old lists are often good enough; the install says so if they are not.
    for words in [vec!["update", "--quiet"], line.split(' ').skip(1).collect()] {
        let mut apt = Command::new("timeout");
        apt.args([INSTALL_SECONDS_MAX, "apt-get"]).args(words);
        apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
        if let Err(error) = finish(&mut apt) {
            say(&format!("{error:#}"));
        }
    }
}

/// Brings what is installed in a folder to what a list there pins. What was installed is noted inside of it.
fn ensure_packages(folder: &str, name: &str, list: &str, commands: impl Fn(&Path) -> Vec<Command>) {
    let place: PathBuf = paths::workspace().join(folder);
    let note = place.join(name).join(".installed");
    let wanted = fs::read(place.join(list)).ok();
    if wanted.is_some() && wanted == fs::read(&note).ok() {
        return;
    }
    say(&format!("installing what {folder}/{list} pins"));
    for mut command in commands(&place) {
        if let Err(error) = finish(command.stdin(Stdio::null()).stdout(Stdio::null())) {
            return say(&format!("{error:#}"));
        }
    }
    // Without the note it is installed again next time.
    if let Err(error) = fs::write(&note, wanted.unwrap_or_default()) {
        say(&format!("{} cannot be written: {error}", note.display()));
    }
}

/// Whether this process may install packages: who owns its own `/proc` entry is who it runs as.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}
