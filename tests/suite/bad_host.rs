//! Claims about a host in trouble: a full disk, a second host, a store from the future, bad plugins, a signal
//! in the middle of an upload. Each ends in words that help, and with everything acknowledged still there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use millrace_tests::embedded::{Answer, Client, Embedded};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::powercut::build_preloaded;
use millrace_tests::{until, workspace_binary};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

fn event(agg_id: &str, version: u64) -> String {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": "changed", "payload": {"n": version}})
        .to_string()
}

async fn post(client: &Client, body: String) -> Result<Answer> {
    client.post("/v1/events", "application/json", body).await
}

async fn ids(client: &Client) -> Result<Vec<String>> {
    let events = client.events("").await?;
    events.iter().map(|event| Ok(event["id"].as_str().context("an id")?.to_owned())).collect()
}

/// What `counter` must hold after these events, each once.
async fn assert_counted(client: &Client) -> Result<()> {
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for event in client.events("").await? {
        *expected.entry(event["agg_id"].as_str().context("an agg_id")?.to_owned()).or_default() += 1;
    }
    let rows = client.rows("counters", "limit=1000").await?;
    let found: BTreeMap<String, u64> = rows
        .iter()
        .map(|row| {
            Ok((row["key"].as_str().context("a key")?.into(), row["values"]["events"].as_u64().unwrap_or(0)))
        })
        .collect::<Result<_>>()?;
    assert_eq!(found, expected, "each event is counted once");
    Ok(())
}

// The command line.

/// Runs `millrace serve` until it ends by itself. None of these may get as far as serving.
fn serve(args: &[&str], data: &Path) -> Result<Output> {
    let serve =
        Command::new(workspace_binary("millrace")).arg("serve").arg("--data").arg(data).args(args).output();
    serve.context("millrace starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_configuration_that_cannot_be_meant_ends_before_anything_is_opened() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("millrace.toml");
    std::fs::write(&file, "[stores]\nretention_events = 1\n")?;
    let file = file.to_str().context("a UTF-8 path")?;
    let data = dir.path().join("store");
    for (args, words) in [
        (
            &["--set", "store.retention_event=1"][..],
            &["store.retention_event`", "`store.retention_events`"][..],
        ),
        (&["--config", file], &["`stores`", file, "`store`"]),
        (&["--bind", "0.0.0.0:0"], &["0.0.0.0:0", "auth.tokens"]),
        (&["--bind", "[::]:0"], &["[::]:0", "auth.tokens"]),
        (&["--set", "serve.drain_ms_max=soon"], &["serve.drain_ms_max", "--set"]),
        (&["--config", "/does/not/exist.toml"], &["/does/not/exist.toml"]),
    ] {
        let output = serve(args, &data)?;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(6), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} does not say {word}: {said}");
        }
    }
    assert!(!data.exists(), "nothing was made");
    Ok(())
}

// The store.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_is_refused_and_told_who_holds_the_store() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("store");
    let mut first = HostProcess::start(&data).await?;
    let output = serve(&["--bind", "127.0.0.1:0"], &data)?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {},", first.pid())), "the holder is named: {said}");
    assert!(said.contains(data.to_str().context("a UTF-8 path")?), "the folder is named: {said}");
    assert_eq!(first.publish(event("a", 1)).await?, 1, "the first goes on");
    first.kill()?;
    // A dead holder holds nothing, whatever it has left behind.
    let second = HostProcess::start(&data).await?;
    assert_eq!(ids(&Client::new(&second.url)?).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_from_a_newer_version_is_refused_and_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("store");
    let mut host = HostProcess::start(&data).await?;
    host.publish(event("a", 1)).await?;
    assert!(host.terminate()?, "SIGTERM ends with status 0");
    let database = data.join("millrace.db");
    let set =
        |version: i64| rusqlite::Connection::open(&database)?.pragma_update(None, "user_version", version);
    let known: i64 =
        rusqlite::Connection::open(&database)?.pragma_query_value(None, "user_version", |row| row.get(0))?;
    set(known + 1)?;
    let before = std::fs::read(&database)?;
    let output = serve(&["--bind", "127.0.0.1:0"], &data)?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [format!("schema {}", known + 1), format!("up to {known}"), "newer millrace".into()] {
        assert!(said.contains(&words), "it does not say `{words}`: {said}");
    }
    assert!(std::fs::read(&database)? == before, "the file is as it was");
    set(known)?;
    let host = HostProcess::start(&data).await?;
    assert_eq!(ids(&Client::new(&host.url)?).await?.len(), 1);
    Ok(())
}

/// A host on a disk that is full while a file exists. Its messages lie on that disk, too.
pub(crate) struct FullDisk {
    _dir: tempfile::TempDir,
    pub(crate) data: PathBuf,
    flag: PathBuf,
    pub(crate) setup: Setup,
}

impl FullDisk {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (data, flag) = (dir.path().join("store"), dir.path().join("full"));
        std::fs::create_dir(&data)?;
        let mut setup = Setup::new(workspace_binary("millrace"));
        let shim = build_preloaded("fulldisk", dir.path())?;
        let env =
            [("LD_PRELOAD", shim), ("FULLDISK_DIR", dir.path().into()), ("FULLDISK_FLAG", flag.clone())];
        setup.env.extend(env.map(|(name, value)| (name.into(), OsString::from(value))));
        Ok(Self { _dir: dir, data, flag, setup })
    }

    pub(crate) fn fill(&self) -> Result<()> {
        Ok(std::fs::write(&self.flag, "")?)
    }

    pub(crate) fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.flag)?)
    }
}

/// Publishes single events until one is refused; answers the ids that were acknowledged.
async fn publish_until_refused(client: &Client, agg_id: &str) -> Result<(Vec<String>, Answer)> {
    let mut acknowledged = Vec::new();
    for version in 1..10_000 {
        let answer = post(client, event(agg_id, version)).await?;
        if answer.status != 200 {
            return Ok((acknowledged, answer));
        }
        acknowledged.push(answer.json()["events"][0]["id"].as_str().context("an id")?.to_owned());
    }
    anyhow::bail!("a full disk took everything")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_says_so_loses_nothing_and_is_over_when_it_is_over() -> Result<()> {
    let disk = FullDisk::new()?;
    let mut host = HostProcess::start_as(disk.setup.clone(), &disk.data).await?;
    let client = Client::new(&host.url)?;
    client.deploy("counter").await?;
    let first: String = (1..=500).map(|n| event(&format!("k{}", n % 50), n) + "\n").collect();
    client.publish(first).await?;
    client.settle().await?;
    let mut acknowledged: BTreeSet<String> = ids(&client).await?.into_iter().collect();

    disk.fill()?;
    let (taken, refused) = publish_until_refused(&client, "full").await?;
    acknowledged.extend(taken);
    assert_eq!(refused.refusal(), (507, "disk_full".into()), "{}", refused.text());
    assert!(refused.text().contains("nothing acknowledged is lost"), "{}", refused.text());
    let mut uploads = 0;
    let codes: Vec<Value> = loop {
        let lines = (5 * uploads + 1..=5 * uploads + 5).map(|n| event("lines", n) + "\n");
        let upload = client.post("/v1/events", "application/x-ndjson", lines.collect::<String>()).await?;
        let codes: Vec<Value> = upload.lines()?.iter().map(|line| line["error"]["code"].clone()).collect();
        if codes.iter().any(|code| !code.is_null()) {
            break codes;
        }
        // What the store has written to its tables meanwhile makes room in files that need not grow.
        uploads += 1;
        assert!(uploads < 1_000, "a full disk took everything");
        acknowledged = ids(&client).await?.into_iter().collect();
    };
    assert_eq!(codes, vec![json!("disk_full"); 5], "each line hears of it");
    // What is there is read as ever: all that was acknowledged, and nothing else.
    assert_eq!(ids(&client).await?.into_iter().collect::<BTreeSet<_>>(), acknowledged);
    assert_eq!(client.get("/v1/tables/counters/k1").await?.ok()?["row"]["values"]["events"], 10);

    disk.free()?;
    client.publish((1..=5).map(|n| event("later", n) + "\n").collect::<String>()).await?;
    client
        .wait_for("/v1/plugins/counter", |a| a.json()["state"] == "running" && a.json()["lag_events"] == 0)
        .await?;
    assert_counted(&client).await?;

    disk.fill()?;
    acknowledged = ids(&client).await?.into_iter().collect();
    let (taken, _) = publish_until_refused(&client, "again").await?;
    acknowledged.extend(taken);
    host.kill()?;
    disk.free()?;
    let host = HostProcess::start(&disk.data).await?;
    let client = Client::new(&host.url)?;
    client.settle().await?;
    assert_eq!(ids(&client).await?.into_iter().collect::<BTreeSet<_>>(), acknowledged);
    assert_counted(&client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_on_a_full_disk_ends_well_and_a_start_says_what_is_wrong() -> Result<()> {
    let disk = FullDisk::new()?;
    disk.fill()?;
    let start = Command::new(&disk.setup.binary)
        .args(["serve", "--bind", "127.0.0.1:0", "--data"])
        .arg(&disk.data)
        .envs(disk.setup.env.iter().cloned())
        .output()?;
    let said = stderr(&start);
    assert_eq!(start.status.code(), Some(1), "{said}");
    assert!(said.contains("the disk is full") || said.contains("No space left"), "{said}");
    disk.free()?;
    let mut host = HostProcess::start_as(disk.setup.clone(), &disk.data).await?;
    let client = Client::new(&host.url)?;
    client.deploy("counter").await?;
    client.publish(event("before", 1)).await?;
    disk.fill()?;
    let (taken, _) = publish_until_refused(&client, "full").await?;
    assert!(host.terminate()?, "the drain ends with success: {}", host.said());
    disk.free()?;
    let host = HostProcess::start(&disk.data).await?;
    let client = Client::new(&host.url)?;
    assert_eq!(ids(&client).await?.len(), taken.len() + 1);
    client.settle().await?;
    assert_counted(&client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_almost_full_disk_takes_no_events_and_shows_what_there_is() -> Result<()> {
    let host = Embedded::start().await?;
    host.client.deploy("counter").await?;
    host.client.publish(event("a", 1)).await?;
    host.client.settle().await?;
    let enough = i64::MAX.unsigned_abs();
    let host = host.restart_with(|config| config.store.disk_free_bytes_min = enough).await?;
    let refused = post(&host.client, event("a", 2)).await?;
    assert_eq!(refused.refusal(), (507, "disk_low".into()), "{}", refused.text());
    let problem = refused.json();
    assert_eq!((&problem["limit"], &problem["min"]), (&json!("disk_free_bytes_min"), &json!(enough)));
    assert!(problem["free"].as_u64() > Some(0), "{problem}");
    let upload = host.client.post("/v1/events", "application/x-ndjson", event("a", 2)).await?;
    assert_eq!(upload.lines()?[0]["error"]["code"], "disk_low");
    assert_eq!(ids(&host.client).await?.len(), 1);
    assert_eq!(host.client.get("/v1/tables/counters/a").await?.ok()?["row"]["values"]["events"], 1);
    let host = host.restart_with(|config| config.store.disk_free_bytes_min = 0).await?;
    assert_eq!(post(&host.client, event("a", 2)).await?.status, 200);
    Ok(())
}

// Signals.

/// An upload that goes on until the host breaks it off, and the ids that it was answered.
async fn upload_until_cut(client: &Client, acknowledged: mpsc::Sender<String>) -> Result<()> {
    let lines =
        stream::iter(1_u64..).map(|n| Ok::<_, std::io::Error>(event(&format!("k{}", n % 100), n) + "\n"));
    let request = client
        .request(Method::POST, "/v1/events")
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(
            lines
                .ready_chunks(200)
                .map(|lines| lines.into_iter().collect::<Result<Vec<_>, _>>().map(|lines| lines.concat())),
        ));
    let mut answers = request.send().await?.error_for_status()?.bytes_stream();
    let mut text = Vec::new();
    // It ends with an error where the connection does.
    while let Some(Ok(chunk)) = answers.next().await {
        text.extend_from_slice(&chunk);
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Value = serde_json::from_slice(&text.drain(..=end).collect::<Vec<_>>())?;
            if let Some(id) = line["id"].as_str() {
                acknowledged.send(id.to_owned()).await?;
            } else {
                ensure!(line["error"]["code"] == "host_stopping", "the last line says why: {line}");
            }
        }
    }
    Ok(())
}

/// Ends a host in the middle of an upload; everything acknowledged is there after the next start, once.
async fn cut_an_upload(end: impl FnOnce(&mut HostProcess) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("store");
    let mut host = HostProcess::start(&data).await?;
    let client = Client::new(&host.url)?;
    client.deploy("counter").await?;
    let (sender, mut receiver) = mpsc::channel(10_000);
    let uploading = client.clone();
    // Beside this test, so that answers are taken while the host ends.
    let mut upload = JoinSet::new();
    upload.spawn(async move { upload_until_cut(&uploading, sender).await });
    let mut acknowledged = Vec::new();
    while acknowledged.len() < 3_000 {
        acknowledged.push(receiver.recv().await.context("the upload goes on")?);
    }
    end(&mut host)?;
    while let Some(id) = receiver.recv().await {
        acknowledged.push(id);
    }
    upload.join_next().await.context("there is an upload")???;

    let host = HostProcess::start(&data).await?;
    let client = Client::new(&host.url)?;
    client.settle().await?;
    let stored = ids(&client).await?;
    let unique: BTreeSet<&String> = stored.iter().collect();
    assert_eq!(unique.len(), stored.len(), "no event is doubled");
    let lost = acknowledged.iter().filter(|id| !unique.contains(id)).count();
    assert_eq!(lost, 0, "of {} acknowledged events", acknowledged.len());
    assert_counted(&client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_an_upload_drains_and_keeps_every_acknowledged_line() -> Result<()> {
    cut_an_upload(|host| {
        ensure!(host.terminate()?, "a drain ends with status 0: {}", host.said());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_in_an_upload_keeps_every_acknowledged_line() -> Result<()> {
    cut_an_upload(HostProcess::kill).await
}

// Plugins.

/// Files that are no good as a plugin: what they are, the bytes, and the code of the refusal.
fn bad_components() -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let counter = std::fs::read(guest("counter_v2"))?;
    let text = |wat: &str| wat::parse_str(wat).map_err(anyhow::Error::from);
    Ok(vec![
        ("truncated", counter[..counter.len() / 2].to_vec(), "not_a_component"),
        ("text", b"#!/bin/sh\necho not a component\n".to_vec(), "not_a_component"),
        ("empty", Vec::new(), "not_a_component"),
        ("core module", text("(module (func (export \"handle\")))")?, "not_a_component"),
        (
            "other world",
            text("(component (core module $m) (core instance (instantiate $m)))")?,
            "wrong_world",
        ),
        (
            "foreign import",
            text("(component (import \"acme:things/api@1.0.0\" (instance (export \"f\" (func)))))")?,
            "import_unknown",
        ),
        ("ungranted", std::fs::read(guest("wants_clock"))?, "grant_missing"),
        ("refuses the state", std::fs::read(guest("counter_refuses"))?, "state_refused"),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_component_is_refused_with_its_reason_and_the_old_version_serves() -> Result<()> {
    let host = Embedded::start().await?;
    let client = &host.client;
    client.deploy("counter").await?;
    let mut version = 0;
    for (what, component, code) in bad_components()? {
        version += 1;
        client.publish(event("k", version)).await?;
        client.settle().await?;
        let refused = client.deploy_bytes(component).await?;
        assert_eq!(refused.json()["code"], code, "{what}: {}", refused.text());
        assert!((400..500).contains(&refused.status), "{what}: {}", refused.status);
        assert_eq!(refused.json()["blame"], "guest", "{what}");
        version += 1;
        client.publish(event("k", version)).await?;
        client.settle().await?;
        let row = client.get("/v1/tables/counters/k").await?.ok()?;
        assert_eq!(row["row"]["values"]["events"], version, "after {what} the old version goes on");
    }
    let grant = client.deploy_bytes(std::fs::read(guest("wants_clock"))?).await?;
    assert!(grant.text().contains("`clock`"), "the missing grant is named: {}", grant.text());
    let status = client.get("/v1/plugins/counter").await?.ok()?;
    assert_eq!(status["deployment"]["version"], "1.0.0");
    assert_eq!(status["last_refusal"]["code"], "state_refused", "{status}");
    let plugins = client.get("/v1/plugins").await?.ok()?;
    assert_eq!(plugins["plugins"].as_array().map(Vec::len), Some(1), "nothing else came to be: {plugins}");
    // The good version and the grant are all that was missing.
    client.deploy("counter_v2").await?;
    assert_eq!(client.get("/v1/plugins/counter").await?.ok()?["deployment"]["version"], "2.0.0");
    let host = host
        .restart_with(|config| {
            config.plugins.entry("wants-clock".into()).or_default().grants = vec!["clock".into()]
        })
        .await?;
    host.client.deploy("wants_clock").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_in_the_plugins_folder_is_reported_and_the_old_version_serves() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, plugins) = (dir.path().join("store"), dir.path().join("plugins"));
    std::fs::create_dir(&plugins)?;
    let file = plugins.join("counter.wasm");
    std::fs::copy(guest("counter"), &file)?;
    let mut setup = Setup::new(workspace_binary("millrace"));
    setup.args.extend(["--plugins-dir".into(), plugins.clone().into()]);
    let host = HostProcess::start_as(setup, &data).await?;
    let client = Client::new(&host.url)?;
    client.wait_for("/v1/plugins/counter", |answer| answer.status == 200).await?;
    // Without an event there is no state to refuse.
    client.publish(event("k", 1)).await?;
    client.wait_for("/v1/tables/counters/k", |answer| answer.status == 200).await?;
    for (number, (what, component, code)) in bad_components()?.into_iter().enumerate() {
        std::fs::write(plugins.join(format!("bad-{number}.wasm")), component)?;
        until(&format!("{what} is reported"), || {
            let said = host.said();
            said.lines().any(|line| line.contains(&format!("bad-{number}.wasm")) && line.contains(code))
        })
        .await;
    }
    // The file of a running plugin, half copied; then whole.
    let next = std::fs::read(guest("counter_v2"))?;
    let reports =
        |code: &str| host.said().lines().filter(|l| l.contains("counter.wasm") && l.contains(code)).count();
    std::fs::write(&file, &next[..next.len() / 3])?;
    until("the half file is reported", || reports("not_a_component") == 1).await;
    client.publish(event("k", 2)).await?;
    client.wait_for("/v1/tables/counters/k", |a| a.json()["row"]["values"]["events"] == 2).await?;
    assert_eq!(client.get("/v1/plugins/counter").await?.ok()?["deployment"]["version"], "1.0.0");
    std::fs::write(&file, &next)?;
    let version = |answer: &Answer| answer.json()["deployment"]["version"] == "2.0.0";
    client.wait_for("/v1/plugins/counter", version).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_load_fails_alone_and_says_so() -> Result<()> {
    let host = Embedded::start_with(|config| {
        config.plugins.entry("endless-load".into()).or_default().call_ms_max = Some(300);
    })
    .await?;
    let client = &host.client;
    client.publish(event("k", 1)).await?;
    let refused = client.deploy_bytes(std::fs::read(guest("endless_load"))?).await?;
    client.deploy("counter").await?;
    client.wait_for("/v1/tables/counters/k", |answer| answer.status == 200).await?;
    let why = if refused.status == 200 {
        let failed = |answer: &Answer| answer.json()["state"] == "failed";
        client.wait_for("/v1/plugins/endless-load", failed).await?.json()["message"].to_string()
    } else {
        refused.text()
    };
    assert!(why.contains("guest_call_ms_max = 300"), "it says which bound it met: {why}");
    Ok(())
}
