//! Tails of events and of streams with a name, over HTTP, while connections are lost and a server restarts or is emptied.

use std::time::{Duration, Instant};

use millrace::config::LogAddress;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::{until, workspace_binary};
use reqwest::Method;
use serde_json::{Value, json};

use super::SOON;

/// A tail that does not come again when it ends.
struct Tail {
    answer: reqwest::Response,
    seen: String,
}

impl Tail {
    /// A host that is about to know its log again answers that it does not yet.
    async fn follow(client: &Client, stream: &str, after: &str) -> Self {
        let (path, begun) = (format!("/v1/streams/{stream}?after={after}"), Instant::now());
        loop {
            let request = client.request(Method::GET, &path).header("accept", "text/event-stream");
            let answer = request.send().await.unwrap();
            if answer.status() == 200 {
                return Self { answer, seen: String::new() };
            }
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert!(status == 503 && begun.elapsed() < SOON, "{path}: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Reads until there is this; none: until it ends.
    async fn read_until(&mut self, text: Option<&str>) {
        let begun = Instant::now();
        while text.is_none_or(|text| !self.whole().contains(text)) {
            assert!(begun.elapsed() < SOON, "{text:?} does not come: {}", self.seen);
            if !self.read(text).await {
                assert!(text.is_none(), "it ended before {text:?}: {}", self.seen);
                return;
            }
        }
    }

    /// Reads so many more signs of life.
    async fn read_signs(&mut self, count: usize) {
        let wanted = self.signs() + count;
        while self.signs() < wanted {
            assert!(self.read(Some("a sign of life")).await, "it has ended: {}", self.seen);
        }
    }

    fn signs(&self) -> usize {
        self.whole().lines().filter(|line| *line == ": ").count()
    }

    /// Reads what comes next. False where that is the end.
    async fn read(&mut self, wanted: Option<&str>) -> bool {
        let chunk = tokio::time::timeout(SOON, self.answer.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("{wanted:?} does not come: {}", self.seen)).unwrap();
        self.seen.push_str(std::str::from_utf8(chunk.as_deref().unwrap_or_default()).unwrap());
        chunk.is_some()
    }

    /// The problem that it has ended with.
    fn problem(&self) -> Value {
        let (_, problem) = self.seen.rsplit_once("event: error\ndata: ").expect("it is told");
        serde_json::from_str(problem.trim_end()).unwrap()
    }

    /// What has come whole.
    fn whole(&self) -> &str {
        &self.seen[..self.seen.rfind("\n\n").unwrap_or(0)]
    }

    /// The versions of the events that it has told of.
    fn versions(&self) -> Vec<u64> {
        let told = self.whole().lines().filter_map(|line| line.strip_prefix("data: "));
        let told = told.map(|data| serde_json::from_str::<Value>(data).unwrap());
        told.filter_map(|event| event["version"].as_u64()).collect()
    }
}

/// Publishes one version, as often as it takes; a repeat is recognised.
async fn publish(client: &Client, stream: &str, version: u64) {
    let event = json!({
        "aggregate": "thing", "agg_id": stream, "version": version, "type": "thing.made",
        "at": "2013-01-01T00:00:00Z", "payload": {},
    });
    let (path, begun) = (format!("/v1/streams/{stream}"), Instant::now());
    loop {
        let answer = client.post(&path, "application/json", event.to_string()).await.unwrap();
        if answer.status == 200 {
            return;
        }
        assert!(begun.elapsed() < SOON, "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn sn5_sn7_tails_outlive_lost_connections_and_servers_and_end_with_a_word_where_one_was_emptied(
    engine: Engine,
) {
    // What is told is told by itself; and nothing is made of looks that fail, at each heartbeat.
    for heartbeat_ms in [30_000, 20] {
        let mut server = RedisServer::durable(engine);
        let host = Embedded::start_with(|config| {
            config.serve.log = Some(LogAddress(server.url()));
            config.gateway.sse_heartbeat_ms = heartbeat_ms;
            // Longer than any server here takes to come back.
            config.gateway.log_away_ms_max = 600_000;
        });
        let host = host.await.unwrap();
        assert!(host.host().wait_ready().await);
        let (client, log) = (&host.client, host.host().log());
        let mut tails = Vec::new();
        for stream in ["events", "orders"] {
            publish(client, stream, 1).await;
            let mut tail = Tail::follow(client, stream, "oldest").await;
            tail.read_until(Some("\"version\":1,")).await;
            tails.push((stream, tail));
        }
        let mut version = 1;
        for restart in [false, true, false] {
            match restart {
                true => server.restart(),
                false => server.kill_clients(),
            }
            version += 1;
            for (stream, tail) in &mut tails {
                publish(client, stream, version).await;
                tail.read_until(Some(&format!("\"version\":{version},"))).await;
                assert_eq!(tail.versions(), (1..=version).collect::<Vec<_>>(), "{stream}");
            }
        }

        // Nothing is published: that the log is another one is all that there is to be told.
        let former = log.epoch();
        server.command(&["FLUSHALL"]);
        until("the log is another one", || log.epoch() != former).await;
        for (stream, tail) in &mut tails {
            tail.read_until(None).await;
            let problem = tail.problem();
            assert_eq!(problem["code"], "cursor_foreign", "{stream}: {problem}");
            let oldest = problem["oldest"].as_str().expect("a cursor");
            assert!(oldest.starts_with(&format!("{}.", log.epoch().0)), "{stream}: {oldest}");
            let mut again = Tail::follow(client, stream, oldest).await;
            publish(client, stream, version + 1).await;
            again.read_until(Some(&format!("\"version\":{},", version + 1))).await;
            assert_eq!(again.versions(), [version + 1], "{stream}");
        }
        host.stop().await;
    }
}

/// Heartbeats have it look whether there is something new, which it cannot know while the server is away.
pub(super) async fn sn5_a_tail_whose_server_stays_away_for_too_long_ends_with_a_word_and_not_before(
    engine: Engine,
) {
    let mut server = RedisServer::durable(engine);
    let dir = tempfile::tempdir().unwrap();
    // A process of its own, whose metrics are of nobody else.
    let setup = Setup::new(workspace_binary("millrace")).log(&server.url());
    let setup = setup.set("gateway.sse_heartbeat_ms=50").set("gateway.log_away_ms_max=3000");
    let host = HostProcess::start_as(setup, &dir.path().join("store")).await.unwrap();
    let client = Client::new(host.url.clone()).unwrap();
    publish(&client, "orders", 1).await;
    let mut tail = Tail::follow(&client, "orders", "oldest").await;
    tail.read_until(Some("\"version\":1,")).await;
    server.kill();
    let begun = Instant::now();
    while !client.get("/metrics").await.unwrap().text().contains("millrace_follower_outages_total 1\n") {
        assert!(begun.elapsed() < SOON, "no read fails: {}", tail.seen);
        tail.read_signs(1).await;
    }
    // More than may have been sent and not read before that.
    tail.read_signs(5).await;
    tail.read_until(None).await;
    assert_eq!(tail.problem()["code"], "backend_unreachable");
    assert_eq!(tail.versions(), [1]);
    // It comes again as it would after any end.
    let last = tail.seen.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
    server.start_again();
    publish(&client, "orders", 2).await;
    let mut again = Tail::follow(&client, "orders", last).await;
    again.read_until(Some("\"version\":2,")).await;
    assert_eq!(again.versions(), [2]);
}
