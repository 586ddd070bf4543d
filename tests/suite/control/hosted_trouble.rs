//! Claims about three hosts as processes whose feed, snapshot or code somebody has had their hands on, and about two origins.

use std::fs::{self, File};

use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::Deploy;
use millrace::control::{
    Board as _, ControlEvent, ControlSink as _, ControlSource as _, ControlVersion, EventBody, FleetMark,
    Kind, Received, SnapshotRef, UnsignedEvent,
};
use millrace_tests::control_events::{about, digest_of, key, release_key, running};
use millrace_tests::guests::{forge_code, variant};
use serde_json::{Value, json};

use super::changed;
use super::hosted_fleet::{
    Fleet, PLUGIN, aside, converged, counted, deploy, elsewhere, eventually, hand_in, next, push, same_state,
    serving, until_said, version,
};

const ALL: [&str; 3] = ["a", "b", "c"];
const UNTRUSTED: &str = "control_event_untrusted";

impl Fleet {
    fn open_feed(&self) -> FileFeed {
        FileFeed::open(FileFeedOptions::new(self.path("feed"))).unwrap()
    }

    /// As any program does it: written elsewhere, then renamed.
    fn drop_in(&self, name: &str, text: &str) {
        let written = self.path("written");
        fs::write(&written, text).unwrap();
        fs::rename(written, self.path("feed").join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_at_the_head_of_the_feed_keeps_no_host_from_the_hundred_good_ones_behind_it() {
    let fleet = Fleet::new();
    let feed = fleet.open_feed();
    let now = SystemClock.now().0;
    let evil = about("evil", Kind::Deployed, running(version(b"evil")), 1);
    let evil = UnsignedEvent { issued_at: now, ..evil }.sign(&key(9)).unwrap();
    feed.append(&evil).await.unwrap();
    fleet.drop_in("junk.json", "it is no JSON");
    let polled = feed.poll(ControlVersion(0), 10, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.len(), 2, "both have their place before anybody else's");
    for plugin in 0..100 {
        feed.append(&elsewhere(&format!("p{plugin}"), 1)).await.unwrap();
    }
    let hosts = fleet.three().await;
    let own = same_state(&hosts[0], 102).await;
    for host in &hosts {
        let seen = same_state(host, 102).await;
        assert_eq!(seen["state_digest"], own["state_digest"]);
        assert_eq!(aside(host).await, ["control_event_unreadable", UNTRUSTED]);
        let stands = host.get("/v1/fleet/desired").await.unwrap();
        assert_eq!(stands["entities"].as_array().unwrap().len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_tampered_with_replayed_or_out_of_order_in_the_feed_changes_no_host() {
    let fleet = Fleet::new();
    let hosts = fleet.three().await;
    let a = &hosts[0];
    let builds: Vec<Vec<u8>> = (1..=4).map(|number| variant(number, "good")).collect();
    for build in &builds {
        push(a, build).await;
    }
    let deployed = |build: usize, revision: u64| {
        let event = about(PLUGIN, Kind::Deployed, running(version(&builds[build - 1])), revision);
        UnsignedEvent { issued_at: SystemClock.now().0, ..event }.sign(&release_key()).unwrap()
    };
    let first = deployed(1, 1);
    for event in [&first, &deployed(2, 2)] {
        let (status, answer) = hand_in(a, event).await;
        assert_eq!(status, 202, "{answer}");
    }
    converged(a, &ALL, 2).await;

    // Another reason than was signed; and the signature of another event.
    let tampered = changed(&deployed(3, 3).to_json(), |json| json["reason"] = "because I say so".into());
    fleet.drop_in("tampered.json", &tampered);
    let signatures: Value = serde_json::from_str(&first.to_json()).unwrap();
    let lent = changed(&deployed(3, 3).to_json(), |json| {
        json["signatures"] = signatures["signatures"].clone();
    });
    same_state(a, 3).await;
    fleet.drop_in("lent.json", &lent);
    same_state(a, 4).await;
    // The feed has forgotten what it had, and is given the oldest again.
    fs::remove_dir_all(fleet.path("feed/ids")).unwrap();
    fs::create_dir(fleet.path("feed/ids")).unwrap();
    fleet.drop_in("replayed.json", &first.to_json());
    same_state(a, 5).await;
    for host in &hosts {
        same_state(host, 5).await;
        assert_eq!(aside(host).await, [UNTRUSTED, UNTRUSTED]);
        assert_eq!(serving(host).await, digest_of(&builds[1]), "what was there stays");
    }
    // The fourth comes before the third.
    fleet.drop_in("fourth.json", &deployed(4, 4).to_json());
    same_state(a, 6).await;
    fleet.drop_in("third.json", &deployed(3, 3).to_json());
    same_state(a, 7).await;
    converged(a, &ALL, 4).await;
    for host in &hosts {
        same_state(host, 7).await;
        assert_eq!(serving(host).await, digest_of(&builds[3]));
        assert_eq!(aside(host).await, [UNTRUSTED, UNTRUSTED], "neither was wrong");
        let history = host.get(&format!("/v1/plugins/{PLUGIN}/history")).await.unwrap();
        assert!(!history.to_string().contains(&digest_of(&builds[2])["sha256:".len()..]), "{history}");
    }
}

/// Whoever can write to the board and the repository can make a snapshot known, and still nobody runs what it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_snapshot_brings_a_newcomer_nothing_and_the_next_sound_one_all() {
    let fleet = Fleet::new();
    let small = FileFeedOptions { shard_events: 2, ..FileFeedOptions::new(fleet.path("feed")) };
    let feed = FileFeed::open(small).unwrap();
    let a = fleet.start("a", fleet.origin("a")).await;
    let builds = [variant(1, "good"), variant(2, "good")];
    for build in &builds {
        push(&a, build).await;
    }
    let revision = deploy(&a, version(&builds[0]), None).await;
    converged(&a, &["a"], revision).await;
    for revision in 1..=4 {
        assert_eq!(hand_in(&a, &elsewhere("p", revision)).await.0, 202);
    }
    same_state(&a, 5).await;
    let mark = feed.mark().await.unwrap().unwrap();
    assert_eq!(mark.version, ControlVersion(5));
    assert!(feed.trim(ControlVersion(4)).await.unwrap() > 0, "who comes late needs the snapshot");
    let sound = fs::read_to_string(fleet.artifact(&mark.snapshot.clone().unwrap().digest)).unwrap();
    let forged = sound.replace("because it is time", "because I say so");
    assert_ne!(forged, sound);
    push(&a, forged.as_bytes()).await;
    let snapshot = SnapshotRef { version: mark.version, digest: digest_of(forged.as_bytes()) };
    feed.set_mark(&FleetMark { snapshot: Some(snapshot), ..mark }).await.unwrap();

    let c = fleet.start("c", fleet.setup("c", "edge").set("control.poll_wait_ms=200")).await;
    let has_read = |seen: &Value| seen["cursor"] == 5;
    eventually("it has looked at the snapshot", &c, "/v1/fleet/self", has_read).await;
    assert_eq!(aside(&c).await, [UNTRUSTED, UNTRUSTED]);
    assert_eq!(c.get("/v1/fleet/desired").await.unwrap()["entities"], json!([]));
    assert_eq!(c.get("/v1/plugins").await.unwrap()["plugins"], json!([]));

    let revision = deploy(&a, version(&builds[1]), None).await;
    converged(&a, &["a", "c"], revision).await;
    let (own, late) = (same_state(&a, 6).await, same_state(&c, 6).await);
    assert_eq!(late["state_digest"], own["state_digest"], "the other plugin's, too");
    assert_eq!(serving(&c).await, digest_of(&builds[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn precompiled_code_that_was_tampered_with_on_a_host_never_runs_there() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let mut b = fleet.start("b", fleet.setup("b", "edge")).await;
    let build = variant(1, "good");
    push(&a, &build).await;
    let revision = deploy(&a, version(&build), None).await;
    converged(&a, &["a", "b"], revision).await;
    assert_eq!(counted(&b, 1).await, 1);
    assert!(b.terminate().unwrap(), "{}", b.said());
    assert!(forge_code(&fleet.path("b/precompiled")) > 0, "there is code to change");
    let b = fleet.start("b", fleet.setup("b", "edge")).await;
    until_said(&b, "a precompiled component is not this host's; it is made again").await;
    assert_eq!(counted(&b, 2).await, 2, "it runs, made anew of the artifact");
    converged(&a, &["a", "b"], revision).await;
    assert_eq!(aside(&b).await, Vec::<String>::new());
}

fn event_of(seen: &Value) -> String {
    seen["entities"][0]["event"]["event_id"].as_str().unwrap().to_owned()
}

/// Both took a change of the same revision before either had heard of the other's.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_origins_on_one_feed_the_first_in_the_feed_holds_on_every_host() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let b = fleet.start("b", fleet.origin("b")).await;
    let c = fleet.start("c", fleet.setup("c", "edge")).await;
    let builds = [variant(1, "good"), variant(2, "good"), variant(3, "good")];
    for build in &builds {
        push(&a, build).await;
    }
    // Neither gets anything into the feed meanwhile.
    let lock = File::options().read(true).write(true).open(fleet.path("feed/LOCK")).unwrap();
    lock.lock().unwrap();
    for (origin, build) in [(&a, &builds[0]), (&b, &builds[1])] {
        let deploy = Deploy { spec: version(build), plan: None, targets: None };
        let event = next(origin, |present, id| present.deploy(id, deploy).unwrap()).await;
        assert_eq!(event.unsigned().revision, 1);
        assert_eq!(hand_in(origin, &event).await.0, 202);
    }
    drop(lock);
    for origin in [&a, &b] {
        eventually("all is told", origin, "/v1/fleet/outbox", |seen| seen["waiting"] == 0).await;
    }
    let hosts = [&a, &b, &c];
    for host in hosts {
        same_state(host, 2).await;
    }
    let feed = fleet.open_feed();
    let polled = feed.poll(ControlVersion(0), 10, std::time::Duration::ZERO).await.unwrap();
    let events: Vec<&ControlEvent> = polled
        .events
        .iter()
        .map(|entry| match entry {
            Received::Event { event, .. } => event,
            broken @ Received::Broken { .. } => panic!("{broken:?}"),
        })
        .collect();
    assert_eq!(events.len(), 2);
    let EventBody::Plugin { desired, .. } = &events[0].unsigned().body else { panic!("it is a deploy") };
    let winner = desired.spec.clone().unwrap().component.digest;
    converged(&a, &ALL, 1).await;
    converged(&b, &ALL, 1).await;
    for host in hosts {
        assert_eq!(serving(host).await, winner);
        assert_eq!(aside(host).await, ["revision_conflict"]);
        let stands = host.get("/v1/fleet/desired").await.unwrap();
        assert_eq!(event_of(&stands), events[0].id().as_str(), "{stands}");
    }
    // The one that lost goes on from what stands.
    let loser = if winner == digest_of(&builds[0]) { &b } else { &a };
    let revision = deploy(loser, version(&builds[2]), None).await;
    assert_eq!(revision, 2);
    converged(loser, &ALL, revision).await;
    for host in hosts {
        assert_eq!(serving(host).await, digest_of(&builds[2]));
    }
}
