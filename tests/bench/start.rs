//! From the start of the process to the first event's row, with three precompiled plugins.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::guests::guest;
use millrace_tests::host::HostProcess;

use super::replay::{PLUGINS, binary, resident_mib};
use super::{processors, runtime};

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    for (name, events, floor) in [
        ("start to the first row, empty store", 0, 150.0),
        ("start to the first row, a million events", 1_000_000, 1_000.0),
    ] {
        let dir = tempfile::tempdir()?;
        let store = dir.path().join("store");
        runtime()?.block_on(prepare(&store, events))?;
        let mut memory = Vec::new();
        let figure = Figure { name, unit: "ms", floor: Some(floor), better: Better::Lower };
        suite.measure(figure, |round| {
            let (millis, resident) = runtime()?.block_on(start(&store, events, round))?;
            memory.push(resident);
            Ok(millis)
        })?;
        let name =
            if events == 0 { "resident memory, empty store" } else { "resident memory, a million events" };
        suite.record(Figure { name, unit: "MiB", floor: None, better: Better::Lower }, &memory)?;
    }
    Ok(())
}

/// Deploys the plugins, so that they are precompiled, and fills the log.
async fn prepare(store: &Path, events: u64) -> Result<()> {
    let mut host = HostProcess::start_with(&binary(), store).await?;
    for name in PLUGINS {
        host.deploy(std::fs::read(guest(name))?.into()).await?;
    }
    anyhow::ensure!(host.terminate()?, "the host ends well");
    if events > 0 {
        processors::fill(store, events).await?;
        // The plugins pass over what is not for them, and remember that.
        let mut host = HostProcess::start_with(&binary(), store).await?;
        host.settle_every(Duration::from_millis(50)).await?;
        anyhow::ensure!(host.terminate()?, "the host ends well");
    }
    Ok(())
}

async fn start(store: &Path, _events: u64, round: usize) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let mut host = HostProcess::start_with(&binary(), store).await?;
    let key = format!("start-{round}");
    let payload = r#"{"flight":"X1","carrier":"X","airline":"X","tail":null,"origin":"EWR","dest":"BOS","dest_name":null,"distance_mi":1,"scheduled":"2013-01-01T10:15:00Z","status":"scheduled","dep_delay_min":null,"arr_delay_min":null,"air_time_min":null}"#;
    let event = format!(
        "{{\"aggregate\":\"flight\",\"agg_id\":\"{key}\",\"version\":1,\"type\":\"flight.scheduled\",\"at\":\"2013-01-01T08:15:00Z\",\"payload\":{payload}}}\n"
    );
    host.publish(event).await?;
    while host.get(&format!("/v1/tables/flights/{key}")).await.is_err() {
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    let resident = resident_mib(host.pid())?;
    anyhow::ensure!(host.terminate()?, "the host ends well");
    Ok((millis, resident))
}
