//! The loop with three fakes: places that a server names without an event.

use std::sync::Arc;
use std::time::Duration;

use millrace_tests::until;
use serde_json::json;
use tokio::sync::Notify;

use super::fakes::{CONTENT_TYPE, FakeCheckpoints, FakeEvents, Rig, Step, about, cursor_lost, event};

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

fn phase(phase: &str, cursor: Option<&str>) -> Step {
    about("phase", &json!({ "phase": phase }), cursor)
}

fn live(cursor: &str) -> Step {
    phase("live", Some(cursor))
}

fn asked(rig: &Rig) -> Vec<String> {
    rig.events.after_cursors().into_iter().map(Option::unwrap_or_default).collect()
}

/// Also where nothing has come yet: in the reference, whatever happens until the first save is lost.
#[tokio::test]
async fn a_stream_without_an_event_goes_on_where_its_phase_said() {
    let rig = Rig::new(vec![vec![live("7"), Step::Ends], vec![]]);
    let runtime = rig.start();
    until("it came back", || rig.events.asked().len() == 2).await;
    assert_eq!(asked(&rig), ["", "7"]);
    until("it is saved", || rig.checkpoints.kept()["lastEventCursor"] == "7").await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("7"));
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();

    let restarted = Rig::of(
        FakeEvents::of(vec![vec![live("9"), Step::Ends]]),
        FakeCheckpoints::with(CONTENT_TYPE, &rig.checkpoints.kept()),
    );
    let runtime = restarted.start();
    until("it came back", || restarted.events.asked().len() == 2).await;
    assert_eq!(asked(&restarted), ["7", "9"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(restarted.checkpoints.kept()["lastEventCursor"], "9");
}

/// Without an event since, there is nothing to read again; with one, the newest are read again as ever.
#[tokio::test]
async fn a_reconnect_goes_on_at_the_newest_place_that_was_named() {
    let rig = Rig::new(vec![
        vec![event("1"), event("2"), live("5"), live("8"), Step::Ends],
        vec![live("8"), event("9"), Step::Ends],
        vec![],
    ]);
    let runtime = rig.start();
    until("it came back twice", || rig.events.asked().len() == 3).await;
    assert_eq!(asked(&rig), ["", "8", "1"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.handled(), ["1", "2", "9"]);
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "9");
}

/// A run that saves seldom saves the very first place at once, and each other one at its interval and at the end.
#[tokio::test]
async fn a_place_is_saved_as_the_cursor_of_an_event_is() {
    let gate = Arc::new(Notify::new());
    let mut rig = Rig::new(vec![vec![live("7"), Step::Waits(gate.clone()), live("9")]]);
    rig.config.checkpoint_interval = Duration::from_secs(3_600);
    let runtime = rig.start();
    until("the first is saved", || rig.checkpoints.kept()["lastEventCursor"] == "7").await;
    gate.notify_one();
    until("the second came", || runtime.status().cursor.as_deref() == Some("9")).await;
    assert_eq!(rig.checkpoints.puts().len(), 1);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "9");
}

#[tokio::test]
async fn a_phase_without_a_cursor_changes_nothing() {
    let streams = || {
        vec![
            vec![event("1"), event("2"), phase("replay", None), phase("live", Some("")), Step::Ends],
            vec![phase("live", None), Step::Ends],
            vec![],
        ]
    };
    let mut rig = Rig::new(streams());
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    until("it came back twice", || rig.events.asked().len() == 3).await;
    assert_eq!(asked(&rig), ["", "1", "1"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2");
    // Nor is anything saved for it.
    let rig = Rig::new(vec![vec![phase("replay", None), phase("live", None)]]);
    let runtime = rig.start();
    until("it heard of both", || rig.processor.notes.lock().unwrap().controls.len() == 2).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(rig.checkpoints.puts().is_empty());
}

/// While events are read again the server names places of before, and a host that is behind another one does so too: the
/// cursor never goes back.
#[tokio::test]
async fn a_place_before_the_newest_event_is_not_taken() {
    let gate = Arc::new(Notify::new());
    let mut rig = Rig::new(vec![
        vec![event("10"), event("20"), event("30"), Step::Ends],
        // The first place is the one that was asked for, the second is none that came.
        vec![
            phase("replay", Some("20")),
            phase("live", Some("25")),
            Step::Waits(gate.clone()),
            event("30"),
            live("35"),
            Step::Ends,
        ],
    ]);
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    until("it is behind", || rig.processor.notes.lock().unwrap().controls.len() == 2).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("30"));
    gate.notify_one();
    until("it came back again", || rig.events.asked().len() == 3).await;
    assert_eq!(asked(&rig), ["", "20", "35"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(rig.checkpoints.puts().iter().all(|put| put["lastEventCursor"] != "25"));
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "35");
}

/// What is looked for again lies before a place that was named.
#[tokio::test]
async fn missing_events_are_looked_for_behind_a_named_place() {
    let missing = about("invalidate", &json!({ "reason": "pubsub recovery" }), None);
    let mut rig = Rig::new(vec![vec![event("1"), event("2"), live("5"), missing], vec![event("3")]]);
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    until("what was missing came", || rig.handled() == ["1", "2", "3"]).await;
    assert_eq!(asked(&rig), ["", "2"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A place that is lost is a cursor like any other.
#[tokio::test]
async fn a_named_place_that_is_lost_follows_the_policy() {
    let rig = Rig::new(vec![vec![event("1"), live("5"), Step::Ends], vec![cursor_lost(), Step::Ends]]);
    let ended = rig.start().wait().await.unwrap_err();
    assert!(ended.to_string().contains("`5`"), "{ended}");
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "5");
}
