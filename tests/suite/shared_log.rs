//! Claims about hosts whose log is on Redis: the same plugins, the same API, the same result.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod answers;
mod following;
mod rebuilds;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_tests::chaos::{InPlay, Scenario, Storm, difference, setup};
use millrace_tests::dump::dump;
use millrace_tests::flights::lines;
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup, relabelled};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::shared_log::bring_home;
use millrace_tests::{until, workspace_binary};
use serde_json::Value;

fn host() -> Setup {
    setup(workspace_binary("millrace"))
}

/// Runs a scenario on the embedded log and, with kills, on a server's; answers the dump that both have left.
async fn same_as_embedded(scenario: &Scenario, server: &RedisServer) -> String {
    let dir = tempfile::tempdir().unwrap();
    let embedded = scenario.quiet(&dir.path().join("embedded")).await.unwrap();
    let shared = Scenario { host: scenario.host.clone().log(&server.url()), ..scenario.clone() };
    let left = shared.stormy(&dir.path().join("shared"), &mut |_| Ok(())).await;
    let (shared, Storm { kills, swaps, .. }) = left.unwrap();
    assert_eq!((kills, swaps), (scenario.kills, scenario.swaps));
    if let Some(difference) = difference(&embedded, &shared) {
        panic!("the dumps differ:\n{difference}");
    }
    embedded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flights_on_redis_leave_what_they_leave_on_the_embedded_log() {
    let in_play = InPlay { flights: usize::MAX, ..InPlay::default() };
    let scenario = Scenario { kills: 0, swaps: 2, resolves: 0, seed: 1, in_play, host: host() };
    let server = RedisServer::durable(Engine::Redis);
    let dump = same_as_embedded(&scenario, &server).await;
    assert!(dump.contains("== rows_flights: 26968\n"), "the dump holds the flights");
    assert!(dump.contains("\"alert\""), "events were emitted");
}

/// The guest is "chaotic": it keeps state of both kinds, emits, asks for other tries, rejects and traps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_a_host_on_valkey_lose_and_double_nothing_that_processors_emit() {
    let in_play = InPlay {
        chaotic_events: 1_500,
        flaky_every: 200,
        bad_every: 300,
        poison_every: 600,
        ..InPlay::default()
    };
    let scenario = Scenario { kills: 6, swaps: 4, resolves: 0, seed: 0x0b0c, in_play, host: host() };
    let server = RedisServer::durable(Engine::Valkey);
    let dump = same_as_embedded(&scenario, &server).await;
    assert!(dump.contains("echo.made"), "events were emitted");
}

/// Leases short enough for a test, and long enough for a machine that has other things to do.
const LEASE: &str = "redis.lease_ms=3000";

/// A host on a shared log with the samples that the flights go through, deployed and, if it owns them, running.
async fn with_samples(data: &Path, server: &RedisServer) -> HostProcess {
    let host = HostProcess::start_as(host().log(&server.url()).set(LEASE), data).await.unwrap();
    for name in ["flight-board", "carrier-stats", "delay-watch"] {
        host.deploy(std::fs::read(guest(name)).unwrap().into()).await.unwrap();
    }
    host
}

/// The states of a host's plugins, each once.
async fn states(host: &HostProcess) -> BTreeSet<String> {
    let answer = host.get("/v1/plugins").await.unwrap();
    let plugins = answer["plugins"].as_array().unwrap();
    plugins.iter().map(|plugin| plugin["state"].as_str().unwrap().to_owned()).collect()
}

async fn wait_for(host: &HostProcess, state: &str) {
    let begin = Instant::now();
    while states(host).await != BTreeSet::from([state.to_owned()]) {
        let now = states(host).await;
        assert!(begin.elapsed() < Duration::from_secs(60), "{now:?} and not {state}: {}", host.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What flights leave on the embedded log.
async fn quiet(dir: &Path, flights: usize) -> String {
    let in_play = InPlay { flights, ..InPlay::default() };
    let scenario = Scenario { kills: 0, swaps: 0, resolves: 0, seed: 1, in_play, host: host() };
    scenario.quiet(&dir.join("quiet")).await.unwrap()
}

fn portions(flights: usize) -> Vec<String> {
    let lines = lines().unwrap();
    lines[..flights]
        .chunks(400)
        .map(|lines| lines.iter().fold(String::new(), |text, line| text + line + "\n"))
        .collect()
}

/// The dump of a host on a shared log, once it has done everything, and has ended.
async fn ended(mut host: HostProcess, data: &Path, server: &RedisServer) -> String {
    host.settle().await.unwrap();
    assert!(host.terminate().unwrap());
    bring_home(&server.url(), data).await.unwrap();
    dump(data).unwrap()
}

fn same(quiet: &str, left: &str) {
    if let Some(difference) = difference(quiet, left) {
        panic!("the dumps differ:\n{difference}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_stands_by_and_takes_over_when_the_first_is_killed() {
    const FLIGHTS: usize = 8_000;
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let server = RedisServer::durable(Engine::Redis);
    let mut first = with_samples(&one, &server).await;
    wait_for(&first, "running").await;
    let second = with_samples(&two, &server).await;
    wait_for(&second, "standby").await;
    let portions = portions(FLIGHTS);
    let (before, after) = portions.split_at(portions.len() / 2);
    for (index, portion) in before.iter().enumerate() {
        // Either host takes events.
        let host = if index % 2 == 0 { &second } else { &first };
        host.publish(portion.clone()).await.unwrap();
    }
    first.kill().unwrap();
    for portion in after {
        second.publish(portion.clone()).await.unwrap();
    }
    wait_for(&second, "running").await;
    // What the first one had emitted before is recognised; nothing is there twice.
    same(&quiet(dir.path(), FLIGHTS).await, &ended(second, &two, &server).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_sleeps_through_its_lease_emits_nothing_more() {
    const FLIGHTS: usize = 4_000;
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let server = RedisServer::durable(Engine::Redis);
    let first = with_samples(&one, &server).await;
    wait_for(&first, "running").await;
    let second = with_samples(&two, &server).await;
    let portions = portions(FLIGHTS);
    for (index, portion) in portions.iter().enumerate() {
        second.publish(portion.clone()).await.unwrap();
        if index == portions.len() / 2 {
            signal(first.pid(), "-STOP");
        }
    }
    wait_for(&second, "running").await;
    signal(first.pid(), "-CONT");
    wait_for(&first, "standby").await;
    same(&quiet(dir.path(), FLIGHTS).await, &ended(second, &two, &server).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_ends_well_hands_over_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Valkey);
    let host = || host().log(&server.url()).set("redis.lease_ms=600000");
    let mut first = HostProcess::start_as(host(), &dir.path().join("one")).await.unwrap();
    let second = HostProcess::start_as(host(), &dir.path().join("two")).await.unwrap();
    for host in [&first, &second] {
        host.deploy(std::fs::read(guest("flight-board")).unwrap().into()).await.unwrap();
    }
    wait_for(&first, "running").await;
    wait_for(&second, "standby").await;
    // Who stands by can be given another version meanwhile.
    let component = std::fs::read(guest("flight-board")).unwrap();
    second.deploy(relabelled(&component, "2")).await.unwrap();
    wait_for(&second, "standby").await;
    assert!(first.terminate().unwrap());
    // The lease would hold for ten minutes.
    wait_for(&second, "running").await;
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// What `/readyz` answers: the status, and the reasons.
async fn readiness(url: &str) -> (u16, String) {
    let answer = reqwest::get(format!("{url}/readyz")).await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json::<Value>().await.unwrap()["reasons"].to_string())
}

async fn not_ready_because(url: &str, reason: &str) {
    let begin = Instant::now();
    loop {
        let (status, reasons) = readiness(url).await;
        if status == 503 && reasons.contains(reason) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{status} {reasons}, and not {reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ready(url: &str) {
    let begin = Instant::now();
    while readiness(url).await.0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", readiness(url).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_its_server_starts_says_so_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let port = millrace_tests::ports::Port::hold();
    let setup =
        host().log(&format!("redis://127.0.0.1:{}", port.number())).set("redis.append_wait_ms_max=200");
    let host = HostProcess::start_unready(setup, &dir.path().join("data")).await.unwrap();
    not_ready_because(&host.url, "the host is starting").await;
    not_ready_because(&host.url, "backend_unreachable").await;
    let event =
        r#"{"aggregate":"a","agg_id":"1","version":1,"type":"x","at":"2013-01-01T00:00:00Z","payload":1}"#;
    let publish = async || {
        let client = reqwest::Client::new();
        let request =
            client.post(format!("{}/v1/events", host.url)).header("content-type", "application/json");
        let answer = request.body(event).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, problem) = publish().await;
    assert_eq!(status, 503, "{problem}");
    assert!(problem.contains("\"code\":\"backend_unreachable\""), "{problem}");
    // What was deployed is not known to run yet, so nothing is changed about it.
    let pause =
        reqwest::Client::new().post(format!("{}/v1/plugins/board/pause", host.url)).send().await.unwrap();
    assert_eq!((pause.status().as_u16(), pause.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(pause.json::<Value>().await.unwrap()["code"], "host_starting");
    let mut server = RedisServer::on_port(Engine::Redis, Keeps::Always, port);
    ready(&host.url).await;
    assert_eq!(publish().await.0, 200);
    server.kill();
    not_ready_because(&host.url, "backend_unreachable").await;
    server.start_again();
    ready(&host.url).await;
    let (status, answer) = publish().await;
    assert_eq!(status, 200);
    assert!(answer.contains("\"repeated\":true"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_another_host_began_anew_is_not_taken_for_the_former_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let setup = || host().log(&server.url());
    let data = dir.path().join("one");
    let mut first = HostProcess::start_as(setup(), &data).await.unwrap();
    let event =
        r#"{"aggregate":"a","agg_id":"1","version":1,"type":"x","at":"2013-01-01T00:00:00Z","payload":1}"#;
    first.publish(event.to_owned() + "\n").await.unwrap();
    assert!(first.terminate().unwrap());
    server.command(&["FLUSHALL"]);
    let second = HostProcess::start_as(setup(), &dir.path().join("two")).await.unwrap();
    second.publish(event.to_owned() + "\n").await.unwrap();
    let first = HostProcess::start_unready(setup(), &data).await.unwrap();
    not_ready_because(&first.url, "backend_other_log").await;
    assert_eq!(readiness(&second.url).await.0, 200, "the log is left as it is");
    // It is written to the log a moment after it shows.
    until("it says what to do", || first.said().contains("give the former address, or another data folder"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_sn7_a_log_that_was_emptied_while_its_host_was_down_begins_anew_and_processors_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let data = dir.path().join("data");
    let mut first = with_samples(&data, &server).await;
    first.publish(portions(400).remove(0)).await.unwrap();
    first.settle().await.unwrap();
    let newest =
        first.get("/v1/streams/events?after=newest").await.unwrap()["next"].as_str().unwrap().to_owned();
    assert!(first.terminate().unwrap());
    server.command(&["FLUSHALL"]);
    let first = HostProcess::start_as(host().log(&server.url()), &data).await.unwrap();
    // Tenants are known by what the log has, so one is seen with its first event.
    first.publish(portions(400).remove(0)).await.unwrap();
    wait_for(&first, "failed").await;
    let plugins = first.get("/v1/plugins").await.unwrap();
    assert!(plugins["plugins"][0]["message"].as_str().unwrap().contains("position_lost"), "{plugins}");
    let asked = first.get(&format!("/v1/streams/events?after={newest}")).await.unwrap_err();
    assert!(asked.to_string().contains("410") || asked.to_string().contains("409"), "{asked}");
}

async fn call(method: reqwest::Method, url: String, body: &str) -> Value {
    let client = reqwest::Client::new();
    let request = client.request(method, &url).header("content-type", "application/json");
    let answer = request.body(body.to_owned()).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert!(status.is_success(), "{url}: {status} {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_and_rooms_are_shared_by_hosts_and_outlive_one_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let setup = || host().log(&server.url());
    let mut one = HostProcess::start_as(setup(), &dir.path().join("one")).await.unwrap();
    let two = HostProcess::start_as(setup(), &dir.path().join("two")).await.unwrap();
    let events: String = (1..=4)
        .map(|n| {
            format!(
                "{{\"aggregate\":\"a\",\"agg_id\":\"{n}\",\"version\":1,\"type\":\"x\",\
                 \"at\":\"2013-01-01T00:00:00Z\",\"payload\":{n}}}\n"
            )
        })
        .collect();
    one.publish(events).await.unwrap();
    let group = |host: &HostProcess| format!("{}/v1/streams/events/groups/billing", host.url);
    call(reqwest::Method::PUT, group(&one), r#"{"lease_ms":5000}"#).await;
    let read = async |host: &HostProcess, consumer: &str, max: u64| {
        let body = format!(r#"{{"consumer":"{consumer}","limit":{max},"wait_ms":30000}}"#);
        let answer = call(reqwest::Method::POST, group(host) + "/read", &body).await;
        let entries = answer["entries"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["event"]["agg_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(read(&one, "first", 2).await, ["1", "2"]);
    assert_eq!(read(&two, "second", 2).await, ["3", "4"]);
    let member = format!("{}/v1/presence/board/members/ada", one.url);
    call(reqwest::Method::PUT, member, r#"{"state":1,"ttl_ms":60000}"#).await;
    one.kill().unwrap();
    // What the killed host's consumer had comes again, at the other host, once its leases have ended.
    assert_eq!(read(&two, "second", 1).await, ["1"]);
    let roster = two.get("/v1/presence/board").await.unwrap();
    assert_eq!(roster["members"][0]["member"], "ada", "{roster}");
}
