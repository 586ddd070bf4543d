//! Connections that say nothing or little, and what they hold up: nobody else, and no stop.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use millrace::memory_v1::PutCheckpointRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::raw::PREFACE;
use super::scene::{PATIENCE, Scene};

/// A frame with no settings.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A client that says this, and then nothing for ever.
async fn says(scene: &Scene, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", scene.port())).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Waits until the host has closed.
async fn closed(mut stream: TcpStream) {
    let read = async {
        let mut piece = [0; 1 << 10];
        while let Ok(1..) = stream.read(&mut piece).await {}
    };
    timeout(PATIENCE, read).await.expect("the host closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_begin_is_closed() {
    let scene = Scene::with(|config| config.gateway.header_wait_ms_max = 100).await;
    for said in [&b""[..], &PREFACE[..10], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        closed(says(&scene, said).await).await;
    }
}

/// Whoever has asked for nothing, or takes no goodbye, would hold up a stop for all of the drain time.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_no_connection_without_a_call() {
    let scene = Scene::with(|config| {
        config.serve.drain_ms_max = 1_000_000;
        config.gateway.header_wait_ms_max = 1_000_000;
    })
    .await;
    let silent = says(&scene, b"").await;
    let mute = says(&scene, &[PREFACE, SETTINGS].concat()).await;
    // The host has taken both in.
    assert_eq!(scene.caller(&[]).get("me").await.unwrap_err().code(), Code::NotFound);
    timeout(PATIENCE, scene.host.stop()).await.expect("it waits for neither");
    closed(silent).await;
    closed(mute).await;
}

fn put() -> PutCheckpointRequest {
    PutCheckpointRequest { client_id: "me".into(), content_type: "text/json".into(), value: Some(vec![8, 0]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_may_take_long_as_long_as_it_comes() {
    let scene = Scene::with(|config| config.gateway.body_idle_ms_max = 3_000).await;
    // Four seconds in all.
    let messages = stream::iter(0..16).then(|_| async {
        sleep(Duration::from_millis(250)).await;
        put()
    });
    let kept = scene.caller(&[]).put_slowly(messages).await.unwrap();
    assert_eq!(kept.client_id, "me");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_no_further_is_ended() {
    let scene = Scene::with(|config| config.gateway.body_idle_ms_max = 100).await;
    let caller = scene.caller(&[]);
    let messages = stream::iter([put()]).chain(stream::pending());
    let ended = timeout(PATIENCE, caller.put_slowly(messages)).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    assert!(ended.message().contains("body_idle_max"), "{ended}");
}

/// Calls that do not come further hold a message each, so there are only so many.
#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_bound_are_refused_by_its_name() {
    let scene = Scene::with(|config| config.gateway.body_idle_ms_max = 600_000).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..128 {
        let caller = scene.caller(&[]);
        calls.spawn(async move {
            loop {
                let ended = caller.put_slowly(stream::iter([put()]).chain(stream::pending())).await;
                // While somebody asks below, the last one finds no room and comes again.
                if !matches!(&ended, Err(status) if status.code() == Code::ResourceExhausted) {
                    return ended;
                }
            }
        });
    }
    let caller = scene.caller(&[]);
    let refused = async {
        loop {
            let status = caller.get("me").await.unwrap_err();
            if status.code() != Code::NotFound {
                return status;
            }
        }
    };
    let refused = timeout(PATIENCE, refused).await.expect("they are too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("grpc_calls_max = 128"), "{refused}");
    // Streams have room of their own, and so has who comes when they are gone.
    caller.after("").await.until_live().await;
    calls.shutdown().await;
    // What a client had sent before it was gone may count.
    let full = |status: &Status| status.code() == Code::ResourceExhausted;
    let room = async { while caller.get("me").await.is_err_and(|status| full(&status)) {} };
    timeout(PATIENCE, room).await.expect("there is room again");
}
