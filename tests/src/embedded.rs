//! A host inside of the test's own process, and a client that speaks HTTP to any host.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use millrace::config::{Config, Right, TokenConfig};
use millrace::host::Host;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tempfile::TempDir;

use crate::guests::{guest, lend_code};

/// How long anything is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A host on a loopback port of its own, with its store in a temporary folder. Dropping it is a kill.
#[derive(Debug)]
pub struct Embedded {
    host: Host,
    dir: TempDir,
    config: Config,
    /// Asks without a token.
    pub client: Client,
}

impl Embedded {
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// Starts a host whose configuration the test changes.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::start_lent(&[], change).await
    }

    /// The same with the code of these guests where it keeps compiled code: those that bring an engine take ten
    /// seconds to compile.
    pub async fn start_lent(guests: &[&str], change: impl FnOnce(&mut Config)) -> Result<Self> {
        let components: Vec<Bytes> =
            guests.iter().map(|name| Ok(std::fs::read(guest(name))?.into())).collect::<Result<_>>()?;
        Self::start_with_code_of(components, change).await
    }

    /// The same with components that are no built guests.
    pub async fn start_with_code_of(
        components: Vec<Bytes>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut config = Config::default();
        config.serve.data = dir.path().join("store");
        config.serve.bind = ([127, 0, 0, 1], 0).into();
        // Swaps are tried in the shadow, and not for seconds.
        (config.processors.shadow_events, config.processors.shadow_ms) = (50, 20);
        change(&mut config);
        if !components.is_empty() {
            let store = config.serve.data.clone();
            tokio::task::spawn_blocking(move || lend_code(&store, &components)).await??;
        }
        let host = Box::pin(Host::builder().config(config.clone()).start()).await?;
        let client = Client::new(format!("http://{}", host.addr()))?;
        Ok(Self { host, dir, config, client })
    }

    /// Ends the host well and starts another on its store.
    pub async fn restart(self) -> Result<Self> {
        Box::pin(self.restart_with(|_| {})).await
    }

    /// The same with another configuration.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let Self { host, dir, mut config, .. } = self;
        host.shutdown().await;
        change(&mut config);
        let host = Box::pin(Host::builder().config(config.clone()).start()).await?;
        let client = Client::new(format!("http://{}", host.addr()))?;
        Ok(Self { host, dir, config, client })
    }

    /// Ends the host well and keeps its folder.
    pub async fn stop(self) -> TempDir {
        self.host.shutdown().await;
        self.dir
    }

    /// The host itself, for what needs no HTTP.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The folder that the store lies in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store.
    pub fn data(&self) -> PathBuf {
        self.config.serve.data.clone()
    }
}

/// An entry of the config file.
pub fn token(token: &str, tenant: &str, rights: &[Right]) -> TokenConfig {
    TokenConfig {
        token: Some(token.into()),
        tenant: tenant.into(),
        rights: rights.to_vec(),
        ..TokenConfig::default()
    }
}

/// Speaks to a host, as one tenant.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// What a host answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    pub body: Bytes,
}

impl Answer {
    /// The body; null where it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// One value a line.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let lines = self.body.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer's value; an error for anything but success.
    pub fn ok(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "the host answered {}: {}", self.status, self.text());
        Ok(self.json())
    }

    /// Status and problem code.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }
}

impl Client {
    pub fn new(url: impl Into<String>) -> Result<Self> {
        Ok(Self { http: reqwest::Client::builder().build()?, url: url.into(), token: None })
    }

    /// The same host with a token, over connections of its own.
    pub fn with_token(&self, token: &str) -> Result<Self> {
        Ok(Self { token: Some(token.into()), ..Self::new(self.url.clone())? })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request with this client's token, to go on with.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let answer = request.send().await?;
        let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: answer.status().as_u16(), etag, body: answer.bytes().await? })
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let request = self.request(Method::POST, path).header("content-type", content_type);
        self.send(request.body(body.into())).await
    }

    /// Publishes NDJSON; answers each line's answer, of which none may be an error.
    pub async fn publish(&self, ndjson: impl Into<Bytes>) -> Result<Vec<Value>> {
        let answer = self.post("/v1/events", "application/x-ndjson", ndjson).await?;
        ensure!(answer.status == 200, "the upload was refused: {}", answer.text());
        let lines = answer.lines()?;
        if let Some(refused) = lines.iter().find(|line| line.get("error").is_some()) {
            bail!("a line was refused: {refused}");
        }
        Ok(lines)
    }

    /// Deploys a built guest by its name.
    pub async fn deploy(&self, name: &str) -> Result<Value> {
        self.deploy_bytes(std::fs::read(guest(name))?).await?.ok()
    }

    pub async fn deploy_bytes(&self, component: impl Into<Bytes>) -> Result<Answer> {
        self.post("/v1/plugins", "application/wasm", component).await
    }

    /// All rows of a query, page by page; the query has no cursor.
    pub async fn rows(&self, table: &str, query: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("/v1/tables/{table}?{query}{cursor}")).await?.ok()?;
            let of_page = page["rows"].as_array().context("a page has rows")?;
            rows.extend(of_page.iter().cloned());
            let Some(next) = page["next"].as_str() else { return Ok(rows) };
            ensure!(!of_page.is_empty(), "a page with a next one has rows");
            cursor = format!("&cursor={next}");
        }
    }

    /// All events of these types, page by page; all there are where none are named.
    pub async fn events(&self, types: &str) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        let mut after = "oldest".to_owned();
        loop {
            let path = format!("/v1/streams/events?limit=4096&types={types}&after={after}");
            let page = self.get(&path).await?.ok()?;
            events.extend(page["events"].as_array().context("a page has events")?.iter().cloned());
            let next = page["next"].as_str().context("a page has a next cursor")?.to_owned();
            if next == after {
                return Ok(events);
            }
            after = next;
        }
    }

    /// Waits until every plugin has done everything there is, what they emitted included.
    pub async fn settle(&self) -> Result<()> {
        let begin = Instant::now();
        let mut before = None;
        loop {
            let answer = self.get("/v1/plugins").await?.ok()?;
            let plugins = answer["plugins"].as_array().context("a list of plugins")?;
            if let Some(failed) = plugins.iter().find(|p| p["state"] == "failed") {
                bail!("a plugin failed: {failed}");
            }
            let idle = plugins.iter().all(|p| p["state"] == "running" && p["lag_events"] == 0);
            // One look at plugin after plugin misses what a later one emits to an earlier one.
            let handled: Vec<Value> = plugins.iter().map(|p| p["counters"]["events"].clone()).collect();
            let before = before.replace(handled.clone());
            if idle && before == Some(handled) {
                return Ok(());
            }
            ensure!(begin.elapsed() < WAIT_MAX, "plugins lag after a minute: {answer}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for an answer that a test looks for, and answers it.
    pub async fn wait_for(&self, path: &str, what: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let begin = Instant::now();
        loop {
            let answer = self.get(path).await?;
            if what(&answer) {
                return Ok(answer);
            }
            ensure!(begin.elapsed() < WAIT_MAX, "{path} still answers {}", answer.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
