//! Rebuilds on hosts of one log, of which one is killed: each host has tables of its own, and makes them anew once.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_tests::host::HostProcess;
use millrace_tests::redis_server::{Engine, RedisServer};

use crate::rebuild::left_of_rebuilds;

use super::{LEASE, ended, host, portions, quiet, same, wait_for, with_samples};

const PATH: &str = "/v1/plugins/delay-watch/rebuild";

/// Waits until the host's rebuild has taken over, the first and only one that it had.
async fn flipped_once(host: &HostProcess, data: &Path) {
    let begin = Instant::now();
    loop {
        let view = host.get(PATH).await.unwrap();
        if view["stage"] == "flipped" {
            assert_eq!(view["number"], 1, "{view}");
            break;
        }
        assert!(view["stage"] != "abandoned" && begin.elapsed() < Duration::from_secs(60), "{view}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let history = host.get("/v1/plugins/delay-watch/history").await.unwrap();
    let deployments = history["deployments"].as_array().unwrap();
    let rebuilt = deployments.iter().filter(|deployment| deployment["proof"]["rebuilt"].is_object());
    assert_eq!(rebuilt.count(), 1, "{history}");
    // The former tables go slice by slice.
    while !left_of_rebuilds(&data.join("millrace.db")).is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the former tables stay");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_host_is_killed_takes_over_there_once_and_nowhere_else() {
    const FLIGHTS: usize = 6_000;
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let quiet = quiet(dir.path(), FLIGHTS).await;
    let server = RedisServer::durable(Engine::Redis);
    let mut first = with_samples(&one, &server).await;
    wait_for(&first, "running").await;
    let second = with_samples(&two, &server).await;
    wait_for(&second, "standby").await;
    let portions = portions(FLIGHTS);
    let (before, after) = portions.split_at(portions.len() / 2);
    for portion in before {
        first.publish(portion.clone()).await.unwrap();
    }
    first.settle().await.unwrap();
    let refused = second.post(PATH).await.unwrap_err().to_string();
    assert!(refused.contains("rebuild_refused"), "{refused}");
    first.post(PATH).await.unwrap();
    first.kill().unwrap();

    // Who takes over serves its own tables, and knows of no rebuild but its own.
    wait_for(&second, "running").await;
    for portion in after {
        second.publish(portion.clone()).await.unwrap();
    }
    second.settle().await.unwrap();
    let none = second.get(PATH).await.unwrap_err().to_string();
    assert!(none.contains("404"), "{none}");
    second.post(PATH).await.unwrap();
    flipped_once(&second, &two).await;

    // The one that was killed has its tables made anew when it runs the plugin again.
    let first = HostProcess::start_as(host().log(&server.url()).set(LEASE), &one).await.unwrap();
    wait_for(&first, "standby").await;
    same(&quiet, &ended(second, &two, &server).await);
    wait_for(&first, "running").await;
    flipped_once(&first, &one).await;
    same(&quiet, &ended(first, &one, &server).await);
}
