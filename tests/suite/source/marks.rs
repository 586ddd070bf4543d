//! The loop with three fakes: places that a server names without an event.

use std::sync::Arc;
use std::time::Duration;

use millrace_tests::until;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::fakes::{CONTENT_TYPE, FakeCheckpoints, FakeEvents, Rig, Step, about, cursor_lost, event};

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

fn phase(phase: &str, cursor: Option<&str>) -> Step {
    about("phase", &json!({ "phase": phase }), cursor)
}

fn live(cursor: &str) -> Step {
    phase("live", Some(cursor))
}

fn evicted(cursor: &str) -> Step {
    about("evicted", &json!({ "reason": "slow consumer" }), Some(cursor))
}

fn missing() -> Step {
    about("invalidate", &json!({ "reason": "pubsub recovery" }), None)
}

/// Another run, with what one of before has left.
fn restarted(kept: &Value, streams: Vec<Vec<Step>>) -> Rig {
    Rig::of(FakeEvents::of(streams), FakeCheckpoints::with(CONTENT_TYPE, kept))
}

/// How often the processor was told something about the stream.
fn told(rig: &Rig) -> usize {
    rig.processor.notes.lock().unwrap().controls.len()
}

fn was_saved(rig: &Rig, cursor: &str) -> bool {
    rig.checkpoints.puts().iter().any(|put| put["lastEventCursor"] == cursor)
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

    let restarted = restarted(&rig.checkpoints.kept(), vec![vec![live("9"), Step::Ends]]);
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
    until("it heard of both", || told(&rig) == 2).await;
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
    until("it is behind", || told(&rig) == 2).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("30"));
    gate.notify_one();
    until("it came back again", || rig.events.asked().len() == 3).await;
    assert_eq!(asked(&rig), ["", "20", "35"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(rig.checkpoints.puts().iter().all(|put| put["lastEventCursor"] != "25"));
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "35");
}

/// A restart reads the newest again, too; what is behind them is saved while they are still replayed.
#[tokio::test]
async fn a_place_before_the_newest_event_is_not_taken_after_a_restart() {
    let first = Rig::new(vec![vec![event("10"), event("20"), event("30")]]);
    let runtime = first.start();
    until("all came", || first.handled().len() == 3).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();

    let gate = Arc::new(Notify::new());
    let rig = restarted(
        &first.checkpoints.kept(),
        vec![
            vec![
                phase("replay", Some("10")),
                event("20"),
                phase("replay", Some("25")),
                live("27"),
                Step::Waits(gate.clone()),
                event("30"),
                phase("replay", Some("35")),
                Step::Waits(gate.clone()),
                live("37"),
                Step::Ends,
            ],
            vec![],
        ],
    );
    let runtime = rig.start();
    until("it is behind", || told(&rig) == 3).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("30"), "nothing new came");
    gate.notify_one();
    until("it is ahead", || rig.checkpoints.kept()["lastEventCursor"] == "35").await;
    gate.notify_one();
    until("it came back", || rig.events.asked().len() == 2).await;
    assert_eq!(asked(&rig), ["10", "37"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(!was_saved(&rig, "25") && !was_saved(&rig, "27"));
    assert_eq!((rig.handled(), &rig.checkpoints.kept()["lastEventCursor"]), (vec![], &json!("37")));
}

/// The newest event has come again, but not yet the place that was named behind it.
#[tokio::test]
async fn a_replay_takes_no_place_before_one_that_was_named() {
    let first = || vec![event("10"), event("20"), live("50")];
    let gate = Arc::new(Notify::new());
    let again = || {
        vec![
            phase("replay", Some("10")),
            event("20"),
            phase("replay", Some("40")),
            Step::Waits(gate.clone()),
            live("60"),
            Step::Ends,
        ]
    };
    let rig = Rig::new(vec![[first(), vec![missing()]].concat(), again(), vec![]]);
    let runtime = rig.start();
    until("it reads again", || told(&rig) == 4).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("50"));
    gate.notify_one();
    until("it came back", || rig.events.asked().len() == 3).await;
    assert_eq!(asked(&rig), ["", "10", "60"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(!was_saved(&rig, "40"));

    // The same over a restart, which knows that the newest is no event's.
    let rig = Rig::new(vec![first()]);
    let runtime = rig.start();
    until("the place is saved", || was_saved(&rig, "50")).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let rig = restarted(&rig.checkpoints.kept(), vec![again(), vec![]]);
    let runtime = rig.start();
    until("it reads again", || told(&rig) == 2).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("50"), "nothing new came");
    gate.notify_one();
    until("it came back", || rig.events.asked().len() == 2).await;
    assert_eq!(asked(&rig), ["10", "60"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(!was_saved(&rig, "40"));
}

/// A server that closes a stream on which events are read again says where to go on: still before the newest.
#[tokio::test]
async fn a_place_before_the_newest_event_is_not_taken_after_an_eviction() {
    let gate = Arc::new(Notify::new());
    let rig = Rig::new(vec![
        vec![event("10"), event("20"), event("30"), Step::Ends],
        vec![phase("replay", Some("10")), event("20"), evicted("25")],
        vec![
            phase("replay", Some("27")),
            live("28"),
            Step::Waits(gate.clone()),
            event("30"),
            live("35"),
            Step::Ends,
        ],
        vec![],
    ]);
    let runtime = rig.start();
    until("it is behind", || told(&rig) == 4).await;
    assert_eq!(runtime.status().cursor.as_deref(), Some("30"));
    gate.notify_one();
    until("it came back again", || rig.events.asked().len() == 4).await;
    assert_eq!(asked(&rig), ["", "10", "25", "35"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert!(!was_saved(&rig, "27") && !was_saved(&rig, "28"));
}

/// However often it is restarted, the newest events stay those that are read again.
#[tokio::test]
async fn places_of_many_runs_push_no_event_out() {
    let first = Rig::new(vec![vec![event("1"), event("2"), live("5")]]);
    let runtime = first.start();
    until("the place is saved", || was_saved(&first, "5")).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let mut kept = first.checkpoints.kept();
    for place in ["6", "7", "8"] {
        let mut rig = restarted(&kept, vec![vec![event("2"), live(place)]]);
        rig.config.overlap_events = 2;
        let runtime = rig.start();
        until("the place is saved", || was_saved(&rig, place)).await;
        assert_eq!(asked(&rig), ["1"], "up to {place}");
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
        assert_eq!(rig.handled(), Vec::<String>::new());
        kept = rig.checkpoints.kept();
    }
}

/// What is looked for again lies before a place that was named.
#[tokio::test]
async fn missing_events_are_looked_for_behind_a_named_place() {
    let mut rig = Rig::new(vec![vec![event("1"), event("2"), live("5"), missing()], vec![event("3")]]);
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    until("what was missing came", || rig.handled() == ["1", "2", "3"]).await;
    assert_eq!(asked(&rig), ["", "1"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// What is read again is so many events, however many places were named between them.
#[tokio::test]
async fn places_between_events_are_no_events_of_the_overlap() {
    let first = vec![event("10"), live("15"), event("20"), live("25"), event("30"), live("35")];
    let again = vec![event("20"), event("27"), event("30"), live("37")];
    let mut rig = Rig::new(vec![[first, vec![missing()]].concat(), again]);
    rig.config.overlap_events = 2;
    let runtime = rig.start();
    until("the place behind is saved", || was_saved(&rig, "37")).await;
    assert_eq!(asked(&rig), ["", "15"]);
    assert_eq!(rig.handled(), ["10", "20", "30", "27"]);
    assert_eq!(runtime.status().repeated, 2);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();

    // The newest two are the one that came late and the one before it.
    let mut rig = restarted(&rig.checkpoints.kept(), vec![vec![event("30"), event("27"), event("40")]]);
    rig.config.overlap_events = 2;
    let runtime = rig.start();
    until("what is new came", || rig.handled() == ["40"]).await;
    assert_eq!(asked(&rig), ["25"]);
    assert_eq!(runtime.status().repeated, 2);
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
