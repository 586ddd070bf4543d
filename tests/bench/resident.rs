//! Many processors on one host: what each holds while it works and when it is idle, how long an idle one takes
//! to come back, and how long a start with a hundred takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::event::{Event, EventBatch, TenantId};
use millrace::limits::HEAP_TRIM_WAIT;
use millrace::plugins::{
    CodeState, DeployFrom, DeployOptions, DeployRequest, PluginRuntime, PluginSettings, RuntimeOptions,
    WasmRuntime,
};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::embedded::Embedded;
use millrace_tests::guests;
use millrace_tests::host::{HostProcess, Setup};

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

    let few_idle = runtime()?.block_on(go_idle(&store, SOME, &mut events))?;
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
        ("resident memory of one more plugin that has just worked, of 1,000 distinct ones", "KiB", None),
        ("of which is its own: not backed by files", "KiB", Some(64.0)),
        ("start with 1,000 precompiled processors until each has handled an event", "ms", None),
    ]
    .into_iter()
    .zip(&values)
    {
        suite.record(Figure { name, unit, floor, better: Better::Lower }, values)?;
    }
    idle(suite, &store, &few_idle, &mut events)?;
    loaded(suite, &store)?;
    wakes(suite)?;
    tenants(suite)
}

/// What one more plugin holds once it has had nothing to do for a while and has given its code back.
fn idle(suite: &mut Suite, store: &Path, few: &Idle, events: &mut u64) -> Result<()> {
    let mut values = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        let many = runtime()?.block_on(go_idle(store, MANY, events))?;
        let more = (MANY - SOME) as f64;
        let each = |kind: &str| (many.memory[kind] - few.memory[kind]) / more;
        values[0].push(each("VmRSS"));
        values[1].push(each("RssAnon"));
        values[2].push(many.loaded_descriptors);
        values[3].push(many.idle_descriptors);
        values[4].push(many.woken);
        eprintln!("  idle: {:?}", many.memory);
    }
    for ((name, unit, floor), values) in [
        ("resident memory of one more idle plugin, of 1,000 distinct ones", "KiB", Some(64.0)),
        ("of which is its own: not backed by files, when it is idle", "KiB", Some(64.0)),
        ("file descriptors of a host with 1,000 distinct plugins that have just worked", "", None),
        ("the same when they are idle", "", None),
        ("one event that 1,000 idle plugins wait for, until each has handled it", "ms", None),
    ]
    .into_iter()
    .zip(&values)
    {
        suite.record(Figure { name, unit, floor, better: Better::Lower }, values)?;
    }
    Ok(())
}

/// From an event's append until an idle plugin has committed what it made of it, and the same for one that is
/// loaded. Both on a host of their own that does nothing else.
fn wakes(suite: &mut Suite) -> Result<()> {
    const WAKES: usize = 200;
    let figure = |name| Figure { name, unit: "ms", floor: None, better: Better::Lower };
    for (idle_ms, named) in [
        (40, ["event to commit of an idle plugin: median", "event to commit of an idle plugin: p99"]),
        (600_000, ["event to commit of a loaded plugin: median", "event to commit of a loaded plugin: p99"]),
    ] {
        let mut took = runtime()?.block_on(async {
            let host = Embedded::start_with(|c| c.processors.task_idle_ms_max = idle_ms).await?;
            let plugin = host.host().plugins().deploy(request(0)).await?.name;
            let mut took = Vec::new();
            for number in 1..=WAKES as u64 {
                while idle_ms < 1_000
                    && host.host().plugins().show(&plugin).await?.measures.code != Some(CodeState::Idle)
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let begin = Instant::now();
                host.host().log().append(one_event("tenant", number)?).await?;
                while host.host().plugins().show(&plugin).await?.counters.events < number {
                    ensure!(begin.elapsed() < WAIT_MAX, "the event is not handled");
                    tokio::task::yield_now().await;
                }
                took.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            host.stop().await;
            anyhow::Ok(took)
        })?;
        took.sort_by(f64::total_cmp);
        suite.record(figure(named[0]), &[took[WAKES / 2]])?;
        suite.record(figure(named[1]), &[took[WAKES * 99 / 100]])?;
    }
    Ok(())
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
    until(&host, plugins, Duration::from_millis(1), |p| p["counters"]["events"].as_u64() >= Some(1)).await?;
    let handled = begin.elapsed().as_secs_f64() * 1e3;
    let (memory, worked) = (memory(host.pid())?, processor_millis(host.pid())?);
    ensure!(host.terminate()?, "the host ends well");
    Ok(Started { ready, handled, worked, memory })
}

/// Waits until so many plugins are so.
async fn until(
    host: &HostProcess,
    plugins: usize,
    between: Duration,
    so: impl Fn(&serde_json::Value) -> bool,
) -> Result<()> {
    let begin = Instant::now();
    loop {
        let answer = host.get("/v1/plugins").await?;
        let found =
            answer["plugins"].as_array().context("a list of plugins")?.iter().filter(|p| so(p)).count();
        if found >= plugins {
            return Ok(());
        }
        ensure!(begin.elapsed() < WAIT_MAX, "{found} of {plugins} plugins have come so far: {answer}");
        tokio::time::sleep(between).await;
    }
}

struct Idle {
    /// KiB by the kernel's names, when all are idle.
    memory: BTreeMap<String, f64>,
    loaded_descriptors: f64,
    idle_descriptors: f64,
    /// Milliseconds from an event until all of them had handled it.
    woken: f64,
}

/// Starts a host whose plugins handle an event, lets them become idle, and wakes them all.
async fn go_idle(store: &Path, plugins: usize, events: &mut u64) -> Result<Idle> {
    const IDLE_MS: u64 = 4_000;
    let setup = Setup::new(binary()).set(&format!("processors.task_idle_ms_max={IDLE_MS}"));
    let mut host = HostProcess::start_as(setup, store).await?;
    publish(&host, events).await?;
    let pause = Duration::from_millis(100);
    until(&host, plugins, pause, |p| p["counters"]["events"].as_u64() >= Some(1)).await?;
    let loaded_descriptors = descriptors(host.pid())?;
    until(&host, plugins, pause * 5, |p| p["measures"]["code"] == "idle").await?;
    // The heap's free pages go a moment after the last of many has given its code back.
    tokio::time::sleep(HEAP_TRIM_WAIT * 3).await;
    let (memory, idle_descriptors) = (memory(host.pid())?, descriptors(host.pid())?);
    let begin = Instant::now();
    publish(&host, events).await?;
    let again = |p: &serde_json::Value| p["counters"]["events"].as_u64() >= Some(2);
    until(&host, plugins, Duration::from_millis(10), again).await?;
    let woken = begin.elapsed().as_secs_f64() * 1e3;
    ensure!(host.terminate()?, "the host ends well");
    Ok(Idle { memory, loaded_descriptors, idle_descriptors, woken })
}

fn descriptors(pid: u32) -> Result<f64> {
    Ok(std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count() as f64)
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
            let status = host.host().plugins().deploy(request(0)).await?;
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

fn request(number: usize) -> DeployRequest {
    DeployRequest {
        component: guests::resident(number).into(),
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: "bench".into(),
        options: DeployOptions::default(),
        paused: false,
        settings: None,
        progress: None,
    }
}

fn one_event(tenant: &str, version: u64) -> Result<EventBatch> {
    let mut batch = EventBatch::new(TenantId::new(tenant)?);
    let (aggregate, agg_id, event_type) = ("thing", "a", "thing.changed");
    batch.push(&Event { aggregate, agg_id, event_type, version, payload: b"{}", ..Event::default() })?;
    Ok(batch)
}

/// An event for each of these tenants, handled and committed.
async fn serve(host: &Embedded, plugin: &str, tenants: std::ops::Range<usize>) -> Result<()> {
    let through = tenants.end as u64;
    for number in tenants {
        host.host().log().append(one_event(&format!("tenant-{number}"), 1)?).await?;
    }
    let begin = Instant::now();
    while host.host().plugins().show(plugin).await?.counters.events < through {
        ensure!(begin.elapsed() < WAIT_MAX, "not every tenant's event is handled");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
