//! Claims about three hosts as processes: each feed brings them what to run, and every kind of change reaches all of them.

use std::process::Command;

use millrace::control::ArtifactRef;
use millrace::control::changes::Deploy;
use millrace::control::rollout::{Gate, Plan};
use millrace_tests::control_events::digest_of;
use millrace_tests::guests::variant;
use millrace_tests::host::HostProcess;
use millrace_tests::nats_server::NatsServer;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::workspace_binary;
use serde_json::{Value, json};

use super::hosted_fleet::{
    Fleet, PLUGIN, aside, change, converged, counted, deploy, eventually, hand_in, next, push, same_state,
    serving, version, wave,
};

const ALL: [&str; 3] = ["a", "b", "c"];

/// Nothing runs on it any more.
async fn is_empty(host: &HostProcess) {
    eventually("it is gone", host, "/v1/plugins", |seen| seen["plugins"] == json!([])).await;
}

/// Three hosts run a version, then the next one, then nothing.
async fn three_hosts_follow(fleet: &Fleet) {
    let mut hosts = fleet.three().await;
    for number in [1, 2] {
        let build = variant(number, "good");
        push(&hosts[0], &build).await;
        let revision = deploy(&hosts[0], version(&build), None).await;
        converged(&hosts[0], &ALL, revision).await;
        for host in &hosts {
            assert_eq!(serving(host).await, digest_of(&build));
            assert_eq!(
                counted(host, number as u64).await,
                number as u64,
                "it runs, and goes on from its state"
            );
        }
    }
    change(&hosts[0], |present, _| present.remove().unwrap()).await;
    for host in &hosts {
        is_empty(host).await;
        assert_eq!(aside(host).await, Vec::<String>::new());
    }
    let own = hosts[0].get("/v1/fleet/self").await.unwrap();
    for host in &hosts {
        let seen = same_state(host, own["cursor"].as_u64().unwrap()).await;
        assert_eq!(seen["state_digest"], own["state_digest"]);
    }
    for host in &mut hosts {
        assert!(host.terminate().unwrap(), "{}", host.said());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_follow_a_feed_in_files() {
    three_hosts_follow(&Fleet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_follow_a_feed_in_sqlite() {
    three_hosts_follow(&Fleet::on("sqlite", None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_follow_a_feed_on_redis() {
    let server = RedisServer::durable(Engine::Redis);
    three_hosts_follow(&Fleet::on("redis", Some(server.url()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_follow_a_feed_on_nats() {
    let server = NatsServer::start();
    three_hosts_follow(&Fleet::on("nats", Some(server.url()))).await;
}

async fn is_paused(host: &HostProcess) -> bool {
    let shown = host.get(&format!("/v1/plugins/{PLUGIN}")).await.unwrap();
    shown["deployment"]["paused"].as_bool().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_reaches_all_three_hosts() {
    let fleet = Fleet::new();
    let hosts = fleet.three().await;
    let origin = &hosts[0];
    let (first, second, config) = (variant(1, "good"), variant(2, "good"), br#"{"mode":"loud"}"#);
    for bytes in [&first[..], &second[..], &config[..]] {
        push(origin, bytes).await;
    }
    let revision = deploy(origin, version(&first), None).await;
    converged(origin, &ALL, revision).await;

    // config_changed
    let digest = digest_of(config);
    let artifact = ArtifactRef { digest: digest.clone(), bytes: config.len() as u64, signatures: Vec::new() };
    let revision = change(origin, |present, id| present.configure(id, Some(artifact), None).unwrap()).await;
    converged(origin, &ALL, revision).await;
    for (host, name) in hosts.iter().zip(ALL) {
        assert!(fleet.has_copy(name, &digest), "{name} has the configuration");
        assert_eq!(serving(host).await, digest_of(&first));
        assert_eq!(counted(host, 1).await, 1);
    }

    // paused, resumed
    let revision = change(origin, |present, _| present.pause().unwrap()).await;
    converged(origin, &ALL, revision).await;
    for host in &hosts {
        assert!(is_paused(host).await);
    }
    let revision = change(origin, |present, _| present.resume().unwrap()).await;
    converged(origin, &ALL, revision).await;
    for host in &hosts {
        assert!(!is_paused(host).await);
        assert_eq!(counted(host, 2).await, 2);
    }

    // deployed, rolled_back
    let revision = deploy(origin, version(&second), None).await;
    converged(origin, &ALL, revision).await;
    for host in &hosts {
        assert_eq!(serving(host).await, digest_of(&second));
        assert_eq!(counted(host, 3).await, 3);
    }
    let revision = change(origin, |present, _| present.roll_back().unwrap()).await;
    let status = converged(origin, &ALL, revision).await;
    assert_eq!(status["plugins"][0]["rollout"]["progress"], "rolled_back", "{status:#}");
    for host in &hosts {
        assert_eq!(serving(host).await, digest_of(&first));
        assert_eq!(counted(host, 4).await, 4);
    }

    // removed
    let revision = change(origin, |present, _| present.remove().unwrap()).await;
    for host in &hosts {
        is_empty(host).await;
        let stands = host.get("/v1/fleet/desired").await.unwrap();
        assert_eq!(stands["entities"][0]["revision"], revision, "the tombstone stays");
        assert_eq!(stands["entities"][0]["event"]["type"], "plugin.removed");
        assert_eq!(aside(host).await, Vec::<String>::new());
    }
}

/// What the command line says of the rollout: how it goes on, its wave, and the version that each host serves.
fn status_of(origin: &HostProcess) -> Value {
    let output = Command::new(workspace_binary("millrace"))
        .args(["rollout", "status", PLUGIN, "--json", "--url", &origin.url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plugin = &said["plugins"][0];
    let hosts: Vec<Value> = plugin["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| json!([line["host"], line["wave"], line["serving"]]))
        .collect();
    let rollout = &plugin["rollout"];
    json!([rollout["progress"], rollout["wave"], rollout["waves"], hosts])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_by_hand_goes_wave_by_wave_to_its_end_and_a_frozen_fleet_only_stops_things() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let b = fleet.start("b", fleet.setup("b", "edge")).await;
    let c = fleet.start("c", fleet.setup("c", "far")).await;
    let hosts = [&a, &b, &c];
    let (first, second) = (variant(1, "good"), variant(2, "good"));
    push(&a, &first).await;
    push(&a, &second).await;
    let revision = deploy(&a, version(&first), None).await;
    converged(&a, &ALL, revision).await;

    let waves = vec![wave(&[("tier", "canary")]), wave(&[("tier", "edge")]), wave(&[])];
    let gate = Gate { events_min: 0, ..Gate::default() };
    let plan = Plan { waves, gate, automatic: false };
    let mut revision = deploy(&a, version(&second), Some(plan)).await;
    let (old, new) = (digest_of(&first), digest_of(&second));
    for reached in 1..=3 {
        converged(&a, &ALL, revision).await;
        let on = |wave: usize| if wave <= reached { &new } else { &old };
        let expected = json!([["a", 1, on(1)], ["b", 2, on(2)], ["c", 3, on(3)]]);
        assert_eq!(status_of(&a), json!(["running", reached, 3, expected]));
        revision = change(&a, |present, _| present.advance().unwrap()).await;
    }
    converged(&a, &ALL, revision).await;
    let everybody = json!([["a", 1, new], ["b", 2, new], ["c", 3, new]]);
    assert_eq!(status_of(&a), json!(["complete", 3, 3, everybody]));

    let frozen = |frozen: bool| {
        let body = json!({ "frozen": frozen, "reason": "an incident" }).to_string();
        reqwest::Client::new().post(format!("{}/v1/fleet/freeze", a.url)).body(body).send()
    };
    assert_eq!(frozen(true).await.unwrap().status(), 200);
    let again = Deploy { spec: version(&first), plan: None, targets: None };
    let event = next(&a, |present, id| present.deploy(id, again).unwrap()).await;
    let (status, answer) = hand_in(&a, &event).await;
    assert_eq!((status, answer["code"].as_str()), (409, Some("control_frozen")), "{answer}");
    let revision = change(&a, |present, _| present.pause().unwrap()).await;
    converged(&a, &ALL, revision).await;
    for host in hosts {
        assert!(is_paused(host).await, "what only stops something is done");
    }
    let event = next(&a, |present, _| present.resume().unwrap()).await;
    assert_eq!(hand_in(&a, &event).await.0, 409, "to go on is none of that");
    let revision = change(&a, |present, _| present.roll_back().unwrap()).await;
    converged(&a, &ALL, revision).await;
    assert_eq!(frozen(false).await.unwrap().status(), 200);
    let revision = change(&a, |present, _| present.resume().unwrap()).await;
    converged(&a, &ALL, revision).await;
    for host in hosts {
        assert_eq!(serving(host).await, old);
    }
}

/// It is a component, and it compiles; what is wrong with it shows when it handles events.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_falls_over_in_the_shadow_of_the_first_wave_has_committed_nothing_anywhere() {
    let fleet = Fleet::new();
    let hosts = fleet.three().await;
    let origin = &hosts[0];
    let (good, bad) = (variant(1, "good"), variant(2, "traps"));
    push(origin, &good).await;
    push(origin, &bad).await;
    let revision = deploy(origin, version(&good), None).await;
    converged(origin, &ALL, revision).await;
    for host in &hosts {
        for event in 1..=20 {
            assert_eq!(counted(host, event).await, event);
        }
    }
    let plan = Plan {
        waves: vec![wave(&[("tier", "canary")]), wave(&[])],
        gate: Gate { events_min: 0, ..Gate::default() },
        automatic: true,
    };
    let mut tried = version(&bad);
    tried.shadow_events = Some(10);
    let revision = deploy(origin, tried, Some(plan)).await;
    let status = converged(origin, &ALL, revision + 1).await;
    let rollout = &status["plugins"][0]["rollout"];
    assert_eq!((&rollout["progress"], &rollout["wave"]), (&json!("rolled_back"), &json!(1)), "{status:#}");
    let stands = origin.get("/v1/fleet/desired").await.unwrap();
    let why = stands["entities"][0]["event"]["reason"].as_str().unwrap();
    assert!(why.contains("shadow"), "it was the shadow that ended it: {why}");
    for (host, name) in hosts.iter().zip(ALL) {
        assert_eq!(serving(host).await, digest_of(&good));
        let history = host.get(&format!("/v1/plugins/{PLUGIN}/history")).await.unwrap();
        assert!(!history.to_string().contains(&digest_of(&bad)["sha256:".len()..]), "{name}: {history}");
        let row = host.get("/v1/tables/variants/k").await.unwrap();
        assert_eq!(row["row"]["values"]["events"], 20, "{name}: {row}");
        let letters = host.get(&format!("/v1/plugins/{PLUGIN}/dead-letters?limit=10")).await.unwrap();
        assert_eq!(letters["dead_letters"], json!([]), "{name}");
        assert_eq!(counted(host, 21).await, 21, "{name}: what served goes on");
    }
    assert!(!fleet.has_copy("b", &digest_of(&bad)) && !fleet.has_copy("c", &digest_of(&bad)));
}
