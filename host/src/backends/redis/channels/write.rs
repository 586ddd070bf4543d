//! The script call that appends to a channel: what a host has decided, and the events of entries that are some.

use std::sync::Arc;

use super::Shared;
use super::calls::{Answer, Said, key_of};
use super::decide::Plan;
use super::entries::{Encoded, encode};
use super::records::{Numbered, Seen, sent, set_numbers, shape};
use crate::backends::redis::faults::remote;
use crate::backends::redis::group::Asked;
use crate::backends::redis::requests::Request;
use crate::backends::redis::scripts::{CHANNEL_APPEND, number};
use crate::channels::{Cause, ChannelId, Head, WhenFull, push_event};
use crate::error::{BackendError, RemoteFault};
use crate::event::EventBatch;
use crate::limits::{REDIS_CALL_EVENTS_MAX, REDIS_CHANNELS_CARRIED_MAX};

type Called<T> = Result<T, BackendError>;

/// Who appends; the default is a client.
#[derive(Debug, Default)]
pub(super) struct By<'a> {
    /// Under which lease, and its generation.
    pub(super) fence: Option<(&'a str, u64)>,
    /// A processor and its tenant, as `tenant:plugin`.
    pub(super) carrier: &'a str,
    /// What a repeat of each entry is told by.
    pub(super) keys: Vec<&'a str>,
    /// What led to each.
    pub(super) causes: Vec<Cause<'a>>,
}

impl Shared {
    /// Writes what was decided on what was seen. Without an answer it may have been carried out.
    pub(super) async fn write(
        &self,
        id: &ChannelId,
        seen: &Seen,
        plan: &Plan,
        by: &By<'_>,
        tag: &str,
    ) -> Called<Answer> {
        let encoded = plan.entries.iter().map(|entry| encode(entry)).collect::<Called<Vec<_>>>()?;
        let channel = &plan.head.channel;
        let senders = sent(channel)?;
        let limits = &self.limits;
        let archive = match channel.options.full {
            WhenFull::Archive => {
                let drop = limits.archive_drop_entries();
                format!("{} {} {drop}", limits.archive_bytes_max, limits.archive_entries_max)
            }
            WhenFull::Reject | WhenFull::DropOldest => String::new(),
        };
        let checked = plan.checked.map(|bytes| bytes.to_string()).unwrap_or_default();
        let events = self.events_of(id, seen, plan, by)?;
        let mut session = None;
        let asked = match (&events, &self.log) {
            (Some(request), Some(log)) => {
                let session = session.insert(log.serving()?);
                Some(Asked::prepare(log, session, vec![request]).await?)
            }
            _ => None,
        };
        let (lease, generation) =
            by.fence.map(|(name, generation)| (name, generation.to_string())).unwrap_or_default();
        let mut keys = vec![&self.keys.channels[..]];
        keys.extend(self.keys.of_appends());
        let call = self.once_on(&keys, &CHANNEL_APPEND, tag, |command| {
            command.arg(key_of(&id.process)).arg(id.name.as_str());
            command.arg(&*seen.incarnation).arg(seen.head.process.version).arg(seen.head.channel.newest.0);
            command.arg(&senders).arg(plan.excess.entries).arg(plan.excess.bytes).arg(&archive);
            command.arg(limits.process_bytes_max).arg(&checked).arg(plan.growth);
            command.arg(encoded.len()).arg(lease).arg(&generation);
            command.arg(by.carrier).arg(REDIS_CHANNELS_CARRIED_MAX);
            for (at, Encoded { header, payload, mark }) in encoded.iter().enumerate() {
                let key = by.keys.get(at).copied().unwrap_or_default();
                command.arg(header).arg(&payload[..]).arg(mark).arg(key);
            }
            if let Some(asked) = &asked {
                asked.fill(command);
            }
        });
        let answer = call.await?;
        if answer.said != Said::OtherLog {
            if let (Some(asked), Some(log)) = (&asked, &self.log) {
                log.grown(asked.change_streams());
            }
            return Ok(answer);
        }
        if let Some(session) = session {
            // The log's follower finds out why, and opens another one.
            session.end.cancel();
        }
        Err(remote(RemoteFault::Unreachable, "channels: the log is another one"))
    }

    /// The events of what was decided, where its entries are some.
    fn events_of(&self, id: &ChannelId, seen: &Seen, plan: &Plan, by: &By<'_>) -> Called<Option<Request>> {
        let channel = &plan.head.channel;
        if !channel.options.events {
            return Ok(None);
        }
        if self.log.is_none() {
            let detail =
                "channels: entries of this channel are events, and the store was opened without a log";
            return Err(remote(RemoteFault::Unsupported, detail));
        }
        if plan.entries.len() > REDIS_CALL_EVENTS_MAX {
            let detail = "channels: an append has more entries than a log on Redis takes events at once";
            return Err(remote(RemoteFault::Unsupported, detail));
        }
        let mut batch = EventBatch::new(id.process.tenant.clone());
        for (at, entry) in plan.entries.iter().enumerate() {
            let cause = by.causes.get(at).copied().unwrap_or_default();
            push_event(&mut batch, id, channel, entry, cause).map_err(|error| BackendError::Failed {
                detail: format!("the event of an entry: {error}"),
            })?;
        }
        Ok(Some(Request::own(batch, &seen.incarnation)))
    }

    /// Takes in what an append has made of its channel.
    pub(super) fn written(&self, id: &ChannelId, seen: &Seen, plan: &Plan, answer: &Answer) -> Called<Head> {
        let [numbers, bytes] = &answer.parts[..] else { return Err(shape()) };
        let bytes = number(bytes).ok_or_else(shape)?;
        let mut head = plan.head.clone();
        let life = set_numbers(Arc::make_mut(&mut head.channel), numbers)?;
        let numbered = Numbered { channel: Arc::clone(&head.channel), life };
        self.appended(id, seen, numbered, bytes, answer.stamp.at());
        Ok(head)
    }

    /// How a channel is instead of what was expected.
    pub(super) fn instead(&self, id: &ChannelId, tag: &str, answer: &mut Answer) -> Called<Option<Seen>> {
        if *answer.stamp.tag == *tag {
            self.damaged(id);
        }
        let record = self.taken(&id.process, answer)?;
        Ok(record.and_then(|record| Seen::of(&record, &id.name, answer.stamp.life)))
    }
}
