//! A host as a process of its own: started, killed and started again on the same store.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::Value;

use crate::workspace_binary;

/// `millrace serve` on a loopback port of its own. Killed when dropped.
#[derive(Debug)]
pub struct HostProcess {
    child: Child,
    pub url: String,
    binary: PathBuf,
    data: PathBuf,
    port: u16,
    http: reqwest::Client,
}

impl HostProcess {
    /// Starts the host that the test run has built, and waits until it is ready.
    pub async fn start(data: &Path) -> Result<Self> {
        Self::start_with(&workspace_binary("millrace"), data).await
    }

    /// The same with another binary.
    pub async fn start_with(binary: &Path, data: &Path) -> Result<Self> {
        let port = free_port()?;
        let child = spawn(binary, data, port)?;
        let url = format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::builder().build()?;
        let mut host = Self { child, url, binary: binary.to_owned(), data: data.to_owned(), port, http };
        host.wait_ready().await?;
        Ok(host)
    }

    /// `kill -9`, and a new process on the same store and port.
    pub async fn kill_and_start(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(&self.binary, &self.data, self.port)?;
        self.wait_ready().await
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; answers whether it ended well.
    pub fn terminate(&mut self) -> Result<bool> {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill failed");
        Ok(self.child.wait()?.success())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let said = std::fs::read_to_string(self.data.with_extension("stderr")).unwrap_or_default();
                bail!("the host ended with {status}: {said}");
            }
            if let Ok(answer) = self.http.get(format!("{}/readyz", self.url)).send().await
                && answer.status().is_success()
            {
                return Ok(());
            }
            anyhow::ensure!(
                begin.elapsed() < Duration::from_secs(60),
                "the host was not ready within a minute"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Publishes NDJSON; answers once every line is acknowledged.
    pub async fn publish(&self, ndjson: impl Into<Bytes>) -> Result<usize> {
        let answer = self
            .http
            .post(format!("{}/v1/events", self.url))
            .header("content-type", "application/x-ndjson")
            .body(ndjson.into())
            .send()
            .await?
            .error_for_status()?
            .text()
            .await?;
        let mut lines = 0;
        for line in answer.lines() {
            let line: Value = serde_json::from_str(line).context("an answer line is JSON")?;
            anyhow::ensure!(line.get("position").is_some(), "refused: {line}");
            lines += 1;
        }
        Ok(lines)
    }

    pub async fn deploy(&self, component: Bytes) -> Result<Value> {
        let request =
            self.http.post(format!("{}/v1/plugins", self.url)).header("content-type", "application/wasm");
        let answer = request.body(component).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        anyhow::ensure!(status.is_success(), "deploy answered {status}: {body}");
        Ok(body)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?.json().await?)
    }

    /// Waits until every plugin has done everything there is, emitted events among it.
    pub async fn settle(&self) -> Result<()> {
        self.settle_every(Duration::from_millis(10)).await
    }

    /// The same, looking this often.
    pub async fn settle_every(&self, interval: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = self.get("/v1/plugins").await?;
            let plugins = answer["plugins"].as_array().context("a list of plugins")?;
            if let Some(failed) = plugins.iter().find(|p| p["state"] == "failed") {
                bail!("a plugin failed: {failed}");
            }
            if !plugins.is_empty() && plugins.iter().all(|p| p["state"] == "running" && p["lag_events"] == 0)
            {
                return Ok(());
            }
            anyhow::ensure!(
                begin.elapsed() < Duration::from_secs(120),
                "plugins lag after two minutes: {answer}"
            );
            tokio::time::sleep(interval).await;
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &Path, data: &Path, port: u16) -> Result<Child> {
    let said = std::fs::File::create(data.with_extension("stderr"))?;
    Command::new(binary)
        .args(["serve", "--bind", &format!("127.0.0.1:{port}"), "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .spawn()
        .context("the host starts")
}

/// A loopback port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The same component with another digest: a custom section at its end says so.
pub fn relabelled(component: &[u8], label: &str) -> Bytes {
    let name = b"label";
    let length = 1 + name.len() + label.len();
    assert!(length < 128, "one byte of LEB128 holds it");
    let mut bytes = component.to_vec();
    bytes.extend([0, u8::try_from(length).expect("checked"), u8::try_from(name.len()).expect("checked")]);
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(label.as_bytes());
    bytes.into()
}
