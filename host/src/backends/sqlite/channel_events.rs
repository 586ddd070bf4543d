//! Where channels and the log meet: what processors append with their commits, and entries that are events, too. Both
//! are in the transaction of what caused them.

use std::sync::Arc;

use bytes::Bytes;

use super::channels::Written;
use super::commit::CommitResult;
use super::committer::{Committer, Stop};
use crate::channels::{
    Append, Cause, Channel, ChannelError, ChannelId, ChannelName, Entry, NewEntry, Party, ProcessId,
    ProcessName, count_refused, push_event,
};
use crate::checkpoints::{AppendFate, AppendRef, Commit, CommitError, Dropped, EffectRef, PLUGIN_PARTY};
use crate::error::Classify as _;
use crate::event::EventBatch;

/// Entries as events that are written, with their positions.
#[derive(Debug)]
pub(super) struct EntryEvents {
    pub(super) tenant: i64,
    pub(super) batch: EventBatch,
}

impl Committer {
    /// Writes the events of new entries, if those of this channel have any.
    pub(super) fn write_entry_events(
        &mut self,
        id: &ChannelId,
        channel: &Channel,
        entries: &[Arc<Entry>],
        cause: Cause<'_>,
    ) -> Written<Option<EntryEvents>> {
        if !channel.options.events {
            return Ok(None);
        }
        let tenant = self.tenant_number(&id.process.tenant)?;
        let mut batch = EventBatch::new(id.process.tenant.clone());
        for entry in entries {
            push_event(&mut batch, id, channel, entry, cause)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        }
        let batch = self.write_new_events(tenant, batch)?;
        Ok(Some(EntryEvents { tenant, batch }))
    }

    /// Appends what a commit asks for, in its order, but for what nobody waits for any more. Answers the events that
    /// came of it, and what was left out.
    pub(super) fn write_appends(&mut self, commit: &Commit) -> CommitResult<(Vec<EventBatch>, Dropped)> {
        let (mut events, mut dropped) = (Vec::new(), Dropped::default());
        let mut who = None;
        for effect in commit.effects.iter().flat_map(|effects| effects.iter()) {
            let EffectRef::Append(entry) = effect else { continue };
            let task = || commit.task.clone();
            let says = |error: &ChannelError| {
                let (channel, process, code) = (entry.channel, entry.process, error.code());
                format!("append to channel `{channel}` of process `{process}`: {code}: {error}")
            };
            let named = || -> Result<_, ChannelError> {
                let name = ProcessName::new(entry.process)?;
                let process = ProcessId { tenant: commit.task.tenant.clone(), name };
                let who = match &who {
                    Some(who) => Party::clone(who),
                    None => Party::new(&format!("{PLUGIN_PARTY}{}", commit.task.processor))?,
                };
                Ok((ChannelId { process, name: ChannelName::new(entry.channel)? }, who))
            };
            let (id, party) = named().map_err(|error| {
                Stop::Refused(CommitError::Refused { task: task(), reason: says(&error) })
            })?;
            let cause = Cause { depth: entry.depth, scope: entry.scope, traceparent: entry.traceparent };
            let asked = Append { who: party.clone(), epoch: None, entries: vec![new_entry(&entry)] };
            who = Some(party);
            let error = match self.append_to_channel(&id, &asked, cause) {
                Ok((_, made)) => {
                    self.book.written_by_processor(asked.entries.iter().map(NewEntry::bytes));
                    events.extend(made.map(|made| made.batch));
                    continue;
                }
                Err(Stop::Storage(error)) => return Err(Stop::Storage(error)),
                Err(Stop::Refused(ChannelError::Backend(error))) => return Err(Stop::Refused(error.into())),
                Err(Stop::Refused(error)) => error,
            };
            count_refused(&error);
            let head = self.open_process(&id.process)?.and_then(|open| open.view.head(&id.name).ok());
            // A refused append has written nothing.
            match AppendFate::of(&error, head.as_ref()) {
                AppendFate::Dropped(reason) => dropped.add(reason, || says(&error)),
                AppendFate::Waits => {
                    return Err(Stop::Refused(CommitError::NotNow { task: task(), reason: says(&error) }));
                }
                AppendFate::Refused => {
                    return Err(Stop::Refused(CommitError::Refused { task: task(), reason: says(&error) }));
                }
            }
        }
        Ok((events, dropped))
    }
}

fn new_entry(entry: &AppendRef<'_>) -> NewEntry {
    NewEntry {
        sequence: None,
        in_reply_to: entry.in_reply_to,
        entry_type: entry.entry_type,
        error: entry.error.map(Into::into),
        payload: entry.payload.map(Bytes::copy_from_slice),
    }
}
