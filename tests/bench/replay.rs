//! The January replay: a publisher process over HTTP, a host process, three plugins, until every row is durable.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::flights;
use millrace_tests::guests::guest;
use millrace_tests::host::HostProcess;

use super::runtime;

const EVENTS: f64 = 79_868.0;
pub(crate) const PLUGINS: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];

/// The `millrace` binary under measurement.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("MILLRACE_BENCH_HOST")
        .map_or_else(|| millrace_tests::workspace_binary("millrace"), PathBuf::from)
}

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    let mut memory = Vec::new();
    let figure = Figure {
        name: "January replay over HTTP, three plugins, until every row is durable",
        unit: "events/s",
        floor: Some(50_000.0),
        better: Better::Higher,
    };
    suite.measure(figure, |_| {
        let (rate, resident) = runtime()?.block_on(replay())?;
        memory.push(resident);
        Ok(rate)
    })?;
    let figure =
        Figure { name: "resident memory after the replay", unit: "MiB", floor: None, better: Better::Lower };
    suite.record(figure, &memory)?;
    Ok(())
}

async fn replay() -> Result<(f64, f64)> {
    let dir = tempfile::tempdir()?;
    let mut host = HostProcess::start_with(&binary(), &dir.path().join("store")).await?;
    for name in PLUGINS {
        host.deploy(std::fs::read(guest(name))?.into()).await?;
    }
    let begin = Instant::now();
    let publisher = Command::new(binary())
        .args(["publish", "--json", "--url", &host.url])
        .arg(flights::path())
        .stdout(std::process::Stdio::null())
        .status()
        .context("the publisher starts")?;
    ensure!(publisher.success(), "the publisher failed");
    host.settle_every(Duration::from_millis(2)).await?;
    let rate = EVENTS / begin.elapsed().as_secs_f64();
    let resident = resident_mib(host.pid())?;
    ensure!(host.terminate()?, "the host ends well");
    Ok((rate, resident))
}

/// What the kernel says the process holds.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("a VmRSS line")?;
    let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib / 1024.0)
}
