//! Channels beside the streams of a Redis server, each a process of its own on this machine, and what they cost.
//!
//! Clients are threads of this process and share the cores with both. What is compared is measured in turn, in the same
//! run, and entries are the same ones: their sender, its sequence, their type and 100 bytes, field by field on Redis.

mod bounds;
mod durable;
mod ends;
mod idle;
mod push;
mod wire;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use millrace::channels::{
    ChannelId, ChannelLimits, ChannelName, ChannelOptions, NewChannel, NewProcess, Party, ProcessId,
    ProcessName,
};
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::host::{HostProcess, Setup};
use tempfile::TempDir;

use wire::Http;

pub(crate) use idle::{IDLE, print_idle};

const PAYLOAD_BYTES: usize = 100;
/// Entries that a channel may hold here: as many as come, as on Redis.
const ENTRIES_MAX: u64 = 100_000_000;
const SUBMITTER: &str = "client";
const EXECUTOR: &str = "worker";
const CHANNEL: &str = "out";

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    push::run(suite)?;
    durable::run(suite)?;
    bounds::run(suite)?;
    idle::run(suite)
}

/// A host under measurement.
#[derive(Debug)]
struct Server {
    host: HostProcess,
    _dir: TempDir,
}

impl Server {
    fn start(settings: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let setup =
            settings.iter().fold(Setup::new(super::replay::binary()), |setup, setting| setup.set(setting));
        let host = super::runtime()?.block_on(HostProcess::start_as(setup, &dir.path().join("store")))?;
        Ok(Self { host, _dir: dir })
    }

    /// One where nobody's rate is bound, and channels hold all that comes.
    fn unbound(store: &str) -> Result<Self> {
        Self::start(&[
            &format!("channels.store={store}"),
            "channels.channel_rate_limited=false",
            &format!("channels.channel_entries_max={ENTRIES_MAX}"),
        ])
    }

    fn addr(&self) -> SocketAddr {
        self.host.url.trim_start_matches("http://").parse().expect("a host's URL names its address")
    }

    /// Makes a process that nobody has made, with one channel; answers its name.
    fn process(&self) -> Result<String> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let name = format!("job-{}", LAST.fetch_add(1, Ordering::Relaxed));
        make_process(&mut Http::open(self.addr())?, &name)?;
        Ok(name)
    }
}

fn make_process(http: &mut Http, name: &str) -> Result<()> {
    let body = format!("{{\"executor\":\"{EXECUTOR}\",\"channels\":[\"{CHANNEL}\"]}}");
    http.ask("PUT", &format!("/v1/processes/{name}?as={SUBMITTER}"), &body)
}

/// The bounds of [`Server::unbound`], in this process.
fn unbound() -> ChannelLimits {
    ChannelLimits { rate_limited: false, entries_max: ENTRIES_MAX, ..ChannelLimits::default() }
}

/// A process with one channel, in this process.
fn new_process(number: usize) -> Result<(NewProcess, ChannelId)> {
    let id = ProcessId { tenant: super::tenant(), name: ProcessName::new(&format!("job-{number}"))? };
    let name = ChannelName::new(CHANNEL)?;
    let channel = ChannelId { process: id.clone(), name: name.clone() };
    let options = ChannelOptions { entries_max: ENTRIES_MAX, ..ChannelOptions::default() };
    let new = NewProcess {
        id,
        submitter: Party::new(SUBMITTER)?,
        executor: Some(Party::new(EXECUTOR)?),
        observers: Vec::new(),
        channels: vec![NewChannel { name, options }],
    };
    Ok((new, channel))
}

/// A name, a unit, a floor, which way is better, and the values of the rounds.
type Row<'a> = (&'a str, &'a str, Option<f64>, Better, Vec<f64>);

fn record(suite: &mut Suite, rows: Vec<Row<'_>>) -> Result<()> {
    for (name, unit, floor, better, values) in rows {
        suite.record(Figure { name, unit, floor, better }, &values)?;
    }
    Ok(())
}

fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

/// Runs as many threads as there are numbers; answers what they answer.
fn side_by_side<T: Send>(threads: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        running.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect()
    })
}
