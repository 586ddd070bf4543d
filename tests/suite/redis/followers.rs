//! Raw followers of change streams while servers fail over, and when a server comes back with older data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::clock::SystemClock;
use millrace::config::{LogAddress, RedisAckConfig};
use millrace::event::{EventBatch, Position};
use millrace::streams::{ChangeMode, ChangeRequest, Delivery, EventLog, GapCause, Hub, Subscription};
use millrace::tasks::Tasks;
use millrace_tests::conformance::change_streams::{asset_scopes, change, change_of, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::failover::Failovers;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;
use reqwest::Method;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::chaos::PAUSE;
use super::{SOON, as_seam, open, options};

const AT_SITE: ChangeRequest<'static> = ChangeRequest { aggregate: "asset", scope: "site", id: "S1" };
const PAYLOAD: &str = r#"{"site_id":"S1"}"#;

/// A position, and what is there.
type Seen = Vec<(u64, String, u64)>;

fn hub(log: &RedisLog) -> Hub {
    Hub::new(as_seam(log), Tasks::new(), Arc::new(SystemClock))
}

fn follow(hub: &Hub) -> Subscription {
    hub.subscribe(&tenant("acme"), &AT_SITE, ChangeMode::Raw).unwrap()
}

fn take(seen: &mut Seen, events: &EventBatch, through: Position) {
    for event in events.iter().filter(|event| event.position <= through) {
        let last = seen.last().map_or(0, |(position, ..)| *position);
        assert!(event.position.0 > last, "{} after {last}", event.position);
        seen.push((event.position.0, event.agg_id.to_owned(), event.version));
    }
}

/// Follows from the log's beginning until it has seen what is at the end. What it is told to be left out it reads from the
/// stream, and follows on.
async fn followed(log: RedisLog, hub: Hub, mut end: watch::Receiver<Option<u64>>) -> Seen {
    let (mut seen, site) = (Seen::new(), stream("asset", "site", "S1"));
    loop {
        let mut subscription = follow(&hub);
        let (mut at, begun) = (seen.last().map_or(0, |(position, ..)| *position), Instant::now());
        while at < subscription.position().0 {
            match log.read_stream(&tenant("acme"), &site, Position(at), ALL).await {
                Ok(page) => {
                    assert!(!page.truncated, "the stream does not reach back to {at}");
                    take(&mut seen, &page.events, subscription.position());
                    at = page.next.0;
                }
                Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        loop {
            let last = seen.last().map_or(0, |(position, ..)| *position);
            if end.borrow().is_some_and(|end| last >= end) {
                return seen;
            }
            tokio::select! {
                delivery = subscription.next() => match delivery {
                    Some(Delivery::Events(events)) => take(&mut seen, &events, Position(u64::MAX)),
                    Some(Delivery::End { after, .. }) => {
                        assert!(after.0 >= last, "it ends before what was delivered");
                        break;
                    }
                    other => panic!("{other:?}"),
                },
                changed = end.changed() => changed.unwrap(),
            }
        }
    }
}

/// Changes one asset again and again; where what was acknowledged is.
async fn changed(log: RedisLog, asset: &'static str, stop: Arc<AtomicBool>) -> Seen {
    let mut acknowledged = Seen::new();
    for version in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let appended = log.append(change("asset", asset, version, "updated", PAYLOAD)).await;
        if let Ok(appended) = appended {
            acknowledged.push((appended[0].position.0, asset.to_owned(), version));
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn5_raw_followers_see_every_acknowledged_change_once_and_in_order_over_failovers() {
    let mut servers = Failovers::new(RedisAck::Auto, PAUSE).await;
    let here = servers.log().clone();
    let there = open(RedisOptions::new(servers.url().parse().unwrap())).await;
    here.declare_scopes("assets", &asset_scopes()).await.unwrap();
    until("the other host knows the scopes", || there.scopes() == here.scopes()).await;
    let epoch = here.epoch();
    let (end, ends) = watch::channel(None);
    let mut following = JoinSet::new();
    for log in [&here, &there] {
        following.spawn(followed(log.clone(), hub(log), ends.clone()));
    }
    let (stop, mut changing) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for (log, asset) in [(&here, "A1"), (&here, "A2"), (&there, "A3")] {
        changing.spawn(changed(log.clone(), asset, Arc::clone(&stop)));
    }
    let progress = async || {
        let from = here.bounds().newest.0;
        until("changes are acknowledged", || here.bounds().newest.0 >= from + 50).await;
    };
    for _ in 0..2 {
        progress().await;
        servers.fail_over().await;
        progress().await;
        servers.settle();
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Seen = changing.join_all().await.into_iter().flatten().collect();
    let last = acknowledged.iter().map(|(position, ..)| *position).max().unwrap();
    end.send(Some(last)).unwrap();
    let all = following.join_all().await;
    for seen in &all {
        // Every event of this log is in the stream.
        let positions: Vec<u64> = seen.iter().map(|(position, ..)| *position).collect();
        assert_eq!(positions, (1..=positions.len() as u64).collect::<Vec<_>>());
        let place = |position: u64| usize::try_from(position).unwrap() - 1;
        let missed = acknowledged.iter().filter(|one| seen.get(place(one.0)) != Some(one));
        let missed: Vec<_> = missed.collect();
        assert!(missed.is_empty(), "{} of {}: {missed:?}", missed.len(), acknowledged.len());
    }
    let both = all[0].len().min(all[1].len());
    assert_eq!(all[0][..both], all[1][..both], "a position means the same to both");
    assert_eq!((here.epoch(), there.epoch()), (epoch.clone(), epoch), "it is the same log");
}

async fn next(subscription: &mut Subscription) -> Delivery {
    let waited = tokio::time::timeout(SOON, subscription.next());
    waited.await.expect("something comes").expect("it has not ended")
}

#[tokio::test]
async fn sn5_sn7_a_raw_follower_is_ended_where_older_data_comes_back() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let hub = hub(&log);
    let mut follower = follow(&hub);
    let append = async |version| log.append(change("asset", "A1", version, "updated", PAYLOAD)).await;
    let mut seen = Seen::new();
    for version in 1..=5 {
        append(version).await.unwrap();
        if version == 2 {
            server.command(&["SAVE"]);
        }
        match next(&mut follower).await {
            Delivery::Events(events) => take(&mut seen, &events, Position(version)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), 5);
    let epoch = log.epoch();
    server.restart();
    // Nothing of the new life comes as if it followed on the old one.
    let end = next(&mut follower).await;
    assert!(matches!(end, Delivery::End { after: Position(5), cause: GapCause::TailLost }), "{end:?}");
    assert!(follower.next().await.is_none());
    until("the log is another one", || log.epoch() != epoch).await;
    log.ready(SOON).await.unwrap();
    let (acme, site) = (tenant("acme"), stream("asset", "site", "S1"));
    let page = log.read_stream(&acme, &site, Position(5), ALL).await.unwrap();
    assert!(page.truncated && page.events.is_empty() && page.oldest == log.bounds().trimmed, "{page:?}");
    let mut follower = follow(&hub);
    assert!(follower.position() >= page.oldest, "{} and {}", follower.position(), page.oldest);
    // The version that was lost is free.
    let appended = append(5).await.unwrap();
    assert!(!appended[0].repeated && appended[0].position > page.oldest, "{appended:?}");
    match next(&mut follower).await {
        Delivery::Events(events) => assert_eq!(events.get(0).position, appended[0].position),
        other => panic!("{other:?}"),
    }
}

/// A client of raw changes: one that is ended comes again with the last id that it has.
struct Changes {
    client: Client,
    answer: reqwest::Response,
    seen: String,
}

impl Changes {
    async fn follow(client: &Client) -> Self {
        let answer = Self::ask(client, None).await;
        Self { client: client.clone(), answer, seen: String::new() }
    }

    async fn ask(client: &Client, last: Option<&str>) -> reqwest::Response {
        let path = "/v1/changes/asset/site/S1?after=oldest&mode=raw";
        let request = client.request(Method::GET, path).header("accept", "text/event-stream");
        let request = last.into_iter().fold(request, |request, id| request.header("last-event-id", id));
        let begun = Instant::now();
        loop {
            let answer = request.try_clone().expect("it has no body").send().await.unwrap();
            if answer.status().is_success() {
                return answer;
            }
            assert!(begun.elapsed() < SOON, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn read_until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let chunk = tokio::time::timeout(SOON, self.answer.chunk()).await;
            match chunk.unwrap_or_else(|_| panic!("{text} does not come: {}", self.seen)) {
                Ok(Some(chunk)) => self.seen.push_str(&String::from_utf8_lossy(&chunk)),
                Ok(None) | Err(_) => {
                    let last = self.ids().last().map(|id| (*id).to_owned());
                    self.answer = Self::ask(&self.client, last.as_deref()).await;
                }
            }
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.seen.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn5_sn7_a_client_of_changes_is_told_the_new_epoch_where_older_data_comes_back() {
    let mut server = RedisServer::start(Engine::Valkey, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let host = Embedded::start_with(|config| {
        config.serve.log = Some(LogAddress(server.url()));
        config.redis.ack = RedisAckConfig::Memory;
    });
    let host = host.await.unwrap();
    assert!(host.host().wait_ready().await);
    let log = host.host().log();
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let append = async |version| {
        let event = change_of("default", "asset", "A1", version, "updated", PAYLOAD);
        log.append(event).await.unwrap()[0].position
    };
    append(1).await;
    server.command(&["SAVE"]);
    append(2).await;
    let mut changes = Changes::follow(&host.client).await;
    changes.read_until("\"version\":2,").await;
    let former = log.epoch();
    server.restart();
    until("the log is another one", || log.epoch() != former).await;
    changes.read_until("\"code\":\"cursor_foreign\"").await;
    let now = log.epoch();
    let position = append(3).await;
    changes.read_until("\"version\":3,").await;
    let (_, told) = changes.seen.split_once("\"code\":\"cursor_foreign\"").unwrap();
    assert!(told.contains(&format!("\"position\":\"{}.", now.0)), "{}", changes.seen);
    assert!(!told.contains(&format!("id: {}.", former.0)), "{}", changes.seen);
    assert_eq!(changes.ids().last(), Some(&&format!("{}.{position}", now.0)[..]), "{}", changes.seen);
    for version in 1..=3 {
        let times = changes.seen.matches(&format!("\"version\":{version},")).count();
        assert_eq!(times, 1, "{version}: {}", changes.seen);
    }
    host.stop().await;
}
