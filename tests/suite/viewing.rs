//! Watching a running host: rows come over the wire as plugins write them, whatever happens meanwhile.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millrace::event::TenantId;
use millrace::live::{LiveQuery, Mode};
use millrace::tables::Query;
use millrace_tests::embedded::Embedded;
use millrace_tests::flights;
use millrace_tests::guests::guest;
use millrace_tests::host::relabelled;
use millrace_tests::viewer::Viewer;
use reqwest::Method;
use serde_json::Value;

mod tokens;

const SAMPLES: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of `GET /v1/live` that goes on from where it was.
struct Follower<'a> {
    host: &'a Embedded,
    query: &'static str,
    viewer: Viewer,
    last_event_id: Option<String>,
    answer: reqwest::Response,
    buffer: String,
}

impl<'a> Follower<'a> {
    async fn open(host: &'a Embedded, query: &'static str) -> Result<Self> {
        let unused = LiveQuery { query: Query::all("flights"), mode: Mode::Maintained, columns: None };
        let viewer = Viewer::new(TenantId::new("default")?, unused);
        let answer = Self::ask(host, query, None).await?;
        Ok(Self { host, query, viewer, last_event_id: None, answer, buffer: String::new() })
    }

    async fn ask(host: &Embedded, query: &str, last_event_id: Option<&str>) -> Result<reqwest::Response> {
        let mut request = host.client.request(Method::GET, &format!("/v1/live?{query}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await?;
        ensure!(answer.status() == 200, "the host answered {}", answer.status());
        Ok(answer)
    }

    /// Loses its connection and comes back.
    async fn come_back(&mut self) -> Result<()> {
        self.answer = Self::ask(self.host, self.query, self.last_event_id.as_deref()).await?;
        self.buffer.clear();
        Ok(())
    }

    /// Takes events in until one with an id ends a commit, or a snapshot. Answers the names of the frames.
    async fn commit(&mut self) -> Result<Vec<String>> {
        self.viewer.names.clear();
        loop {
            while let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let event = event.to_owned();
                self.buffer = rest.to_owned();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                if let Some(data) = field("data: ") {
                    self.viewer.obey(&serde_json::from_str(data)?);
                }
                if let Some(id) = field("id: ") {
                    self.last_event_id = Some(id.to_owned());
                    return Ok(self.viewer.names.clone());
                }
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.answer.chunk()).await.context("nothing came")??;
            let Some(chunk) = chunk else { bail!("the stream ended") };
            self.buffer.push_str(std::str::from_utf8(&chunk)?);
        }
    }

    /// Takes commits in until its rows are those of the table.
    async fn until_it_is_the_table(&mut self, order: &str) -> Result<()> {
        let rows = self.host.client.get(&format!("/v1/tables/flights?{order}")).await?.ok()?;
        let flat = |row: &Value| {
            let mut flat = row["values"].clone();
            flat["key"] = row["key"].clone();
            flat
        };
        let expected: Vec<Value> = rows["rows"].as_array().context("rows")?.iter().map(flat).collect();
        while self.viewer.rows != expected {
            self.commit().await.with_context(|| format!("its rows are {:?}", self.viewer.keys()))?;
        }
        Ok(())
    }
}

fn upload(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_the_table_whatever_is_uploaded_deployed_or_lost() -> Result<()> {
    let host = Embedded::start().await?;
    host.client.deploy("flight-board").await?;
    let lines = flights::lines()?;
    let parts: Vec<_> = lines.chunks(2_000).take(5).collect();
    let order = "order=dep_delay_min:desc&limit=20";
    let query = "table=flights&order=dep_delay_min:desc&limit=20";
    let mut steady = Follower::open(&host, query).await?;
    assert_eq!(steady.commit().await?, ["reset", "ready"], "there are no rows yet");
    let mut flaky = Follower::open(&host, query).await?;
    flaky.commit().await?;
    for (number, part) in parts.iter().enumerate() {
        host.client.publish(upload(part)).await?;
        if number == 2 {
            // Another version takes over while rows are watched.
            let other = relabelled(&std::fs::read(guest("flight-board"))?, "the same");
            host.client.deploy_bytes(other).await?.ok()?;
        }
        host.client.settle().await?;
        steady.until_it_is_the_table(order).await?;
        flaky.come_back().await?;
        let names = flaky.commit().await?;
        assert!(!names.contains(&"gap".to_owned()), "what it missed was kept: {names:?}");
        flaky.until_it_is_the_table(order).await?;
    }
    assert_eq!(steady.viewer.rows.len(), 20);
    flaky.last_event_id = Some("junk".into());
    flaky.come_back().await?;
    let names = flaky.commit().await?;
    assert_eq!(
        (names.first().map(String::as_str), names.last().map(String::as_str)),
        (Some("gap"), Some("ready"))
    );
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_board_shows_a_running_hosts_flights_on_a_desk_and_on_a_phone() -> Result<()> {
    let host = Embedded::start().await?;
    for name in SAMPLES {
        host.client.deploy(name).await?;
    }
    host.client.publish(upload(&flights::lines()?[..12_000])).await?;
    host.client.settle().await?;
    let shown = "document.querySelectorAll('#flights tbody tr').length >= 12 \
                 && document.getElementById('state').dataset.state === 'live'";
    for (width, height) in [("1280", "900"), ("360", "800")] {
        let picture = host.dir().join(format!("board-{width}.png"));
        let url = format!("{}/demo/", host.client.url());
        let picture_text = picture.to_string_lossy().into_owned();
        let args = [
            "--url",
            &url,
            "--width",
            width,
            "--height",
            height,
            "--wait",
            shown,
            "--screenshot",
            &picture_text,
        ];
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/web/browser.mjs");
        let mut command = Command::new("node");
        command.arg(script).args(args).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("node starts")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_str(&said)?;
        assert_eq!(said["scroll_width"].to_string(), width, "nothing sticks out");
        assert!(std::fs::metadata(&picture)?.len() > 20_000, "the picture shows something");
    }
    host.stop().await;
    Ok(())
}
