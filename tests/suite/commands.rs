//! Claims about the commands and the settings, against a host in the same process.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser as _;
use millrace::cli::{Cli, CliError, Exit, Output};
use millrace::config::{Config, GrpcConfig, GrpcSourceConfig, Layers};
use millrace::gateway::PROBLEMS;
use millrace::host::Host;
use tokio::task::JoinHandle;

/// How long a test waits for what must happen. Reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

// Tail.

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_events_only_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.gateway.sse_heartbeat_ms = 5;
    let host = start(&config).await;
    config.serve.bind = host.addr();
    let url = format!("http://{}", host.addr());
    publish(&url, dir.path(), &lines(1..=3)).await.expect("published");

    let written = Written::default();
    let tail =
        run(&["tail", "--follow", "--from", "oldest", "--limit", "5", "--json", "--url", &url], &written);
    until(|| written.text().lines().count() == 3).await;
    host.shutdown().await;
    let host = start(&config).await;
    publish(&url, dir.path(), &lines(4..=6)).await.expect("published");
    tail.await.expect("no panic").expect("it saw five events");

    let text = written.text();
    let versions = text.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("an event");
        event["version"].as_u64().expect("events have versions")
    });
    assert_eq!(versions.collect::<Vec<_>>(), [1, 2, 3, 4, 5], "{text}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_of_a_range_ends_and_a_foreign_cursor_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    let (ended, text) = ran(&["tail", "--url", &url]).await;
    ended.expect("nothing is fine");
    assert_eq!(text, "");
    publish(&url, dir.path(), &lines(1..=2_500)).await.expect("published");
    let (ended, text) = ran(&["tail", "--url", &url]).await;
    ended.expect("a range");
    assert_eq!(text.lines().count(), 2_500);
    for follow in ["--follow", "--json"] {
        let (ended, _) = ran(&["tail", follow, "--after", "other.7", "--url", &url]).await;
        let error = ended.expect_err("another log's cursor");
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        assert!(error.sentence().contains("cursor_foreign"), "{error}");
    }
    host.shutdown().await;
}

// Publish.

#[tokio::test(flavor = "multi_thread")]
async fn one_conflicting_id_costs_one_event_and_not_its_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    publish(&url, dir.path(), &event(9_999, "taken", 1)).await.expect("published");

    let mut input = lines(1..=2_000);
    input = input.replacen(&event(700, "v700", 0), &event(700, "taken", 0), 1);
    let (ended, text) = publish_json(&url, dir.path(), &input).await;
    let error = ended.expect_err("one is refused");
    assert_eq!(error.exit(), Exit::Refused);
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    assert_eq!((report["events"].as_u64(), report["refused"].as_u64()), (Some(2_000), Some(1)), "{report}");
    let refusal = report["refusals"][0].as_str().expect("a sentence");
    assert!(refusal.starts_with("event 700: ") && refusal.contains("event_id_taken"), "{refusal}");
    assert_eq!(ran(&["tail", "--url", &url]).await.1.lines().count(), 2_000, "1,999 and the one before");

    let (ended, text) = publish_json(&url, dir.path(), &input).await;
    assert_eq!(ended.expect_err("still refused").exit(), Exit::Refused);
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    assert_eq!((report["repeated"].as_u64(), report["refused"].as_u64()), (Some(1_999), Some(1)), "{report}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_conflicting_id_is_reported_and_every_other_event_lands() {
    let dir = tempfile::tempdir().expect("a folder");
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    let taken = [3, 4, 5, 500, 1_000, 1_001, 2_222];
    let before: String = taken.iter().map(|n| event(*n, &format!("v{n}"), 1)).collect();
    publish(&url, dir.path(), &before).await.expect("published");
    let (ended, text) = publish_json(&url, dir.path(), &lines(1..=3_000)).await;
    assert_eq!(ended.expect_err("seven are refused").exit(), Exit::Refused);
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    assert_eq!((report["events"].as_u64(), report["refused"].as_u64()), (Some(3_000), Some(7)), "{report}");
    let said = report["refusals"].to_string();
    for n in taken {
        assert!(said.contains(&format!("event {n}: ")), "{n}: {said}");
    }
    assert_eq!(ran(&["tail", "--url", &url]).await.1.lines().count(), 3_000);
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file_longer_than_an_upload_goes_in_several() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.gateway.upload_bytes_max = 200_000;
    let host = start(&config).await;
    let url = format!("http://{}", host.addr());
    let input = lines(1..=10_000);
    assert!(input.len() > 3 * 200_000);
    publish(&url, dir.path(), &input).await.expect("published");
    assert_eq!(ran(&["tail", "--url", &url]).await.1.lines().count(), 10_000);
    host.shutdown().await;
}

// Settings.

/// A setting that nothing reads is a promise that is not kept.
#[test]
fn every_setting_is_read_where_the_host_is_put_together() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src");
    let source = |path: &str| std::fs::read_to_string(root.join(path)).expect("a source file");
    let files = [
        "host.rs",
        "host/artifacts.rs",
        "host/auth.rs",
        "host/control.rs",
        "host/parts.rs",
        "host/shared_log.rs",
        "host/source.rs",
        "cli/serve.rs",
        "telemetry/mod.rs",
    ];
    let places: String = files.into_iter().map(source).collect();
    for setting in Layers::new().resolve().expect("defaults").settings {
        let name = setting.key.rsplit('.').next().expect("a key");
        let accessor = name.replace("_ms_", "_").replace("_seconds_", "_");
        let accessor = accessor.trim_end_matches("_ms").trim_end_matches("_seconds");
        let ways = [
            format!(".{name}"),
            format!(".{accessor}()"),
            format!(".{accessor}_every()"),
            format!(".{accessor}_max()"),
        ];
        let read = ways.iter().any(|way| places.contains(way));
        // `plugins` is empty by default; `auth.tokens` is a list.
        assert!(read, "`{}` has no effect", setting.key);
    }
}

/// Those of gRPC stand in pages of their own, which the README names.
#[test]
fn every_setting_of_grpc_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = |path: &str| std::fs::read_to_string(root.join(path)).expect("a page");
    let readme = text("README.md");
    let values =
        |settings: serde_json::Result<serde_json::Value>| settings.expect("settings are plain values");
    for (section, page, settings) in [
        ("[source.grpc]", "docs/sources.md", values(serde_json::to_value(GrpcSourceConfig::default()))),
        ("[grpc]", "docs/grpc.md", values(serde_json::to_value(GrpcConfig::default()))),
    ] {
        let documented = text(page);
        for part in [section, page] {
            assert!(readme.contains(part), "{part} is not in the README");
        }
        assert!(documented.contains(section), "{section} is not in {page}");
        let names: Vec<&String> = settings.as_object().expect("a section").keys().collect();
        assert!(names.len() >= 3, "{section}: {names:?}");
        for name in names {
            assert!(documented.contains(&format!("`{name}`")), "{page} says nothing of {section} {name}");
        }
    }
}

#[test]
fn problem_of_a_setting_says_how_to_raise_it() {
    let mut found = 0;
    for setting in Layers::new().resolve().expect("defaults").settings {
        let name = setting.key.rsplit('.').next().expect("a key").replace("_ms_", "_");
        for problem in PROBLEMS.iter().filter(|problem| problem.code == name) {
            assert!(problem.fix.contains(&setting.key), "{}: {}", problem.code, problem.fix);
            found += 1;
        }
    }
    assert!(found >= 4, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_of_the_edge_are_those_that_were_set() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.gateway.body_bytes_max = 50;
    let host = start(&config).await;
    let answer = reqwest::Client::new()
        .post(format!("http://{}/v1/events", host.addr()))
        .header("content-type", "application/json")
        .body(event(1, "v1", 0))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 413);
    let problem: serde_json::Value = answer.json().await.expect("a problem");
    assert_eq!((problem["limit"].as_str(), problem["max"].as_u64()), (Some("body_bytes_max"), Some(50)));
    assert!(problem["fix"].as_str().is_some_and(|fix| fix.contains("gateway.body_bytes_max")), "{problem}");
    host.shutdown().await;
}

// Helpers.

pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.serve.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.serve.data = dir.join("data");
    config.store.disk_free_bytes_min = 0;
    config
}

pub(crate) async fn start(config: &Config) -> Host {
    Host::builder().config(config.clone()).start().await.expect("a host")
}

fn event(version: u64, id: &str, content: u64) -> String {
    format!(
        "{{\"id\":\"{id}\",\"aggregate\":\"a\",\"agg_id\":\"b\",\"version\":{version},\"type\":\"t\",\
         \"at\":\"2013-01-01T00:00:00Z\",\"payload\":{{\"content\":{content}}}}}\n"
    )
}

fn lines(versions: std::ops::RangeInclusive<u64>) -> String {
    versions.map(|n| event(n, &format!("v{n}"), 0)).collect()
}

async fn publish(url: &str, dir: &Path, input: &str) -> Result<(), CliError> {
    publish_json(url, dir, input).await.0
}

async fn publish_json(url: &str, dir: &Path, input: &str) -> (Result<(), CliError>, String) {
    let file = dir.join("events.ndjson");
    std::fs::write(&file, input).expect("a file");
    ran(&["publish", file.to_str().expect("UTF-8"), "--json", "--url", url]).await
}

pub(crate) async fn ran(arguments: &[&str]) -> (Result<(), CliError>, String) {
    let written = Written::default();
    let ended = run(arguments, &written).await.expect("no panic");
    (ended, written.text())
}

/// A command on a thread of its own: it makes its own runtime.
pub(crate) fn run(arguments: &[&str], written: &Written) -> JoinHandle<Result<(), CliError>> {
    let cli = Cli::try_parse_from(["millrace"].iter().chain(arguments)).expect("a command line");
    let written = written.clone();
    tokio::task::spawn_blocking(move || millrace::cli::run(cli, &mut Output::new(written)))
}

pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "it did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
