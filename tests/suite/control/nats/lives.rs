//! Streams that have lost something, or everything.

use super::*;

async fn three(feed: &NatsControl) -> Vec<u64> {
    let mut given = Vec::new();
    for plugin in ["one", "two", "three"] {
        given.push(append(feed, &event(plugin)).await);
    }
    given
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_next_events_were_removed_is_told_where_the_stream_begins() {
    let server = NatsServer::start();
    let (feed, away) = (open(&server, "one"), open(&server, "away"));
    let given = three(&feed).await;
    assert_eq!(versions(&next(&away, 0).await)[..1], given[..1]);
    let purged = server.api(&format!("STREAM.PURGE.{STREAM}"), &json!({ "seq": given[2] }));
    assert_eq!(purged["purged"], 2, "{purged}");
    assert_eq!(behind(&away, given[0]).await, given[2]);
    assert_eq!(behind(&open(&server, "new"), 0).await, given[2]);
    // Whoever has seen all that is gone goes on, and so does who was told and has restored.
    assert_eq!(versions(&next(&feed, given[1]).await), given[2..]);
    assert_eq!(versions(&next(&away, given[2] - 1).await), given[2..]);
    // Nothing is left at all.
    let purged = server.api(&format!("STREAM.PURGE.{STREAM}"), &json!({}));
    assert_eq!(purged["purged"], 1, "{purged}");
    assert_eq!(behind(&away, given[1]).await, given[2] + 1);
    let fourth = append(&feed, &event("four")).await;
    assert!(fourth > given[2]);
    assert_eq!(versions(&next(&feed, given[2]).await), [fourth]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_taken_out_alone_holds_up_nobody() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let given = three(&feed).await;
    let gone = server.api(&format!("STREAM.MSG.DELETE.{STREAM}"), &json!({ "seq": given[1] }));
    assert_eq!(gone["success"], true, "{gone}");
    assert_eq!(versions(&next(&feed, 0).await), [given[0], given[2]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_removed_begins_again_above_all_that_ever_was() {
    let server = NatsServer::start();
    let (feed, host) = (open(&server, "one"), open(&server, "host"));
    let given = three(&feed).await;
    assert_eq!(versions(&next(&host, 0).await), given);
    let gone = server.api(&format!("STREAM.DELETE.{STREAM}"), &json!({}));
    assert_eq!(gone["success"], true, "{gone}");
    assert_eq!(behind(&host, given[2]).await, 1);
    assert!(poll(&open(&server, "new"), 0, Duration::ZERO).await.unwrap().events.is_empty());
    // By an origin that knows of the former one, and by one that does not.
    let fourth = append(&feed, &event("four")).await;
    assert!(fourth > given[2], "{fourth} after {given:?}");
    server.api(&format!("STREAM.DELETE.{STREAM}"), &json!({}));
    let fifth = append(&open(&server, "origin"), &event("five")).await;
    assert!(fifth > fourth, "{fifth} after {fourth}");
    // A host that has something of a former one may miss what that one had; a new one misses nothing.
    assert_eq!(behind(&host, given[2]).await, fifth);
    assert_eq!(versions(&next(&host, fifth - 1).await), [fifth]);
    assert_eq!(versions(&next(&open(&server, "new"), 0).await), [fifth]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_older_files_gives_no_version_twice() {
    let mut server = NatsServer::start();
    let feed = open(&server, "one");
    let first = append(&feed, &event("one")).await;
    server.kill();
    let older = server.copy_files();
    server.start_again();
    let begin = Instant::now();
    let lost = event("two");
    let second = loop {
        match feed.append(&lost).await {
            Ok(version) => break version.0,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
    };
    server.kill();
    server.put_files(&older);
    server.start_again();
    // Who has seen what is lost is told that the stream is another one.
    assert_eq!(behind(&open(&server, "host"), second).await, first);
    let late = event("three");
    let third = loop {
        match feed.append(&late).await {
            Ok(version) => break version.0,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
    };
    assert!(third > second, "{third} after {second}");
    // So is everybody else, for what came after the first is not here.
    for after in [0, first, second] {
        assert_eq!(behind(&open(&server, "host"), after).await, third);
    }
    assert_eq!(versions(&next(&open(&server, "host"), third - 1).await), [third]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_follows_the_settings_and_one_for_something_else_is_left_alone() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    append(&feed, &event("one")).await;
    let config = || server.api(&format!("STREAM.INFO.{STREAM}"), &json!({}))["config"].clone();
    let (made, day) = (config(), 24 * 3_600_u64 * 1_000_000_000);
    assert_eq!((&made["storage"], &made["retention"]), (&json!("file"), &json!("limits")));
    assert_eq!((&made["max_age"], &made["duplicate_window"]), (&json!(30 * day), &json!(day)));
    let hour = Duration::from_secs(3_600);
    let shorter = NatsControl::new(NatsOptions { events_age_max: hour, ..options(&server, "one") });
    append(&shorter, &event("two")).await;
    // A window is never longer than that.
    assert_eq!((&config()["max_age"], &config()["duplicate_window"]), (&json!(day / 24), &json!(day / 24)));
    server.api(
        "STREAM.CREATE.other-control",
        &json!({ "name": "other-control", "subjects": ["x.>"], "storage": "file" }),
    );
    let other = NatsControl::new(NatsOptions { name: "other".into(), ..options(&server, "one") });
    assert_eq!(fault_of(other.append(&event("three")).await), RemoteFault::Unsupported);
}
