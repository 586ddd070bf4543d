//! Claims about the numbers of processors, in `/metrics` and in a plugin's status.

use anyhow::{Context, Result};
use millrace::telemetry::metrics::PROCESSOR_METRICS;
use millrace_tests::guests::guest;
use millrace_tests::host::HostProcess;
use serde_json::json;
use tempfile::TempDir;

pub(super) async fn metrics(host: &HostProcess) -> Result<String> {
    Ok(reqwest::get(format!("{}/metrics", host.url)).await?.error_for_status()?.text().await?)
}

/// The value of a line of `/metrics`, if it is this series.
pub(super) fn series(line: &str, series: &str) -> Option<f64> {
    line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()
}

fn value(text: &str, wanted: &str) -> f64 {
    let found = text.lines().find_map(|line| series(line, wanted));
    found.unwrap_or_else(|| panic!("there is no series {wanted} in:\n{text}"))
}

fn events(from: u64, to: u64, event_type: &str) -> String {
    let line = |version| {
        json!({"aggregate": "thing", "agg_id": "one", "version": version, "type": event_type, "payload": {}})
            .to_string()
            + "\n"
    };
    (from..to).map(line).collect()
}

async fn deploy(host: &HostProcess, name: &str) -> Result<()> {
    host.deploy(std::fs::read(guest(name)).context("the guest is built")?.into()).await?;
    Ok(())
}

#[tokio::test]
async fn every_metric_of_processors_is_shown_by_plugin_and_version_and_not_by_tenant() -> Result<()> {
    let dir = TempDir::new()?;
    let host = HostProcess::start(&dir.path().join("data")).await?;
    deploy(&host, "counter").await?;
    host.publish(events(1, 101, "added")).await?;
    host.settle().await?;
    let text = metrics(&host).await?;
    let labels = "{plugin=\"counter\",version=\"1.0.0\"";
    for metric in PROCESSOR_METRICS {
        assert!(text.contains(&format!("# HELP {} ", metric.name)), "{} is not described", metric.name);
        let shown = ["", "_bucket"].map(|end| format!("{}{end}{labels}", metric.name));
        assert!(shown.iter().any(|series| text.contains(series)), "{} has no series", metric.name);
    }
    assert!(!text.contains("tenant="), "a tenant is no label");

    let of = |name: &str| value(&text, &format!("millrace_processor_{name}{labels}}}"));
    assert_eq!(of("events_total"), 100.0);
    assert_eq!(of("batch_events_sum"), 100.0);
    assert_eq!(of("batch_events_count"), of("batches_total"));
    assert_eq!(of("handle_seconds_count"), of("batches_total"));
    assert_eq!(of("commit_seconds_count"), of("commits_total"));
    assert_eq!((of("lag_events"), of("lag_seconds")), (0.0, 0.0));
    assert_eq!(of("instances"), 1.0);
    // A linear memory has pages of 64 KiB, and a guest of Rust has at least one.
    assert!(of("memory_bytes") >= 65_536.0 && of("memory_bytes") % 65_536.0 == 0.0);
    assert!(of("cpu_seconds_total") > 0.0 && of("checkpoint_bytes") > 0.0);
    let endless = format!("millrace_processor_handle_seconds_bucket{labels},le=\"+Inf\"}}");
    assert_eq!(value(&text, &endless), of("batches_total"));
    Ok(())
}

#[tokio::test]
async fn a_new_version_counts_from_0_and_the_old_one_keeps_its_numbers() -> Result<()> {
    let dir = TempDir::new()?;
    let host = HostProcess::start(&dir.path().join("data")).await?;
    deploy(&host, "counter").await?;
    host.publish(events(1, 51, "added")).await?;
    host.settle().await?;
    deploy(&host, "counter_v2").await?;
    let version = |text: &str, version: &str, name: &str| {
        value(text, &format!("millrace_processor_{name}{{plugin=\"counter\",version=\"{version}\"}}"))
    };
    let text = metrics(&host).await?;
    let new = host.get("/v1/plugins/counter").await?["deployment"]["version"]
        .as_str()
        .context("a version")?
        .to_owned();
    assert_eq!((version(&text, "1.0.0", "events_total"), version(&text, &new, "events_total")), (50.0, 0.0));
    assert_eq!((version(&text, "1.0.0", "swaps_total"), version(&text, &new, "swaps_total")), (0.0, 1.0));
    host.publish(events(51, 61, "added")).await?;
    host.settle().await?;
    let text = metrics(&host).await?;
    assert_eq!((version(&text, "1.0.0", "events_total"), version(&text, &new, "events_total")), (50.0, 10.0));
    let shown = host.get("/v1/plugins/counter").await?;
    assert_eq!(shown["counters"]["events"], 60, "the status sums the versions");
    let versions = shown["measures"]["versions"].as_array().context("versions")?;
    assert_eq!(versions.iter().map(|v| v["events"].as_u64()).collect::<Vec<_>>(), [Some(50), Some(10)]);
    Ok(())
}

#[tokio::test]
async fn a_pause_keeps_the_numbers_and_shows_the_lag_in_seconds() -> Result<()> {
    let dir = TempDir::new()?;
    let host = HostProcess::start(&dir.path().join("data")).await?;
    deploy(&host, "counter").await?;
    host.publish(events(1, 11, "added")).await?;
    host.settle().await?;
    let http = reqwest::Client::new();
    http.post(format!("{}/v1/plugins/counter/pause", host.url)).send().await?.error_for_status()?;
    let shown = host.get("/v1/plugins/counter").await?;
    assert_eq!(shown["measures"]["lag_seconds"], 0.0, "{shown}");
    host.publish(events(11, 21, "added")).await?;
    let shown = host.get("/v1/plugins/counter").await?;
    assert!(shown["measures"]["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0), "{shown}");
    assert!(shown["measures"]["checkpoint_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{shown}");
    assert_eq!(shown["measures"]["instances"], 0, "{shown}");
    http.post(format!("{}/v1/plugins/counter/resume", host.url)).send().await?.error_for_status()?;
    host.settle().await?;
    let shown = host.get("/v1/plugins/counter").await?;
    assert_eq!(shown["measures"]["versions"][0]["events"], 20, "the pause did not set it back: {shown}");
    assert_eq!(shown["measures"]["lag_seconds"], 0.0, "{shown}");
    Ok(())
}

#[tokio::test]
async fn traps_are_counted_by_kind() -> Result<()> {
    let dir = TempDir::new()?;
    let host = HostProcess::start(&dir.path().join("data")).await?;
    deploy(&host, "trap_on_type").await?;
    host.publish(events(1, 2, "poison")).await?;
    host.settle().await?;
    let text = metrics(&host).await?;
    let kind = |kind: &str| {
        let labels = format!("{{plugin=\"trap-on-type\",version=\"1.0.0\",kind=\"{kind}\"}}");
        value(&text, &format!("millrace_processor_traps_total{labels}"))
    };
    assert!(kind("trap") > 0.0);
    assert_eq!((kind("timeout"), kind("limit"), kind("output"), kind("host")), (0.0, 0.0, 0.0, 0.0));
    Ok(())
}
