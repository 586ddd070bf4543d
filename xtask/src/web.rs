//! Programs that the tests of the pages need: Node and a browser.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{finish, say, works};

/// Debian's names. Without a font a browser draws no letters.
const PACKAGES: [&str; 3] = ["nodejs", "chromium", "fonts-dejavu-core"];
/// How long apt may take, in seconds.
const INSTALL_SECONDS_MAX: &str = "600";

/// Installs what is missing where that is possible. Otherwise the tests that need it fail and say what to do.
pub(crate) fn ensure() {
    if works("node", &["--version"]) && works("chromium", &["--version"]) {
        return;
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", PACKAGES.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
        say(&format!(
            "the tests of the pages need Node (18 or later) and Chromium; on Debian as root: {line}"
        ));
        return;
    }
    say(&format!("installing what the tests of the pages need: {line}"));
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

/// Whether this process may install packages: who owns its own `/proc` entry is who it runs as.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}
