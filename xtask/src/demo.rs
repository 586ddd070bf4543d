//! `cargo xtask demo`: a month of real flights through the sample plugins, and one more that answers over channels.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::run::{cargo, finish, print, say};
use crate::{guests, paths};

const EVENTS: &str = "plugins/flight-board/data/flights-2013-01.ndjson.gz";
const PLUGINS: [&str; 4] = ["flight-board", "carrier-stats", "delay-watch", "answers"];
/// Nothing is granted that is not named.
const CONFIG: &str = "[plugins.answers]\ngrants = [\"channels\"]\nchannels = [\"answers\"]\n";
const TABLES: [&str; 4] = ["flights", "carriers", "airports", "alerts"];
/// How long the host and the plugins may take to be ready: the first start compiles the components.
const READY_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long the plugins may go without progress after the replay.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How long the host may take to drain.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(20);

struct Options {
    exit: bool,
    rate: Option<String>,
    port: u16,
    data: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    ensure!(
        TcpListener::bind(("127.0.0.1", options.port)).is_ok(),
        "port {} is in use; end what listens there, or take another with --port",
        options.port
    );
    let events = paths::workspace().join(EVENTS);
    ensure!(events.is_file(), "there is no {}; the clone is not complete", events.display());
    let components = guests::build()?;
    say("building the host in release; the first time takes minutes");
    finish(cargo().args(["build", "--release", "--locked", "-p", "millrace", "--bin", "millrace"]))?;

    let folder = paths::workspace().join("target/demo");
    let plugins_dir = folder.join("plugins");
    let data = match &options.data {
        Some(dir) => std::path::absolute(dir).context("--data is no path")?,
        None => fresh(&folder.join("store"))?,
    };
    fresh(&plugins_dir)?;
    for name in PLUGINS {
        let component = components.get(name).with_context(|| format!("there is no plugin {name}"))?;
        guests::place(component, &plugins_dir.join(format!("{name}.wasm")))?;
    }
    let config = folder.join("demo.toml");
    fs::write(&config, CONFIG).with_context(|| format!("{} cannot be written", config.display()))?;
    let mut demo = Demo::start(&options, &data, (&plugins_dir, &config), folder.join("host.log"))?;
    demo.wait_until_ready()?;
    demo.replay(&events, &options, &data)?;
    if options.exit {
        return demo.end();
    }
    say("the host goes on until Ctrl-C");
    let status = demo.host.wait().context("the host cannot be waited for")?;
    ensure!(status.success(), "the host ended with {status}; see {}", demo.messages.display());
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { exit: false, rate: None, port: 7070, data: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--exit" => options.exit = true,
            "--rate" => {
                let rate = value()?;
                ensure!(
                    rate.parse::<f64>().is_ok_and(|rate| rate > 0.0),
                    "--rate is events a second, not `{rate}`"
                );
                options.rate = Some(rate);
            }
            "--port" => {
                let port = value()?;
                options.port =
                    port.parse().with_context(|| format!("--port is a number up to 65535, not `{port}`"))?;
            }
            "--data" => options.data = Some(value()?.into()),
            other => bail!("`{other}` is no option of the demo; there are --exit, --rate, --port, --data"),
        }
    }
    Ok(options)
}

/// An empty folder.
fn fresh(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("{} cannot be emptied", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    Ok(dir.into())
}

/// A running host. It is ended when this is dropped.
struct Demo {
    host: Child,
    binary: PathBuf,
    url: String,
    messages: PathBuf,
}

impl Demo {
    fn start(
        options: &Options,
        data: &Path,
        (plugins, config): (&Path, &Path),
        messages: PathBuf,
    ) -> Result<Self> {
        let binary = paths::target().join("release/millrace");
        let stderr =
            File::create(&messages).with_context(|| format!("{} cannot be written", messages.display()))?;
        let host = Command::new(&binary)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .args(["--bind", &format!("127.0.0.1:{}", options.port)])
            .arg("--data")
            .arg(data)
            .arg("--plugins-dir")
            .arg(plugins)
            // The demo is what this page says, whatever config file lies around.
            .current_dir(plugins)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        Ok(Self { host, binary, url: format!("http://127.0.0.1:{}", options.port), messages })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        say("waiting for the host and its plugins");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.host.try_wait().context("the host cannot be watched")? {
                bail!("the host ended with {status}:\n{}", self.last_messages());
            }
            if let Some(status) = self.status()
                && status["ready"] == true
                && plugins(&status).iter().filter(|plugin| plugin["state"] == "running").count()
                    >= PLUGINS.len()
            {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < READY_WAIT_MAX,
                "the plugins do not run after {} s:\n{}",
                READY_WAIT_MAX.as_secs(),
                self.last_messages()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn replay(&mut self, events: &Path, options: &Options, data: &Path) -> Result<()> {
        say("replaying the flights of January 2013");
        let begun = Instant::now();
        let mut publish = self.client("publish");
        publish.arg(events).args(["--retry", "--json", "--progress"]);
        if let Some(rate) = &options.rate {
            publish.args(["--rate", rate]);
        }
        let output =
            publish.stderr(Stdio::inherit()).output().context("`millrace publish` does not start")?;
        ensure!(output.status.success(), "the replay failed:\n{}", self.last_messages());
        let report: Value =
            serde_json::from_slice(&output.stdout).context("`millrace publish` answered something else")?;
        self.wait_until_durable()?;
        let seconds = begun.elapsed().as_secs_f64();
        let published = report["events"].as_f64().unwrap_or_default();
        print(&format!(
            "\n  events        {published:.0} published in {:.2} s",
            report["seconds"].as_f64().unwrap_or_default()
        ))?;
        print(&format!(
            "  durable       every row after {seconds:.2} s: {:.0} events/s through three plugins",
            published / seconds
        ))?;
        for table in TABLES {
            print(&format!("  table         {table:<10} {:>6} rows", self.rows(table)?))?;
        }
        print(&format!("  store         {}", data.display()))?;
        print(&format!("  messages      {}", self.messages.display()))?;
        print(&format!("  departures    {}/demo/", self.url))?;
        print(&format!("  answers       {}/demo/answers/", self.url))
    }

    /// Until no plugin has an event before it: what they wrote is committed then.
    fn wait_until_durable(&mut self) -> Result<()> {
        let (mut least, mut moved) = (u64::MAX, Instant::now());
        loop {
            if let Some(status) = self.status() {
                let plugins = plugins(&status);
                let lag =
                    plugins.iter().map(|plugin| plugin["lag_events"].as_u64().unwrap_or(u64::MAX)).max();
                match lag {
                    Some(0) => return Ok(()),
                    Some(lag) if lag < least => (least, moved) = (lag, Instant::now()),
                    _ => {}
                }
                if let Some(failed) = plugins.iter().find(|plugin| plugin["state"] == "failed") {
                    bail!("plugin {} failed: {}", failed["name"], failed["message"]);
                }
            }
            ensure!(
                moved.elapsed() < STALL_MAX,
                "the plugins stand still, {least} events behind:\n{}",
                self.last_messages()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Option<Value> {
        let output = self.client("status").arg("--json").output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    fn rows(&self, table: &str) -> Result<usize> {
        let output = self
            .client("query")
            .args([table, "--all", "--json", "--limit", "1000"])
            .output()
            .context("`millrace query` does not start")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(output.stdout.iter().filter(|b| **b == b'\n').count())
    }

    fn client(&self, command: &str) -> Command {
        let mut client = Command::new(&self.binary);
        client.arg(command).env("MILLRACE_URL", &self.url).env_remove("MILLRACE_TOKEN").stdin(Stdio::null());
        client
    }

    /// Drains the host as an operator would, and waits.
    fn end(mut self) -> Result<()> {
        let status = self.terminate().context("the host did not end")?;
        ensure!(status.success(), "the host ended with {status}; see {}", self.messages.display());
        Ok(())
    }

    fn terminate(&mut self) -> Option<std::process::ExitStatus> {
        let signalled =
            Command::new("kill").args(["-TERM", &self.host.id().to_string()]).stdin(Stdio::null()).status();
        let begun = Instant::now();
        while signalled.as_ref().is_ok_and(|status| status.success()) && begun.elapsed() < DRAIN_WAIT_MAX {
            if let Ok(Some(status)) = self.host.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.host.kill().ok()?;
        self.host.wait().ok()
    }

    fn last_messages(&self) -> String {
        let text = fs::read_to_string(&self.messages).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.host.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}

fn plugins(status: &Value) -> &[Value] {
    status["plugins"].as_array().map_or(&[], Vec::as_slice)
}
