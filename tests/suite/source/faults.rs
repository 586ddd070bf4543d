//! What servers do wrong, and what a host makes of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace::config::{GrpcSourceConfig, SecretText, SourceCheckpoints, Span};
use millrace::processors::source::CursorPolicy;
use millrace_tests::peer::Peer;
use millrace_tests::until;
use serde_json::{Value, json};

use super::scene::{Scene, numbers};

const DATA: &str = r#"{"conversation":"c%d"}"#;

/// A source that stops is tried again after ten of its longest waits: longer than a test waits for anything. So whatever is
/// wrongly taken for what cannot pass is seen.
fn not_tried_again(settings: &mut GrpcSourceConfig) {
    settings.reconnect_max = Span(Duration::from_secs(10));
}

/// In the reference each restart of a server ends the processor.
#[tokio::test(flavor = "multi_thread")]
async fn rx_server_kill_reconnects() {
    let mut scene = Scene::with(not_tried_again).await;
    scene.peer.publish("response", DATA, 10);
    scene.cursors(10).await;
    scene.peer.kill();
    scene.until("it is missed", |status| status["state"] == "waiting").await;
    scene.peer.start_again();
    scene.peer.publish("response", DATA, 10);
    assert_eq!(scene.cursors(20).await, numbers(20));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_graceful_stop_reconnects() {
    let mut scene = Scene::with(not_tried_again).await;
    scene.peer.publish("response", DATA, 10);
    scene.cursors(10).await;
    scene.peer.stop();
    scene.until("it is missed", |status| status["state"] == "waiting").await;
    scene.peer.start_again();
    scene.peer.publish("response", DATA, 10);
    assert_eq!(scene.cursors(20).await, numbers(20));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_starts_without_its_server() {
    let mut peer = Peer::start();
    peer.publish("response", DATA, 3);
    peer.kill();
    let mut scene = Scene::of(peer, |_| {}).await;
    assert_eq!(scene.host.client.get("/readyz").await.unwrap().status, 200);
    scene.until("it is missed", |status| status["state"] == "waiting").await;
    scene.peer.start_again();
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.end().await;
}

/// How far it is stands in its checkpoint, so it is told also while the server is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_without_its_server_says_how_far_it_is() {
    let mut scene = Scene::start().await;
    scene.peer.publish("response", DATA, 3);
    scene.cursors(3).await;
    scene.peer.kill();
    let scene = scene.restart().await;
    let status = scene.until("it is missed", |status| status["state"] == "waiting").await;
    assert_eq!((&status["cursor"], &status["events"]), (&json!("3"), &json!(0)));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_break_are_opened_again() {
    let mut scene = Scene::with(not_tried_again).await;
    for (round, code) in ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED", "CANCELLED"]
        .into_iter()
        .enumerate()
    {
        scene.peer.publish("response", DATA, 1);
        scene.cursors(round + 1).await;
        scene.peer.ask(&json!({ "do": "abort", "code": code }));
    }
    scene.peer.ask(&json!({ "do": "end" }));
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(7).await, numbers(7));
    scene.end().await;
}

/// A host that has taken three events, and whose server has forgotten them.
async fn stale(policy: CursorPolicy) -> Scene {
    let mut scene = Scene::with(|settings| {
        settings.on_cursor_lost = policy;
        not_tried_again(settings);
    })
    .await;
    scene.peer.publish("response", DATA, 3);
    scene.cursors(3).await;
    scene.until("they are saved", |status| status["puts"].as_u64() > Some(0)).await;
    let Scene { mut peer, host } = scene;
    let host = host
        .restart_with(|_| {
            peer.publish("response", DATA, 4);
            peer.ask(&json!({ "do": "trim", "upto": 5 }));
        })
        .await
        .unwrap();
    Scene { peer, host }
}

/// The reference asks with the dead cursor for ever, until the server's limits end it.
#[tokio::test(flavor = "multi_thread")]
async fn r51_rx_stale_cursor_fails_and_says_what_to_do() {
    let mut scene = stale(CursorPolicy::Fail).await;
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "cursor_lost");
    let said = status["last_error"]["message"].as_str().unwrap();
    assert!(said.contains("on_cursor_lost"), "{said}");
    assert_eq!(scene.host.client.get("/readyz").await.unwrap().status, 200, "the host goes on without it");
    assert!(scene.peer.subscriptions().len() <= 4, "it does not ask for ever");
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_stale_cursor_oldest_takes_what_there_is() {
    let scene = stale(CursorPolicy::Oldest).await;
    assert_eq!(scene.cursors(5).await, ["1", "2", "3", "6", "7"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_stale_cursor_tail_goes_on_with_what_comes() {
    let mut scene = stale(CursorPolicy::Tail).await;
    scene.until_live().await;
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(4).await, ["1", "2", "3", "8"]);
    scene.end().await;
}

/// A server that is set up anew from what its makers have shows it all again: each event counts once in the tables that are
/// made anew, whether it was here before or not.
#[tokio::test(flavor = "multi_thread")]
async fn rx_stale_cursor_rebuild_counts_each_event_of_the_server_once() {
    let mut scene = Scene::with(|settings| {
        settings.on_cursor_lost = CursorPolicy::Rebuild;
        settings.rebuilds = vec!["counter".into()];
        not_tried_again(settings);
    })
    .await;
    scene.host.client.deploy("counter").await.unwrap();
    scene.peer.publish("response", DATA, 5);
    scene.cursors(5).await;
    scene.host.client.settle().await.unwrap();
    scene.peer.start_anew();
    until("it begins at the oldest", || {
        scene.peer.subscriptions().iter().any(|asked| asked["after_cursor"] == "start")
    })
    .await;
    // The first five are those of before.
    for count in [5, 3, 2] {
        scene.peer.publish("response", DATA, count);
    }
    let path = "/v1/plugins/counter/rebuild";
    let answer =
        scene.host.client.wait_for(path, |answer| answer.json()["stage"] == "flipped").await.unwrap();
    assert_eq!((&answer.json()["number"], &answer.json()["began_by"]), (&json!(1), &json!("source:grpc")));
    assert_eq!(scene.cursors(10).await, numbers(10));
    scene.until("five came again", |status| status["repeated"] == 5).await;
    scene.host.client.settle().await.unwrap();
    let rows = scene.host.client.rows("counters", "limit=100").await.unwrap();
    let counted: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (row["key"].as_str().unwrap(), row["values"]["events"].as_u64().unwrap()))
        .collect();
    assert_eq!(counted, BTreeMap::from([("c0", 3), ("c1", 3), ("c2", 2), ("c3", 1), ("c4", 1)]));
    scene.end().await;
}

/// The same cursors are other events then.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_server_that_was_set_up_anew_are_new() {
    let mut scene = Scene::with(|settings| settings.on_cursor_lost = CursorPolicy::Oldest).await;
    scene.peer.publish("response", r#"{"conversation":"old%d"}"#, 3);
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.peer.start_anew();
    until("it begins at the oldest", || {
        scene.peer.subscriptions().iter().any(|asked| asked["after_cursor"] == "start")
    })
    .await;
    scene.peer.publish("response", r#"{"conversation":"new%d"}"#, 3);
    assert_eq!(scene.cursors(6).await, [numbers(3), numbers(3)].concat());
    scene.end().await;
}

/// The cursor that a server names is that of events which were not for us: of those it showed, ten is the last.
#[tokio::test(flavor = "multi_thread")]
async fn rx_evicted_resumes_at_its_cursor() {
    let mut scene = Scene::with(|settings| settings.kinds = vec!["response".into()]).await;
    scene.peer.publish("response", DATA, 10);
    scene.cursors(10).await;
    scene.until_live().await;
    let others = scene.peer.publish("membership", DATA, 5);
    assert_eq!(others.last().unwrap(), "15");
    scene.peer.ask(&json!({ "do": "evict", "reason": "too many connections", "cursor": "15" }));
    scene.peer.publish("response", DATA, 1);
    let cursors = [numbers(10), vec!["16".to_owned()]].concat();
    assert_eq!(scene.cursors(11).await, cursors);
    assert_eq!(scene.peer.subscriptions()[1]["after_cursor"], "15");
    scene.end().await;
}

/// One put for each event ended the reference after 98 of 305 events. Here many bytes press for a put at the usual interval,
/// and after three the server takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn rx_rate_limit_storm_loses_nothing() {
    const TAKEN: usize = 3;
    const ROUNDS: usize = 20;
    const EVENTS: usize = 10;
    const RETRY: Duration = Duration::from_millis(100);
    let usual = GrpcSourceConfig::default().checkpoint_interval;
    assert_eq!(usual, Span(Duration::from_secs(5)));
    let mut peer = Peer::start();
    peer.publish("response", DATA, 305);
    peer.mode("limits", true);
    let tokens =
        |tokens: usize| json!({ "do": "tokens", "method": "put", "tokens": tokens, "retry_ms": 100 });
    peer.ask(&tokens(TAKEN));
    let begun = Instant::now();
    let mut scene = Scene::of(peer, |settings| {
        settings.checkpoints = SourceCheckpoints::Remote;
        settings.checkpoint_interval = usual;
    })
    .await;
    let (mut count, mut rounds) = (scene.cursors(305).await.len(), 0);
    // Each round alone is more than a checkpoint waits for.
    let large = json!({ "conversation": "c", "text": "x".repeat(30_000) }).to_string();
    while rounds < ROUNDS || scene.peer.refused() < 3 {
        assert!(rounds < 50 * ROUNDS, "nothing is refused");
        scene.peer.publish("response", &large, EVENTS);
        (count, rounds) = (count + EVENTS, rounds + 1);
        scene.until("events come while puts are refused", |status| status["events"] == count).await;
    }
    scene.until("it is told", |status| status["last_error"]["code"] == "source_exhausted").await;
    let refused = u32::try_from(scene.peer.refused()).unwrap();
    assert!((refused - 1) * RETRY <= begun.elapsed(), "{refused} were refused: some came before their time");

    scene.peer.ask(&tokens(1_000));
    let last = count.to_string();
    until("the last place is saved", || {
        scene.peer.checkpoint("millrace")["value"]["lastEventCursor"] == last.as_str()
    })
    .await;
    // What could not be put went along with the next; one may have been under way with what was the last then.
    let taken = scene.peer.puts() - scene.peer.refused();
    assert!((TAKEN + 1..=TAKEN + 2).contains(&taken), "{taken} puts for {rounds} rounds");
    assert_eq!(scene.cursors(count).await, numbers(count));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_exhausted_is_waited_for_as_it_says() {
    let mut peer = Peer::start();
    peer.publish("response", DATA, 3);
    let exhausted = |method: &str| json!({ "do": "refuse", "method": method, "code": "RESOURCE_EXHAUSTED", "retry_ms": 300, "times": 2 });
    peer.ask(&exhausted("subscribe"));
    peer.ask(&exhausted("put"));
    let begun = Instant::now();
    let mut scene = Scene::of(peer, |settings| settings.checkpoints = SourceCheckpoints::Remote).await;
    assert_eq!(scene.cursors(3).await, numbers(3));
    until("it is saved", || scene.peer.checkpoint("millrace")["value"]["lastEventCursor"] == "3").await;
    assert!(begun.elapsed() >= Duration::from_millis(4 * 300), "each of the four was waited for");
    scene.end().await;
}

/// Of live entries a server may send the short form, where the full one was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn rx_summary_shaped_live_entries_are_taken() {
    let mut scene = Scene::start().await;
    scene.peer.mode("summary_live", true);
    scene.until_live().await;
    scene.peer.ask(&json!({ "do": "end" }));
    scene.until("it came back", |status| status["reconnects"].as_u64() > Some(0)).await;
    scene.until_live().await;
    let summary = r#"{"conversation":"c","entry":"e","entry_channel":"history"}"#;
    scene.peer.ask(&json!({
        "do": "publish", "kind": "entry", "event": "created", "data": r#"{"id":"e","content":[]}"#,
        "summary": summary,
    }));
    let events = scene.events(1).await;
    assert_eq!((events.get(0).agg_id, events.get(0).payload), ("e", summary.as_bytes()));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_duplicates_at_the_switch_are_one() {
    let mut peer = Peer::start();
    peer.mode("duplicate_at_switch", true);
    peer.publish("response", DATA, 10);
    let mut scene = Scene::of(peer, |_| {}).await;
    scene.until("repeats came", |status| status["repeated"].as_u64() >= Some(3)).await;
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(11).await, numbers(11));
    scene.end().await;
}

/// A server may miss to publish an event, or publish it behind a newer one: who never looks back never sees it.
#[tokio::test(flavor = "multi_thread")]
async fn late_event_behind_a_newer_cursor_is_found() {
    let mut scene = Scene::with(|settings| settings.recheck = Span(Duration::from_millis(300))).await;
    scene.peer.publish("response", DATA, 2);
    scene.cursors(2).await;
    scene.until_live().await;
    scene.peer.ask(&json!({
        "do": "publish", "kind": "response", "event": "created", "data": DATA, "silent": true,
    }));
    scene.peer.publish("response", DATA, 1);
    let mut cursors = scene.cursors(4).await;
    cursors.sort();
    assert_eq!(cursors, numbers(4));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_pubsub_recovery_has_missing_events_looked_for_at_once() {
    let mut scene = Scene::start().await;
    scene.peer.publish("response", DATA, 2);
    scene.cursors(2).await;
    scene.until_live().await;
    scene.peer.ask(&json!({
        "do": "publish", "kind": "response", "event": "created", "data": DATA, "silent": true,
    }));
    scene.peer.ask(&json!({ "do": "invalidate", "reason": "pubsub recovery" }));
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.end().await;
}

/// A server that stops answering keeps its connections: only silence tells. Nothing is heard of it until it answers again.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connection_is_noticed() {
    let mut scene = Scene::with(|settings| settings.idle_max = Span(Duration::from_millis(300))).await;
    scene.peer.publish("response", DATA, 1);
    scene.cursors(1).await;
    scene.peer.pause();
    let before = scene.status().await["reconnects"].as_u64().unwrap();
    // The first of them may have been opened before the server stood still.
    let heard = AtomicBool::new(false);
    scene
        .until("silence is noticed again and again", |status| {
            let reconnects = status["reconnects"].as_u64().unwrap();
            let hears = status["state"] == "live" || status["state"] == "replay";
            heard.fetch_or(reconnects >= before + 2 && hears, Ordering::SeqCst);
            reconnects >= before + 4
        })
        .await;
    assert!(!heard.into_inner(), "a server that stands still says nothing");
    scene.peer.resume();
    scene.until_live().await;
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(2).await, numbers(2));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_an_outbox_gives_what_comes() {
    let mut peer = Peer::start();
    peer.mode("no_outbox", true);
    let mut scene = Scene::of(peer, |settings| settings.after_cursor = String::new()).await;
    scene.until_live().await;
    scene.peer.publish("response", DATA, 3);
    assert_eq!(scene.cursors(3).await, ["", "", ""]);
    let versions: Vec<u64> = scene.events(3).await.iter().map(|event| event.version).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    scene.peer.ask(&json!({ "do": "end" }));
    scene.until("it came back", |status| status["reconnects"].as_u64() > Some(0)).await;
    assert_eq!(scene.peer.subscriptions().pop().unwrap()["after_cursor"], json!(null));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_and_the_host_goes_on() {
    let peer = Peer::with_arguments(&["--keys", r#"{"right":"millrace"}"#]);
    let scene = Scene::of(peer, |settings| settings.api_key = Some(SecretText("wrong".into()))).await;
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "source_denied");
    assert!(status["last_error"]["message"].as_str().unwrap().contains("PERMISSION_DENIED"), "{status}");
    assert!(!status.to_string().contains("wrong"), "secrets are not shown");
    assert_eq!(scene.host.client.get("/readyz").await.unwrap().status, 200);
    scene.end().await;
}

/// A token in a file is made new there before it runs out. Whoever has no other to try, or is refused again, is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_on_a_stream_is_read_again_from_its_file() {
    let ends = json!({ "do": "abort", "code": "UNAUTHENTICATED" });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let mut scene = Scene::with(|settings| {
        settings.bearer_token_file = Some(file.clone());
        not_tried_again(settings);
    })
    .await;
    scene.peer.publish("response", DATA, 1);
    scene.cursors(1).await;
    scene.until_live().await;
    std::fs::write(&file, "second").unwrap();
    scene.peer.ask(&ends);
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(2).await, numbers(2));
    assert_eq!(scene.peer.subscriptions().pop().unwrap()["headers"]["authorization"], "Bearer second");
    scene.until_live().await;
    scene.peer.ask(&json!({ "do": "refuse", "method": "subscribe", "code": "UNAUTHENTICATED" }));
    scene.peer.ask(&json!({ "do": "end" }));
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "source_denied");
    scene.end().await;

    let mut scene = Scene::with(|settings| {
        settings.bearer_token = Some(SecretText("first".into()));
        not_tried_again(settings);
    })
    .await;
    scene.until_live().await;
    scene.peer.ask(&ends);
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "source_denied");
    scene.end().await;
}

/// A zero is the usual time, for the wait after a stop, too: nobody who is refused asks as fast as he is answered.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_does_not_spin_with_waits_of_zero() {
    let peer = Peer::with_arguments(&["--keys", r#"{"right":"millrace"}"#]);
    let mut scene = Scene::of(peer, |settings| {
        settings.api_key = Some(SecretText("wrong".into()));
        (settings.reconnect_min, settings.reconnect_max) = (Span(Duration::ZERO), Span(Duration::ZERO));
    })
    .await;
    scene.until("it stops", |status| status["state"] == "failed").await;
    for _ in 0..200 {
        assert_eq!(scene.status().await["state"], "failed");
    }
    assert_eq!(scene.peer.subscriptions().len(), 1);
    scene.end().await;
}

/// The other side hides checkpoints of other clients, and answers that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_checkpoint_owner_says_so() {
    let mut peer = Peer::with_arguments(&["--keys", r#"{"key":"another"}"#]);
    peer.publish("response", DATA, 2);
    let scene = Scene::of(peer, |settings| {
        settings.api_key = Some(SecretText("key".into()));
        settings.checkpoints = SourceCheckpoints::Remote;
    })
    .await;
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "source_checkpoint_foreign");
    let said = status["last_error"]["message"].as_str().unwrap();
    assert!(said.contains("belongs to another client than client_id = `millrace`"), "{said}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_processor_is_left_alone() {
    let mut peer = Peer::start();
    let foreign = json!({
        "do": "set_checkpoint", "client": "millrace", "content_type": "application/other+json",
        "value": { "version": 1, "lastEventCursor": "7" },
    });
    peer.ask(&foreign);
    let mut scene = Scene::of(peer, |settings| settings.checkpoints = SourceCheckpoints::Remote).await;
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "content_type_mismatch");
    assert_eq!(scene.peer.checkpoint("millrace")["value"], foreign["value"]);
    assert_eq!(scene.peer.puts(), 0);
    scene.end().await;
}

/// What cannot become an event of ours is kept to be looked at, and costs nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn message_beyond_4_mib_is_a_letter_that_names_the_limit() {
    let mut scene = Scene::start().await;
    scene.peer.publish("response", DATA, 1);
    scene.peer.ask(&json!({ "do": "big", "bytes": 5 << 20 }));
    scene.peer.publish("response", "no json", 1);
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(2).await, ["1", "4"]);
    let status = scene.until("both are letters", |status| status["letters"] == 2).await;
    let letters = status["dead_letters"].as_array().unwrap();
    let reason = letters[0]["reason"].as_str().unwrap();
    assert!(reason.contains("event_payload_bytes_max") && reason.contains("52429"), "{reason}");
    assert_eq!((&letters[0]["cursor"], &letters[1]["cursor"]), (&json!("2"), &json!("3")));
    assert_eq!(letters[1]["data"], "no json");

    let scene = scene.restart().await;
    let status = scene.until("letters are kept", |status| status["letters"] == 2).await;
    assert_eq!(status["dead_letters"].as_array().unwrap().len(), 2);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_stops_the_source_and_names_the_limit() {
    let mut scene = Scene::start().await;
    scene.peer.publish("response", DATA, 1);
    scene.peer.ask(&json!({ "do": "big", "bytes": 17 << 20 }));
    let status = scene.until("it stops", |status| status["state"] == "failed").await;
    let said = status["last_error"]["message"].as_str().unwrap();
    assert!(said.contains("source_message_bytes_max"), "{said}");
    assert_eq!(scene.cursors(1).await, ["1"], "what came before is there");
    scene.end().await;
}

/// What the problem says is what helps: the source goes on after that message.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_is_set_by_hand_passes_over_a_message() {
    let mut scene = Scene::start().await;
    scene.peer.publish("response", DATA, 1);
    scene.cursors(1).await;
    scene.until("it is saved", |status| status["puts"].as_u64() > Some(0)).await;
    scene.peer.ask(&json!({ "do": "big", "bytes": 17 << 20 }));
    scene.peer.publish("response", DATA, 1);
    scene.until("it stops", |status| status["state"] == "failed").await;
    let kept = scene.kept();
    let Scene { peer, host } = scene;
    let host = host
        .restart_with(|_| {
            let mut checkpoint: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
            checkpoint["value"]["lastEventCursor"] = "2".into();
            std::fs::write(&kept, checkpoint.to_string()).unwrap();
        })
        .await
        .unwrap();
    let scene = Scene { peer, host };
    assert_eq!(scene.cursors(2).await, ["1", "3"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_are_shown_to_operators() {
    let scene = Scene::start().await;
    let list = scene.host.client.get("/v1/sources").await.unwrap().ok().unwrap();
    assert_eq!(
        (&list["sources"][0]["name"], &list["sources"][0]["tenant"]),
        (&json!("grpc"), &json!("default"))
    );
    let unknown = scene.host.client.get("/v1/sources/other").await.unwrap();
    assert_eq!(unknown.refusal(), (404, "source_unknown".to_owned()));
    scene.end().await;
}
