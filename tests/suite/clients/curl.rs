//! Claims about what `curl -N` shows of a live query, line by line.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_tests::embedded::Embedded;
use millrace_tests::flights;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A `curl -N` that runs, and the lines that it writes.
struct Curl {
    child: Child,
    lines: Receiver<String>,
}

/// What stands between two blank lines, by the names of its fields.
#[derive(Debug, Default, PartialEq)]
struct Block {
    comment: Option<String>,
    fields: Vec<(String, String)>,
}

impl Block {
    fn names(&self) -> Vec<&str> {
        self.fields.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The name of an event and its frame, which say the same.
    fn event(&self) -> (&str, Value) {
        let name = self.field("event").expect("an event has a name");
        let frame: Value = serde_json::from_str(self.field("data").expect("data")).expect("data is JSON");
        assert_eq!(frame["op"], name);
        (name, frame)
    }
}

impl Curl {
    fn start(args: &[&str]) -> Result<Self> {
        let mut curl = Command::new("curl");
        curl.args(["--no-buffer", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*"])
            .args(args);
        curl.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = curl.spawn().context("curl starts; on Debian as root: apt-get install curl")?;
        let output = BufReader::new(child.stdout.take().context("its output is piped")?);
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The lines up to the next blank one, each of which is a comment or a field with one space behind its colon.
    fn block(&self) -> Result<Block> {
        let mut block = Block::default();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).context("a line comes")?;
            if line.is_empty() {
                return Ok(block);
            }
            if let Some(comment) = line.strip_prefix(": ") {
                block.comment = Some(comment.to_owned());
                continue;
            }
            let (name, value) = line.split_once(": ").with_context(|| format!("{line} is no field"))?;
            ensure!(["retry", "id", "event", "data"].contains(&name) && !value.is_empty(), "{line}");
            block.fields.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The same without heartbeats.
    fn told(&self) -> Result<Block> {
        loop {
            let block = self.block()?;
            if block.comment.is_none() {
                return Ok(block);
            }
        }
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn upload(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

fn is_a_wait(block: &Block, milliseconds: std::ops::RangeInclusive<u64>) -> bool {
    block.field("retry").and_then(|wait| wait.parse().ok()).is_some_and(|wait| milliseconds.contains(&wait))
}

/// Reads a stream from its first line to its last, while rows change and the host ends.
async fn reads_well(args: impl Fn(&str) -> Vec<String>) -> Result<()> {
    let host = Embedded::start_with(|config| config.gateway.sse_heartbeat_ms = 200).await?;
    host.client.deploy("flight-board").await?;
    let lines = flights::lines()?;
    host.client.publish(upload(&lines[..200])).await?;
    host.client.settle().await?;
    let args = args(host.client.url());
    let mut curl = Curl::start(&args.iter().map(String::as_str).collect::<Vec<_>>())?;

    let first = curl.block()?;
    assert_eq!(first.names(), ["retry"]);
    assert!(is_a_wait(&first, 1_000..=3_000), "{first:?}");
    let block = curl.told()?;
    assert_eq!((block.names(), block.event().0), (vec!["event", "data"], "reset"));
    for place in 0..3 {
        let block = curl.told()?;
        let (name, frame) = block.event();
        assert_eq!((block.names(), name), (vec!["event", "data"], "enter"));
        assert_eq!((&frame["old_index"], &frame["new_index"]), (&(-1).into(), &place.into()));
        assert_eq!(frame["row"]["key"], frame["agg_id"]);
    }
    let block = curl.told()?;
    let (name, frame) = block.event();
    assert_eq!((block.names(), name), (vec!["id", "event", "data"], "ready"));
    assert_eq!((&frame["rows"], &frame["resumed"]), (&3.into(), &false.into()));
    assert_eq!(frame["stream_id"].as_str(), block.field("id"));
    let ready = block.field("id").context("an id")?.to_owned();

    let ping = Block { comment: Some("ping".into()), fields: vec![] };
    assert_eq!(curl.block()?, ping, "nothing else comes while nothing happens");

    // A flight that is later than all others enters at the head, and another one leaves, in one commit.
    let mut late: Value = serde_json::from_str(&lines[0])?;
    late["agg_id"] = "late".into();
    late["payload"]["dep_delay_min"] = 99_999.into();
    host.client.publish(late.to_string()).await?;
    let mut seen = Vec::new();
    let last = loop {
        let block = curl.told()?;
        seen.push(block.event().0.to_owned());
        match block.names()[..] {
            ["event", "data"] => {}
            ["id", "event", "data"] => break block,
            _ => panic!("{block:?}"),
        }
    };
    assert_eq!(seen, ["enter", "leave"]);
    assert_eq!(last.event().1["stream_id"].as_str(), last.field("id"));
    assert!(last.field("id").is_some_and(|id| id != ready && !id.contains(' ')));

    host.stop().await;
    let block = curl.told()?;
    let (name, frame) = block.event();
    assert_eq!((block.names(), name), (vec!["retry", "event", "data"], "error"));
    assert_eq!(frame["code"], "host_stopping");
    assert!(is_a_wait(&block, 1_000..=6_000), "{block:?}");
    assert!(curl.lines.recv_timeout(PATIENCE).is_err(), "it was the last event");
    assert!(curl.child.wait()?.success(), "the stream ends as HTTP says");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_shows_a_live_query_line_by_line() -> Result<()> {
    reads_well(|url| vec![format!("{url}/v1/live?table=flights&order=dep_delay_min:desc&limit=3")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_shows_a_posted_live_query_in_the_same_way() -> Result<()> {
    let query = r#"{"table":"flights","sort":[{"column":"dep_delay_min","desc":true}],"limit":3}"#;
    let post = |url: &str| {
        let path = format!("{url}/v1/live");
        ["--header", "Content-Type: application/json", "--data", query, &path].map(str::to_owned).to_vec()
    };
    reads_well(post).await
}
