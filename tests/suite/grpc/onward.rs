//! Our own client at our own server: a place that has no event is one to go on from.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::clock::SystemClock;
use millrace::processors::source::{
    EventEnvelope, Handled, Progress, Reducer, Runtime, RuntimeConfig, RuntimeParts, SourceError,
};
use millrace_tests::until;
use serde_json::{Value, json};

use super::scene::Scene;

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// Notes what comes.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Vec<Value>>>);

impl Notes {
    fn seen(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }
}

impl Reducer for Notes {
    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn load(&mut self, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        async move {
            let payloads = events.iter().map(|event| serde_json::from_slice::<Value>(&event.data).unwrap());
            self.0.lock().unwrap().extend(payloads);
            Handled { events: events.len(), failure: None }
        }
        .boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        Ok(b"{}".to_vec())
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }
}

fn start(scene: &Scene, notes: &Notes) -> Runtime {
    let client = Arc::new(scene.client("me", None));
    let config = RuntimeConfig {
        kinds: vec!["mine".into()],
        checkpoint_interval: Duration::from_millis(20),
        ..RuntimeConfig::new("me")
    };
    let parts = RuntimeParts {
        events: Some(client.clone()),
        checkpoints: Some(client),
        processor: Some(Box::new(notes.clone())),
        config,
        clock: Arc::new(SystemClock),
        progress: Progress::default(),
    };
    Runtime::start(parts).unwrap()
}

/// The settings say "now": without a place, each start would be at another now.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_has_seen_nothing_misses_nothing_while_it_is_away() {
    let scene = Scene::open().await;
    scene.publish("other", "made", &[json!(1), json!(2)]).await;
    let notes = Notes::default();
    let runtime = start(&scene, &notes);
    until("it has a place", || runtime.status().cursor.is_some()).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(runtime.status().events, 0);
    scene.publish("mine", "made", &[json!(3)]).await;
    let runtime = start(&scene, &notes);
    until("what came meanwhile is there", || !notes.seen().is_empty()).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(notes.seen(), [json!(3)]);
}

/// What others publish moves an idle source on, so that its cursor is not one that is forgotten some day.
#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_others_move_an_idle_source_on() {
    let scene = Scene::with(|config| config.gateway.sse_heartbeat_ms = 50).await;
    let notes = Notes::default();
    let runtime = start(&scene, &notes);
    until("it has a place", || runtime.status().cursor.is_some()).await;
    let first = runtime.status().cursor;
    scene.publish("other", "made", &[json!(1)]).await;
    until("it has another one", || runtime.status().cursor != first).await;
    let last = runtime.status().cursor.unwrap();
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(notes.seen().is_empty());
    let kept = scene.http(None).get("/v1/admin/checkpoints/me").await.unwrap().ok().unwrap();
    assert_eq!(kept["value"]["lastEventCursor"], last);
}
