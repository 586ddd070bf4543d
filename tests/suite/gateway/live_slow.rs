//! Clients that do not read for a while, over real sockets and the real engine: they end with the right rows, are
//! told that something was left out, and cost no more than a bounded amount of memory meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millrace::checkpoints::{CheckpointStore as _, Generation, TaskId};
use millrace::event::TenantId;
use millrace::gateway::{Gateway, GatewayOptions, Services};
use millrace::limits::{LIVE_RING_BYTES_MAX, LIVE_VIEWS_MAX};
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::streams::EventLog as _;
use millrace::tables::{Cell, Query, TableSchema, TableStore as _, Value};
use millrace_tests::conformance::effects::{Effects, commit, table, task};
use millrace_tests::viewer::Viewer;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_util::sync::CancellationToken;

use super::rig::{PATIENCE, Rig};

/// A gateway over the real engine, and the lane that writes what it shows.
struct Busy {
    rig: Rig,
    address: SocketAddr,
    tables: [TableSchema; 1],
    owner: TaskId,
    generation: Generation,
    metrics: PrometheusHandle,
    cancel: CancellationToken,
    running: JoinHandle<()>,
}

fn default_tenant() -> TenantId {
    TenantId::new("default").expect("a tenant")
}

impl Busy {
    async fn start(metrics: PrometheusHandle) -> Self {
        let rig = Rig::start().await;
        let tables = [table("rows", false)];
        rig.store.declare("board", &tables).await.expect("a good table");
        let owner = task("board", "default", 0);
        let (generation, _) = rig.store.claim(&owner).await.expect("a claim");
        let store = Arc::new(rig.store.clone());
        let live = Arc::new(LiveEngine::new(store, rig.store.epoch(), LIVE_VIEWS_MAX));
        let options = GatewayOptions::new("127.0.0.1:0".parse().expect("an address"));
        let gateway = Gateway::bind(options, Services { live, ..rig.services() }).await.expect("loopback");
        let (address, cancel) = (gateway.local_addr(), CancellationToken::new());
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and joins it in `stop`")]
        let running = tokio::spawn(gateway.run(cancel.clone()));
        Self { rig, address, tables, owner, generation, metrics, cancel, running }
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").expect("without a panic");
        self.rig.stop().await;
    }

    async fn commit(&self, effects: &mut Effects) {
        let commit = commit(&self.owner, self.generation, 1, &self.tables, effects);
        self.rig.store.commit(commit).await.expect("a good commit");
    }

    /// Writes so many rows of so many bytes, in one commit.
    async fn fill(&self, rows: i64, bytes: usize, round: i64) {
        let mut effects = Effects::default();
        let label = "x".repeat(bytes);
        for row in 0..rows {
            effects.put(&format!("k{row:02}"), 1, &[Cell::Int(round), Cell::Text(&label)]);
        }
        self.commit(&mut effects).await;
    }

    /// What a client of the whole table has in the end.
    async fn rows(&self) -> Vec<Json> {
        let query = Query { limit: 100, ..Query::all("rows") };
        let page = self.rig.store.query(&default_tenant(), &query).await.expect("a good query");
        let plain = |value: &Value| match value {
            Value::Int(value) => json!(value),
            Value::Text(text) => json!(text),
            _ => Json::Null,
        };
        let row = |row: &millrace::tables::Row| json!({"key": row.key, "n": plain(&row.cells[0]), "label": plain(&row.cells[1])});
        page.rows.iter().map(row).collect()
    }

    fn counted(&self, name: &str) -> u64 {
        let shown = self.metrics.render();
        let line = shown.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }
}

enum Wire {
    Sse { answer: reqwest::Response, buffer: String },
    Ws(Box<WebSocketStream<TcpStream>>),
}

struct Client {
    wire: Wire,
    viewer: Viewer,
    bytes: usize,
}

impl Client {
    fn new(wire: Wire) -> Self {
        let unused = LiveQuery { query: Query::all("rows"), mode: Mode::Maintained, columns: None };
        Self { wire, viewer: Viewer::new(default_tenant(), unused), bytes: 0 }
    }

    async fn sse(busy: &Busy) -> Self {
        let url = format!("http://{}/v1/live?table=rows&limit=100", busy.address);
        let answer = reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await;
        let answer = answer.expect("it answers");
        assert_eq!(answer.status(), 200);
        Self::new(Wire::Sse { answer, buffer: String::new() })
    }

    async fn ws(busy: &Busy) -> Self {
        let url = format!("ws://{}/v1/live/ws", busy.address);
        let mut request = url.into_client_request().expect("a request");
        let protocol = HeaderValue::from_static("millrace.live.v1");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let stream = TcpStream::connect(busy.address).await.expect("the gateway listens");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
        let ask = r#"{"action":"subscribe","id":"a","query":{"table":"rows","limit":100}}"#;
        socket.send(Message::text(ask)).await.expect("it reads");
        Self::new(Wire::Ws(Box::new(socket)))
    }

    /// Takes in what comes next.
    async fn take(&mut self) {
        match &mut self.wire {
            Wire::Sse { answer, buffer } => {
                let chunk = tokio::time::timeout(PATIENCE, answer.chunk()).await.expect("something comes");
                let chunk = chunk.expect("it is whole").expect("it goes on");
                self.bytes += chunk.len();
                buffer.push_str(std::str::from_utf8(&chunk).expect("text"));
                while let Some(end) = buffer.find("\n\n") {
                    let event: String = buffer.drain(..end + 2).collect();
                    if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                        self.viewer.obey(&serde_json::from_str(data).expect("JSON"));
                    }
                }
            }
            Wire::Ws(socket) => {
                let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("something comes");
                let Message::Text(text) = message.expect("it is open").expect("a good frame") else { return };
                self.bytes += text.len();
                let message: Json = serde_json::from_str(text.as_str()).expect("JSON");
                for delta in message["deltas"].as_array().into_iter().flatten() {
                    self.viewer.obey(delta);
                }
            }
        }
    }

    async fn until_rows(&mut self, rows: &[Json]) {
        while !self.viewer.ready || self.viewer.rows != rows {
            self.take().await;
        }
    }
}

/// Reads nothing while many times what any buffer holds is written, and then reads on.
async fn falls_behind(busy: &Busy, mut client: Client) {
    const ROWS: i64 = 50;
    const ROUNDS: i64 = 60;
    let slow = "millrace_live_gaps_total{reason=\"slow\"}";
    client.until_rows(&busy.rows().await).await;
    let (before, gaps) = (client.bytes, busy.counted(slow));
    let bytes = 16 << 10;
    for round in 1..=ROUNDS {
        busy.fill(ROWS, bytes, round).await;
    }
    busy.commit(Effects::default().delete("k07", 1)).await;
    client.viewer.names.clear();
    client.until_rows(&busy.rows().await).await;
    let names = &client.viewer.names;
    let gap = names.iter().position(|name| name == "gap").expect("it is told that something was left out");
    assert_eq!(names[gap + 1], "reset", "and gets the rows anew");
    let told = usize::try_from(ROWS * ROUNDS).expect("small") * bytes;
    let got = client.bytes - before;
    assert!(told > 40 * LIVE_RING_BYTES_MAX && got < told / 2, "of {told} bytes nobody kept all: {got}");
    assert!(busy.counted(slow) > gaps, "it is counted");
    // And it goes on with what changes.
    client.viewer.names.clear();
    busy.fill(1, 10, 99).await;
    client.until_rows(&busy.rows().await).await;
    assert_eq!(client.viewer.names, ["update"]);
}

#[tokio::test]
async fn n9_a_client_that_reads_nothing_for_long_under_load_ends_with_the_right_rows() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let busy = Busy::start(handle).await;
    busy.fill(50, 10, 0).await;
    let client = Client::sse(&busy).await;
    falls_behind(&busy, client).await;
    busy.fill(50, 10, 0).await;
    let client = Client::ws(&busy).await;
    falls_behind(&busy, client).await;
    busy.stop().await;
}

#[tokio::test]
async fn n10_a_snapshot_larger_than_any_buffer_reaches_a_client_that_reads_late() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let busy = Busy::start(recorder.handle()).await;
    for first in [0, 20, 40, 60] {
        let mut effects = Effects::default();
        let label = "x".repeat(180 << 10);
        for row in first..first + 20 {
            effects.put(&format!("k{row:02}"), 1, &[Cell::Int(row), Cell::Text(&label)]);
        }
        busy.commit(&mut effects).await;
    }
    let clients = [Client::sse(&busy).await, Client::ws(&busy).await];
    // Nobody reads while rows change.
    for round in 0..20 {
        busy.commit(Effects::default().put("k05", 1, &[Cell::Int(round), Cell::Null])).await;
        busy.commit(Effects::default().delete(&format!("k{}", 60 + round), 1)).await;
    }
    let rows = busy.rows().await;
    for mut client in clients {
        client.until_rows(&rows).await;
        assert_eq!(client.viewer.rows.len(), 60);
        assert!(client.bytes > 10 << 20, "it was large: {}", client.bytes);
    }
    busy.stop().await;
}
