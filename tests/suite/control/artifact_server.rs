//! Artifacts on a server: chunks, and what becomes of those that are no artifact.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::redis::{RedisAck, RedisArtifactRepository, RedisLink};
use millrace::control::ArtifactRepository;
use millrace_tests::conformance::artifacts::{all, content, pieces, put, read};
use millrace_tests::control_events::digest_of;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

use super::code_of;

fn on(server: &RedisServer) -> RedisArtifactRepository {
    let link = RedisLink::new(server.url().parse().unwrap(), None, "fleet");
    RedisArtifactRepository::new(link, RedisAck::Auto)
}

fn keys(server: &RedisServer, pattern: &str) -> Vec<String> {
    redis::from_redis_value(server.command(&["KEYS", pattern])).unwrap()
}

fn chunks(server: &RedisServer) -> Vec<String> {
    let mut keys = keys(server, "{fleet}:artifacts:chunk:*");
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_value_is_larger_than_a_chunk_and_none_of_them_expires() {
    let server = RedisServer::durable(Engine::Redis);
    let artifacts = on(&server);
    let bytes = content(1_700_000);
    put(&artifacts, &bytes).await;
    let chunks = chunks(&server);
    assert_eq!(chunks.len(), 4);
    let lengths: Vec<u64> = chunks.iter().map(|key| server.number(&["STRLEN", key])).collect();
    assert!(lengths.iter().all(|length| *length <= 512 << 10), "{lengths:?}");
    assert_eq!(lengths.iter().sum::<u64>(), 1_700_000);
    for key in keys(&server, "*") {
        let left: i64 = redis::from_redis_value(server.command(&["TTL", &key])).unwrap();
        assert!(
            left == -1 || !key.contains(":artifacts:") || key.ends_with(":barrier"),
            "{key} expires in {left}"
        );
        assert!(key.starts_with("{fleet}:"), "{key}");
    }
    assert_eq!(artifacts.collect(Duration::ZERO, false).await.unwrap().len(), 1);
    let left: Vec<_> =
        keys(&server, "{fleet}:artifacts:*").into_iter().filter(|key| !key.ends_with("barrier")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_put_that_did_not_come_to_its_end_are_seen_by_nobody_and_expire() {
    let server = RedisServer::durable(Engine::Redis);
    let artifacts = Arc::new(on(&server).with_upload_keep(Duration::from_millis(300)));
    let bytes = content(1_200_000);
    let (reached, waits) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let still = futures_util::stream::poll_fn(move |_| {
        if let Some(reached) = reached.take() {
            reached.send(()).unwrap();
        }
        std::task::Poll::Pending
    });
    let stands = futures_util::StreamExt::boxed(futures_util::StreamExt::chain(pieces(&bytes), still));
    let mut putting = tokio::task::JoinSet::new();
    let writer = Arc::clone(&artifacts);
    putting.spawn(async move { writer.put(stands, None, 1 << 30).await });
    waits.await.unwrap();
    // Like a kill: nobody clears up.
    putting.shutdown().await;
    assert!(all(&*artifacts).await.is_empty());
    until("the parts expire", || chunks(&server).is_empty()).await;
    // One that is refused clears up by itself.
    let patient = on(&server);
    let other = digest_of(b"other");
    assert_eq!(code_of(patient.put(pieces(&bytes), Some(&other), 1 << 30).await), "artifact_mismatch");
    assert!(chunks(&server).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_parts_were_lost_is_not_stored() {
    let server = RedisServer::durable(Engine::Redis);
    let artifacts = Arc::new(on(&server));
    let bytes = content(1_200_000);
    let (reached, waits) = tokio::sync::oneshot::channel();
    let (go, goes) = tokio::sync::oneshot::channel::<()>();
    let mut reached = Some(reached);
    let mut goes = Box::pin(goes);
    let pause = futures_util::stream::poll_fn(move |context| {
        if let Some(reached) = reached.take() {
            reached.send(()).unwrap();
        }
        std::future::Future::poll(goes.as_mut(), context).map(|_| None)
    });
    let paused = futures_util::StreamExt::boxed(futures_util::StreamExt::chain(pieces(&bytes), pause));
    let mut putting = tokio::task::JoinSet::new();
    let writer = Arc::clone(&artifacts);
    putting.spawn(async move { writer.put(paused, None, 1 << 30).await });
    waits.await.unwrap();
    until("two parts are there", || chunks(&server).len() == 2).await;
    server.command(&["DEL", &chunks(&server)[0]]);
    go.send(()).unwrap();
    assert_eq!(code_of(putting.join_next().await.unwrap().unwrap()), "artifact_broken");
    assert!(all(&*artifacts).await.is_empty());
    assert!(chunks(&server).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_changed_on_the_server_is_damaged_and_can_be_put_again() {
    let server = RedisServer::durable(Engine::Valkey);
    let artifacts = on(&server);
    let bytes = content(1_300_000);
    let digest = put(&artifacts, &bytes).await.digest;
    artifacts.pin(&digest, "kept").await.unwrap();
    for place in 0..3 {
        for change in ["flip", "cut", "longer", "lost"] {
            let key = chunks(&server)[place].clone();
            match change {
                "flip" => drop(server.command(&["SETRANGE", &key, "0", "\u{1}\u{2}\u{3}"])),
                "cut" => drop(server.command(&["SET", &key, "short"])),
                "longer" => drop(server.command(&["APPEND", &key, "!"])),
                _ => drop(server.command(&["DEL", &key])),
            }
            assert_eq!(code_of(read(&artifacts, &digest).await), "artifact_damaged", "{change} of {place}");
            let again = put(&artifacts, &bytes).await;
            assert_eq!(again.bytes, 1_300_000);
            assert!(read(&artifacts, &digest).await.unwrap() == bytes, "{change} of {place}");
            assert_eq!(chunks(&server).len(), 3, "the damaged ones are gone");
        }
    }
    assert_eq!(artifacts.info(&digest).await.unwrap().unwrap().pins, ["kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_nothing_is_refused_and_one_that_comes_back_has_all() {
    let forgetful = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let refused = on(&forgetful).put(pieces(b"x"), None, 10).await;
    assert_eq!(code_of(refused), "backend_not_durable");
    let mut server = RedisServer::durable(Engine::Redis);
    let artifacts = on(&server);
    let bytes = content(600_000);
    let digest = put(&artifacts, &bytes).await.digest;
    server.kill();
    assert_eq!(code_of(read(&artifacts, &digest).await), "backend_unreachable");
    server.start_again();
    let begun = std::time::Instant::now();
    let found = loop {
        match read(&artifacts, &digest).await {
            Ok(found) => break found,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(found == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_still_collects() {
    let server = RedisServer::start(Engine::Redis, Keeps::Always, &["--maxmemory", "8mb"]);
    let artifacts = on(&server);
    let mut stored = 0;
    let refused = loop {
        let mut bytes = content(900_000);
        bytes[0] = stored;
        match artifacts.put(pieces(&bytes), None, 1 << 30).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 50, "a full server took everything");
    };
    assert_eq!(code_of::<()>(Err(refused)), "backend_full");
    assert_eq!(artifacts.collect(Duration::ZERO, false).await.unwrap().len(), usize::from(stored));
    put(&artifacts, b"room again").await;
}
