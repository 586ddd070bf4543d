//! Claims about what goes wrong: what can never work is set aside with its reason, alone and for its revision; what may pass
//! is tried until it works; and what served serves.

use millrace::control::trust::{KeyRole, TrustStore};
use millrace::control::{ArtifactRef, Result};
use millrace::error::BackendError;
use millrace::plugins::{ControlError, PluginError};
use millrace_tests::control_events::{release_key as another_key, trust_changed, trusted};

use super::*;

#[tokio::test]
async fn c59_a_bad_component_sets_itself_aside_while_the_old_one_serves_and_others_are_deployed() {
    let cases = [
        ("broken", "not_a_component"),
        ("world", "wrong_world"),
        ("bomb", "compile_limit"),
        ("describe", "describe_failed"),
        ("grant", "grant_missing"),
        ("state", "state_refused"),
        ("shadow", "shadow_trap"),
    ];
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    let first = scene.reaches("board", 1, Phase::Active).await.serving;
    for (revision, (flaw, code)) in (2..).step_by(2).zip(cases) {
        scene.plugins.calls();
        scene.deploy(&format!("board {revision} {flaw}"), revision).await;
        scene.deploy(&format!("other {revision}"), revision).await;
        assert_eq!(scene.set_aside("board", revision).await, code);
        scene.reaches("other", revision, Phase::Active).await;
        assert_eq!(scene.now("board"), runs("1"), "{flaw}");
        assert_eq!(scene.row("board").await.unwrap().serving, first, "{flaw}");
        // It is tried once, also by a host that is started again.
        scene.kill().await;
        scene.start();
        scene.deploy(&format!("other {}", revision + 1), revision + 1).await;
        scene.reaches("other", revision + 1, Phase::Active).await;
        let calls = scene.plugins.calls();
        let tries = calls.iter().filter(|call| call.starts_with("deploy board")).count();
        assert_eq!(tries, 1, "{flaw}: {calls:?}");
    }
    // Another revision is another matter, also with a component that was set aside.
    scene.deploy("board 2 broken", 50).await;
    assert_eq!(scene.set_aside("board", 50).await, "not_a_component");
    scene.deploy("board 60", 60).await;
    let row = scene.reaches("board", 60, Phase::Active).await;
    assert_eq!((row.reason, scene.now("board")), (None, runs("60")));
}

#[tokio::test]
async fn c60_a_deploy_that_takes_long_does_not_hold_up_another_plugin() {
    let mut scene = Scene::new();
    scene.options.plugins_max = 2;
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.deploy("board 2 held", 2).await;
    scene.reaches("board", 2, Phase::Shadow).await;
    for number in 0..4 {
        scene.deploy(&format!("other-{number} 1"), 1).await;
        scene.reaches(&format!("other-{number}"), 1, Phase::Active).await;
    }
}

#[tokio::test]
async fn only_so_many_plugins_are_worked_on_at_a_time() {
    let mut scene = Scene::new();
    scene.options.plugins_max = 2;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        scene.deploy(&format!("{name} 1"), 1).await;
    }
    scene.start();
    for name in names {
        scene.reaches(name, 1, Phase::Active).await;
        scene.deploy(&format!("{name} 2 held"), 2).await;
    }
    let begun = Instant::now();
    while scene.plugins.shadows() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: two are tried");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rows = scene.store.observed().await.unwrap();
    let begun = rows.iter().filter(|row| row.revision == 2).count();
    assert_eq!((begun, scene.plugins.shadows()), (2, 2));
    scene.plugins.let_go.send_replace(true);
    for name in names {
        scene.reaches(name, 2, Phase::Active).await;
    }
}

#[tokio::test]
async fn what_nobody_has_signed_as_a_build_of_this_plugin_is_not_even_fetched() {
    let mut scene = Scene::new();
    scene.start();
    let sound = scene.spec("board 1");
    let unsigned = PluginSpec {
        component: ArtifactRef { signatures: Vec::new(), ..sound.component.clone() },
        ..sound.clone()
    };
    let mut by_another = unsigned.clone();
    by_another.component = by_another.component.built_by("board", &another_key());
    let of_another = PluginSpec { component: component("other", b"board 1"), ..sound };
    for (revision, spec) in (1..).zip([unsigned, by_another, of_another]) {
        scene.apply(about("board", Kind::Deployed, running(spec), revision)).await;
        assert_eq!(scene.set_aside("board", revision).await, "control_event_untrusted");
    }
    assert_eq!((scene.supply.gets(), scene.now("board")), (0, None));
}

/// Lists of keys and versions of plugins are published beside each other.
#[tokio::test]
async fn a_build_whose_key_comes_later_is_tried_again_once_it_is_there() {
    let mut scene = Scene::new();
    let mut without = trusted();
    without.keys.retain(|key| key.role != KeyRole::Build);
    scene.keys = Believing::new(TrustStore::new(1, &without).unwrap());
    scene.start();
    scene.deploy("board 1", 1).await;
    assert_eq!(scene.set_aside("board", 1).await, "control_event_untrusted");
    scene.deploy("other 1 broken", 1).await;
    assert_eq!(scene.set_aside("other", 1).await, "control_event_untrusted");
    scene.apply(trust_changed(trusted(), 2)).await;
    scene.keys.recall(&*scene.store).await.unwrap();
    scene.news.send_modify(|news| *news += 1);
    scene.reaches("board", 1, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
    // What is bad by itself is not tried twice.
    let is_bad = |row: Option<&ObservedRow>| {
        row.and_then(|row| row.reason.as_ref()).is_some_and(|(code, _)| code == "not_a_component")
    };
    scene.until("other", "it is set aside for itself", is_bad).await;
    scene.plugins.calls();
    scene.apply(trust_changed(without, 3)).await;
    scene.keys.recall(&*scene.store).await.unwrap();
    scene.news.send_modify(|news| *news += 1);
    scene.deploy("last 1", 1).await;
    assert_eq!(scene.set_aside("last", 1).await, "control_event_untrusted");
    assert_eq!((scene.plugins.calls(), scene.now("board")), (vec![], runs("1")));
}

/// Vouches for nothing, and is given another list once it was asked.
#[derive(Debug)]
struct NextList {
    keys: Believing,
    asked: AtomicU64,
}

impl Vet for NextList {
    fn check(&self, plugin: &str, component: &ArtifactRef, released_at: i64) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.keys.check(plugin, component, released_at)
    }

    fn list(&self) -> String {
        self.asked.load(Ordering::SeqCst).min(1).to_string()
    }
}

#[tokio::test]
async fn a_build_that_no_key_of_the_next_list_vouches_for_either_is_set_aside() {
    let mut scene = Scene::new();
    let mut without = trusted();
    without.keys.retain(|key| key.role != KeyRole::Build);
    let keys = Believing::new(TrustStore::new(1, &without).unwrap());
    scene.vet = Some(Arc::new(NextList { keys, asked: AtomicU64::new(0) }));
    scene.start();
    scene.deploy("board 1", 1).await;
    assert_eq!(scene.set_aside("board", 1).await, "control_event_untrusted");
    assert_eq!((scene.supply.gets(), scene.now("board")), (0, None));
}

#[tokio::test]
async fn m10_content_that_is_not_what_its_digest_says_never_runs() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let spec = scene.spec("board 2");
    scene.supply.tamper(&spec.component.digest, b"board 2 other");
    scene.plugins.calls();
    scene.apply(about("board", Kind::Deployed, running(spec.clone()), 2)).await;
    assert_eq!(scene.set_aside("board", 2).await, "artifact_damaged");
    let row = scene.row("board").await.unwrap();
    assert_eq!(row.attempts, scene.options.doubts_max + 1, "it may have been the way");
    assert_eq!((scene.plugins.calls(), scene.now("board")), (vec![], runs("1")));
    // It is mended between two tries.
    scene.supply.tamper(&spec.component.digest, b"");
    scene.options.retry_min = Duration::from_millis(50);
    scene.options.doubts_max = 1_000;
    scene.kill().await;
    scene.start();
    scene.apply(about("board", Kind::Deployed, running(spec), 3)).await;
    scene.hindered("board", "artifact_damaged").await;
    scene.supply.put(b"board 2");
    scene.reaches("board", 3, Phase::Active).await;
}

#[tokio::test]
async fn a_component_of_another_size_than_was_signed_never_runs() {
    let mut scene = Scene::new();
    scene.start();
    let mut spec = scene.spec("board 1");
    spec.component.bytes += 1;
    spec.component = spec.component.built_by("board", &millrace_tests::control_events::build_key());
    scene.apply(about("board", Kind::Deployed, running(spec), 1)).await;
    assert_eq!(scene.set_aside("board", 1).await, "artifact_damaged");
    assert!(scene.plugins.calls().is_empty());
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_set_aside() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let bad: [&[u8]; 4] = [b"{", b"[]", br#"{"depth": 7}"#, b"\xff"];
    for (revision, config) in (2..).zip(bad) {
        scene.supply.put(config);
        let spec = PluginSpec { config: Some(component("board", config)), ..scene.spec("board 2") };
        scene.apply(about("board", Kind::ConfigChanged, running(spec), revision)).await;
        assert_eq!(scene.set_aside("board", revision).await, "plugin_config_invalid");
        assert_eq!(scene.now("board"), runs("1"));
    }
}

#[tokio::test]
async fn while_the_repository_is_away_the_old_one_serves_and_afterwards_the_new_one() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    let first = scene.reaches("board", 1, Phase::Active).await.serving;
    scene.supply.set_away(true);
    scene.deploy("board 2", 2).await;
    let row = scene.hindered("board", "storage_failed").await;
    assert_eq!((row.phase, row.revision, row.serving), (Phase::Absent, 2, first));
    scene.until("board", "it is tried again", |row| row.is_some_and(|row| row.attempts > 5)).await;
    // A host that is started meanwhile goes on with it, and with what runs.
    scene.kill().await;
    scene.start();
    scene.until("board", "it is tried by the next one", |row| row.is_some_and(|row| row.attempts > 10)).await;
    assert_eq!(scene.now("board"), runs("1"));
    scene.supply.set_away(false);
    let row = scene.reaches("board", 2, Phase::Active).await;
    assert_eq!((row.reason, scene.now("board")), (None, runs("2")));
}

#[tokio::test]
async fn c24_an_artifact_that_is_missing_is_waited_for() {
    let mut scene = Scene::new();
    scene.start();
    let spec = spec("board", "1.0.0", b"board 1");
    scene.apply(about("board", Kind::Deployed, running(spec), 1)).await;
    scene.hindered("board", "artifact_missing").await;
    let many = scene.options.doubts_max * 3;
    scene.until("board", "it is tried again", |row| row.is_some_and(|row| row.attempts > many)).await;
    scene.supply.put(b"board 1");
    scene.reaches("board", 1, Phase::Active).await;
}

#[tokio::test]
async fn a_newer_revision_does_not_wait_for_an_older_ones_artifact() {
    let mut scene = Scene::new();
    scene.options.retry_min = Duration::from_secs(3_600);
    scene.options.retry_max = Duration::from_secs(3_600);
    scene.start();
    let missing = spec("board", "1.0.0", b"board 1");
    scene.apply(about("board", Kind::Deployed, running(missing), 1)).await;
    scene.hindered("board", "artifact_missing").await;
    scene.deploy("board 2", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_is_the_hosts_own_some_times() {
    let mut scene = Scene::new();
    scene.start();
    let failed = || BackendError::Failed { detail: "a disk".into() };
    let passing = || -> Vec<ControlError> {
        vec![
            ControlError::Starting,
            ControlError::DeployInProgress { plugin: "board".into() },
            PluginError::Storage { detail: "a disk".into() }.into(),
            failed().into(),
            BackendError::Closed.into(),
            ControlError::CandidateWaits { plugin: "board".into(), version: "1".into() },
        ]
    };
    scene.plugins.fail_next(passing().into_iter().chain(passing()));
    scene.deploy("board 1", 1).await;
    let row = scene.reaches("board", 1, Phase::Active).await;
    assert_eq!((row.attempts, row.reason), (13, None));
    let fell = || ControlError::from(PluginError::Compiler { detail: "it fell".into() });
    scene.plugins.fail_next((0..scene.options.doubts_max).map(|_| fell()));
    scene.deploy("board 2", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.plugins.fail_next((0..=scene.options.doubts_max).map(|_| fell()));
    scene.deploy("board 3", 3).await;
    assert_eq!(scene.set_aside("board", 3).await, "compiler_failed");
    assert_eq!(scene.now("board"), runs("2"));
}

#[tokio::test]
async fn a_version_that_does_not_start_any_more_is_deployed_anew() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.kill().await;
    scene.plugins.cannot_start("board");
    scene.start();
    let begun = Instant::now();
    // What it noted before it was killed says that it serves, too.
    while scene.plugins.history("board").await.unwrap().len() < 2 && begun.elapsed() < Duration::from_secs(60)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let serving = component("board", b"board 1").digest;
    let serves = |row: Option<&ObservedRow>| row.is_some_and(|row| row.serving.as_deref() == Some(&serving));
    scene.until("board", "it serves again", serves).await;
    assert_eq!(scene.plugins.history("board").await.unwrap().len(), 2);
}
