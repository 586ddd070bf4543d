//! Claims about entries that a channel does not take from a processor: what that costs, and who is blamed.

use millrace::channels::Outcome;
use millrace::processors::{BreakerState, Exposed, Measures, VersionCounters, exposition};
use millrace_tests::faulty::{Fault, Faulty};
use millrace_tests::scene::skipping;
use millrace_tests::scripted::Scripted;

use super::*;

/// One failure in a row is enough to make it rest.
fn strict() -> ProcessorSettings {
    ProcessorSettings { breaker_failures_max: 1, ..settings() }
}

/// Whose flush is called every few milliseconds.
fn ticking() -> Scripted {
    let mut scripted = scripted();
    scripted.manifest.flush_interval_ms = Some(5);
    scripted
}

async fn change(scene: &Scene, of: &str, change: Change) {
    scene.store.change(&process(of), Actor::Host, change).await.unwrap();
}

async fn close(scene: &Scene, of: &str) {
    change(scene, of, Change::Close { outcome: Outcome::Success, reason: String::new() }).await;
}

/// A process that nobody executes.
async fn make_unassigned(scene: &Scene, name: &str) {
    make(&scene.store, &tenant_id("a"), name, "plugin:scripted", &[("c", false)]).await;
    change(scene, name, Change::Unassign).await;
}

async fn until_said(scene: &Scene, expected: &[&str]) {
    let said = async {
        while texts(&scene.store, &channel("p", "c")).await != expected {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(60), said).await;
    assert!(said.is_ok(), "{:?}, not {expected:?}", texts(&scene.store, &channel("p", "c")).await);
}

/// Nothing has made it rest, and no run has begun again.
fn assert_undisturbed(runner: &Runner) {
    let status = runner.status();
    assert_eq!((status.counts.breaker_openings, status.counts.restarts), (0, 0), "{status:?}");
    assert!(status.failures.is_empty(), "{status:?}");
    assert!(status.tasks.iter().all(|task| task.breaker == BreakerState::Closed), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_nobody_takes_is_left_out_counted_and_costs_nothing_else() {
    let scene = Scene::new().await;
    for (name, executor) in [
        ("p", "plugin:scripted"),
        ("closed", "plugin:scripted"),
        ("former", "plugin:scripted"),
        ("other", "plugin:other"),
    ] {
        make(&scene.store, &tenant_id("a"), name, executor, &[("c", false)]).await;
    }
    let counters: Arc<VersionCounters> = Arc::default();
    let runner = Runner::start_counting(&scene.engine, Arc::new(scripted()), strict(), Arc::clone(&counters));
    let first = scene.publish("a", &[("before", "append", r#"{"process":"former","text":"mine"}"#)]).await;
    scene.done(&runner, first).await;
    assert_eq!(runner.status().counts.dropped_appends, 0);
    close(&scene, "closed").await;
    change(&scene, "former", Change::Assign(party("plugin:other"))).await;
    let last = scene
        .publish(
            "a",
            &[
                ("u", "append", r#"{"process":"none"}"#),
                ("v", "append", r#"{"channel":"none"}"#),
                ("w", "append", r#"{"process":"closed","times":3}"#),
                ("x", "append", r#"{"process":"other"}"#),
                ("y", "append", r#"{"process":"former"}"#),
                ("z", "append", r#"{"text":"said"}"#),
                ("z", "append", r#"{"type":"end"}"#),
                ("z", "append", r#"{"text":"too late"}"#),
                ("after", "add", "1"),
            ],
        )
        .await;
    scene.done(&runner, last).await;
    let rows = [("before", 1), ("u", 1), ("v", 1), ("w", 1), ("x", 1), ("y", 1), ("z", 3), ("after", 1)];
    assert_eq!(scene.counts("a").await, counts(&rows), "all else of their commits is there");
    assert!(scene.dead().await.is_empty());
    assert_undisturbed(&runner);
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, ["said", ""]);
    assert_eq!(texts(&scene.store, &channel("former", "c")).await, ["mine"]);
    for of in ["closed", "other"] {
        assert!(texts(&scene.store, &channel(of, "c")).await.is_empty());
    }
    assert_eq!(runner.status().counts.dropped_appends, 8);
    let tasks = runner.status().tasks;
    let said = tasks.iter().find_map(|task| task.last_refused.as_deref()).unwrap_or_default();
    assert!(said.starts_with("append to channel `"), "{said:?}");
    let shown = exposition(&[Exposed {
        plugin: "scripted".into(),
        version: "1.0.0".into(),
        lag_events: 0,
        measures: Measures::default(),
        counters,
    }]);
    for (code, entries) in [
        ("channel_unknown", 2),
        ("process_closed", 3),
        ("channel_forbidden", 1),
        ("channel_access_revoked", 1),
        ("channel_half_closed", 1),
    ] {
        let of = format!("{{plugin=\"scripted\",version=\"1.0.0\",code=\"{code}\"}} {entries}\n");
        assert!(shown.contains(&format!("millrace_processor_appends_dropped_total{of}")), "{of}: {shown}");
    }
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_waits_with_its_key_until_somebody_is_assigned() {
    let scene = Scene::new().await;
    make_unassigned(&scene, "p").await;
    let (once, twice) = (r#"{"text":"once"}"#, r#"{"text":"twice"}"#);
    let said = [("x", "append", once), ("y", "add", "1"), ("x", "append", twice)];
    let last = scene.publish("a", &said).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings { retries_max: 100_000, ..strict() });
    until("its key waits and others do not", || {
        let status = runner.status();
        let parked: u64 = status.tasks.iter().map(|task| task.parked_events).sum();
        status.done_through >= last && parked == 2
    })
    .await;
    assert_eq!(scene.counts("a").await, counts(&[("y", 1)]));
    until("it is tried again and again", || runner.status().counts.retries > 5).await;
    assert!(scene.dead().await.is_empty());
    assert_undisturbed(&runner);
    change(&scene, "p", Change::Assign(party("plugin:scripted"))).await;
    scene.done(&runner, last).await;
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, ["once", "twice"]);
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1)]));
    assert_eq!(runner.status().counts.dropped_appends, 0);
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_channel_costs_its_event_after_as_many_tries_as_a_retry_has() {
    let scene = Scene::new().await;
    make(&scene.store, &tenant_id("a"), "p", "plugin:scripted", &[]).await;
    let options = ChannelOptions { entries_max: 1, ..ChannelOptions::default() };
    let channel_c = NewChannel { name: ChannelName::new("c").unwrap(), options };
    change(&scene, "p", Change::AddChannel { channel: channel_c, exists_ok: false }).await;
    let (fits, over) = (r#"{"text":"fits"}"#, r#"{"text":"over"}"#);
    let said = [("x", "append", fits), ("x", "append", over), ("x", "add", "1"), ("y", "add", "1")];
    let last = scene.publish("a", &said).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings { retries_max: 2, ..strict() });
    until("the key is held", || {
        let status = runner.status();
        status.done_through >= last && status.tasks.iter().any(|task| task.held_keys == 1)
    })
    .await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1), ("y", 1)]));
    let letter = scene.dead().await.pop().unwrap();
    assert_eq!((letter.reason.as_str(), letter.attempts), ("refused", 3));
    assert!(
        letter.message.starts_with("append to channel `c` of process `p`: channel_full: "),
        "{}",
        letter.message
    );
    assert_undisturbed(&runner);
    // What it waits for ends with the process.
    close(&scene, "p").await;
    let done = runner.resolve(letter, Verdict::Replay).await.unwrap();
    assert_eq!(done, Resolved::Replayed { out_of_order: false, released: 1 });
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 3), ("y", 1)]));
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, ["fits"]);
    assert_eq!(runner.status().counts.dropped_appends, 1);
    assert!(scene.dead().await.is_empty());
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_wrong_costs_its_event_at_once() {
    let scene = Scene::new().await;
    let channels = [("c", false), ("events", true)];
    make(&scene.store, &tenant_id("a"), "p", "plugin:scripted", &channels).await;
    let large = format!(r#"{{"channel":"events","text":"{}"}}"#, "x".repeat(122_881));
    let last = scene
        .publish(
            "a",
            &[
                ("reply", "append", r#"{"reply":9}"#),
                ("large", "append", &large),
                ("fine", "append", r#"{"text":"fine"}"#),
                ("error", "append", r#"{"error":"without its type"}"#),
                ("type", "append", r#"{"type":"other"}"#),
                ("fine", "append", r#"{"text":"fine, too"}"#),
            ],
        )
        .await;
    let (runner, _) = scene.start(scripted(), skipping());
    scene.done(&runner, last).await;
    let dead = scene.dead().await;
    assert_eq!(dead.len(), 4, "{dead:?}");
    for (key, reason, says) in [
        ("reply", "refused", "channel_reply_unknown: "),
        ("large", "refused", "channel_event_payload_bytes_max: "),
        ("error", "output", "the text of an error goes with the type `error` only"),
        ("type", "output", "an entry's type is `data`, `end` or `error`, not `other`"),
    ] {
        let letter = dead.iter().find(|letter| letter.event.get(0).agg_id == key).unwrap();
        assert_eq!(letter.reason, reason, "{key}");
        assert!(letter.message.contains(says), "{key}: {}", letter.message);
    }
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, ["fine", "fine, too"]);
    assert_eq!((runner.status().counts.dropped_appends, runner.status().counts.restarts), (0, 0));
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_flush_is_called_again_and_says_everything_once() {
    let scene = Scene::new().await;
    make_unassigned(&scene, "p").await;
    let (runner, _) = scene.start(ticking(), strict());
    let later = [("x", "later", r#"{"text":"one"}"#), ("x", "later", r#"{"text":"two"}"#)];
    scene.publish("a", &later).await;
    let refused = || runner.status().counts.refused_flushes;
    until("its flush is refused", || refused() >= 2).await;
    let adds = vec![("y", "add", "1"); 50];
    for _ in 0..10 {
        let last = scene.publish("a", &adds).await;
        scene.done(&runner, last).await;
    }
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 500)]), "events go on");
    let before = refused();
    until("it is called again when no event comes, too", || refused() > before).await;
    assert!(scene.dead().await.is_empty());
    assert_undisturbed(&runner);
    until("the status says why", || {
        let said = runner.status().tasks.into_iter().find_map(|task| task.last_refused);
        said.is_some_and(|said| {
            said.starts_with("effects of a flush: append to channel `c` of process `p`: channel_forbidden: ")
        })
    })
    .await;
    assert!(texts(&scene.store, &channel("p", "c")).await.is_empty());
    change(&scene, "p", Change::Assign(party("plugin:scripted"))).await;
    until_said(&scene, &["one", "two"]).await;
    scene.publish("a", &[("x", "later", r#"{"text":"three"}"#)]).await;
    until_said(&scene, &["one", "two", "three"]).await;
    assert!(runner.stop(Duration::from_secs(20)).await);
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, ["one", "two", "three"]);
    assert_eq!(scene.counts("a").await["x"], 3);
}

/// The effects of an event and those of a flush are in one commit, which is refused for the flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_not_blamed_for_the_flush_in_its_commit() {
    let mut faulty = None;
    let scene = Scene::with_checkpoints(|store| {
        let wrapped = Arc::new(Faulty::new(store, Fault::NotWritten, u64::MAX));
        faulty = Some(Arc::clone(&wrapped));
        wrapped
    })
    .await;
    let faulty = faulty.unwrap();
    make(&scene.store, &tenant_id("a"), "p", "plugin:scripted", &[("c", false)]).await;
    let (runner, watch) = scene.start(ticking(), strict());
    let first = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, first).await;
    let commits = faulty.commits();
    faulty.hold(true);
    scene.publish("a", &[("x", "add", "1")]).await;
    until("a commit is under way", || faulty.commits() > commits).await;
    let last = scene.publish("a", &[("y", "later", r#"{"reply":9}"#)]).await;
    let handled = || watch.handled.lock().unwrap().iter().any(|(_, _, key, _)| key == "y");
    until("the event is handled", handled).await;
    let flushes = watch.flushes.load(Ordering::SeqCst);
    until("a flush is in the next commit with it", || watch.flushes.load(Ordering::SeqCst) > flushes).await;
    faulty.hold(false);
    scene.done(&runner, last).await;
    until("the flush alone is refused, too", || runner.status().counts.refused_flushes >= 2).await;
    let last = scene.publish("a", &vec![("z", "add", "1"); 500]).await;
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1), ("z", 500)]));
    assert!(scene.dead().await.is_empty());
    assert_undisturbed(&runner);
    assert!(runner.stop(Duration::from_secs(20)).await, "and its last flush keeps nobody from stopping");
    assert!(texts(&scene.store, &channel("p", "c")).await.is_empty());
}
