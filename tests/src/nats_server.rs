//! Real NATS servers of a test's own, with JetStream: on a free port of loopback, with a folder that goes with them.
//!
//! A server can be killed, paused and started again with its files, and be asked past the host's own client.

#![expect(clippy::unwrap_used, reason = "this is test code, though it lives in a library")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ports::Port;
use crate::signals;

/// How long a server may take to answer. It usually takes 50 ms.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);

/// Where answers to what a test asks arrive.
const CLIENT_INBOX: &str = "_INBOX.test";

/// A server of one test.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    port: Port,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::with_arguments(&[])
    }

    /// A server with further arguments, such as `--user` and `--pass`.
    pub fn with_arguments(more: &[&str]) -> Self {
        let arguments = more.iter().map(|&argument| argument.to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, port: Port::hold(), arguments, child: None };
        server.start_again();
        server
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// Ends it like a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it on the same port with what its files hold.
    pub fn start_again(&mut self) {
        self.spawn();
        assert!(self.answers(), "it does not start: {}", self.log());
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Stops its clock: connections stay, nothing is answered.
    pub fn pause(&self) {
        signals::pause(self.pid());
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// A copy of its files. It must not run.
    pub fn copy_files(&self) -> TempDir {
        assert!(self.child.is_none(), "it would go on writing");
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.store(), copy.path());
        copy
    }

    /// Puts a copy in place of its files. It must not run.
    pub fn put_files(&self, copy: &TempDir) {
        assert!(self.child.is_none(), "it would not see them");
        std::fs::remove_dir_all(self.store()).unwrap();
        copy_folder(copy.path(), &self.store());
    }

    /// Asks JetStream, past the host.
    pub fn api(&self, subject: &str, body: &Value) -> Value {
        let answer = self.ask(&format!("$JS.API.{subject}"), &body.to_string());
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{subject}: {error}: {answer}"))
    }

    /// The streams that there are.
    pub fn streams(&self) -> Vec<String> {
        let names = self.api("STREAM.NAMES", &json!({}));
        let names = names["streams"].as_array().cloned().unwrap_or_default();
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// Publishes, and answers what the server does.
    pub fn ask(&self, subject: &str, payload: &str) -> String {
        let mut line = self.dial(CLIENT_INBOX);
        write!(line.stream, "PUB {subject} {CLIENT_INBOX} {}\r\n{payload}\r\n", payload.len()).unwrap();
        line.message().1
    }

    /// Hears what anybody publishes under subjects from now on, requests to JetStream too.
    pub fn listen(&self, subjects: &str) -> Listener {
        let mut line = self.dial(subjects);
        // The server knows of it when it answers what comes after.
        line.stream.write_all(b"PING\r\n").unwrap();
        while line.read().first().is_none_or(|word| word != "PONG") {}
        Listener(line)
    }

    fn dial(&self, subjects: &str) -> Line {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(READY_WAIT_MAX)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = Line { reader, stream };
        let options = json!({ "verbose": false, "headers": true, "no_responders": true });
        write!(line.stream, "CONNECT {options}\r\nSUB {subjects} 1\r\n").unwrap();
        line
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    fn spawn(&mut self) {
        let mut command = Command::new(binary());
        command.args([
            "--addr",
            "127.0.0.1",
            "--port",
            &self.port().to_string(),
            "--jetstream",
            "--store_dir",
        ]);
        command.arg(self.store()).arg("--log").arg(self.folder.path().join("server.log"));
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let missing = "nats-server does not start: `cargo xtask test` installs it (on Debian: apt-get install nats-server)";
        self.child = Some(command.spawn().expect(missing));
    }

    /// Waits until it serves; false when it has ended.
    fn answers(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < READY_WAIT_MAX {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if ended {
                return false;
            }
            if greets(self.port()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Requests that came to a server.
#[derive(Debug)]
pub struct Listener(Line);

impl Listener {
    /// The subject of the next one.
    pub fn subject(&mut self) -> String {
        self.0.message().0
    }
}

/// A connection with one subscription.
#[derive(Debug)]
struct Line {
    reader: BufReader<TcpStream>,
    stream: TcpStream,
}

impl Line {
    /// The words of the next line that wants no answer.
    fn read(&mut self) -> Vec<String> {
        loop {
            let mut line = String::new();
            assert!(self.reader.read_line(&mut line).unwrap() > 0, "the server hung up");
            match line.split_whitespace().next() {
                Some("PING") => self.stream.write_all(b"PONG\r\n").unwrap(),
                Some("-ERR") => panic!("{line}"),
                _ => return line.split_whitespace().map(str::to_owned).collect(),
            }
        }
    }

    /// Subject and payload of the next message.
    fn message(&mut self) -> (String, String) {
        loop {
            let words = self.read();
            if !words.first().is_some_and(|word| word == "MSG" || word == "HMSG") {
                continue;
            }
            let length: usize = words[words.len() - 1].parse().unwrap();
            let mut payload = vec![0; length];
            self.reader.read_exact(&mut payload).unwrap();
            return (words[1].clone(), String::from_utf8(payload).unwrap());
        }
    }
}

/// Debian puts it where not everybody looks.
fn binary() -> &'static str {
    let sbin = "/usr/sbin/nats-server";
    if Path::new(sbin).exists() { sbin } else { "nats-server" }
}

/// Whether a server says there that it has JetStream.
fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line).is_ok();
    read && line.starts_with("INFO ") && line.contains("\"jetstream\":true")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
