//! The loop with three fakes: what is saved, when, and that nothing is saved for nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::processors::source::{Progress, Runtime, RuntimeParts, SourceError, SourceFault, SourceState};
use millrace_tests::until;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::fakes::{
    CONTENT_TYPE, FakeCheckpoints, FakeEvents, Rig, Step, about, event, fatal, of_kind, passing,
};

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// How often the processor was flushed so far.
fn flushes(rig: &Rig) -> usize {
    rig.processor.notes.lock().unwrap().calls.iter().filter(|call| **call == "flush").count()
}

/// What the reference asserts of one event, over ticks, reconnects, repeats and the shutdown.
#[tokio::test]
async fn r04_unchanged_snapshot_is_put_once() {
    let rig = Rig::new(vec![vec![event("1"), Step::Ends], vec![event("1"), Step::Ends], vec![event("1")]]);
    let runtime = rig.start();
    until("it came back twice", || rig.events.asked().len() == 3).await;
    until("it is put", || !rig.checkpoints.puts().is_empty()).await;
    let before = flushes(&rig);
    until("three ticks passed", || flushes(&rig) >= before + 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.puts().len(), 1);
}

/// In the reference, what the store gives back is written differently, so the first save after a restart is redundant.
#[tokio::test]
async fn rx_no_redundant_first_put() {
    let first = Rig::new(vec![vec![event("1"), event("2")]]);
    let runtime = first.start();
    until("both came", || first.handled().len() == 2).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = first.checkpoints.kept();

    let second = Rig::of(FakeEvents::default(), FakeCheckpoints::with(CONTENT_TYPE, &kept));
    let runtime = second.start();
    until("some ticks passed", || flushes(&second) >= 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(second.checkpoints.puts(), Vec::<Value>::new());
    assert_eq!(second.events.after_cursors()[0].as_deref(), Some("1"), "the newest events are read again");
}

/// In the reference, a processor that keeps its cursor under another name is fed from the beginning after each reconnect.
/// Here the fake keeps none at all.
#[tokio::test]
async fn rx_cursor_of_another_name_is_not_needed() {
    let mut rig = Rig::new(vec![vec![event("1"), event("2"), Step::Ends]]);
    rig.config.after_cursor = Some("boot".into());
    rig.config.overlap_events = 0;
    let runtime = rig.start();
    until("it came back", || rig.events.asked().len() == 2).await;
    assert_eq!(rig.events.after_cursors(), [Some("boot".to_owned()), Some("2".to_owned())]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2");
}

/// The other runtimes of the protocol find what they look for, and a state that they can load.
#[tokio::test]
async fn what_is_put_is_what_other_runtimes_read() {
    let rig = Rig::new(vec![vec![event("1")]]);
    let runtime = rig.start();
    until("it came", || rig.handled().len() == 1).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = rig.checkpoints.kept();
    assert_eq!((&kept["counted"], &kept["lastEventCursor"]), (&json!(1), &json!("1")));
    assert_eq!((&kept["millrace"]["format"], &kept["millrace"]["generation"]), (&json!(1), &json!(1)));
}

/// In the reference the cursor is the processor's, and closing an old window can move it back. Here it is the run's: it is
/// the last that came, whatever the processor says, and whatever a server that is read again says of itself.
#[tokio::test]
async fn cursor_never_goes_back() {
    let first: Vec<Step> = (1..=40).map(|number| event(&number.to_string())).collect();
    let evicted = about("evicted", &json!({ "reason": "slow consumer" }), Some("6"));
    let streams = vec![
        [first, vec![Step::Ends]].concat(),
        // The newest are read again: one came late, and the server closes the stream far behind what is handled.
        vec![event("4"), event("5"), event("5 late"), event("6"), evicted],
        vec![event("41")],
    ];
    let mut rig = Rig::new(streams);
    rig.processor.notes.lock().unwrap().says = Some("3".into());
    rig.config.checkpoint_events = 1;
    let runtime = rig.start();
    until("all came", || rig.handled().len() == 42).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let order = rig.handled();
    let puts = rig.checkpoints.puts();
    let place = |put: &Value| order.iter().position(|cursor| put["lastEventCursor"] == cursor.as_str());
    let places: Vec<_> = puts.iter().map(place).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "41");
    assert_eq!(
        rig.events.after_cursors()[2].as_deref(),
        Some("1"),
        "nothing is unknown up to where it closed"
    );
}

/// After a restart, what was handled before a server closed the stream behind it is not handled again.
#[tokio::test]
async fn an_eviction_during_a_second_look_forgets_nothing() {
    let evicted = about("evicted", &json!({ "reason": "slow consumer" }), Some("1"));
    let first =
        Rig::new(vec![vec![event("1"), event("2"), event("3"), Step::Ends], vec![event("1"), evicted]]);
    let runtime = first.start();
    until("it came back twice", || first.events.asked().len() == 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = first.checkpoints.kept();
    assert_eq!(kept["lastEventCursor"], "3");
    let second = Rig::of(
        FakeEvents::of(vec![vec![event("2"), event("3"), event("4")]]),
        FakeCheckpoints::with(CONTENT_TYPE, &kept),
    );
    let runtime = second.start();
    until("the fourth came", || second.handled().contains(&"4".to_owned())).await;
    assert_eq!(second.handled(), ["4"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A server may take long to open a stream; what was handled before is saved meanwhile.
#[tokio::test]
async fn saving_goes_on_while_a_stream_is_opened() {
    let gate = Arc::new(Notify::new());
    let streams = vec![vec![event("1"), event("2"), Step::Ends], vec![event("3")]];
    let rig = Rig::of(FakeEvents::slow(streams, gate.clone()), FakeCheckpoints::default());
    let runtime = rig.start();
    until("it is opened again", || rig.events.asked().len() == 2).await;
    let before = flushes(&rig);
    until("three ticks passed", || flushes(&rig) >= before + 3).await;
    until("it is put", || rig.checkpoints.kept()["lastEventCursor"] == "2").await;
    assert_eq!(rig.handled(), ["1", "2"]);
    gate.notify_one();
    until("the third came", || rig.handled().len() == 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// The reference stands still on events that a processor ignores, and an idle consumer expires.
#[tokio::test]
async fn progress_moves_over_ignored_events() {
    let rig = Rig::new(vec![vec![event("1"), of_kind("membership", "2"), of_kind("membership", "3")]]);
    rig.processor.notes.lock().unwrap().ignores = Some("membership".into());
    let runtime = rig.start();
    until("all came", || rig.handled().len() == 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = rig.checkpoints.kept();
    assert_eq!((&kept["counted"], &kept["lastEventCursor"]), (&json!(1), &json!("3")));
}

/// In the reference, a save after an event is not preceded by a flush, so a cursor can be ahead of unflushed output.
#[tokio::test]
async fn flush_comes_before_snapshot_and_put() {
    let mut rig = Rig::new(vec![(1..=20).map(|number| event(&number.to_string())).collect()]);
    rig.config.checkpoint_events = 1;
    let runtime = rig.start();
    until("all came", || rig.handled().len() == 20).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let calls = rig.processor.notes.lock().unwrap().calls.clone();
    for (index, _) in calls.iter().enumerate().filter(|(_, call)| **call == "snapshot") {
        assert_eq!(calls[index - 1], "flush", "{calls:?}");
    }
    assert!(calls.contains(&"snapshot"));
}

/// One put for each event is what the reference does, and what servers' limits end it for.
#[tokio::test]
async fn many_events_are_one_put() {
    let mut rig = Rig::new(vec![(1..=900).map(|number| event(&number.to_string())).collect()]);
    rig.config.checkpoint_interval = Duration::from_secs(3_600);
    let runtime = rig.start();
    until("all came", || rig.handled().len() == 900).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let puts = rig.checkpoints.puts();
    assert!(puts.len() <= 2, "the first place, and the end: {}", puts.len());
    assert_eq!(puts.last().unwrap()["lastEventCursor"], "900");
}

#[tokio::test]
async fn initial_get_is_retried() {
    let rig = Rig::new(vec![vec![event("1")]]);
    rig.checkpoints.fail_get(passing());
    rig.checkpoints.fail_get(passing());
    let runtime = rig.start();
    until("it came", || rig.handled() == ["1"]).await;
    assert!(rig.checkpoints.gets() >= 3);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// Before the first event comes, and also where none can come.
#[tokio::test]
async fn the_cursor_of_a_checkpoint_is_told_as_soon_as_it_is_read() {
    let progress = Progress::default();
    // Runs of one source, one after the other: somebody moves its cursor meanwhile, and takes it away.
    for cursor in [Some("7"), Some("9"), None] {
        let kept = json!({ "counted": 4, "lastEventCursor": cursor });
        let rig = Rig::of(FakeEvents::default(), FakeCheckpoints::with(CONTENT_TYPE, &kept));
        rig.events.refuse(fatal());
        let runtime = Runtime::start(RuntimeParts { progress: progress.clone(), ..rig.parts() }).unwrap();
        runtime.wait().await.unwrap_err();
        assert_eq!(runtime.status().cursor.as_deref(), cursor);
    }
}

#[tokio::test]
async fn initial_get_that_is_refused_ends_the_run() {
    let rig = Rig::new(vec![]);
    rig.checkpoints.fail_get(fatal());
    assert_eq!(rig.start().wait().await.unwrap_err().message, "not allowed");
    assert!(rig.events.asked().is_empty());
}

/// The reference saves nothing when it is stopped while it is not connected, or loses a race.
#[tokio::test]
async fn final_save_is_never_skipped() {
    let gate = Arc::new(Notify::new());
    let rig = unsaved(vec![event("1"), Step::Waits(gate.clone()), event("2"), Step::Fails(passing())]);
    let runtime = rig.start();
    until("the first is saved", || rig.checkpoints.puts().len() == 1).await;
    gate.notify_one();
    until("the second came, and the stream is gone", || runtime.status().state == SourceState::Waiting).await;
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "1");
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2");
}

/// The reference discards what goes wrong with it.
#[tokio::test]
async fn a_last_save_that_fails_is_told() {
    let gate = Arc::new(Notify::new());
    let rig = unsaved(vec![event("1"), Step::Waits(gate.clone()), event("2")]);
    let runtime = rig.start();
    until("the first is saved", || rig.checkpoints.puts().len() == 1).await;
    gate.notify_one();
    until("the second came", || rig.handled().len() == 2).await;
    rig.checkpoints.fail_put(fatal());
    assert_eq!(runtime.shutdown(SHUTDOWN_MAX).await.unwrap_err().message, "not allowed");
}

/// A run that saves by itself at the first event only.
fn unsaved(stream: Vec<Step>) -> Rig {
    let mut rig = Rig::new(vec![stream]);
    let long = Duration::from_secs(3_600);
    rig.config.checkpoint_interval = long;
    (rig.config.reconnect_min, rig.config.reconnect_max) = (long, long);
    rig
}

/// The reference ends on the first put that fails.
#[tokio::test]
async fn a_put_that_fails_for_a_while_is_made_again() {
    let rig = Rig::new(vec![vec![event("1"), event("2")]]);
    rig.checkpoints.fail_put(passing());
    rig.checkpoints.fail_put(passing());
    let runtime = rig.start();
    until("it is put", || rig.checkpoints.kept()["lastEventCursor"] == "2").await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// Handled events that cannot be saved are bounded: then the server is not read.
#[tokio::test]
async fn a_server_that_takes_no_checkpoint_is_not_read_for_ever() {
    let mut rig = Rig::new(vec![(1..=5_000).map(|number| event(&number.to_string())).collect()]);
    rig.config.behind_events_max = 1_000;
    rig.checkpoints.refuses_puts.store(true, Ordering::SeqCst);
    let runtime = rig.start();
    until("ticks go on", || rig.handled().len() >= 1_000 && flushes(&rig) >= 5).await;
    assert_eq!(rig.handled().len(), 1_000);
    rig.checkpoints.refuses_puts.store(false, Ordering::SeqCst);
    until("all came once puts succeed", || rig.handled().len() == 5_000).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "5000");
}

/// Nothing compares on the other side, so two of one client id would replace each other's checkpoints unseen.
#[tokio::test]
async fn who_is_replaced_by_another_run_stops() {
    let gate = Arc::new(Notify::new());
    let mut rig = Rig::new(vec![vec![event("1"), Step::Waits(gate.clone()), event("2")]]);
    rig.config.checkpoint_events = 1;
    let runtime = rig.start();
    until("it is put", || rig.checkpoints.puts().len() == 1).await;
    let mut foreign = rig.checkpoints.kept();
    foreign["millrace"]["owner"] = "another".into();
    rig.checkpoints.replace(&foreign);
    gate.notify_one();
    let ended = runtime.wait().await.unwrap_err();
    assert_eq!(ended.fault, SourceFault::TakenOver);
    assert!(ended.to_string().contains("client id `client`"), "{ended}");
    assert_eq!(rig.checkpoints.kept(), foreign, "nothing of the other is replaced");
}

#[tokio::test]
async fn a_dropped_runtime_is_like_a_kill() {
    let mut rig = Rig::new(vec![vec![event("1")]]);
    rig.config.checkpoint_interval = Duration::from_secs(3_600);
    let runtime = rig.start();
    until("it came and is put", || rig.checkpoints.puts().len() == 1).await;
    drop(runtime);
    let restarted = Rig::of(
        FakeEvents::of(vec![vec![event("1"), event("2")]]),
        FakeCheckpoints::with(CONTENT_TYPE, &rig.checkpoints.kept()),
    );
    let runtime = restarted.start();
    until("the second came", || restarted.handled() == ["2"]).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[test]
fn errors_say_whether_they_pass() {
    assert_eq!(SourceError::stop(SourceFault::Denied, "x").wait(), None);
    assert_eq!(SourceError::pass(SourceFault::Unreachable, "x").wait(), Some(Duration::ZERO));
}
