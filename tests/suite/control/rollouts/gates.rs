//! What lets a wave pass, what it waits for, and what ends a rollout.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::control::report::{HostReport, PluginReport, Reason, Seen, ShadowSummary};
use millrace::control::rollout::{
    Broken, Decision, Gate, Look, Plan, Progress, Sample, Silence, decide, wave_of,
};
use millrace::control::{Desired, Phase, RunState};
use millrace::plugins::PluginState;
use millrace_tests::control_events::{ISSUED, SECOND, digest_of};
use proptest::prelude::*;

use super::{ID, PLUGIN, desired, labels, plan, wave};

const REVISION: u64 = 7;
const SOAK_S: u64 = 60;

fn sample(events: u64) -> Sample {
    Sample { events, traps: 0, errors: 0, nanoseconds: events * 1_000, lag_events: 5 }
}

/// Serves 2.0.0 for long enough, has handled enough, and nothing is wrong.
fn healthy() -> PluginReport {
    PluginReport {
        revision: REVISION,
        phase: Phase::Active,
        serving: Some(digest_of(b"2.0.0")),
        reason: None,
        active_ms: SOAK_S * 1_000,
        now: sample(1_000),
        before: Some(sample(1_000)),
        shadow: None,
        state: None,
        message: String::new(),
    }
}

fn former() -> PluginReport {
    PluginReport { serving: Some(digest_of(b"1.0.0")), before: None, ..healthy() }
}

fn host(name: &str, tier: &str, plugin: PluginReport) -> Seen {
    let mut report = HostReport::new(name, labels(&[("tier", tier)]), "one");
    report.plugins.insert(PLUGIN.into(), plugin);
    Seen { host: name.into(), age: Duration::from_secs(1), report: Some(report) }
}

/// Two hosts of the first wave, two of the second.
fn hosts(canary: &PluginReport) -> Vec<Seen> {
    vec![
        host("a", "canary", canary.clone()),
        host("b", "canary", healthy()),
        host("c", "edge", former()),
        host("d", "edge", former()),
    ]
}

fn tiers() -> Plan {
    plan(&[wave(100, &[("tier", "canary")], SOAK_S), wave(100, &[], SOAK_S)])
}

struct Scene {
    desired: Desired,
    reports: Vec<Seen>,
    /// Seconds since the wave began.
    waited: i64,
    passed: bool,
}

impl Scene {
    fn of(reports: Vec<Seen>) -> Self {
        let desired = desired(tiers(), 0, Progress::Running);
        Self { desired, reports, waited: 61, passed: false }
    }

    fn with(canary: &PluginReport) -> Self {
        Self::of(hosts(canary))
    }

    fn gate(mut self, change: impl FnOnce(&mut Gate)) -> Self {
        change(&mut self.desired.rollout.as_mut().unwrap().plan.gate);
        self
    }

    fn waited(self, waited: i64) -> Self {
        Self { waited, ..self }
    }

    fn decide(&self) -> Decision {
        decide(&Look {
            plugin: PLUGIN,
            desired: &self.desired,
            revision: REVISION,
            since: ISSUED,
            looking_since: ISSUED,
            passed: self.passed,
            now: ISSUED + self.waited * SECOND,
            reports: &self.reports,
            silence: Silence::default(),
        })
    }

    fn waits_for(&self, part: &str) {
        match self.decide() {
            Decision::Wait { why } => assert!(why.contains(part), "{part}: {why}"),
            other => panic!("{part}: {other:?}"),
        }
    }

    fn breaks(&self, expected: Broken, part: &str) {
        match self.decide() {
            Decision::Halt { broken, why } => {
                assert_eq!(broken, expected, "{why}");
                assert!(why.contains(part), "{part}: {why}");
            }
            other => panic!("{expected:?} {part}: {other:?}"),
        }
    }
}

#[test]
fn a_healthy_wave_goes_on_and_the_last_one_completes() {
    assert_eq!(Scene::with(&healthy()).decide(), Decision::Advance);
    let everybody = ["a", "b", "c", "d"].map(|name| host(name, "any", healthy())).to_vec();
    let mut last = Scene::of(everybody);
    last.desired = desired(tiers(), 1, Progress::Running);
    assert_eq!(last.decide(), Decision::Complete);
    let mut by_hand = Scene::with(&healthy());
    by_hand.desired.rollout.as_mut().unwrap().plan.automatic = false;
    assert_eq!(by_hand.decide(), Decision::Passed);
}

#[test]
fn no_data_is_not_healthy() {
    let idle = |events| PluginReport { now: sample(events), ..healthy() };
    let quiet = |events| {
        let mut scene = Scene::of(vec![host("a", "canary", idle(events)), host("c", "edge", former())]);
        scene.desired.rollout.as_mut().unwrap().plan.gate.events_min = 100;
        scene
    };
    quiet(0).waits_for("wave 1 has handled 0 events of at least 100");
    quiet(99).waits_for("99 events");
    assert_eq!(quiet(100).decide(), Decision::Advance);
    Scene::of(vec![]).waits_for("no host that reports is in a wave yet");
    Scene::of(vec![host("c", "edge", former())]).waits_for("no host that reports");
    let mut nothing = host("a", "canary", healthy());
    nothing.report.as_mut().unwrap().plugins.clear();
    Scene::of(vec![nothing]).waits_for("a does not report on revision 7");
    // Even where no events are asked for.
    let unasked = Scene::of(vec![host("c", "edge", former())]).gate(|gate| gate.events_min = 0);
    unasked.waits_for("no host");
}

/// A version can end without a trap and without a dead letter, after it has handled as many events as were asked for.
#[test]
fn a_version_that_has_stopped_or_is_held_up_does_not_pass() {
    let is = |state| PluginReport { state: Some(state), message: "it is over".into(), ..healthy() };
    Scene::with(&is(PluginState::Failed)).waits_for("a has stopped it: it is over");
    Scene::with(&is(PluginState::Blocked)).waits_for("a is held up: it is over");
    Scene::with(&is(PluginState::Failed)).waited(10_000).breaks(Broken::Waited, "a has stopped it");
    assert_eq!(Scene::with(&is(PluginState::Running)).decide(), Decision::Advance);
}

/// Of hosts that share a log one handles the events, and the others are ready to.
#[test]
fn a_wave_of_hosts_that_stand_by_is_judged_by_those_before_it() {
    let idle = PluginReport { state: Some(PluginState::Standby), now: Sample::default(), ..healthy() };
    let shared = |first: &PluginReport, second: &PluginReport, wave| {
        let mut scene =
            Scene::of(vec![host("a", "canary", first.clone()), host("c", "edge", second.clone())]);
        scene.desired = desired(tiers(), wave, Progress::Running);
        scene
    };
    assert_eq!(shared(&healthy(), &idle, 1).decide(), Decision::Complete);
    let quiet = PluginReport { now: sample(7), ..healthy() };
    shared(&quiet, &idle, 1).waits_for("wave 1 has handled 7 events");
    // Whoever has the events speaks, wherever it is.
    shared(&idle, &quiet, 1).waits_for("wave 2 has handled 7 events");
    assert_eq!(shared(&idle, &healthy(), 1).decide(), Decision::Complete);
    shared(&idle, &former(), 0).waits_for("every host so far stands by");
    shared(&healthy(), &PluginReport { phase: Phase::Shadow, ..idle }, 1).waits_for("c is at `shadow`");
}

#[test]
fn what_is_reported_of_another_revision_says_nothing() {
    for revision in [REVISION - 1, REVISION + 1] {
        let other = PluginReport { revision, ..healthy() };
        Scene::with(&other).waits_for("a does not report on revision 7");
        // Not even when it is bad.
        let bad = PluginReport { phase: Phase::Quarantined, ..other };
        Scene::with(&bad).waits_for("a does not report on revision 7");
    }
    Scene::with(&PluginReport { phase: Phase::Shadow, ..healthy() }).waits_for("a is at `shadow`");
    Scene::with(&PluginReport { serving: former().serving, ..healthy() })
        .waits_for("a serves another version");
    Scene::with(&PluginReport { serving: None, ..healthy() }).waits_for("a serves another version");
}

#[test]
fn a_wave_soaks_on_every_host() {
    Scene::with(&healthy()).waited(59).waits_for("soaks for 60 s");
    assert_eq!(Scene::with(&healthy()).waited(60).decide(), Decision::Advance);
    Scene::with(&PluginReport { active_ms: 59_999, ..healthy() }).waits_for("soaks for 60 s on a");
    // A clock that went back has not waited.
    Scene::with(&healthy()).waited(-5).waits_for("soaks");
}

#[test]
fn traps_end_a_rollout_at_once() {
    let trapped = |traps| PluginReport { now: Sample { traps, ..sample(1_000) }, ..healthy() };
    Scene::with(&trapped(1)).waited(0).breaks(Broken::Traps, "wave 1: ");
    // One of very many is not rounded away.
    let rare = PluginReport { now: Sample { traps: 1, ..sample(u64::MAX / 4_000) }, ..healthy() };
    Scene::with(&rare).breaks(Broken::Traps, "1 traps in a million");
    // What the version before did as well is not new.
    let before = PluginReport { before: Some(Sample { traps: 50, ..sample(1_000) }), ..trapped(20) };
    assert_eq!(Scene::with(&before).decide(), Decision::Advance);
    let allowed = Scene::with(&trapped(2)).gate(|gate| gate.traps_per_million_max = 1_000);
    assert_eq!(allowed.decide(), Decision::Advance);
    let over = Scene::with(&trapped(3)).gate(|gate| gate.traps_per_million_max = 1_000);
    over.breaks(Broken::Traps, "1500 traps");
    // Without a single event that it got done.
    let only = PluginReport { now: Sample { traps: 1, ..sample(0) }, ..healthy() };
    Scene::of(vec![host("a", "canary", only)]).breaks(Broken::Traps, "traps");
}

#[test]
fn errors_are_held_against_the_version_before() {
    let failed = |errors| PluginReport { now: Sample { errors, ..sample(1_000) }, ..healthy() };
    assert_eq!(Scene::with(&failed(2)).decide(), Decision::Advance);
    Scene::with(&failed(3)).breaks(Broken::Errors, "1500 errors in a million events against 0 before");
    let before = PluginReport { before: Some(Sample { errors: 20, ..sample(1_000) }), ..failed(11) };
    assert_eq!(Scene::with(&before).decide(), Decision::Advance);
    // Hosts beyond the wave count for the version before as well.
    let mut scene = Scene::with(&failed(15));
    for seen in &mut scene.reports[2..] {
        let plugin = seen.report.as_mut().unwrap().plugins.get_mut(PLUGIN).unwrap();
        plugin.now = Sample { errors: 40, ..sample(1_000) };
    }
    assert_eq!(scene.decide(), Decision::Advance);
    // Of too few events before, nothing is known.
    let few = PluginReport { before: Some(Sample { errors: 40, ..sample(50) }), ..failed(15) };
    let alone = Scene::of(vec![host("a", "canary", few)]);
    alone.breaks(Broken::Errors, "against 0 before");
    // A first failure among few events is not the end while the rest may still make up for it.
    let early = PluginReport { now: Sample { errors: 1, ..sample(10) }, ..healthy() };
    let patient = Scene::of(vec![host("a", "canary", early)]).gate(|gate| gate.events_min = 10_000);
    patient.waits_for("10 events of at least 10000");
}

#[test]
fn time_and_lag_are_held_against_the_version_before() {
    let slow = |nanoseconds| PluginReport { now: Sample { nanoseconds, ..sample(1_000) }, ..healthy() };
    let alone = |plugin| Scene::of(vec![host("a", "canary", plugin)]);
    assert_eq!(alone(slow(2_000_000)).decide(), Decision::Advance);
    alone(slow(2_001_000)).breaks(Broken::Time, "2001 ns for an event against 1000 before");
    let unknown = PluginReport { before: None, ..slow(u64::MAX) };
    assert_eq!(alone(unknown).decide(), Decision::Advance);

    let behind = |lag_events| PluginReport { now: Sample { lag_events, ..sample(1_000) }, ..healthy() };
    assert_eq!(alone(behind(100_005)).decide(), Decision::Advance);
    alone(behind(100_006)).breaks(Broken::Lag, "a is 100006 events behind, 5 before");
    // It has the soak time to catch up.
    alone(behind(100_006)).waited(30).waits_for("soaks");
    alone(PluginReport { active_ms: 1, ..behind(100_006) }).waits_for("soaks");
}

#[test]
fn the_shadow_run_counts() {
    let shadowed = |shadow| PluginReport { shadow: Some(shadow), ..healthy() };
    let alone = |shadow| Scene::of(vec![host("a", "canary", shadowed(shadow))]);
    let same = ShadowSummary { new: sample(1_000), old: sample(1_000), differences: 3 };
    assert_eq!(alone(same).decide(), Decision::Advance);
    let failing = ShadowSummary { new: Sample { errors: 2, ..sample(1_000) }, ..same };
    alone(failing).breaks(Broken::ShadowErrors, "2000 errors");
    let slow = ShadowSummary { new: Sample { nanoseconds: 3_000_000, ..sample(1_000) }, ..same };
    alone(slow).breaks(Broken::ShadowTime, "3000 ns");
    // It stands for nothing that is seen live.
    let unseen = PluginReport { now: sample(0), ..shadowed(same) };
    Scene::of(vec![host("a", "canary", unseen)]).waits_for("0 events");
}

#[test]
fn a_share_of_the_hosts_may_be_missing() {
    let aside = PluginReport {
        phase: Phase::Quarantined,
        serving: former().serving,
        reason: Some(Reason { code: "world_unknown".into(), message: "no such import".into() }),
        ..healthy()
    };
    Scene::with(&aside).breaks(Broken::Quarantined, "1 of 2 hosts have set it aside: a (no such import)");
    let half = |gate: &mut Gate| gate.unavailable_percent_max = 50;
    assert_eq!(Scene::with(&aside).gate(half).decide(), Decision::Advance);
    Scene::with(&aside).gate(|gate| gate.unavailable_percent_max = 49).breaks(Broken::Quarantined, "1 of 2");
    // All of them is too many whatever may be.
    let mut nobody = Scene::with(&aside).gate(|gate| {
        (gate.unavailable_percent_max, gate.events_min) = (100, 0);
    });
    nobody.reports[1] = host("b", "canary", aside.clone());
    nobody.waits_for("no host serves it");

    let silent = |age_s, half_may: bool| {
        let mut scene = Scene::with(&healthy());
        scene.reports[0].age = Duration::from_secs(age_s);
        if half_may { scene.gate(half) } else { scene }
    };
    assert_eq!(silent(30, false).decide(), Decision::Advance);
    silent(31, false).waits_for("a has been silent for 31 s");
    assert_eq!(silent(31, true).decide(), Decision::Advance);
    // Nobody waits for one that has left the fleet.
    assert_eq!(silent(24 * 3600 + 1, false).decide(), Decision::Advance);
    // What it has told stays told.
    let mut gone_quiet = Scene::with(&PluginReport { now: Sample { traps: 9, ..sample(10) }, ..healthy() });
    gone_quiet.reports[0].age = Duration::from_secs(300);
    gone_quiet.breaks(Broken::Traps, "traps");
    // One whose report cannot be read may be of the wave.
    let mut odd = Scene::with(&healthy());
    odd.reports.push(Seen { host: "z".into(), age: Duration::ZERO, report: None });
    odd.waits_for("z has a report that cannot be read");
}

#[test]
fn a_wave_that_is_not_healthy_in_time_is_taken_back() {
    let idle = || {
        let scene = Scene::of(vec![host("a", "canary", PluginReport { now: sample(0), ..healthy() })]);
        scene.gate(|gate| gate.wait_s_max = 600)
    };
    idle().waited(660).waits_for("0 events");
    idle().waited(661).breaks(Broken::Waited, "not healthy within 660 s: wave 1 has handled 0 events");
    // Whoever has only begun to look has not heard of everybody.
    let look = idle();
    let late = |looking_for: i64| {
        let now = ISSUED + 5_000 * SECOND;
        decide(&Look {
            plugin: PLUGIN,
            desired: &look.desired,
            revision: REVISION,
            since: ISSUED,
            looking_since: now - looking_for * SECOND,
            passed: false,
            now,
            reports: &look.reports,
            silence: Silence::default(),
        })
    };
    assert!(matches!(late(60), Decision::Wait { .. }));
    assert!(matches!(late(61), Decision::Halt { broken: Broken::Waited, .. }));
    // It has passed, and somebody was to decide: a host that goes silent afterwards is waited for.
    let mut passed = idle().waited(100_000);
    passed.passed = true;
    passed.waits_for("0 events");
    passed.reports = hosts(&PluginReport { now: Sample { traps: 5, ..sample(100) }, ..healthy() });
    passed.breaks(Broken::Traps, "traps");
}

#[test]
fn a_wave_of_nobody_passes_on_the_word_of_those_before_it() {
    let three =
        [wave(100, &[("tier", "canary")], SOAK_S), wave(100, &[("tier", "none")], SOAK_S), wave(100, &[], 0)];
    let mut scene = Scene::with(&healthy());
    scene.desired = desired(plan(&three), 1, Progress::Running);
    assert_eq!(scene.decide(), Decision::Advance);
    scene.waited(59).waits_for("soaks for 60 s");
    let mut worse = Scene::with(&PluginReport { now: Sample { traps: 2, ..sample(1_000) }, ..healthy() });
    worse.desired = desired(plan(&three), 1, Progress::Running);
    worse.breaks(Broken::Traps, "wave 1: ");
}

#[test]
fn nothing_is_decided_of_a_rollout_that_does_not_run() {
    for (progress, part) in
        [(Progress::Halted, "halted"), (Progress::Complete, "over"), (Progress::RolledBack, "over")]
    {
        let mut scene = Scene::with(&PluginReport { now: Sample { traps: 9, ..sample(1) }, ..healthy() });
        scene.desired = desired(tiers(), 0, progress);
        scene.waits_for(part);
    }
    let mut paused = Scene::with(&healthy()).waited(1_000_000);
    paused.desired.state = RunState::Paused;
    paused.waits_for("paused");
    let mut none = Scene::with(&healthy());
    none.desired.rollout = None;
    none.waits_for("no rollout");
}

/// Reports as they may come.
fn any_report() -> impl Strategy<Value = (u8, Option<PluginReport>, u64)> {
    let phase = prop::sample::select(vec![
        Phase::Active,
        Phase::Active,
        Phase::Active,
        Phase::Shadow,
        Phase::Quarantined,
    ]);
    let serving =
        prop::sample::select(vec![Some("2.0.0"), Some("2.0.0"), Some("2.0.0"), Some("1.0.0"), None]);
    let numbers = (0_u64..400, 0_u64..2, 0_u64..3, 0_u64..400_000, 0_u64..150_000);
    let plugin = (phase, serving, REVISION - 1..=REVISION, 0_u64..120_000, numbers).prop_map(
        |(phase, serving, revision, active_ms, (events, traps, errors, nanoseconds, lag_events))| {
            PluginReport {
                revision,
                phase,
                serving: serving.map(|version| digest_of(version.as_bytes())),
                active_ms,
                now: Sample { events, traps: traps * errors, errors, nanoseconds, lag_events },
                ..healthy()
            }
        },
    );
    (0_u8..10, prop::option::weighted(0.95, plugin), 0_u64..40)
}

fn fleet(told: &[(u8, Option<PluginReport>, u64)]) -> Vec<Seen> {
    let seen = |(n, plugin, age): &(u8, Option<PluginReport>, u64)| {
        let tier = if n % 3 == 0 { "canary" } else { "edge" };
        let mut seen = host(&format!("host-{n}"), tier, healthy());
        let plugins = plugin.clone().map(|plugin| (PLUGIN.to_owned(), plugin));
        seen.report.as_mut().unwrap().plugins = plugins.into_iter().collect();
        seen.age = Duration::from_secs(*age);
        seen
    };
    told.iter().map(seen).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn order_and_repeats_of_reports_change_nothing(
        told in prop::collection::vec(any_report(), 0..12),
        order in prop::collection::vec(any::<prop::sample::Index>(), 24),
        waited in prop::sample::select(vec![0_i64, 61, 100_000]),
    ) {
        let scene = Scene::of(fleet(&told)).waited(waited);
        let expected = scene.decide();
        let mut mixed = scene.reports.clone();
        // Some of them again, at the same age or older, and all of them in another order.
        for index in order.iter().take(12).filter(|_| !told.is_empty()) {
            let again = index.get(&scene.reports).clone();
            mixed.push(again);
        }
        let all = mixed.len();
        for (place, index) in order.iter().enumerate().filter(|_| all > 0) {
            mixed.swap(place % all, index.index(all));
        }
        let mixed = Scene { reports: mixed, ..scene };
        prop_assert_eq!(mixed.decide(), expected);
    }

    #[test]
    fn a_rollout_never_goes_on_with_anything_missing(
        told in prop::collection::vec(any_report(), 0..8),
        at in 0_u32..2,
        waited in 0_i64..200,
    ) {
        let mut scene = Scene::of(fleet(&told)).waited(waited);
        scene.desired = desired(tiers(), at, Progress::Running);
        let decision = scene.decide();
        if !matches!(decision, Decision::Advance | Decision::Complete) {
            return Ok(());
        }
        prop_assert!(waited >= 60);
        // Said again in other words than the product's: the youngest word of each host of the waves that are reached.
        let mut youngest: BTreeMap<&str, &Seen> = BTreeMap::new();
        for seen in &scene.reports {
            let known = youngest.entry(&seen.host).or_insert(seen);
            if seen.age < known.age {
                *known = seen;
            }
        }
        let plan = tiers();
        let (mut reached, mut events) = (0, 0);
        for (name, seen) in &youngest {
            // Two words of one age may differ; either may be taken.
            if scene.reports.iter().filter(|other| other.host == **name && other.age == seen.age).count() > 1 {
                return Ok(());
            }
            let report = seen.report.as_ref().unwrap();
            if wave_of(&plan, ID, name, &report.labels).unwrap() > at {
                continue;
            }
            reached += 1;
            prop_assert!(seen.age <= Duration::from_secs(30), "{} is silent", name);
            let plugin = report.plugins.get(PLUGIN).expect("it reports on the plugin");
            prop_assert_eq!(plugin.revision, REVISION);
            prop_assert_eq!(plugin.phase, Phase::Active);
            let digest = digest_of(b"2.0.0");
            prop_assert_eq!(plugin.serving.as_ref(), Some(&digest));
            prop_assert!(plugin.active_ms >= SOAK_S * 1_000);
            events += plugin.now.events;
        }
        prop_assert!(reached > 0 && events >= 100, "{} hosts have handled {} events", reached, events);
    }

    #[test]
    fn any_broken_gate_ends_a_rollout_wherever_it_is(
        which in 0_usize..4,
        host_of in 0_usize..4,
        waited in 60_i64..1_000,
    ) {
        let mut scene = Scene::of(["a", "b", "c", "d"].map(|name| host(name, "canary", healthy())).to_vec());
        scene.waited = waited;
        prop_assert_eq!(scene.decide(), Decision::Advance);
        let plugin = scene.reports[host_of].report.as_mut().unwrap().plugins.get_mut(PLUGIN).unwrap();
        let expected = match which {
            0 => {
                plugin.now.traps = 1;
                Broken::Traps
            }
            1 => {
                plugin.now.errors = 5;
                Broken::Errors
            }
            2 => {
                plugin.now.nanoseconds = 5_100_000;
                Broken::Time
            }
            _ => {
                plugin.phase = Phase::Quarantined;
                Broken::Quarantined
            }
        };
        match scene.decide() {
            Decision::Halt { broken, .. } => prop_assert_eq!(broken, expected),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
