//! Claims about settings that come with a deployment, about telling how far one is, and about whose plugins are whose.

use millrace::plugins::{DeployStep, EnvValue, FailurePolicy};
use millrace::processors::Expect;
use tokio::sync::mpsc;

use super::*;

/// The guest writes what it finds in its environment.
fn greeting(text: &str) -> PluginSettings {
    PluginSettings {
        grants: vec!["env".into()],
        env: [("GREETING".to_owned(), EnvValue(text.into()))].into(),
        ..PluginSettings::default()
    }
}

/// Without a shadow run: these are told apart by their settings.
const UNSEEN: DeployOptions = DeployOptions {
    shadow_events: None,
    shadow_ms: None,
    no_shadow: true,
    confirm: false,
    expect: Expect::Anything,
    rollback: false,
};

async fn deploy_with(scene: &Scene, settings: Option<PluginSettings>) -> Result<PluginStatus, ControlError> {
    let request = DeployRequest { settings, options: UNSEEN, ..request(component("reads_env"), "api:test") };
    scene.registry.deploy(request).await
}

/// What the guest finds now.
async fn greeted(scene: &Scene) -> Value {
    scene.publish(X).await;
    scene.settle("reads-env").await;
    scene.rows("env_variables").await["GREETING"][0].clone()
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_runs_with_what_it_was_deployed_with_over_restarts_and_on_the_way_back() {
    let mut scene = Scene::wasm(options());
    scene.parts.settings.insert("reads-env".into(), greeting("operator"));
    scene.restart().await;
    deploy_with(&scene, None).await.expect("it is deployed");
    assert_eq!(greeted(&scene).await, text("operator"));
    let status = deploy_with(&scene, Some(greeting("one"))).await.expect("the same bytes take over");
    assert!(!status.nothing_changed);
    assert_eq!(greeted(&scene).await, text("one"));
    scene.restart().await;
    assert_eq!(greeted(&scene).await, text("one"));
    deploy_with(&scene, Some(greeting("two"))).await.expect("they take over again");
    assert_eq!(greeted(&scene).await, text("two"));
    // The last other one is of the same version, with other settings.
    let back = scene.registry.rollback("reads-env", None, "api:test", UNSEEN).await;
    assert_eq!(back.expect("it goes back").deployment.settings, Some(greeting("one")));
    scene.restart().await;
    assert_eq!(greeted(&scene).await, text("one"));
    // Paused and resumed, it is loaded anew.
    scene.registry.pause("reads-env").await.expect("it pauses");
    scene.registry.resume("reads-env").await.expect("it goes on");
    assert_eq!(greeted(&scene).await, text("one"));
    deploy_with(&scene, None).await.expect("the operator's again");
    assert_eq!(greeted(&scene).await, text("operator"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_with_the_same_settings_change_nothing() {
    let scene = Scene::wasm(options());
    deploy_with(&scene, Some(greeting("one"))).await.expect("it is deployed");
    let again = deploy_with(&scene, Some(greeting("one"))).await.expect("it is no error");
    assert!(again.nothing_changed);
    assert_eq!(scene.registry.history("reads-env").await.expect("it is there").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_do_not_do_leave_those_that_do() {
    let scene = Scene::wasm(options());
    deploy_with(&scene, Some(greeting("one"))).await.expect("it is deployed");
    let error = deploy_with(&scene, Some(PluginSettings::default())).await.expect_err("it wants `env`");
    assert_eq!(error.code(), "grant_missing");
    assert_eq!(scene.show("reads-env").await.deployment.settings, Some(greeting("one")));
    assert_eq!(greeted(&scene).await, text("one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_everybody_sees_of_a_deployment_has_no_settings() {
    let scene = Scene::wasm(options());
    let status = deploy_with(&scene, Some(greeting("a-secret"))).await.expect("it is deployed");
    let shown = serde_json::to_string(&status).expect("a status is JSON");
    assert!(!shown.contains("a-secret"), "{shown}");
    let env = status.grants.iter().find(|grant| grant.name == "env").expect("it is shown");
    assert!(env.granted && env.reach == ["GREETING"], "{env:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_comes_with_a_deployment_counts_from_it_on() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    let settings =
        Some(PluginSettings { on_failure: Some(FailurePolicy::Skip), ..PluginSettings::default() });
    let skipping = DeployRequest { settings, ..request("alpha 1", "api:test") };
    scene.registry.deploy(skipping).await.expect("it takes over");
    scene.publish(&[("x", "reject", "1"), ("x", "add", "1")]).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(1, 1), "the key is not held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_tells_how_far_it_is() {
    // One that does not end takes it whole.
    let call_max = Duration::from_secs(2);
    let scene = Scene::wasm(RuntimeOptions { call_max, ..options() });
    let told = async |guest: &str, paused: bool| {
        if paused {
            scene.registry.pause("counter").await.expect("it pauses");
        }
        let (progress, mut steps) = mpsc::channel(DeployStep::COUNT);
        let request = DeployRequest { progress: Some(progress), ..request(component(guest), "api:test") };
        // Whether it is refused or not: what it came to is told.
        let _ = scene.registry.deploy(request).await;
        let mut all = Vec::new();
        while let Some(step) = steps.recv().await {
            all.push(step);
        }
        all
    };
    use DeployStep::{Active, Compiled, Shadow, Validated};
    assert_eq!(told("counter", false).await, [Compiled, Validated, Active]);
    assert_eq!(told("counter", false).await, [Compiled, Validated, Active], "nothing changed");
    scene.publish(X).await;
    scene.settle("counter").await;
    assert_eq!(told("counter_refuses", false).await, [Compiled, Validated], "it refuses the state");
    assert_eq!(told("endless_describe", false).await, []);
    assert_eq!(told("counter_v2", false).await, [Compiled, Validated, Shadow, Active]);
    assert_eq!(told("counter", true).await, [Compiled, Validated], "it stays paused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_feed_manages_nobody_else_changes() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("nobody manages it");
    scene.deploy("beta 1").await.expect("nobody manages it");
    scene.registry.managed().set(["alpha".to_owned(), "gamma".to_owned()].into());
    let registry = &scene.registry;
    let options = DeployOptions::default();
    let named =
        DeployRequest { expected_name: Some("alpha".into()), ..request("broken", "directory: a.wasm") };
    let refused = [
        scene.deploy("alpha 2").await.map(drop),
        scene.deploy("gamma 1").await.map(drop),
        registry.deploy(named).await.map(drop),
        registry.rollback("alpha", None, "api:test", options).await.map(drop),
        registry.confirm("alpha").await.map(drop),
        registry.abandon("alpha").await.map(drop),
        registry.pause("alpha").await.map(drop),
        registry.resume("alpha").await.map(drop),
        registry.remove("alpha").await,
    ];
    for refused in refused {
        assert_eq!(refused.expect_err("it is the feed's").code(), "plugin_managed");
    }
    let status = scene.show("alpha").await;
    assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    assert!(status.last_refusal.is_none(), "nothing is remembered of it");
    scene.deploy("beta 2").await.expect("it is not the feed's");
    let feed = registry.for_feed();
    feed.deploy(request("alpha 2", "feed")).await.expect("the feed may");
    feed.pause("alpha").await.expect("the feed may");
    feed.remove("alpha").await.expect("the feed may");
    registry.managed().set(BTreeSet::new());
    scene.deploy("gamma 1").await.expect("nobody manages it any more");
}
