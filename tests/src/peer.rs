//! A server of `memory.v1` of another make: `tests/peer/server.py`, on a free port of loopback, with a file that outlives it.

#![expect(clippy::unwrap_used, reason = "this is test code, though it lives in a library")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::signals;

/// A peer of one test. It is gone when its handle is dropped.
#[derive(Debug)]
pub struct Peer {
    folder: TempDir,
    arguments: Vec<String>,
    /// What it has outlives it.
    kept: bool,
    port: u16,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start() -> Self {
        Self::with_arguments(&[])
    }

    /// With further arguments, such as `--keys`.
    pub fn with_arguments(more: &[&str]) -> Self {
        let arguments = more.iter().map(|&argument| argument.to_owned()).collect();
        Self::begun(arguments, true)
    }

    /// It keeps nothing in a file, so that its time goes to nothing else than its calls.
    pub fn without_file() -> Self {
        Self::begun(Vec::new(), false)
    }

    fn begun(arguments: Vec<String>, kept: bool) -> Self {
        let mut peer = Self { folder: tempfile::tempdir().unwrap(), arguments, kept, port: 0, running: None };
        peer.start_again();
        peer
    }

    /// In clear text.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it on the same port with what it had.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer");
        let mut command = Command::new(python(&place));
        command.args(["-B", "server.py", "--port", &self.port.to_string()]);
        if self.kept {
            command.arg("--state").arg(self.folder.path().join("state.json"));
        }
        let mut child = command
            .args(&self.arguments)
            .current_dir(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        self.running = Some(Running { child, input, output: BufReader::new(output) });
        let said = self.answer();
        self.port = u16::try_from(said["port"].as_u64().unwrap()).unwrap();
    }

    /// Sets it up anew on the same port: it has nothing, and counts its cursors from one again.
    pub fn start_anew(&mut self) {
        self.kill();
        std::fs::remove_file(self.folder.path().join("state.json")).unwrap();
        self.start_again();
    }

    /// Ends it like a crash.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

    /// Ends it politely, as a deployment does.
    pub fn stop(&mut self) {
        let Running { mut child, input, output } = self.running.take().unwrap();
        drop((input, output));
        assert!(child.wait().unwrap().success(), "the peer ends well");
    }

    /// Stops its clock: connections stay, nothing is answered.
    pub fn pause(&self) {
        signals::pause(self.pid());
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.running.as_ref().unwrap().child)
    }

    /// Carries out a command of `tests/peer/faults.py`.
    #[track_caller]
    pub fn ask(&mut self, command: &Value) -> Value {
        let running = self.running.as_mut().unwrap();
        writeln!(running.input, "{command}").unwrap();
        let answer = self.answer();
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    /// Publishes events of one kind, `%d` in their data being their number; answers their cursors.
    pub fn publish(&mut self, kind: &str, data: &str, count: usize) -> Vec<String> {
        let command =
            json!({ "do": "publish", "kind": kind, "event": "created", "data": data, "count": count });
        let answer = self.ask(&command);
        let cursors = answer["cursors"].as_array().unwrap();
        cursors.iter().map(|cursor| cursor.as_str().unwrap().to_owned()).collect()
    }

    /// Switches a fault on or off.
    pub fn mode(&mut self, mode: &str, on: bool) {
        self.ask(&json!({ "do": "mode", "modes": { mode: on } }));
    }

    /// The subscriptions that it has had.
    pub fn subscriptions(&mut self) -> Vec<Value> {
        self.asked()["subscribe"].as_array().unwrap().clone()
    }

    /// How many checkpoints were put.
    pub fn puts(&mut self) -> usize {
        self.asked()["put"].as_array().unwrap().len()
    }

    /// How many calls were refused because a method had no tokens left.
    pub fn refused(&mut self) -> usize {
        let answer = self.ask(&json!({ "do": "asked" }));
        usize::try_from(answer["refused"].as_u64().unwrap()).unwrap()
    }

    /// The value of a client's checkpoint.
    pub fn checkpoint(&mut self, client: &str) -> Value {
        self.ask(&json!({ "do": "checkpoint", "client": client }))["checkpoint"].clone()
    }

    fn asked(&mut self) -> Value {
        self.ask(&json!({ "do": "asked" }))["asked"].clone()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.running.as_mut().unwrap().output.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the peer said `{line}`; see its standard error"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Python with the packages that `tests/peer/requirements.txt` pins.
fn python(place: &Path) -> PathBuf {
    let python = place.join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: `cargo xtask test` makes it", python.display());
    python
}
