//! A host that is fed by a server of another make.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use millrace::backends::grpc::{Credential, GrpcOptions, MemoryClient};
use millrace::backends::memory::MemoryLog;
use millrace::clock::{Clock, ManualClock, SystemClock};
use millrace::event::{Micros, Position, TenantId};
use millrace::processors::source::{
    BegunRebuilds, CheckpointClient as _, EventEnvelope, Handled, Importer, ImporterParts, Progress,
    Rebuilds, Reducer, Runtime, RuntimeConfig, RuntimeParts, Scope, SourceError, SourceLetters,
};
use millrace::streams::{EventLog as _, PageLimit};
use millrace_tests::peer::Peer;
use millrace_tests::until;
use serde_json::json;

use super::scene::{Scene, numbers};

/// A client of the peer.
fn client(peer: &Peer) -> MemoryClient {
    client_by(peer, Arc::new(SystemClock))
}

/// The same by another clock.
fn client_by(peer: &Peer, clock: Arc<dyn Clock>) -> MemoryClient {
    let options = GrpcOptions {
        endpoint: peer.endpoint(),
        client_id: "millrace".into(),
        api_key: Some(Credential::Text("key".into())),
        ..GrpcOptions::default()
    };
    MemoryClient::new(options, clock).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_events_become_ours() {
    let mut scene = Scene::start().await;
    scene.peer.publish("conversation", r#"{"id":"c1","title":"t"}"#, 1);
    scene.peer.publish("entry", r#"{"id":"e1","conversationId":"c1"}"#, 1);
    scene.peer.publish("membership", r#"{"conversation_group":"g1","user":"u"}"#, 1);
    let events = scene.events(3).await;
    let seen: Vec<_> =
        events.iter().map(|event| (event.event_type, event.aggregate, event.agg_id, event.kind)).collect();
    assert_eq!(
        seen,
        [
            ("conversation.created", "conversation", "c1", "conversation"),
            ("entry.created", "entry", "e1", "entry"),
            ("membership.created", "membership", "g1", "membership"),
        ]
    );
    let status = scene.until("three are counted", |status| status["events"] == 3).await;
    assert_eq!((&status["state"], &status["letters"]), (&json!("live"), &json!(0)));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r47_cursors_of_the_live_tail_are_decimal_and_become_versions() {
    let mut scene = Scene::with(|settings| settings.after_cursor = String::new()).await;
    scene.until_live().await;
    assert_eq!(scene.peer.subscriptions()[0]["after_cursor"], json!(null));
    scene.peer.publish("response", r#"{"conversation":"c"}"#, 5);
    let events = scene.events(5).await;
    for (event, number) in events.iter().zip(1_u64..) {
        assert_eq!((event.cursor, event.version), (number.to_string().as_str(), number));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r48_replay_after_a_cursor_has_the_full_events() {
    let mut peer = Peer::start();
    for (data, summary) in [(r#"{"id":"e","text":"old"}"#, "1"), (r#"{"id":"e","text":"new"}"#, "2")] {
        peer.ask(&json!({
            "do": "publish", "kind": "entry", "event": "created", "data": data,
            "summary": format!("{{\"entry\":\"e\",\"number\":{summary}}}"),
        }));
    }
    let scene = Scene::of(peer, |settings| settings.after_cursor = "1".into()).await;
    let events = scene.events(1).await;
    assert_eq!(events.get(0).payload, br#"{"id":"e","text":"new"}"#);
    assert_eq!(events.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r49_replay_honours_the_filters_of_the_settings() {
    let mut peer = Peer::start();
    for (channel, role) in [("history", "USER"), ("context", "USER"), ("history", "AI"), ("context", "AI")] {
        peer.ask(&json!({
            "do": "publish", "kind": "entry", "event": "created", "data": format!("{{\"id\":\"{channel}\"}}"),
            "summary": json!({ "entry": channel, "entry_channel": channel, "entry_role": role }).to_string(),
        }));
    }
    peer.publish("response", r#"{"conversation":"c"}"#, 1);
    let scene = Scene::of(peer, |settings| {
        settings.kinds = vec!["entry".into()];
        settings.entry_channels = vec!["context".into()];
        settings.entry_roles = vec!["ai".into()];
    })
    .await;
    assert_eq!(scene.cursors(1).await, ["4"]);
    scene.until_live().await;
    assert_eq!(scene.cursors(1).await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r50_the_admin_stream_is_asked_with_and_without_a_justification() {
    for (said, sent) in [("", ""), ("audit 7", "audit 7")] {
        let mut scene = Scene::with(|settings| settings.justification = said.into()).await;
        scene.until_live().await;
        let asked = scene.peer.subscriptions().remove(0);
        assert_eq!((&asked["justification"], &asked["scope"]), (&json!(sent), &json!(2)));
        assert_eq!((&asked["detail"], &asked["after_cursor"]), (&json!("full"), &json!("start")));
        assert_eq!(asked["headers"], json!({ "x-client-id": "millrace" }));
        scene.end().await;
    }
    let mut scene = Scene::with(|settings| settings.scope = Scope::User).await;
    scene.until_live().await;
    assert_eq!(scene.peer.subscriptions()[0]["scope"], json!(1));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_settings_say_of_a_stream_is_asked_for() {
    let mut scene = Scene::with(|settings| {
        settings.client_id = "another".into();
        settings.kinds = vec!["entry".into(), "response".into()];
        settings.entry_channels = vec!["history".into(), "context".into()];
        settings.entry_content_types = vec!["history".into(), "history/lc4j".into()];
        settings.entry_roles = vec!["USER".into()];
    })
    .await;
    scene.until_live().await;
    let asked = scene.peer.subscriptions().remove(0);
    assert_eq!(asked["headers"], json!({ "x-client-id": "another" }));
    assert_eq!(asked["kinds"], json!(["entry", "response"]));
    assert_eq!(asked["entry_channels"], json!(["history", "context"]));
    assert_eq!(asked["entry_content_types"], json!(["history", "history/lc4j"]));
    assert_eq!(asked["entry_roles"], json!(["USER"]));
    scene.end().await;
}

/// Nobody is to be made anew here.
#[derive(Debug)]
struct Nobody;

impl Rebuilds for Nobody {
    fn rebuild<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        ready(Ok(())).boxed()
    }
}

/// The wire has no time.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_the_time_at_which_it_was_received() {
    let mut peer = Peer::start();
    let clock = Arc::new(ManualClock::default());
    let client = Arc::new(client_by(&peer, clock.clone()));
    let (log, tenant) = (Arc::new(MemoryLog::default()), TenantId::new("default").unwrap());
    let importer = Importer::new(ImporterParts {
        source: "grpc".into(),
        tenant: tenant.clone(),
        log: log.clone(),
        letters: SourceLetters::default(),
        progress: Progress::default(),
        rebuilds: Vec::new(),
        rebuilder: Arc::new(Nobody),
        begun: BegunRebuilds::default(),
    });
    let runtime = Runtime::start(RuntimeParts {
        events: Some(client.clone()),
        checkpoints: Some(client),
        processor: Some(Box::new(importer)),
        config: RuntimeConfig { after_cursor: Some("start".into()), ..RuntimeConfig::new("millrace") },
        clock: clock.clone(),
        progress: Progress::default(),
    })
    .unwrap();
    let times = [1_700_000_000_000_000, 1_700_000_005_000_001, 1_600_000_000_000_000];
    for (time, count) in times.into_iter().zip(1..) {
        clock.set(Micros(time));
        peer.publish("response", r#"{"conversation":"c"}"#, 1);
        until("it is taken", || runtime.status().events == count).await;
    }
    runtime.shutdown(std::time::Duration::from_secs(60)).await.unwrap();
    let limit = PageLimit { events: 10, bytes: 1 << 20 };
    let page = log.read(&tenant, Position::START, limit).await.unwrap();
    let received: Vec<i64> = page.events.iter().map(|event| event.at.0).collect();
    assert_eq!(received, times);
}

#[tokio::test(flavor = "multi_thread")]
async fn r52_response_events_are_taken_as_they_come() {
    let mut scene = Scene::start().await;
    let data = r#"{"conversation":"c","recording":"r","status":"started"}"#;
    scene.peer.publish("response", data, 1);
    let events = scene.events(1).await;
    assert_eq!((events.get(0).agg_id, events.get(0).payload), ("c", data.as_bytes()));
    scene.end().await;
}

/// In the reference every number becomes a double on its way through a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn rx_number_beyond_2_53_is_exact_in_a_payload() {
    let mut scene = Scene::start().await;
    let data = r#"{ "id": "e", "n": 9007199254740993, "m": 0.10000000000000000001 }"#;
    scene.peer.publish("memory", data, 1);
    assert_eq!(scene.events(1).await.get(0).payload, data.as_bytes());
    scene.end().await;
}

/// Keeps a state as it is.
#[derive(Debug, Default)]
struct Exact {
    state: Vec<u8>,
    loaded: Arc<Mutex<Vec<u8>>>,
}

impl Reducer for Exact {
    fn content_type(&self) -> &str {
        "application/json"
    }

    fn load(&mut self, state: &[u8]) -> Result<(), SourceError> {
        *self.loaded.lock().unwrap() = state.to_vec();
        self.state = state.to_vec();
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        async move { Handled { events: events.len(), failure: None } }.boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        Ok(self.state.clone())
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_number_beyond_2_53_is_exact_in_a_checkpoint() {
    let mut peer = Peer::start();
    peer.publish("response", r#"{"conversation":"c"}"#, 1);
    let state = br#"{"n":9007199254740993}"#;
    let loaded = Arc::new(Mutex::new(Vec::new()));
    for begin in [&state[..], b"null"] {
        let client = Arc::new(client(&peer));
        let processor = Exact { state: begin.to_vec(), loaded: loaded.clone() };
        let runtime = Runtime::start(RuntimeParts {
            events: Some(client.clone()),
            checkpoints: Some(client),
            processor: Some(Box::new(processor)),
            config: RuntimeConfig { after_cursor: Some("start".into()), ..RuntimeConfig::new("millrace") },
            clock: Arc::new(SystemClock),
            progress: Progress::default(),
        })
        .unwrap();
        until("it is live", || runtime.status().state == millrace::processors::source::SourceState::Live)
            .await;
        runtime.shutdown(std::time::Duration::from_secs(60)).await.unwrap();
    }
    assert_eq!(*loaded.lock().unwrap(), state);
    assert_eq!(peer.checkpoint("millrace")["value"]["lastEventCursor"], "1");
}

/// The peer reads what we write, and we read what it writes: null is a value, and a missing one is none.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_go_to_a_server_and_back() {
    let mut peer = Peer::start();
    let client = client(&peer);
    assert_eq!(client.get("millrace").await.unwrap(), None);
    for value in [json!(null), json!({ "a": [1, 2.5, "x", true, null, {}], "b": { "c": -1 } })] {
        let text = millrace::processors::source::JsonText::from(&value);
        let put = client.put("millrace", "application/json", text).await.unwrap();
        assert_eq!((put.value.value(), put.content_type.as_str()), (value.clone(), "application/json"));
        assert_eq!(client.get("millrace").await.unwrap(), Some(put));
        let shown = peer.checkpoint("millrace");
        assert_eq!(shown["value"].to_string().replace(".0", ""), value.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sent_when_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let mut scene = Scene::with(|settings| {
        settings.api_key = Some(millrace::config::SecretText("key".into()));
        settings.bearer_token_file = Some(file.clone());
    })
    .await;
    scene.until_live().await;
    std::fs::write(&file, "second").unwrap();
    scene.peer.ask(&json!({ "do": "end" }));
    scene.until("it came back", |status| status["reconnects"].as_u64() >= Some(1)).await;
    scene.until_live().await;
    let sent: Vec<BTreeMap<String, String>> = scene
        .peer
        .subscriptions()
        .into_iter()
        .map(|asked| serde_json::from_value(asked["headers"].clone()).unwrap())
        .collect();
    assert_eq!((sent[0]["x-api-key"].as_str(), sent[0]["authorization"].as_str()), ("key", "Bearer first"));
    assert_eq!(sent.last().unwrap()["authorization"], "Bearer second", "a file is read again");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_goes_on_where_it_was() {
    let mut scene = Scene::start().await;
    let count = 200;
    scene.peer.publish("response", r#"{"conversation":"c%d"}"#, count / 2);
    scene.cursors(count / 2).await;
    let mut scene = scene.restart().await;
    scene.peer.publish("response", r#"{"conversation":"d%d"}"#, count / 2);
    assert_eq!(scene.cursors(count).await, numbers(count));
    let last = scene.peer.subscriptions().pop().unwrap();
    assert_ne!(last["after_cursor"], "start");
    scene.end().await;
}

/// What was appended and not yet written down comes again, and is known by its id.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_again_are_not_appended_again() {
    let mut scene = Scene::start().await;
    let count = 120;
    scene.peer.publish("response", r#"{"conversation":"c%d"}"#, count);
    scene.cursors(count).await;
    let kept = scene.kept();
    let Scene { peer, host } = scene;
    let host = host.restart_with(|_| std::fs::remove_file(&kept).unwrap()).await.unwrap();
    let mut scene = Scene { peer, host };
    scene.peer.publish("response", r#"{"conversation":"new"}"#, 1);
    assert_eq!(scene.cursors(count + 1).await, numbers(count + 1));
    scene.until("each repeat is counted, and once", |status| status["repeated"] == count).await;
    scene.end().await;
}

/// With its checkpoint at the server, any host goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_at_the_server_is_enough() {
    let mut scene =
        Scene::with(|settings| settings.checkpoints = millrace::config::SourceCheckpoints::Remote).await;
    scene.peer.publish("response", r#"{"conversation":"c"}"#, 10);
    scene.cursors(10).await;
    let mut scene = scene.restart().await;
    scene.peer.publish("response", r#"{"conversation":"c"}"#, 1);
    assert_eq!(scene.cursors(11).await, numbers(11));
    assert!(!scene.kept().exists());
    assert_eq!(scene.peer.checkpoint("millrace")["content_type"], "application/vnd.millrace.source+json");
    scene.end().await;
}
