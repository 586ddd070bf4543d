//! How answers that follow changes end, and that the hub forgets whoever has gone.

use std::time::Duration;

use millrace::gateway::GatewayOptions;
use millrace::streams::{EventLog, Hub};
use millrace_tests::conformance::change_streams::change_of;
use millrace_tests::until;
use serde_json::json;

use super::changes::{declared, follow, follow_on, ids, publish};
use super::issuer::{Signer, claims, claims_with, later, now, rig_of, set};
use super::rig::{Client, Rig};

const RAW: &str = "/v1/changes/asset/id/A1?mode=raw";
/// What is there for it waits for the end of its window.
const WAITING: &str = "/v1/changes/asset/site/S1?window_ms=10000";
const CONFLATED: &str = "/v1/changes/asset/site/S1?window_ms=1";

/// No heartbeat wakes an answer up: what ends it does.
fn quiet(options: &mut GatewayOptions) {
    options.sse_heartbeat = Duration::from_secs(600);
}

/// One follower for each path, each with its whole `ready`.
async fn followers(rig: &Rig, paths: &[&str], headers: &str) -> Vec<(Client, String)> {
    let mut followers = Vec::new();
    for path in paths {
        let mut client = follow(rig, path, headers).await;
        let mut seen = String::new();
        client.read_until(&mut seen, "event: ready").await;
        client.read_until(&mut seen, "\n\n").await;
        followers.push((client, seen));
    }
    followers
}

/// The answer is over: its last chunk has come.
async fn is_over(client: &mut Client, seen: &mut String) {
    client.read_until(seen, "\r\n0\r\n\r\n").await;
}

async fn left(hub: &Hub, subscriptions: usize) {
    until("the hub has forgotten who is gone", || hub.stats().subscriptions == subscriptions).await;
}

#[tokio::test]
async fn c36_the_end_of_the_host_ends_answers_with_the_place_to_go_on_from() {
    let rig = declared(Rig::with(quiet).await).await;
    let hub = rig.services().hub;
    let mut followers = followers(&rig, &[RAW, WAITING], "").await;
    publish(&rig, "A1", 1).await;
    let (client, seen) = &mut followers[0];
    client.read_until(seen, "\"version\":1,").await;
    assert_eq!(hub.stats().subscriptions, 2);
    rig.cancel();
    let epoch = rig.store.epoch().0;
    for (client, seen) in &mut followers {
        is_over(client, seen).await;
        client.closed().await;
        // What waited for the end of its window comes after that place.
        let place = u64::from(seen.contains("\"version\":1,"));
        assert!(seen.contains(&format!("event: closing\nid: {epoch}.{place}\n")), "{seen}");
        assert!(seen.contains("\"code\":\"host_stopping\""), "{seen}");
        assert_eq!(ids(seen).last(), Some(&&format!("{epoch}.{place}")[..]), "it is the last word: {seen}");
    }
    left(&hub, 0).await;
    until("its readers have ended", || hub.stats() == Default::default()).await;
    rig.stop().await;
}

#[tokio::test]
async fn c36_the_end_of_a_credential_ends_its_answers_and_nobody_elses() {
    let signer = Signer::ed25519();
    let rig = declared(rig_of(&set(&[signer.jwk("k")]), quiet).await).await;
    let hub = rig.services().hub;
    // A fraction, so that the answer looks at the clock soon.
    #[expect(clippy::cast_precision_loss, reason = "a time of this century")]
    let soon = signer.token("k", &claims_with(&json!({ "exp": now() as f64 + 0.05 })));
    let late = signer.token("k", &claims());
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let expiring = followers(&rig, &[RAW, WAITING], &bearer(&soon)).await;
    let mut staying = followers(&rig, &[RAW, CONFLATED], &bearer(&late)).await;
    assert_eq!(hub.stats().subscriptions, 4);
    later(&rig, 1);
    for (mut client, mut seen) in expiring {
        client.read_until(&mut seen, "event: error\n").await;
        client.read_until(&mut seen, "\"code\":\"token_expired\"").await;
        is_over(&mut client, &mut seen).await;
    }
    left(&hub, 2).await;
    rig.store
        .append(change_of("alpha", "asset", "A1", 1, "updated", r#"{"site_id":"S1"}"#))
        .await
        .expect("appended");
    for (client, seen) in &mut staying {
        client.read_until(seen, "\"version\":1,").await;
        assert!(!seen.contains("event: error"), "{seen}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn c36_the_hub_forgets_clients_that_go_away() {
    let rig = declared(Rig::with(quiet).await).await;
    let hub = rig.services().hub;
    let mut staying = followers(&rig, &[RAW, CONFLATED], "").await;
    let mut going = followers(&rig, &[RAW, WAITING, CONFLATED], "").await;
    // One more goes while the window of another lasts, and while what it was sent is unread.
    publish(&rig, "A1", 1).await;
    assert_eq!(hub.stats().subscriptions, 5);
    while let Some(gone) = going.pop() {
        drop(gone);
        left(&hub, 2 + going.len()).await;
    }
    publish(&rig, "A1", 2).await;
    for (client, seen) in &mut staying {
        client.read_until(seen, "\"version\":2,").await;
    }
    drop(staying);
    until("nothing is followed", || hub.stats() == Default::default()).await;
    rig.stop().await;
}

#[tokio::test]
async fn c36_the_hub_forgets_a_client_that_goes_away_while_its_answer_is_stuck() {
    let rig = declared(Rig::with(quiet).await).await;
    let hub = rig.services().hub;
    let padding = format!("{{\"padding\":\"{}\"}}", "x".repeat(250_000));
    for path in ["/v1/changes/asset/tenant?window_ms=1", "/v1/changes/asset/tenant?mode=raw"] {
        let mut client = follow_on(rig.connect_narrow().await, path, "").await;
        client.read_until(&mut String::new(), "event: ready").await;
        // More than sockets hold, and less than what ends a raw follower.
        let first = rig.store_newest() + 1;
        for version in first..first + 19 {
            let event = change_of("default", "asset", "A1", version, "updated", &padding);
            rig.store.append(event).await.expect("appended");
        }
        assert_eq!(hub.stats().subscriptions, 1, "{path}");
        drop(client);
        until("nothing is followed", || hub.stats() == Default::default()).await;
    }
    rig.stop().await;
}
