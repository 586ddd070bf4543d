//! Whole rollouts, from the deploy to the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::control::freeze::Freeze;
use millrace::control::rollout::{Decision, Plan, Progress, bucket};
use millrace::control::{Board, ControlFeedError, Controller, FleetMark, Kind, Result};

use super::stage::{GOOD, Habits, PlayedBoard, Stage, people};
use super::{PLUGIN, plan, wave};

const CANARIES: [(&str, &str); 2] = [("canary-1", "canary"), ("canary-2", "canary")];

/// One host by its label, a quarter, everybody.
fn staged() -> Plan {
    plan(&[wave(100, &[("tier", "canary")], 10), wave(25, &[], 10), wave(100, &[], 0)])
}

fn two_waves() -> Plan {
    plan(&[wave(100, &[("tier", "canary")], 10), wave(100, &[], 0)])
}

fn small_fleet() -> Vec<(&'static str, &'static str)> {
    vec![("canary-1", "canary"), ("edge-1", "edge"), ("edge-2", "edge"), ("edge-3", "edge")]
}

fn names(of: &[&'static str]) -> BTreeSet<&'static str> {
    of.iter().copied().collect()
}

#[tokio::test]
async fn w14_staged_from_one_host_to_a_quarter_to_all() {
    let edges: Vec<String> = (0..59).map(|n| format!("edge-{n}")).collect();
    let mut fleet = vec![("canary-1", "canary")];
    fleet.extend(edges.iter().map(|name| (name.as_str(), "edge")));
    let mut stage = Stage::running(&fleet).await;
    stage.deploy("2.0.0", Some(staged())).await;
    let rollout = stage.desired().await.1.rollout.unwrap().id;
    let mut quarter: BTreeSet<String> =
        edges.iter().filter(|name| bucket(&rollout, name) < 25).cloned().collect();
    quarter.insert("canary-1".into());
    assert!(quarter.len() > 1 && quarter.len() < 50, "a quarter of 59 hosts: {}", quarter.len());

    let mut sizes = Vec::new();
    let mut reached: BTreeSet<String> = BTreeSet::new();
    for _ in 0..60 {
        stage.step().await;
        let now: BTreeSet<String> = stage.on("2.0.0").into_iter().map(str::to_owned).collect();
        assert!(now.is_superset(&reached), "a host that had it lost it");
        if now != reached {
            sizes.push(now.clone());
        }
        reached = now;
    }
    let all: BTreeSet<String> = fleet.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(sizes, [BTreeSet::from(["canary-1".to_owned()]), quarter, all]);
    assert_eq!(stage.progress().await, (2, Progress::Complete));
    let expected =
        [Kind::Deployed, Kind::Deployed, Kind::RolloutAdvanced, Kind::RolloutAdvanced, Kind::RolloutAdvanced];
    assert_eq!(stage.kinds().await, expected);
    // Nobody was touched twice.
    assert!(stage.hosts.iter().all(|host| host.activations == 2));
    let status = stage.status().await;
    assert!(status.converged, "{:?}", status.plugins[0].missing);
}

#[tokio::test]
async fn auto_rollback_of_a_bad_version_with_nothing_committed_elsewhere() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.habits.insert("2.0.0".into(), Habits { traps: 3, ..GOOD });
    stage.deploy("2.0.0", Some(two_waves())).await;
    stage.steps(1).await;
    assert_eq!(stage.on("2.0.0"), names(&["canary-1"]));
    stage.steps(4).await;
    assert_eq!(stage.on("1.0.0").len(), 4);
    assert_eq!(stage.progress().await, (0, Progress::RolledBack));
    assert_eq!(stage.kinds().await, [Kind::Deployed, Kind::Deployed, Kind::RolledBack]);
    assert!(stage.last_reason().await.starts_with("traps: wave 1: "), "{}", stage.last_reason().await);
    for host in &stage.hosts {
        assert_eq!(host.committed.get("2.0.0").copied().unwrap_or(0), 0, "{}", host.name);
        // Who was not in the wave has noticed nothing.
        assert_eq!(host.activations, if host.name == "canary-1" { 3 } else { 1 }, "{}", host.name);
    }
    // It is taken back once, and stays so.
    let revision = stage.desired().await.0;
    stage.steps(50).await;
    assert_eq!(stage.desired().await.0, revision);
    assert!(stage.status().await.converged);
    // The next one is on its own.
    stage.deploy("2.0.1", Some(two_waves())).await;
    stage.steps(20).await;
    assert_eq!(stage.on("2.0.1").len(), 4);
}

#[tokio::test]
async fn a_first_version_that_is_bad_goes_back_to_nothing() {
    let mut stage = Stage::new(&small_fleet());
    stage.habits.insert("1.0.0".into(), Habits { traps: 1, ..GOOD });
    stage.deploy("1.0.0", Some(two_waves())).await;
    stage.steps(1).await;
    assert_eq!(stage.on("1.0.0"), names(&["canary-1"]));
    stage.steps(4).await;
    assert_eq!((stage.on("1.0.0").len(), stage.progress().await), (0, (0, Progress::RolledBack)));
    assert!(stage.status().await.converged);
}

#[tokio::test]
async fn no_data_is_not_healthy_and_is_taken_back_at_the_bound() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.habits.insert("2.0.0".into(), Habits { events: 0, ..GOOD });
    let mut quiet = two_waves();
    quiet.gate.wait_s_max = 300;
    stage.deploy("2.0.0", Some(quiet)).await;
    // 310 s at 5 s each.
    for _ in 0..62 {
        let looked = stage.step().await;
        assert!(matches!(looked[0].decided[PLUGIN], Decision::Wait { .. }), "{looked:?}");
        assert_eq!(stage.on("2.0.0"), names(&["canary-1"]));
    }
    stage.steps(4).await;
    assert_eq!((stage.on("1.0.0").len(), stage.progress().await), (4, (0, Progress::RolledBack)));
    assert!(stage.last_reason().await.contains("0 events of at least 100"));
}

#[tokio::test]
async fn a_silent_host_holds_a_rollout_up_until_it_talks() {
    let mut stage = Stage::running(&[&CANARIES[..], &[("edge-1", "edge")]].concat()).await;
    stage.deploy("2.0.0", Some(two_waves())).await;
    stage.steps(1).await;
    stage.host("canary-2").is_away = true;
    for _ in 0..40 {
        stage.step().await;
        assert!(!stage.on("2.0.0").contains("edge-1"), "it went on without canary-2");
    }
    let missing = stage.status().await.plugins[0].missing.clone();
    assert!(missing.iter().any(|line| line.starts_with("canary-2: silent for ")), "{missing:?}");
    stage.host("canary-2").is_away = false;
    stage.until(10, |stage| stage.on("2.0.0").len() == 3).await;
}

#[tokio::test]
async fn a_share_of_hosts_that_set_it_aside_ends_a_rollout() {
    for (percent, goes_back) in [(0, true), (49, true), (100, false)] {
        let mut stage = Stage::running(&[&CANARIES[..], &[("edge-1", "edge")]].concat()).await;
        stage.habits.insert("2.0.0".into(), Habits { is_refused: true, ..GOOD });
        let mut patient = two_waves();
        (patient.gate.unavailable_percent_max, patient.gate.wait_s_max) = (percent, 100_000);
        stage.deploy("2.0.0", Some(patient)).await;
        stage.steps(20).await;
        let expected = if goes_back { Progress::RolledBack } else { Progress::Running };
        assert_eq!(stage.progress().await, (0, expected), "{percent} %");
        // The former version never stopped.
        assert_eq!(stage.on("1.0.0").len(), 3);
        assert!(stage.hosts.iter().all(|host| host.activations == 1));
    }
}

#[tokio::test]
async fn people_move_a_rollout_that_is_theirs() {
    let mut stage = Stage::running(&small_fleet()).await;
    let by_hand = Plan { automatic: false, ..staged() };
    stage.deploy("2.0.0", Some(by_hand)).await;
    stage.steps(30).await;
    assert_eq!(stage.progress().await, (0, Progress::Running));
    let controller = stage.first().controller.clone();
    let looked = controller.look().await.unwrap();
    assert_eq!(looked.decided[PLUGIN], Decision::Passed);
    // It has passed; a host that is away for long is no reason to take it back.
    stage.host("canary-1").is_away = true;
    stage.steps(1_000).await;
    assert_eq!(stage.progress().await, (0, Progress::Running));
    stage.host("canary-1").is_away = false;

    controller.advance(PLUGIN, &people()).await.unwrap();
    controller.halt(PLUGIN, &people()).await.unwrap();
    stage.steps(5).await;
    assert_eq!(stage.progress().await, (1, Progress::Halted));
    let before: BTreeSet<String> = stage.on("2.0.0").into_iter().map(str::to_owned).collect();
    // A halted one does not move, however bad it is, but for people.
    stage.habits.insert("2.0.0".into(), Habits { traps: 9, ..GOOD });
    stage.steps(50).await;
    let after: BTreeSet<String> = stage.on("2.0.0").into_iter().map(str::to_owned).collect();
    assert_eq!((stage.progress().await, after), ((1, Progress::Halted), before));
    controller.roll_back(PLUGIN, &people()).await.unwrap();
    stage.steps(2).await;
    assert_eq!(stage.on("1.0.0").len(), 4);
    // What somebody has not seen they do not change.
    let stale = controller.change(PLUGIN, Some(1), &people(), |present, _| present.pause()).await;
    assert!(matches!(stale, Err(ControlFeedError::RevisionConflict { expected: 1, .. })), "{stale:?}");
}

#[tokio::test]
async fn a_version_goes_back_after_its_rollout_too() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.deploy("2.0.0", Some(two_waves())).await;
    stage.steps(20).await;
    assert_eq!((stage.on("2.0.0").len(), stage.progress().await.1), (4, Progress::Complete));
    stage.first().controller.roll_back(PLUGIN, &people()).await.unwrap();
    stage.steps(2).await;
    assert_eq!(stage.on("1.0.0").len(), 4);
}

#[tokio::test]
async fn global_freeze_holds_rollouts_and_lets_bad_ones_go_back() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.deploy("2.0.0", Some(two_waves())).await;
    let freeze = Freeze { by: "ops@example.com".into(), reason: "a holiday".into(), at: 1 };
    let controller = stage.first().controller.clone();
    controller.freeze(Some(&freeze)).await.unwrap();
    stage.steps(30).await;
    assert_eq!(stage.progress().await, (0, Progress::Running));
    assert_eq!(controller.look().await.unwrap().frozen, [PLUGIN]);
    let refused = controller.advance(PLUGIN, &people()).await;
    assert!(matches!(refused, Err(ControlFeedError::Frozen { .. })), "{refused:?}");
    controller.freeze(None).await.unwrap();
    stage.until(20, |stage| stage.on("2.0.0").len() == 4).await;
    stage.steps(3).await;

    stage.habits.insert("3.0.0".into(), Habits { traps: 1, ..GOOD });
    stage.deploy("3.0.0", Some(two_waves())).await;
    controller.freeze(Some(&freeze)).await.unwrap();
    stage.steps(5).await;
    assert_eq!((stage.progress().await, stage.on("2.0.0").len()), ((0, Progress::RolledBack), 4));
}

#[tokio::test]
async fn a_pause_holds_a_rollout_and_its_clock() {
    let mut stage = Stage::running(&small_fleet()).await;
    let mut short = two_waves();
    short.gate.wait_s_max = 60;
    stage.deploy("2.0.0", Some(short)).await;
    stage.steps(1).await;
    let controller = stage.first().controller.clone();
    controller.change(PLUGIN, None, &people(), |present, _| present.pause()).await.unwrap();
    stage.steps(100).await;
    assert_eq!(stage.progress().await, (0, Progress::Running));
    controller.change(PLUGIN, None, &people(), |present, _| present.resume()).await.unwrap();
    stage.until(20, |stage| stage.on("2.0.0").len() == 4).await;
}

/// A board that was away says nothing about a version.
#[tokio::test]
async fn what_nobody_could_report_is_not_held_against_a_version() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.habits.insert("2.0.0".into(), Habits { events: 0, ..GOOD });
    let mut short = two_waves();
    short.gate.wait_s_max = 100;
    stage.deploy("2.0.0", Some(short)).await;
    stage.steps(3).await;
    stage.board.set_down(true);
    for _ in 0..100 {
        assert!(stage.first().controller.look().await.is_err());
        stage.pass(5);
    }
    stage.board.set_down(false);
    stage.board.forget_all();
    stage.habits.remove("2.0.0");
    stage.until(30, |stage| stage.on("2.0.0").len() == 4).await;
    assert_eq!(stage.kinds().await.iter().filter(|kind| **kind == Kind::RolledBack).count(), 0);
}

/// Nor does a feed that takes nothing.
#[tokio::test]
async fn time_counts_from_when_hosts_can_know() {
    let mut stage = Stage::running(&small_fleet()).await;
    let mut short = two_waves();
    short.gate.wait_s_max = 100;
    stage.deploy("2.0.0", Some(short)).await;
    for _ in 0..100 {
        let looked = stage.first().controller.look().await.unwrap();
        let expected = Decision::Wait { why: "it is not in the feed yet".into() };
        assert_eq!(looked.decided[PLUGIN], expected);
        stage.pass(5);
    }
    stage.until(30, |stage| stage.on("2.0.0").len() == 4).await;
    assert_eq!(stage.kinds().await.iter().filter(|kind| **kind == Kind::RolledBack).count(), 0);
}

#[tokio::test]
async fn two_origins_do_no_harm() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.add_origin();
    stage.carry().await;
    stage.deploy("2.0.0", Some(two_waves())).await;
    stage.steps(30).await;
    assert_eq!((stage.on("2.0.0").len(), stage.progress().await), (4, (1, Progress::Complete)));
    // Both decided, and of each pair the first in the feed counted, for both of them.
    let advanced = stage.kinds().await.into_iter().filter(|kind| *kind == Kind::RolloutAdvanced).count();
    assert_eq!(advanced, 4);
    let mut states = Vec::new();
    for origin in &stage.origins {
        let (_, rows) = origin.store.desired().await.unwrap();
        states.push(rows.into_iter().map(|row| (row.entity, row.revision, row.event)).collect::<Vec<_>>());
        let aside = origin.store.quarantined(10).await.unwrap();
        assert_eq!(aside.iter().filter(|entry| entry.code == "revision_conflict").count(), 2, "{aside:?}");
    }
    assert_eq!(states[0], states[1]);
    assert!(stage.hosts.iter().all(|host| host.activations == 2));
}

/// Lets somebody halt the rollout between the look and the proposal.
#[derive(Debug)]
struct Intruder {
    board: Arc<PlayedBoard>,
    other: Arc<Controller>,
}

impl Board for Intruder {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        self.board.report(host, report)
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        async move {
            self.other.halt(PLUGIN, &people()).await?;
            self.board.reports().await
        }
        .boxed()
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        self.board.forget(host)
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        self.board.set_mark(mark)
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        self.board.forget_mark()
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        self.board.mark()
    }
}

#[tokio::test]
async fn whoever_was_quicker_has_decided() {
    let mut stage = Stage::running(&small_fleet()).await;
    stage.deploy("2.0.0", Some(two_waves())).await;
    stage.carry().await;
    // The hosts work, and nobody looks.
    let idle = std::mem::take(&mut stage.origins);
    stage.steps(10).await;
    stage.origins = idle;
    let origin = stage.first();
    let intruder = Intruder { board: stage.board.clone(), other: origin.controller.clone() };
    let late = stage.controller(origin.store.clone(), Arc::new(intruder));
    let looked = late.look().await.unwrap();
    assert_eq!(looked.decided[PLUGIN], Decision::Advance);
    assert_eq!(looked.proposed, []);
    assert_eq!(stage.progress().await, (0, Progress::Halted));
}
