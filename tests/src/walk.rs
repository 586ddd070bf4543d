//! What the README says to type, run as it stands there: nobody can follow a page whose commands have changed since.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::ports::Port;

/// The language that the README shows; another one takes its place.
const SHOWN: &str = "--lang js";
/// How long rows and a host may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(2);

/// The README, read where it is when this runs.
pub fn readme() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
}

/// What stands in the fenced block after the mark `<!-- walk: NAME -->`.
pub fn block(text: &str, name: &str) -> Result<String> {
    let mark = format!("<!-- walk: {name} -->");
    let mut parts = text.split(&mark).skip(1);
    let after = parts.next().with_context(|| format!("there is no {mark}"))?;
    ensure!(parts.next().is_none(), "there is more than one {mark}");
    let mut lines = after.trim_start().lines();
    ensure!(lines.next().is_some_and(|line| line.starts_with("```")), "no block begins after {mark}");
    let inside: Vec<&str> = lines.take_while(|line| !line.starts_with("```")).collect();
    ensure!(!inside.is_empty(), "nothing stands after {mark}");
    Ok(inside.join("\n") + "\n")
}

/// The commands of a block, each with what is said behind it.
pub fn steps(name: &str) -> Result<Vec<String>> {
    Ok(block(&readme()?, name)?.lines().map(str::to_owned).collect())
}

/// Those from no plugin to its rows, in a language.
pub fn steps_in(language: &str) -> Result<Vec<String>> {
    let mut steps = steps("plugin")?;
    let first = steps.first_mut().context("there is a first command")?;
    ensure!(first.contains(SHOWN), "the first command does not say {SHOWN}: {first}");
    *first = first.replace(SHOWN, &format!("--lang {language}"));
    Ok(steps)
}

/// A command without what is said behind it.
pub fn command(step: &str) -> &str {
    step.split(" # ").next().unwrap_or(step).trim()
}

/// The rows of a query's answer, by their keys: each with what stands in its first column.
pub fn rows(said: &str) -> Vec<(&str, &str)> {
    said.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect()
}

/// What a person has before them: a shell in a folder, `millrace` on its PATH, and a port that nobody else takes.
#[derive(Debug)]
pub struct Terminal {
    folder: PathBuf,
    env: Vec<(OsString, OsString)>,
    /// Of this module: not where the commands run.
    scratch: TempDir,
    _port: Port,
}

/// A host that was started as the README says. Killed when dropped.
#[derive(Debug)]
pub struct Started(Child);

impl Terminal {
    /// In this folder, with this binary.
    pub fn new(binary: &Path, folder: &Path) -> Result<Self> {
        let port = Port::hold();
        let mut path = OsString::from(binary.parent().context("the binary is in a folder")?);
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let address = format!("127.0.0.1:{}", port.number());
        let env = vec![
            ("PATH".into(), path),
            ("MILLRACE_URL".into(), format!("http://{address}").into()),
            ("MILLRACE_SERVE__BIND".into(), address.into()),
        ];
        Ok(Self { folder: folder.into(), env, scratch: tempfile::tempdir()?, _port: port })
    }

    /// With this in the environment, too.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the host by the README's command, in this folder, and waits until it says that it listens.
    pub fn host(&self) -> Result<Started> {
        let steps = steps("host")?;
        let [step] = steps.as_slice() else { bail!("a host is one command, and not {steps:?}") };
        let (out, err) = (self.scratch.path().join("host.out"), self.scratch.path().join("host.err"));
        // The shell gives its place to the host, so that a signal reaches it.
        let mut shell = self.shell(&format!("exec {step}"));
        let child = shell.stdout(File::create(&out)?).stderr(File::create(&err)?).spawn()?;
        let mut host = Started(child);
        let begin = Instant::now();
        while !fs::read_to_string(&out)?.contains("listening on") {
            let ended = host.0.try_wait()?;
            ensure!(ended.is_none(), "`{step}` ended: {}", fs::read_to_string(&err)?);
            ensure!(begin.elapsed() < PATIENCE, "`{step}` is not ready: {}", fs::read_to_string(&err)?);
            sleep(LOOK);
        }
        Ok(host)
    }

    /// Runs one command to its end and answers what it printed. Where it goes with `cd`, the next one begins.
    pub fn run(&mut self, step: &str) -> Result<String> {
        let output = self.output(step)?;
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "`{step}`: {}\n{said}\n{why}", output.status);
        Ok(said.into_owned())
    }

    /// Runs a question again and again, until its answer is what is waited for.
    pub fn until(&mut self, step: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let output = self.output(step)?;
            let said = String::from_utf8_lossy(&output.stdout);
            if output.status.success() && wanted(&said) {
                return Ok(());
            }
            let why = String::from_utf8_lossy(&output.stderr);
            ensure!(begin.elapsed() < PATIENCE, "`{step}`: {}\n{said}\n{why}", output.status);
            sleep(LOOK);
        }
    }

    fn output(&mut self, step: &str) -> Result<Output> {
        let note = self.scratch.path().join("folder");
        let script = format!("{step}\nended=$?\npwd >\"$WALK_NOTE\"\nexit $ended");
        let output = self.shell(&script).env("WALK_NOTE", &note).output()?;
        self.folder = fs::read_to_string(&note)
            .with_context(|| format!("`{step}`: {}", String::from_utf8_lossy(&output.stderr)))?
            .trim_end()
            .into();
        Ok(output)
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(&self.folder).stdin(Stdio::null());
        // What whoever runs this has set for a host of their own.
        shell.env_remove("MILLRACE_TOKEN").env_remove("MILLRACE_CONFIG");
        shell.envs(self.env.iter().map(|(name, value)| (name, value)));
        shell
    }
}

impl Started {
    /// SIGTERM; answers whether it ended well.
    pub fn terminate(mut self) -> Result<bool> {
        let asked = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status()?;
        ensure!(asked.success(), "kill failed");
        Ok(self.0.wait()?.success())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
