//! Hosts that share a log: a client that comes to another one of them is told nothing wrong.

use millrace::config::{Config, GrpcCheckpoints, LogAddress};
use reqwest::Method;
use tonic::Code;

use super::scene::Scene;

fn of(port: u16) -> impl FnOnce(&mut Config) {
    move |config| config.serve.log = Some(LogAddress(format!("redis://127.0.0.1:{port}")))
}

/// What lies in one host's folder would be missing, or old, at another one.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_clients_are_not_kept_by_one_of_several_hosts_unless_it_is_said() {
    // Nobody is there, and nobody is needed.
    let scene = Scene::with(of(1)).await;
    let caller = scene.caller(&[]);
    for refused in [caller.get("me").await, caller.put("me", "text/json", Some(vec![8, 0])).await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("shares its log"), "{refused}");
    }
    let http = scene.http(None);
    let path = "/v1/admin/checkpoints/me";
    let put = http.request(Method::PUT, path).body(r#"{"contentType":"text/json","value":1}"#);
    let refusal = (409, "checkpoints_not_shared".to_owned());
    assert_eq!(http.send(put).await.unwrap().refusal(), refusal);
    assert_eq!(http.get(path).await.unwrap().refusal(), refusal);

    let scene = Scene::with(|config| {
        of(1)(config);
        config.grpc.checkpoints = GrpcCheckpoints::Host;
    })
    .await;
    let caller = scene.caller(&[]);
    caller.put("me", "text/json", Some(vec![8, 0])).await.unwrap();
    assert_eq!(caller.get("me").await.unwrap().value, Some(vec![8, 0]));
}
