//! A primary, its replica and three sentinels, and what a failover leaves of what was acknowledged.
//!
//! The replica is paused for a while, the primary is killed meanwhile, and the sentinels promote the replica. The
//! former primary comes back empty, follows the new one, and is the replica of the next round.

#![expect(clippy::unwrap_used, reason = "this is test code, though it lives in a library")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::event::Position;
use millrace::streams::{EventLog, Retention};

use crate::conformance::effects::tenant;
use crate::conformance::event_log::batch;
use crate::redis_server::{Engine, Keeps, RedisServer, Sentinels};
use crate::until;

/// So much that what is on its way does not all wait in sockets while the replica is paused.
const PAYLOAD_BYTES: usize = 200_000;
const WRITERS: usize = 8;

/// Writers that append one event after the other until they are told to end, and remember what was acknowledged.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<Vec<(String, Position)>>,
}

impl Writers {
    /// Their ids begin with `label`; their payloads have so many bytes.
    pub fn start(log: &RedisLog, count: usize, label: &str, bytes: usize) -> Self {
        let payload: Arc<str> = format!("\"{}\"", "x".repeat(bytes)).into();
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..count {
            let (log, stop, payload) = (log.clone(), Arc::clone(&stop), Arc::clone(&payload));
            let label = label.to_owned();
            tasks.spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let id = format!("{label}-{writer}-{n}");
                    let appended = log.append(batch(&tenant("acme"), &[(&id, &payload)])).await;
                    if let Ok(appended) = appended {
                        acknowledged.push((id, appended[0].position));
                    }
                }
                acknowledged
            });
        }
        Self { stop, tasks }
    }

    /// What was acknowledged, and where it is.
    pub async fn end(self) -> BTreeMap<String, Position> {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

/// Servers that fail over again and again.
#[derive(Debug)]
pub struct Failovers {
    log: RedisLog,
    primary: RedisServer,
    replica: RedisServer,
    sentinels: Sentinels,
    pause: Duration,
    rounds: usize,
}

/// What a round has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub acknowledged: usize,
    pub lost: usize,
    /// In the log more than once.
    pub doubled: usize,
}

impl Failovers {
    /// The replica is paused for `pause` in each round: longer than sockets hold, shorter than what a sentinel takes
    /// for the end of a replica.
    pub async fn new(ack: RedisAck, pause: Duration) -> Self {
        let primary = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
        let replica = primary.replica(Keeps::Nothing);
        let sentinels = Sentinels::watch(&primary, pause * 3);
        let options = RedisOptions { ack, ..RedisOptions::new(sentinels.url().parse().unwrap()) };
        let log = RedisLog::open(options);
        log.ready(Duration::from_secs(60)).await.unwrap();
        Self { log, primary, replica, sentinels, pause, rounds: 0 }
    }

    pub fn log(&self) -> &RedisLog {
        &self.log
    }

    pub async fn round(&mut self) -> Round {
        self.rounds += 1;
        let writers = Writers::start(&self.log, WRITERS, &format!("round-{}", self.rounds), PAYLOAD_BYTES);
        self.progress(20).await;
        self.fail_over().await;
        self.progress(20).await;
        let acknowledged = writers.end().await;
        self.settle();
        let distinct: BTreeSet<u64> = positions(&self.primary).into_iter().collect();
        let lost = acknowledged.values().filter(|position| !distinct.contains(&position.0)).count();
        let found = Round { acknowledged: acknowledged.len(), lost, doubled: self.doubled().await };
        self.log.trim(Retention { age: None, events: Some(0) }).await.unwrap();
        found
    }

    /// The address by which sentinels tell where the primary is.
    pub fn url(&self) -> String {
        self.sentinels.url()
    }

    /// One failover. The former primary is back, and on its way to follow the new one.
    pub async fn fail_over(&mut self) {
        self.replica.pause();
        // How long the replica hears nothing. Where it is waited for, nobody is answered meanwhile.
        tokio::time::sleep(self.pause).await;
        self.primary.kill();
        self.replica.resume();
        self.replica.wait_for_info("role:master");
        let port = self.replica.port().to_string();
        self.primary.start_again_slowly(&["--replicaof", "127.0.0.1", &port]);
    }

    /// Waits until one server is the primary for everybody, and the other one follows it. On a busy machine the
    /// sentinels may have changed their minds once more: then it is the former one.
    pub fn settle(&mut self) {
        while self.sentinels.agreed() != self.primary.port() || !self.primary.replicates("role:master") {
            if self.sentinels.agreed() == self.replica.port() {
                std::mem::swap(&mut self.primary, &mut self.replica);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.primary.wait_for_info("state=online");
        self.replica.wait_for_info("master_link_status:up");
    }

    /// Events whose id an earlier one has.
    async fn doubled(&self) -> usize {
        let (mut ids, mut doubled) = (BTreeSet::new(), 0);
        let mut after = self.log.bounds().trimmed;
        loop {
            let limit = millrace::streams::PageLimit { events: 16, bytes: 4 << 20 };
            let page = self.log.read(&tenant("acme"), after, limit).await.unwrap();
            if page.events.is_empty() {
                return doubled;
            }
            doubled += page.events.iter().filter(|event| !ids.insert(event.id.to_owned())).count();
            after = page.next;
        }
    }

    /// Waits until so many more events are acknowledged.
    async fn progress(&self, events: u64) {
        let from = self.log.bounds().newest.0;
        until("events are acknowledged", || self.log.bounds().newest.0 >= from + events).await;
    }
}

/// Positions that a server's stream holds.
pub fn positions(server: &RedisServer) -> Vec<u64> {
    const IDS: &str = "local ids = {} \
         for i, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do ids[i] = entry[1] end return ids";
    let ids: Vec<String> =
        redis::from_redis_value(server.command(&["EVAL", IDS, "1", "{millrace}:events"])).unwrap();
    let span = |id: &String| {
        let (last, count) = id.split_once('-').expect("an id has two parts");
        let (last, count): (u64, u64) = (last.parse().unwrap(), count.parse().unwrap());
        last - count + 1..=last
    };
    ids.iter().flat_map(span).collect()
}
