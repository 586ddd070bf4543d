//! A host as a process of its own: started, killed and started again on the same store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::Value;

use crate::ports::Port;
use crate::workspace_binary;

/// `millrace serve` on a loopback port of its own. Killed when dropped.
#[derive(Debug)]
pub struct HostProcess {
    child: Child,
    pub url: String,
    setup: Setup,
    data: PathBuf,
    port: Port,
    http: reqwest::Client,
}

/// What a host process is started with, beyond its folder and port.
#[derive(Clone, Debug)]
pub struct Setup {
    pub binary: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// The address of its log, where that is not in its store.
    pub log: Option<String>,
}

impl Setup {
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), args: Vec::new(), env: Vec::new(), log: None }
    }

    /// Values of settings, as `--set` takes them.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.args.extend(["--set".into(), setting.into()]);
        self
    }
}

impl Setup {
    /// With its log on a server.
    #[must_use]
    pub fn log(mut self, address: &str) -> Self {
        self.args.extend(["--log".into(), address.into()]);
        self.log = Some(address.to_owned());
        self
    }
}

impl HostProcess {
    /// Starts the host that the test run has built, and waits until it is ready.
    pub async fn start(data: &Path) -> Result<Self> {
        let setup = Setup::new(workspace_binary("millrace"));
        // Swaps are tried in the shadow, and not for seconds.
        let setup = setup.set("processors.shadow_events=50").set("processors.shadow_ms=20");
        Self::start_as(setup, data).await
    }

    /// The same with another binary.
    pub async fn start_with(binary: &Path, data: &Path) -> Result<Self> {
        Self::start_as(Setup::new(binary), data).await
    }

    /// The same with a setup of the test's own.
    pub async fn start_as(setup: Setup, data: &Path) -> Result<Self> {
        let mut host = Self::started(setup, data)?;
        host.wait_ready().await?;
        Ok(host)
    }

    /// Starts one that may not become ready, and waits until it answers.
    pub async fn start_unready(setup: Setup, data: &Path) -> Result<Self> {
        let host = Self::started(setup, data)?;
        let begin = Instant::now();
        while host.http.get(format!("{}/healthz", host.url)).send().await.is_err() {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "it does not answer: {}", host.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(host)
    }

    fn started(setup: Setup, data: &Path) -> Result<Self> {
        let port = Port::hold();
        let child = spawn(&setup, data, port.number())?;
        let url = format!("http://127.0.0.1:{}", port.number());
        let http = reqwest::Client::builder().build()?;
        Ok(Self { child, url, setup, data: data.to_owned(), port, http })
    }

    /// `kill -9`, and a new process on the same store and port.
    pub async fn kill_and_start(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(&self.setup, &self.data, self.port.number())?;
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
        self.ask_to_end()?;
        self.wait_for_end()
    }

    /// SIGTERM, without waiting for what comes of it.
    pub fn ask_to_end(&self) -> Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill failed");
        Ok(())
    }

    /// Waits until it has ended; answers whether it ended well.
    pub fn wait_for_end(&mut self) -> Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// Whether it has ended, without waiting for that.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// What it has written to standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("stderr")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the host ended with {status}: {}", self.said());
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
        Ok(self.publish_all(ndjson).await?.len())
    }

    /// The same, with what was said of each line.
    pub async fn publish_all(&self, ndjson: impl Into<Bytes>) -> Result<Vec<Value>> {
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
        let mut lines = Vec::new();
        for line in answer.lines() {
            let line: Value = serde_json::from_str(line).context("an answer line is JSON")?;
            anyhow::ensure!(line.get("position").is_some(), "refused: {line}");
            lines.push(line);
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

    pub async fn post(&self, path: &str) -> Result<Value> {
        let answer = self.http.post(format!("{}{path}", self.url)).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        anyhow::ensure!(status.is_success(), "{path} answered {status}: {body}");
        Ok(body)
    }

    /// Waits until every plugin has done everything there is, emitted events among it.
    pub async fn settle(&self) -> Result<()> {
        self.settle_every(Duration::from_millis(10)).await
    }

    /// Whether all that is parked waits behind a dead letter.
    async fn nothing_retries(&self, plugins: &[Value]) -> Result<bool> {
        for plugin in plugins {
            let tasks = plugin["tasks"].as_array().context("a list of tasks")?;
            let parked: u64 = tasks.iter().filter_map(|task| task["parked_events"].as_u64()).sum();
            if parked == 0 {
                continue;
            }
            let name = plugin["name"].as_str().context("a name")?;
            let letters = self.get(&format!("/v1/plugins/{name}/dead-letters?limit=4096")).await?;
            let letters = letters["dead_letters"].as_array().context("a list of letters")?;
            let held = letters.iter().filter(|letter| letter["held"] == true);
            if held.filter_map(|letter| letter["parked_behind"].as_u64()).sum::<u64>() != parked {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Emitted events that wait for a log elsewhere, and how many it has got.
    async fn carried(&self) -> Result<(u64, u64)> {
        if self.setup.log.is_none() {
            return Ok((0, 0));
        }
        let text =
            self.http.get(format!("{}/metrics", self.url)).send().await?.error_for_status()?.text().await?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            line.unwrap_or(0)
        };
        Ok((number("millrace_outbox_events "), number("millrace_outbox_carried_total ")))
    }

    /// The same, looking this often.
    pub async fn settle_every(&self, interval: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let carried = self.carried().await?;
            let answer = self.get("/v1/plugins").await?;
            let plugins = answer["plugins"].as_array().context("a list of plugins")?;
            if let Some(failed) = plugins.iter().find(|p| p["state"] == "failed") {
                bail!("a plugin failed: {failed}");
            }
            let idle = |p: &Value| p["state"] == "running" && p["lag_events"] == 0;
            if !plugins.is_empty()
                && plugins.iter().all(idle)
                && self.nothing_retries(plugins).await?
                && carried == (0, carried.1)
                && carried == self.carried().await?
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

fn spawn(setup: &Setup, data: &Path, port: u16) -> Result<Child> {
    let said = std::fs::File::create(data.with_extension("stderr"))?;
    Command::new(&setup.binary)
        .args(["serve", "--bind", &format!("127.0.0.1:{port}"), "--data"])
        .arg(data)
        .args(&setup.args)
        .envs(setup.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .spawn()
        .context("the host starts")
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
