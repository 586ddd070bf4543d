//! Durable appends through the Rust API, acknowledged after fdatasync.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::streams::EventLog;
use millrace_tests::bench::{Better, Figure, Suite, median};

use super::{events, runtime};

const SPAN: Duration = Duration::from_secs(4);

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    for (name, in_flight, batch, floor) in [
        ("durable single appends, 64 in flight", 64, 1, 150_000.0),
        ("durable appends in batches of 1,000, 4 in flight", 4, 1_000, 300_000.0),
    ] {
        let figure = Figure { name, unit: "events/s", floor: Some(floor), better: Better::Higher };
        suite.measure(figure, |_| appends(in_flight, batch))?;
    }
    // What the disk gives: with 64 in flight, single appends cannot be quicker than 64 for each sync.
    let figure = Figure {
        name: "fdatasync of 24 KiB on this disk, nothing else running",
        unit: "us",
        floor: None,
        better: Better::Lower,
    };
    suite.measure(figure, |_| sync_micros())?;
    Ok(())
}

/// The median of 500 writes into a file that has its size already, each synced.
fn sync_micros() -> Result<f64> {
    const BYTES: usize = 24 << 10;
    let mut file = tempfile::tempfile()?;
    file.write_all(&vec![0; 16 << 20])?;
    file.sync_all()?;
    let mut micros = Vec::new();
    for round in 0..500_u64 {
        file.seek(SeekFrom::Start(round % 600 * BYTES as u64))?;
        let begin = Instant::now();
        file.write_all(&[1; BYTES])?;
        file.sync_data()?;
        micros.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    median(&micros).context("there are rounds")
}

fn appends(in_flight: u64, batch: u64) -> Result<f64> {
    let runtime = runtime()?;
    let dir = tempfile::tempdir()?;
    let store = SqliteStore::open(SqliteOptions::new(dir.path()))?;
    let rate = runtime.block_on(async {
        let done = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (store, done, next) = (store.clone(), Arc::clone(&done), Arc::clone(&next));
            writers.spawn(async move {
                while begin.elapsed() < SPAN {
                    let first = next.fetch_add(batch, Ordering::Relaxed);
                    store.append(events(first, batch)).await?;
                    done.fetch_add(batch, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
        while let Some(writer) = writers.join_next().await {
            writer??;
        }
        let rate = done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
        store.close().await;
        anyhow::Ok(rate)
    })?;
    Ok(rate)
}
