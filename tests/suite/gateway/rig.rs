//! A gateway to test against, and a client that sends exactly what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use millrace::backends::file::FileClientCheckpoints;
use millrace::backends::memory::{MemoryArtifactRepository, MemoryChannels, MemoryPresence};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::channels::{ChannelLimits, Router};
use millrace::checkpoints::{CheckpointStore, Commit, EffectBatch, EffectKind, EffectRecord, TaskId};
use millrace::clock::{ManualClock, SystemClock};
use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::gateway::{AuthOptions, Gateway, GatewayOptions, Readiness, Right, Services, TokenOptions};
use millrace::presence::PresenceLimits;
use millrace::streams::groups::{GroupLimits, GroupOwner};
use millrace::streams::hub::Gate;
use millrace::streams::{EventLog as _, Hub};
use millrace::tables::{Cell, CellsBuilder, Column, ColumnType, TableSchema, TableStore};
use millrace::tasks::Tasks;
use millrace_tests::every_log::Log;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fakes::{FakeLive, FakePlugins};
use super::faulty_log::FaultyLog;

pub(super) const NOW: &str = "2013-01-01T12:00:00Z";
/// How long a test waits for what must happen. Reaching it is a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Rig {
    pub(super) address: SocketAddr,
    pub(super) store: SqliteStore,
    pub(super) log: Arc<FaultyLog>,
    pub(super) plugins: Arc<FakePlugins>,
    pub(super) live: Arc<FakeLive>,
    /// Stands at [`NOW`] until it is set.
    pub(super) clock: Arc<ManualClock>,
    services: Services,
    cancel: CancellationToken,
    running: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With tokens: `alpha-all` has every right in tenant `alpha`, `alpha-read`
    /// and `alpha-publish` one each, `beta-all-rights` is the other tenant's, `gamma-read` one that nobody writes in.
    pub(super) async fn with_tokens() -> Self {
        Self::with(|options| options.auth = tokens()).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut GatewayOptions)) -> Self {
        Self::with_channels(ChannelLimits::default(), change).await
    }

    /// With other bounds of channels.
    pub(super) async fn with_channels(
        limits: ChannelLimits,
        change: impl FnOnce(&mut GatewayOptions),
    ) -> Self {
        let metrics = Arc::new(|| "millrace_test 1\n".to_owned());
        Self::custom(change, |_| {}, None, metrics, limits, None).await
    }

    /// Over another log than the store's; the rest is in the store.
    pub(super) async fn over(log: Log, change: impl FnOnce(&mut GatewayOptions)) -> Self {
        let no_metrics = Arc::new(String::new);
        Self::custom(change, |_| {}, None, no_metrics, ChannelLimits::default(), Some(log)).await
    }

    /// With a tail that keeps the newest batch only: who is behind it reads from the store.
    pub(super) async fn with_short_tail() -> Self {
        let no_metrics = Arc::new(String::new);
        let limits = ChannelLimits::default();
        Self::custom(|_| {}, |store| store.tail_bytes_max = 1, None, no_metrics, limits, None).await
    }

    /// Shows what was recorded on this thread. The edge of a test runs on it.
    pub(super) async fn with_metrics(handle: PrometheusHandle) -> Self {
        let render = Arc::new(move || handle.render());
        Self::custom(|_| {}, |_| {}, None, render, ChannelLimits::default(), None).await
    }

    /// With a gate before changes.
    pub(super) async fn with_gate(gate: Gate) -> Self {
        let no_metrics = Arc::new(String::new);
        Self::custom(|_| {}, |_| {}, Some(gate), no_metrics, ChannelLimits::default(), None).await
    }

    async fn custom(
        change: impl FnOnce(&mut GatewayOptions),
        change_store: impl FnOnce(&mut SqliteOptions),
        gate: Option<Gate>,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
        channels: ChannelLimits,
        other_log: Option<Log>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the store");
        let mut sqlite = SqliteOptions::new(directory.path());
        sqlite.disk_free_bytes_min = 0;
        change_store(&mut sqlite);
        let store = SqliteStore::open(sqlite).expect("an empty directory opens");
        let log = Arc::new(FaultyLog::over(other_log.unwrap_or_else(|| Arc::new(store.clone()))));
        let plugins = Arc::new(FakePlugins::default());
        let live = Arc::new(FakeLive::default());
        let clock = Arc::new(ManualClock::default());
        clock.set(Micros::parse(NOW).expect("a valid time"));
        let mut options = GatewayOptions::new("127.0.0.1:0".parse().expect("an address"));
        change(&mut options);
        let groups =
            GroupOwner::new(log.clone(), Arc::new(store.clone()), clock.clone(), GroupLimits::default());
        let mut hub = Hub::new(log.clone(), Tasks::new(), Arc::new(SystemClock));
        if let Some(gate) = gate {
            hub = hub.with_gate(gate);
        }
        let services = Services {
            log: log.clone(),
            hub,
            groups: Arc::new(groups),
            presence: Arc::new(MemoryPresence::open(PresenceLimits::default(), clock.clone())),
            channels: Router::new(Arc::new(MemoryChannels::new(channels, clock.clone()))),
            tables: Arc::new(store.clone()),
            live: live.clone(),
            plugins: plugins.clone(),
            artifacts: Arc::new(MemoryArtifactRepository::new(clock.clone())),
            fleet: None,
            sources: Vec::new(),
            checkpoints: Arc::new(store.clone()),
            clients: Arc::new(FileClientCheckpoints::new(directory.path(), clock.clone())),
            clock: clock.clone(),
            metrics,
            ready: Arc::new(|| Readiness { ready: true, reasons: vec![] }),
        };
        let gateway = Gateway::bind(options, services.clone()).await.expect("loopback can be bound");
        let address = gateway.local_addr();
        let cancel = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and joins it in `stop`")]
        let running = tokio::spawn(gateway.run(cancel.clone()));
        Self { address, store, log, plugins, live, clock, services, cancel, running, _directory: directory }
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .expect("the gateway ends")
            .expect("without a panic");
        self.store.close().await;
    }

    pub(super) fn services(&self) -> Services {
        self.services.clone()
    }

    /// The newest position of the log.
    pub(super) fn store_newest(&self) -> u64 {
        self.log.bounds().newest.0
    }

    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub(super) async fn post(&self, content_type: &str, body: &[u8]) -> Answer {
        self.send("POST", "/v1/events", &[("Content-Type", content_type)], body).await
    }

    /// A whole request with an honest Content-Length, and its whole answer.
    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut client = self.connect().await;
        client.write(head.as_bytes()).await;
        client.write(body).await;
        client.answer().await
    }

    pub(super) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.expect("the gateway listens"))
    }

    /// A client whose system takes in little that it does not read.
    pub(super) async fn connect_narrow(&self) -> Client {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(256 << 10).expect("a size");
        Client(socket.connect(self.address).await.expect("the gateway listens"))
    }

    /// Appends events behind the gateway's back, whatever becomes of its own.
    pub(super) async fn place(&self, batch: EventBatch) {
        self.log.inner.append(batch).await.expect("appended");
    }

    pub(super) async fn append(&self, tenant: &str, count: u64) {
        let mut batch = EventBatch::new(TenantId::new(tenant).expect("a tenant"));
        for version in 1..=count {
            let event_type = if version % 2 == 0 { "thing.even" } else { "thing.odd" };
            let event = Event { aggregate: "thing", agg_id: "one", version, event_type, ..Event::default() };
            batch.push(&event).expect("a valid event");
        }
        self.place(batch).await;
    }

    /// Appends events that no socket's buffers hold.
    pub(super) async fn append_large(&self, count: u64, bytes: usize) {
        let payload = serde_json::to_vec(&"x".repeat(bytes)).expect("JSON");
        for version in 1..=count {
            let mut batch = EventBatch::new(TenantId::new("default").expect("a tenant"));
            let event = Event {
                aggregate: "thing",
                agg_id: "large",
                version,
                event_type: "thing.made",
                payload: &payload,
                ..Event::default()
            };
            batch.push(&event).expect("a valid event");
            self.place(batch).await;
        }
    }

    /// Makes table `things` and writes rows for a tenant: key, size, and a time that may be missing.
    pub(super) async fn rows(&self, tenant: &str, rows: &[(&str, i64, Option<&str>)]) {
        let tables = [things()];
        self.store.declare("keeper", &tables).await.expect("declared");
        let task =
            TaskId { processor: "keeper".into(), tenant: TenantId::new(tenant).expect("a tenant"), lane: 0 };
        let (generation, before) = self.store.claim(&task).await.expect("claimed");
        let mut arena = Vec::new();
        let mut records = Vec::new();
        for (key, size, seen) in rows {
            let start = length(&arena);
            arena.extend_from_slice(key.as_bytes());
            let cells = CellsBuilder::default()
                .push(Cell::Int(*size))
                .push(Cell::Text(&format!("thing {key}")))
                .push(seen.map_or(Cell::Null, |t| Cell::Timestamp(Micros::parse(t).expect("a time").0)))
                .push(Cell::Bytes(b"\x00\xff"))
                .push(Cell::Json("{\"big\":9007199254740993}"))
                .finish();
            arena.extend_from_slice(&cells);
            records.push(EffectRecord {
                kind: EffectKind::Put,
                table: 0,
                event: 0,
                version: 0,
                at: 0,
                schema_version: 0,
                start,
                key_bytes: length(key.as_bytes()),
                aggregate_bytes: 0,
                type_bytes: 0,
                id_bytes: 0,
                body_bytes: length(&cells),
                depth: 0,
            });
        }
        let effects = EffectBatch::check(arena, records, &tables, &[]).expect("valid effects");
        let position = before.map_or(Position::START, |checkpoint| checkpoint.position);
        let commit = Commit {
            task,
            generation,
            position,
            passed_at: None,
            saved: None,
            effects: vec![Arc::new(effects)],
            tables: tables.to_vec().into(),
            dead: vec![],
            resolved: vec![],
            parked: millrace::checkpoints::ParkedWrites::default(),
            at: Micros(0),
        };
        self.store.commit(commit).await.expect("committed");
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("tests are small")
}

fn things() -> TableSchema {
    let column = |name: &str, column_type, nullable, sortable| Column {
        name: name.into(),
        column_type,
        nullable,
        filterable: !matches!(column_type, ColumnType::Bytes | ColumnType::Json),
        sortable,
    };
    TableSchema {
        name: "things".into(),
        columns: vec![
            column("size", ColumnType::Int, false, true),
            column("title", ColumnType::Text, false, false),
            column("seen", ColumnType::Timestamp, true, true),
            column("raw", ColumnType::Bytes, false, false),
            column("extra", ColumnType::Json, false, false),
        ],
        versioned: false,
        window_rows_max: 100,
    }
}

pub(super) fn tokens() -> AuthOptions {
    let token = |token: &str, tenant: &str, rights: &[Right]| TokenOptions {
        token: token.into(),
        tenant: tenant.into(),
        rights: rights.into(),
        name: None,
        tables: None,
    };
    // The digest of `alpha-digest`, as a config file would hold it.
    let digest = "sha256:d99b6aea3797c53e69ad073f17434604ef6da5993c510b15a5ded554aa6f0da7";
    let all = [Right::Publish, Right::Read, Right::Admin];
    AuthOptions {
        tokens: vec![
            token("alpha-all", "alpha", &all),
            token("alpha-read", "alpha", &[Right::Read]),
            token("alpha-publish", "alpha", &[Right::Publish]),
            token("beta-all-rights", "beta", &all),
            token(digest, "alpha", &[Right::Read]),
            token("gamma-read", "gamma", &[Right::Read]),
        ],
        ..AuthOptions::default()
    }
}

/// A connection that sends bytes as they are.
#[derive(Debug)]
pub(super) struct Client(pub(super) TcpStream);

impl Client {
    /// Sends; a gateway that has closed already is no failure of the sender.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// Everything until the gateway closes, as an answer.
    pub(super) async fn answer(mut self) -> Answer {
        let mut bytes = Vec::new();
        let read = async {
            let mut piece = vec![0; 16 << 10];
            // A reset after the answer ends it as well as an orderly close does.
            while let Ok(count @ 1..) = self.0.read(&mut piece).await {
                bytes.extend_from_slice(&piece[..count]);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the gateway answers and closes");
        Answer::parse(&bytes)
    }

    /// Waits until the gateway has closed.
    pub(super) async fn closed(&mut self) {
        let read = async {
            let mut piece = vec![0; 16 << 10];
            while let Ok(1..) = self.0.read(&mut piece).await {}
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the gateway closes");
    }

    /// Reads on until the text contains something.
    pub(super) async fn read_until(&mut self, text: &mut String, wanted: &str) {
        let read = async {
            let mut piece = vec![0; 16 << 10];
            let mut known = 0;
            while !text[known..].contains(wanted) {
                // What was looked through is not looked through again: texts may be long.
                known = text.floor_char_boundary(text.len().saturating_sub(wanted.len()));
                let count = self.0.read(&mut piece).await.expect("the gateway writes");
                assert_ne!(count, 0, "closed before `{wanted}` came; so far: {text:.5000}");
                text.push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        };
        let waited = tokio::time::timeout(PATIENCE, read).await;
        assert!(waited.is_ok(), "`{wanted}` did not come; so far: {text:.5000}");
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head[9..12].parse().expect("a status");
        let mut body = bytes[end + 4..].to_vec();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self { status, head, body }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(super) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Asserts a problem: its status, its code, and that it says how to fix it.
    #[track_caller]
    pub(super) fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail", "fix", "blame"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {problem}");
        }
        problem
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        whole.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    whole
}
