//! The token of one tenant in the hands of another, on every path that takes one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use millrace::config::Right;
use millrace_tests::embedded::{Client, Embedded, token};
use millrace_tests::flights;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const PATIENCE: Duration = Duration::from_secs(60);
const RIGHTS: &[Right] = &[Right::Publish, Right::Read, Right::Admin];
const ADDRESS: &str = "/v1/live?table=flights&limit=5";

fn query() -> Value {
    json!({"table": "flights", "limit": 5})
}

/// The frames of a stream of events, up to `ready`.
async fn events(request: RequestBuilder) -> Result<Vec<Value>> {
    let mut answer = request.send().await?;
    ensure!(answer.status() == 200, "{}", answer.text().await?);
    let (mut frames, mut text) = (Vec::new(), String::new());
    loop {
        while let Some((line, rest)) = text.split_once('\n') {
            if let Some(data) = line.strip_prefix("data: ") {
                frames.push(serde_json::from_str::<Value>(data)?);
            }
            text = rest.to_owned();
        }
        if frames.last().is_some_and(|frame| frame["op"] == "ready") {
            return Ok(frames);
        }
        let chunk = tokio::time::timeout(PATIENCE, answer.chunk()).await.context("nothing came")??;
        text.push_str(std::str::from_utf8(&chunk.context("the stream ended")?)?);
    }
}

/// The frames of a WebSocket, up to `ready`.
async fn messages(
    url: &str,
    bearer: &str,
    protocol: Option<&'static str>,
    resume: &str,
) -> Result<Vec<Value>> {
    let mut request = format!("{}/v1/live/ws", url.replace("http", "ws")).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {bearer}").parse()?);
    let mut command = json!({"action": "subscribe", "query": query(), "resume": resume});
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
        command["id"] = "a".into();
    }
    let stream = tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    socket.send(Message::text(command.to_string())).await?;
    let mut frames: Vec<Value> = Vec::new();
    while frames.last().is_none_or(|frame| frame["op"] != "ready") {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.context("nothing came")?;
        let message: Value = serde_json::from_str(message.context("it is closed")??.to_text()?)?;
        match (&message["op"], &message["deltas"]) {
            (Value::String(_), _) => frames.push(message),
            (_, Value::Array(deltas)) => frames.extend(deltas.iter().cloned()),
            _ if message["type"] == "subscribed" => {}
            _ => bail!("{message}"),
        }
    }
    Ok(frames)
}

fn token_of(frames: &[Value]) -> Result<String> {
    Ok(frames.last().and_then(|ready| ready["stream_id"].as_str()).context("a token")?.to_owned())
}

/// A line with its owner in it.
fn owned(line: &str, owner: &str) -> Result<String> {
    let mut event: Value = serde_json::from_str(line)?;
    event["payload"]["dest_name"] = owner.into();
    Ok(format!("{event}\n"))
}

fn posted(client: &Client, path: &str) -> RequestBuilder {
    client.request(Method::POST, path).header("content-type", "application/json").body(query().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_another_tenant_resumes_nothing_on_any_path() -> Result<()> {
    let names = ["token-of-alpha", "token-of-beta"];
    let host = Embedded::start_with(|config| {
        config.auth.tokens = vec![token(names[0], "alpha", RIGHTS), token(names[1], "beta", RIGHTS)];
    })
    .await?;
    let (alpha, beta) = (host.client.with_token(names[0])?, host.client.with_token(names[1])?);
    alpha.deploy("flight-board").await?;
    let lines = flights::lines()?;
    for (client, owner, count) in [(&alpha, "alpha", 40), (&beta, "beta", 30)] {
        let lines: Result<Vec<_>> = lines[..count].iter().map(|line| owned(line, owner)).collect();
        client.publish(lines?.concat()).await?;
    }
    alpha.settle().await?;
    let of_alpha = token_of(&events(alpha.request(Method::GET, ADDRESS)).await?)?;
    let of_beta = token_of(&events(beta.request(Method::GET, ADDRESS)).await?)?;
    let url = host.client.url();

    let with = |path: &str, token: &str| {
        format!("{path}{}last_event_id={token}", if path.contains('?') { '&' } else { '?' })
    };
    for (token, own) in [(&of_alpha, false), (&of_beta, true)] {
        let heard = [
            (
                "header of GET",
                events(beta.request(Method::GET, ADDRESS).header("last-event-id", token)).await?,
            ),
            ("parameter of GET", events(beta.request(Method::GET, &with(ADDRESS, token))).await?),
            ("header of POST", events(posted(&beta, "/v1/live").header("last-event-id", token)).await?),
            ("parameter of POST", events(posted(&beta, &with("/v1/live", token))).await?),
            ("one subscription", messages(url, names[1], None, token).await?),
            ("many subscriptions", messages(url, names[1], Some("millrace.live.v1"), token).await?),
        ];
        for (path, frames) in heard {
            let names: Vec<_> = frames.iter().filter_map(|frame| frame["op"].as_str()).collect();
            if own {
                assert_eq!(names, ["ready"], "{path}: its own resumes");
                continue;
            }
            assert_eq!(names[..2], ["gap", "reset"], "{path}");
            assert_eq!(names[2..], [&["enter"; 5][..], &["ready"]].concat(), "{path}");
            assert_eq!(frames.last().context("ready")?["resumed"], false, "{path}");
            let rows = frames.iter().filter_map(|frame| frame["row"]["dest_name"].as_str());
            assert!(rows.eq(["beta"; 5]), "{path}: {frames:?}");
        }
    }
    host.stop().await;
    Ok(())
}
