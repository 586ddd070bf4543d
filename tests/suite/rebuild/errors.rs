//! What stands against a rebuild, and what is left when it does not take over.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::error::{Classify, Retry};
use millrace::event::{Position, TenantId};
use millrace::plugins::{
    DeployFrom, PluginControl, PluginSettings, PluginState, RebuildRequest, RebuildStage,
};
use millrace::processors::{Resolved, Verdict};
use millrace::streams::{EventLog, Retention};
use millrace_tests::dump::dump;

use super::{Arc, Rig, borrowed, many, rebuild, tenant, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rebuilds_of_one_plugin_are_one() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    rig.publish(&[("x", "add", "1")]).await;
    let begun = tokio::join!(
        rig.rebuild("alpha", Some("alpha 2 waits")),
        rig.rebuild("alpha", Some("alpha 3 waits")),
        rig.rebuild("alpha", Some("alpha 4 waits")),
    );
    let begun = [begun.0, begun.1, begun.2];
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 1, "{begun:?}");
    for refused in begun.iter().filter_map(|begun| begun.as_ref().err()) {
        assert!(["rebuild_running", "deploy_in_progress"].contains(&refused.code()), "{refused}");
    }
    let error = rig.rebuild("alpha", None).await.expect_err("one is under way");
    assert_eq!(error.code(), "rebuild_running");
    let error = rig.deploy("alpha 5").await.expect_err("the version that runs must stay");
    assert_eq!(error.code(), "rebuild_running");
    assert_ne!(error.retry(), Retry::Never, "a watched folder or a feed must not give the version up");
    rig.open_gate();
    rig.flipped("alpha").await;
    rig.deploy("alpha 5").await.expect("it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_rebuilt_says_why() {
    let granted = PluginSettings { grants: vec!["http".into()], ..PluginSettings::default() };
    let settings = BTreeMap::from([("caller".to_owned(), granted)]);
    let rig = Rig::with(|options| options, |store| Arc::new(store.clone()), settings);
    let refused = async |request: RebuildRequest| {
        let error = rig.registry.rebuild(request).await.expect_err("it is refused");
        (error.code(), error.to_string())
    };
    assert_eq!(refused(rebuild("alpha", None)).await.0, "plugin_unknown");
    rig.deploy("alpha 1").await.expect("it is deployed");
    rig.deploy("beta 1").await.expect("it is deployed");
    rig.deploy("caller 1").await.expect("it is deployed");
    assert_eq!(rig.registry.rebuild_status("alpha").await.expect_err("there is none").code(), "rebuild_none");
    assert_eq!(
        rig.registry.abandon_rebuild("alpha").await.expect_err("there is none").code(),
        "rebuild_none"
    );
    assert_eq!(refused(rebuild("alpha", Some("beta 2"))).await.0, "plugin_other_name");
    let (code, detail) = refused(rebuild("caller", None)).await;
    assert!(code == "rebuild_refused" && detail.contains("repeat_calls"), "{detail}");
    let (code, _) = refused(RebuildRequest { lanes: Some(0), ..rebuild("alpha", None) }).await;
    assert_eq!(code, "rebuild_refused");
    rig.registry.pause("alpha").await.expect("it pauses");
    let (code, detail) = refused(rebuild("alpha", None)).await;
    assert!(code == "rebuild_refused" && detail.contains("paused"), "{detail}");
    let request = RebuildRequest { repeat_calls: true, ..rebuild("caller", None) };
    rig.registry.rebuild(request).await.expect("who asks for that gets it");
    rig.flipped("caller").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_rebuild_leaves_nothing() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let mut events = many(400, 30, "add");
    events.extend(many(20, 5, "remember"));
    events.extend(many(10, 3, "reject"));
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    // It handles everything and cannot take over: where the old version stands nobody comes to.
    rig.registry.pause("alpha").await.expect("it pauses");
    let before = dump(&rig.dir.path().join("store")).expect("the store can be read");
    rig.registry.resume("alpha").await.expect("it goes on");
    rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    rig.registry.pause("alpha").await.expect("it pauses");
    rig.open_gate();
    let waits = async || rig.view("alpha").await.message.contains("is paused");
    wait("the rebuild waits for the plugin", waits).await;
    assert!(!rig.left().is_empty(), "there is something to leave");
    let view = rig.registry.abandon_rebuild("alpha").await.expect("it is given up");
    assert_eq!((view.stage, view.message.as_str()), (RebuildStage::Abandoned, "it was abandoned"));
    rig.swept().await;
    let after = dump(&rig.dir.path().join("store")).expect("the store can be read");
    assert_eq!(before, after);
    assert_eq!(rig.registry.abandon_rebuild("alpha").await.expect_err("it has ended").code(), "rebuild_none");
    rig.registry.resume("alpha").await.expect("it goes on");
    rig.publish(&[("x", "add", "1")]).await;
    wait("it counts", async || rig.rows("counts_alpha").await.get("x") == Some(&(1, 1))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_events_are_told_before_the_flip() {
    let rig = Rig::new();
    // All but the key `y` fall in this version and in no other.
    rig.deploy("alpha 1 traps").await.expect("it is deployed");
    let last = rig.publish(&[("x", "emit", "1"), ("x", "emit", "1"), ("y", "reject", "1")]).await;
    rig.settle("alpha").await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    let told = async || {
        let view = rig.view("alpha").await;
        assert_ne!(view.stage, RebuildStage::Flipped, "nobody has emitted what comes of them");
        view.report.is_some()
    };
    wait("it tells what it would lose", told).await;
    let view = rig.view("alpha").await;
    let report = view.report.clone().expect("it was told");
    // The first of `x` is a dead letter, the second waits behind it. Both versions reject the event of `y`.
    assert_eq!((report.unemitted.count, report.unemitted.first), (2, vec![last.0 - 2, last.0 - 1]));
    assert_eq!(report.unhandled.count, 0);
    assert!(view.message.contains("accept"), "{}", view.message);
    assert_eq!(rig.show("alpha").await.deployment.version, "1.0.0");
    let accept = RebuildRequest { accept_unemitted: true, ..rebuild("alpha", None) };
    let view = rig.registry.rebuild(accept).await.expect("it is told to the one under way");
    assert!(view.accept_unemitted);
    let report = rig.flipped("alpha").await.report.expect("it tells what it did");
    assert_eq!((report.unemitted.count, report.letters_replaced), (2, 2));
    assert!(rig.events("emitted-").await.is_empty(), "as it was accepted");
    let letters = rig.registry.dead_letters("alpha", None, 10).await.expect("they can be read");
    assert_eq!(letters.iter().map(|letter| letter.event.last_position()).collect::<Vec<_>>(), [last]);
    assert_eq!(letters[0].plugin_version, "2.0.0", "the new version has its own");
    assert_eq!(rig.rows("counts_alpha").await.get("x"), Some(&(2, 2)));
    let discarded = rig.registry.resolve("alpha", None, last, Verdict::Discard).await;
    discarded.expect("it is the plugin's like any other");
}

/// Neither version has handled it, and with the old one's tasks it would be gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_from_before_the_start_is_told_before_it_is_lost() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    // The first of them is a dead letter, and the second waits behind it.
    let waiting = rig.publish(&[("x", "reject", "1"), ("x", "add", "1")]).await;
    rig.publish(&[("y", "add", "1")]).await;
    rig.settle("alpha").await;
    let request = RebuildRequest { from: DeployFrom::Tail, ..rebuild("alpha", Some("alpha 2")) };
    rig.registry.rebuild(request).await.expect("it begins");
    let told = async || {
        let view = rig.view("alpha").await;
        assert_ne!(view.stage, RebuildStage::Flipped, "nobody has handled what waits");
        view.report.is_some()
    };
    wait("it tells what it would lose", told).await;
    let report = rig.view("alpha").await.report.expect("it was told");
    assert_eq!((report.unemitted.count, report.unemitted.first), (1, vec![waiting.0]));
    let accept = RebuildRequest { accept_unemitted: true, ..rebuild("alpha", None) };
    rig.registry.rebuild(accept).await.expect("it is told to the one under way");
    rig.flipped("alpha").await;
    let letters = rig.registry.dead_letters("alpha", None, 10).await.expect("they can be read");
    assert_eq!(letters.len(), 1, "the letter stays");
    assert_eq!(letters[0].event.last_position().0, waiting.0 - 1);
}

/// Letters from before the start are kept, and belong where the new version has their keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_from_before_the_start_are_decided_in_the_lanes_of_their_keys() {
    let rig = Rig::new();
    rig.deploy("alpha 1 traps").await.expect("it is deployed");
    let keys: Vec<_> = (0..12).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
    rig.publish(&events).await;
    rig.settle("alpha").await;
    let from = DeployFrom::Tail;
    let request = RebuildRequest { from, lanes: Some(4), ..rebuild("alpha", Some("alpha 2")) };
    rig.registry.rebuild(request).await.expect("it begins");
    rig.flipped("alpha").await;
    let letters = rig.registry.dead_letters("alpha", None, 100).await.expect("they can be read");
    assert_eq!(letters.len(), keys.len());
    for letter in letters {
        let position = letter.event.last_position();
        let resolved = rig.registry.resolve("alpha", None, position, Verdict::Replay).await;
        let resolved = resolved.expect("it is decided");
        assert!(matches!(resolved, Resolved::Replayed { out_of_order: true, .. }), "{resolved:?}");
    }
    // The next of each key meets what the replay has made of the first.
    rig.publish(&events).await;
    rig.settle("alpha").await;
    let rows = rig.rows("counts_alpha").await;
    assert!(rows.len() == keys.len() && rows.values().all(|row| *row == (2, 2)), "{rows:?}");
    let letters = rig.registry.dead_letters("alpha", None, 100).await.expect("they can be read");
    assert!(letters.is_empty(), "{letters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_cannot_reach_the_barrier_holds_nobody_up() {
    let rig = Rig::new();
    let other = TenantId::new("other").expect("a good name");
    rig.deploy("alpha 1 single").await.expect("it is deployed");
    rig.deploy("beta 1").await.expect("it is deployed");
    rig.publish_of(&other, &[("x", "add", "1")]).await;
    // One key, held by a letter: what follows waits, and no position behind it is reached.
    let first = rig.publish(&[("x", "reject", "1"), ("x", "add", "1")]).await;
    let letter = Position(first.0 - 1);
    let blocked = async || rig.show("alpha").await.state == PluginState::Blocked;
    wait("the lane stands still", blocked).await;
    rig.rebuild("alpha", None).await.expect("it begins");
    let late = async || rig.view("alpha").await.message.contains("cannot come to one position");
    wait("a try has ended", late).await;
    let view = rig.view("alpha").await;
    assert!(view.message.contains("held by dead letter") && view.tries > 0, "{}", view.message);
    rig.publish_of(&other, &[("x", "add", "1")]).await;
    rig.publish(&[("z", "add", "1")]).await;
    wait("others go on", async || rig.rows("counts_beta").await.get("z") == Some(&(1, 1))).await;
    let served = async || rig.rows_of(&other, "counts_alpha").await.get("x") == Some(&(2, 1));
    wait("its other tenants go on", served).await;
    assert_ne!(rig.view("alpha").await.stage, RebuildStage::Flipped);
    rig.registry.abandon_rebuild("alpha").await.expect("it is given up");
    rig.registry.resolve("alpha", None, letter, Verdict::Discard).await.expect("it is decided");
    wait("the lane goes on", async || rig.rows("counts_alpha").await.get("x") == Some(&(1, 1))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_retention_passes_says_so() {
    let mut rig = Rig::new();
    // It cannot take over: what the old version could not handle is not accepted.
    rig.deploy("alpha 1 traps").await.expect("it is deployed");
    rig.publish(&[("x", "add", "1")]).await;
    rig.settle("alpha").await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    wait("it has come as far as it can", async || rig.view("alpha").await.report.is_some()).await;
    rig.registry.shut_down(Duration::from_secs(20)).await;
    let events = many(50, 5, "add");
    rig.publish(&borrowed(&events)).await;
    let retention = Retention { events: Some(10), ..Retention::default() };
    rig.store.trim(retention).await.expect("the log can be trimmed");
    rig.restart().await;
    let over = async || rig.view("alpha").await.stage == RebuildStage::Abandoned;
    wait("the rebuild has ended", over).await;
    let message = rig.view("alpha").await.message;
    assert!(message.contains("position_lost"), "{message}");
    rig.swept().await;
    let bounds = rig.store.bounds();
    let request = RebuildRequest { from: DeployFrom::After(1), ..rebuild("alpha", None) };
    assert!(bounds.trimmed > Position(1));
    let error = rig.registry.rebuild(request).await.expect_err("what it asks for is gone");
    assert_eq!(error.code(), "position_lost");
    assert!(rig.rows_of(&tenant(), "counts_alpha").await.is_empty(), "the table is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_takes_long_is_waited_for_within_a_bound() {
    let rig = Rig::new();
    rig.open_gate();
    rig.deploy("alpha 1 waits").await.expect("it is deployed");
    rig.deploy("beta 1").await.expect("it is deployed");
    // The old version has no instance before its first event.
    *rig.gate.lock().expect("test") = false;
    rig.publish(&[("x", "add", "1")]).await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    let late = async || rig.view("alpha").await.message.contains("did not come to one position");
    wait("a try has ended", late).await;
    rig.publish(&[("x", "add", "1")]).await;
    wait("others go on", async || rig.rows("counts_beta").await.get("x") == Some(&(2, 1))).await;
    assert!(rig.rows("counts_alpha").await.is_empty(), "nobody has taken over");
    rig.open_gate();
    let report = rig.flipped("alpha").await.report.expect("it tells what it did");
    assert!(report.is_exact());
    assert_eq!(rig.rows("counts_alpha").await.get("x"), Some(&(2, 2)));
}
