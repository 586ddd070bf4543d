//! Foreign events over gRPC, from a server of another make: saved together, beside one save for each event.
//!
//! The server is in Python and on this machine, so it is what bounds the rate of reading; what is compared is measured in
//! turn against the same one.

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
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::peer::Peer;
use serde_json::json;

use super::runtime;

const EVENTS: u64 = 20_000;
/// What is read with a put for each.
const NAIVE_EVENTS: u64 = 2_000;
const SAVED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    let mut peer = Peer::start();
    let data = r#"{"conversation":"c%d","conversation_group":"g","recording":"r","status":"started"}"#;
    peer.publish("response", data, usize::try_from(EVENTS)?);
    let figure = |name| Figure { name, unit: "events/s", floor: None, better: Better::Higher };
    let together = suite.measure(figure("gRPC events, checkpoints together"), |round| {
        runtime()?.block_on(together(&peer, round))
    })?;
    let single =
        suite.measure(figure("gRPC events, one put for each"), |_| runtime()?.block_on(single(&peer)))?;
    let times =
        Figure { name: "together against one for each", unit: "times", floor: None, better: Better::Higher };
    suite.record(times, &[together / single])?;
    Ok(())
}

fn client(peer: &Peer) -> Result<MemoryClient> {
    let options =
        GrpcOptions { endpoint: peer.endpoint(), client_id: "bench".into(), ..GrpcOptions::default() };
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
}

async fn together(peer: &Peer, round: usize) -> Result<f64> {
    let (client, counted) = (Arc::new(client(peer)?), Arc::new(AtomicU64::new(0)));
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
    Ok(EVENTS as f64 / begun.elapsed().as_secs_f64())
}

/// What the protocol's first runtime does: a put is awaited before the next event is looked at.
async fn single(peer: &Peer) -> Result<f64> {
    let client = client(peer)?;
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
