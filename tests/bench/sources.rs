//! Foreign events over gRPC: saved together, beside one save for each event. The server is one of another make, in Python
//! and on this machine, so that it is what bounds the rate of reading, or a host; what is compared is measured in turn
//! against the same one.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::grpc::{GrpcOptions, MemoryClient};
use millrace::clock::SystemClock;
use millrace::processors::source::{
    CheckpointClient as _, EventClient as _, EventEnvelope, Handled, JsonText, Progress, Reducer, Runtime,
    RuntimeConfig, RuntimeParts, SourceError, SubscribeRequest,
};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::embedded::Embedded;
use millrace_tests::peer::Peer;
use serde_json::json;

use super::runtime;

const EVENTS: u64 = 20_000;
/// What is read with a put for each.
const NAIVE_EVENTS: u64 = 2_000;
const UPLOAD_EVENTS: u64 = 1_000;
const SAVED_WITHIN: Duration = Duration::from_secs(60);

/// Of each event; what is written as `%d` is its number.
const DATA: &str = r#"{"conversation":"c%d","conversation_group":"g","recording":"r","status":"started"}"#;

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    let mut peer = Peer::without_file();
    peer.publish("response", DATA, usize::try_from(EVENTS)?);
    compare(suite, "a server in Python", &peer.endpoint())
}

/// The same with a host of ours for a server.
pub(crate) fn from_a_host(suite: &mut Suite) -> Result<()> {
    // It serves on threads of this runtime, while others are made for what is measured.
    let serving = runtime()?;
    let host = serving.block_on(async {
        let host =
            Embedded::start_with(|config| config.grpc.bind = Some(([127, 0, 0, 1], 0).into())).await?;
        let mut lines = String::new();
        for number in 1..=EVENTS {
            let payload = DATA.replace("%d", &number.to_string());
            writeln!(
                lines,
                r#"{{"aggregate":"response","agg_id":"c{number}","version":1,"type":"response.created","payload":{payload}}}"#
            )?;
            if number % UPLOAD_EVENTS == 0 {
                host.client.publish(std::mem::take(&mut lines)).await?;
            }
        }
        anyhow::Ok(host)
    })?;
    let addr = host.host().grpc_addr().context("it serves gRPC")?;
    compare(suite, "a host", &format!("http://{addr}"))?;
    drop(serving.block_on(host.stop()));
    Ok(())
}

fn compare(suite: &mut Suite, server: &str, endpoint: &str) -> Result<()> {
    let (mut with_others, mut alone, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (rate, put) = runtime()?.block_on(together(endpoint, round))?;
        with_others.push(rate);
        puts.push(EVENTS as f64 / put.max(1) as f64);
        alone.push(runtime()?.block_on(single(endpoint))?);
        eprintln!(
            "  {server}, round {}: {rate:.0} events/s, {put} puts; {:.0} with one for each",
            round + 1,
            alone[round]
        );
    }
    let times: Vec<_> = with_others.iter().zip(&alone).map(|(together, single)| together / single).collect();
    let from = format!("gRPC events from {server} to a processor that only counts");
    for (name, unit, values) in [
        (format!("{from}, checkpoints together"), "events/s", &with_others),
        (format!("{from}, one put for each"), "events/s", &alone),
        (format!("together against one for each, {server}"), "times", &times),
        (format!("events for each put, together, {server}"), "events", &puts),
    ] {
        suite.record(Figure { name: &name, unit, floor: None, better: Better::Higher }, values)?;
    }
    Ok(())
}

fn client(endpoint: &str) -> Result<MemoryClient> {
    let options =
        GrpcOptions { endpoint: endpoint.into(), client_id: "bench".into(), ..GrpcOptions::default() };
    Ok(MemoryClient::new(options, Arc::new(SystemClock))?)
}

/// Counts events, and has a state that changes with each.
#[derive(Debug)]
struct Counting(Arc<AtomicU64>);

impl Reducer for Counting {
    fn content_type(&self) -> &str {
        "application/json"
    }

    fn load(&mut self, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        self.0.fetch_add(events.len() as u64, Ordering::Relaxed);
        async move { Handled { events: events.len(), failure: None } }.boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        Ok(json!({ "counted": self.0.load(Ordering::Relaxed) }).to_string().into_bytes())
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }
}

/// Events each second, and the puts that it took.
async fn together(endpoint: &str, round: usize) -> Result<(f64, u64)> {
    let (client, counted) = (Arc::new(client(endpoint)?), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let runtime = Runtime::start(RuntimeParts {
        events: Some(client.clone()),
        checkpoints: Some(client),
        processor: Some(Box::new(Counting(counted.clone()))),
        // Each round begins anew.
        config: RuntimeConfig {
            after_cursor: Some("start".into()),
            ..RuntimeConfig::new(format!("bench-{}-{round}", std::process::id()))
        },
        clock: Arc::new(SystemClock),
        progress: Progress::default(),
    })?;
    while counted.load(Ordering::Relaxed) < EVENTS {
        ensure!(begun.elapsed() < SAVED_WITHIN, "not all events came: {:?}", runtime.status());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    runtime.shutdown(SAVED_WITHIN).await?;
    let took = begun.elapsed();
    Ok((EVENTS as f64 / took.as_secs_f64(), runtime.status().puts))
}

/// What the protocol's first runtime does: a put is awaited before the next event is looked at.
async fn single(endpoint: &str) -> Result<f64> {
    let client = client(endpoint)?;
    let request = SubscribeRequest { after_cursor: Some("start".into()), ..SubscribeRequest::default() };
    let mut stream = client.subscribe(request).await?;
    let begun = Instant::now();
    let mut handled = 0;
    while handled < NAIVE_EVENTS {
        let envelope = stream.recv().await?.context("the stream goes on")?;
        let Some(cursor) = envelope.cursor else { continue };
        handled += 1;
        let value = JsonText::from(&json!({ "counted": handled, "lastEventCursor": cursor }));
        client.put("bench", "application/json", value).await?;
    }
    Ok(NAIVE_EVENTS as f64 / begun.elapsed().as_secs_f64())
}
