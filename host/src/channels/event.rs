//! An entry as an event of its tenant's log: what processors get of a channel that was made with `events`.
//!
//! The aggregate is `channel`, its id is that of the channel, and its version is the entry's position, which begins anew
//! when a process is made under a name that was used before. The id of the event tells these apart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::entry::{Entry, EntryType};
use super::error::ChannelError;
use super::names::{ChannelId, ChannelName, Party, ProcessName};
use super::record::Channel;
use crate::event::{Event, EventBatch};
use crate::limits::CAUSATION_DEPTH_MAX;

/// What led to an append. The default: somebody from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause<'a> {
    /// How many processors there were on the way to it.
    pub depth: u32,
    pub scope: &'a str,
    pub traceparent: &'a str,
}

#[derive(Serialize)]
struct Payload<'a> {
    process: &'a ProcessName,
    channel: &'a ChannelName,
    position: u64,
    epoch: u32,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inreplyto: Option<u64>,
    senderid: &'a Party,
    /// Who executes the channel now: a processor may leave what is somebody else's work alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    executorid: Option<&'a Party>,
    r#type: &'static str,
    /// Base64.
    payload: Option<String>,
    /// The same as text, where it is some.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// A processor that answers itself over a channel comes to an end, as one that emits what it handles does.
pub(crate) fn check_depth(channel: &Channel, cause: Cause<'_>) -> Result<(), ChannelError> {
    if !channel.options.events || cause.depth <= CAUSATION_DEPTH_MAX {
        return Ok(());
    }
    Err(ChannelError::Limit {
        limit: "causation_depth_max",
        what: "processors in a row on the way to this entry, of which one seems to feed itself",
        asked: cause.depth.into(),
        max: CAUSATION_DEPTH_MAX.into(),
    })
}

/// Adds the event of an entry to a batch of its tenant.
pub(crate) fn push_event(
    batch: &mut EventBatch,
    id: &ChannelId,
    channel: &Channel,
    entry: &Entry,
    cause: Cause<'_>,
) -> Result<(), serde_json::Error> {
    let payload = serde_json::to_vec(&Payload {
        process: &id.process.name,
        channel: &id.name,
        position: entry.position.0,
        epoch: entry.epoch,
        sequence: entry.sequence,
        inreplyto: entry.in_reply_to,
        senderid: &entry.sender,
        executorid: channel.executor.as_ref(),
        r#type: entry.entry_type.as_str(),
        payload: entry.payload.as_ref().map(|payload| STANDARD.encode(payload)),
        text: entry.payload.as_ref().and_then(|payload| std::str::from_utf8(payload).ok()),
        error: entry.error.as_deref(),
    })?;
    let agg_id = id.to_string();
    let event_id = format!("{agg_id}/{}/{}", channel.created_at.0, entry.position);
    // Nobody else can say this: events from outside, and those of processors, may not have these types.
    batch.push_checked(&Event {
        id: &event_id,
        aggregate: "channel",
        agg_id: &agg_id,
        version: entry.position.0,
        event_type: match entry.entry_type {
            EntryType::Data => "channel.data",
            EntryType::End => "channel.end",
            EntryType::Error => "channel.error",
        },
        at: entry.at,
        depth: cause.depth,
        scope: cause.scope,
        traceparent: cause.traceparent,
        payload: &payload,
        ..Event::default()
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::channels::names::ProcessId;
    use crate::channels::options::ChannelOptions;
    use crate::event::{HOST_EVENT_TYPES, Micros, Position, TenantId};
    use crate::limits::{
        CHANNEL_ERROR_BYTES_MAX, CHANNEL_EVENT_PAYLOAD_BYTES_MAX, CHANNEL_NAME_BYTES_MAX,
        EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX, PARTY_BYTES_MAX, PROCESS_NAME_BYTES_MAX,
    };

    fn event_of(process: &str, channel: &str, party: &str, entry: Entry) -> EventBatch {
        let tenant = TenantId::new("acme").unwrap();
        let name = ChannelName::new(channel).unwrap();
        let process = ProcessId { tenant: tenant.clone(), name: ProcessName::new(process).unwrap() };
        let id = ChannelId { process, name: name.clone() };
        let channel = Channel {
            name,
            executor: Some(Party::new(party).unwrap()),
            epoch: 1,
            options: ChannelOptions { events: true, ..ChannelOptions::default() },
            created_at: Micros(i64::MAX),
            newest: entry.position,
            oldest: Position(1),
            hot: Position(1),
            bytes: 0,
            archive_bytes: 0,
            closing_entries: 0,
            closing_bytes: 0,
            senders: Vec::new(),
        };
        let mut batch = EventBatch::new(tenant);
        push_event(&mut batch, &id, &channel, &entry, Cause { depth: 3, ..Cause::default() }).unwrap();
        batch
    }

    fn entry(party: &str, payload: Option<&[u8]>) -> Entry {
        Entry {
            position: Position(7),
            sender: Party::new(party).unwrap(),
            epoch: 2,
            sequence: 5,
            in_reply_to: None,
            at: Micros(99),
            entry_type: EntryType::Data,
            error: None,
            payload: payload.map(Bytes::copy_from_slice),
            wire: OnceLock::new(),
        }
    }

    #[test]
    fn an_entry_is_told_whole() {
        let said = |entry| {
            let batch = event_of("p-1", "requests", "plugin:a", entry);
            serde_json::from_slice::<serde_json::Value>(batch.get(0).payload).unwrap()
        };
        let text = json!({
            "process": "p-1", "channel": "requests", "position": 7, "epoch": 2, "sequence": 5,
            "senderid": "ada", "executorid": "plugin:a", "type": "data", "payload": "aMOp", "text": "hé",
        });
        assert_eq!(said(entry("ada", Some("hé".as_bytes()))), text);
        let bytes = said(entry("ada", Some(&[0xff, 0])));
        assert_eq!((&bytes["payload"], bytes.get("text")), (&json!("/wA="), None));
        let empty = said(entry("ada", Some(b"")));
        assert_eq!((&empty["payload"], &empty["text"]), (&json!(""), &json!("")));
        let failed = Entry {
            entry_type: EntryType::Error,
            error: Some("broken".into()),
            in_reply_to: Some(4),
            ..entry("ada", None)
        };
        let failed = said(failed);
        assert_eq!((&failed["payload"], &failed["type"]), (&json!(null), &json!("error")));
        assert_eq!((&failed["error"], &failed["inreplyto"]), (&json!("broken"), &json!(4)));
        let batch = event_of("p-1", "requests", "plugin:a", entry("ada", None));
        let event = batch.get(0);
        assert_eq!((event.aggregate, event.agg_id, event.version), ("channel", "p-1_requests", 7));
        assert_eq!((event.event_type, event.at, event.depth), ("channel.data", Micros(99), 3));
        assert_eq!(event.id, "p-1_requests/9223372036854775807/7");
    }

    #[test]
    fn the_largest_entry_fits_an_event() {
        let long = |letter: &str, bytes: usize| letter.repeat(bytes);
        let party = long("\"", PARTY_BYTES_MAX);
        let mut largest = entry(&party, Some(&vec![1; CHANNEL_EVENT_PAYLOAD_BYTES_MAX]));
        largest.entry_type = EntryType::Error;
        largest.error = Some(long("\u{1}", CHANNEL_ERROR_BYTES_MAX).into());
        largest.in_reply_to = Some(u64::MAX);
        (largest.sequence, largest.position, largest.epoch) = (u64::MAX, Position(u64::MAX), u32::MAX);
        let (process, channel) = (long("p", PROCESS_NAME_BYTES_MAX), long("c", CHANNEL_NAME_BYTES_MAX));
        let batch = event_of(&process, &channel, &party, largest);
        let event = batch.get(0);
        assert!(event.payload.len() <= EVENT_PAYLOAD_BYTES_MAX, "{}", event.payload.len());
        assert!(event.payload.len() > CHANNEL_EVENT_PAYLOAD_BYTES_MAX * 7, "nothing was left out");
        assert!(event.id.len() <= NAME_BYTES_MAX && event.agg_id.len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn nobody_else_may_say_what_these_events_say() {
        let batch = event_of("p-1", "requests", "plugin:a", entry("ada", None));
        let event = batch.get(0);
        assert!(HOST_EVENT_TYPES.contains(&event.event_type));
        let mut forged = EventBatch::new(batch.tenant.clone());
        let refused = forged.push(&event).unwrap_err();
        assert!(refused.to_string().contains("`channel.data`"), "{refused}");
        assert!(forged.is_empty());
        let near = Event { event_type: "channel.database", ..event };
        forged.push(&near).unwrap();
    }
}
