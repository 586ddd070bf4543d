//! The process that the power-cut harness cuts: publishers, and a processor
//! that writes rows, on a store in `DIR`. Each acknowledged event is noted in
//! `DIR/acknowledged`, a line each, before the next one is published.

use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore, Synchronous};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, TenantId};
use millrace::processors::{Engine, GuestPool, ProcessorSettings, Runner};
use millrace::streams::{AggregateScopes, EventLog, Scope};
use millrace::tables::TableStore;
use millrace_tests::scripted::{Scripted, table};
use millrace_tests::until;

const PUBLISHERS: u64 = 4;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let usage = "powercut DIR full|off EVENTS";
    let dir = words.next().context(usage)?;
    let synchronous = match words.next().context(usage)?.as_str() {
        "off" => Synchronous::Off,
        _ => Synchronous::Full,
    };
    let events: u64 = words.next().context(usage)?.parse()?;
    // A small WAL bound, so that checkpoints into the database are cut, too.
    let options = SqliteOptions { synchronous, wal_bytes_soft_max: 64 << 10, ..SqliteOptions::new(&dir) };
    let store = SqliteStore::open(options)?;
    store.declare("scripted", &[table()]).await?;
    let scopes = AggregateScopes { aggregate: "thing".to_owned(), scopes: vec![Scope::Id, Scope::Tenant] };
    store.declare_scopes("scripted", &[scopes]).await?;
    let engine = Engine {
        shared_log: None,
        log: Arc::new(store.clone()),
        checkpoints: Arc::new(store.clone()),
        pool: GuestPool::new(2)?,
        clock: Arc::new(SystemClock),
        runtime: tokio::runtime::Handle::current(),
    };
    let runner = Runner::start(&engine, Arc::new(Scripted::new("scripted", 1)), ProcessorSettings::default());
    let notes = std::fs::OpenOptions::new().create(true).append(true).open(format!("{dir}/acknowledged"))?;
    let notes = Arc::new(Mutex::new(notes));
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(store.clone(), Arc::clone(&notes), publisher, events / PUBLISHERS));
    }
    while let Some(done) = publishers.join_next().await {
        done??;
    }
    let newest = store.bounds().newest;
    until("the processor is done", || runner.status().done_through >= newest).await;
    Ok(())
}

async fn publish(
    store: SqliteStore,
    notes: Arc<Mutex<std::fs::File>>,
    publisher: u64,
    events: u64,
) -> Result<()> {
    let tenant = TenantId::new("default")?;
    let agg_id = format!("p{publisher}");
    for version in 1..=events {
        let mut batch = EventBatch::new(tenant.clone());
        let payload = format!("{{\"n\":{version}}}");
        let event = Event {
            aggregate: "thing",
            agg_id: &agg_id,
            event_type: "add",
            version,
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event)?;
        let appended = store.append(batch).await?;
        let line = format!("{agg_id} {version} {}\n", appended[0].position);
        notes.lock().expect("no publisher panics").write_all(line.as_bytes())?;
    }
    Ok(())
}
