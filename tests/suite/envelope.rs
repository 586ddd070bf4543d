//! Claims about events from one end to the other: types, errors, deletes, digits, upcasts of a configuration.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use millrace::checkpoints::CommitError;
use millrace::config::{Config, Layers, LogAddress};
use millrace::error::{BackendError, Blame, Classify, RemoteFault, Retry};
use millrace::event::{Event, EventBatch, InvalidEvent, TenantId};
use millrace::streams::groups::GroupError;
use millrace::streams::upcast::{DeclaredUpcast, InvalidUpcast, UpcastStep, Upcasters};
use millrace::streams::{AggregateScopes, Scope, StreamError};
use millrace::tables::TableError;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::redis_server::{Engine, RedisServer};
use reqwest::Method;
use serde_json::{Value, json};

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn event(agg_id: &str, version: u64, kind: &str, payload: &Value) -> String {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": kind, "payload": payload})
        .to_string()
}

/// The reference knows three verbs. Here a type is a name like any other, `{aggregate}.{verb}` by custom, and readers
/// choose by the whole of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_an_event_type_is_a_name_and_readers_choose_by_it() -> Result<()> {
    let host = Embedded::start().await?;
    let types = ["thing.created", "thing.updated", "thing.deleted", "thing", "größer", "a b"];
    for (version, kind) in (1..).zip(types) {
        host.client.publish(event("a", version, kind, &json!({}))).await?;
    }
    let kinds = |events: Vec<Value>| {
        events.iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(host.client.events("").await?), types);
    assert_eq!(
        kinds(host.client.events("thing.created,thing.deleted").await?),
        ["thing.created", "thing.deleted"]
    );
    assert_eq!(kinds(host.client.events("thing").await?), ["thing"], "not what begins with it");
    let mut batch = EventBatch::new(tenant("acme"));
    let bad = Event { aggregate: "a", agg_id: "1", event_type: "a\nb", ..Event::default() };
    assert_eq!(batch.push(&bad), Err(InvalidEvent::ControlCharacter { field: "type" }));
    Ok(())
}

#[test]
fn c21_an_error_of_a_backend_keeps_its_code_and_its_blame_through_every_layer() {
    let remote = |fault| BackendError::Remote { fault, detail: "redis, reading: …".into() };
    for error in [
        BackendError::Closed,
        BackendError::DiskFull { detail: "ENOSPC".into() },
        remote(RemoteFault::Unreachable),
        remote(RemoteFault::Denied),
        remote(RemoteFault::Timeout),
    ] {
        let layers: [&dyn Classify; 4] = [
            &StreamError::from(error.clone()),
            &TableError::from(error.clone()),
            &CommitError::from(error.clone()),
            &GroupError::from(error.clone()),
        ];
        for layer in layers {
            assert_eq!(
                (layer.code(), layer.retry(), layer.blame()),
                (error.code(), error.retry(), Blame::Host)
            );
        }
    }
    assert_ne!(remote(RemoteFault::Timeout).retry(), Retry::Never, "it may come back");
    assert_eq!(remote(RemoteFault::Denied).retry(), Retry::Never, "somebody has to correct it");
}

async fn mirror(config: impl FnOnce(&mut Config)) -> Result<Embedded> {
    let host = Embedded::start_with(config).await?;
    ensure!(host.host().wait_ready().await, "it serves");
    host.client.deploy("mirror").await?;
    Ok(host)
}

async fn row(client: &Client, key: &str) -> Result<Value> {
    client.settle().await?;
    Ok(client.get(&format!("/v1/tables/mirror/{key}")).await?.json())
}

/// A server for a host's log; none where the host keeps it itself.
type Server = Option<RedisServer>;

fn no_server() -> Server {
    None
}

fn a_redis() -> Server {
    Some(RedisServer::durable(Engine::Redis))
}

fn a_valkey() -> Server {
    Some(RedisServer::durable(Engine::Valkey))
}

async fn fed_by(server: &Server) -> Result<Embedded> {
    let log = server.as_ref().map(|server| LogAddress(server.url()));
    mirror(|config| config.serve.log = log).await
}

async fn late_upserts(server: Server) -> Result<()> {
    let host = fed_by(&server).await?;
    let client = &host.client;
    for (version, kind, n) in [
        (1, "thing.created", Some(1)),
        (5, "thing.deleted", None),
        (3, "thing.updated", None),
        (4, "thing.updated", None),
        (6, "thing.created", Some(6)),
        (2, "thing.updated", Some(6)),
        (7, "thing.deleted", None),
    ] {
        client.publish(event("a", version, kind, &json!({"n": version}))).await?;
        let row = row(client, "a").await?;
        match n {
            Some(n) => assert_eq!(row["row"]["values"]["n"], n, "after version {version}"),
            None => assert_eq!(row["code"], "row_unknown", "after version {version}: {row}"),
        }
    }
    // A delete that overtook the creation.
    client.publish(event("b", 2, "thing.deleted", &json!({}))).await?;
    client.publish(event("b", 1, "thing.created", &json!({"n": 1}))).await?;
    assert_eq!(row(client, "b").await?["code"], "row_unknown");
    let host = host.restart().await?;
    ensure!(host.host().wait_ready().await, "it serves");
    let again = json!({"id": "again", "aggregate": "thing", "agg_id": "a", "version": 3, "type": "thing.updated", "payload": {"n": 3}});
    host.client.publish(again.to_string()).await?;
    assert_eq!(row(&host.client, "a").await?["code"], "row_unknown", "it is remembered");
    Ok(())
}

async fn large_integers(server: Server) -> Result<()> {
    let host = fed_by(&server).await?;
    let client = &host.client;
    let payload =
        r#"{"n":9007199254740993,"min":-9223372036854775808,"u":18446744073709551615,"f":1.10,"e":1e2}"#;
    let body = format!(
        r#"{{"aggregate":"thing","agg_id":"a","version":1,"type":"thing.created","payload":{payload}}}"#
    );
    client.publish(body).await?;
    client.settle().await?;
    // The second time from the cache.
    for _ in 0..2 {
        let answer = client.get("/v1/tables/mirror/a").await?;
        assert!(answer.text().contains(r#""n":9007199254740993"#), "{}", answer.text());
        assert_eq!(answer.json()["row"]["values"]["payload"], payload);
    }
    let rows = client.get("/v1/tables/mirror?limit=1").await?;
    assert!(rows.text().contains(r#""n":9007199254740993"#), "{}", rows.text());
    Ok(())
}

/// What a host's rows are, wherever the log is that they are made from.
macro_rules! fed_by {
    ($backend:ident, $server:ident) => {
        mod $backend {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sn20_a_late_older_upsert_does_not_bring_a_deleted_row_back() {
                Box::pin(super::late_upserts(super::$server())).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sn23_integers_beyond_2_to_the_53_reach_a_projection_with_every_digit() {
                Box::pin(super::large_integers(super::$server())).await.unwrap();
            }
        }
    };
}

fed_by!(sqlite, no_server);
fed_by!(redis, a_redis);
fed_by!(valkey, a_valkey);

// Upcasts of a configuration.

const CONFIG: &str = r#"
[[upcasters]]
type = "thing.changed"
from = 1
steps = [{ rename = { number = "n" } }, { default = { unit = "m", big = 9007199254740993 } }]

[[upcasters]]
type = "thing.changed"
from = 2
steps = [{ remove = ["obsolete"] }]
"#;

fn configured(toml: &str) -> Result<Config> {
    let file = tempfile::NamedTempFile::with_suffix(".toml")?;
    std::fs::write(file.path(), toml)?;
    let mut layers = Layers::new();
    Ok(layers.file(file.path())?.resolve()?.config)
}

fn upcast(toml: &str, payload: &str) -> Result<String, String> {
    let mut upcasters = Upcasters::default();
    upcasters.declare(&configured(toml).map_err(|error| error.to_string())?.upcasters).unwrap();
    let event = Event { event_type: "thing.changed", payload: payload.as_bytes(), ..Event::default() };
    let (payload, version) = upcasters.apply(&event)?.expect("it has a step");
    assert_eq!(version, 3);
    Ok(String::from_utf8(payload).unwrap())
}

#[test]
fn c05_sn23_steps_of_a_configuration_are_applied_in_order_and_keep_what_they_do_not_name() {
    let payload =
        r#"{ "number" : 9007199254740993, "f":1.10, "in":{"number": 1e2}, "obsolete":1, "\u00fc":null }"#;
    let newest =
        r#"{"n":9007199254740993,"f":1.10,"in":{"number": 1e2},"ü":null,"big":9007199254740993,"unit":"m"}"#;
    assert_eq!(upcast(CONFIG, payload).as_deref(), Ok(newest));
    let there = r#"{"unit":null,"big":0}"#;
    assert_eq!(upcast(CONFIG, there).as_deref(), Ok(there), "what is there stays, null too");
    assert!(upcast(CONFIG, r#"{"number":1,"n":2}"#).unwrap_err().contains("a member `n` already"));
    for payload in ["7", "null", "[1]", "\"text\""] {
        assert!(upcast(CONFIG, payload).unwrap_err().contains("no JSON object"), "{payload}");
    }
    let swap =
        CONFIG.replace(r#"{ number = "n" }"#, r#"{ a = "b", b = "a" }"#).replace(r#"unit = "m", "#, "");
    assert_eq!(upcast(&swap, r#"{"a":1,"b":2,"big":3}"#).as_deref(), Ok(r#"{"b":1,"a":2,"big":3}"#));
}

#[test]
fn c07_upcasters_of_a_configuration_that_cannot_be_meant_are_refused_with_a_sentence() {
    let one = |from: u32| format!("[[upcasters]]\ntype = \"t\"\nfrom = {from}\nsteps = []\n");
    let with = |text: &str| one(1).replace("steps = []", text);
    for (toml, said) in [
        (one(1) + &one(1), "`t` has two upcasts from schema version 1"),
        (one(1) + &one(3), "none takes it from schema version 2 to 3"),
        (one(0), "schema version 0; they count from 1"),
        (one(1).replace("\"t\"", "\"\""), "names no event type"),
        (with("steps = [{ renam = { a = \"b\" } }]"), "renam"),
        (with("steps = [{ rename = { a = \"x\", b = \"x\" } }]"), "two members the name `x`"),
        (with("steps = [{ remove = \"a\" }]"), "upcasters"),
        (with("steps = []\nto = 2"), "to"),
        (with(""), "steps"),
    ] {
        let error = configured(&toml).map(drop).expect_err(&toml).to_string();
        assert!(error.contains(said), "`{said}` in `{error}`");
        assert!(error.contains("upcasters"), "it names the key: {error}");
    }
    assert_eq!(configured(&(one(2) + &one(3) + &one(4))).unwrap().upcasters.len(), 3);
    let step = UpcastStep::Remove(vec!["a".into()]);
    let twice = DeclaredUpcast { event_type: "t".into(), from: 1, steps: vec![step] };
    let mut upcasters = Upcasters::default();
    upcasters.declare(std::slice::from_ref(&twice)).unwrap();
    let again = upcasters.declare(&[twice]);
    assert_eq!(
        again,
        Err(InvalidUpcast::Twice { event_type: "t".into(), from: 1 }),
        "also beside those in Rust"
    );
}

/// The first event of this type that a stream of server-sent events tells.
async fn first_told(client: &Client, path: &str) -> Result<Value> {
    let request = client.request(Method::GET, path).header("accept", "text/event-stream");
    let mut body = request.send().await?.error_for_status()?.bytes_stream();
    let mut seen = String::new();
    while let Some(chunk) = body.next().await {
        seen.push_str(std::str::from_utf8(&chunk?)?);
        let whole = seen.rfind('\n').unwrap_or(0);
        let data = seen[..whole].lines().filter_map(|line| line.strip_prefix("data: "));
        let mut events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        if let Some(event) = events.find(|event| event.get("payload").is_some()) {
            return Ok(event);
        }
    }
    anyhow::bail!("{path} ended: {seen}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_every_consumer_over_http_sees_what_the_configuration_makes_of_an_earlier_version() -> Result<()>
{
    let upcasters = configured(CONFIG)?.upcasters;
    let host = mirror(|config| config.upcasters = upcasters).await?;
    let client = &host.client;
    let scopes = AggregateScopes { aggregate: "thing".into(), scopes: vec![Scope::Id] };
    host.host().log().declare_scopes("test", &[scopes]).await?;
    let group = "/v1/streams/events/groups/billing";
    let made = client.request(Method::PUT, group).header("content-type", "application/json").body("{}");
    client.send(made).await?.ok()?;
    client.publish(event("a", 1, "thing.changed", &json!({"number": 7, "obsolete": true}))).await?;
    let newest = json!({"n": 7, "big": 9_007_199_254_740_993_u64, "unit": "m"});

    let is_newest = |how: &str, event: &Value| {
        assert_eq!((&event["payload"], &event["schema_version"]), (&newest, &json!(3)), "{how}: {event}");
    };
    is_newest("range", &client.events("").await?[0]);
    is_newest("tail", &first_told(client, "/v1/streams/events?after=oldest").await?);
    let read = client
        .post(&format!("{group}/read"), "application/json", r#"{"consumer":"c","limit":1}"#)
        .await?
        .ok()?;
    let entry = read["entries"][0].clone();
    is_newest("group", entry.get("event").unwrap_or(&entry));
    let changes = client.get("/v1/changes/thing/id/a?after=oldest").await?.ok()?;
    is_newest("change stream", &changes["events"][0]);
    let row = row(client, "a").await?;
    let values = row.get("row").context("the processor wrote it")?["values"].clone();
    assert_eq!((&values["n"], &values["schema_version"]), (&json!(7), &json!(3)), "processor");
    assert_eq!(serde_json::from_str::<Value>(values["payload"].as_str().context("text")?)?, newest);
    Ok(())
}
