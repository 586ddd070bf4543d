//! Answers that follow events and changes, while their log cannot be read.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::error::RemoteFault;
use millrace::limits::CHANGE_QUEUE_BATCHES_MAX;
use millrace::streams::ChangeStream;
use millrace_tests::conformance::change_streams::change_of;
use millrace_tests::until;

use super::changes::{declared, follow, ids, publish};
use super::rig::{Client, Rig};

const ORDERS: &str = "/v1/streams/orders?after=oldest";
const CHANGES: &str = "/v1/changes/asset/id/A1?after=oldest&mode=raw";
const LIFE: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
const QUIET: Duration = Duration::from_secs(600);

async fn rig(heartbeat: Duration, away_max: Duration) -> Rig {
    let rig = Rig::with(|options| {
        options.sse_heartbeat = heartbeat;
        options.log_away_max = away_max;
    });
    declared(rig.await).await
}

/// Appends to a stream that is read from the log alone: the tail in memory has nothing of it.
async fn order(rig: &Rig, version: u64) {
    let body = format!(r#"{{"aggregate":"o","agg_id":"1","version":{version},"type":"o.made"}}"#);
    let json = [("Content-Type", "application/json")];
    assert_eq!(rig.send("POST", "/v1/streams/orders", &json, body.as_bytes()).await.status, 200);
}

/// Follows what has one event, and has a second one that cannot be read: reads fail from before it on.
async fn cut_off(rig: &Rig, path: &str, fault: RemoteFault) -> (Client, String) {
    let mut seen = String::new();
    if path == ORDERS {
        order(rig, 1).await;
        let mut client = follow(rig, path, "").await;
        client.read_until(&mut seen, "\"version\":1,").await;
        rig.log.fail_reads(Some(fault));
        order(rig, 2).await;
        return (client, seen);
    }
    publish(rig, "A1", 1).await;
    rig.log.fail_reads(Some(fault));
    let mut client = follow(rig, path, "").await;
    client.read_until(&mut seen, "event: ready").await;
    publish(rig, "A1", 2).await;
    (client, seen)
}

async fn third(rig: &Rig, path: &str) {
    if path == ORDERS { order(rig, 3).await } else { publish(rig, "A1", 3).await }
}

#[tokio::test]
async fn sn5_followers_stay_while_their_log_is_away_and_go_on_where_they_were() {
    for (path, fault) in [(ORDERS, RemoteFault::Unreachable), (CHANGES, RemoteFault::Loading)] {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let rig = rig(Duration::from_millis(20), QUIET).await;
        let (mut client, mut seen) = cut_off(&rig, path, fault).await;
        // What was sent before is soon read; then only one that lives says something.
        while rig.log.failed_reads() < 3 {
            let mut sign = String::new();
            client.read_until(&mut sign, ": \n\n").await;
            seen.push_str(&sign);
        }
        assert!(!seen.contains("\"version\":2,"), "{path}: {seen}");
        rig.log.fail_reads(None);
        client.read_until(&mut seen, "\"version\":2,").await;
        third(&rig, path).await;
        client.read_until(&mut seen, "\"version\":3,").await;
        for version in 1..=3 {
            let times = seen.matches(&format!("\"version\":{version},")).count();
            assert_eq!(times, 1, "{path}, {version}: {seen}");
        }
        assert!(!seen.contains("event: error") && !seen.contains("event: gap"), "{path}: {seen}");
        let counted = handle.render();
        assert!(counted.contains("millrace_follower_outages_total 1\n"), "{path}: it was one: {counted}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn sn5_followers_whose_log_stays_away_for_too_long_are_told_and_end() {
    for path in [ORDERS, CHANGES] {
        let rig = rig(QUIET, Duration::from_millis(300)).await;
        let (mut client, mut seen) = cut_off(&rig, path, RemoteFault::Unreachable).await;
        client.read_until(&mut seen, "event: error\n").await;
        client.read_until(&mut seen, "\"code\":\"backend_unreachable\"").await;
        client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
        assert!(rig.log.failed_reads() > 1, "{path}: it is asked again before that");
        rig.stop().await;
    }
}

#[tokio::test]
async fn what_does_not_pass_by_itself_ends_followers_at_once() {
    for path in [ORDERS, CHANGES] {
        let rig = rig(QUIET, QUIET).await;
        let (mut client, mut seen) = cut_off(&rig, path, RemoteFault::Denied).await;
        client.read_until(&mut seen, "\"code\":\"backend_denied\"").await;
        client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
        assert_eq!(rig.log.failed_reads(), 1, "{path}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn sn7_followers_are_told_of_a_new_life_of_the_log_that_began_while_it_was_away() {
    for path in [ORDERS, CHANGES] {
        let rig = rig(QUIET, QUIET).await;
        let (mut client, mut seen) = cut_off(&rig, path, RemoteFault::Unreachable).await;
        until("it could not be read", || rig.log.failed_reads() > 0).await;
        rig.log.begin_new_life(LIFE);
        rig.log.fail_reads(None);
        client.read_until(&mut seen, "\"code\":\"cursor_foreign\"").await;
        if path == ORDERS {
            client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
            assert!(
                seen.contains("event: error\n") && seen.contains(&format!("\"oldest\":\"{LIFE}.")),
                "{seen}"
            );
        } else {
            third(&rig, path).await;
            client.read_until(&mut seen, "\"version\":3,").await;
            assert!(ids(&seen).last().is_some_and(|id| id.starts_with(LIFE)), "{seen}");
            assert_eq!(seen.matches("event: gap").count(), 1, "{seen}");
        }
        rig.stop().await;
    }
}

/// A new life is where a follower goes on, with no read as a rule: a read that fails in it later is another outage, and has
/// all of its time.
#[tokio::test]
async fn sn7_a_followers_outage_ends_with_the_life_of_the_log_in_which_it_began() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = rig(QUIET, QUIET).await;
    let (mut client, mut seen) = cut_off(&rig, CHANGES, RemoteFault::Unreachable).await;
    until("it could not be read", || rig.log.failed_reads() > 0).await;
    assert!(handle.render().contains("millrace_follower_outages_total 1\n"), "{}", handle.render());
    // As it begins again more is delivered than it has room for, so that it has to read in the new life, too.
    let hub = rig.services().hub;
    rig.log.at_bounds(move || {
        for version in 0..=CHANGE_QUEUE_BATCHES_MAX as u64 {
            let change = change_of("default", "asset", "A1", 100 + version, "updated", "{}");
            hub.publish_now(&ChangeStream::new("asset", "id", "A1"), change);
        }
    });
    rig.log.begin_new_life(LIFE);
    client.read_until(&mut seen, "\"code\":\"cursor_foreign\"").await;
    let counted = || handle.render().contains("millrace_follower_outages_total 2\n");
    until("the new life's outage is counted", counted).await;
    rig.log.fail_reads(None);
    // It is there again only once it has read.
    until("it follows again", || rig.services().hub.stats().subscriptions > 0).await;
    publish(&rig, "A1", 3).await;
    client.read_until(&mut seen, "\"version\":3,").await;
    assert!(!seen.contains("event: error"), "{seen}");
    rig.stop().await;
}
