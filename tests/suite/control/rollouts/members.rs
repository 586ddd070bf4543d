//! Which host is in which wave, and what it runs.

use millrace::control::rollout::{Progress, Wave, bucket, effective_spec, wave_of};
use millrace::control::{Desired, Kind, RunState};
use millrace_tests::control_events::{about, removed, running, spec};
use proptest::prelude::*;

use super::super::code_of;
use super::{ID, PLUGIN, desired, labels, plan, wave};

/// Hosts of all versions have to agree, so these numbers never change. They were computed by another program.
#[test]
fn places_of_hosts_are_the_same_for_ever() {
    let places = ["host-1", "host-2", "host-3", "a", ""].map(|host| bucket(ID, host));
    assert_eq!(places, GOLDEN_PLACES);
    assert_ne!(bucket("evt_01JH0000000000000000000002", "host-1"), places[0]);
}

const GOLDEN_PLACES: [u8; 5] = [26, 89, 37, 55, 28];

#[test]
fn a_wave_of_some_percent_takes_about_as_many() {
    for percent in [1_u8, 5, 25, 50] {
        let plan = plan(&[wave(percent, &[], 0), wave(100, &[], 0)]);
        let hosts = 0..10_000;
        let taken =
            hosts.filter(|n| wave_of(&plan, ID, &format!("host-{n}"), &labels(&[])) == Some(0)).count();
        let expected = usize::from(percent) * 100;
        assert!(taken.abs_diff(expected) <= 150, "{percent} %: {taken} of 10000");
    }
}

#[test]
fn labels_choose_before_places_do() {
    let plan =
        plan(&[wave(100, &[("tier", "canary")], 0), wave(100, &[("zone", "eu")], 0), wave(100, &[], 0)]);
    let of = |given: &[(&str, &str)]| wave_of(&plan, ID, "h", &labels(given));
    assert_eq!(of(&[("tier", "canary"), ("zone", "eu")]), Some(0));
    assert_eq!(of(&[("tier", "edge"), ("zone", "eu")]), Some(1));
    assert_eq!(of(&[("zone", "us")]), Some(2));
    assert_eq!(of(&[]), Some(2));
}

#[test]
fn a_plan_that_leaves_somebody_out_is_refused() {
    let check = |waves: &[Wave]| plan(waves).check();
    check(&[wave(5, &[], 0), wave(100, &[], 0)]).unwrap();
    for wrong in [
        vec![],
        vec![wave(99, &[], 0)],
        vec![wave(100, &[("zone", "eu")], 0)],
        vec![wave(100, &[], 0), wave(5, &[], 0)],
        vec![wave(0, &[], 0), wave(100, &[], 0)],
        vec![wave(101, &[], 0), wave(100, &[], 0)],
        vec![wave(100, &[], 31 * 24 * 3600)],
        vec![wave(100, &[("a name", "v")], 0), wave(100, &[], 0)],
        vec![wave(100, &[], 0); 33],
    ] {
        assert_eq!(code_of(check(&wrong)), "control_event_invalid", "{wrong:?}");
        // An event with such a plan is no event.
        let desired = desired(plan(&wrong), 0, Progress::Running);
        let event = about(PLUGIN, Kind::Deployed, desired, 1).without_signature();
        assert_eq!(code_of(event), "control_event_invalid", "{wrong:?}");
    }
}

#[test]
fn going_back_is_for_all_hosts_at_once() {
    let whole = || plan(&[wave(100, &[], 0)]);
    let event =
        |progress| about(PLUGIN, Kind::RolledBack, desired(whole(), 0, progress), 2).without_signature();
    event(Progress::RolledBack).unwrap();
    for progress in [Progress::Running, Progress::Halted, Progress::Complete] {
        assert_eq!(code_of(event(progress)), "control_event_invalid", "{progress:?}");
    }
    let advanced = about(PLUGIN, Kind::RolloutAdvanced, desired(whole(), 0, Progress::RolledBack), 2);
    assert_eq!(code_of(advanced.without_signature()), "control_event_invalid");
}

#[test]
fn what_a_host_runs_follows_from_the_rollout() {
    let waves = [wave(100, &[("tier", "canary")], 0), wave(100, &[], 0)];
    let (canary, other) = (labels(&[("tier", "canary")]), labels(&[]));
    let abroad = labels(&[("zone", "us"), ("tier", "canary")]);
    let runs =
        |desired: &Desired, labels| effective_spec(desired, "h", labels).map(|spec| spec.version.clone());
    let (new, old) = (Some("2.0.0".to_owned()), Some("1.0.0".to_owned()));
    for (progress, at, expected) in [
        (Progress::Running, 0, [&new, &old]),
        (Progress::Running, 1, [&new, &new]),
        (Progress::Halted, 0, [&new, &old]),
        (Progress::Complete, 1, [&new, &new]),
        (Progress::RolledBack, 0, [&old, &old]),
        (Progress::RolledBack, 1, [&old, &old]),
    ] {
        let desired = desired(plan(&waves), at, progress);
        assert_eq!([&runs(&desired, &canary), &runs(&desired, &other)], expected, "{progress:?} {at}");
        let first = Desired { stable: None, ..desired.clone() };
        let nothing = |version: &Option<String>| version.clone().filter(|version| version != "1.0.0");
        let expected = expected.map(nothing);
        assert_eq!([runs(&first, &canary), runs(&first, &other)], expected, "first {progress:?} {at}");
        // A pause is another matter than what would run.
        let paused = Desired { state: RunState::Paused, ..desired.clone() };
        assert_eq!(runs(&paused, &canary), runs(&desired, &canary));
        let elsewhere = Desired { targets: labels(&[("zone", "eu")]), ..desired };
        assert_eq!(runs(&elsewhere, &canary), None);
        assert_eq!(runs(&elsewhere, &abroad), None);
    }
    assert_eq!(runs(&removed(), &other), None);
    assert_eq!(runs(&running(spec(PLUGIN, "3.0.0", b"3")), &other), Some("3.0.0".into()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_host_that_a_small_wave_takes_is_in_every_larger_one(
        host in "[a-z0-9.-]{1,20}",
        rollout in "evt_[0-9A-Z]{26}",
        small in 1_u8..=100,
        more in 0_u8..=99,
    ) {
        let large = small.saturating_add(more).min(100);
        let taken = |percent| {
            wave_of(&plan(&[wave(percent, &[], 0)]), &rollout, &host, &labels(&[])).is_some()
        };
        prop_assert!(!taken(small) || taken(large), "in {small} % and not in {large} %");
        prop_assert!(taken(100));
    }

    #[test]
    fn a_host_has_one_wave_and_keeps_the_version_once_it_has_it(
        host in "[a-z0-9.-]{1,20}",
        mut percents in prop::collection::vec(1_u8..=100, 0..6),
        canary in any::<bool>(),
    ) {
        percents.push(100);
        let mut waves: Vec<Wave> = percents.iter().map(|percent| wave(*percent, &[], 0)).collect();
        waves.insert(0, wave(50, &[("tier", "canary")], 0));
        let labels = if canary { labels(&[("tier", "canary")]) } else { labels(&[]) };
        let last = u32::try_from(waves.len() - 1).unwrap();
        let mine = wave_of(&plan(&waves), ID, &host, &labels).unwrap();
        for at in 0..=last {
            let state = desired(plan(&waves), at, Progress::Running);
            // Everything else about the rollout may change meanwhile.
            let mut other = state.clone();
            other.state = RunState::Paused;
            let has_it = |desired: &Desired| {
                effective_spec(desired, &host, &labels).is_some_and(|spec| spec.version == "2.0.0")
            };
            prop_assert_eq!(has_it(&state), mine <= at);
            prop_assert_eq!(has_it(&other), mine <= at);
        }
        prop_assert!(mine <= last);
    }
}
