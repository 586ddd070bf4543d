//! The next desired state, made of the present one; and what a frozen fleet still does.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::MemoryControlStore;
use millrace::clock::ManualClock;
use millrace::control::changes::{Actor, Change, Deploy, Present};
use millrace::control::fleet::preview;
use millrace::control::freeze::{self, Freeze};
use millrace::control::report::{HostReport, Seen};
use millrace::control::rollout::{Plan, Progress, Silence, effective_spec};
use millrace::control::{ControlStore as _, Desired, EventId, Kind, RunState, UnsignedEvent};
use millrace_tests::control_events::{
    ISSUED, about, component, release_key, removed, running, spec, trust_changed, trusted,
};

use super::super::code_of;
use super::{ID, PLUGIN, desired, labels, plan, wave};

fn id() -> EventId {
    EventId::try_from(ID.to_owned()).unwrap()
}

fn present(desired: &Desired) -> Present<'_> {
    Present { plugin: PLUGIN, desired: Some(desired) }
}

fn two_waves() -> Plan {
    plan(&[wave(100, &[("tier", "canary")], 60), wave(100, &[], 0)])
}

fn deploy(version: &str, plan: Option<Plan>) -> Deploy {
    Deploy { spec: spec(PLUGIN, version, version.as_bytes()), plan, targets: None }
}

fn versions(desired: &Desired) -> [Option<String>; 2] {
    let runs =
        |tier| effective_spec(desired, "h", &labels(&[("tier", tier)])).map(|spec| spec.version.clone());
    [runs("canary"), runs("edge")]
}

fn v(version: &str) -> Option<String> {
    Some(version.to_owned())
}

/// An event of it, as every host would take it.
fn event(change: &Change) -> UnsignedEvent {
    let by = Actor { name: "ops@example.com".into(), reason: "because".into() };
    let event = change.clone().event(PLUGIN, 6, id(), &by, ISSUED);
    event.sign(&release_key()).unwrap();
    assert_eq!((event.base_revision, event.revision), (6, 7));
    event
}

#[test]
fn a_deploy_keeps_what_runs_for_those_that_it_has_not_reached() {
    let nothing = Present { plugin: PLUGIN, desired: None };
    let first = nothing.deploy(&id(), deploy("1.0.0", None)).unwrap();
    assert_eq!(versions(&first.desired), [v("1.0.0"), v("1.0.0")]);
    event(&first);

    let second = present(&first.desired).deploy(&id(), deploy("2.0.0", Some(two_waves()))).unwrap();
    assert_eq!(second.kind, Kind::Deployed);
    assert_eq!(versions(&second.desired), [v("2.0.0"), v("1.0.0")]);
    event(&second);

    // In the midst of it, on to a third: what most run stays what most run.
    let third = present(&second.desired).deploy(&id(), deploy("3.0.0", Some(two_waves()))).unwrap();
    assert_eq!(versions(&third.desired), [v("3.0.0"), v("1.0.0")]);
    // After a rollback, the same.
    let back = present(&second.desired).roll_back().unwrap();
    let third = present(&back.desired).deploy(&id(), deploy("3.0.0", Some(two_waves()))).unwrap();
    assert_eq!(versions(&third.desired), [v("3.0.0"), v("1.0.0")]);
    // After a removal nothing ran.
    let again = present(&removed()).deploy(&id(), deploy("3.0.0", Some(two_waves()))).unwrap();
    assert_eq!(versions(&again.desired), [v("3.0.0"), None]);
    // What is paused stays so, and so do the hosts that are meant.
    let mut paused = running(spec(PLUGIN, "1.0.0", b"1.0.0"));
    (paused.state, paused.targets) = (RunState::Paused, labels(&[("zone", "eu")]));
    let next = present(&paused).deploy(&id(), deploy("2.0.0", None)).unwrap().desired;
    assert_eq!((next.state, &next.targets), (RunState::Paused, &paused.targets));
    let partial = plan(&[wave(50, &[], 0)]);
    assert_eq!(code_of(nothing.deploy(&id(), deploy("1.0.0", Some(partial)))), "control_event_invalid");
}

#[test]
fn a_rollout_is_moved_by_hand() {
    let at = |wave, progress| desired(two_waves(), wave, progress);
    let moved = |change: Change| {
        event(&change);
        let rollout = change.desired.rollout.clone().unwrap();
        (change.kind, rollout.wave, rollout.progress)
    };
    let (running, halted) = (at(0, Progress::Running), at(0, Progress::Halted));
    assert_eq!(moved(present(&running).advance().unwrap()), (Kind::RolloutAdvanced, 1, Progress::Running));
    assert_eq!(moved(present(&halted).advance().unwrap()), (Kind::RolloutAdvanced, 1, Progress::Running));
    let last = at(1, Progress::Running);
    let complete = present(&last).advance().unwrap();
    assert_eq!(moved(complete.clone()), (Kind::RolloutAdvanced, 1, Progress::Complete));
    assert_eq!(versions(&complete.desired), [v("2.0.0"), v("2.0.0")]);
    assert_eq!(moved(present(&running).halt().unwrap()), (Kind::RolloutHalted, 0, Progress::Halted));
    // A halt leaves everybody what they have; a rollback is for all, also after the end.
    assert_eq!(versions(&present(&running).halt().unwrap().desired), versions(&running));
    for from in [&running, &halted, &last, &complete.desired] {
        let back = present(from).roll_back().unwrap();
        assert_eq!(back.kind, Kind::RolledBack);
        assert_eq!(versions(&back.desired), [v("1.0.0"), v("1.0.0")]);
        event(&back);
        for refused in [present(&back.desired).roll_back(), present(&back.desired).advance()] {
            assert_eq!(code_of(refused), "control_change_refused");
        }
    }
    // A first version goes back to nothing while it is on its way. Once it is everywhere there is nothing before it.
    let first = Desired { stable: None, ..running.clone() };
    assert_eq!(versions(&present(&first).roll_back().unwrap().desired), [None, None]);
    let first = Desired { stable: None, ..complete.desired };
    assert_eq!(code_of(present(&first).roll_back()), "control_change_refused");
    for refused in [present(&halted).halt(), present(&removed()).advance(), present(&removed()).roll_back()] {
        assert_eq!(code_of(refused), "control_change_refused");
    }
    let plain = plain();
    assert_eq!(code_of(present(&plain).roll_back()), "control_change_refused");
    assert_eq!(code_of(present(&plain).halt()), "control_change_refused");
}

fn plain() -> Desired {
    running(spec(PLUGIN, "1.0.0", b"1.0.0"))
}

#[test]
fn pauses_and_configurations_keep_the_rest() {
    let rolling = desired(two_waves(), 0, Progress::Running);
    let paused = present(&rolling).pause().unwrap();
    assert_eq!((&paused.kind, paused.desired.state), (&Kind::Paused, RunState::Paused));
    assert_eq!(versions(&paused.desired), versions(&rolling));
    let resumed = present(&paused.desired).resume().unwrap();
    assert_eq!((&resumed.kind, &resumed.desired), (&Kind::Resumed, &rolling));
    assert_eq!(code_of(present(&rolling).resume()), "control_change_refused");
    assert_eq!(code_of(present(&paused.desired).pause()), "control_change_refused");

    let config = component(PLUGIN, b"{}");
    let configured = present(&plain()).configure(&id(), Some(config.clone()), Some(two_waves())).unwrap();
    assert_eq!(configured.kind, Kind::ConfigChanged);
    let of = |tier| {
        let labels = labels(&[("tier", tier)]);
        effective_spec(&configured.desired, "h", &labels).unwrap().config.clone()
    };
    assert_eq!((of("canary"), of("edge")), (Some(config.clone()), None));
    event(&configured);
    // In the midst of a rollout nobody could say of which version.
    assert_eq!(
        code_of(present(&rolling).configure(&id(), Some(config.clone()), None)),
        "control_change_refused"
    );
    // After a rollback it is that of the version that runs.
    let back = desired(two_waves(), 0, Progress::RolledBack);
    let again = present(&back).configure(&id(), Some(config), None).unwrap().desired;
    assert_eq!(versions(&again), [v("1.0.0"), v("1.0.0")]);

    let gone = present(&rolling).remove().unwrap();
    assert_eq!((&gone.kind, &gone.desired), (&Kind::Removed, &removed()));
    event(&gone);
    assert_eq!(code_of(present(&removed()).remove()), "control_change_refused");
}

#[tokio::test]
async fn a_frozen_fleet_goes_back_and_stops_but_not_on() {
    let store = MemoryControlStore::new(Arc::new(ManualClock::default()));
    let rolling = desired(two_waves(), 0, Progress::Running);
    let signed = |change: &Change| event(change).sign(&release_key()).unwrap();
    let went_back = present(&rolling).roll_back().unwrap().desired;
    let other_version = Some(spec(PLUGIN, "3.0.0", b"3.0.0"));
    let paused =
        |desired| Change { kind: Kind::Paused, desired: Desired { state: RunState::Paused, ..desired } };
    let halted =
        |plan, wave| Change { kind: Kind::RolloutHalted, desired: desired(plan, wave, Progress::Halted) };
    let on = [
        present(&rolling).advance().unwrap(),
        present(&rolling).deploy(&id(), deploy("3.0.0", None)).unwrap(),
        present(&plain()).configure(&id(), None, None).unwrap(),
        present(&rolling).remove().unwrap(),
        present(&present(&rolling).pause().unwrap().desired).resume().unwrap(),
        // A kind says why, and not how far it goes: these name another version, another wave, other hosts or another plan.
        Change { kind: Kind::RolledBack, desired: plain() },
        Change { kind: Kind::RolledBack, desired: Desired { stable: other_version, ..went_back.clone() } },
        paused(present(&rolling).deploy(&id(), deploy("3.0.0", None)).unwrap().desired),
        paused(present(&rolling).advance().unwrap().desired),
        paused(Desired { targets: labels(&[("zone", "b")]), ..rolling.clone() }),
        halted(two_waves(), 1),
        halted(plan(&[wave(100, &[], 0)]), 0),
    ];
    let back = [
        present(&rolling).halt().unwrap(),
        present(&rolling).roll_back().unwrap(),
        present(&rolling).pause().unwrap(),
    ];
    for change in on.iter().chain(&back) {
        assert!(freeze::refusal(&store, &signed(change)).await.unwrap().is_none(), "{}", change.kind);
    }
    let stands = about(PLUGIN, Kind::Deployed, rolling.clone(), 1).sign(&release_key()).unwrap();
    store.propose(&stands).await.unwrap();
    let freeze = Freeze { by: "ops@example.com".into(), reason: "a holiday".into(), at: ISSUED };
    freeze::set(&store, Some(&freeze)).await.unwrap();
    assert_eq!(freeze::present(&store).await.unwrap(), Some(freeze));
    for change in &on {
        let refused = freeze::refusal(&store, &signed(change)).await.unwrap().expect("it goes on");
        assert_eq!(code_of::<()>(Err(refused.clone())), "control_frozen", "{}", change.kind);
        assert!(refused.to_string().contains("ops@example.com: a holiday"), "{refused}");
    }
    for change in &back {
        assert!(freeze::refusal(&store, &signed(change)).await.unwrap().is_none(), "{}", change.kind);
    }
    // What stands is what counts: of a plugin that nobody knows of, nothing can be stopped.
    let unknown =
        about("watch", Kind::Paused, paused(rolling.clone()).desired, 1).sign(&release_key()).unwrap();
    assert!(freeze::refusal(&store, &unknown).await.unwrap().is_some());
    let keys = trust_changed(trusted(), 1).sign(&millrace_tests::control_events::root_key()).unwrap();
    assert!(freeze::refusal(&store, &keys).await.unwrap().is_none());
    // What cannot be read froze it all the same.
    store.set_note("freeze", Some("yes")).await.unwrap();
    assert!(freeze::refusal(&store, &signed(&on[0])).await.unwrap().is_some());
    freeze::set(&store, None).await.unwrap();
    assert!(freeze::refusal(&store, &signed(&on[0])).await.unwrap().is_none());
}

#[test]
fn a_dry_run_says_what_would_change_on_which_hosts() {
    let seen = |host: &str, tier: &str| Seen {
        host: host.into(),
        age: Duration::from_secs(1),
        report: Some(HostReport::new(host, labels(&[("tier", tier)]), "one")),
    };
    let mut hosts = vec![seen("a", "canary"), seen("b", "edge"), seen("gone", "edge")];
    hosts[2].age = Duration::from_secs(25 * 3600);
    let now = plain();
    let next = present(&now).deploy(&id(), deploy("2.0.0", Some(two_waves()))).unwrap().desired;
    let changes = preview(Some(&now), &next, &hosts, Silence::default());
    let version = |named: &Option<millrace::control::fleet::Named>| named.as_ref().map(|n| n.version.clone());
    let lines: Vec<_> = changes
        .iter()
        .map(|c| (c.host.as_str(), c.wave, version(&c.now), version(&c.next), version(&c.finally), c.at_once))
        .collect();
    assert_eq!(
        lines,
        [
            ("a", Some(1), v("1.0.0"), v("2.0.0"), v("2.0.0"), true),
            ("b", Some(2), v("1.0.0"), v("1.0.0"), v("2.0.0"), false),
        ]
    );
    // Whom neither of them means is named, too.
    let targets = labels(&[("tier", "edge")]);
    let narrow = Desired { targets, ..running(spec(PLUGIN, "2.0.0", b"2.0.0")) };
    let alone = |present: Option<&Desired>| -> Vec<_> {
        preview(present, &narrow, &hosts, Silence::default())
            .into_iter()
            .map(|c| (c.host, version(&c.now), version(&c.finally), c.at_once, c.left_alone))
            .collect()
    };
    let (a, b) = ("a".to_owned(), "b".to_owned());
    let reached = |now| (b.clone(), now, v("2.0.0"), true, false);
    assert_eq!(alone(None), [(a.clone(), None, None, false, true), reached(None)]);
    assert_eq!(alone(Some(&now)), [(a.clone(), v("1.0.0"), None, true, false), reached(v("1.0.0"))]);
    // Taking it back is noticed by the host that has it alone.
    let back = present(&next).roll_back().unwrap().desired;
    let noticed: Vec<_> = preview(Some(&next), &back, &hosts, Silence::default())
        .into_iter()
        .map(|change| (change.host, change.at_once))
        .collect();
    assert_eq!(noticed, [("a".to_owned(), true), ("b".to_owned(), false)]);
    let all: Vec<_> = preview(Some(&now), &removed(), &hosts, Silence::default())
        .into_iter()
        .map(|change| change.at_once)
        .collect();
    assert_eq!(all, [true, true]);
}
