//! Hosts that share a log: a client that comes to another one of them is told nothing wrong.

use std::time::Instant;

use millrace::config::{Config, GrpcCheckpoints, LogAddress};
use millrace::memory_v1::RetryInfo;
use millrace_tests::cutter::Cutter;
use millrace_tests::ports::Port;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use reqwest::Method;
use serde_json::json;
use tonic::{Code, Status};

use super::scene::{PATIENCE, Scene, after, data};

fn of(port: u16) -> impl FnOnce(&mut Config) {
    move |config| config.serve.log = Some(LogAddress(format!("redis://127.0.0.1:{port}")))
}

fn come_again(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(RetryInfo::of(status.details()).is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cursor_is_lost_while_the_log_is_not_reached() {
    let port = Port::hold();
    let scene = Scene::with(of(port.number())).await;
    let caller = scene.caller(&[]);
    for cursor in ["", "start", "abcd.7", "none.0"] {
        come_again(&caller.subscribe(after(cursor)).await.unwrap_err());
    }
    let _server = RedisServer::on_port(Engine::Redis, Keeps::Always, port);
    assert!(scene.host.host().wait_ready().await);
    scene.publish("a", "b", &[json!(1)]).await;
    assert_eq!(data(&caller.after("start").await.event().await), 1);
    // Now that the log is known, so are cursors that are none of its own.
    let (event, _, cursor) = caller.after("abcd.7").await.about().await;
    assert_eq!((event.as_str(), cursor), ("invalidate", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_moves_to_a_host_that_has_seen_less_is_not_told_that_its_cursor_is_lost() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let one = Scene::with(of(server.port())).await;
    let two = Scene::with(of(cutter.addr.port())).await;
    assert!(one.host.host().wait_ready().await && two.host.host().wait_ready().await);
    one.publish("a", "b", &[json!(0)]).await;
    let mut known = two.caller(&[]).after("start").await;
    assert_eq!(data(&known.event().await), 0, "the second host has seen this one");
    cutter.close();
    let numbers: Vec<_> = (1..=10).map(|number| json!(number)).collect();
    one.publish("a", "b", &numbers).await;
    let events = one.caller(&[]).after("start").await.events(11).await;
    let cursor = events[5].cursor.as_ref().unwrap();
    let caller = two.caller(&[]);
    come_again(&caller.after(cursor).await.next().await.unwrap_err());
    cutter.open();
    let begin = Instant::now();
    let mut shown = loop {
        let mut shown = caller.after(cursor).await;
        match shown.next().await {
            Ok(first) => {
                let first = first.expect("it says where it is");
                assert_eq!((first.event.as_str(), data(&first)), ("phase", json!({ "phase": "replay" })));
                break shown;
            }
            Err(status) => come_again(&status),
        }
        assert!(begin.elapsed() < PATIENCE, "the second host does not catch up");
    };
    let seen: Vec<_> = shown.events(5).await.iter().map(data).collect();
    assert_eq!(seen, numbers[5..]);
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

/// Everything else goes on without them; and where it is said, a host keeps them over a restart, though no other has them.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_clients_beside_a_log_on_redis() {
    let server = RedisServer::durable(Engine::Redis);
    let kept = |port: u16| {
        move |config: &mut Config| {
            of(port)(config);
            config.grpc.checkpoints = GrpcCheckpoints::Host;
        }
    };
    let one = Scene::with(of(server.port())).await;
    let two = Scene::with(kept(server.port())).await;
    let three = Scene::with(kept(server.port())).await;
    for scene in [&one, &two, &three] {
        assert!(scene.host.host().wait_ready().await);
    }
    let refused = one.caller(&[]).put("me", "text/json", Some(vec![8, 0])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("grpc.checkpoints = \"host\""), "{refused}");
    one.publish("a", "b", &[json!(1)]).await;
    assert_eq!(data(&one.caller(&[]).after("start").await.event().await), 1);

    two.caller(&[]).put("me", "text/json", Some(vec![8, 0])).await.unwrap();
    // Which is why they are not kept unless it is said: a client would take this for its very first start.
    assert_eq!(three.caller(&[]).get("me").await.unwrap_err().code(), Code::NotFound);
    let two = two.restart().await;
    assert_eq!(two.caller(&[]).get("me").await.unwrap().value, Some(vec![8, 0]));
}
