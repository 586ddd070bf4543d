//! Many processors on one host: what each holds, and how long a start with a hundred takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::event::{Event, EventBatch, TenantId};
use millrace::plugins::{
    DeployFrom, DeployOptions, DeployRequest, PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime,
};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::embedded::Embedded;
use millrace_tests::guests;
use millrace_tests::host::HostProcess;

use super::replay::binary;
use super::runtime;

const MANY: usize = 1_000;
const SOME: usize = 100;
const WAIT_MAX: Duration = Duration::from_secs(120);

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    let mut events = 0;
    runtime()?.block_on(deploy(&store, 0..SOME, &mut events))?;
    let mut memory = Vec::new();
    let figure = Figure {
        name: "start with 100 precompiled processors until each has handled and committed an event",
        unit: "ms",
        floor: Some(150.0),
        better: Better::Lower,
    };
    let (mut ready, mut worked) = (Vec::new(), Vec::new());
    suite.measure(figure, |_| {
        let started = runtime()?.block_on(start(&store, SOME, &mut events))?;
        memory.push(started.memory);
        ready.push(started.ready);
        worked.push(started.worked);
        Ok(started.handled)
    })?;
    for (name, values) in
        [("the same until the host is ready", &ready), ("processor time that this start took", &worked)]
    {
        suite.record(Figure { name, unit: "ms", floor: None, better: Better::Lower }, values)?;
    }

    eprintln!("  deploying {MANY} plugins, which takes a minute or two");
    let few = memory.iter().map(|memory| memory["VmRSS"]).sum::<f64>() / ROUNDS as f64;
    let few_anon = memory.iter().map(|memory| memory["RssAnon"]).sum::<f64>() / ROUNDS as f64;
    runtime()?.block_on(deploy(&store, SOME..MANY, &mut events))?;
    let mut values = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let started = runtime()?.block_on(start(&store, MANY, &mut events))?;
        let more = (MANY - SOME) as f64;
        values[0].push((started.memory["VmRSS"] - few) / more);
        values[1].push((started.memory["RssAnon"] - few_anon) / more);
        values[2].push(started.handled);
        eprintln!("  {:?}", started.memory);
    }
    // The rest is code: pages of the precompiled cache's files, which the kernel takes back when it needs them.
    for ((name, unit, floor), values) in [
        ("resident memory of one more plugin, of 1,000 distinct ones", "KiB", None),
        ("of which is its own: not backed by files", "KiB", Some(64.0)),
        ("start with 1,000 precompiled processors until each has handled an event", "ms", None),
    ]
    .into_iter()
    .zip(&values)
    {
        suite.record(Figure { name, unit, floor, better: Better::Lower }, values)?;
    }
    loaded(suite, &store)?;
    tenants(suite)
}

/// What a plugin holds before it runs: its native code and what the engine knows of it.
fn loaded(suite: &mut Suite, store: &Path) -> Result<()> {
    const LOADED: usize = 200;
    // The host's own cache: compiling here would leave memory behind that loading then finds free.
    let options = RuntimeOptions { cache_dir: Some(store.join("precompiled")), ..RuntimeOptions::default() };
    let components = (0..LOADED).map(guests::resident).collect::<Vec<_>>();
    let runtime = WasmRuntime::new(options)?;
    let figure = |name| Figure { name, unit: "KiB", floor: None, better: Better::Lower };
    let before = memory(std::process::id())?;
    let load = |component: &Vec<u8>| runtime.load(component, &|_| PluginSettings::default());
    let factories = components.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let after = memory(std::process::id())?;
    for (name, kind) in [
        ("resident memory of one more plugin that is loaded from the cache and does not run", "VmRSS"),
        ("of which is its own: not backed by files, when it does not run", "RssAnon"),
    ] {
        suite.record(figure(name), &[(after[kind] - before[kind]) / factories.len() as f64])?;
    }
    Ok(())
}

async fn deploy(store: &Path, numbers: std::ops::Range<usize>, events: &mut u64) -> Result<()> {
    let mut host = HostProcess::start_with(&binary(), store).await?;
    for number in numbers {
        host.deploy(guests::resident(number).into()).await?;
    }
    publish(&host, events).await?;
    host.settle_every(Duration::from_millis(20)).await?;
    ensure!(host.terminate()?, "the host ends well");
    Ok(())
}

async fn publish(host: &HostProcess, events: &mut u64) -> Result<()> {
    *events += 1;
    let event = format!(
        "{{\"aggregate\":\"thing\",\"agg_id\":\"a\",\"version\":{events},\"type\":\"thing.changed\",\"payload\":{{}}}}\n"
    );
    host.publish(event).await?;
    Ok(())
}

struct Started {
    /// Milliseconds until the host answered that it is ready, and until each plugin had committed an event.
    ready: f64,
    handled: f64,
    /// Milliseconds of processor time up to then: what a start costs whatever else the machine does.
    worked: f64,
    /// KiB by the kernel's names.
    memory: BTreeMap<String, f64>,
}

async fn start(store: &Path, plugins: usize, events: &mut u64) -> Result<Started> {
    let begin = Instant::now();
    let mut host = HostProcess::start_with(&binary(), store).await?;
    let ready = begin.elapsed().as_secs_f64() * 1e3;
    publish(&host, events).await?;
    loop {
        let answer = host.get("/v1/plugins").await?;
        let all = answer["plugins"].as_array().context("a list of plugins")?;
        let handled = all.iter().filter(|plugin| plugin["counters"]["events"].as_u64() >= Some(1)).count();
        if handled >= plugins {
            break;
        }
        ensure!(begin.elapsed() < WAIT_MAX, "{handled} of {plugins} plugins have handled an event: {answer}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let handled = begin.elapsed().as_secs_f64() * 1e3;
    let (memory, worked) = (memory(host.pid())?, processor_millis(host.pid())?);
    ensure!(host.terminate()?, "the host ends well");
    Ok(Started { ready, handled, worked, memory })
}

/// Processor time of all of a process's threads, those that have ended too, in ticks of 10 ms.
fn processor_millis(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a command in brackets")?;
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() * 10.0)
}

fn memory(pid: u32) -> Result<BTreeMap<String, f64>> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()).context("a line of the status")?;
        Ok((name.to_owned(), kib.parse::<f64>()?))
    };
    ["VmRSS", "RssAnon", "RssFile", "RssShmem"].into_iter().map(line).collect()
}

/// One plugin with an instance for each of many tenants.
fn tenants(suite: &mut Suite) -> Result<()> {
    const FIRST: usize = 10;
    const LAST: usize = 990;
    let figure = Figure {
        name: "resident memory of one more live instance: a plugin's tenant, of 990",
        unit: "KiB",
        floor: Some(64.0),
        better: Better::Lower,
    };
    suite.measure(figure, |_| {
        runtime()?.block_on(async {
            let host = Embedded::start().await?;
            let request = DeployRequest {
                component: guests::resident(0).into(),
                expected_name: None,
                from: DeployFrom::Oldest,
                by: "bench".into(),
                options: DeployOptions::default(),
            };
            let status = host.host().plugins().deploy(request).await?;
            serve(&host, &status.name, 0..FIRST).await?;
            let before = memory(std::process::id())?["VmRSS"];
            serve(&host, &status.name, FIRST..LAST).await?;
            let after = memory(std::process::id())?["VmRSS"];
            host.stop().await;
            Ok((after - before) / (LAST - FIRST) as f64)
        })
    })?;
    Ok(())
}

/// An event for each of these tenants, handled and committed.
async fn serve(host: &Embedded, plugin: &str, tenants: std::ops::Range<usize>) -> Result<()> {
    let through = tenants.end as u64;
    for number in tenants {
        let mut batch = EventBatch::new(TenantId::new(&format!("tenant-{number}"))?);
        let (aggregate, agg_id, event_type) = ("thing", "a", "thing.changed");
        let payload = b"{}";
        batch.push(&Event { aggregate, agg_id, event_type, version: 1, payload, ..Event::default() })?;
        host.host().log().append(batch).await?;
    }
    let begin = Instant::now();
    while host.host().plugins().show(plugin).await?.counters.events < through {
        ensure!(begin.elapsed() < WAIT_MAX, "not every tenant's event is handled");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
