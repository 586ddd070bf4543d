//! Rebuilds over HTTP and from the command line.

use anyhow::Result;
use millrace::config::Right;
use millrace_tests::embedded::{Embedded, token};
use millrace_tests::flights;
use millrace_tests::guests::guest;
use reqwest::Method;

use crate::commands::ran;

const PATH: &str = "/v1/plugins/flight-board/rebuild";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_is_begun_watched_and_refused_over_http() -> Result<()> {
    let host = Embedded::start_with(|config| {
        let everything = &[Right::Publish, Right::Read, Right::Admin];
        config.auth.tokens =
            vec![token("all", "default", everything), token("some", "default", &[Right::Read])];
    })
    .await?;
    let (all, some) = (host.client.with_token("all")?, host.client.with_token("some")?);
    let lines: Vec<String> = flights::lines()?.into_iter().take(1_000).collect();
    all.publish(lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>()).await?;
    all.deploy("flight-board").await?;
    all.settle().await?;
    let order = "order=dep_delay_min:desc&limit=50";
    let values = |rows: Vec<serde_json::Value>| -> Vec<_> {
        rows.into_iter().map(|row| (row["key"].clone(), row["values"].clone())).collect()
    };
    let before = values(all.rows("flights", order).await?);
    assert!(!before.is_empty(), "there are rows to fill anew");

    assert_eq!(all.get(PATH).await?.refusal(), (404, "rebuild_none".into()));
    assert_eq!(some.get(PATH).await?.refusal(), (403, "right_missing".into()));
    let refused = some.post(PATH, "application/wasm", "").await?;
    assert_eq!(refused.refusal(), (403, "right_missing".into()));
    let refused = all.post(PATH, "text/plain", "no component").await?;
    assert_eq!(refused.refusal(), (415, "content_type_unsupported".into()));
    let refused = all.send(all.request(Method::POST, &format!("{PATH}?lanes=many"))).await?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let refused = all.send(all.request(Method::POST, &format!("{PATH}?lanes=0"))).await?;
    assert_eq!(refused.refusal(), (409, "rebuild_refused".into()));

    let begun = all.send(all.request(Method::POST, &format!("{PATH}?lanes=3"))).await?;
    assert_eq!(begun.status, 202, "{}", begun.text());
    let begun = begun.json();
    assert_eq!((begun["plugin"].as_str(), begun["lanes"].as_u64()), (Some("flight-board"), Some(3)));
    let ended = all.wait_for(PATH, |answer| answer.json()["stage"] == "flipped").await?.json();
    assert_eq!(ended["number"], begun["number"]);
    assert!(ended["report"]["revision"].as_u64() > Some(0), "{ended}");
    all.settle().await?;
    assert_eq!(values(all.rows("flights", order).await?), before);
    let plugin = all.get("/v1/plugins/flight-board").await?.ok()?;
    assert_eq!(plugin["deployment"]["lanes"], 3);
    let refused = all.send(all.request(Method::DELETE, PATH)).await?;
    assert_eq!(refused.refusal(), (404, "rebuild_none".into()));

    // The version comes with the request where it is another one.
    let begun = all.post(PATH, "application/wasm", std::fs::read(guest("carrier-stats"))?).await?;
    assert_eq!(begun.refusal().1, "plugin_other_name");
    let begun = all.post(PATH, "application/wasm", std::fs::read(guest("flight-board"))?).await?;
    assert_eq!(begun.status, 202, "{}", begun.text());
    let number = begun.json()["number"].clone();
    let ended = |view: serde_json::Value| view["stage"] == "flipped" && view["number"] == number;
    all.wait_for(PATH, |answer| ended(answer.json())).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_waits_until_the_new_tables_are_there() -> Result<()> {
    let host = Embedded::start().await?;
    let lines: Vec<String> = flights::lines()?.into_iter().take(300).collect();
    host.client.publish(lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>()).await?;
    host.client.deploy("flight-board").await?;
    host.client.settle().await?;
    let url = host.client.url().to_owned();
    let (ended, text) = ran(&["plugin", "rebuild", "flight-board", "--wait", "--url", &url]).await;
    ended.expect("it takes over");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains("its tables are new from revision"), "{text}");
    // Before that there are lines, or a bar where somebody looks.
    let mut lines = text.lines().take(text.lines().count() - 1);
    assert!(lines.all(|line| line.contains(" %  ") && line.contains(" events/s")), "{text}");
    let (ended, text) = ran(&["plugin", "rebuild", "flight-board", "--wait", "--json", "--url", &url]).await;
    ended.expect("it takes over");
    let view: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(view["stage"], "flipped", "there is the end and nothing else: {text}");
    let (ended, text) =
        ran(&["plugin", "rebuild", "flight-board", "--status", "--json", "--url", &url]).await;
    ended.expect("it is remembered");
    let view: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(view["stage"], "flipped");
    let (ended, _) = ran(&["plugin", "rebuild", "flight-board", "--abandon", "--url", &url]).await;
    ended.expect_err("there is nothing to give up");
    let (ended, text) = ran(&["plugin", "history", "flight-board", "--url", &url]).await;
    ended.expect("it has a history");
    assert!(text.contains("rebuilt over "), "{text}");
    Ok(())
}
