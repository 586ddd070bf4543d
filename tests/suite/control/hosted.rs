//! Claims about whole hosts: processes of one fleet, with a feed and artifacts in folders that they share.

use futures_util::future::join_all;
use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::Deploy;
use millrace::control::rollout::{Gate, Plan};
use millrace::control::{ControlSink as _, ControlVersion, Kind, UnsignedEvent};
use millrace_tests::control_events::{about, digest_of, key, running};
use millrace_tests::guests::variant;
use serde_json::Value;

use super::hosted_fleet::{
    Fleet, PLUGIN, converged, deploy, elsewhere, eventually, hand_in, next, push, same_state, serving,
    version, wave,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_is_taken_back_in_its_first_wave_and_nobody_else_has_seen_it() {
    let fleet = Fleet::new();
    let [mut a, mut b, mut c] = fleet.three().await;
    let (good, bad) = (variant(1, "good"), b"#!/bin/sh\nexit 0\n");
    push(&a, &good).await;
    push(&a, bad).await;
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a", "b", "c"], revision).await;
    for host in [&a, &b, &c] {
        assert_eq!(serving(host).await, digest_of(&good));
    }

    let gate = Gate { events_min: 0, ..Gate::default() };
    let plan = Plan { waves: vec![wave(&[("tier", "canary")]), wave(&[])], gate, automatic: true };
    let bad_revision = deploy(&a, version(bad), Some(plan.clone())).await;
    // The origin says so by an event of its own.
    let status = converged(&a, &["a", "b", "c"], bad_revision + 1).await;
    assert_eq!(status["plugins"][0]["rollout"]["progress"], "rolled_back", "{status:#}");
    assert_eq!(status["plugins"][0]["rollout"]["wave"], 1, "{status:#}");
    for host in [&a, &b, &c] {
        assert_eq!(serving(host).await, digest_of(&good));
    }
    assert!(fleet.has_copy("a", &digest_of(bad)), "the first host has looked at it");
    for (host, name) in [(&b, "b"), (&c, "c")] {
        assert!(!fleet.has_copy(name, &digest_of(bad)));
        let history = host.get(&format!("/v1/plugins/{PLUGIN}/history")).await.unwrap();
        assert!(!history.to_string().contains(&digest_of(bad)["sha256:".len()..]), "{history}");
    }

    // A good one goes through all waves by itself.
    let better = variant(2, "good");
    push(&a, &better).await;
    let revision = deploy(&a, version(&better), Some(plan)).await;
    let status = converged(&a, &["a", "b", "c"], revision + 2).await;
    assert_eq!(status["plugins"][0]["rollout"]["progress"], "complete", "{status:#}");
    for host in [&mut a, &mut b, &mut c] {
        assert_eq!(serving(host).await, digest_of(&better));
        assert!(host.terminate().unwrap(), "{}", host.said());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_a_thousand_events_catches_up_and_who_comes_late_begins_with_a_snapshot() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let mut b = fleet.start("b", fleet.setup("b", "edge")).await;
    let good = variant(1, "good");
    push(&a, &good).await;
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a", "b"], revision).await;
    b.kill().unwrap();

    let origin = &a;
    let tell = |plugin: usize| async move {
        for revision in 1..=102 {
            let (status, answer) = hand_in(origin, &elsewhere(&format!("p{plugin}"), revision)).await;
            assert_eq!(status, 202, "{answer}");
        }
    };
    join_all((0..10).map(tell)).await;
    let told = |seen: &Value| seen["waiting"] == 0;
    eventually("all is in the feed", &a, "/v1/fleet/outbox", told).await;
    let last = 1 + 10 * 102;
    let own = same_state(&a, last).await;

    b.kill_and_start().await.unwrap();
    let caught_up = same_state(&b, last).await;
    assert_eq!(caught_up["state_digest"], own["state_digest"]);
    assert!(!b.said().contains("starts from a snapshot"), "{}", b.said());

    let feed = FileFeed::open(FileFeedOptions::new(fleet.path("feed"))).unwrap();
    assert!(
        feed.trim(ControlVersion(1_000)).await.unwrap() > 0,
        "what a newcomer would have to read is gone"
    );
    let c = fleet.start("c", fleet.setup("c", "edge")).await;
    let late = same_state(&c, last).await;
    assert_eq!(late["state_digest"], own["state_digest"]);
    assert!(c.said().contains("starts from a snapshot"), "{}", c.said());
    let is_there = |seen: &Value| {
        let plugins = seen["plugins"].as_array().unwrap();
        plugins.iter().any(|plugin| plugin["plugin"] == PLUGIN && plugin["phase"] == "active")
    };
    eventually("the newcomer runs what it should", &c, "/v1/fleet/self", is_there).await;
    assert_eq!(serving(&c).await, digest_of(&good));
    // Whoever asks gets the same again.
    let again = c.post("/v1/fleet/resync").await.unwrap();
    assert_eq!(again["restored"], true, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_tampered_with_or_that_nobody_signed_runs_nowhere() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let (good, tampered, foreign) = (variant(1, "good"), variant(2, "good"), variant(3, "good"));
    for bytes in [&good, &tampered, &foreign] {
        push(&a, bytes).await;
    }
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a"], revision).await;

    let stored = fleet.artifact(&digest_of(&tampered));
    let mut bytes = tampered.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&stored).unwrap();
    std::fs::write(&stored, &bytes).unwrap();
    let mut unbelieved = version(&foreign);
    unbelieved.component.signatures.clear();
    unbelieved.component = unbelieved.component.built_by(PLUGIN, &key(9));
    let deploy_it = Deploy { spec: unbelieved, plan: None, targets: None };
    let damaged = deploy(&a, version(&tampered), None).await;
    let unbelieved = next(&a, |present, id| present.deploy(id, deploy_it).unwrap()).await;
    let (status, answer) = hand_in(&a, &unbelieved).await;
    assert_eq!((status, answer["code"].as_str()), (403, Some("control_event_untrusted")), "{answer}");
    for (revision, codes) in [
        (damaged, &["artifact_damaged", "artifact_mismatch"][..]),
        (unbelieved.unsigned().revision, &["control_event_untrusted"]),
    ] {
        if revision > damaged {
            // Past the origin, by somebody who may write to the feed.
            let feed = FileFeed::open(FileFeedOptions::new(fleet.path("feed"))).unwrap();
            feed.append(&unbelieved).await.unwrap();
        }
        let is_aside = |seen: &Value| {
            let plugin = &seen["plugins"][0];
            plugin["revision"] == revision && plugin["phase"] == "quarantined"
        };
        let seen = eventually("it is set aside", &a, "/v1/fleet/self", is_aside).await;
        let code = seen["plugins"][0]["reason"]["code"].as_str().unwrap();
        assert!(codes.contains(&code), "{seen:#}");
        assert_eq!(serving(&a).await, digest_of(&good), "what served goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_for_development_runs_what_nobody_has_signed_and_any_other_does_not() {
    let fleet = Fleet::new();
    let trusting = {
        let mut setup = fleet.origin("dev");
        setup.args.push("--insecure-dev".into());
        fleet.start("dev", setup).await
    };
    let good = variant(1, "good");
    push(&trusting, &good).await;
    let mut bare = version(&good);
    bare.component.signatures.clear();
    let event = about(PLUGIN, Kind::Deployed, running(bare), 1);
    let event = UnsignedEvent { issued_at: SystemClock.now().0, ..event }.without_signature().unwrap();
    let (status, answer) = hand_in(&trusting, &event).await;
    assert_eq!(status, 202, "{answer}");
    converged(&trusting, &["dev"], 1).await;
    assert_eq!(serving(&trusting).await, digest_of(&good));
    assert!(trusting.said().contains("looks at no signature"), "{}", trusting.said());

    // It is in the feed now, and a host that looks at signatures sets it aside.
    let strict = fleet.start("strict", fleet.setup("strict", "edge")).await;
    let is_aside = |seen: &Value| seen["events"].as_array().is_some_and(|events| !events.is_empty());
    let seen = eventually("it is set aside", &strict, "/v1/fleet/quarantine", is_aside).await;
    assert_eq!(seen["events"][0]["code"], "control_event_untrusted", "{seen}");
    assert_eq!(strict.get("/v1/plugins").await.unwrap()["plugins"], serde_json::json!([]));
}
