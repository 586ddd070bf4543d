//! Claims about `/v1/fleet…` and about what a host is started with, on hosts in the same process.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::ready;
use millrace::backends::control_feeds;
use millrace::backends::memory::MemoryFeed;
use millrace::clock::{Clock as _, SystemClock};
use millrace::config::{Config, ConfigError, Layers, Right};
use millrace::control::{ControlEvent, ControlSource as _, ControlVersion, Kind, Received, UnsignedEvent};
use millrace::host::{Host, HostError};
use millrace_tests::control_events::{about, key, pem, release_key, running, spec, trust, trusted};
use millrace_tests::embedded::{Embedded, token};
use reqwest::Method;
use serde_json::{Value, json};

use super::changed;
use crate::commands::{config, start};

/// An origin, with its feed in its own folder.
fn origin(dir: &Path) -> Config {
    let mut config = config(dir);
    let trust_file = dir.join("trust.json");
    fs::write(&trust_file, trust().to_json()).unwrap();
    config.control.source = "file".into();
    config.control.sink = "file".into();
    config.control.dir = Some(dir.join("feed"));
    config.control.trust_file = Some(trust_file);
    config.control.host = Some("a".into());
    config.control.report_ms = 50;
    config
}

async fn asked(host: &Host, method: &str, path: &str, body: &str) -> (u16, Value) {
    let url = format!("http://{}/v1/fleet/{path}", host.addr());
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let answer = reqwest::Client::new().request(method, url).body(body.to_owned()).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

async fn get(host: &Host, path: &str) -> Value {
    let (status, answer) = asked(host, "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn post(host: &Host, path: &str, body: &str) -> (u16, Value) {
    asked(host, "POST", path, body).await
}

fn deployed(plugin: &str, revision: u64) -> UnsignedEvent {
    let event = about(plugin, Kind::Deployed, running(spec(plugin, "1.0.0", b"nothing")), revision);
    UnsignedEvent { issued_at: SystemClock.now().0, ..event }
}

fn signed(plugin: &str, revision: u64) -> ControlEvent {
    deployed(plugin, revision).sign(&release_key()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_taken_once_and_each_refusal_has_its_problem() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&origin(dir.path())).await;
    let event = signed("board", 1);
    for repeated in [false, true] {
        let answer = post(&host, "events", &event.to_json()).await;
        let told = json!({ "entity": "plugin:board", "revision": 1, "repeated": repeated });
        assert_eq!(answer, (202, told));
    }
    let late = UnsignedEvent { expires_at: Some(2), issued_at: 1, ..deployed("board", 2) };
    let skipping = UnsignedEvent { base_revision: 7, revision: 8, ..deployed("board", 2) };
    let unknown = changed(&signed("board", 2).to_json(), |json| json["type"] = "plugin.dreamt".into());
    let demanding = changed(&unknown, |json| json["must_understand"] = true.into());
    let other = changed(&signed("board", 2).to_json(), |json| json["reason"] = "another".into());
    let same_id = UnsignedEvent { event_id: event.id().clone(), ..deployed("board", 2) };
    for (body, status, code) in [
        ("no JSON".to_owned(), 400, "control_event_invalid"),
        (deployed("board", 2).without_signature().unwrap().to_json(), 403, "control_event_untrusted"),
        (deployed("board", 2).sign(&key(9)).unwrap().to_json(), 403, "control_event_untrusted"),
        (deployed("board", 2).sign(&key(3)).unwrap().to_json(), 403, "control_event_untrusted"),
        (other, 403, "control_event_untrusted"),
        (late.sign(&release_key()).unwrap().to_json(), 422, "control_event_out_of_time"),
        (unknown, 422, "control_event_not_understood"),
        (demanding, 422, "control_event_not_understood"),
        (signed("board", 1).to_json(), 409, "revision_conflict"),
        (skipping.sign(&release_key()).unwrap().to_json(), 409, "revision_conflict"),
        (same_id.sign(&release_key()).unwrap().to_json(), 409, "control_event_id_taken"),
    ] {
        let (found, answer) = post(&host, "events", &body).await;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{answer}");
    }

    let desired = get(&host, "desired").await;
    assert_eq!(desired["entities"].as_array().unwrap().len(), 1, "{desired}");
    let entity = &desired["entities"][0];
    assert_eq!((&entity["entity"], &entity["revision"]), (&json!("plugin:board"), &json!(1)));
    assert_eq!(ControlEvent::parse(&entity["event"].to_string()).unwrap(), event);
    assert_eq!(desired["frozen"], Value::Null);
    // Also without a key of its own an origin says what the fleet should be like.
    let begun = std::time::Instant::now();
    loop {
        let own = get(&host, "self").await;
        let hosts = get(&host, "hosts").await;
        if own["cursor"] == 1 && own["drift"] == "same" && hosts["hosts"][0]["drift"] == "same" {
            break;
        }
        assert!(begun.elapsed().as_secs() < 60, "it is marked: {own}, {hosts}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_fleet_takes_no_change_and_says_who_froze_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&origin(dir.path())).await;
    let (status, answer) = post(&host, "freeze", r#"{"frozen": true, "reason": "an audit"}"#).await;
    assert_eq!((status, &answer["frozen"]["reason"]), (200, &json!("an audit")));
    let (status, answer) = post(&host, "events", &signed("board", 1).to_json()).await;
    assert_eq!((status, &answer["code"]), (409, &json!("control_frozen")), "{answer}");
    for path in ["desired", "status"] {
        assert_eq!(get(&host, path).await["frozen"]["reason"], "an audit");
    }
    let (status, _) = post(&host, "freeze", r#"{"frozen": maybe}"#).await;
    assert_eq!(status, 400);
    let (status, answer) = post(&host, "freeze", r#"{"frozen": false}"#).await;
    assert_eq!((status, &answer["frozen"]), (200, &Value::Null));
    let (status, answer) = post(&host, "events", &signed("board", 1).to_json()).await;
    assert_eq!(status, 202, "{answer}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_names_the_hosts_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&origin(dir.path())).await;
    let begun = std::time::Instant::now();
    while get(&host, "hosts").await["hosts"].as_array().unwrap().is_empty() {
        assert!(begun.elapsed().as_secs() < 60, "it reports");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let event = deployed("board", 1).without_signature().unwrap();
    let (status, answer) = post(&host, "preview", &event.to_json()).await;
    assert_eq!(status, 200, "{answer}");
    let line = &answer["hosts"][0];
    assert_eq!((&line["host"], &line["now"], &line["at_once"]), (&json!("a"), &Value::Null, &json!(true)));
    assert_eq!(line["next"]["version"], "1.0.0");
    let (status, answer) = post(&host, "preview", &signed("board", 2).to_json()).await;
    assert_eq!((status, &answer["code"]), (409, &json!("revision_conflict")));
    assert_eq!(get(&host, "desired").await["entities"], json!([]));
    assert_eq!(get(&host, "outbox").await["waiting"], 0);
    for path in
        ["outbox/evt_00000000000000000000000001/retry", "outbox/evt_00000000000000000000000001/discard"]
    {
        let (status, answer) = post(&host, path, "").await;
        assert_eq!((status, &answer["code"]), (404, &json!("control_letter_unknown")));
    }
    let (status, _) = asked(&host, "DELETE", "hosts/gone", "").await;
    assert_eq!(status, 204);
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c36_a_host_that_is_alone_or_only_listens_tells_nobody_anything() {
    let dir = tempfile::tempdir().unwrap();
    let lonely = config(dir.path());
    let host = start(&lonely).await;
    for path in ["desired", "status", "hosts", "self", "outbox", "quarantine"] {
        let (status, answer) = asked(&host, "GET", path, "").await;
        assert_eq!((status, &answer["code"]), (409, &json!("control_no_feed")), "{path}");
    }
    assert!(host.fleet().is_none());
    host.shutdown().await;
    assert!(!lonely.serve.data.join("control.db").exists(), "nothing of it is there");

    let dir = tempfile::tempdir().unwrap();
    let mut config = origin(dir.path());
    config.control.sink = "nop".into();
    let host = start(&config).await;
    let (status, answer) = post(&host, "events", &signed("board", 1).to_json()).await;
    assert_eq!((status, &answer["code"]), (409, &json!("control_no_feed")));
    assert_eq!(get(&host, "desired").await["entities"], json!([]));
    assert_eq!(get(&host, "self").await["host"], "a");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_keeps_the_name_that_it_has_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = origin(dir.path());
    config.control.host = None;
    let mut names = Vec::new();
    for _ in 0..2 {
        let host = start(&config).await;
        names.push(get(&host, "self").await["host"].as_str().unwrap().to_owned());
        host.shutdown().await;
    }
    assert_eq!(names[0], names[1]);
    assert!(names[0].starts_with("host-") && names[0].len() == "host-".len() + 26, "{names:?}");
}

/// Changes what a host is started with.
type Setting<'a> = &'a dyn Fn(&mut Config);

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_would_believe_nobody_or_finds_no_feed_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let sound = origin(dir.path());
    let trust_file = sound.control.trust_file.clone().unwrap();
    let only_builds = millrace::control::Trusted { keys: vec![trusted().keys.remove(2)] };
    let only_builds = millrace::control::trust::TrustStore::new(0, &only_builds).unwrap().to_json();
    let key_file = dir.path().join("release.pem");
    let cases: [(&str, Setting<'_>); 6] = [
        ("control.trust_file", &|config| config.control.trust_file = Some(dir.path().join("absent"))),
        ("would believe nobody", &|_| fs::write(&trust_file, &only_builds).unwrap()),
        ("there is no control source `kafka`; there are: file", &|config| {
            config.control.source = "kafka".into()
        }),
        ("there is no control sink `kafka`; there are: file", &|config| config.control.sink = "kafka".into()),
        ("control.signing_key", &|config| config.control.signing_key = Some(dir.path().join("absent"))),
        ("control.url", &|config| config.control.source = "redis".into()),
    ];
    for (words, spoil) in cases {
        fs::write(&trust_file, trust().to_json()).unwrap();
        let mut config = sound.clone();
        spoil(&mut config);
        let error = refused(config).await;
        assert!(error.contains(words), "{error}");
    }
    fs::write(&trust_file, trust().to_json()).unwrap();
    fs::write(&key_file, pem(2)).unwrap();
    let mut config = sound;
    config.control.signing_key = Some(key_file);
    start(&config).await.shutdown().await;
}

async fn refused(config: Config) -> String {
    match Host::builder().config(config).start().await {
        Ok(_) => panic!("it started"),
        Err(error @ HostError::Control(_)) => error.to_string(),
        Err(other) => panic!("{other}"),
    }
}

/// C39, as an embedder does it: its feed has a name that settings give.
#[tokio::test(flavor = "multi_thread")]
async fn c39_a_host_runs_on_a_feed_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = origin(dir.path());
    (config.control.source, config.control.sink) = ("pigeons".into(), "pigeons".into());
    let (carrier, mut feeds) = (MemoryFeed::new(), control_feeds().unwrap());
    let (source, sink, board) = (carrier.clone(), carrier.clone(), carrier.clone());
    feeds.add_source("pigeons", move |_| ready(Ok(Arc::new(source.clone()) as _)).boxed()).unwrap();
    feeds.add_sink("pigeons", move |_| ready(Ok(Arc::new(sink.clone()) as _)).boxed()).unwrap();
    feeds.add_board("pigeons", move |_| ready(Ok(Arc::new(board.clone()) as _)).boxed()).unwrap();
    let host = Host::builder().config(config).feeds(feeds).start().await.unwrap();
    let event = signed("board", 1);
    assert_eq!(post(&host, "events", &event.to_json()).await.0, 202);
    let begun = std::time::Instant::now();
    loop {
        let own = get(&host, "self").await;
        assert_eq!((&own["source"], &own["sink"]), (&json!("pigeons"), &json!("pigeons")));
        if own["cursor"] == 1 && own["drift"] == "same" {
            break;
        }
        assert!(begun.elapsed().as_secs() < 60, "it went out and came back: {own}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let polled = carrier.poll(ControlVersion(0), 9, std::time::Duration::ZERO).await.unwrap();
    assert!(matches!(&polled.events[..], [Received::Event { event: told, .. }] if *told == event));
    host.shutdown().await;
}

/// C54, C55: what is asked wrongly, and by whom nothing of it may be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c54_c55_everything_about_a_fleet_needs_the_right_admin_and_a_sound_question() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let fleet = origin(dir.path()).control;
    let host = Embedded::start_with(|config| {
        config.control = fleet;
        config.auth.tokens = vec![
            token("boss", "acme", &[Right::Admin]),
            token("user", "acme", &[Right::Publish, Right::Read]),
        ];
    })
    .await?;
    let (boss, user) = (host.client.with_token("boss")?, host.client.with_token("user")?);
    let event = "evt_00000000000000000000000001";
    let asked = [
        (Method::POST, "events".to_owned()),
        (Method::GET, "desired".into()),
        (Method::GET, "status".into()),
        (Method::GET, "hosts".into()),
        (Method::DELETE, "hosts/a".into()),
        (Method::GET, "quarantine".into()),
        (Method::GET, "outbox".into()),
        (Method::POST, format!("outbox/{event}/retry")),
        (Method::POST, format!("outbox/{event}/discard")),
        (Method::POST, "freeze".into()),
        (Method::POST, "preview".into()),
        (Method::POST, "resync".into()),
        (Method::GET, "self".into()),
    ];
    let there_are = millrace::gateway::operations();
    let there_are = there_are.into_iter().filter(|(_, path)| path.starts_with("/v1/fleet/")).count();
    assert_eq!(asked.len(), there_are, "each is asked");
    for (method, path) in asked {
        let path = format!("/v1/fleet/{path}");
        let refused = user.send(user.request(method.clone(), &path)).await?;
        assert_eq!(refused.refusal(), (403, "right_missing".into()), "{path}");
        assert_eq!(host.client.send(host.client.request(method, &path)).await?.status, 401, "{path}");
    }
    for (method, path, refusal) in [
        (Method::POST, "resync?tenant=acme".to_owned(), (400, "tenant_in_body")),
        (Method::POST, "resync?all=true".into(), (400, "parameter_unknown")),
        (Method::POST, "outbox/nothing/retry".into(), (400, "control_event_invalid")),
        (Method::POST, format!("outbox/{event}/retry"), (404, "control_letter_unknown")),
        (Method::DELETE, "hosts/..%2Fa".into(), (422, "control_settings_invalid")),
        (Method::POST, "preview".into(), (400, "control_event_invalid")),
        (Method::GET, "plugins".into(), (404, "path_unknown")),
    ] {
        let answer = boss.send(boss.request(method, &format!("/v1/fleet/{path}"))).await?;
        assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{path}");
    }
    assert_eq!(boss.get("/v1/fleet/self").await?.ok()?["host"], "a");
    host.stop().await;
    Ok(())
}

#[test]
fn settings_of_a_fleet_that_do_not_fit_are_named() {
    for (settings, key) in [
        (&["control.sink=file"][..], "control.source"),
        (&["control.source=file", "control.signing_key=k.pem"], "control.signing_key"),
        (&["control.host=..."], "control.host"),
        (&["control.labels={tier=\"a b\"}"], "control.labels"),
        (&["control.report_ms=0"], "control.report_ms"),
        (&["control.report_ms=60000"], "control.report_ms"),
        (&["control.replicas=0"], "control.replicas"),
        (&["control.poll_gap_ms=0"], "control.poll_gap_ms"),
    ] {
        let mut layers = Layers::new();
        for setting in settings {
            layers.assignment(setting).unwrap();
        }
        match layers.resolve() {
            Err(ConfigError::Invalid { key: found, detail, .. }) => {
                assert_eq!(found, key, "{detail}");
                assert!(!detail.contains("control event"), "{detail}");
            }
            other => panic!("{settings:?}: {other:?}"),
        }
    }
    let mut layers = Layers::new();
    for setting in ["control.source=nats", "control.labels.tier=canary", "control.url=nats://u:secret@h:1"] {
        layers.assignment(setting).unwrap();
    }
    let resolved = layers.resolve().unwrap();
    assert_eq!(resolved.config.control.labels["tier"], "canary");
    let shown = format!("{:?} {:?}", resolved.settings, resolved.config);
    assert!(!shown.contains("secret"), "{shown}");
}
