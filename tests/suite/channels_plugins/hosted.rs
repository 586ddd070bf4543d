//! The sample on a host that is a process of its own, over HTTP: what the demo's page does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

/// How long an answer is waited for. Reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const JOB: &str = "/v1/processes/demo-1";

/// Asks as the page does, and answers status and body.
async fn ask(
    client: &Client,
    host: &HostProcess,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<(u16, Value)> {
    let mut request = client.request(method, format!("{}{path}", host.url));
    if !body.is_null() {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// A follower of the answers. It fails where the stream ends or nothing comes.
struct Followed {
    stream: Response,
    /// What has come of it and was not looked at.
    rest: Vec<u8>,
    /// The id of the last event that had one.
    last_id: Option<String>,
}

impl Followed {
    async fn begin(client: &Client, host: &HostProcess, after: Option<String>) -> Result<Self> {
        let request = client.get(format!("{}{JOB}/channels/answers/entries?payload=text", host.url));
        let mut request = request.header("accept", "text/event-stream");
        if let Some(id) = &after {
            request = request.header("last-event-id", id);
        }
        let stream = request.send().await?.error_for_status()?;
        let mut followed = Self { stream, rest: Vec::new(), last_id: after };
        let (name, _) = followed.next().await?;
        ensure!(name == "ready", "it begins with `{name}`");
        Ok(followed)
    }

    /// The name of the next event, and what it says.
    async fn next(&mut self) -> Result<(String, Value)> {
        loop {
            if let Some(at) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..at + 2).collect();
                let event = String::from_utf8(event)?;
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let (id, name, data) = (field("id: "), field("event: "), field("data: "));
                self.last_id = id.or(self.last_id.take());
                if let (Some(name), Some(data)) = (name, data) {
                    return Ok((name, serde_json::from_str(&data)?));
                }
                continue;
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.stream.chunk()).await.context("nothing came")??;
            self.rest.extend_from_slice(&chunk.context("the stream has ended")?);
        }
    }

    async fn entry(&mut self) -> Result<Value> {
        let (name, entry) = self.next().await?;
        ensure!(name == "entry", "`{name}` is no entry: {entry}");
        Ok(entry)
    }

    /// The pieces of one answer. Each lies one position behind the one before it.
    async fn answer(&mut self, mut position: u64) -> Result<Vec<String>> {
        let mut pieces: Vec<String> = Vec::new();
        while !pieces.last().is_some_and(|piece| piece.ends_with('\n')) {
            let entry = self.entry().await?;
            position += 1;
            ensure!(entry["position"] == position, "neither hole nor repeat: {entry}");
            pieces.push(entry["text"].as_str().context("a piece is text")?.to_owned());
        }
        Ok(pieces)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sample_answers_what_a_page_asks_piece_by_piece_also_after_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(workspace_binary("millrace"));
    let setup =
        setup.set(r#"plugins.answers.grants=["channels"]"#).set(r#"plugins.answers.channels=["answers"]"#);
    let mut host = HostProcess::start_as(setup, &dir.path().join("store")).await?;
    let client = Client::builder().no_proxy().build()?;
    for file in ["", "answers.js", "answers.css"] {
        let file =
            client.get(format!("{}/demo/answers/{file}", host.url)).send().await?.error_for_status()?;
        ensure!(!file.text().await?.is_empty());
    }
    let plugin = || ask(&client, &host, Method::GET, "/v1/plugins/answers", &Value::Null);
    let (status, missing) = plugin().await?;
    assert_eq!((status, &missing["code"]), (404, &json!("plugin_unknown")), "what the page looks for");
    host.deploy(std::fs::read(guest("answers"))?.into()).await?;
    assert_eq!(plugin().await?.0, 200);
    let channels = json!([{ "name": "requests", "events": true }, { "name": "answers" }]);
    let process = json!({ "executor": "plugin:answers", "channels": channels });
    let (status, made) = ask(&client, &host, Method::PUT, JOB, &process).await?;
    assert_eq!(status, 201, "{made}");
    let requests = format!("{JOB}/channels/requests/entries");
    let mut answers = Followed::begin(&client, &host, None).await?;
    let (status, _) = ask(&client, &host, Method::POST, &requests, &json!({ "text": "Hello mill" })).await?;
    assert_eq!(status, 201);
    let pieces = answers.answer(0).await?;
    assert_eq!(pieces.concat(), "I read 2 words with 9 letters. The longest is “hello”.\n");
    assert_eq!(pieces.len(), 11, "a word is a piece");
    host.kill_and_start().await?;
    // Who comes back as an EventSource does has each piece once.
    let mut answers = Followed::begin(&client, &host, answers.last_id).await?;
    let (status, _) = ask(&client, &host, Method::POST, &requests, &json!({ "text": "again" })).await?;
    assert_eq!(status, 201);
    let pieces = answers.answer(11).await?;
    assert_eq!(pieces.concat(), "I read one word with 5 letters. The longest is “again”.\n");
    let (status, _) = ask(&client, &host, Method::POST, &requests, &json!({ "type": "end" })).await?;
    assert_eq!(status, 201);
    assert_eq!(answers.entry().await?["type"], "end");
    assert!(host.terminate()?);
    Ok(())
}
