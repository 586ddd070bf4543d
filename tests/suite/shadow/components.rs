//! The same with real components on a whole host, over HTTP: what a candidate's report says, that a bad one
//! leaves nothing behind, and states that are too large for anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millrace::plugins::PluginSettings;
use millrace_tests::dump::dump;
use millrace_tests::embedded::{Answer, Client, Embedded};
use millrace_tests::guests::variant;
use millrace_tests::handwritten::Handwritten;
use reqwest::Method;
use serde_json::Value;

use super::{BUSY_MAX, versions};
use crate::commands::ran;

/// A host whose plugin has one lane. Where a busy machine makes a good version slow, nobody is refused for it;
/// the slow one is slower by far.
async fn start() -> Result<Embedded> {
    Embedded::start_with(|config| {
        (config.processors.shadow_events, config.processors.shadow_ms) = (60, 20);
        config.processors.shadow_time_ratio_max = 50;
        // What leaks is to be found out by that, before it comes to its bound.
        let memory_bytes_max = Some(512 << 20);
        let variant = PluginSettings { lanes: Some(1), memory_bytes_max, ..PluginSettings::default() };
        config.plugins.insert("variant".into(), variant);
    })
    .await
}

/// Events on seven keys, every fifth of which makes another one, numbered on from those before.
#[derive(Debug, Default)]
struct Traffic(AtomicU64);

impl Traffic {
    async fn publish(&self, client: &Client, count: u64) -> Result<()> {
        let from = self.0.fetch_add(count, Ordering::SeqCst);
        let mut lines = String::new();
        for number in from + 1..=from + count {
            let event_type = if number.is_multiple_of(5) { "make" } else { "add" };
            let line = serde_json::json!({
                "aggregate": "thing", "agg_id": format!("k{}", number % 7), "version": number,
                "type": event_type, "at": "2026-01-01T00:00:00Z", "payload": number,
            });
            lines.push_str(&format!("{line}\n"));
        }
        client.publish(lines).await.map(drop)
    }

    /// How many events there are of each key.
    fn counts(&self) -> Vec<(String, u64)> {
        let all = self.0.load(Ordering::SeqCst);
        (0..7)
            .map(|key| (format!("k{key}"), (1..=all).filter(|number| number % 7 == key).count() as u64))
            .collect()
    }
}

async fn deploy(client: &Client, component: Vec<u8>, options: &str) -> Result<Answer> {
    client.post(&format!("/v1/plugins?{options}"), "application/wasm", component).await
}

async fn show(client: &Client, plugin: &str) -> Result<Value> {
    client.get(&format!("/v1/plugins/{plugin}")).await?.ok()
}

/// Key to the count that its row shows.
async fn rows(client: &Client) -> Result<Vec<(String, u64)>> {
    let rows = client.rows("variants", "limit=1000").await?;
    let row = |row: &Value| Some((row["key"].as_str()?.to_owned(), row["values"]["events"].as_u64()?));
    rows.iter().map(row).collect::<Option<_>>().context("rows have keys and counts")
}

/// Deploys while events come, and until it is answered. A publish is never cut short by the answer: what
/// is counted as published was.
async fn deploy_under_traffic(
    client: &Client,
    traffic: &Traffic,
    component: Vec<u8>,
    options: &str,
) -> Result<Answer> {
    let deployed = deploy(client, component, options);
    tokio::pin!(deployed);
    loop {
        traffic.publish(client, 20).await?;
        tokio::select! {
            biased;
            settled = client.settle() => settled?,
            answer = &mut deployed => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_under_live_traffic_is_told_apart_confirmed_and_takes_over() -> Result<()> {
    let host = start().await?;
    let (client, traffic) = (&host.client, Traffic::default());
    traffic.publish(client, 40).await?;
    deploy(client, variant(1, "good"), "").await?.ok()?;
    client.settle().await?;
    let options = "confirm=true&shadow_ms=400&shadow_events=200";
    let begun = Instant::now();
    let status = loop {
        deploy_under_traffic(client, &traffic, variant(2, "other"), options).await?.ok()?;
        client.settle().await?;
        let status = show(client, "variant").await?;
        let report = &status["candidate"]["report"];
        // Again where the machine was too busy to let it have live traffic in time.
        if report["events"].as_u64() > report["replayed_events"].as_u64() {
            break status;
        }
        ensure!(begun.elapsed() < BUSY_MAX, "no run had live traffic: {status}");
        client.send(client.request(Method::DELETE, "/v1/plugins/variant/candidate")).await?.ok()?;
    };

    assert_eq!(status["deployment"]["version"], "1.1000001.0+good------", "the running version serves");
    assert_eq!(rows(client).await?, traffic.counts(), "nothing of the candidate is in the rows");
    let candidate = &status["candidate"];
    assert_eq!(candidate["state"], "waiting", "{candidate}");
    let report = &candidate["report"];
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    assert!(number("/stretches") > 0, "{report}");
    assert!(number("/rows/different") > 0, "{report}");
    assert_eq!(
        [number("/rows/same"), number("/rows/only_old"), number("/rows/only_new")],
        [0; 3],
        "{report}"
    );
    let example = &report["examples"][0];
    assert_eq!((&example["table"], &example["column"]), (&"variants".into(), &"events".into()));
    let shown = |side: &str| example[side].as_str().and_then(|text| text.parse::<u64>().ok());
    assert_eq!(shown("new"), shown("old").map(|old| old + 1), "{example}");
    assert!(number("/emitted/different") > 0 && number("/emitted/same") == 0, "{report}");
    assert!((1..1_000).contains(&number("/old/state_bytes")), "{report}");
    assert!((1_000..3_000).contains(&number("/new/state_bytes")), "{report}");
    // Ten thousand rounds of anything take a microsecond.
    assert!(
        number("/new/nanoseconds_per_event") > 1_000 && number("/old/nanoseconds_per_event") > 0,
        "{report}"
    );
    assert!(number("/old/memory_bytes") > 0 && number("/new/memory_bytes") > 0, "{report}");
    assert_eq!(
        ["errors_new", "errors_old", "errors_both"].map(|errors| number(&format!("/{errors}"))),
        [0; 3]
    );
    let (ended, text) = ran(&["plugin", "show", "variant", "--url", client.url()]).await;
    ended.expect("the plugin is shown");
    for line in [
        "candidate.report.rows.different ",
        "candidate.report.examples.0.column ",
        "candidate.report.new.state_bytes ",
    ] {
        assert!(text.lines().any(|shown| shown.starts_with(line)), "`{line}` is not in {text}");
    }

    let (ended, _) = ran(&["plugin", "confirm", "variant", "--url", client.url()]).await;
    ended.expect("it takes over");
    let status = show(client, "variant").await?;
    assert_eq!(status["deployment"]["version"], "1.1000002.0+other-----");
    assert_eq!(status["candidate"]["state"], "took_over");
    traffic.publish(client, 7).await?;
    client.settle().await?;
    let expected: Vec<_> = traffic.counts().into_iter().map(|(key, count)| (key, count + 1)).collect();
    assert_eq!(rows(client).await?, expected, "it goes on from the old one's state, in its own way");
    Ok(())
}

/// What a store holds after so many events of which nothing disturbed the handling.
async fn undisturbed(events: u64) -> Result<String> {
    let host = start().await?;
    deploy(&host.client, variant(1, "good"), "").await?.ok()?;
    Traffic::default().publish(&host.client, events).await?;
    host.client.settle().await?;
    stored(host).await
}

async fn stored(host: Embedded) -> Result<String> {
    let data = host.data();
    let dir = host.stop().await;
    let stored = dump(&data)?;
    drop(dir);
    Ok(stored)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_rows_are_refused_where_identical_ones_are_expected_and_leave_nothing_behind() -> Result<()> {
    let host = start().await?;
    let (client, traffic) = (&host.client, Traffic::default());
    traffic.publish(client, 40).await?;
    deploy(client, variant(1, "good"), "").await?.ok()?;
    client.settle().await?;
    let options = "expect=identical-rows&shadow_ms=200";
    let answer = deploy_under_traffic(client, &traffic, variant(2, "other"), options).await?;
    assert_eq!(answer.refusal(), (409, "shadow_rows_differ".into()), "{}", answer.text());
    let problem = answer.json();
    let detail = problem["detail"].as_str().context("a detail")?;
    assert!(
        detail.contains("identical rows were expected") && detail.contains("table `variants`"),
        "{detail}"
    );
    let status = show(client, "variant").await?;
    assert_eq!(status["deployment"]["version"], "1.1000001.0+good------");
    assert_eq!(status["candidate"]["state"], "refused");
    assert_eq!(status["last_refusal"]["code"], "shadow_rows_differ");
    assert!(status["candidate"]["report"]["rows"]["different"].as_u64() > Some(0), "the report stays");
    traffic.publish(client, 7).await?;
    client.settle().await?;
    let events = traffic.0.load(Ordering::SeqCst);
    assert_eq!(stored(host).await?, undisturbed(events).await?);
    Ok(())
}

const BAD: [(&str, &str); 5] = [
    ("traps", "shadow_trap"),
    ("slow", "shadow_slow"),
    ("refuses", "state_refused"),
    ("leaks", "shadow_memory"),
    ("wrong", "shadow_rows_differ"),
];

/// Deploys version after version while a few events come; answers what they were refused for, or `taken`.
async fn tried(client: &Client, traffic: &Traffic, number: usize, nature: &str) -> Result<String> {
    let deployed = deploy(client, variant(number, nature), "expect=identical-rows");
    let (answer, published) = tokio::join!(deployed, traffic.publish(client, 10));
    published?;
    let answer = answer?;
    ensure!(answer.status == 200 || answer.status == 409, "{}", answer.text());
    Ok(if answer.status == 200 { "taken".into() } else { answer.refusal().1 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_component_is_refused_with_its_reason_and_nothing_of_it_is_committed() -> Result<()> {
    let host = start().await?;
    let (client, traffic) = (&host.client, Traffic::default());
    traffic.publish(client, 100).await?;
    deploy(client, variant(1, "good"), "").await?.ok()?;
    client.settle().await?;
    for number in 0..versions(10) as usize {
        let (nature, expected) = BAD[number % BAD.len()];
        assert_eq!(
            tried(client, &traffic, number + 2, nature).await?,
            expected,
            "version {number}, {nature}"
        );
    }
    client.settle().await?;
    let status = show(client, "variant").await?;
    assert_eq!(status["deployment"]["version"], "1.1000001.0+good------");
    assert_eq!((&status["counters"]["traps"], &status["counters"]["swaps"]), (&0.into(), &0.into()));
    let events = traffic.0.load(Ordering::SeqCst);
    assert_eq!(stored(host).await?, undisturbed(events).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_good_component_is_taken_and_the_store_is_that_of_a_run_without_any() -> Result<()> {
    let host = start().await?;
    let (client, traffic) = (&host.client, Traffic::default());
    traffic.publish(client, 100).await?;
    deploy(client, variant(1, "good"), "").await?.ok()?;
    client.settle().await?;
    let count = versions(10) as usize;
    for number in 0..count {
        assert_eq!(tried(client, &traffic, number + 2, "good").await?, "taken", "version {number}");
    }
    client.settle().await?;
    assert_eq!(show(client, "variant").await?["counters"]["swaps"], count);
    let events = traffic.0.load(Ordering::SeqCst);
    assert_eq!(stored(host).await?, undisturbed(events).await?);
    Ok(())
}

// States that are too large.

/// A snapshot that is said to have a gibibyte, and has: of untouched memory.
fn gigantic() -> Vec<u8> {
    let says = "(drop (memory.grow (i32.const 16384))) (i32.store (i32.const 0xc04) (i32.const 0x40000000))";
    Handwritten::new("giant").in_snapshot(says).component()
}

fn roomy() -> PluginSettings {
    PluginSettings { memory_bytes_max: Some(2 << 30), ..PluginSettings::default() }
}

async fn publish_one(client: &Client, agg_id: &str) -> Result<()> {
    let event = serde_json::json!({ "aggregate": "thing", "agg_id": agg_id, "version": 1, "type": "add" });
    client.publish(format!("{event}\n")).await?;
    client.settle().await
}

async fn keys(client: &Client, table: &str) -> Result<Vec<String>> {
    let rows = client.rows(table, "limit=1000").await?;
    Ok(rows.iter().filter_map(|row| row["key"].as_str().map(str::to_owned)).collect())
}

const TOO_LARGE: &str = "bytes; guest_state_bytes_max is 8388608: keep what grows in keyed state, or raise plugins.<name>.state_bytes_max";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_with_a_snapshot_of_a_gibibyte_is_refused_and_the_old_version_serves() -> Result<()> {
    let host = Embedded::start_with(|config| {
        config.plugins.insert("giant".into(), roomy());
    })
    .await?;
    let client = &host.client;
    deploy(client, Handwritten::new("giant").component(), "").await?.ok()?;
    publish_one(client, "a").await?;
    let answer = deploy(client, gigantic(), "").await?;
    assert_eq!(answer.refusal(), (409, "shadow_snapshot".into()), "{}", answer.text());
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("the snapshot has more than 16777216") && detail.contains(TOO_LARGE), "{detail}");
    publish_one(client, "b").await?;
    assert_eq!(keys(client, "t_giant").await?, ["a", "b"]);
    assert_eq!(show(client, "giant").await?["counters"]["dead_letters"], 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_version_with_a_snapshot_of_a_gibibyte_makes_dead_letters_that_say_so() -> Result<()> {
    let host = Embedded::start_with(|config| {
        config.plugins.insert("giant".into(), roomy());
    })
    .await?;
    let client = &host.client;
    deploy(client, gigantic(), "").await?.ok()?;
    publish_one(client, "a").await?;
    let letters = client.get("/v1/plugins/giant/dead-letters").await?.ok()?;
    let letter = &letters["dead_letters"][0];
    assert_eq!((&letter["reason"], &letter["blame"]), (&"limit".into(), &"guest".into()), "{letters}");
    assert!(letter["message"].to_string().contains(TOO_LARGE), "{letter}");
    let status = show(client, "giant").await?;
    assert_eq!(status["state"], "running");
    assert!(keys(client, "t_giant").await?.is_empty(), "what has no state has no rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_whose_state_grows_or_whose_load_takes_everything_is_refused_by_limit() -> Result<()> {
    let host = Embedded::start_with(|config| {
        config.processors.guest_memory_bytes_max = 64 << 20;
        // What writes a mebibyte for each event takes its time, too.
        config.processors.shadow_time_ratio_max = 1_000_000;
    })
    .await?;
    let (client, traffic) = (&host.client, Traffic::default());
    deploy(client, variant(1, "good"), "").await?.ok()?;
    // Over eight mebibytes of state, and not over the memory.
    traffic.publish(client, 10).await?;
    client.settle().await?;

    let answer = deploy(client, variant(2, "swells"), "").await?;
    assert_eq!(answer.refusal(), (409, "shadow_snapshot".into()), "{}", answer.text());
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("the snapshot has ") && detail.contains(TOO_LARGE), "{detail}");

    let answer = deploy(client, variant(3, "greedy"), "").await?;
    assert_eq!(answer.refusal(), (409, "load_limit".into()), "{}", answer.text());
    let problem = answer.json();
    let detail = problem["detail"].to_string();
    assert!(detail.contains("while it loaded the state of task variant/default/0"), "{detail}");
    assert!(detail.contains("guest_memory_bytes_max is 67108864 and it asked for 6"), "{detail}");
    assert!(detail.contains("raise plugins.<name>.memory_bytes_max"), "{detail}");
    assert_eq!(problem["blame"], "guest");

    let status = show(client, "variant").await?;
    assert_eq!(
        (&status["state"], &status["last_refusal"]["code"]),
        (&"running".into(), &"load_limit".into())
    );
    traffic.publish(client, 20).await?;
    client.settle().await?;
    assert_eq!(rows(client).await?, traffic.counts(), "the old version serves");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_state_over_the_bound_is_refused_with_both_numbers_and_the_setting() -> Result<()> {
    let host = Embedded::start().await?;
    deploy(&host.client, variant(1, "good"), "").await?.ok()?;
    Traffic::default().publish(&host.client, 70).await?;
    host.client.settle().await?;
    host.client.post("/v1/plugins/variant/pause", "application/json", "").await?.ok()?;
    let host = host
        .restart_with(|config| {
            let settings = PluginSettings { state_bytes_max: Some(20), ..PluginSettings::default() };
            config.plugins.insert("variant".into(), settings);
        })
        .await?;
    let answer = deploy(&host.client, variant(2, "good"), "").await?;
    assert_eq!(answer.refusal(), (409, "guest_state_bytes_max".into()), "{}", answer.text());
    let problem = answer.json();
    assert_eq!((&problem["limit"], &problem["max"]), (&"guest_state_bytes_max".into(), &20.into()));
    assert!(problem["asked"].as_u64() > Some(20), "{problem}");
    assert!(problem["fix"].to_string().contains("plugins.<name>.state_bytes_max"), "{problem}");
    assert_eq!(show(&host.client, "variant").await?["deployment"]["version"], "1.1000001.0+good------");
    Ok(())
}
