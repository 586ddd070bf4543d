//! Who runs what.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use millrace::control::fleet::{HostPresence, compare, status};
use millrace::control::report::{HostReport, Seen};
use millrace::control::rollout::{Progress, Silence};
use millrace::control::snapshot::{Drift, state_digest};
use millrace::control::{
    ArtifactRepository as _, Board as _, ControlFeedError, ControlSource as _, ControlVersion, Controller,
    ControllerOptions, FleetMark, Phase, SnapshotRef,
};
use millrace_tests::control_events::{digest_of, trust};

use super::stage::{GOOD, Habits, Stage, people};
use super::{PLUGIN, plan, wave};

fn fleet() -> Vec<(&'static str, &'static str)> {
    vec![("a", "canary"), ("b", "edge"), ("c", "edge")]
}

#[tokio::test]
async fn w13_who_runs_what_query_tells_desired_from_observed() {
    let mut stage = Stage::running(&fleet()).await;
    assert!(stage.status().await.converged);
    stage.deploy("2.0.0", Some(plan(&[wave(100, &[("tier", "canary")], 3_600), wave(100, &[], 0)]))).await;
    // Proposed, and nobody can know.
    let status = stage.status().await;
    let plugin = &status.plugins[0];
    assert!(!status.converged && !plugin.published);
    assert!(plugin.missing.iter().any(|line| line == "it is not in the feed yet"), "{:?}", plugin.missing);
    stage.host("c").is_away = true;
    stage.steps(1).await;
    let status = stage.status().await;
    let plugin = &status.plugins[0];
    assert_eq!((plugin.plugin.as_str(), plugin.revision, plugin.published), (PLUGIN, 2, true));
    let rollout = plugin.rollout.as_ref().unwrap();
    assert_eq!((rollout.progress, rollout.wave, rollout.waves), (Progress::Running, 1, 2));
    assert_eq!(plugin.spec.as_ref().unwrap().version, "2.0.0");
    assert_eq!(plugin.stable.as_ref().unwrap().digest, digest_of(b"1.0.0"));
    let lines: Vec<_> = plugin
        .hosts
        .iter()
        .map(|host| {
            (host.host.as_str(), host.wave, host.wanted.as_ref().unwrap().version.as_str(), host.converged)
        })
        .collect();
    assert_eq!(
        lines,
        [("a", Some(1), "2.0.0", true), ("b", Some(2), "1.0.0", true), ("c", Some(2), "1.0.0", false)]
    );
    assert_eq!(plugin.missing, ["c: is at revision 1 of 2"]);
    let behind: Vec<_> = status.hosts.iter().map(|host| (host.host.as_str(), host.behind)).collect();
    assert_eq!(behind, [("a", 0), ("b", 0), ("c", 1)]);

    stage.steps(7).await;
    let status = stage.status().await;
    assert_eq!(status.hosts[2].presence, HostPresence::Silent);
    assert!(status.plugins[0].missing[0].starts_with("c: silent for 4"), "{:?}", status.plugins[0].missing);
    // Nobody waits for a host that is gone, and it is still shown.
    stage.first().controller.halt(PLUGIN, &people()).await.unwrap();
    stage.pass(25 * 3600);
    stage.steps(1).await;
    let status = stage.status().await;
    assert_eq!(status.hosts[2].presence, HostPresence::Gone);
    assert!(status.converged, "{:?}", status.plugins[0].missing);
}

/// W8: a host that has missed something is seen from the origin.
#[test]
fn w8_the_origin_sees_which_host_has_another_state() {
    let mark = FleetMark { version: ControlVersion(5), state_digest: "the fleet's".into(), snapshot: None };
    let report = |host: &str, cursor, digest: &str| {
        let mut report = HostReport::new(host, BTreeMap::new(), "1");
        (report.cursor, report.state_digest) = (ControlVersion(cursor), digest.into());
        Seen { host: host.into(), age: Duration::ZERO, report: Some(report) }
    };
    let unreadable = Seen { host: "f".into(), age: Duration::ZERO, report: None };
    let reports = [
        report("a", 5, "the fleet's"),
        report("b", 5, "another"),
        report("c", 4, "another"),
        report("d", 6, "another"),
        report("e", 5, ""),
        unreadable,
    ];
    let mut hosts = status(&[], &reports, mark.version, Silence::default()).hosts;
    compare(&mut hosts, &reports, None);
    assert!(hosts.iter().all(|host| host.drift.is_none()), "nothing is marked");
    compare(&mut hosts, &reports, Some(&mark));
    let drifts: Vec<_> = hosts.iter().map(|host| host.drift).collect();
    let told = [Drift::Same, Drift::Differs, Drift::Behind, Drift::Ahead].map(Some);
    assert_eq!(drifts, [&told[..], &[None, None]].concat());
}

#[tokio::test]
async fn a_wait_for_convergence_says_what_is_missing() {
    let mut stage = Stage::running(&fleet()).await;
    stage.habits.insert("2.0.0".into(), Habits { is_refused: true, ..GOOD });
    stage.deploy("2.0.0", None).await;
    stage.steps(2).await;
    let plugin = stage.status().await.plugins.remove(0);
    assert_eq!(plugin.missing.len(), 3);
    assert_eq!(plugin.missing[0], "a: has set it aside: 2.0.0 is not sound");
    assert_eq!(plugin.hosts[0].serving, Some(digest_of(b"1.0.0")));
    stage.habits.clear();
    stage.first().controller.change(PLUGIN, None, &people(), |present, _| present.remove()).await.unwrap();
    stage.steps(2).await;
    let status = stage.status().await;
    assert!(status.converged, "{:?}", status.plugins[0].missing);
    stage.board.report("odd", "nonsense").await.unwrap();
    assert_eq!(stage.status().await.plugins[0].missing, ["odd: its report cannot be read"]);
}

/// A version that took over and then stopped by itself is not running, whatever its phase.
#[tokio::test]
async fn w13_a_host_whose_plugin_has_stopped_by_itself_is_not_converged() {
    let mut stage = Stage::running(&fleet()).await;
    stage.habits.insert("2.0.0".into(), Habits { has_stopped: true, ..GOOD });
    stage.deploy("2.0.0", None).await;
    stage.steps(2).await;
    let status = stage.status().await;
    let plugin = &status.plugins[0];
    assert!(!status.converged && !plugin.converged);
    assert_eq!(
        plugin.missing,
        ["a", "b", "c"].map(|host| format!("{host}: has stopped it: it gave up")),
        "whoever waits is told why"
    );
    let host = &plugin.hosts[0];
    assert_eq!((host.phase, host.converged), (Phase::Active, false));
    let reason = host.reason.as_ref().unwrap();
    assert_eq!((reason.code.as_str(), reason.message.as_str()), ("plugin_failed", "it gave up"));
    // It was started again.
    stage.habits.clear();
    stage.steps(1).await;
    let status = stage.status().await;
    assert!(status.converged, "{:?}", status.plugins[0].missing);
}

#[tokio::test]
async fn w15_the_mark_names_the_state_and_the_feed_is_trimmed_behind_its_snapshot() {
    let mut stage = Stage::running(&fleet()).await;
    for n in 2..12 {
        stage.deploy(&format!("{n}.0.0"), None).await;
        stage.steps(1).await;
    }
    let origin = stage.first();
    let mark = origin.controller.mark().await.unwrap().unwrap();
    let (version, rows) = origin.store.desired().await.unwrap();
    assert_eq!((mark.version, &mark.state_digest), (version, &state_digest(&rows, &trust())));
    assert_eq!(stage.board.mark().await.unwrap(), Some(mark.clone()));
    let snapshot = mark.snapshot.unwrap();
    assert_eq!(snapshot.version, ControlVersion(11));
    let (info, content) = stage.artifacts.get(&snapshot.digest).await.unwrap();
    assert!(!info.pins.is_empty(), "anybody may collect it");
    assert!(content.all(|piece| async move { piece.is_ok() }).await);
    // By default it keeps more than that.
    assert!(stage.feed.poll(ControlVersion(0), 100, Duration::ZERO).await.is_ok());

    let frugal = stage.frugal(4);
    frugal.mark().await.unwrap();
    let gone = stage.feed.poll(ControlVersion(6), 100, Duration::ZERO).await;
    assert!(matches!(gone, Err(ControlFeedError::BehindRetention { oldest: 8, .. })), "{gone:?}");
    let left = async || {
        stage.feed.poll(ControlVersion(7), 100, Duration::ZERO).await.map(|polled| polled.events.len())
    };
    assert_eq!(left().await.unwrap(), 4);
    // Nobody signs a mark: one that says more than the origin has read lets nothing go.
    let version = ControlVersion(1_000);
    let forged = Some(SnapshotRef { version, ..snapshot });
    let forged = FleetMark { version, state_digest: "x".into(), snapshot: forged };
    stage.board.set_mark(&forged).await.unwrap();
    stage.frugal(4).mark().await.unwrap();
    assert_eq!(left().await.unwrap(), 4);
}

#[tokio::test]
async fn an_origin_that_is_behind_leaves_the_mark_of_the_other() {
    let mut stage = Stage::running(&fleet()).await;
    let ahead = stage.first().controller.mark().await.unwrap().unwrap();
    stage.add_origin();
    let late = stage.origins[1].controller.mark().await.unwrap().unwrap();
    assert_eq!(late, ahead);
    assert_eq!(stage.board.mark().await.unwrap(), Some(ahead.clone()));
    let snapshot = ahead.snapshot.unwrap();
    let info = stage.artifacts.info(&snapshot.digest).await.unwrap().unwrap();
    assert!(!info.pins.is_empty(), "the snapshot of the mark may be collected");
}

impl Stage {
    /// A controller that keeps so many events in the feed.
    fn frugal(&self, events_kept: u64) -> Controller {
        let options = ControllerOptions {
            mark_gap: Duration::ZERO,
            events_kept,
            trim_every: 1,
            ..ControllerOptions::new("origin")
        };
        self.controller_with(self.first().store.clone(), self.board.clone(), options)
    }
}
