//! A server that is away, and what it has of a host when it comes back.

use super::*;

/// Tries until the server is found again. It must not fail in another way.
async fn appended(feed: &NatsControl, event: &ControlEvent) -> u64 {
    let begin = Instant::now();
    loop {
        match feed.append(event).await {
            Ok(version) => return version.0,
            Err(ControlFeedError::Backend(BackendError::Remote { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begin.elapsed() < LONG, "the server is found again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same for what comes after a version. A server that was killed may have forgotten that it has handed out what is
/// before.
async fn found(feed: &NatsControl, after: u64) -> Vec<Received> {
    let begin = Instant::now();
    loop {
        match poll(feed, after, Duration::from_secs(1)).await {
            Ok(mut polled) => {
                polled.events.retain(|entry| entry.version().0 > after);
                if !polled.events.is_empty() {
                    return polled.events;
                }
            }
            Err(ControlFeedError::Backend(BackendError::Remote { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begin.elapsed() < LONG, "something comes after {after}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_appended_outlives_a_killed_server_between_it_and_its_acknowledgement() {
    let mut server = NatsServer::start();
    let feed = open(&server, "one");
    let (first, second) = (event("one"), event("two"));
    let version = append(&feed, &first).await;
    server.restart();
    assert_eq!(appended(&feed, &first).await, version, "the id is known");
    assert_eq!(versions(&found(&feed, 0).await), [version]);
    // Now it is handed out and not acknowledged.
    server.restart();
    let begin = Instant::now();
    while feed.acknowledge(first.id(), ControlVersion(version)).await.is_err() {
        assert!(begin.elapsed() < LONG, "it is acknowledged on another connection");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let next = appended(&feed, &second).await;
    assert!(next > version);
    assert_eq!(versions(&found(&feed, version).await), [next]);
    // The killed server may have forgotten what it was told; whoever asks from the beginning tells it again.
    while consumer(&server, "one")["ack_floor"]["stream_seq"] != next {
        assert!(begin.elapsed() < LONG, "{}", consumer(&server, "one"));
        for entry in poll(&feed, 0, Duration::ZERO).await.unwrap().events {
            let (version, event) = received(&entry);
            acknowledge(&feed, &event, version).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_killed_between_poll_and_commit_gets_the_event_again_at_once() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let version = append(&feed, &event("one")).await;
    assert_eq!(versions(&next(&feed, 0).await), [version]);
    drop(feed);
    // Of what the former process has been handed out the server would say nothing for an hour.
    assert_eq!(versions(&next(&open(&server, "one"), 0).await), [version]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_ends_a_poll_and_an_append_with_an_error_and_is_found_again() {
    let mut server = NatsServer::start();
    let feed = Arc::new(open(&server, "one"));
    let version = append(&feed, &event("one")).await;
    assert_eq!(versions(&next(&feed, 0).await), [version]);
    let waiting = Arc::clone(&feed);
    let waiting = async move { poll(&waiting, version, NEVER).await };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(waiting);
    let waits = || server.api(&format!("CONSUMER.INFO.{STREAM}.host-one"), &json!({}))["num_waiting"] != 0;
    millrace_tests::until("the poll waits at the server", waits).await;
    server.kill();
    let ended = tokio::time::timeout(LONG, tasks.join_next()).await.expect("it does not wait for its time");
    assert_eq!(fault_of(ended.unwrap().unwrap()), RemoteFault::Unreachable);
    let late = event("two");
    assert_eq!(fault_of(feed.append(&late).await), RemoteFault::Unreachable);
    assert_eq!(fault_of(poll(&feed, version, NEVER).await), RemoteFault::Unreachable);
    server.start_again();
    let second = appended(&feed, &late).await;
    assert_eq!(versions(&found(&feed, version).await), [second]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_never_there_is_an_error_and_is_found_when_it_comes() {
    let mut server = NatsServer::start();
    let feed = open(&server, "one");
    server.kill();
    assert_eq!(fault_of(poll(&feed, 0, NEVER).await), RemoteFault::Unreachable);
    assert_eq!(fault_of(feed.append(&event("one")).await), RemoteFault::Unreachable);
    server.start_again();
    let version = appended(&feed, &event("two")).await;
    assert_eq!(versions(&found(&feed, 0).await), [version]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_silent_is_not_waited_for_without_end() {
    let server = NatsServer::start();
    let feed = open(&server, "one");
    let (first, second) = (event("one"), event("two"));
    let version = append(&feed, &first).await;
    assert_eq!(versions(&next(&feed, 0).await), [version]);
    server.pause();
    assert_eq!(fault_of(feed.append(&second).await), RemoteFault::Timeout);
    let unheard = feed.acknowledge(first.id(), ControlVersion(version)).await;
    assert_eq!(fault_of(unheard), RemoteFault::Timeout);
    server.resume();
    // It may have taken it when it woke up; the repeat finds that out.
    let next = appended(&feed, &second).await;
    assert_eq!(appended(&feed, &second).await, next);
    let entries = found(&feed, version).await;
    assert_eq!(versions(&entries), [next]);
    let begin = Instant::now();
    while feed.acknowledge(first.id(), ControlVersion(version)).await.is_err() {
        assert!(begin.elapsed() < LONG, "it is acknowledged after all");
    }
    assert_eq!(consumer(&server, "one")["ack_floor"]["stream_seq"], version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_was_removed_is_made_again_from_the_cursor() {
    let server = NatsServer::start();
    let feed = Arc::new(open(&server, "one"));
    let sent = ["one", "two", "three", "four"].map(event);
    let mut given = Vec::new();
    for event in &sent[..2] {
        given.push(append(&feed, event).await);
    }
    assert_eq!(versions(&next(&feed, 0).await), given);
    let remove = || {
        let answer = server.api(&format!("CONSUMER.DELETE.{STREAM}.host-one"), &json!({}));
        // The server may still write where it removes files. The consumer is gone all the same.
        let said = answer["error"]["description"].as_str().unwrap_or_default();
        assert!(answer["success"] == true || said.contains("directory not empty"), "{answer}");
    };
    remove();
    // Nobody hears of these any more, and that is no error.
    for (event, version) in sent.iter().zip(&given) {
        acknowledge(&feed, event, *version).await;
    }
    given.push(append(&feed, &sent[2]).await);
    assert_eq!(versions(&next(&feed, given[1]).await), given[2..]);
    assert_eq!(consumer(&server, "one")["config"]["opt_start_seq"], given[1] + 1);
    // While a poll waits, too.
    acknowledge(&feed, &sent[2], given[2]).await;
    let (waiting, after) = (Arc::clone(&feed), given[2]);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { poll(&waiting, after, LONG * 10).await.unwrap().events });
    millrace_tests::until("the poll waits at the server", || consumer(&server, "one")["num_waiting"] != 0)
        .await;
    remove();
    given.push(append(&feed, &sent[3]).await);
    let came = tokio::time::timeout(LONG, tasks.join_next()).await.expect("it goes on");
    assert_eq!(versions(&came.unwrap().unwrap()), given[3..]);
}
