//! The loop with three fakes and no endpoint: starts, streams, cursors.

use std::sync::Arc;
use std::time::Duration;

use millrace::limits::SOURCE_LAST_SAVE_MAX;
use millrace::processors::source::{
    Backoff, CursorPolicy, Runtime, RuntimeParts, Scope, SourceFault, SourceState, StartError,
};
use millrace_tests::until;
use serde_json::json;
use tokio::sync::Notify;

use super::fakes::{
    CONTENT_TYPE, FakeCheckpoints, FakeEvents, Rig, Step, about, cursor_lost, event, fatal, of_kind, passing,
};

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

fn evicted(cursor: Option<&str>) -> Step {
    about("evicted", &json!({ "reason": "slow consumer" }), cursor)
}

/// A stream that blocks does not hold a shutdown up, whether there is something to save or not.
#[tokio::test]
async fn r01_injected_clients_need_no_endpoint() {
    // As the checklist has it.
    let within = Duration::from_secs(1);
    // One that is ended by its own limit, and not by itself, is cut off here and told.
    assert!(within < SOURCE_LAST_SAVE_MAX);
    for cursor in [None, Some("1")] {
        let rig = Rig::new(vec![cursor.map(event).into_iter().collect()]);
        let runtime = rig.start();
        until("it subscribes", || rig.events.asked().len() == 1).await;
        until("what there is is handled", || rig.handled().last().map(String::as_str) == cursor).await;
        runtime.shutdown(within).await.unwrap();
        runtime.wait().await.unwrap();
        runtime.shutdown(within).await.unwrap();
        assert_eq!(runtime.status().state, SourceState::Stopped);
        assert_eq!(rig.checkpoints.kept()["lastEventCursor"].as_str(), cursor);
    }
}

#[tokio::test]
async fn missing_parts_are_named_in_order() {
    let missing = |change: fn(&mut RuntimeParts)| {
        let mut parts = Rig::new(vec![]).parts();
        change(&mut parts);
        Runtime::start(parts).unwrap_err()
    };
    let nothing = |parts: &mut RuntimeParts| {
        (parts.events, parts.checkpoints, parts.processor) = (None, None, None);
        parts.config.client_id.clear();
    };
    assert_eq!(missing(nothing), StartError::EventClient);
    for (error, text) in [
        (
            missing(|parts| (parts.checkpoints, parts.processor) = (None, None)),
            "checkpoint client is required",
        ),
        (missing(|parts| parts.processor = None), "processor is required"),
        (missing(|parts| parts.config.client_id = " ".into()), "client ID is required"),
        (missing(|parts| parts.events = None), "event client is required"),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn r02_subscription_asks_for_what_was_configured() {
    let mut rig = Rig::new(vec![]);
    rig.config.entry_channels = vec!["history".into(), "context".into()];
    rig.config.kinds = vec!["entry".into()];
    rig.config.entry_roles = vec!["USER".into()];
    rig.config.entry_content_types = vec!["history".into()];
    rig.config.justification = "audit".into();
    rig.config.scope = Scope::User;
    rig.config.after_cursor = Some("17".into());
    let runtime = rig.start();
    until("it subscribes", || rig.events.asked().len() == 1).await;
    let asked = rig.events.asked().remove(0);
    assert_eq!(asked.entry_channels, ["history", "context"]);
    assert_eq!((asked.kinds, asked.scope), (vec!["entry".to_owned()], Scope::User));
    assert_eq!((asked.entry_roles, asked.entry_content_types), (vec!["USER".into()], vec!["history".into()]));
    assert_eq!((asked.justification, asked.after_cursor), ("audit".to_owned(), Some("17".to_owned())));
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn r05_failing_effect_leaves_the_cursor_before_it() {
    let rig = Rig::new(vec![vec![event("1"), event("2"), event("3")]]);
    rig.processor.notes.lock().unwrap().fails_at = Some(("2".into(), fatal()));
    let ended = rig.start().wait().await.unwrap_err();
    assert_eq!(ended.message, "not allowed");
    let kept = rig.checkpoints.kept();
    assert_eq!((&kept["lastEventCursor"], &kept["counted"]), (&json!("1"), &json!(1)));
    assert_eq!(rig.handled(), ["1"]);
}

/// The reference ends here, too, but so it does for errors that pass.
#[tokio::test]
async fn an_effect_that_fails_for_a_while_is_tried_again() {
    let live = about("phase", &json!({ "phase": "live" }), None);
    let rig = Rig::new(vec![vec![live, event("1"), event("2"), event("3")]]);
    rig.processor.notes.lock().unwrap().fails_at = Some(("2".into(), passing()));
    let runtime = rig.start();
    until("all are handled", || rig.handled().len() == 3).await;
    assert_eq!(rig.handled(), ["1", "2", "3"]);
    until("it says that it goes on", || runtime.status().state == SourceState::Live).await;
    assert!(runtime.status().last_error.is_some(), "it had waited");
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn r07_fatal_error_is_returned_as_it_is() {
    let error = fatal();
    let rig = Rig::new(vec![vec![event("1"), Step::Fails(error.clone())]]);
    let runtime = rig.start();
    let ended = runtime.wait().await.unwrap_err();
    let cause = |error: &millrace::processors::source::SourceError| error.cause.clone().unwrap();
    assert!(Arc::ptr_eq(&cause(&ended), &cause(&error)), "the same error, not one like it");
    let again = runtime.wait().await.unwrap_err();
    assert!(Arc::ptr_eq(&cause(&again), &cause(&error)));
    assert_eq!(runtime.status().state, SourceState::Failed);
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "1", "what was handled is saved nevertheless");
}

/// In the reference, any error of a stream ends the run, so each restart of a server does. Here only what cannot pass.
#[tokio::test]
async fn rx_a_server_that_goes_away_is_reached_again() {
    let rig = Rig::new(vec![vec![event("1"), Step::Fails(passing())], vec![event("2")]]);
    rig.events.refuse(passing());
    rig.events.refuse(passing());
    let runtime = rig.start();
    until("both events came", || rig.handled() == ["1", "2"]).await;
    assert_eq!(rig.events.asked().len(), 4);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn rx_content_type_mismatch_ends_before_subscribing() {
    let rig = Rig::of(FakeEvents::default(), FakeCheckpoints::with("application/other", &json!({})));
    let ended = rig.start().wait().await.unwrap_err();
    let text =
        format!("checkpoint content type mismatch: got \"application/other\", want \"{CONTENT_TYPE}\"");
    assert_eq!((ended.fault, ended.to_string()), (SourceFault::ContentType, text));
    assert!(rig.events.asked().is_empty() && rig.processor.notes.lock().unwrap().calls.is_empty());
}

#[tokio::test]
async fn rx_empty_content_type_is_taken() {
    let value = json!({ "counted": 4, "lastEventCursor": "9" });
    let rig = Rig::of(FakeEvents::default(), FakeCheckpoints::with("", &value));
    let runtime = rig.start();
    until("it subscribes", || !rig.events.asked().is_empty()).await;
    assert_eq!(rig.events.after_cursors(), [Some("9".to_owned())]);
    assert_eq!(rig.processor.notes.lock().unwrap().loaded, Some(value));
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_loaded_says_so() {
    let rig = Rig::of(
        FakeEvents::default(),
        FakeCheckpoints::with(
            CONTENT_TYPE,
            &json!({
                "lastEventCursor": "1",
                "millrace": { "format": 9, "generation": 1, "owner": "x", "checksum": "" },
            }),
        ),
    );
    let ended = rig.start().wait().await.unwrap_err();
    assert_eq!((ended.fault, rig.events.asked().len()), (SourceFault::Load, 0));
    assert!(ended.to_string().contains("format 9"), "{ended}");
}

/// A value without a cursor begins where the settings say; one with a cursor goes on there.
#[tokio::test]
async fn a_checkpoint_without_a_cursor_begins_where_the_settings_say() {
    for (value, begins) in [
        (json!({ "counted": 1 }), "start"),
        (json!({ "counted": 1, "lastEventCursor": 7 }), "start"),
        (json!({ "counted": 1, "lastEventCursor": "" }), "start"),
        (json!({ "counted": 1, "lastEventCursor": "7" }), "7"),
    ] {
        let mut rig = Rig::of(FakeEvents::default(), FakeCheckpoints::with(CONTENT_TYPE, &value));
        rig.config.after_cursor = Some("start".into());
        let runtime = rig.start();
        until("it subscribes", || !rig.events.asked().is_empty()).await;
        assert_eq!(rig.events.after_cursors(), [Some(begins.to_owned())], "{value}");
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    }
}

/// The reference has neither chance nor a bound that is kept at clean ends.
#[test]
fn rx_backoff_doubles_with_jitter_within_its_bounds() {
    let (min, max) = (Duration::from_millis(20), Duration::from_millis(100));
    let mut different = std::collections::HashSet::new();
    for _ in 0..100 {
        let mut backoff = Backoff::new(min, max);
        let waits: Vec<Duration> = (0..5).map(|_| backoff.wait(Duration::ZERO)).collect();
        for (wait, whole) in waits.iter().zip([20, 40, 80, 100, 100].map(Duration::from_millis)) {
            assert!((whole / 2..=whole).contains(wait), "{wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.wait(Duration::ZERO) <= min);
        different.insert(waits);
    }
    assert!(different.len() > 50, "waits are spread");
}

/// In the reference a successful subscribe resets the wait, so a server that ends each stream at once is asked again at
/// the least wait for ever. Here only an event resets it.
#[tokio::test]
async fn rx_streams_that_end_at_once_are_not_polled_at_the_minimum() {
    let mut rig = Rig::of(FakeEvents::ending(), FakeCheckpoints::default());
    // A stream that lives as long as the longest wait is none that ends at once.
    (rig.config.reconnect_min, rig.config.reconnect_max) =
        (Duration::from_millis(10), Duration::from_secs(60));
    let runtime = rig.start();
    until("it was asked six times", || rig.events.gaps().len() >= 5).await;
    for (gap, least) in rig.events.gaps().iter().zip([5, 10, 20, 40, 80]) {
        assert!(*gap >= Duration::from_millis(least), "{gap:?} is under {least} ms");
    }
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn duplicates_are_handled_once() {
    let rig = Rig::new(vec![
        vec![event("1"), event("2"), event("2"), event("1"), Step::Ends],
        vec![event("1"), event("2"), event("3")],
    ]);
    let runtime = rig.start();
    until("the third came", || rig.handled().len() >= 3).await;
    assert_eq!(rig.handled(), ["1", "2", "3"]);
    assert_eq!(runtime.status().repeated, 4);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A server may publish an event behind a newer cursor. It is found because the newest are read again.
#[tokio::test]
async fn a_reconnect_reads_the_newest_events_again() {
    let rig = Rig::new(vec![
        vec![event("1"), event("2"), event("4"), Step::Ends],
        vec![event("2"), event("3"), event("4"), Step::Ends],
    ]);
    let mut rig = rig;
    rig.config.overlap_events = 2;
    let runtime = rig.start();
    until("the late one came", || rig.handled().len() == 4).await;
    assert_eq!(rig.handled(), ["1", "2", "4", "3"]);
    assert_eq!(rig.events.after_cursors()[..2], [None, Some("1".to_owned())]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// Where the server says may be ahead of the newest that came. The run's own cursor moves with the next event.
#[tokio::test]
async fn an_evicted_stream_goes_on_where_the_server_says() {
    let gate = Arc::new(Notify::new());
    let rig = Rig::new(vec![
        vec![event("1"), evicted(Some("5"))],
        vec![Step::Waits(gate.clone()), event("6"), Step::Ends],
        vec![],
    ]);
    let runtime = rig.start();
    until("it came back", || rig.events.asked().len() == 2).await;
    assert_eq!(rig.events.after_cursors()[1], Some("5".to_owned()));
    until("the first is saved", || rig.checkpoints.kept()["lastEventCursor"] == "1").await;
    gate.notify_one();
    until("it came back again", || rig.events.asked().len() == 3).await;
    assert_eq!(rig.events.after_cursors()[2], Some("1".to_owned()), "the newest are read again");
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "6");
}

/// A cursor that came, or none, says nothing that is not known: the newest are read again, as after any other end.
#[tokio::test]
async fn an_eviction_at_a_known_place_is_an_end_like_any_other() {
    for cursor in [Some("2"), None] {
        let mut rig =
            Rig::new(vec![vec![event("1"), event("2"), event("3"), evicted(cursor)], vec![event("4")]]);
        rig.config.overlap_events = 0;
        let runtime = rig.start();
        until("the fourth came", || rig.handled().len() == 4).await;
        assert_eq!(rig.events.after_cursors()[1], Some("3".to_owned()), "{cursor:?}");
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    }
}

/// What the server named when it closed a stream may be gone, while the newest that came is still known.
#[tokio::test]
async fn a_place_that_the_server_named_and_lost_is_no_stale_cursor() {
    let rig = Rig::new(vec![
        vec![event("1"), evicted(Some("5"))],
        vec![cursor_lost(), Step::Ends],
        vec![event("6")],
    ]);
    let runtime = rig.start();
    until("the sixth came", || rig.handled() == ["1", "6"]).await;
    let asked: Vec<_> = rig.events.after_cursors().into_iter().flatten().collect();
    assert_eq!(asked, ["5", "1"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// The server goes on, but has left events out.
#[tokio::test]
async fn rx_pubsub_recovery_has_missing_events_looked_for_at_once() {
    let missing = about("invalidate", &json!({ "reason": "pubsub recovery" }), None);
    let rig = Rig::new(vec![vec![event("1"), missing, event("9")], vec![event("1"), event("2")]]);
    let runtime = rig.start();
    until("what was missing came", || rig.handled() == ["1", "2"]).await;
    assert_eq!(rig.events.after_cursors()[1], Some("1".to_owned()));
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// Before the first event nothing is known to look back at, and the place to begin at is none to give up: with "now" for
/// it, everything that there was would be left out.
#[tokio::test]
async fn missing_events_before_the_first_begin_at_the_same_place() {
    let missing = || about("invalidate", &json!({ "reason": "pubsub recovery" }), None);
    for (streams, asked) in [
        (vec![vec![missing()], vec![event("1")]], ["start", "start"]),
        // As it is where the server has named a place.
        (vec![vec![evicted(Some("5"))], vec![missing()], vec![event("6")]], ["5", "5"]),
    ] {
        let mut rig = Rig::new(streams);
        rig.config.after_cursor = Some("start".into());
        let runtime = rig.start();
        until("the event came", || rig.handled().len() == 1).await;
        let cursors: Vec<_> = rig.events.after_cursors().into_iter().flatten().collect();
        assert_eq!(cursors[cursors.len() - 2..], asked);
        assert_eq!(cursors.len(), rig.events.asked().len(), "each names a place");
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    }
}

/// As well after a cursor that was lost: the saved one is no place to look back from.
#[tokio::test]
async fn a_second_look_waits_for_something_to_look_back_at() {
    let gate = Arc::new(Notify::new());
    let streams = vec![vec![cursor_lost()], vec![Step::Waits(gate.clone()), event("50")]];
    let checkpoints = FakeCheckpoints::with(CONTENT_TYPE, &json!({ "counted": 1, "lastEventCursor": "7" }));
    let mut rig = Rig::of(FakeEvents::of(streams), checkpoints);
    rig.config.on_cursor_lost = CursorPolicy::Oldest;
    rig.config.recheck = Duration::from_millis(5);
    let runtime = rig.start();
    until("it begins anew", || rig.events.asked().len() == 2).await;
    let flushes =
        || rig.processor.notes.lock().unwrap().calls.iter().filter(|call| **call == "flush").count();
    let before = flushes();
    until("a second look was due a few times", || flushes() >= before + 5).await;
    gate.notify_one();
    until("the event came", || rig.handled() == ["50"]).await;
    assert_eq!(rig.events.after_cursors()[..2], [Some("7".to_owned()), Some("start".to_owned())]);
    assert!(!rig.events.after_cursors().contains(&None), "never from now on");
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// The reference drops this event and asks with the dead cursor for ever.
#[tokio::test]
async fn rx_stale_cursor_follows_the_policy() {
    for (policy, next) in [
        (CursorPolicy::Oldest, Some("start")),
        (CursorPolicy::Tail, None),
        (CursorPolicy::Rebuild, Some("start")),
    ] {
        let mut rig = Rig::of(
            FakeEvents::of(vec![vec![cursor_lost(), Step::Ends], vec![event("50")]]),
            FakeCheckpoints::with(CONTENT_TYPE, &json!({ "counted": 1, "lastEventCursor": "7" })),
        );
        rig.config.on_cursor_lost = policy;
        let runtime = rig.start();
        until("events come again", || rig.handled() == ["50"]).await;
        assert_eq!(rig.events.after_cursors(), [Some("7".to_owned()), next.map(str::to_owned)], "{policy:?}");
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
        assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "50");
    }
}

#[tokio::test]
async fn rx_stale_cursor_fails_and_keeps_what_was_saved() {
    let value = json!({ "counted": 1, "lastEventCursor": "7" });
    let rig = Rig::of(FakeEvents::of(vec![vec![cursor_lost()]]), FakeCheckpoints::with(CONTENT_TYPE, &value));
    let ended = rig.start().wait().await.unwrap_err();
    assert_eq!(ended.fault, SourceFault::CursorLost);
    assert!(ended.to_string().contains("`7`") && ended.to_string().contains("on_cursor_lost"), "{ended}");
    assert_eq!(rig.checkpoints.kept(), value);
}

/// What is older than the newest may be gone first; that is no reason to give the place up.
#[tokio::test]
async fn a_stale_overlap_is_no_stale_cursor() {
    let mut rig = Rig::new(vec![
        vec![event("1"), event("2"), event("3"), Step::Ends],
        vec![cursor_lost(), Step::Ends],
        vec![event("4")],
    ]);
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    until("the fourth came", || rig.handled().len() == 4).await;
    let asked: Vec<_> = rig.events.after_cursors().into_iter().flatten().collect();
    assert_eq!(asked, ["2", "3"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// What a server keeps may end before the newest event of a source to which nothing has come for long. Whoever was up to
/// date a moment ago has missed nothing, and what is known stays known.
#[tokio::test]
async fn a_cursor_that_is_lost_by_a_second_look_is_no_loss() {
    let phase = |phase: &str| about("phase", &json!({ "phase": phase }), None);
    let mut rig = Rig::new(vec![
        vec![phase("replay"), event("1"), event("2"), phase("live")],
        vec![cursor_lost(), Step::Ends],
        vec![cursor_lost(), Step::Ends],
        vec![phase("replay"), event("2"), event("3"), phase("live")],
    ]);
    rig.config.after_cursor = Some("start".into());
    rig.config.overlap_events = 1;
    rig.config.recheck = Duration::from_millis(5);
    let runtime = rig.start();
    until("the third came", || rig.handled() == ["1", "2", "3"]).await;
    let asked: Vec<_> = rig.events.after_cursors().into_iter().flatten().take(4).collect();
    assert_eq!(asked, ["start", "1", "2", "start"]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A server that hangs says nothing, and one that was not listened to for long may have said much.
#[tokio::test]
async fn a_cursor_that_is_lost_on_a_stream_that_may_have_shown_less_than_there_was_follows_the_policy() {
    let phase = |phase: &str| about("phase", &json!({ "phase": phase }), None);
    for is_idle in [false, true] {
        let mut rig = Rig::new(vec![
            vec![phase("replay"), event("1"), phase("live"), event("2")],
            vec![cursor_lost(), Step::Ends],
            vec![event("3")],
        ]);
        rig.config.after_cursor = Some("start".into());
        rig.config.overlap_events = 0;
        if is_idle {
            rig.config.idle_max = Duration::from_millis(5);
        } else {
            // What came cannot be handled at once, and then it is time to look again.
            rig.config.recheck = Duration::from_millis(5);
            rig.config.reconnect_min = Duration::from_millis(40);
            rig.config.reconnect_max = Duration::from_millis(40);
            rig.processor.notes.lock().unwrap().fails_at = Some(("2".into(), passing()));
        }
        let runtime = rig.start();
        let ended = runtime.wait().await.unwrap_err();
        assert_eq!(
            (ended.fault, rig.handled()),
            (SourceFault::CursorLost, vec!["1".to_owned(), "2".into()]),
            "{is_idle}"
        );
        let asked: Vec<_> = rig.events.after_cursors().into_iter().flatten().collect();
        assert_eq!(asked, ["start", "2"], "{is_idle}");
    }
}

/// Nobody knows what came while there was no stream.
#[tokio::test]
async fn a_cursor_that_is_lost_once_a_server_was_away_follows_the_policy() {
    let gate = Arc::new(Notify::new());
    let phase = |phase: &str| about("phase", &json!({ "phase": phase }), None);
    let mut rig = Rig::new(vec![
        vec![phase("replay"), event("1"), Step::Waits(gate.clone()), phase("live")],
        vec![cursor_lost(), Step::Ends],
    ]);
    rig.config.after_cursor = Some("start".into());
    rig.config.recheck = Duration::from_millis(5);
    rig.config.overlap_events = 0;
    let runtime = rig.start();
    until("the first came", || rig.handled() == ["1"]).await;
    rig.events.refuse(passing());
    gate.notify_one();
    let ended = runtime.wait().await.unwrap_err();
    assert_eq!(ended.fault, SourceFault::CursorLost);
    let asked: Vec<_> = rig.events.after_cursors().into_iter().flatten().collect();
    assert_eq!(asked, ["start", "1", "1"]);
}

#[tokio::test]
async fn a_silent_stream_is_opened_again() {
    let mut rig = Rig::new(vec![vec![event("1")], vec![], vec![event("2")]]);
    rig.config.idle_max = Duration::from_millis(5);
    let runtime = rig.start();
    until("the second came", || rig.handled() == ["1", "2"]).await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A new stream without a place begins now: what came since the last one would be lost.
#[tokio::test]
async fn a_silent_stream_without_a_place_to_go_on_from_is_left_open() {
    let gate = Arc::new(Notify::new());
    let live = about("phase", &json!({ "phase": "live" }), None);
    let mut rig = Rig::new(vec![vec![live, Step::Waits(gate.clone()), event("1")]]);
    rig.config.idle_max = Duration::from_millis(1);
    let runtime = rig.start();
    let flushes =
        || rig.processor.notes.lock().unwrap().calls.iter().filter(|call| **call == "flush").count();
    until("it has said nothing for long", || flushes() >= 5).await;
    assert_eq!(rig.events.asked().len(), 1);
    gate.notify_one();
    until("the event came", || rig.handled() == ["1"]).await;
    assert_eq!(rig.events.after_cursors()[0], None);
    until("it has a place now", || rig.events.asked().len() > 1).await;
    assert_eq!(rig.events.after_cursors()[1].as_deref(), Some("1"));
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

#[tokio::test]
async fn the_newest_events_are_read_again_now_and_then() {
    // Also where a server that was asked for what it has kept says nothing of phases.
    for after_cursor in [None, Some("start".to_owned())] {
        let mut rig = Rig::new(vec![vec![event("1"), event("3")], vec![event("2")]]);
        rig.config.after_cursor = after_cursor;
        rig.config.recheck = Duration::from_millis(5);
        rig.config.overlap_events = 1;
        let runtime = rig.start();
        until("the late one came", || rig.handled().len() == 3).await;
        assert_eq!(rig.handled(), ["1", "3", "2"]);
        runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    }
}

/// One that takes longer than the time between two looks would otherwise begin again and again.
#[tokio::test]
async fn a_second_look_waits_for_the_end_of_a_replay() {
    let gate = Arc::new(Notify::new());
    let waits = || Step::Waits(gate.clone());
    let phase = |phase: &str| about("phase", &json!({ "phase": phase }), None);
    let replay = vec![
        // The server takes its time to begin, too.
        waits(),
        phase("replay"),
        event("8"),
        event("9"),
        waits(),
        event("10"),
        phase("live"),
    ];
    let checkpoints = FakeCheckpoints::with(CONTENT_TYPE, &json!({ "counted": 1, "lastEventCursor": "7" }));
    let mut rig = Rig::of(FakeEvents::of(vec![replay, vec![event("late")]]), checkpoints);
    rig.config.recheck = Duration::from_millis(5);
    rig.config.overlap_events = 1;
    let runtime = rig.start();
    let flushes =
        || rig.processor.notes.lock().unwrap().calls.iter().filter(|call| **call == "flush").count();
    for handled in [0, 2] {
        until("the replay goes on", || rig.handled().len() == handled).await;
        let before = flushes();
        until("a second look was due a few times", || flushes() >= before + 5).await;
        assert_eq!(rig.events.asked().len(), 1, "after {handled} events");
        gate.notify_one();
    }
    until("the newest were read again", || rig.handled().contains(&"late".to_owned())).await;
    assert_eq!(rig.handled(), ["8", "9", "10", "late"]);
    assert_eq!(rig.events.after_cursors()[..2], [Some("7".to_owned()), Some("9".to_owned())]);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// A stream on which there is always something is looked at again, too, though never in the middle of what has arrived.
#[tokio::test]
async fn a_busy_stream_is_read_again_as_well() {
    let busy = (1..=100_000).map(|number| event(&number.to_string())).collect();
    let mut rig = Rig::new(vec![busy, vec![event("late")]]);
    rig.config.recheck = Duration::from_millis(1);
    let runtime = rig.start();
    until("the late one came", || rig.handled().contains(&"late".to_owned())).await;
    assert!(rig.handled().len() < 100_000, "before the stream was at its end");
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}

/// The reference drops every event about the stream; here the processor hears of them and none is handled as an event.
#[tokio::test]
async fn phases_are_told_and_shown() {
    let phase = |phase: &str| about("phase", &json!({ "phase": phase }), None);
    let rig = Rig::new(vec![vec![phase("replay"), event("1"), phase("live"), of_kind("response", "2")]]);
    let runtime = rig.start();
    until("both came", || rig.handled() == ["1", "2"]).await;
    assert_eq!(runtime.status().state, SourceState::Live);
    assert_eq!(rig.processor.notes.lock().unwrap().controls.len(), 2);
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
}
