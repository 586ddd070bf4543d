//! The sample that answers on a channel, on hosts whose log and channels are on a server: each request has one answer,
//! whoever is killed meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::redis_server::{Engine, RedisServer};
use reqwest::Method;
use serde_json::{Value, json};

use super::{LEASE, call, host, wait_for};

const SOON: Duration = Duration::from_secs(60);

fn setup(server: &RedisServer) -> Setup {
    let granted =
        host().set(r#"plugins.answers.grants=["channels"]"#).set(r#"plugins.answers.channels=["ans*"]"#);
    granted.set("channels.channel_rate_limited=false").log(&server.url()).set(LEASE)
}

async fn with_answers(data: &Path, server: &RedisServer) -> HostProcess {
    let host = HostProcess::start_as(setup(server), data).await.unwrap();
    host.deploy(std::fs::read(guest("answers")).unwrap().into()).await.unwrap();
    host
}

/// A process that the plugin executes.
async fn begin(host: &HostProcess, process: &str) {
    let channels = json!([{ "name": "requests", "events": true }, "answers"]);
    let body = json!({ "executor": "plugin:answers", "channels": channels });
    call(Method::PUT, format!("{}/v1/processes/{process}", host.url), &body.to_string()).await;
}

/// Asks until it is taken, under the same number.
async fn ask(host: &HostProcess, process: &str, sequence: u64, entry: Value) {
    let url = format!("{}/v1/processes/{process}/channels/requests/entries", host.url);
    let mut entry = entry;
    entry["sequence"] = sequence.into();
    let begun = Instant::now();
    loop {
        let request = reqwest::Client::new().post(&url).header("content-type", "application/json");
        match request.body(entry.to_string()).send().await {
            Ok(answer) if answer.status().is_success() => return,
            Ok(answer) if answer.status().is_server_error() => {}
            Ok(answer) => panic!("{}", answer.text().await.unwrap()),
            Err(_) => {}
        }
        assert!(begun.elapsed() < SOON, "{}", host.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn question(n: u64) -> Value {
    json!({ "text": format!("request {}", "x".repeat(usize::try_from(n).unwrap())) })
}

/// What is answered to it.
fn answer(n: u64) -> String {
    let longest = if n > 7 { "x".repeat(usize::try_from(n).unwrap()) } else { "request".to_owned() };
    format!("I read 2 words with {} letters. The longest is “{longest}”.\n", 7 + n)
}

/// The pieces on a channel, once the last of them is an end.
async fn answers(host: &HostProcess, process: &str) -> Vec<Value> {
    let path = format!("/v1/processes/{process}/channels/answers/entries?payload=text");
    let begun = Instant::now();
    loop {
        if let Ok(page) = host.get(&path).await {
            let entries = page["entries"].as_array().unwrap();
            if entries.last().is_some_and(|last| last["type"] == "end") {
                return entries.clone();
            }
        }
        assert!(begun.elapsed() < SOON, "{process} is not answered: {}", host.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One answer to each of so many requests, piece by piece, in order, and one end.
fn whole(pieces: &[Value], requests: u64) {
    let text: String = pieces.iter().filter_map(|piece| piece["text"].as_str()).collect();
    assert_eq!(text, (1..=requests).map(answer).collect::<String>());
    assert_eq!(pieces.iter().filter(|piece| piece["type"] == "end").count(), 1);
    assert!(pieces.len() as u64 > 10 * requests, "an answer comes in pieces");
    for (piece, sequence) in pieces.iter().zip(1_u64..) {
        let expected = (&json!(sequence), &json!("plugin:answers"));
        assert_eq!((&piece["sequence"], &piece["senderid"]), expected, "{piece}");
    }
}

async fn ask_all(host: &HostProcess, process: &str, requests: std::ops::RangeInclusive<u64>) {
    for n in requests {
        ask(host, process, n, question(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_redis_are_answered_in_pieces_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let host = with_answers(&dir.path().join("data"), &server).await;
    wait_for(&host, "running").await;
    begin(&host, "p").await;
    ask_all(&host, "p", 1..=9).await;
    ask(&host, "p", 10, json!({ "type": "end" })).await;
    whole(&answers(&host, "p").await, 9);
    let letters = host.get("/v1/plugins/answers/dead-letters").await.unwrap();
    assert_eq!(letters["dead_letters"], json!([]));
}

/// A kill may come between a commit and the moment when its entries are carried or crossed off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_host_lose_no_piece_of_an_answer_and_double_none() {
    const ROUNDS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Valkey);
    let mut host = with_answers(&dir.path().join("data"), &server).await;
    wait_for(&host, "running").await;
    begin(&host, "p").await;
    for round in 0..ROUNDS {
        ask_all(&host, "p", round * 5 + 1..=round * 5 + 5).await;
        host.kill_and_start().await.unwrap();
    }
    ask(&host, "p", ROUNDS * 5 + 1, json!({ "type": "end" })).await;
    whole(&answers(&host, "p").await, ROUNDS * 5);
}

/// The second host has a store of its own: it handles all that was asked once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_that_takes_over_goes_on_with_the_answers_and_repeats_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let mut first = with_answers(&dir.path().join("one"), &server).await;
    wait_for(&first, "running").await;
    let second = with_answers(&dir.path().join("two"), &server).await;
    wait_for(&second, "standby").await;
    for process in ["p", "q"] {
        begin(&first, process).await;
    }
    ask_all(&first, "p", 1..=20).await;
    ask(&second, "p", 21, json!({ "type": "end" })).await;
    whole(&answers(&second, "p").await, 20);
    ask_all(&second, "q", 1..=10).await;
    first.kill().unwrap();
    ask_all(&second, "q", 11..=20).await;
    ask(&second, "q", 21, json!({ "type": "end" })).await;
    wait_for(&second, "running").await;
    whole(&answers(&second, "q").await, 20);
    // It is behind the requests of the first process, whose half it would have ended twice.
    second.settle().await.unwrap();
    whole(&answers(&second, "p").await, 20);
    let refused = metric(&second, "millrace_outbox_refused_total", &[]).await;
    assert_eq!(refused, 0, "what lies there is a repeat, and is not refused");
    // The first one comes back with what it had not crossed off, and has nothing to say.
    let first = HostProcess::start_as(setup(&server), &dir.path().join("one")).await.unwrap();
    drop(second);
    wait_for(&first, "running").await;
    first.settle().await.unwrap();
    for process in ["p", "q"] {
        whole(&answers(&first, process).await, 20);
    }
}

/// The number of a metric that has all these labels; 0 where nothing was counted.
async fn metric(host: &HostProcess, name: &str, labels: &[&str]) -> u64 {
    let text = reqwest::get(format!("{}/metrics", host.url)).await.unwrap().text().await.unwrap();
    let found =
        text.lines().find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    found.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_channel_refuses_is_told_and_does_not_stop_the_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let host = with_answers(&dir.path().join("data"), &server).await;
    wait_for(&host, "running").await;
    // It has no channel for answers.
    let body = json!({ "executor": "plugin:answers", "channels": [{ "name": "requests", "events": true }] });
    call(Method::PUT, format!("{}/v1/processes/mute", host.url), &body.to_string()).await;
    begin(&host, "p").await;
    ask_all(&host, "mute", 1..=1).await;
    ask_all(&host, "p", 1..=3).await;
    ask(&host, "p", 4, json!({ "type": "end" })).await;
    whole(&answers(&host, "p").await, 3);
    host.settle().await.unwrap();
    let labels = [r#"plugin="answers""#, r#"code="channel_unknown""#];
    let begun = Instant::now();
    // It is counted a moment before it is written to the log.
    let refused = async || metric(&host, "millrace_outbox_appends_refused_total", &labels).await;
    while refused().await == 0 || !host.said().contains("channel_unknown") {
        assert!(begun.elapsed() < SOON, "{}", host.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
