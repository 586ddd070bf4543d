//! Components that were deployed once: kept as long as somebody can go back to them, and no longer.

use millrace::limits::DEPLOYMENT_HISTORY_MAX;

use super::*;

fn kept(scene: &Scene) -> Vec<String> {
    scene.artifacts.0.lock().expect("test").keys().cloned().collect()
}

async fn deploy_unproved(scene: &Scene, component: &str) {
    let options = DeployOptions { no_shadow: true, ..DeployOptions::default() };
    let request = DeployRequest { options, ..request(component.to_owned(), "api:test") };
    scene.registry.deploy(request).await.expect("it takes over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_goes_with_the_last_deployment_that_refers_to_it() {
    let scene = Scene::new();
    scene.deploy("beta 1").await.expect("it is deployed");
    deploy_unproved(&scene, "alpha 1").await;
    deploy_unproved(&scene, "alpha 2").await;
    // It is deployed twice, so the history has it longer than what came between.
    deploy_unproved(&scene, "alpha 1").await;
    for version in 3..=DEPLOYMENT_HISTORY_MAX {
        deploy_unproved(&scene, &format!("alpha {version}")).await;
    }
    let expected = |kept: &[String]| kept.contains(&"beta 1".into()) && kept.contains(&"alpha 1".into());
    assert!(expected(&kept(&scene)) && kept(&scene).contains(&"alpha 2".into()), "{:?}", kept(&scene));
    let all = kept(&scene).len();
    // The history is full: each deploy takes the oldest from it, first `alpha 1`, which is in it once more.
    for (version, gone) in [(201, None), (202, Some("alpha 2")), (203, Some("alpha 1"))] {
        let before = kept(&scene);
        deploy_unproved(&scene, &format!("alpha {version}")).await;
        let after = kept(&scene);
        let missing: Vec<_> = before.iter().filter(|digest| !after.contains(digest)).collect();
        assert_eq!(missing, gone.iter().collect::<Vec<_>>(), "version {version}");
    }
    assert_eq!(kept(&scene).len(), all + 1);
    for deployment in scene.registry.history("alpha").await.expect("it is there") {
        assert!(kept(&scene).contains(&deployment.digest), "{} can be gone back to", deployment.version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_for_a_deploy_that_failed_goes_and_what_runs_or_was_removed_stays() {
    let mut scene = Scene::new();
    for component in ["alpha 1", "alpha 2", "beta 1"] {
        scene.deploy(component).await.expect("it is deployed");
    }
    scene.registry.remove("beta").await.expect("it is removed");
    // As a host leaves it that ends between the two.
    scene.parts.artifacts.put(b"gamma 1").expect("it is kept");
    scene.restart().await;
    assert_eq!(kept(&scene), ["alpha 1", "alpha 2", "beta 1"]);
    let options = DeployOptions { confirm: true, ..DeployOptions::default() };
    let waiting = DeployRequest { options, ..request("alpha 3", "api:test") };
    scene.publish(X).await;
    scene.settle("alpha").await;
    scene.registry.deploy(waiting).await.expect("it waits");
    scene.deploy("beta 2").await.expect("it is deployed");
    scene.registry.confirm("alpha").await.expect("it takes over");
    scene.restart().await;
    assert_eq!(scene.show("alpha").await.deployment.version, "3.0.0");
    assert_eq!(kept(&scene), ["alpha 1", "alpha 2", "alpha 3", "beta 1", "beta 2"]);
}
