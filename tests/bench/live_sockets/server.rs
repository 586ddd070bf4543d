//! The host under measurement: a process of its own, what it is fed, and what it costs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use millrace::clock::{Clock as _, SystemClock};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Events of one upload when the table is filled.
const FILL_EVENTS: usize = 20_000;

/// Lets this process, and hosts that it starts, have so many files open.
pub(crate) fn raise_open_files(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit { current: Some(wanted), maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        bail!("the sockets need {wanted} open files and the limit is {:?}: raise it with `ulimit -n`", limit);
    }
    Ok(())
}

/// A process's share of the memory that it has mapped: what is resident, and what it shares with others in parts.
pub(crate) fn own_bytes(pid: u32) -> Result<f64> {
    let rollup = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a line of Pss")?;
    let kib: f64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib * 1024.0)
}

#[derive(Debug)]
pub(super) struct Server {
    host: HostProcess,
    version: u64,
    events: usize,
    uploads: JoinSet<Result<()>>,
    http: reqwest::Client,
    _dir: TempDir,
}

impl Server {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let setup = Setup::new(super::super::replay::binary()).set("gateway.connections_max=30000");
        let host = HostProcess::start_as(setup, &dir.path().join("store")).await?;
        host.deploy(std::fs::read(guest("flight-board"))?.into()).await?;
        let http = reqwest::Client::builder().build()?;
        Ok(Self { host, version: 0, events: 0, uploads: JoinSet::new(), http, _dir: dir })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.host.url.trim_start_matches("http://").parse().expect("a host's URL names its address")
    }

    /// Events that its log has.
    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// Changes so many rows of each of these views, in one upload.
    pub(super) async fn publish(&mut self, views: Range<usize>, rows: usize) -> Result<()> {
        let body = self.body(views.flat_map(|view| (0..rows).map(move |row| (view, row))))?;
        self.host.publish(body).await?;
        Ok(())
    }

    /// Changes a row of each of these views, without waiting for the answer.
    pub(super) async fn publish_later(&mut self, views: Range<usize>, rows: usize) -> Result<()> {
        let version = usize::try_from(self.version)?;
        let body = self.body(views.map(|view| (view, version % rows)))?;
        let (http, url) = (self.http.clone(), format!("{}/v1/events", self.host.url));
        while self.uploads.len() >= 64 {
            self.uploads.join_next().await.context("there are some")???;
        }
        self.uploads.spawn(async move {
            let request = http.post(url).header("content-type", "application/x-ndjson").body(body);
            request.send().await?.error_for_status()?.bytes().await?;
            Ok(())
        });
        Ok(())
    }

    /// Waits for the answers.
    pub(super) async fn published(&mut self) -> Result<()> {
        while let Some(upload) = self.uploads.join_next().await {
            upload??;
        }
        Ok(())
    }

    fn body(&mut self, rows: impl Iterator<Item = (usize, usize)>) -> Result<String> {
        self.version += 1;
        let (version, now) = (self.version, micros()?);
        let mut body = String::new();
        for (view, row) in rows {
            // Every row goes to another place each time.
            let delay = (row as u64 * 7 + version * 5) % 101;
            let key = format!("v{view:04}-{row:02}");
            event(&mut body, &key, version, &format!("c{view}"), delay, now);
            self.events += 1;
        }
        Ok(body)
    }

    /// Fills the table with rows of which so many each have the same delay.
    pub(super) async fn fill(&mut self, rows: usize, ties: usize) -> Result<()> {
        for first in (0..rows).step_by(FILL_EVENTS) {
            let mut body = String::new();
            for row in first..rows.min(first + FILL_EVENTS) {
                let delay = 1_000 + (row / ties) as u64;
                event(&mut body, &deep_key(row), 1, "deep", delay, 0);
                self.events += 1;
            }
            self.host.publish(body).await?;
        }
        Ok(())
    }

    pub(super) async fn settle(&self) -> Result<()> {
        self.host.settle_every(Duration::from_millis(20)).await
    }

    /// Processor time of all of its threads, those that have ended too, in ticks of 10 ms.
    pub(super) fn processor_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(self.proc().join("stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("a command in brackets")?;
        let ticks: Vec<f64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / 100.0)
    }

    pub(super) fn own_bytes(&self) -> Result<f64> {
        own_bytes(self.host.pid())
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.host.pid().to_string())
    }

    async fn metrics(&self) -> Result<String> {
        let answer = self.http.get(format!("{}/metrics", self.host.url)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// What live queries were sent up to now.
    pub(super) async fn sent(&self) -> Result<Sent> {
        let text = self.metrics().await?;
        let sum = |name: &str| lines(&text, name).map(|(_, value)| value).sum::<f64>();
        Ok(Sent {
            frames: sum("millrace_live_sent_frames_total"),
            bytes: sum("millrace_live_sent_bytes_total"),
            writes: sum("millrace_live_writes_total"),
        })
    }

    /// The histogram of the time from a commit to the write of what it changed.
    pub(super) async fn write_times(&self) -> Result<Histogram> {
        let text = self.metrics().await?;
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, value) in lines(&text, "millrace_live_commit_to_write_seconds_bucket") {
            let edge = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let edge: f64 = match edge.context("a bucket has an edge")? {
                "+Inf" => f64::INFINITY,
                edge => edge.parse()?,
            };
            // There is one histogram for each transport.
            match buckets.iter_mut().find(|(known, _)| *known == edge) {
                Some((_, count)) => *count += value,
                None => buckets.push((edge, value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Histogram(buckets))
    }
}

/// The samples of a metric: labels and value.
fn lines<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels, value.parse().ok()?))
    })
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) frames: f64,
    pub(super) bytes: f64,
    pub(super) writes: f64,
}

impl Sent {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            bytes: self.bytes - before.bytes,
            writes: self.writes - before.writes,
        }
    }
}

/// How many lie at or below each edge.
#[derive(Debug)]
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    pub(super) fn since(mut self, before: &Self) -> Self {
        for (edge, count) in &mut self.0 {
            *count -= before.0.iter().find(|(known, _)| known == edge).map_or(0.0, |(_, count)| *count);
        }
        self
    }

    pub(super) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// Within a bucket it is taken to rise evenly. What lies beyond the last edge has no value.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = self.count() * part;
        let place = self.0.iter().position(|(_, count)| *count >= wanted && *count > 0.0)?;
        let (edge, count) = self.0[place];
        let (low, below) = place.checked_sub(1).map_or((0.0, 0.0), |before| self.0[before]);
        edge.is_finite().then(|| low + (edge - low) * (wanted - below) / (count - below))
    }
}

pub(super) fn micros() -> Result<u64> {
    Ok(u64::try_from(SystemClock.now().0)?)
}

/// An event that makes a row of `flights`. The time it was made at stands in a column.
fn event(out: &mut String, key: &str, version: u64, carrier: &str, delay: u64, now: u64) {
    writeln!(
        out,
        "{{\"aggregate\":\"flight\",\"agg_id\":\"{key}\",\"version\":{version},\"type\":\"flight.departed\",\"payload\":{{\
         \"flight\":\"B6806\",\"carrier\":\"{carrier}\",\"airline\":\"JetBlue Airways\",\"tail\":null,\"origin\":\"JFK\",\
         \"dest\":\"BOS\",\"dest_name\":\"Logan Intl\",\"distance_mi\":{now},\"scheduled\":\"2013-01-01T10:59:00Z\",\
         \"status\":\"departed\",\"dep_delay_min\":{delay},\"arr_delay_min\":null,\"air_time_min\":null}}}}"
    )
    .expect("writing to memory cannot fail");
}

/// The window of a view: fifty rows, the most delayed first.
pub(super) fn query_of(view: usize) -> String {
    format!(
        "{{\"table\":\"flights\",\"where\":[{{\"column\":\"carrier\",\"op\":\"eq\",\"value\":\"c{view}\"}}],\
         \"sort\":[{{\"column\":\"dep_delay_min\",\"desc\":true}}],\"limit\":50,\
         \"columns\":[\"flight\",\"status\",\"dep_delay_min\",\"distance_mi\"]}}"
    )
}

pub(super) fn deep_query() -> String {
    "{\"table\":\"flights\",\"sort\":[{\"column\":\"dep_delay_min\",\"desc\":true}],\"limit\":50}".into()
}

fn deep_key(row: usize) -> String {
    format!("deep-{row:08}")
}

/// The cursor that stands on the row of this place of [`deep_query`].
pub(super) fn deep_cursor(place: usize, rows: usize, ties: usize) -> String {
    let group = rows / ties - 1 - place / ties;
    let key = deep_key(group * ties + place % ties);
    format!("{{\"values\":[{},\"{key}\"]}}", 1_000 + group)
}
