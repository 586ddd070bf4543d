//! Claims about a host that answers while it still starts what was deployed.

use millrace::error::Retry;

use super::*;

fn refused<T: std::fmt::Debug>(answer: Result<T, ControlError>) {
    let error = answer.expect_err("nobody knows yet what it would change");
    assert_eq!(error.code(), "host_starting");
    assert!(matches!(error.retry(), Retry::After(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_refused_until_what_was_deployed_has_been_started() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert!(scene.registry.shut_down(Duration::from_secs(20)).await, "it stops in time");
    scene.registry = Registry::new(scene.parts.clone());
    scene.registry.refuse_changes();
    refused(scene.deploy("alpha 2").await);
    refused(scene.deploy("beta 1").await);
    refused(scene.registry.pause("alpha").await);
    refused(scene.registry.resume("alpha").await);
    refused(scene.registry.remove("alpha").await);
    refused(scene.registry.rollback("alpha", None, "api:test", DeployOptions::default()).await);
    refused(scene.registry.confirm("alpha").await);
    refused(scene.registry.show("alpha").await);
    scene.registry.start_deployed().await.expect("what was deployed can be listed");
    assert_eq!(scene.show("alpha").await.deployment.version, "1.0.0");
    scene.deploy("alpha 2").await.expect("it takes over");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 2));
    assert_eq!(scene.registry.show("beta").await.expect_err("it was refused").code(), "plugin_unknown");
}
