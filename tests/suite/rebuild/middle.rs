//! Rebuilds that begin in the middle of the log.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use millrace::cli::Exit;
use millrace::plugins::{DeployFrom, DeployRequest, PluginControl, RebuildRequest, StartFrom};
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::flights;
use millrace_tests::guests::guest;
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{Rig, borrowed, many, rebuild, request};
use crate::commands::ran;

const PATH: &str = "/v1/plugins/flight-board/rebuild";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_from_the_middle_equals_a_fresh_deploy_from_there() {
    let (mut rig, fresh) = (Rig::new(), Rig::new());
    rig.deploy("alpha 1").await.expect("it is deployed");
    let (before, mut after) = (many(400, 20, "add"), many(300, 30, "add"));
    after.extend(many(90, 9, "remember"));
    let mut middle = Vec::new();
    for rig in [&rig, &fresh] {
        middle.push(rig.publish(&borrowed(&before)).await);
        rig.publish(&borrowed(&after)).await;
    }
    assert_eq!(middle[0], middle[1]);
    let from = DeployFrom::After(middle[0].0);
    rig.settle("alpha").await;
    let all = rig.rows("counts_alpha").await;
    let wanted = RebuildRequest { from, ..rebuild("alpha", Some("alpha 2")) };
    let begun = rig.registry.rebuild(wanted).await.expect("it begins");
    assert_eq!((begun.from, begun.start), (StartFrom::After(middle[0].0), middle[0].0));
    let view = rig.flipped("alpha").await;
    assert!(view.report.expect("it tells what it did").is_exact());
    let deploy = DeployRequest { from, ..request("alpha 2", "api:test") };
    fresh.registry.deploy(deploy).await.expect("it is deployed");
    for rig in [&rig, &fresh] {
        rig.settle("alpha").await;
    }
    let rebuilt = rig.rows("counts_alpha").await;
    assert_eq!(rebuilt, fresh.rows("counts_alpha").await);
    assert_eq!(rebuilt.values().map(|(count, _)| count).sum::<i64>(), 300 + 90);
    assert_ne!(rebuilt, all);
    assert_eq!(rig.show("alpha").await.deployment.from, fresh.show("alpha").await.deployment.from);
    // Both go on alike, and from where they are after a restart.
    rig.restart().await;
    for rig in [&rig, &fresh] {
        rig.publish(&borrowed(&before)).await;
        rig.settle("alpha").await;
    }
    assert_eq!(rig.rows("counts_alpha").await, fresh.rows("counts_alpha").await);
    rig.swept().await;
}

fn upload(events: usize) -> Result<String> {
    Ok(flights::lines()?[..events].iter().flat_map(|line| [line.as_str(), "\n"]).collect())
}

/// The cursor behind so many events of the log.
async fn cursor(client: &Client, events: usize) -> Result<String> {
    let page = client.get(&format!("/v1/streams/events?limit={events}")).await?.ok()?;
    ensure!(page["events"].as_array().is_some_and(|found| found.len() == events), "they fit one page");
    Ok(page["next"].as_str().context("a page has a next cursor")?.to_owned())
}

async fn rows(client: &Client) -> Result<BTreeMap<String, Json>> {
    let rows = client.rows("flights", "order=dep_delay_min:desc&limit=50").await?;
    Ok(rows.into_iter().map(|row| (row["key"].to_string(), row["values"].clone())).collect())
}

/// What a plugin makes of flights that was deployed behind so many of them.
async fn deployed_behind(events: usize, upload: &str) -> Result<BTreeMap<String, Json>> {
    let host = Embedded::start().await?;
    host.client.publish(upload.to_owned()).await?;
    let path = format!("/v1/plugins?from={}", cursor(&host.client, events).await?);
    host.client.post(&path, "application/wasm", std::fs::read(guest("flight-board"))?).await?.ok()?;
    host.client.settle().await?;
    rows(&host.client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_begins_behind_a_cursor_over_http_and_from_the_command_line() -> Result<()> {
    let upload = upload(900)?;
    let host = Embedded::start().await?;
    let client = &host.client;
    client.publish(upload.clone()).await?;
    client.deploy("flight-board").await?;
    client.settle().await?;
    let all = rows(client).await?;

    let from = cursor(client, 400).await?;
    let (_, position) = from.split_once('.').context("a cursor has a position")?;
    let position: u64 = position.parse()?;
    let begun = client.send(client.request(Method::POST, &format!("{PATH}?from={from}"))).await?;
    assert_eq!(begun.status, 202, "{}", begun.text());
    let begun = begun.json();
    assert_eq!((&begun["from"], &begun["start"]), (&json!({ "after": position }), &json!(position)));
    client.wait_for(PATH, |answer| answer.json()["stage"] == "flipped").await?;
    client.settle().await?;
    let rebuilt = rows(client).await?;
    assert_eq!(rebuilt, deployed_behind(400, &upload).await?);
    assert!(!rebuilt.is_empty() && rebuilt != all, "it has left something out");
    let plugin = client.get("/v1/plugins/flight-board").await?.ok()?;
    assert_eq!(plugin["deployment"]["from"], json!({ "after": position }));

    let (from, url) = (cursor(client, 700).await?, client.url().to_owned());
    let asked = ["plugin", "rebuild", "flight-board", "--from", &from, "--wait", "--url", &url];
    ran(&asked).await.0.expect("it takes over");
    client.settle().await?;
    let fewer = rows(client).await?;
    assert_eq!(fewer, deployed_behind(700, &upload).await?);
    assert!(!fewer.is_empty() && fewer != rebuilt, "it has left out more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_the_log_does_not_have_is_refused() -> Result<()> {
    let host = Embedded::start_with(|config| config.store.retention_events = Some(300)).await?;
    let client = &host.client;
    client.publish(upload(900)?).await?;
    let newest = client.get("/v1/streams/events?after=newest").await?.ok()?["next"].clone();
    let newest = newest.as_str().context("a page has a next cursor")?;
    let (epoch, _) = newest.split_once('.').context("a cursor is of an epoch")?;
    let trimmed = format!("{epoch}.1");
    let path = format!("/v1/streams/events?after={trimmed}");
    client.wait_for(&path, |answer| answer.refusal().1 == "position_lost").await?;
    client.deploy("flight-board").await?;
    client.settle().await?;
    let before = rows(client).await?;
    let ahead = format!("{epoch}.999999");
    for (from, status, code) in [
        ("other.1", 410, "cursor_foreign"),
        ("somewhere", 400, "cursor_invalid"),
        (trimmed.as_str(), 410, "position_lost"),
        (ahead.as_str(), 409, "rebuild_refused"),
    ] {
        let refused = client.send(client.request(Method::POST, &format!("{PATH}?from={from}"))).await?;
        assert_eq!(refused.refusal(), (status, code.to_owned()), "{from}: {}", refused.text());
        let asked = ["plugin", "rebuild", "flight-board", "--from", from, "--url", client.url()];
        let error = ran(&asked).await.0.expect_err("it is refused there, too");
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        assert!(error.sentence().contains(code), "{from}: {error}");
    }
    assert_eq!(client.get(PATH).await?.refusal(), (404, "rebuild_none".into()), "nothing was begun");
    assert_eq!(rows(client).await?, before);
    Ok(())
}
