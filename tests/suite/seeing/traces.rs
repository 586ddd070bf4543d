//! Claims about traces, through the real binary and a collector that takes OTLP.

use std::time::Instant;

use anyhow::{Context, Result};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::ports::Port;
use millrace_tests::workspace_binary;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::collector::{Collector, Span};
use super::measures::{metrics, series};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SENDER: &str = "00f067aa0ba902b7";

fn traceparent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SENDER}-{flags}")
}

fn event(agg_id: &str, event_type: &str) -> Value {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": 1, "type": event_type, "payload": {}})
}

async fn start(dir: &TempDir, endpoint: &str, more: &[&str]) -> Result<HostProcess> {
    let setup = Setup::new(workspace_binary("millrace"))
        .set(&format!("telemetry.otlp_endpoint={endpoint}"))
        .set("telemetry.format=json");
    let setup = more.iter().fold(setup, |setup, setting| setup.set(setting));
    HostProcess::start_as(setup, &dir.path().join("data")).await
}

/// Publishes JSON, with a `traceparent` where there is one; answers the body.
async fn publish(host: &HostProcess, body: &Value, traceparent: Option<&str>) -> Result<Value> {
    let request = reqwest::Client::new().post(format!("{}/v1/events", host.url)).json(body);
    let request = traceparent.iter().fold(request, |request, text| request.header("traceparent", *text));
    Ok(request.send().await?.error_for_status()?.json().await?)
}

async fn deploy(host: &HostProcess, name: &str) -> Result<()> {
    host.deploy(std::fs::read(guest(name)).context("the guest is built")?.into()).await?;
    Ok(())
}

fn named<'a>(spans: &'a [Span], trace: &str, name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.trace == trace && span.name == name).collect()
}

fn one<'a>(spans: &'a [Span], trace: &str, name: &str) -> &'a Span {
    let found = named(spans, trace, name);
    assert_eq!(found.len(), 1, "one `{name}` of trace {trace} in {spans:#?}");
    found[0]
}

fn has(spans: &[Span], trace: &str, name: &str) -> bool {
    !named(spans, trace, name).is_empty()
}

#[tokio::test]
async fn a_publish_is_one_trace_through_the_guest_to_the_commit() -> Result<()> {
    let (dir, collector) = (TempDir::new()?, Collector::start().await?);
    let settings = [
        "telemetry.service_name=river",
        "telemetry.otlp_headers={ x-key = \"secret\" }",
        "telemetry.trace_sample_ratio=0",
    ];
    let host = start(&dir, &collector.url, &settings).await?;
    deploy(&host, "counter").await?;
    // Nobody asked for a trace of the first one.
    publish(&host, &event("quiet", "added"), None).await?;
    publish(&host, &event("quieter", "added"), Some(&traceparent(OTHER_TRACE, "00"))).await?;
    let answer = publish(&host, &event("traced", "added"), Some(&traceparent(TRACE, "01"))).await?;
    let spans = collector.wait_for(|spans| has(spans, TRACE, "checkpoint.commit")).await?;

    let publish = one(&spans, TRACE, "publish");
    let append = one(&spans, TRACE, "log.append");
    let batch = one(&spans, TRACE, "lane.batch");
    let handle = one(&spans, TRACE, "guest.handle");
    let commit = one(&spans, TRACE, "checkpoint.commit");
    assert_eq!(publish.parent, SENDER);
    assert_eq!(append.parent, publish.id);
    assert_eq!(batch.parent, publish.id);
    assert_eq!(handle.parent, batch.id);
    assert_eq!(commit.parent, batch.id);
    let position = answer["events"][0]["position"].as_str().context("a position")?;
    let position = position.rsplit('.').next().context("a cursor ends with its position")?;
    for span in [batch, handle, commit] {
        let field = |name: &str| span.fields.get(name).map(String::as_str);
        assert_eq!(field("plugin.name"), Some("counter"), "{span:?}");
        assert_eq!(field("plugin.version"), Some("1.0.0"), "{span:?}");
        assert_eq!(field("tenant"), Some("default"), "{span:?}");
        assert_eq!(field("stream.position"), Some(position), "{span:?}");
    }
    assert_eq!(publish.fields.get("tenant").map(String::as_str), Some("default"));
    assert_eq!(publish.fields.get("stream.position").map(String::as_str), Some(position));
    assert!(spans.iter().all(|span| span.trace == TRACE), "only the sampled one: {spans:#?}");
    assert!(collector.services().iter().all(|service| service == "river"));
    assert!(collector.headers().iter().all(|headers| headers["x-key"] == "secret"));
    Ok(())
}

#[tokio::test]
async fn an_event_s_own_trace_goes_on_in_what_it_causes() -> Result<()> {
    let (dir, collector) = (TempDir::new()?, Collector::start().await?);
    let host = start(&dir, &collector.url, &["telemetry.trace_sample_ratio=0"]).await?;
    deploy(&host, "feeder").await?;
    let mut first = event("chain", "feed.first");
    first["traceparent"] = traceparent(TRACE, "01").into();
    publish(&host, &first, None).await?;
    // The first one, and the one that it caused.
    let spans = collector.wait_for(|spans| named(spans, TRACE, "lane.batch").len() >= 2).await?;
    let batches = named(&spans, TRACE, "lane.batch");
    assert_eq!(batches[0].parent, SENDER, "the event kept what it came with");
    assert_eq!(batches[1].parent, batches[0].id, "what it caused is below its batch");
    assert_eq!(one(&spans, TRACE, "publish").parent, SENDER);
    Ok(())
}

#[tokio::test]
async fn a_batch_of_several_traces_is_linked_to_all_and_carries_each_on() -> Result<()> {
    let (dir, collector) = (TempDir::new()?, Collector::start().await?);
    let host = start(&dir, &collector.url, &["telemetry.trace_sample_ratio=0"]).await?;
    deploy(&host, "feeder").await?;
    let events = [TRACE, OTHER_TRACE].map(|trace| {
        let mut event = event(trace, "feed.first");
        event["traceparent"] = traceparent(trace, "01").into();
        event
    });
    publish(&host, &json!(events), None).await?;
    let spans = collector.wait_for(|spans| has(spans, TRACE, "checkpoint.commit")).await?;
    let batch = named(&spans, TRACE, "lane.batch")[0];
    assert_eq!(batch.parent, SENDER);
    assert_eq!(batch.links, [OTHER_TRACE]);
    host.settle().await?;
    // An emitted event stays in the trace of its own cause.
    let page = host.get("/v1/streams/events?after=oldest").await?;
    for event in page["events"].as_array().context("events")? {
        let own = event["traceparent"].as_str().unwrap_or_default();
        let expected = event["agg_id"].as_str().context("an agg_id")?;
        assert!(own.contains(expected), "{event}");
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_s_failure_shows_in_its_span_with_its_blame() -> Result<()> {
    let (dir, collector) = (TempDir::new()?, Collector::start().await?);
    let host = start(&dir, &collector.url, &[]).await?;
    deploy(&host, "trap_on_type").await?;
    publish(&host, &event("bad", "poison"), Some(&traceparent(TRACE, "01"))).await?;
    let spans = collector.wait_for(|spans| has(spans, TRACE, "guest.handle")).await?;
    let failed = named(&spans, TRACE, "guest.handle")[0];
    assert!(failed.failed, "{failed:?}");
    assert_eq!(failed.fields["error.kind"], "trap");
    assert_eq!(failed.fields["error.blame"], "guest");
    Ok(())
}

// Waiting for the host's end holds a thread, and the collector needs one.
#[tokio::test(flavor = "multi_thread")]
async fn spans_that_are_recorded_at_a_drain_still_arrive() -> Result<()> {
    let (dir, collector) = (TempDir::new()?, Collector::start().await?);
    let mut host = start(&dir, &collector.url, &[]).await?;
    publish(&host, &event("last", "added"), Some(&traceparent(TRACE, "01"))).await?;
    assert!(host.terminate()?, "a drain ends with success");
    assert!(has(&collector.spans(), TRACE, "publish"), "{:?}", collector.spans());
    Ok(())
}

#[tokio::test]
async fn a_dead_collector_costs_its_spans_and_nothing_else() -> Result<()> {
    let (dir, nobody, begun) = (TempDir::new()?, Port::hold(), Instant::now());
    let mut host = start(&dir, &format!("http://127.0.0.1:{}", nobody.number()), &[]).await?;
    deploy(&host, "counter").await?;
    let dropped = "millrace_spans_dropped_total{reason=\"export_failed\"}";
    let mut lost = 0.0;
    // Two exports at least fail.
    for round in 0..2 {
        for n in 0..25 {
            let event = event(&format!("{round}-{n}"), "added");
            publish(&host, &event, Some(&traceparent(TRACE, "01"))).await?;
        }
        host.settle().await?;
        let before = lost;
        let waited = Instant::now();
        while lost <= before {
            assert!(waited.elapsed().as_secs() < 60, "no export has failed");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let text = metrics(&host).await?;
            lost = text.lines().find_map(|line| series(line, dropped)).unwrap_or(0.0);
        }
    }
    assert!(host.terminate()?, "a drain ends with success");
    let said = host.said();
    let told: Vec<_> = said.lines().filter(|line| line.contains("export_failed")).collect();
    let minutes = usize::try_from(begun.elapsed().as_secs() / 60)?;
    assert!((1..=1 + minutes).contains(&told.len()), "once a minute at most: {told:?}");
    assert!(told[0].contains("\"error.blame\":\"host\""), "{}", told[0]);
    Ok(())
}

#[tokio::test]
async fn without_a_collector_the_request_s_trace_still_travels_with_its_events() -> Result<()> {
    let dir = TempDir::new()?;
    let host = HostProcess::start(&dir.path().join("data")).await?;
    publish(&host, &event("plain", "added"), None).await?;
    publish(&host, &event("traced", "added"), Some(&traceparent(TRACE, "01"))).await?;
    publish(&host, &event("unsampled", "added"), Some(&traceparent(TRACE, "00"))).await?;
    let mut own = event("own", "added");
    own["traceparent"] = traceparent(OTHER_TRACE, "01").into();
    publish(&host, &own, Some(&traceparent(TRACE, "01"))).await?;
    let page = host.get("/v1/streams/events?after=oldest").await?;
    let found: Vec<&str> = page["events"]
        .as_array()
        .context("events")?
        .iter()
        .map(|e| e["traceparent"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(found, ["", &traceparent(TRACE, "01"), "", &traceparent(OTHER_TRACE, "01")]);
    assert!(!metrics(&host).await?.contains("millrace_spans"), "there is no exporter");
    Ok(())
}
