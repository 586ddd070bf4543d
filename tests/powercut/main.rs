//! The process that the power-cut harness cuts: publishers, and a processor
//! that writes rows, on a store in `DIR`, and both sides of a process with channels. Each acknowledged event and entry is
//! noted in `DIR/acknowledged`, a line each, before the next one is published.

use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore, Synchronous};
use millrace::channels::{
    Append, ChannelId, ChannelName, ChannelOptions, ChannelStore, EntryType, NewChannel, NewEntry,
    NewProcess, Party, ProcessId, ProcessName, WhenFull,
};
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
    let process = ProcessId { tenant: TenantId::new("default")?, name: ProcessName::new("job")? };
    let parties = [Party::new("submitter")?, Party::new("executor")?];
    let options = ChannelOptions::default();
    let short = ChannelOptions { full: WhenFull::DropOldest, entries_max: 20, ..options.clone() };
    let channel =
        |name: &str, options| Ok::<_, anyhow::Error>(NewChannel { name: ChannelName::new(name)?, options });
    let new = NewProcess {
        id: process.clone(),
        submitter: parties[0].clone(),
        executor: Some(parties[1].clone()),
        observers: Vec::new(),
        channels: vec![channel("all", options)?, channel("short", short)?],
    };
    ChannelStore::create(&store, new).await?;
    for party in parties {
        publishers.spawn(send(
            store.clone(),
            Arc::clone(&notes),
            process.clone(),
            party,
            events / PUBLISHERS,
        ));
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
        let appended = EventLog::append(&store, batch).await?;
        let line = format!("{agg_id} {version} {}\n", appended[0].position);
        notes.lock().expect("no publisher panics").write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Sends entries to both channels, the last one of which ends its half.
async fn send(
    store: SqliteStore,
    notes: Arc<Mutex<std::fs::File>>,
    process: ProcessId,
    who: Party,
    entries: u64,
) -> Result<()> {
    for sequence in 1..=entries {
        for name in ["all", "short"] {
            let channel = ChannelId { process: process.clone(), name: ChannelName::new(name)? };
            let last = if sequence == entries { EntryType::End } else { EntryType::Data };
            let entry = NewEntry::data(sequence, format!("{who} {sequence}")).of_type(last);
            let append = Append { who: who.clone(), epoch: None, entries: vec![entry] };
            let appended = ChannelStore::append(&store, &channel, append).await?;
            let line = format!("entry {name} {who} {sequence} {}\n", appended[0].position);
            notes.lock().expect("nobody panics").write_all(line.as_bytes())?;
        }
    }
    Ok(())
}
