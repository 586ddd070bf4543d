//! Claims about two tenants that use the same names on every path at once: each is alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use millrace::config::{Config, Right};
use millrace_tests::embedded::{Answer, Client, Embedded, token};
use reqwest::Method;
use serde_json::{Value, json};

/// A host with a token for each tenant, and an operator.
struct Pair {
    host: Embedded,
    alpha: Client,
    beta: Client,
    operator: Client,
}

const OWN: &[Right] = &[Right::Publish, Right::Read];

async fn pair(change: impl FnOnce(&mut Config)) -> Result<Pair> {
    let host = Embedded::start_with(|config| {
        config.auth.tokens = vec![
            token("token-of-alpha", "alpha", OWN),
            token("token-of-beta", "beta", OWN),
            token("token-of-operator", "operations", &[Right::Read, Right::Admin]),
        ];
        change(config);
    })
    .await?;
    let alpha = host.client.with_token("token-of-alpha")?;
    let beta = host.client.with_token("token-of-beta")?;
    let operator = host.client.with_token("token-of-operator")?;
    Ok(Pair { host, alpha, beta, operator })
}

fn event(owner: &str, agg_id: &str, version: u64, event_type: &str) -> Value {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": event_type,
        "at": "2026-01-01T00:00:00Z", "payload": {"owner": owner}})
}

/// The same 40 things for both; how often each changes is the tenant's own.
fn ndjson(owner: &str, changes: u64) -> String {
    let events = (1..=changes).flat_map(|version| (0..40).map(move |n| (n, version)));
    events
        .map(|(n, version)| event(owner, &format!("k{n:02}"), version, "changed").to_string() + "\n")
        .collect()
}

/// Publishes on every path there is, with the same ids, keys and versions whoever does it.
async fn publish_everywhere(client: &Client, owner: &str, changes: u64) -> Result<()> {
    for answer in client.publish(ndjson(owner, changes)).await? {
        ensure!(answer["repeated"] == false, "the other tenant's event answers for this one: {answer}");
    }
    let with_id = |mut event: Value, id: &str| {
        event["id"] = json!(id);
        event
    };
    let cloud = |id: &str, agg_id: &str| {
        json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "thing.changed", "subject": agg_id,
            "time": "2026-01-01T00:00:00Z", "aggregateversion": 1, "data": {"owner": owner}})
    };
    let (json, structured) = ("application/json", "application/cloudevents+json");
    for (content_type, body) in [
        (json, with_id(event(owner, "one", 1, "changed"), "json-1")),
        (
            json,
            json!([event(owner, "two", 1, "changed"), with_id(event(owner, "two", 2, "changed"), "json-2")]),
        ),
        (structured, cloud("cloud-1", "three")),
        ("application/cloudevents-batch+json", json!([cloud("cloud-2", "four"), cloud("cloud-3", "four")])),
    ] {
        let answer = client.post("/v1/events", content_type, body.to_string()).await?.ok()?;
        let events = answer["events"].as_array().context("an answer for each event")?;
        ensure!(events.iter().all(|event| event["repeated"] == false), "{content_type}: {answer}");
    }
    let binary = client
        .request(Method::POST, "/v1/events")
        .header("content-type", json)
        .header("ce-specversion", "1.0")
        .header("ce-id", "cloud-4")
        .header("ce-source", "/shop")
        .header("ce-type", "thing.changed")
        .header("ce-subject", "five")
        .header("ce-time", "2026-01-01T00:00:00Z")
        .body(json!({"owner": owner}).to_string());
    let answer = client.send(binary).await?.ok()?;
    ensure!(answer["events"][0]["repeated"] == false, "{answer}");
    Ok(())
}

/// What [`publish_everywhere`] publishes: 40 things, and seven events on other paths.
fn published(changes: u64) -> usize {
    usize::try_from(changes).expect("few") * 40 + 7
}

fn counts(changes: u64) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = (0..40).map(|n| (format!("k{n:02}"), changes)).collect();
    counts
        .extend([("one", 1), ("two", 2), ("three", 1), ("four", 2), ("five", 1)].map(|(k, n)| (k.into(), n)));
    counts
}

async fn table(client: &Client, table: &str) -> Result<BTreeMap<String, u64>> {
    let rows = client.rows(table, "limit=7").await?;
    let count = |row: &Value| {
        let key = row["key"].as_str().context("a row has a key")?;
        Ok((key.to_owned(), row["values"]["events"].as_u64().context("a count")?))
    };
    rows.iter().map(count).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_keys_on_every_path_at_once_stay_apart() -> Result<()> {
    let pair = pair(|_| {}).await?;
    // One keeps its counts in a snapshot, the other in keyed state.
    for name in ["counter", "keyed"] {
        pair.operator.deploy(name).await?;
    }
    let both =
        tokio::join!(publish_everywhere(&pair.alpha, "alpha", 6), publish_everywhere(&pair.beta, "beta", 11));
    both.0?;
    both.1?;
    // A scan over all of a tenant's keyed state.
    for (client, owner) in [(&pair.alpha, "alpha"), (&pair.beta, "beta")] {
        client.publish(event(owner, "total", 1, "keyed.sum").to_string()).await?;
    }
    pair.operator.settle().await?;
    for (client, owner, changes) in [(&pair.alpha, "alpha", 6), (&pair.beta, "beta", 11)] {
        let mut counters = table(client, "counters").await?;
        assert_eq!(counters.remove("total"), Some(1));
        assert_eq!(counters, counts(changes), "{owner}");
        let mut keyed = table(client, "keyed_counts").await?;
        let sum = keyed.remove("total").context("the sum has a row")?;
        assert_eq!(keyed, counts(changes), "{owner}");
        assert_eq!(usize::try_from(sum)?, published(changes), "{owner} scans its own entries only");

        let events = client.events("").await?;
        assert_eq!(events.len(), published(changes) + 1, "{owner}");
        assert!(events.iter().all(|event| event["payload"]["owner"] == owner), "{owner}");
        let ids: BTreeSet<&str> = events.iter().filter_map(|event| event["id"].as_str()).collect();
        assert_eq!(ids.len(), events.len(), "each event of {owner} has an id of its own");
    }
    assert_eq!(pair.operator.events("").await?, [] as [Value; 0], "an operator is a tenant, too");
    assert_eq!(pair.operator.rows("counters", "").await?, [] as [Value; 0]);
    // What is kept survives as what it was.
    let host = pair.host.restart().await?;
    let (alpha, beta) = (host.client.with_token("token-of-alpha")?, host.client.with_token("token-of-beta")?);
    alpha.publish(event("alpha", "k00", 7, "changed").to_string()).await?;
    host.client.with_token("token-of-operator")?.settle().await?;
    for name in ["counters", "keyed_counts"] {
        assert_eq!((table(&alpha, name).await?["k00"], table(&beta, name).await?["k00"]), (7, 11), "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dedup_answers_are_the_tenants_own() -> Result<()> {
    let pair = pair(|_| {}).await?;
    let named = |owner: &str| {
        let mut event = event(owner, "k", 1, "changed");
        event["id"] = json!("the-same");
        event.to_string()
    };
    let post =
        async |client: &Client, body: String| client.post("/v1/events", "application/json", body).await;
    let first = post(&pair.alpha, named("alpha")).await?.ok()?["events"][0].clone();
    let other = post(&pair.beta, named("beta")).await?.ok()?["events"][0].clone();
    assert_eq!((&first["repeated"], &other["repeated"]), (&json!(false), &json!(false)));
    assert_ne!(first["position"], other["position"]);
    // The repeat answers the own first position; other content is a conflict with the own event.
    for (client, owner, foreign, known) in
        [(&pair.alpha, "alpha", "beta", &first), (&pair.beta, "beta", "alpha", &other)]
    {
        let again = post(client, named(owner)).await?.ok()?["events"][0].clone();
        assert_eq!((&again["repeated"], &again["position"]), (&json!(true), &known["position"]), "{owner}");
        let conflict = post(client, named(foreign)).await?;
        assert_eq!(conflict.refusal(), (409, "event_id_taken".into()));
    }
    // A derived id tells the tenants apart as well.
    let derived = event("same", "derived", 1, "changed").to_string();
    let alpha = post(&pair.alpha, derived.clone()).await?.ok()?;
    let beta = post(&pair.beta, derived).await?.ok()?;
    assert_eq!(beta["events"][0]["repeated"], false);
    assert_ne!(alpha["events"][0]["id"], beta["events"][0]["id"]);
    Ok(())
}

/// Begins to follow the stream; what is published from now on is behind its `newest`.
async fn open(client: &Client, query: &str, last_id: Option<&str>) -> Result<reqwest::Response> {
    let mut request = client
        .request(Method::GET, &format!("/v1/streams/events{query}"))
        .header("accept", "text/event-stream");
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    Ok(request.send().await?.error_for_status()?)
}

/// Reads server-sent events until `events` with data of the stream have come. Answers them with their ids.
async fn follow(answer: reqwest::Response, events: usize) -> Result<Vec<(String, Value)>> {
    let mut stream = answer.bytes_stream();
    let (mut text, mut found) = (String::new(), Vec::new());
    let read = async {
        while found.len() < events {
            let chunk = stream.next().await.context("the stream goes on")??;
            text.push_str(std::str::from_utf8(&chunk)?);
            while let Some((frame, rest)) = text.split_once("\n\n") {
                let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
                if field("event: ").is_none()
                    && let (Some(id), Some(data)) = (field("id: "), field("data: "))
                {
                    found.push((id.to_owned(), serde_json::from_str(data)?));
                }
                text = rest.to_owned();
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), read).await.context("too few events came")??;
    // A chunk may hold more than was asked for.
    found.truncate(events);
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tails_and_foreign_cursors_show_own_events_only() -> Result<()> {
    let pair = pair(|_| {}).await?;
    pair.alpha.publish(event("alpha", "before", 1, "changed").to_string()).await?;
    pair.beta.publish(event("beta", "before", 1, "changed").to_string()).await?;
    let from_oldest = open(&pair.alpha, "?after=oldest", None).await?;
    let from_newest = open(&pair.beta, "?after=newest", None).await?;
    let (alpha, beta, uploads) = tokio::join!(follow(from_oldest, 121), follow(from_newest, 280), async {
        tokio::try_join!(pair.alpha.publish(ndjson("alpha", 3)), pair.beta.publish(ndjson("beta", 7)))
    });
    uploads?;
    let alpha = alpha?;
    assert!(alpha.iter().all(|(_, event)| event["payload"]["owner"] == "alpha"));
    let beta = beta?;
    assert!(beta.iter().all(|(_, event)| event["payload"]["owner"] == "beta" && event["agg_id"] != "before"));

    // Cursors of the other tenant are places in the log; what they open is still one's own.
    let all = pair.beta.events("").await?;
    for (cursor, _) in alpha.iter().step_by(40) {
        let page = pair.beta.get(&format!("/v1/streams/events?after={cursor}&limit=4096")).await?.ok()?;
        let events = page["events"].as_array().context("events")?;
        assert!(events.iter().all(|event| event["payload"]["owner"] == "beta"));
        assert_eq!(all[all.len() - events.len()..], events[..], "exactly those after the place");
    }
    // A resumed tail: beta's own first event behind alpha's first.
    let expected = pair.beta.get(&format!("/v1/streams/events?after={}&limit=5", alpha[0].0)).await?.ok()?;
    let resumed = follow(open(&pair.beta, "", Some(&alpha[0].0)).await?, 5).await?;
    for (index, (_, event)) in resumed.iter().enumerate() {
        assert_eq!(event, &expected["events"][index]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_cursors_and_etags_are_the_tenants_own() -> Result<()> {
    let pair = pair(|_| {}).await?;
    pair.operator.deploy("counter").await?;
    pair.alpha.publish(ndjson("alpha", 2)).await?;
    pair.alpha.publish(event("alpha", "secret", 1, "changed").to_string()).await?;
    pair.beta.publish(ndjson("beta", 3)).await?;
    pair.operator.settle().await?;

    let page = pair.alpha.get("/v1/tables/counters?order=events&limit=10").await?.ok()?;
    let cursor = page["next"].as_str().context("there are more")?;
    let query = format!("/v1/tables/counters?order=events&limit=1000&cursor={cursor}");
    let foreign = pair.beta.get(&query).await?.ok()?;
    let rows = foreign["rows"].as_array().context("rows")?;
    assert!(rows.iter().all(|row| row["values"]["events"] == 3), "{foreign}");

    assert_eq!(pair.alpha.get("/v1/tables/counters/secret").await?.status, 200);
    let missing = pair.beta.get("/v1/tables/counters/secret").await?;
    assert_eq!(missing.refusal(), (404, "row_unknown".into()));
    let found = pair.beta.get("/v1/tables/counters?where=events:eq:1").await?.ok()?;
    assert_eq!(found["rows"], json!([]), "a condition reaches no further than a page does");

    for path in ["/v1/tables/counters", "/v1/tables/counters/k00"] {
        let tag = pair.alpha.get(path).await?.etag.context("rows have an ETag")?;
        let ask = async |client: &Client| -> Result<Answer> {
            client.send(client.request(Method::GET, path).header("if-none-match", &tag)).await
        };
        assert_eq!(ask(&pair.alpha).await?.status, 304, "{path}: nothing has changed for alpha");
        let other = ask(&pair.beta).await?;
        assert_eq!(other.status, 200, "{path}: beta has never seen what alpha's tag stands for");
        assert!(!other.text().contains("alpha"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_dead_letters_tell_nothing_of_another_tenant() -> Result<()> {
    let pair = pair(|_| {}).await?;
    for name in ["rejecter", "fatal", "counter"] {
        pair.operator.deploy(name).await?;
    }
    for (client, owner) in [(&pair.alpha, "alpha"), (&pair.beta, "beta")] {
        client.publish(event(owner, "shared", 1, "changed").to_string()).await?;
    }
    pair.operator.settle().await?;
    // Rejected by one plugin; another stops for this tenant over it, and says so in the guest's words.
    pair.alpha.publish(event("alpha", "secret-of-alpha", 1, "poison").to_string()).await?;
    let failed = |answer: &Answer| answer.json()["state"] == "failed";
    let status = pair.operator.wait_for("/v1/plugins/fatal", failed).await?;
    assert!(status.text().contains("alpha"), "the operator sees why: {}", status.text());
    let dead = |answer: &Answer| answer.json()["dead_letters"].as_array().is_some_and(|all| !all.is_empty());
    let letters = pair.alpha.wait_for("/v1/plugins/rejecter/dead-letters", dead).await?.json();
    assert_eq!(letters["dead_letters"][0]["event"]["agg_id"], "secret-of-alpha");
    assert_eq!(letters["dead_letters"][0]["event"]["payload"], json!({"owner": "alpha"}));

    for path in [
        "/v1/plugins",
        "/v1/plugins/fatal",
        "/v1/plugins/rejecter",
        "/v1/plugins/rejecter/dead-letters",
        "/v1/plugins/rejecter/history",
        "/v1/plugins/counter",
        "/v1/tables",
    ] {
        let text = pair.beta.get(path).await?;
        assert_eq!(text.status, 200, "{path}");
        assert!(!text.text().contains("alpha"), "{path} tells beta: {}", text.text());
    }
    let all = "/v1/plugins/rejecter/dead-letters?all_tenants=true";
    assert_eq!(pair.beta.get(all).await?.refusal(), (403, "right_missing".into()));
    assert_eq!(pair.operator.get(all).await?.ok()?["dead_letters"].as_array().map(Vec::len), Some(1));
    assert_eq!(pair.beta.get("/metrics").await?.refusal(), (403, "right_missing".into()));
    for change in ["pause", "resume"] {
        let answer =
            pair.beta.post(&format!("/v1/plugins/rejecter/{change}"), "application/json", "").await?;
        assert_eq!(answer.refusal(), (403, "right_missing".into()));
    }

    // What stopped for alpha goes on for beta.
    pair.beta.publish(event("beta", "after", 1, "changed").to_string()).await?;
    for table in ["fatal_seen", "rejecter_seen", "counters"] {
        let path = format!("/v1/tables/{table}/after");
        pair.beta.wait_for(&path, |answer| answer.status == 200).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_hangs_for_one_tenant_serves_the_other() -> Result<()> {
    // More lanes than the plugin has threads, and calls far longer than this test: whoever waits for them fails.
    let pair = pair(|config| {
        let settings = config.plugins.entry("endless-handle".into()).or_default();
        settings.lanes = Some(16);
        settings.call_ms_max = Some(100_000);
    })
    .await?;
    for name in ["endless-handle", "counter"] {
        pair.operator.deploy(name).await?;
    }
    let poison: String =
        (0..64).map(|n| event("alpha", &format!("p{n}"), 1, "poison").to_string() + "\n").collect();
    pair.alpha.publish(poison).await?;
    // The other plugin has its own share of the threads.
    pair.alpha.wait_for("/v1/tables/counters/p63", |answer| answer.status == 200).await?;
    pair.beta.publish(ndjson("beta", 2)).await?;
    for n in 0..40 {
        let path = format!("/v1/tables/endless_seen/k{n:02}");
        pair.beta
            .wait_for(&path, |answer| answer.json()["row"]["values"]["event_version"] == 2)
            .await
            .context("beta's rows come while alpha's lanes hang")?;
    }
    let status = pair.operator.get("/v1/plugins/endless-handle").await?.ok()?;
    assert!(status["lag_events"].as_u64() > Some(0), "alpha's lanes still hang: {status}");
    assert_eq!(status["counters"]["dead_letters"], 0, "{status}");
    Ok(())
}
