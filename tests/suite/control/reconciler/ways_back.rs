//! Claims about versions that the fleet has taken back: hosts that had them go back, or stop.

use millrace::control::EventId;
use millrace::control::trust::TrustStore;
use millrace_tests::control_events::{ISSUED, SECOND, build_key, trusted};

use super::*;

/// A host of the first wave, on which `board 2` has taken over from another one.
async fn reached(old: &str) -> Scene {
    let mut scene = Scene::new();
    scene.labels.insert("tier".into(), "canary".into());
    scene.start();
    scene.deploy(old, 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let rolling = scene.rolling(70, "board 2", Some(old), "canary", Progress::Running);
    scene.apply(about("board", Kind::Deployed, rolling, 2)).await;
    scene.reaches("board", 2, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));
    scene
}

#[tokio::test]
async fn what_is_gone_back_to_is_not_tried_beside_what_was_taken_back() {
    let old = "board 1 shadow";
    let scene = reached(old).await;
    let back = scene.rolling(70, "board 2", Some(old), "canary", Progress::RolledBack);
    scene.apply(about("board", Kind::RolledBack, back, 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
    assert!(scene.plugins.deployment("board").unwrap().rollback);

    // A host that was away hears of it by a later word.
    let scene = reached(old).await;
    let back = scene.rolling(70, "board 2", Some(old), "canary", Progress::RolledBack);
    scene.apply(about("board", Kind::Resumed, back, 5)).await;
    scene.reaches("board", 5, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));

    // Or another rollout has taken the place of the first, and is not here yet.
    let scene = reached(old).await;
    let other = scene.rolling(71, "board 3", Some(old), "elsewhere", Progress::Running);
    scene.apply(about("board", Kind::Deployed, other, 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
}

#[tokio::test]
async fn what_was_taken_back_stops_where_the_one_before_cannot_take_its_place() {
    let old = "board 1 state";
    let scene = reached(old).await;
    let back = scene.rolling(70, "board 2", Some(old), "canary", Progress::RolledBack);
    scene.apply(about("board", Kind::RolledBack, back, 3)).await;
    assert_eq!(scene.set_aside("board", 3).await, "state_refused");
    assert_eq!((scene.now("board"), scene.row("board").await.unwrap().serving), (stands("2"), None));
    scene.deploy("board 3", 4).await;
    scene.reaches("board", 4, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("3"));
}

/// The release says when; a release long ago is not undone by a key that nobody uses any more.
#[tokio::test]
async fn what_was_released_before_the_build_key_expired_still_comes() {
    let mut scene = reached("board 1").await;
    scene.kill().await;
    let mut keys = trusted();
    for key in keys.keys.iter_mut().filter(|key| key.id() == Some(build_key().id().to_owned())) {
        key.expires_at = Some(ISSUED + SECOND);
    }
    scene.keys = Believing::new(TrustStore::new(1, &keys).unwrap());
    scene.start();
    let late = |kind, desired, revision| UnsignedEvent {
        issued_at: ISSUED + 100 * SECOND,
        ..about("board", kind, desired, revision)
    };
    let back = scene.rolling(70, "board 2", Some("board 1"), "canary", Progress::RolledBack);
    scene.apply(late(Kind::RolledBack, back, 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
    // The next wave of what was begun in time.
    let began = |second: i64| {
        let millis = u64::try_from((ISSUED + second * SECOND) / 1_000).unwrap();
        let mut desired = scene.rolling(70, "board 3", Some("board 1"), "canary", Progress::Running);
        desired.rollout.as_mut().unwrap().id = EventId::new(ulid::Ulid::from_parts(millis, 1)).to_string();
        desired
    };
    scene.apply(late(Kind::RolloutAdvanced, began(0), 4)).await;
    scene.reaches("board", 4, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("3"));
    // Not what is released only now.
    let news = Desired { spec: Some(scene.spec("board 4")), ..began(99) };
    scene.apply(late(Kind::Deployed, news, 5)).await;
    assert_eq!(scene.set_aside("board", 5).await, "control_event_untrusted");
    assert_eq!(scene.now("board"), runs("3"));
}

/// Somebody has taken it back, not this host by itself: what is bad serves until the one before is there again.
#[tokio::test]
async fn what_was_taken_back_or_paused_waits_for_none_that_is_being_deployed() {
    let mut scene = Scene::new();
    scene.options.plugins_max = 1;
    scene.start();
    let config = br#"{"mode":"plain"}"#;
    scene.supply.put(config);
    let with = |content: &str| {
        let plugin = content.split(' ').next().unwrap();
        PluginSpec { config: Some(component(plugin, config)), ..scene.spec(content) }
    };
    for content in ["board 1", "barred 1 state", "kept 1", "slow 1"] {
        let plugin = content.split(' ').next().unwrap();
        scene.apply(about(plugin, Kind::Deployed, running(with(content)), 1)).await;
        scene.reaches(plugin, 1, Phase::Active).await;
    }
    let new = [("board 1", "board 2"), ("barred 1 state", "barred 2")];
    for (former, content) in new {
        let plugin = content.split(' ').next().unwrap();
        let desired = at_once(running(scene.spec(content)), with(former), 102);
        scene.apply(about(plugin, Kind::Deployed, desired, 2)).await;
        scene.reaches(plugin, 2, Phase::Active).await;
    }
    scene.deploy("slow 2 held", 2).await;
    scene.reaches("slow", 2, Phase::Shadow).await;

    for (number, (former, content)) in (70..).zip(new) {
        let plugin = content.split(' ').next().unwrap();
        let (id, progress) = (id(number).to_string(), Progress::RolledBack);
        let rollout = RolloutState { id, plan: Plan::at_once(), wave: 0, progress };
        let (stable, rollout) = (Some(with(former)), Some(rollout));
        let desired = Desired { stable, rollout, ..running(scene.spec(content)) };
        scene.apply(about(plugin, Kind::RolledBack, desired, 3)).await;
    }
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
    assert_eq!(scene.set_aside("barred", 3).await, "state_refused");
    assert_eq!(scene.now("barred"), stands("2"));
    scene.apply(about("kept", Kind::Paused, paused(with("kept 1")), 2)).await;
    scene.reaches("kept", 2, Phase::Paused).await;
    assert_eq!((scene.now("kept"), scene.plugins.shadows()), (stands("1"), 1));
    scene.plugins.let_go.send_replace(true);
    scene.reaches("slow", 2, Phase::Active).await;
}
