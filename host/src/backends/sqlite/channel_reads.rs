//! Reading channels, and the seam that the store implements for them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use rusqlite::{Connection, OptionalExtension, Row};

use super::SqliteStore;
use super::channel_unsettled::{Recent, newest};
use super::channels::ChannelRequest;
use super::database::{signed, unsigned};
use super::pages::ReadResult;
use super::readers::ReadStop;
use super::request::Request;
use super::shared::{from_json, stored_tenant};
use crate::channels::{
    Actor, Append, Appended, Change, Channel, ChannelError, ChannelId, ChannelLimits, ChannelName,
    ChannelStats, ChannelStore, Entry, EntryPage, EntryType, Head, Incarnation, NewProcess, Party, Process,
    ProcessId, ProcessName, ProcessView, ReadLimit, Tails,
};
use crate::event::{Micros, Position, TenantId};

/// A process as it is stored, its channels with their numbers.
pub(super) struct Stored {
    pub(super) process: Process,
    pub(super) channels: Vec<(i64, Arc<Channel>)>,
}

fn damaged(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, why.into())
}

pub(super) fn process_id(tenant: &str, name: &str) -> rusqlite::Result<ProcessId> {
    let name = ProcessName::new(name).map_err(damaged)?;
    Ok(ProcessId { tenant: stored_tenant(tenant)?, name })
}

pub(super) fn channel_name(name: &str) -> rusqlite::Result<ChannelName> {
    ChannelName::new(name).map_err(damaged)
}

fn find_process(conn: &Connection, id: &ProcessId) -> rusqlite::Result<Option<(i64, Process)>> {
    conn.prepare_cached("SELECT id, process FROM processes WHERE tenant = ?1 AND name = ?2")?
        .query_row((id.tenant.as_str(), id.name.as_str()), |row| {
            Ok((row.get(0)?, from_json(row.get_ref(1)?.as_str()?)?))
        })
        .optional()
}

pub(super) fn load_process(conn: &Connection, id: &ProcessId) -> rusqlite::Result<Option<(i64, Stored)>> {
    let Some((number, process)) = find_process(conn, id)? else { return Ok(None) };
    let mut statement =
        conn.prepare_cached("SELECT id, channel FROM channels WHERE process = ?1 ORDER BY id")?;
    let rows = statement
        .query_map([number], |row| Ok((row.get(0)?, Arc::new(from_json(row.get_ref(1)?.as_str()?)?))))?;
    let channels = rows.collect::<rusqlite::Result<_>>()?;
    Ok(Some((number, Stored { process, channels })))
}

fn find_head(conn: &Connection, id: &ChannelId) -> ReadResult<(i64, Head), ChannelError> {
    let unknown = || ReadStop::Refused(id.unknown());
    let (number, process) = find_process(conn, &id.process)?.ok_or_else(unknown)?;
    let found = conn
        .prepare_cached("SELECT id, channel FROM channels WHERE process = ?1 AND name = ?2")?
        .query_row((number, id.name.as_str()), |row| {
            Ok((row.get::<_, i64>(0)?, from_json::<Channel>(row.get_ref(1)?.as_str()?)?))
        })
        .optional()?;
    let (number, channel) = found.ok_or_else(unknown)?;
    Ok((number, Head { process: Arc::new(process), channel: Arc::new(channel) }))
}

const ENTRY_COLUMNS: &str = "position, sender, epoch, sequence, reply, at, type, error, payload";

fn entry_of(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let name: &str = row.get_ref(6)?.as_str()?;
    let entry_type =
        EntryType::parse(name).ok_or_else(|| damaged(format!("`{name}` is no type of an entry")))?;
    Ok(Entry {
        position: Position(unsigned(row.get(0)?)),
        sender: Party::new(row.get_ref(1)?.as_str()?).map_err(damaged)?,
        epoch: row.get(2)?,
        sequence: unsigned(row.get(3)?),
        in_reply_to: row.get::<_, Option<i64>>(4)?.map(unsigned),
        at: Micros(row.get(5)?),
        entry_type,
        error: row.get::<_, Option<String>>(7)?.map(String::into_boxed_str),
        payload: row.get::<_, Option<Vec<u8>>>(8)?.map(Bytes::from),
        wire: OnceLock::new(),
    })
}

/// The entry that a sender has appended under a number. Repeats are of late, so it is looked for from the end.
pub(super) fn find_repeat(
    conn: &Connection,
    channel: i64,
    sender: &Party,
    epoch: u32,
    sequence: u64,
) -> rusqlite::Result<Option<Entry>> {
    conn.prepare_cached(&format!(
        "SELECT {ENTRY_COLUMNS} FROM channel_entries INDEXED BY channel_entries_sequence
         WHERE channel = ?1 AND sequence = ?2 AND epoch = ?3 AND sender = ?4 ORDER BY position DESC LIMIT 1"
    ))?
    .query_row((channel, signed(sequence), epoch, sender.as_str()), entry_of)
    .optional()
}

/// `recent` was asked for before the connection's transaction began.
fn page(
    conn: &Connection,
    id: &ChannelId,
    after: Position,
    limit: ReadLimit,
    recent: Option<Recent>,
) -> ReadResult<EntryPage, ChannelError> {
    let (number, mut head) = find_head(conn, id)?;
    let recent =
        recent.filter(|recent| recent.number == number && recent.channel.newest > head.channel.newest);
    if let Some(recent) = &recent {
        head.channel = Arc::clone(&recent.channel);
    }
    let (oldest, newest) = (head.channel.oldest, head.channel.newest);
    let missed = oldest.0.saturating_sub(after.0.saturating_add(1));
    let from = after.0 + missed;
    let mut page = EntryPage { head, entries: Vec::new(), next: Position(from), oldest, newest, missed };
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {ENTRY_COLUMNS}, bytes FROM channel_entries
         WHERE channel = ?1 AND position > ?2 AND position <= ?3 ORDER BY position LIMIT ?4"
    ))?;
    let entries = i64::try_from(limit.entries.max(1)).unwrap_or(i64::MAX);
    // Entries may be settled before the record that knows of them is written.
    let mut rows = statement.query((number, signed(from), signed(newest.0), entries))?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += unsigned(row.get(9)?);
        if bytes > limit.bytes as u64 && !page.entries.is_empty() {
            return Ok(page);
        }
        let entry = entry_of(row)?;
        page.next = entry.position;
        page.entries.push(Arc::new(entry));
    }
    for entry in recent.iter().flat_map(|recent| &recent.entries) {
        if entry.position <= page.next {
            continue;
        }
        bytes += entry.bytes() as u64;
        let is_full = page.entries.len() >= limit.entries.max(1) || bytes > limit.bytes as u64;
        if is_full && !page.entries.is_empty() {
            break;
        }
        page.next = entry.position;
        page.entries.push(Arc::clone(entry));
    }
    Ok(page)
}

type Answered<'a, T> = BoxFuture<'a, Result<T, ChannelError>>;

impl SqliteStore {
    fn ask_channels<T: Send + 'static>(
        &self,
        request: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, ChannelError>>) -> ChannelRequest,
    ) -> Answered<'static, T> {
        self.request(|reply| Request::Channel(request(reply)))
    }
}

impl ChannelStore for SqliteStore {
    fn create(&self, new: NewProcess) -> Answered<'_, (ProcessView, bool)> {
        match self.inner.shared.check_disk() {
            Ok(()) => self.ask_channels(|reply| ChannelRequest::Create { new: Box::new(new), reply }),
            Err(error) => ready(Err(error.into())).boxed(),
        }
    }

    fn process(&self, id: &ProcessId) -> Answered<'_, ProcessView> {
        let id = id.clone();
        let recent = self.inner.shared.unsettled.records(&id);
        self.read(move |conn, _| {
            let found = load_process(conn, &id)?;
            let unknown = || ReadStop::Refused(ChannelError::ProcessUnknown { process: id.to_string() });
            let (_, Stored { process, mut channels }) = found.ok_or_else(unknown)?;
            newest(&recent, &mut channels);
            let channels = channels.into_iter().map(|(_, channel)| channel).collect();
            Ok(ProcessView { process: Arc::new(process), channels })
        })
    }

    fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> Answered<'_, Vec<Arc<Process>>> {
        let (tenant, after) = (tenant.clone(), after.cloned());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |conn, _| {
            let after = after.as_ref().map_or("", ProcessName::as_str);
            let mut statement = conn.prepare_cached(
                "SELECT process FROM processes WHERE tenant = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
            )?;
            let rows = statement.query_map((tenant.as_str(), after, limit), |row| {
                Ok(Arc::new(from_json(row.get_ref(0)?.as_str()?)?))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn head(&self, id: &ChannelId) -> Answered<'_, Head> {
        let id = id.clone();
        let recent = self.inner.shared.unsettled.record(&id);
        self.read(move |conn, _| {
            let (number, mut head) = find_head(conn, &id)?;
            if let Some((of, channel)) = recent
                && of == number
                && channel.newest > head.channel.newest
            {
                head.channel = channel;
            }
            Ok(head)
        })
    }

    fn change(&self, id: &ProcessId, by: Actor, change: Change) -> Answered<'_, ProcessView> {
        let (process, change) = (id.clone(), Box::new(change));
        self.ask_channels(|reply| ChannelRequest::Change { process, by, change, reply })
    }

    fn append(&self, id: &ChannelId, append: Append) -> Answered<'_, Vec<Appended>> {
        let channel = id.clone();
        match self.inner.shared.check_disk() {
            Ok(()) => self.ask_channels(|reply| ChannelRequest::Append { channel, append, reply }),
            Err(error) => ready(Err(error.into())).boxed(),
        }
    }

    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> Answered<'_, EntryPage> {
        let id = id.clone();
        let recent = self.inner.shared.unsettled.after(&id, after, limit.entries.max(1));
        SqliteStore::read(self, move |conn, _| page(conn, &id, after, limit, recent))
    }

    fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> Answered<'_, bool> {
        let process = id.clone();
        self.ask_channels(|reply| ChannelRequest::Remove { process, only, reply })
    }

    fn expire(&self, closed_before: Micros) -> Answered<'_, usize> {
        self.ask_channels(|reply| ChannelRequest::Expire { closed_before, reply })
    }

    fn stats(&self) -> Answered<'_, ChannelStats> {
        self.read(move |conn, _| {
            let count = |sql| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(unsigned);
            let channels = count("SELECT count(*) FROM channels")?;
            Ok(ChannelStats { channels, processes: count("SELECT count(*) FROM processes")? })
        })
    }

    fn tails(&self) -> &Tails {
        &self.inner.shared.channel_tails
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn limits(&self) -> &ChannelLimits {
        &self.inner.shared.channel_limits
    }
}
