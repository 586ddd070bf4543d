//! Followers of changes, at hosts whose log is on a server that loses everything.

use std::time::{Duration, Instant};

use millrace::backends::redis::{RedisLog, RedisOptions};
use millrace::streams::EventLog as _;
use millrace_tests::conformance::change_streams::asset_scopes;
use millrace_tests::host::HostProcess;
use millrace_tests::redis_server::{Engine, RedisServer};
use serde_json::{Value, json};

use super::host;

/// The hosts' heartbeats, which come later than anything is waited for: what is told is told by itself.
const HEARTBEAT: &str = "gateway.sse_heartbeat_ms=30000";
const SOON: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Frame {
    name: String,
    epoch: String,
    position: u64,
    data: Value,
}

impl Frame {
    fn parse(text: &str) -> Option<Self> {
        let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str(of("data: ")?).unwrap();
        let (epoch, position) =
            of("id: ").and_then(|id| id.split_once('.')).unwrap_or_else(|| panic!("it has no place: {text}"));
        let name = of("event: ").unwrap_or_default().to_owned();
        Some(Self { name, epoch: epoch.to_owned(), position: position.parse().unwrap(), data })
    }
}

/// A client that comes again with its last id when its answer ends, as browsers do.
struct Follower {
    url: String,
    answer: Option<reqwest::Response>,
    unread: String,
    frames: Vec<Frame>,
}

impl Follower {
    async fn start(host: &HostProcess, path: &str) -> Self {
        let url = format!("{}/v1/changes/{path}", host.url);
        let mut follower = Self { url, answer: None, unread: String::new(), frames: Vec::new() };
        follower.until("it is ready", |frame| frame.name == "ready").await;
        follower
    }

    /// Takes in frames until there is such a one.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let begin = Instant::now();
        loop {
            if let Some(found) = self.frames.iter().find(|frame| wanted(frame)) {
                return found.clone();
            }
            let left = SOON.saturating_sub(begin.elapsed());
            let taken = tokio::time::timeout(left, self.take()).await;
            assert!(taken.is_ok(), "{}: not so: {what}; so far: {:#?}", self.url, self.frames);
        }
    }

    async fn take(&mut self) {
        let Some(answer) = &mut self.answer else {
            let mut request = reqwest::Client::new().get(&self.url).header("accept", "text/event-stream");
            if let Some(last) = self.frames.last() {
                request = request.header("last-event-id", format!("{}.{}", last.epoch, last.position));
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200, "{}", self.url);
            self.answer = Some(answer);
            return;
        };
        let Ok(Some(chunk)) = answer.chunk().await else {
            (self.answer, self.unread) = (None, String::new());
            return;
        };
        self.unread.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some(end) = self.unread.find("\n\n") {
            let text: String = self.unread.drain(..end + 2).collect();
            self.frames.extend(Frame::parse(&text));
        }
    }

    /// Where the client reads the state again in a life of the log: the first that it is told of it.
    async fn gap(&mut self, epoch: &str) -> u64 {
        self.until("it is told of the new life", |frame| frame.name == "gap" && frame.epoch == epoch).await;
        let told = |frame: &&Frame| frame.epoch == epoch && frame.name != "ready";
        let first = self.frames.iter().find(told).unwrap();
        assert_eq!(
            (first.name.as_str(), &first.data["code"]),
            ("gap", &json!("cursor_foreign")),
            "{first:?}"
        );
        first.position
    }

    /// Every published event of a life came to it, or lies before a gap of that life. Each comes once, in order.
    fn lacks_nothing_of(&self, epoch: &str, published: &[(u64, u64)], raw: bool) {
        let of_life: Vec<&Frame> = self.frames.iter().filter(|frame| frame.epoch == epoch).collect();
        assert!(of_life.is_sorted_by_key(|frame| frame.position), "{of_life:#?}");
        let came: Vec<(u64, u64)> = of_life
            .iter()
            .filter(|frame| frame.name == "asset.updated")
            .map(|frame| (frame.position, frame.data["version"].as_u64().unwrap()))
            .collect();
        assert!(came.is_sorted_by(|one, other| one < other), "{came:?}");
        let told = of_life.iter().filter(|frame| frame.name == "gap").map(|frame| frame.position).max();
        let due = published.iter().filter(|(position, _)| Some(*position) > told);
        // The latest stands for what came with it in a window.
        let due = due.filter(|event| raw || published.last() == Some(event));
        for event in due {
            assert!(came.contains(event), "{event:?} is neither there nor told of: {:#?}", self.frames);
        }
    }
}

/// Publishes one event for each version; answers their positions, and the epoch of these.
async fn publish(host: &HostProcess, versions: std::ops::RangeInclusive<u64>) -> (String, Vec<(u64, u64)>) {
    let line = |version: u64| {
        let event = json!({
            "aggregate": "asset", "agg_id": "A1", "version": version, "type": "asset.updated",
            "at": "2013-01-01T00:00:00Z", "payload": { "site_id": "S1" },
        });
        format!("{event}\n")
    };
    let lines: String = versions.clone().map(line).collect();
    let answers = host.publish_all(lines).await.unwrap();
    let places: Vec<(String, u64)> = answers
        .iter()
        .map(|answer| {
            let (epoch, position) = answer["position"].as_str().unwrap().split_once('.').unwrap();
            (epoch.to_owned(), position.parse().unwrap())
        })
        .collect();
    let epoch = places[0].0.clone();
    assert!(places.iter().all(|place| place.0 == epoch), "{places:?}");
    (epoch, places.into_iter().map(|(_, position)| position).zip(versions).collect())
}

/// Declares scopes in the log, and waits until the hosts know them.
async fn declare(server: &RedisServer, hosts: [&HostProcess; 2]) {
    let log = RedisLog::open(RedisOptions::new(server.url().parse().unwrap()));
    log.ready(SOON).await.unwrap();
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    for host in hosts {
        let begin = Instant::now();
        while let Err(error) = host.get("/v1/changes/asset/tenant").await {
            assert!(begin.elapsed() < SOON, "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn7_followers_of_changes_are_told_that_the_server_was_emptied_and_go_on_in_the_new_life() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let dir = tempfile::tempdir().unwrap();
        let server = RedisServer::durable(engine);
        let setup = || host().log(&server.url()).set(HEARTBEAT);
        let one = HostProcess::start_as(setup(), &dir.path().join("one")).await.unwrap();
        let two = HostProcess::start_as(setup(), &dir.path().join("two")).await.unwrap();
        declare(&server, [&one, &two]).await;
        let mut followers = Vec::new();
        for host in [&one, &two] {
            for (path, raw) in [("asset/id/A1?mode=raw", true), ("asset/site/S1?window_ms=1", false)] {
                followers.push((Follower::start(host, path).await, raw));
            }
        }
        let (former, published) = publish(&one, 1..=3).await;
        for (follower, raw) in &mut followers {
            follower.until("the third event", |frame| frame.data["version"] == 3).await;
            follower.lacks_nothing_of(&former, &published, *raw);
        }

        // Nothing is published: that the log is another one is all that there is to be told.
        server.command(&["FLUSHALL"]);
        let begin = Instant::now();
        let second = loop {
            let epoch = one.get("/v1/changes/asset/tenant").await.ok().map(|page| page["epoch"].clone());
            match epoch.as_ref().and_then(Value::as_str) {
                Some(epoch) if epoch != former => break epoch.to_owned(),
                _ => assert!(begin.elapsed() < SOON, "{epoch:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        for (follower, _) in &mut followers {
            follower.gap(&second).await;
        }
        let (epoch, published) = publish(&two, 4..=6).await;
        assert_eq!(epoch, second);
        for (follower, raw) in &mut followers {
            follower.until("the sixth event", |frame| frame.data["version"] == 6).await;
            follower.lacks_nothing_of(&second, &published, *raw);
        }

        // The first event of another life is what notices it: it is told of, or it comes.
        server.command(&["FLUSHALL"]);
        let (third, mut published) = publish(&one, 7..=9).await;
        assert!(third != former && third != second, "{third}");
        for (follower, _) in &mut followers {
            follower.gap(&third).await;
        }
        let (epoch, more) = publish(&two, 10..=12).await;
        assert_eq!(epoch, third);
        published.extend(more);
        for (follower, raw) in &mut followers {
            follower.until("the last event", |frame| frame.data["version"] == 12).await;
            follower.lacks_nothing_of(&third, &published, *raw);
            let lives: Vec<&str> = follower.frames.iter().map(|frame| frame.epoch.as_str()).collect();
            let mut seen = lives.clone();
            seen.dedup();
            assert_eq!(
                seen,
                [&former, &second, &third],
                "no place of a former life comes after one of a later"
            );
        }
    }
}
