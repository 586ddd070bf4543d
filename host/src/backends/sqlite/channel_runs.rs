//! What was appended to channels lately. A transaction writes all that it appended, to however many channels, as one row:
//! a run. So a sync carries a few pages instead of some for each channel. Until the entries of a channel lie in
//! `channel_entries` they are in memory as well (`channel_unsettled`), for whoever reads; from time to time they are settled,
//! many at once and never too many.
//!
//! A channel's record in `channels` says up to where its entries are settled for sure: its newest position. The oldest of
//! those behind it may be settled, too. So a run may stay for longer than it has to. A start reads what runs have left and
//! settles it later: it writes nothing, since the disk may be full.

use std::sync::Arc;

use super::channel_run_bytes::{begin, write_channel};
use super::channel_unsettled::{Step, weight};
use super::channels::EntryRows;
use super::committer::Committer;
use crate::channels::{Channel, ChannelId, Entry};
use crate::limits::{CHANNEL_RUN_BYTES_MAX, CHANNEL_SETTLE_BYTES, CHANNEL_SETTLE_ROUNDS};

/// What runs add to the schema.
pub(super) const SCHEMA: &str = "
CREATE TABLE channel_runs(id INTEGER PRIMARY KEY AUTOINCREMENT, run BLOB NOT NULL);
";

/// What a transaction has appended to a channel.
#[derive(Debug)]
pub(super) struct Fresh<'a> {
    pub(super) id: &'a ChannelId,
    pub(super) number: i64,
    pub(super) channel: &'a Arc<Channel>,
    pub(super) entries: Vec<&'a Arc<Entry>>,
}

/// What a channel and an entry take in a run beside payloads, with names of usual length.
const ROOM_OF_A_CHANNEL: usize = 160;
const ROOM_OF_AN_ENTRY: usize = 80;

impl Fresh<'_> {
    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes()).sum()
    }

    /// About what it takes in a run, rather more.
    fn room(&self) -> usize {
        self.bytes() + ROOM_OF_A_CHANNEL + self.entries.len() * ROOM_OF_AN_ENTRY
    }
}

/// None of nothing.
fn encode(fresh: &[Fresh<'_>]) -> rusqlite::Result<Option<Vec<u8>>> {
    if fresh.is_empty() {
        return Ok(None);
    }
    let mut run = begin();
    run.reserve(fresh.iter().map(Fresh::room).sum());
    for fresh in fresh {
        write_channel(&mut run, fresh.number, fresh.channel, &fresh.entries)?;
    }
    Ok(Some(run))
}

impl Committer {
    /// What a transaction has appended becomes its run, or is settled where it is large or its channel's record is written.
    pub(super) fn write_run(&mut self) -> rusqlite::Result<()> {
        let mut settle = self.book.dirty_channels();
        let fresh = self.book.fresh();
        let large = fresh.iter().filter(|fresh| fresh.bytes() > CHANNEL_RUN_BYTES_MAX);
        settle.extend(large.map(|fresh| (fresh.id.clone(), fresh.number)));
        let appended = fresh.iter().map(|fresh| weight(fresh.entries.iter().copied())).sum();
        let steps = self.shared.unsettled.due(appended);
        let run = if settle.is_empty() && steps.is_empty() {
            encode(&fresh)?
        } else {
            for (id, number) in &settle {
                self.settle_channel(id, *number)?;
            }
            for step in &steps {
                self.settle_step(step)?;
            }
            encode(&self.book.fresh())?
        };
        if let Some(run) = run {
            self.conn.prepare_cached("INSERT INTO channel_runs(run) VALUES (?1)")?.execute([run])?;
            let number = self.conn.last_insert_rowid();
            self.book.has_run(number);
        }
        self.drop_runs()
    }

    /// Runs of which everything is settled.
    fn drop_runs(&mut self) -> rusqlite::Result<()> {
        let settled = self.book.settled();
        if settled.is_empty() {
            return Ok(());
        }
        let first = self.shared.unsettled.first_run(&settled);
        let before = first.or(self.book.run()).unwrap_or(i64::MAX);
        self.conn.prepare_cached("DELETE FROM channel_runs WHERE id < ?1")?.execute([before]).map(drop)
    }

    /// All entries of a channel lie in its table after this, those of this transaction, too; its record is written with
    /// the transaction.
    pub(super) fn settle_channel(&mut self, id: &ChannelId, number: i64) -> rusqlite::Result<()> {
        let until = self.book.settled_until(id);
        let recent = self.shared.unsettled.of(id);
        let recent = recent.filter(|recent| recent.number == number && recent.channel.newest > until);
        let fresh = self.book.fresh_of(id).to_vec();
        let newest = fresh.last().map(|last| last.position);
        let Some(newest) = newest.or(recent.as_ref().map(|recent| recent.channel.newest)) else {
            return Ok(());
        };
        let Some(at) = self.place_of(id, number)? else { return Ok(()) };
        let committed = recent.iter().flat_map(|recent| &recent.entries);
        let mut rows = EntryRows::of(&self.conn)?;
        for entry in committed.filter(|entry| entry.position > until).chain(&fresh) {
            rows.insert(number, entry)?;
        }
        drop(rows);
        self.book.mark_dirty(&id.process, at);
        self.book.note_settled(id, newest);
        Ok(())
    }

    /// Its place among the channels of its process. None of a process that is gone with this transaction: nothing of it is
    /// kept.
    fn place_of(&mut self, id: &ChannelId, number: i64) -> rusqlite::Result<Option<usize>> {
        let open = self.open_process(&id.process)?;
        Ok(open.and_then(|open| open.numbers.iter().position(|known| *known == number)))
    }

    /// The same as far as a step goes. While entries are left, the record stays as it was: who reads has the newer one.
    fn settle_step(&mut self, step: &Step) -> rusqlite::Result<()> {
        let Step { id, number, entries, is_all } = step;
        if *is_all {
            return self.settle_channel(id, *number);
        }
        let until = self.book.settled_until(id);
        let Some(last) = entries.last().filter(|last| last.position > until) else { return Ok(()) };
        if self.place_of(id, *number)?.is_none() {
            return Ok(());
        }
        let mut rows = EntryRows::of(&self.conn)?;
        for entry in entries.iter().filter(|entry| entry.position > until) {
            rows.insert(*number, entry)?;
        }
        drop(rows);
        self.book.note_settled(id, last.position);
        Ok(())
    }

    /// Settles what has waited for longest, about so many bytes. Answers whether there is more.
    pub(super) fn settle_some(&mut self, bytes: usize) -> rusqlite::Result<bool> {
        for step in self.shared.unsettled.oldest(bytes) {
            self.settle_step(&step)?;
        }
        let settled = self.book.settled();
        Ok(self.shared.unsettled.first_run(&settled).is_some())
    }

    /// Settles everything, in transactions of its own. What fails is left to the next start.
    pub(super) fn settle_at_end(&mut self) {
        while !self.shared.unsettled.is_empty() {
            let before = self.shared.unsettled.bytes();
            let settled = self
                .execute("BEGIN IMMEDIATE")
                .and_then(|()| self.settle_some(CHANNEL_SETTLE_BYTES * CHANNEL_SETTLE_ROUNDS))
                .and_then(|_| self.write_channels())
                .and_then(|()| self.execute("COMMIT"));
            match settled {
                Ok(()) => self.book.publish(&self.shared.channel_tails, &self.shared.unsettled),
                Err(error) => {
                    tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "entries of channels stay in runs for the next start");
                    if !self.conn.is_autocommit() {
                        // The connection is closed next.
                        let _ = self.conn.execute_batch("ROLLBACK");
                    }
                    return;
                }
            }
            // What cannot be settled any more is not tried for ever.
            if self.shared.unsettled.bytes() == before {
                return;
            }
        }
    }
}
