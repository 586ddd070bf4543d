//! Claims about versions that trap soon after they took over: this host goes back by itself.

use millrace::control::rollout::Gate;

use super::*;

fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.options.breaker_poll = Duration::from_millis(1);
    scene
}

/// `board 1` runs, and `board 2` has just taken over.
async fn taken_over() -> Scene {
    let mut scene = scene();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.deploy_over("board 2", "board 1", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene
}

/// Another plugin has tripped meanwhile: whoever looks has looked.
async fn looked(scene: &Scene) {
    scene.deploy("other 1 traps", 1).await;
    assert_eq!(scene.set_aside("other", 1).await, "breaker_tripped");
}

#[tokio::test]
async fn m17_a_version_that_traps_goes_back_while_feed_and_repository_are_away() {
    let mut scene = taken_over().await;
    scene.supply.set_away(true);
    let gets = scene.supply.gets();
    let traps = scene.options.breaker.traps;
    scene.plugins.trap("board", traps - 1);
    scene.deploy("other 1", 1).await;
    scene.hindered("other", "storage_failed").await;
    assert_eq!(scene.now("board"), runs("2"), "that is not too often");
    scene.plugins.trap("board", 1);
    let row = scene.reaches("board", 2, Phase::Quarantined).await;
    let (code, reason) = row.reason.clone().unwrap();
    assert_eq!(code, "breaker_tripped");
    assert!(reason.contains(&format!("trapped {traps} times")), "{reason}");
    let first = component("board", b"board 1").digest;
    scene.until("board", "the one before serves", |row| row.unwrap().serving.as_ref() == Some(&first)).await;
    assert_eq!(scene.now("board"), runs("1"));
    let deployment = scene.plugins.deployment("board").unwrap();
    assert!(deployment.rollback && deployment.deployed_by.starts_with("feed: breaker, evt_"));

    // It is not tried again, by whom and how often it is looked at.
    for _ in 0..2 {
        scene.kill().await;
        scene.plugins.calls();
        scene.start();
        scene.until("other", "it is looked at", |row| row.unwrap().attempts > 2).await;
        let calls = scene.plugins.calls();
        assert!(calls.is_empty(), "{calls:?}");
        assert_eq!(scene.now("board"), runs("1"));
    }
    assert!(scene.supply.gets() > gets, "only for the other one");
    // A newer revision may have it.
    scene.supply.set_away(false);
    scene.deploy("board 2", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));
}

#[tokio::test]
async fn the_next_wave_of_the_same_rollout_does_not_bring_back_what_tripped() {
    let mut scene = scene();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let wave = Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 };
    let plan = Plan { waves: vec![wave.clone(), wave], gate: Gate::default(), automatic: false };
    let rollout = |number, wave, progress| RolloutState {
        id: id(number).to_string(),
        plan: plan.clone(),
        wave,
        progress,
    };
    let (new, old) = (scene.spec("board 2"), scene.spec("board 1"));
    let rolling =
        |rollout| Desired { stable: Some(old.clone()), rollout: Some(rollout), ..running(new.clone()) };
    scene.apply(about("board", Kind::Deployed, rolling(rollout(70, 0, Progress::Running)), 2)).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 2).await, "breaker_tripped");
    scene.apply(about("board", Kind::RolloutAdvanced, rolling(rollout(70, 1, Progress::Running)), 3)).await;
    assert_eq!(scene.set_aside("board", 3).await, "breaker_tripped");
    assert_eq!(scene.now("board"), runs("1"));
    scene.apply(about("board", Kind::Deployed, rolling(rollout(71, 0, Progress::Running)), 4)).await;
    scene.reaches("board", 4, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));
}

#[tokio::test]
async fn a_configuration_that_makes_it_trap_goes_back_alone() {
    let mut scene = scene();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let config = br#"{"mode":"bad"}"#;
    scene.supply.put(config);
    let spec = PluginSpec { config: Some(component("board", config)), ..scene.spec("board 1") };
    scene.apply(scene.over(running(spec), "board 1", 2)).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 2).await, "breaker_tripped");
    let settings = || scene.plugins.deployment("board").unwrap().settings.unwrap();
    assert!(settings().config.is_empty(), "the settings of the one before");
    // Saying so for everybody changes nothing here, and it is as it should be.
    scene.plugins.calls();
    scene.deploy("board 1", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!((scene.plugins.calls(), settings().config.len()), (vec![], 0));
}

#[tokio::test]
async fn a_version_without_one_before_it_is_paused() {
    let mut scene = scene();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 1).await, "breaker_tripped");
    scene.until("board", "nothing serves", |row| row.unwrap().serving.is_none()).await;
    assert_eq!(scene.now("board"), stands("1"));
    scene.deploy("board 2", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));
}

#[tokio::test]
async fn traps_of_the_version_before_are_not_held_against_the_new_one() {
    let mut scene = scene();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps - 1);
    scene.deploy("board 2", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps - 1);
    // Everything that has been asked for before is looked at by then.
    scene.deploy("board 3", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("3"));
    let calls = scene.plugins.calls();
    assert_eq!(calls, ["deploy board 1", "deploy board 2", "deploy board 3"]);
}

/// A version that was taken back, for whatever reason, is not what a host goes back to by itself.
#[tokio::test]
async fn the_former_version_is_not_exchanged_for_one_that_was_taken_back() {
    let scene = taken_over().await;
    let back = |progress| Desired {
        rollout: Some(RolloutState { id: id(70).to_string(), plan: Plan::at_once(), wave: 0, progress }),
        stable: Some(scene.spec("board 1")),
        ..running(scene.spec("board 2"))
    };
    scene.apply(about("board", Kind::RolledBack, back(Progress::RolledBack), 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    // The events are bad for both.
    scene.plugins.trap("board", scene.options.breaker.traps);
    let desired = Desired { state: RunState::Paused, ..back(Progress::RolledBack) };
    scene.apply(about("board", Kind::Paused, desired, 4)).await;
    scene.reaches("board", 4, Phase::Paused).await;
    scene.apply(about("board", Kind::Resumed, back(Progress::RolledBack), 5)).await;
    scene.reaches("board", 5, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    looked(&scene).await;
    assert_eq!(scene.now("board"), runs("1"));
    let history = scene.plugins.history("board").await.unwrap();
    assert!(!history.iter().any(|deployment| deployment.deployed_by.starts_with("feed: breaker")));
}

#[tokio::test]
async fn what_served_before_but_was_taken_back_or_revoked_is_not_gone_back_to() {
    // `board 2` was in the rollout that `board 3` has replaced, so the others run `board 1`.
    let scene = taken_over().await;
    scene.deploy_over("board 3", "board 1", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 3).await, "breaker_tripped");
    assert_eq!(scene.now("board"), runs("1"));

    // Of what the others run nobody vouches for the build any more.
    let scene = taken_over().await;
    let mut unsigned = scene.spec("board 1");
    unsigned.component.signatures.clear();
    let desired = at_once(running(scene.spec("board 3")), unsigned, 80);
    scene.apply(about("board", Kind::Deployed, desired, 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 3).await, "breaker_tripped");
    assert_eq!(scene.now("board"), stands("3"));
}

#[tokio::test]
async fn a_version_that_is_only_resumed_is_not_new_again() {
    let scene = taken_over().await;
    let of = |state| {
        let desired = at_once(running(scene.spec("board 2")), scene.spec("board 1"), 102);
        Desired { state, ..desired }
    };
    scene.apply(about("board", Kind::Paused, of(RunState::Paused), 3)).await;
    scene.reaches("board", 3, Phase::Paused).await;
    // It has served for longer than it is looked after.
    let armed_for = scene.options.breaker.armed_for + Duration::from_secs(1);
    scene.plugins.age("board", i64::try_from(armed_for.as_micros()).unwrap());
    scene.apply(about("board", Kind::Resumed, of(RunState::Running), 4)).await;
    scene.reaches("board", 4, Phase::Active).await;
    scene.plugins.trap("board", scene.options.breaker.traps);
    looked(&scene).await;
    assert_eq!(scene.now("board"), runs("2"));
}

#[tokio::test]
async fn a_version_that_stops_without_a_trap_is_seen_while_it_is_new() {
    let scene = taken_over().await;
    scene.plugins.stop("board");
    let row = scene.hindered("board", "plugin_failed").await;
    assert_eq!((row.phase, scene.now("board")), (Phase::Active, runs("2")));
}

#[tokio::test]
async fn what_stops_or_goes_back_does_not_wait_for_those_that_are_being_deployed() {
    let mut scene = scene();
    scene.options.plugins_max = 1;
    scene.start();
    for name in ["slow", "held", "gone"] {
        scene.deploy(&format!("{name} 1"), 1).await;
        scene.reaches(name, 1, Phase::Active).await;
    }
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.deploy_over("board 2", "board 1", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.deploy("slow 2 held", 2).await;
    scene.reaches("slow", 2, Phase::Shadow).await;

    scene.plugins.trap("board", scene.options.breaker.traps);
    assert_eq!(scene.set_aside("board", 2).await, "breaker_tripped");
    assert_eq!(scene.now("board"), runs("1"));
    // It had to wait for a newer version, and is to stop instead.
    scene.deploy("held 2", 2).await;
    scene.apply(about("held", Kind::Paused, paused(scene.spec("held 1")), 3)).await;
    scene.reaches("held", 3, Phase::Paused).await;
    scene.apply(about("gone", Kind::Removed, removed(), 2)).await;
    scene.until("gone", "it is gone", |row| row.is_none()).await;
    assert_eq!((scene.now("held"), scene.now("gone")), (stands("1"), None));
    scene.plugins.let_go.send_replace(true);
    scene.reaches("slow", 2, Phase::Active).await;
}
