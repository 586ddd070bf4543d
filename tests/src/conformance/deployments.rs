//! What every store of deployments must do.

use millrace::plugins::{Deployment, EnvValue, FailurePolicy, PluginSettings, Proof, StartFrom};

use super::Seams;

pub(super) fn deployment(version: &str) -> Deployment {
    Deployment {
        plugin: "board".into(),
        version: version.into(),
        digest: "d".repeat(64),
        paused: false,
        lanes: 2,
        from: StartFrom::After(7),
        deployed_at: 5,
        deployed_by: "api".into(),
        ordering_key: None,
        proof: Proof::Loaded,
        rollback: false,
        settings: None,
    }
}

pub async fn deployments_keep_their_history(seams: Seams) {
    assert!(seams.deployments.list().await.unwrap().is_empty());
    for version in ["1.0.0", "1.1.0", "1.0.0"] {
        seams.deployments.put(deployment(version)).await.unwrap();
    }
    assert_eq!(seams.deployments.list().await.unwrap(), [deployment("1.0.0")]);
    let history = seams.deployments.history("board").await.unwrap();
    assert_eq!(history.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(), ["1.0.0", "1.1.0", "1.0.0"]);
    assert!(seams.deployments.history("other").await.unwrap().is_empty());
}

/// A rollback and a restart run with the settings that a version was deployed with; none are the operator's.
pub async fn a_deployment_keeps_its_settings(seams: Seams) {
    let own = PluginSettings {
        config: [("greeting".to_owned(), "hello".to_owned())].into(),
        grants: vec!["env".into(), "clock".into()],
        env: [("TOKEN".to_owned(), EnvValue("secret".into()))].into(),
        lanes: Some(3),
        on_failure: Some(FailurePolicy::Skip),
        memory_bytes_max: Some(1 << 20),
        ..PluginSettings::default()
    };
    let written = [None, Some(own), Some(PluginSettings::default())];
    for settings in written.clone() {
        seams.deployments.put(Deployment { settings, ..deployment("1.0.0") }).await.unwrap();
    }
    let settings =
        |deployments: Vec<Deployment>| deployments.into_iter().map(|d| d.settings).collect::<Vec<_>>();
    assert_eq!(settings(seams.deployments.list().await.unwrap()), written[2..]);
    let mut history = settings(seams.deployments.history("board").await.unwrap());
    history.reverse();
    assert_eq!(history, written);
    seams.deployments.withdraw("board").await.unwrap();
    assert_eq!(settings(seams.deployments.list().await.unwrap()), written[1..2]);
}

pub async fn a_deployment_that_is_withdrawn_was_never_there(seams: Seams) {
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        seams.deployments.put(deployment(version)).await.unwrap();
    }
    let other = Deployment { plugin: "other".into(), ..deployment("9.0.0") };
    seams.deployments.put(other.clone()).await.unwrap();
    seams.deployments.withdraw("board").await.unwrap();
    assert_eq!(seams.deployments.list().await.unwrap(), [deployment("1.1.0"), other.clone()]);
    let history = seams.deployments.history("board").await.unwrap();
    assert_eq!(history.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(), ["1.1.0", "1.0.0"]);
    // The first one of all leaves nothing.
    seams.deployments.withdraw("other").await.unwrap();
    assert_eq!(seams.deployments.list().await.unwrap(), [deployment("1.1.0")]);
    assert!(seams.deployments.history("other").await.unwrap().is_empty());
}
