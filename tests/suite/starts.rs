//! Claims about starts: with many plugins, before the server of the log is there, and after an end that came too early.

use std::path::Path;

use anyhow::Result;
use millrace::config::LogAddress;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::guests::{self, guest};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::ports::Port;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::workspace_binary;
use reqwest::Method;
use rusqlite::Connection;
use serde_json::json;

/// Small ones of the guest "resident", which a start loads several at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_brings_many_plugins_back_where_each_stood() -> anyhow::Result<()> {
    const PLUGINS: usize = 9;
    let event = |n: u64| format!("{{\"aggregate\":\"a\",\"agg_id\":\"1\",\"version\":{n},\"type\":\"x\"}}\n");
    let host = Embedded::start().await?;
    for number in 0..PLUGINS {
        host.client.deploy_bytes(guests::resident(number)).await?.ok()?;
    }
    host.client.publish(event(1)).await?;
    host.client.settle().await?;
    let host = host.restart().await?;
    host.client.publish(event(2)).await?;
    host.client.settle().await?;
    let answer = host.client.get("/v1/plugins").await?.ok()?;
    for number in 0..PLUGINS {
        let plugin = &answer["plugins"][number];
        assert_eq!(plugin["name"], format!("resident-{number:06}"));
        // One: the first event is not handled again.
        assert_eq!((&plugin["state"], &plugin["counters"]["events"]), (&json!("running"), &json!(1)));
        assert_eq!(plugin["tasks"][0]["state_bytes"], 8);
    }
    host.stop().await;
    Ok(())
}

/// A host whose log is there; it gives up appending to one that is away soon.
fn on(log: &str) -> Setup {
    Setup::new(workspace_binary("millrace")).log(log).set("redis.append_wait_ms_max=200")
}

/// Events of five keys in turn, as lines.
fn events(numbers: std::ops::RangeInclusive<u64>) -> String {
    let event = |n: u64| json!({"aggregate": "thing", "agg_id": format!("k{}", n % 5), "version": n, "type": "changed", "payload": {"n": n}});
    numbers.map(|n| event(n).to_string() + "\n").collect()
}

async fn not_ready(client: &Client, reason: &str) -> Result<()> {
    let says = |text: String| text.contains(reason);
    client.wait_for("/readyz", |answer| answer.status == 503 && says(answer.text())).await.map(drop)
}

async fn ready(client: &Client) -> Result<()> {
    client.wait_for("/readyz", |answer| answer.status == 200).await.map(drop)
}

async fn counted(client: &Client, each: u64) -> Result<()> {
    for key in 0..5 {
        let row = client.get(&format!("/v1/tables/counters/k{key}")).await?.ok()?;
        assert_eq!(row["row"]["values"]["events"], each, "{row}");
    }
    Ok(())
}

/// Nobody knows yet what runs here, so nobody is told, and nothing is changed.
async fn says_that_it_starts(client: &Client) -> Result<()> {
    for (method, path) in [
        (Method::GET, "/v1/plugins"),
        (Method::GET, "/v1/plugins/counter"),
        (Method::GET, "/v1/plugins/counter/history"),
        (Method::GET, "/v1/plugins/never-deployed"),
        (Method::POST, "/v1/plugins/counter/pause"),
        (Method::POST, "/v1/plugins/counter/resume"),
        (Method::POST, "/v1/plugins/counter/confirm"),
        (Method::POST, "/v1/plugins/counter/rollback"),
        (Method::DELETE, "/v1/plugins/counter/candidate"),
        (Method::DELETE, "/v1/plugins/counter"),
    ] {
        let answer = client.send(client.request(method.clone(), path)).await?;
        assert_eq!(answer.refusal(), (503, "host_starting".into()), "{method} {path}: {}", answer.text());
    }
    let next = client.deploy_bytes(std::fs::read(guest("counter_v2"))?).await?;
    assert_eq!(next.refusal(), (503, "host_starting".into()), "{}", next.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_starts_before_its_server_starts_everything_when_that_comes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let mut server = RedisServer::durable(Engine::Redis);
    let setup = on(&server.url());
    let mut host = HostProcess::start_as(setup.clone(), &data).await?;
    let client = Client::new(&host.url)?;
    for name in ["counter", "mirror"] {
        client.deploy(name).await?;
    }
    for number in 0..3 {
        client.deploy_bytes(guests::resident(number)).await?.ok()?;
    }
    client.publish(events(1..=20)).await?;
    client.settle().await?;
    client.post("/v1/plugins/mirror/pause", "application/json", "").await?.ok()?;
    assert!(host.terminate()?);
    server.kill();

    // Told to end, and killed, before it has come any further.
    for ends_well in [true, false] {
        let mut host = HostProcess::start_unready(setup.clone(), &data).await?;
        not_ready(&Client::new(&host.url)?, "the host is starting").await?;
        if ends_well {
            assert!(host.terminate()?, "{}", host.said());
        } else {
            host.kill()?;
        }
    }
    let host = HostProcess::start_unready(setup, &data).await?;
    let client = Client::new(&host.url)?;
    not_ready(&client, "backend_unreachable").await?;
    says_that_it_starts(&client).await?;
    counted(&client, 4).await?;
    let event =
        json!({"aggregate": "thing", "agg_id": "none", "version": 1, "type": "changed", "payload": {}});
    let refused = client.post("/v1/events", "application/json", event.to_string()).await?;
    assert_eq!(refused.refusal(), (503, "backend_unreachable".into()), "{}", refused.text());

    server.start_again();
    ready(&client).await?;
    let answer = client.get("/v1/plugins").await?.ok()?;
    let plugins = answer["plugins"].as_array().expect("a list");
    let named: Vec<_> = plugins.iter().map(|plugin| plugin["name"].as_str().unwrap_or_default()).collect();
    let residents = ["resident-000000", "resident-000001", "resident-000002"];
    assert_eq!(named, [&["counter", "mirror"][..], &residents].concat());
    for plugin in plugins {
        let expected = if plugin["name"] == "mirror" { "paused" } else { "running" };
        let path = format!("/v1/plugins/{}", plugin["name"].as_str().unwrap_or_default());
        client.wait_for(&path, |answer| answer.json()["state"] == expected).await?;
    }
    client.publish(events(21..=40)).await?;
    client.post("/v1/plugins/mirror/resume", "application/json", "").await?.ok()?;
    client.settle().await?;
    counted(&client, 8).await?;
    assert_eq!(client.get("/v1/tables/mirror/k0").await?.ok()?["row"]["values"]["n"], 40);
    for name in residents {
        // Twenty: what was handled before is not handled again.
        let plugin = client.get(&format!("/v1/plugins/{name}")).await?.ok()?;
        assert_eq!((&plugin["state"], &plugin["counters"]["events"]), (&json!("running"), &json!(20)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_plugins_is_deployed_once_the_host_has_started() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::copy(guest("counter"), folder.path().join("counter.wasm"))?;
    let port = Port::hold();
    let host = Embedded::start_with(|config| {
        config.serve.log = Some(LogAddress(format!("redis://127.0.0.1:{}", port.number())));
        config.serve.plugins_dir = Some(folder.path().into());
    });
    let host = host.await?;
    not_ready(&host.client, "backend_unreachable").await?;
    says_that_it_starts(&host.client).await?;
    let _server = RedisServer::on_port(Engine::Redis, Keeps::Always, port);
    assert!(host.host().wait_ready().await);
    host.client.wait_for("/v1/plugins/counter", |answer| answer.json()["state"] == "running").await?;
    host.client.publish(events(1..=5)).await?;
    host.client.settle().await?;
    counted(&host.client, 1).await?;
    let history = host.client.get("/v1/plugins/counter/history").await?.ok()?;
    assert_eq!(history["deployments"].as_array().map(Vec::len), Some(1), "it was not tried before");
    host.stop().await;
    Ok(())
}

/// What a stopped host has noted of its log: the epoch, and how far it was.
fn noted(data: &Path) -> Result<(String, i64)> {
    let db = Connection::open(data.join("millrace.db"))?;
    let value = "SELECT (SELECT value FROM meta WHERE name = 'log_epoch'), (SELECT value FROM meta WHERE name = 'log_newest')";
    Ok(db.query_row(value, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Nothing has run before, so whatever log is there is the host's from its beginning on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_fell_before_its_first_note_of_the_log_takes_any_log_as_a_new_host_does() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, other) = (dir.path().join("data"), dir.path().join("other"));
    let nobody = Port::hold();
    let address = format!("redis://127.0.0.1:{}", nobody.number());
    let mut host = HostProcess::start_unready(on(&address), &data).await?;
    not_ready(&Client::new(&host.url)?, "the host is starting").await?;
    host.kill()?;
    assert_eq!(noted(&data)?, (String::new(), 0));

    let server = RedisServer::durable(Engine::Redis);
    let mut writer = HostProcess::start_as(on(&server.url()), &other).await?;
    writer.publish(events(1..=10)).await?;
    let mut host = HostProcess::start_as(on(&server.url()), &data).await?;
    let client = Client::new(&host.url)?;
    client.deploy("counter").await?;
    client.publish(events(11..=20)).await?;
    client.settle().await?;
    counted(&client, 4).await?;
    host.kill()?;
    writer.kill()?;
    // Before anything ran: else what has run would be of a log that the store does not know.
    let (epoch, _) = noted(&data)?;
    assert!(!epoch.is_empty());
    assert_eq!(epoch, noted(&other)?.0);
    Ok(())
}

/// Its first note says that the log is empty. Another log that begins at the same place is not the same: the host's plugins
/// would take its first events for done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_fell_before_its_second_note_of_the_log_leaves_another_log_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, other) = (dir.path().join("data"), dir.path().join("other"));
    let server = RedisServer::durable(Engine::Redis);
    let mut host = HostProcess::start_as(on(&server.url()), &data).await?;
    let client = Client::new(&host.url)?;
    client.deploy("counter").await?;
    client.publish(events(1..=5)).await?;
    client.settle().await?;
    host.kill()?;
    let (epoch, _) = noted(&data)?;
    assert!(!epoch.is_empty());
    // As it is until the next note, which is made twice a second.
    Connection::open(data.join("millrace.db"))?
        .execute("UPDATE meta SET value = 0 WHERE name = 'log_newest'", [])?;

    let elsewhere = RedisServer::durable(Engine::Redis);
    let writer = HostProcess::start_as(on(&elsewhere.url()), &other).await?;
    writer.publish(events(1..=10)).await?;
    let mut host = HostProcess::start_unready(on(&elsewhere.url()), &data).await?;
    not_ready(&Client::new(&host.url)?, "backend_other_log").await?;
    host.kill()?;
    assert_eq!(noted(&data)?, (epoch, 0), "nothing is noted of it");

    let host = HostProcess::start_as(on(&server.url()), &data).await?;
    let client = Client::new(&host.url)?;
    client.publish(events(6..=10)).await?;
    client.settle().await?;
    counted(&client, 2).await
}
