//! Connections that read, a bounded number of them. A read transaction covers one page.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{Connection, InterruptHandle};

use super::database::{backend, open_reader};
use crate::error::BackendError;
use crate::limits::READERS_MAX;

/// The pool. Who finds all connections busy waits.
#[derive(Debug)]
pub(super) struct Readers {
    free: Receiver<Reader>,
    back: Sender<Reader>,
    watch: Arc<ReaderWatch>,
}

#[derive(Debug)]
struct Reader {
    conn: Connection,
    index: usize,
}

/// Sees how long each reader has been at it, and can cut it off.
pub(super) struct ReaderWatch {
    started: Instant,
    slots: Vec<Slot>,
}

struct Slot {
    interrupt: InterruptHandle,
    /// Milliseconds after `started` at which the read began, plus one; 0 while idle.
    since_ms: AtomicU64,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, rusqlite::Error> {
        let (back, free) = bounded(READERS_MAX);
        let mut slots = Vec::new();
        for index in 0..READERS_MAX {
            let conn = open_reader(path)?;
            slots.push(Slot { interrupt: conn.get_interrupt_handle(), since_ms: AtomicU64::new(0) });
            back.send(Reader { conn, index }).map_err(|_| rusqlite::Error::InvalidQuery)?;
        }
        Ok(Self { free, back, watch: Arc::new(ReaderWatch { started: Instant::now(), slots }) })
    }

    pub(super) fn watch(&self) -> Arc<ReaderWatch> {
        Arc::clone(&self.watch)
    }

    /// Runs a read in one transaction: what it sees is one moment. Blocks.
    pub(super) fn read<T, E>(&self, read: impl FnOnce(&Connection) -> Result<T, ReadStop<E>>) -> Result<T, E>
    where
        E: From<BackendError>,
    {
        let reader = self.free.recv().map_err(|_| E::from(BackendError::Closed))?;
        let slot = &self.watch.slots[reader.index];
        slot.since_ms.store(self.watch.elapsed_ms() + 1, Ordering::Relaxed);
        let lent = Lent { pool: self, reader: Some(reader) };
        let Some(Reader { conn, .. }) = &lent.reader else { return Err(E::from(BackendError::Closed)) };
        let result = transaction(conn, read);
        drop(lent);
        result.map_err(|stop| match stop {
            ReadStop::Refused(refused) => refused,
            ReadStop::Storage(error) => E::from(backend(&error)),
        })
    }
}

/// Why a read gave nothing.
#[derive(Debug)]
pub(super) enum ReadStop<E> {
    Refused(E),
    Storage(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for ReadStop<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error)
    }
}

impl<E> From<rusqlite::types::FromSqlError> for ReadStop<E> {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Storage(error.into())
    }
}

fn transaction<T, E>(
    conn: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, ReadStop<E>>,
) -> Result<T, ReadStop<E>> {
    conn.prepare_cached("BEGIN")?.raw_execute()?;
    read(conn)
}

/// A connection that goes back to the pool, its transaction ended, also when the read panics.
struct Lent<'a> {
    pool: &'a Readers,
    reader: Option<Reader>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        if !reader.conn.is_autocommit()
            && let Err(error) = reader.conn.execute_batch("ROLLBACK")
        {
            tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "a read transaction did not end");
        }
        self.pool.watch.slots[reader.index].since_ms.store(0, Ordering::Relaxed);
        // The channel has room for every reader there is.
        let _ = self.pool.back.send(reader);
    }
}

impl ReaderWatch {
    /// Cuts off the reads that have gone on for longer than this. Answers how many.
    pub(super) fn cut(&self, longer_than: Duration) -> usize {
        let now = self.elapsed_ms();
        let bound = u64::try_from(longer_than.as_millis()).unwrap_or(u64::MAX);
        let mut cut = 0;
        for slot in &self.slots {
            let since = slot.since_ms.load(Ordering::Relaxed);
            if since > 0 && now.saturating_sub(since - 1) > bound {
                slot.interrupt.interrupt();
                cut += 1;
            }
        }
        cut
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Debug for ReaderWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReaderWatch").field("readers", &self.slots.len()).finish()
    }
}
