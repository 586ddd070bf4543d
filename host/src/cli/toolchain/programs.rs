//! Programs of others: run for a bounded time, installed once.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Say, ToolError};

/// How long another build may hold the folder that tools are installed in.
const INSTALL_TURN_WAIT_MAX: Duration = Duration::from_secs(900);
/// Of what a failed program wrote, the error has the end.
const SAID_BYTES_MAX: u64 = 4 << 10;
/// Of what a program answers.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(20);
/// Its presence says that what lies beside it is whole.
const NOTE: &str = ".installed";

/// What a program wrote.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program that may hang; at the limit it is killed. What it writes is seen by whoever looks.
pub fn limited(program: &str, command: &mut Command, limit: Duration) -> Result<(), ToolError> {
    let mut child = command.stdin(Stdio::null()).spawn().map_err(|cause| not_started(program, cause))?;
    let status = wait(program, &mut child, limit)?;
    ended(program, status, String::new())
}

/// The same for one whose words are for this process: an error has the end of them.
pub fn captured(program: &str, command: &mut Command, limit: Duration) -> Result<Said, ToolError> {
    // Into files and not pipes: nobody has to read while it runs, and grandchildren that stay hold up nothing.
    let (out, err) = (scratch(program)?, scratch(program)?);
    let (mut stdout, mut stderr) = (handle(program, &out)?, handle(program, &err)?);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = command.spawn().map_err(|cause| not_started(program, cause))?;
    let status = wait(program, &mut child, limit)?;
    let said =
        Said { stdout: end_of(&mut stdout, ANSWER_BYTES_MAX), stderr: end_of(&mut stderr, SAID_BYTES_MAX) };
    let mut last = said.stderr.trim_end();
    if last.is_empty() {
        // Some complain on standard output.
        last = said.stdout.trim_end();
    }
    let from = last.len().saturating_sub(usize::try_from(SAID_BYTES_MAX).unwrap_or(usize::MAX));
    let from = (from..=last.len()).find(|at| last.is_char_boundary(*at)).unwrap_or(last.len());
    ended(program, status, last[from..].to_owned())?;
    Ok(said)
}

/// What a program answers to `--version`, trimmed; none where it is not there or does not work.
pub fn version_of(program: &str) -> Option<String> {
    let said = captured(program, Command::new(program).arg("--version"), Duration::from_secs(30)).ok()?;
    let version = if said.stdout.trim().is_empty() { said.stderr } else { said.stdout };
    Some(version.trim().to_owned())
}

/// A program of which some versions will do.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    pub program: &'static str,
    /// What to call it in a message.
    pub name: &'static str,
    /// The least minor version of each major one that will do, ascending. Any major version above the last will do.
    pub versions: &'static [(u32, u32)],
    /// What to do where it is missing or too old.
    pub advice: &'static str,
}

/// What runs a JavaScript project's tests and builds it.
pub const NODE: Needed = Needed {
    program: "node",
    name: "Node",
    versions: &[(20, 19), (22, 12)],
    advice: "install it from https://nodejs.org, and see that PATH finds it first",
};

/// The same for Python.
pub const PYTHON: Needed = Needed {
    program: "python3",
    name: "Python",
    versions: &[(3, 11)],
    advice: "install it, and see that PATH finds it first",
};

impl Needed {
    /// Refuses a program that is not there, or too old, in a sentence that says which versions will do.
    pub fn check(&self) -> Result<(), ToolError> {
        let found = version_of(self.program);
        let version = found.as_deref().and_then(numbers);
        if version.is_some_and(|version| self.takes(version)) {
            return Ok(());
        }
        let wanted: Vec<String> =
            self.versions.iter().map(|(major, minor)| format!("{major}.{minor}")).collect();
        let found = match found {
            Some(text) => format!("and `{}` is {}", self.program, text.lines().next().unwrap_or_default()),
            None => format!("and `{}` does not run", self.program),
        };
        Err(ToolError::Unfit {
            program: self.name.into(),
            needed: format!("{} or later", wanted.join(", ")),
            found,
            advice: self.advice.into(),
        })
    }

    fn takes(&self, (major, minor): (u32, u32)) -> bool {
        let listed = self.versions.iter().find(|(own, _)| *own == major);
        match listed {
            Some((_, least)) => minor >= *least,
            None => self.versions.last().is_some_and(|(last, _)| major > *last),
        }
    }
}

/// The first two numbers with a dot between them: `v20.19.1`, `Python 3.11.2`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let from = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[from..].split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..end].parse().ok()?))
}

/// Fills a folder by `install` unless it was filled before. Builds at the same time wait for each other; what a
/// killed one left is removed first. `install` finds the folder empty.
pub fn installed_once(
    dir: &Path,
    say: &mut dyn Say,
    install: &mut dyn FnMut(&Path, &mut dyn Say) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let note = dir.join(NOTE);
    if note.exists() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).map_err(ToolError::file(above))?;
    }
    let mut name = dir.as_os_str().to_owned();
    name.push(".lock");
    let other = format!("another build, which installs {}", dir.display());
    let _turn = turn(Path::new(&name), &other, INSTALL_TURN_WAIT_MAX, say)?;
    if note.exists() {
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(ToolError::file(dir))?;
    }
    fs::create_dir_all(dir).map_err(ToolError::file(dir))?;
    install(dir, say)?;
    fs::write(&note, b"").map_err(ToolError::file(&note))
}

/// Waits until nobody else has the lock. It ends with the file that is answered.
pub(super) fn turn(path: &Path, other: &str, limit: Duration, say: &mut dyn Say) -> Result<File, ToolError> {
    let lock = File::create(path).map_err(ToolError::file(path))?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::Error(cause)) => return Err(ToolError::File { path: path.into(), cause }),
            Err(fs::TryLockError::WouldBlock) => {}
        }
        if !told {
            say.say(&format!("waiting for {other}"));
            told = true;
        }
        if begun.elapsed() > limit {
            return Err(ToolError::TimedOut { program: other.into(), limit });
        }
        thread::sleep(POLL);
    }
}

fn wait(program: &str, child: &mut Child, limit: Duration) -> Result<ExitStatus, ToolError> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|cause| not_started(program, cause))? {
            return Ok(status);
        }
        if begun.elapsed() > limit {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
            return Err(ToolError::TimedOut { program: program.into(), limit });
        }
        thread::sleep(POLL);
    }
}

fn ended(program: &str, status: ExitStatus, said: String) -> Result<(), ToolError> {
    if status.success() {
        return Ok(());
    }
    Err(ToolError::Failed { program: program.into(), status: status.to_string(), said })
}

fn not_started(program: &str, cause: std::io::Error) -> ToolError {
    ToolError::NotStarted { program: program.into(), cause }
}

/// A file without a name.
fn scratch(program: &str) -> Result<File, ToolError> {
    super::files::nameless().map_err(|cause| not_started(program, cause))
}

fn handle(program: &str, file: &File) -> Result<File, ToolError> {
    file.try_clone().map_err(|cause| not_started(program, cause))
}

/// The last bytes of a file, as text.
fn end_of(file: &mut File, bytes_max: u64) -> String {
    let length = file.metadata().map_or(0, |about| about.len());
    let mut bytes = Vec::new();
    // What cannot be read is left out: the program's status says enough.
    let from = file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)));
    let _ = from.and_then(|_| file.take(bytes_max).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let cases = [
            (&NODE, "v18.19.0", false),
            (&NODE, "v20.18.9", false),
            (&NODE, "v20.19.0", true),
            (&NODE, "v21.7.0", false),
            (&NODE, "v22.11.0", false),
            (&NODE, "v22.12.0", true),
            (&NODE, "v24.0.0", true),
            (&PYTHON, "Python 3.11.2", true),
            (&PYTHON, "Python 3.9.18+", false),
            (&PYTHON, "Python 4.0", true),
        ];
        for (needed, text, fits) in cases {
            assert_eq!(numbers(text).is_some_and(|version| needed.takes(version)), fits, "{text}");
        }
        assert_eq!(numbers("no version"), None);
    }
}
