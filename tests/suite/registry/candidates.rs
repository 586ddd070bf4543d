//! Claims about candidates: refused with a report that stays, confirmed, given up; and about the way back.

use std::time::{Duration, Instant};

use millrace::plugins::{CandidateState, DeployOptions, Proof};
use millrace::processors::Expect;

use super::*;

async fn deploy_with(
    scene: &Scene,
    component: &str,
    options: DeployOptions,
) -> Result<PluginStatus, ControlError> {
    let request = DeployRequest { options, ..request(component.to_owned(), "api:test") };
    scene.registry.deploy(request).await
}

/// `alpha 1` with two events.
async fn running() -> Scene {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(&[("x", "add", "1"), ("y", "add", "1")]).await;
    scene.settle("alpha").await;
    scene
}

const CONFIRM: DeployOptions = DeployOptions {
    shadow_events: None,
    shadow_ms: None,
    no_shadow: false,
    confirm: true,
    expect: Expect::Anything,
    rollback: false,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_falls_is_refused_and_its_report_survives_a_restart() {
    let mut scene = running().await;
    let error = scene.deploy("alpha 2 traps int").await.expect_err("it falls");
    assert_eq!(error.code(), "shadow_trap");
    for restarted in [false, true] {
        if restarted {
            scene.restart().await;
        }
        let status = scene.show("alpha").await;
        assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
        let candidate = status.candidate.expect("it is remembered");
        assert_eq!((candidate.state, candidate.name.as_str()), (CandidateState::Refused, "alpha 2.0.0"));
        assert_eq!(candidate.report.expect("it was in the shadow").added_columns, ["counts_alpha.added"]);
        assert_eq!(status.last_refusal.expect("it is the last").code, "shadow_trap");
    }
    scene.deploy("alpha 3 text").await.expect("the column of the refused one was never made");
    assert!(scene.show("alpha").await.last_refusal.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_rows_refuse_only_where_identical_ones_are_expected() {
    let scene = running().await;
    let options = DeployOptions { expect: Expect::IdenticalRows, ..DeployOptions::default() };
    let error = deploy_with(&scene, "alpha 2 wrong", options).await.expect_err("its rows differ");
    assert_eq!(error.code(), "shadow_rows_differ");
    assert!(error.to_string().contains("table `counts_alpha`, key `x`"), "{error}");
    let status = scene.deploy("alpha 2 wrong").await.expect("the differences are told");
    let candidate = status.candidate.expect("it is the last");
    assert_eq!(candidate.state, CandidateState::TookOver);
    let report = candidate.report.expect("it was in the shadow");
    assert_eq!((report.events, report.replayed_events, report.rows.different), (2, 2, 2));
    assert_eq!(status.deployment.proof, Proof::Shadowed { events: 2 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shadow_can_be_left_out_and_the_history_says_so() {
    let scene = running().await;
    let options = DeployOptions { no_shadow: true, ..DeployOptions::default() };
    deploy_with(&scene, "alpha 2 wrong", options).await.expect("nobody looks");
    let history = scene.registry.history("alpha").await.expect("a history");
    assert_eq!(history.iter().map(|d| d.proof).collect::<Vec<_>>(), [Proof::LoadedOnly, Proof::Loaded]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_waits_to_be_confirmed_and_takes_over_then() {
    let scene = running().await;
    let status = deploy_with(&scene, "alpha 2", CONFIRM).await.expect("it proves itself");
    assert_eq!(status.deployment.version, "1.0.0");
    assert_eq!(status.candidate.expect("it waits").state, CandidateState::Waiting);
    assert_eq!(scene.deploy("alpha 3").await.expect_err("one waits").code(), "candidate_waits");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 1), "the running version serves");
    let status = scene.registry.confirm("alpha").await.expect("it takes over");
    assert_eq!(status.deployment.version, "2.0.0");
    assert_eq!(status.candidate.expect("it is the last").state, CandidateState::TookOver);
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(3, 2));
    assert_eq!(scene.registry.confirm("alpha").await.expect_err("once").code(), "candidate_unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_candidate_is_given_up_on_request_by_a_pause_and_by_a_restart() {
    let mut scene = running().await;
    for way in ["abandon", "pause", "restart"] {
        deploy_with(&scene, "alpha 2", CONFIRM).await.expect("it proves itself");
        match way {
            "abandon" => drop(scene.registry.abandon("alpha").await.expect("it is given up")),
            "pause" => {
                scene.registry.pause("alpha").await.expect("it pauses");
                scene.registry.resume("alpha").await.expect("it resumes");
            }
            _ => scene.restart().await,
        }
        let status = scene.show("alpha").await;
        assert_eq!(status.deployment.version, "1.0.0", "{way}");
        let candidate = status.candidate.expect("it is remembered");
        assert_eq!(candidate.state, CandidateState::Abandoned, "{way}");
        assert!(candidate.refusal.is_some_and(|why| !why.message.is_empty()), "{way}");
        assert_eq!(scene.registry.confirm("alpha").await.expect_err(way).code(), "candidate_unknown");
    }
    assert_eq!(scene.registry.abandon("alpha").await.expect_err("none").code(), "candidate_unknown");
}

/// While it lives, the first call of a version that `hangs` does not come back.
struct Hung<'a>(&'a Scene);

impl<'a> Hung<'a> {
    fn new(scene: &'a Scene) -> Self {
        *scene.hanging.held.lock().expect("test") = Some(tenant());
        Self(scene)
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        *self.0.hanging.held.lock().expect("test") = None;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_deploy_is_refused_while_one_is_under_way_and_a_pause_ends_it() {
    let scene = running().await;
    let hung = Hung::new(&scene);
    let slow = scene.deploy("alpha 2 hangs");
    let meanwhile = async {
        let begun = Instant::now();
        loop {
            let candidate = scene.show("alpha").await.candidate;
            if candidate.as_ref().is_some_and(|candidate| candidate.state == CandidateState::InShadow) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it is not in the shadow: {candidate:?}");
            tokio::task::yield_now().await;
        }
        let second = scene.deploy("alpha 3 traps").await.expect_err("one is under way");
        assert_eq!(second.code(), "deploy_in_progress");
        scene.registry.pause("alpha").await.expect("it pauses")
    };
    let (deployed, paused) = tokio::join!(slow, meanwhile);
    drop(hung);
    assert_eq!(deployed.expect_err("the pause ends it").code(), "shadow_stopped");
    assert_eq!((paused.state, paused.deployment.version.as_str()), (PluginState::Paused, "1.0.0"));
    let candidate = scene.show("alpha").await.candidate.expect("it was tried");
    assert_eq!(candidate.state, CandidateState::Abandoned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_a_deploy_of_what_ran_before() {
    let scene = running().await;
    scene.deploy("alpha 2 int").await.expect("it adds a column");
    scene.publish(X).await;
    scene.settle("alpha").await;
    let rollback = |to| scene.registry.rollback("alpha", to, "api:test", DeployOptions::default());
    let status = rollback(None).await.expect("it goes back to the version before");
    assert_eq!(status.deployment.version, "1.0.0");
    assert!(status.deployment.rollback);
    scene.publish(X).await;
    scene.settle("alpha").await;
    let rows = scene.rows("counts_alpha").await;
    let expected = [Value::Int(3), Value::Int(1), Value::Null];
    assert_eq!(rows["x"], expected, "it goes on counting; the column that it does not know is empty");
    let status = rollback(Some("2.0.0")).await.expect("and forward again, by version");
    assert_eq!(status.deployment.digest, "alpha 2 int");
    let error = rollback(Some("9.9.9")).await.expect_err("there is none");
    assert_eq!(error.code(), "deployment_unknown");
    let history = scene.registry.history("alpha").await.expect("a history");
    assert_eq!(history.iter().map(|d| d.rollback).collect::<Vec<_>>(), [true, true, false, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_that_refuses_the_newest_state_leaves_the_running_version() {
    let scene = Scene::new();
    scene.deploy("alpha 1 refuses").await.expect("there is no state yet");
    scene.deploy("alpha 2").await.expect("it takes over");
    scene.publish(X).await;
    scene.settle("alpha").await;
    let error = scene.registry.rollback("alpha", None, "api:test", DeployOptions::default()).await;
    let error = error.expect_err("it does not load this state");
    assert_eq!(error.code(), "state_refused");
    assert!(error.to_string().contains("the running version goes on"), "{error}");
    assert_eq!(scene.show("alpha").await.deployment.version, "2.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_are_answered_as_no_change() {
    let scene = running().await;
    assert!(scene.deploy("alpha 1").await.expect("it is no error").nothing_changed);
    assert!(!scene.deploy("alpha 2").await.expect("it takes over").nothing_changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_no_longer_declared_is_told_of_and_stays_readable() {
    let scene = running().await;
    let status = scene.deploy("alpha 2 other").await.expect("it takes over");
    let report = status.candidate.and_then(|candidate| candidate.report).expect("it was in the shadow");
    assert_eq!(report.removed_tables, ["counts_alpha"]);
    assert_eq!(report.added_tables, ["other_alpha"]);
    assert_eq!(scene.count("alpha").await, ints(1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ordering_key_is_kept_for_a_version_that_cannot_be_loaded_any_more() {
    let mut scene = running().await;
    scene.artifacts.0.lock().expect("test").remove("alpha 1");
    scene.restart().await;
    scene.failed("alpha").await;
    let error = scene.deploy("alpha 2 single").await.expect_err("its lanes were filled by another key");
    assert!(error.to_string().contains("another key needs a rebuild"), "{error}");
    scene.deploy("alpha 2").await.expect("the same key is taken");
}
