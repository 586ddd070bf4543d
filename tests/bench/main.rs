//! The benchmarks: what the README quotes. `cargo xtask bench [SUITE…]` builds and runs them in release.

mod channels;
mod control;
mod guests;
mod hostile;
mod live;
mod live_sockets;
mod log;
mod processors;
mod replay;
mod resident;
mod sources;
mod start;
mod streams;
mod swaps;

use std::path::PathBuf;

use anyhow::{Result, bail};
use millrace::event::{Event, EventBatch, TenantId};
use millrace_tests::bench::Suite;

type Run = fn(&mut Suite) -> Result<()>;

const SUITES: [(&str, Run); 15] = [
    ("log", log::run),
    ("catchup", processors::catchup),
    ("crossing", processors::crossing),
    ("projection", processors::projection),
    ("replay", replay::run),
    ("start", start::run),
    ("swaps", swaps::run),
    ("resident", resident::run),
    ("hostile", hostile::run),
    ("streams", streams::run),
    ("live", live_all),
    ("channels", channels::run),
    ("control", control::run),
    ("sources", sources::run),
    ("guests", guests::run),
];

fn main() -> Result<()> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == [channels::IDLE] {
        return channels::print_idle();
    }
    // What swaps promise holds for a host full of processors: whoever asks for the one gets the other.
    if wanted.iter().any(|name| name == "swaps") && !wanted.iter().any(|name| name == "resident") {
        wanted.push("resident".into());
    }
    let names = SUITES.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no suite `{unknown}`; there are {}", names.join(", "));
    }
    let dir = std::env::var_os("MILLRACE_BENCH_DIR").map_or_else(|| "target/bench".into(), PathBuf::from);
    for (name, run) in SUITES {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("{name}");
            let mut suite = Suite::new(name);
            run(&mut suite)?;
            suite.finish(&dir)?;
        }
    }
    Ok(())
}

/// The engine alone, and then the whole way to the clients.
fn live_all(suite: &mut Suite) -> Result<()> {
    if std::env::var_os("MILLRACE_BENCH_SOCKETS").is_none() {
        live::run(suite)?;
    }
    live_sockets::run(suite)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn tenant() -> TenantId {
    TenantId::new("default").expect("a good name")
}

/// A payload that makes an event of 256 bytes, ids and all.
fn payload() -> String {
    format!("{{\"note\":\"{}\"}}", "x".repeat(170))
}

/// `events` events of about 256 bytes, numbered from `first`; ids are given, as a publisher would.
fn events(first: u64, events: u64) -> EventBatch {
    let payload = payload();
    let count = usize::try_from(events).expect("batches are small");
    let mut batch = EventBatch::with_capacity(tenant(), count, count * 300);
    for number in first..first + events {
        let id = format!("{number:016x}");
        let agg_id = format!("thing-{}", number % 1_000);
        batch
            .push(&Event {
                id: &id,
                aggregate: "thing",
                agg_id: &agg_id,
                event_type: "thing.changed",
                version: number + 1,
                payload: payload.as_bytes(),
                ..Event::default()
            })
            .expect("a good event");
    }
    batch
}
