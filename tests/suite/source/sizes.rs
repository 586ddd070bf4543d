//! Checkpoints that are longer than a server takes: they end a run by name, and are not put for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::grpc::{GrpcOptions, MemoryClient};
use millrace::clock::SystemClock;
use millrace::processors::source::{
    CheckpointClient as _, EventEnvelope, Handled, JsonText, Progress, Reducer, Runtime, RuntimeConfig,
    RuntimeParts, SourceError, SourceFault,
};
use millrace_tests::embedded::Embedded;
use millrace_tests::peer::Peer;
use serde_json::json;

fn client(endpoint: String) -> MemoryClient {
    let options = GrpcOptions { endpoint, client_id: "millrace".into(), ..GrpcOptions::default() };
    MemoryClient::new(options, Arc::new(SystemClock)).unwrap()
}

/// Has the same state whatever comes.
#[derive(Debug)]
struct Fixed(Vec<u8>);

impl Reducer for Fixed {
    fn content_type(&self) -> &str {
        "application/json"
    }

    fn load(&mut self, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        async move { Handled { events: events.len(), failure: None } }.boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        Ok(self.0.clone())
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }
}

/// A number that has one letter as a text has eleven bytes as a message.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_too_long_as_a_message_ends_the_run() {
    let mut peer = Peer::start();
    peer.publish("response", r#"{"conversation":"c"}"#, 1);
    let client = Arc::new(client(peer.endpoint()));
    let state = json!({ "numbers": vec![1; 500_000] }).to_string().into_bytes();
    let runtime = Runtime::start(RuntimeParts {
        events: Some(client.clone()),
        checkpoints: Some(client),
        processor: Some(Box::new(Fixed(state))),
        config: RuntimeConfig {
            after_cursor: Some("start".into()),
            reconnect_min: Duration::from_millis(5),
            reconnect_max: Duration::from_millis(50),
            ..RuntimeConfig::new("millrace")
        },
        clock: Arc::new(SystemClock),
        progress: Progress::default(),
    })
    .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), runtime.wait()).await;
    let ended = ended.expect("it ends within a minute").unwrap_err();
    assert_eq!((ended.fault, ended.wait()), (SourceFault::TooLarge, None), "{ended}");
    assert!(ended.to_string().contains("source_put_bytes_max"), "{ended}");
    assert_eq!(peer.puts(), 0);
}

/// What a host refuses for its length it refuses without a time to come back, and by the name of the bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_a_host_refuses_for_its_length_is_not_put_again() {
    let host = Embedded::start_with(|config| config.grpc.bind = Some(([127, 0, 0, 1], 0).into()));
    let host = host.await.unwrap();
    let client = client(format!("http://{}", host.host().grpc_addr().unwrap()));
    let value = JsonText::from(&json!({ "text": "x".repeat(7 << 19) }));
    let refused = client.put("millrace", "application/json", value).await.unwrap_err();
    assert_eq!((refused.fault, refused.wait()), (SourceFault::TooLarge, None), "{refused}");
    assert!(refused.to_string().contains("client_checkpoint_bytes_max"), "{refused}");
    drop(host.stop().await);
}
