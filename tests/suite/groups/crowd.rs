//! Many consumers at once, and consumers and hosts that are killed: nothing is lost, and keys stay in order.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::streams::EventLog;
use millrace::streams::groups::{
    GroupChange, GroupLimits, GroupOwner, GroupRead, GroupStart, Groups, Settle,
};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{append, group, read_of};
use millrace_tests::host::HostProcess;
use millrace_tests::workspace_binary;
use serde_json::{Value, json};

/// What consumers have seen of each key, in the order in which they saw it.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, Vec<u64>>);

impl Seen {
    fn note(&mut self, key: &str, version: u64) {
        self.0.entry(key.to_owned()).or_default().push(version);
    }

    /// Every version was seen, and none for the first time before the one before it.
    fn check(&self, keys: usize, versions: u64) {
        assert_eq!(self.0.len(), keys);
        for (key, seen) in &self.0 {
            let mut next = 1;
            for version in seen {
                assert!(*version <= next, "key {key} saw {version} before {next}: {seen:?}");
                next = next.max(version + 1);
            }
            assert_eq!(next, versions + 1, "key {key} lacks some: {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_consumers_that_fail_and_vanish_sees_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let store = Arc::new(SqliteStore::open(options).unwrap());
    let clock = Arc::new(SystemClock);
    let groups = GroupOwner::new(store.clone(), store.clone(), clock, GroupLimits::default());
    let id = group("acme", "billing");
    let change = GroupChange {
        lease_ms: Some(50),
        attempts_max: Some(1_000),
        backoff_ms_min: Some(1),
        backoff_ms_max: Some(5),
        on_lost: None,
    };
    groups.ensure(&id, GroupStart::Oldest, change).await.unwrap();
    let (keys, versions) = (8, 9);
    let log: Arc<dyn EventLog> = store.clone();
    for version in 1..=versions {
        let labels: Vec<String> =
            (0..keys).map(|key| format!("{}{version}", char::from(b'a' + key))).collect();
        append(&log, &tenant("acme"), &labels.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut consumers = tokio::task::JoinSet::new();
    for consumer in 0..6_u64 {
        let (groups, id, seen) = (groups.clone(), id.clone(), Arc::clone(&seen));
        consumers.spawn(async move {
            for round in 0_u64.. {
                let read =
                    GroupRead { wait: Duration::from_millis(200), ..read_of(&format!("c{consumer}"), 3) };
                let taken = groups.read(&id, read).await.unwrap().entries;
                if taken.is_empty() && groups.status(&id).await.unwrap().lag_events == 0 {
                    return;
                }
                let mut said = Vec::new();
                for (index, delivery) in taken.iter().enumerate() {
                    let event = delivery.event.get(0);
                    seen.lock().unwrap().note(event.agg_id, event.version);
                    let receipt = delivery.receipt;
                    match (round + index as u64 + consumer) % 7 {
                        0 => said.push(Settle::Nack { receipt, delay_ms: None, reason: "again".into() }),
                        // It vanishes with it.
                        1 => {}
                        _ => said.push(Settle::Ack(receipt)),
                    }
                }
                groups.settle(&id, said).await.unwrap();
            }
        });
    }
    while let Some(done) = consumers.join_next().await {
        done.unwrap();
    }
    seen.lock().unwrap().check(keys.into(), versions);
}

fn lines(keys: usize, versions: u64, payload: &str) -> String {
    let mut lines = String::new();
    for version in 1..=versions {
        for key in 0..keys {
            let event = json!({
                "aggregate": "thing", "agg_id": format!("k{key}"), "type": "thing.made", "version": version,
                "at": "2013-01-01T00:00:00Z", "payload": payload,
            });
            lines.push_str(&format!("{event}\n"));
        }
    }
    lines
}

/// A process that takes entries a few at a time, writes each, and acknowledges what it wrote.
fn consumer(host: &HostProcess, name: &str) -> std::process::Child {
    Command::new(workspace_binary("millrace"))
        .args(["group", "read", "billing", "--consumer", name, "--limit", "4", "--ack", "--follow", "--json"])
        .args(["--url", &host.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a line says: key, version, attempt. None where it is not whole.
fn said(line: &str) -> Option<(String, u64, u64)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let event = &entry["event"];
    let key = event["agg_id"].as_str()?.to_owned();
    Some((key, event["version"].as_u64()?, entry["attempt"].as_u64()?))
}

async fn host_with_group(dir: &tempfile::TempDir) -> HostProcess {
    let host = HostProcess::start(&dir.path().join("store")).await.unwrap();
    let made = reqwest::Client::new()
        .put(format!("{}/v1/streams/events/groups/billing", host.url))
        .json(&json!({ "lease_ms": 300, "attempts_max": 1000 }))
        .send()
        .await
        .unwrap();
    assert_eq!(made.status(), 201);
    host
}

/// Consumers are killed in the middle of what they have taken, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn2_consumers_killed_amid_their_batch_lose_nothing_and_keep_keys_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let host = host_with_group(&dir).await;
    let (keys, versions) = (5, 6);
    // A batch of four is more than a pipe holds: who has read five lines has stopped the writer in its second batch.
    host.publish(lines(keys, versions, &"x".repeat(100_000))).await.unwrap();
    let seen = tokio::task::spawn_blocking(move || {
        let (mut seen, mut redelivered) = (Seen::default(), 0);
        let mut distinct = HashMap::new();
        let mut kills = 0;
        while distinct.len() < keys * usize::try_from(versions).unwrap() {
            let mut child = consumer(&host, &format!("worker-{kills}"));
            let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let mut note = |line: String| {
                // The last line of a killed writer may be a part of one.
                let Some((key, version, attempt)) = said(&line) else { return distinct.len() };
                seen.note(&key, version);
                distinct.insert((key, version), ());
                redelivered += u64::from(attempt > 1);
                distinct.len()
            };
            let all = keys * usize::try_from(versions).unwrap();
            let _ = out.by_ref().take(5 + kills % 2).find(|line| note(line.clone()) == all);
            child.kill().unwrap();
            child.wait().unwrap();
            // What it had written before is seen, too: it may have acknowledged that.
            for line in out {
                note(line);
            }
            kills += 1;
        }
        assert!(kills > 3 && redelivered > 0, "{kills} kills, {redelivered} entries came again");
        seen
    });
    seen.await.unwrap().check(keys, versions);
}

/// The host is killed while a consumer reads and acknowledges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn2_a_host_killed_amid_deliveries_loses_no_entry_and_no_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = host_with_group(&dir).await;
    let (keys, versions) = (6, 6);
    host.publish(lines(keys, versions, "")).await.unwrap();
    let http = reqwest::Client::new();
    let base = format!("{}/v1/streams/events/groups/billing", host.url);
    let mut seen = Seen::default();
    let mut done: HashMap<(String, u64), ()> = HashMap::new();
    let (mut round, begun) = (0, Instant::now());
    loop {
        let read = json!({ "consumer": "one", "limit": 5, "wait_ms": 1000 });
        let answer = http.post(format!("{base}/read")).json(&read).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let entries = answer["entries"].as_array().unwrap();
        if entries.is_empty() {
            // The rest may still be leased, by a host that has other things to do than to end leases.
            if host.get("/v1/streams/events/groups/billing").await.unwrap()["lag_events"] == 0 {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "it comes to no end: {seen:?}");
            continue;
        }
        let mut receipts = Vec::new();
        for entry in entries {
            let (key, version, _) = said(&entry.to_string()).unwrap();
            assert!(!done.contains_key(&(key.clone(), version)), "{key} {version} was acknowledged");
            seen.note(&key, version);
            receipts.push((entry["receipt"].clone(), (key, version)));
        }
        round += 1;
        // Of three batches, one is acknowledged in whole, one in part, and one not at all when the host is killed.
        let kept = match round % 3 {
            _ if round >= 9 => receipts.len(),
            0 => receipts.len(),
            1 => receipts.len() / 2,
            _ => 0,
        };
        let acked: Vec<&Value> = receipts.iter().take(kept).map(|(receipt, _)| receipt).collect();
        let answer =
            http.post(format!("{base}/ack")).json(&json!({ "receipts": acked })).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(results.len(), kept, "{answer}");
        for (result, (_, what)) in results.iter().zip(receipts) {
            match result["outcome"].as_str() {
                Some("acknowledged" | "already") => {
                    done.insert(what, ());
                }
                // It took longer than its lease, and comes again.
                outcome => assert_eq!(outcome, Some("refused"), "{result}"),
            }
        }
        if round < 9 {
            host.kill_and_start().await.unwrap();
        }
    }
    seen.check(keys, versions);
    let group = host.get("/v1/streams/events/groups/billing").await.unwrap();
    assert_eq!((&group["lag_events"], &group["dead_letters"]), (&json!(0), &json!(0)), "{group}");
}
