//! A stream that several let begin.

use super::*;

const PURGE: &str = "$JS.API.STREAM.PURGE.fleet-control";
const LOOK: &str = "$JS.API.STREAM.INFO.fleet-control";
const BUCKET: &str = "KV_fleet-control-board";
const CLAIM: &str = "$KV.fleet-control-board.begin";

/// A stream in which nothing was yet, and a claim of another sink to let it begin.
fn claimed(server: &NatsServer) {
    let made = server.api(
        &format!("STREAM.CREATE.{STREAM}"),
        &json!({ "name": STREAM, "subjects": ["fleet.control.>"], "storage": "file" }),
    );
    assert_eq!(made["state"]["last_seq"], 0, "{made}");
    let bucket = json!({ "name": BUCKET, "subjects": ["$KV.fleet-control-board.>"], "storage": "file", "max_msgs_per_subject": 1 });
    let bucket = server.api(&format!("STREAM.CREATE.{BUCKET}"), &bucket);
    assert!(bucket["error"].is_null(), "{bucket}");
    let claim = json!({ "created": made["created"], "last_seq": 0 });
    let put = server.ask(CLAIM, &claim.to_string());
    assert!(put.contains("\"seq\":1"), "{put}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c62_a_sink_leaves_a_stream_alone_that_another_one_lets_begin() {
    let server = NatsServer::start();
    claimed(&server);
    let mut asked = server.listen("$JS.API.STREAM.>");
    let feed = open(&server, "one");
    let mut sinks = tokio::task::JoinSet::new();
    sinks.spawn(async move { append(&feed, &event("one")).await });
    let mut looks = 0;
    while looks < 5 {
        let subject = asked.subject();
        // What the other one publishes first would go with it.
        assert_ne!(subject, PURGE, "after {looks} looks");
        looks += usize::from(subject == LOOK);
    }
    server.api(&format!("STREAM.PURGE.{STREAM}"), &json!({ "seq": 5_000 }));
    let version = tokio::time::timeout(LONG, sinks.join_next()).await.expect("it has begun");
    assert_eq!(version.unwrap().unwrap(), 5_000);
    assert_eq!(versions(&next(&open(&server, "reader"), 4_999).await), [5_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c62_a_claim_that_nothing_comes_of_holds_up_no_sink_for_ever() {
    let server = NatsServer::start();
    claimed(&server);
    let (one, other) = (open(&server, "one"), open(&server, "other"));
    let events = ["one", "two"].map(event);
    let (first, second) = tokio::join!(append(&one, &events[0]), append(&other, &events[1]));
    let mut sent = [(first, events[0].clone()), (second, events[1].clone())];
    sent.sort_by_key(|(version, _)| *version);
    // Not from 1: above all that a former stream of this name has ever had.
    assert!(sent[0].0 > 1_000_000_000_000_000 && sent[1].0 == sent[0].0 + 1, "{first} and {second}");
    let came: Vec<_> = next(&open(&server, "reader"), 0).await.iter().map(received).collect();
    assert_eq!(came, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c62_streams_that_several_sinks_make_at_once_lose_nothing_and_are_whole_from_their_beginning() {
    let server = NatsServer::start();
    for fleet in 0..20 {
        let open = |host: &str| {
            NatsControl::new(NatsOptions { name: format!("fleet-{fleet}"), ..options(&server, host) })
        };
        let mut sinks = tokio::task::JoinSet::new();
        for host in ["one", "two", "three"] {
            let feed = open(host);
            sinks.spawn(async move { append(&feed, &event(host)).await });
        }
        let mut given = sinks.join_all().await;
        given.sort_unstable();
        assert_eq!(versions(&next(&open("reader"), 0).await), given, "fleet {fleet}");
    }
}
