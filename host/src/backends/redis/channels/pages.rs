//! Reading processes, channels and entries. What may still be lost is waited for before it is shown.

use std::sync::Arc;

use super::calls::{Answer, key_of};
use super::entries::decode;
use super::records::{Record, process_of, shape};
use super::{Result, Shared, unknown};
use crate::backends::redis::scripts::{CHANNEL_READ, list, number, text};
use crate::channels::{
    ChannelError, ChannelId, ChannelStats, EntryPage, Head, Process, ProcessId, ProcessName, ProcessView,
    ReadLimit,
};
use crate::error::BackendError;
use crate::event::{Position, TenantId};
use crate::limits::{REDIS_CHANNELS_LIST_MAX, REDIS_CHANNELS_PAGE_ENTRIES_MAX};

/// Entries of one call, with the record of their channel as it was then.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) record: Option<Record>,
    /// None where there is no such channel.
    pub(super) page: Option<EntryPage>,
    /// It ends where it does because of its bytes.
    full: bool,
    pub(super) answer: Answer,
}

impl Shared {
    /// How far the store is.
    pub(super) async fn reached(&self) -> std::result::Result<Answer, BackendError> {
        let asked = |command: &mut redis::Cmd| {
            command.arg("look");
        };
        self.read(asked).await
    }

    /// A process, and how many its tenant has.
    pub(super) async fn look_up(
        &self,
        id: &ProcessId,
    ) -> std::result::Result<(Option<Record>, u64, Answer), BackendError> {
        let asked = |command: &mut redis::Cmd| {
            command.arg("process").arg(key_of(id));
        };
        let mut answer = self.read(asked).await?;
        let record = self.taken(id, &mut answer)?;
        let of_tenant = answer.parts.first().and_then(number).ok_or_else(shape)?;
        Ok((record, of_tenant, answer))
    }

    pub(super) async fn process(&self, id: &ProcessId) -> Result<ProcessView> {
        let (record, _, answer) = self.look_up(id).await?;
        self.settled(&answer).await?;
        Ok(record.ok_or_else(|| unknown(id))?.view())
    }

    pub(super) async fn head(&self, id: &ChannelId) -> Result<Head> {
        let name = id.name.as_str();
        let asked = |command: &mut redis::Cmd| {
            command.arg("head").arg(key_of(&id.process)).arg(name);
        };
        let mut answer = self.read(asked).await?;
        let record = self.taken(&id.process, &mut answer)?;
        self.settled(&answer).await?;
        record.and_then(|record| record.head(&id.name)).ok_or_else(|| id.unknown())
    }

    /// Entries after a position, as many as one call reads; `least` of them whatever they hold.
    pub(super) async fn stretch(
        &self,
        id: &ChannelId,
        after: Position,
        limit: ReadLimit,
        least: usize,
    ) -> std::result::Result<Stretch, BackendError> {
        let entries = limit.entries.min(REDIS_CHANNELS_PAGE_ENTRIES_MAX);
        let tag = self.tag();
        let asked = |command: &mut redis::Cmd| {
            command.arg("page").arg(key_of(&id.process)).arg(id.name.as_str());
            command.arg(after.0).arg(entries).arg(limit.bytes).arg(least);
        };
        let mut answer = self.call(&CHANNEL_READ, &tag, asked).await?;
        let record = self.taken(&id.process, &mut answer)?;
        let entries = decode(answer.next()?)?;
        let full = answer.parts.first().and_then(number::<u8>).ok_or_else(shape)? == 1;
        if *answer.stamp.tag == *tag {
            self.damaged(id);
        }
        let head = record.as_ref().and_then(|record| record.head(&id.name));
        let page = head.map(|head| {
            let (oldest, newest) = (head.channel.oldest, head.channel.newest);
            let missed = oldest.0.saturating_sub(after.0.saturating_add(1));
            let next = entries.last().map_or(Position(after.0 + missed), |last| last.position);
            EntryPage { head, entries, next, oldest, newest, missed }
        });
        Ok(Stretch { record, page, full, answer })
    }

    /// A call that does not change a channel has: what it had was not whole any more.
    pub(super) fn damaged(&self, id: &ChannelId) {
        tracing::warn!(
            error.kind = "channel_damaged",
            error.blame = "host",
            channel = %id,
            tenant = %id.process.tenant,
            "entries of a channel were removed from the server: the others count as dropped, too"
        );
        self.look_at(&id.process);
    }

    pub(super) async fn page(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> Result<EntryPage> {
        let limit = ReadLimit { entries: limit.entries.max(1), ..limit };
        let Stretch { page, mut full, mut answer, .. } = self.stretch(id, after, limit, 1).await?;
        let mut page = page.ok_or_else(|| id.unknown())?;
        let bytes_of = |page: &EntryPage| page.entries.iter().map(|entry| entry.bytes()).sum::<usize>();
        while !full && page.next < page.newest && page.entries.len() < limit.entries {
            let left = ReadLimit {
                entries: limit.entries - page.entries.len(),
                bytes: limit.bytes.saturating_sub(bytes_of(&page)),
            };
            let more = self.stretch(id, page.next, left, 0).await?;
            // What comes next may be gone by now, or another process's of the same name.
            let own = |more: &EntryPage| more.head.is_of(&page.head.process) && more.missed == 0;
            let Some(next) = more.page.filter(|more| own(more) && !more.entries.is_empty()) else { break };
            // Who may have all of it is asked of the channel as it was at the end.
            (page.head, page.next) = (next.head, next.next);
            page.entries.extend(next.entries);
            (full, answer) = (more.full, more.answer);
        }
        let last = page.entries.last().map(|last| last.position);
        let shown = self.tails.find(id).and_then(|live| live.head());
        let shown = shown.filter(|shown| shown.is_of(&page.head.process)).map(|head| head.channel.newest);
        match (last, shown) {
            // It has come to stay long since; what is newer may not have yet.
            (Some(last), Some(shown)) if last <= shown => page.newest = page.newest.min(shown),
            _ => self.settled(&answer).await?,
        }
        Ok(page)
    }

    pub(super) async fn processes(
        &self,
        tenant: &TenantId,
        mut after: Option<ProcessName>,
        limit: usize,
    ) -> Result<Vec<Arc<Process>>> {
        let mut found = Vec::new();
        while found.len() < limit {
            let count = (limit - found.len()).min(REDIS_CHANNELS_LIST_MAX);
            let asked = |command: &mut redis::Cmd| {
                let after = after.as_ref().map_or("", ProcessName::as_str);
                command.arg("list").arg(tenant.as_str()).arg(after).arg(count);
            };
            let mut answer = self.read(asked).await?;
            let parts = list(answer.next()?).ok_or_else(shape)?;
            let listed = parts.len() / 3;
            for part in parts.chunks_exact(3) {
                let name = text(&part[0]).and_then(|name| ProcessName::new(name).ok());
                after = Some(name.ok_or_else(shape)?);
                // Of a process whose record somebody has removed nothing else is left.
                if text(&part[1]).is_some_and(|version| !version.is_empty()) {
                    found.push(Arc::new(process_of(&part[1], &part[2])?));
                }
            }
            if listed < count {
                break;
            }
        }
        Ok(found)
    }

    pub(super) async fn stats(&self) -> Result<ChannelStats> {
        let asked = |command: &mut redis::Cmd| {
            command.arg("stats");
        };
        let answer = self.read(asked).await?;
        let counted = |at: usize| answer.parts.get(at).and_then(number);
        match (counted(0), counted(1)) {
            (Some(processes), Some(channels)) => Ok(ChannelStats { channels, processes }),
            _ => Err(ChannelError::Backend(shape())),
        }
    }
}
