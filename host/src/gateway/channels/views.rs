//! The shapes of processes and channels on the wire.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, de};
use utoipa::ToSchema;

use crate::channels::{
    Actor, Appended, Channel, ChannelError, ChannelLimits, ChannelName, ChannelOptions, CloseReason, Gaps,
    Head, NewChannel, Outcome, Party, Process, ProcessView, Role, Sender, WhenFull,
};
use crate::gateway::params::cut;

type Result<T> = std::result::Result<T, ChannelError>;

// What is asked for.

/// A process to make. Whoever asks is its submitter.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::gateway) struct ProcessRequest {
    /// Who executes it, where that is known already.
    pub executor: Option<String>,
    /// Who else reads its channels; nobody where it is left out.
    pub observers: Option<Vec<String>>,
    /// Names, or objects of a name and options.
    #[schema(value_type = Vec<ChannelNamed>)]
    pub channels: Vec<ChannelWanted>,
}

/// A channel to make: its name, or an object.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(in crate::gateway) struct ChannelWanted(ChannelNamed);

/// A channel to make along with its process.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct ChannelNamed {
    pub name: String,
    /// `hold`, `report` or `arrival`; see the request that makes one channel.
    #[serde(default)]
    pub gaps: Option<String>,
    /// `reject`, `drop_oldest` or `archive`.
    #[serde(default)]
    pub full: Option<String>,
    #[serde(default)]
    pub entries_max: Option<u64>,
    #[serde(default)]
    pub bytes_max: Option<u64>,
    #[serde(default)]
    pub events: Option<bool>,
}

/// What a channel is made with. Everything may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::gateway) struct ChannelRequest {
    /// What happens to an entry whose forerunner is missing: it waits for it for some seconds (`hold`, the default), is
    /// refused at once (`report`), or is taken as it arrives (`arrival`); there only an `end` or `error` waits.
    pub gaps: Option<String>,
    /// What happens when the channel is full: entries are refused (`reject`, the default), or the oldest go, for good
    /// (`drop_oldest`) or into an archive where they can be read (`archive`).
    pub full: Option<String>,
    /// Entries that it holds: 1 to channels.channel_entries_max, which is the default.
    pub entries_max: Option<u64>,
    /// Bytes that it holds: 1 to channels.channel_bytes_max, which is the default.
    pub bytes_max: Option<u64>,
    /// Whether each entry is also an event of the tenant, of type `channel.data`, `channel.end` or `channel.error`, for
    /// processors. It is not by default.
    pub events: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct AssignRequest {
    /// Who executes from now on, in a new epoch.
    pub executor: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct ChannelAssignRequest {
    /// Who executes from now on, in a new epoch; null takes the channel from its executor.
    #[serde(deserialize_with = "given")]
    #[schema(required = true)]
    pub executor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct ObserversRequest {
    /// All who may read without taking part; whoever is not named here may not any more.
    pub observers: Vec<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct CloseRequest {
    /// `success`, `failed` or `cancelled`.
    pub outcome: String,
    /// For people; up to 1024 bytes.
    #[serde(default)]
    pub reason: String,
}

/// An entry to append. An unknown member is refused.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct AppendRequest {
    /// Counted by the sender, from 1 on in each of its epochs. The same again is recognised as a repeat. Left out, the
    /// sender's next one is taken; then a repeat is a second entry.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    pub sequence: Option<u64>,
    /// The sequence of another sender's entry that this one answers; 0 is none.
    pub inreplyto: Option<u64>,
    /// `data`, which is the default, or `end` or `error`: then nothing more comes from the sender in its epoch.
    #[serde(rename = "type")]
    pub entry_type: Option<String>,
    /// With the type `error`: what went wrong, up to 4096 bytes.
    pub error: Option<String>,
    /// Any bytes, as standard base64 with padding. At most one of `payload`, `text` and `json`.
    pub payload: Option<String>,
    /// Text, instead of `payload`: its UTF-8 bytes.
    pub text: Option<String>,
    /// Any JSON, instead of `payload`: its bytes as they are written here.
    pub json: Option<serde_json::Value>,
}

/// Null is a value; leaving it out is not.
fn given<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<String>, D::Error> {
    Option::deserialize(from)
}

impl<'de> Deserialize<'de> for ChannelWanted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct NameOrObject;

        impl<'de> Visitor<'de> for NameOrObject {
            type Value = ChannelWanted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a channel's name, or an object with it")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> std::result::Result<ChannelWanted, E> {
                Ok(ChannelWanted(ChannelNamed { name: name.to_owned(), ..ChannelNamed::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<ChannelWanted, A::Error> {
                ChannelNamed::deserialize(MapAccessDeserializer::new(map)).map(ChannelWanted)
            }
        }

        from.deserialize_any(NameOrObject)
    }
}

impl ProcessRequest {
    pub(super) fn observers(&self) -> Result<Option<Vec<Party>>> {
        self.observers.as_deref().map(parties).transpose()
    }

    /// Whether a process is what is asked for here, by what is named.
    pub(super) fn is_met(&self, view: &ProcessView, by: &Actor) -> Result<bool> {
        let ProcessView { process, channels } = view;
        let executes = |name: &String| process.executor.as_ref().is_some_and(|party| party.as_str() == name);
        let mut met = Actor::Party(process.submitter.clone()) == *by
            && self.executor.as_ref().is_none_or(executes)
            && self.observers()?.is_none_or(|observers| observers == process.observers);
        for ChannelWanted(wanted) in &self.channels {
            let known = channels.iter().find(|known| known.name.as_str() == wanted.name);
            met &= known.map_or(Ok(false), |known| wanted.options().is_met(&known.options))?;
        }
        Ok(met)
    }
}

impl ChannelNamed {
    fn options(&self) -> ChannelRequest {
        let Self { name: _, gaps, full, entries_max, bytes_max, events } = self.clone();
        ChannelRequest { gaps, full, entries_max, bytes_max, events }
    }
}

impl ChannelWanted {
    pub(super) fn channel(&self, limits: &ChannelLimits) -> Result<NewChannel> {
        let options = self.0.options().options(limits)?;
        Ok(NewChannel { name: ChannelName::new(&self.0.name)?, options })
    }
}

impl ChannelRequest {
    pub(super) fn options(&self, limits: &ChannelLimits) -> Result<ChannelOptions> {
        self.over(limits.default_options())
    }

    /// Whether a channel's options are those that are named here.
    pub(super) fn is_met(&self, known: &ChannelOptions) -> Result<bool> {
        Ok(self.over(known.clone())? == *known)
    }

    /// Options of a channel, with those that are named here in their place.
    fn over(&self, options: ChannelOptions) -> Result<ChannelOptions> {
        let gaps = self.gaps.as_deref().map_or(Ok(options.gaps), |name| match name {
            "hold" => Ok(Gaps::Hold),
            "report" => Ok(Gaps::Report),
            "arrival" => Ok(Gaps::Arrival),
            _ => Err(option("gaps", name, "hold, report and arrival are possible")),
        })?;
        let full = self.full.as_deref().map_or(Ok(options.full), |name| match name {
            "reject" => Ok(WhenFull::Reject),
            "drop_oldest" => Ok(WhenFull::DropOldest),
            "archive" => Ok(WhenFull::Archive),
            _ => Err(option("full", name, "reject, drop_oldest and archive are possible")),
        })?;
        let entries_max = self.entries_max.unwrap_or(options.entries_max);
        let bytes_max = self.bytes_max.unwrap_or(options.bytes_max);
        let events = self.events.unwrap_or(options.events);
        Ok(ChannelOptions { gaps, full, entries_max, bytes_max, events })
    }
}

pub(super) fn option(option: &'static str, asked: &str, possible: &str) -> ChannelError {
    ChannelError::Option { option, asked: format!("`{}`", cut(asked)), possible: possible.to_owned() }
}

pub(super) fn parties(names: &[String]) -> Result<Vec<Party>> {
    names.iter().map(|name| Party::new(name)).collect()
}

// What is answered.

/// A process.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ProcessDescription {
    pub process: String,
    pub submitter: String,
    pub executor: Option<String>,
    /// Counts assignments and their ends. An executor's rights are those of one epoch.
    pub epoch: u32,
    pub observers: Vec<String>,
    pub created_at: String,
    /// How it ended; null while it is open.
    pub closed: Option<ClosedView>,
    /// What the caller is here: `submitter`, `executor`, `observer`, or `admin`.
    pub role: &'static str,
    /// In the order of their creation. Lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<ChannelDescription>>,
}

/// How a process ended.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ClosedView {
    pub at: String,
    /// `success`, `failed` or `cancelled`.
    pub outcome: &'static str,
    pub reason: String,
}

/// Processes, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ProcessList {
    pub processes: Vec<ProcessDescription>,
    /// The `after` of the next page; null where this is the last one. A page may hold few and have a next one.
    pub next: Option<String>,
}

/// A channel.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ChannelDescription {
    /// `<process>_<channel>`.
    pub id: String,
    pub process: String,
    pub channel: String,
    pub executor: Option<String>,
    /// Of its executor.
    pub epoch: u32,
    /// What the caller is here: `submitter`, `executor`, `observer`, `admin`, or null for who is something elsewhere in
    /// the process.
    pub role: Option<&'static str>,
    pub gaps: &'static str,
    pub full: &'static str,
    pub entries_max: u64,
    pub bytes_max: u64,
    /// Whether its entries are events, too.
    pub events: bool,
    pub created_at: String,
    /// The position of the last entry; 0 where there is none.
    pub newest: u64,
    /// The first position that can be read.
    pub oldest: u64,
    /// The first position that counts towards what the channel may hold; the archive lies before it.
    pub hot: u64,
    /// Entries that can be read.
    pub entries: u64,
    /// Bytes that count towards what the channel may hold.
    pub bytes: u64,
    pub archive_bytes: u64,
    /// Entries that are gone because the channel was full.
    pub dropped: u64,
    /// Why nothing more comes: `ended`, `success`, `failed` or `cancelled`; null while something may come.
    pub closed: Option<&'static str>,
    /// Followers on this host.
    pub subscribers: usize,
    /// Who has sent something. Descriptions of whole processes leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub senders: Option<Vec<SenderView>>,
}

/// A sender in one of its epochs: whoever starts again goes on after its `sequence`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct SenderView {
    pub senderid: String,
    /// 0 for the submitter, that of the assignment for an executor.
    pub epoch: u32,
    /// All up to here are, or were, in the channel.
    pub sequence: u64,
    /// The largest one; larger than `sequence` where some between are missing, on a channel that takes entries as they
    /// arrive.
    pub highest: u64,
    /// `end` or `error`, once the sender has said so.
    pub ended: Option<&'static str>,
}

/// Where an entry lies.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct AppendedView {
    pub position: u64,
    pub sequence: u64,
    pub epoch: u32,
    /// It lay there already.
    pub repeated: bool,
}

/// Where several entries lie, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct AppendedList {
    pub appended: Vec<AppendedView>,
}

impl ProcessDescription {
    pub(super) fn of(process: &Process, role: &'static str) -> Self {
        let closed = process.closed.as_ref().map(|closed| ClosedView {
            at: closed.at.to_string(),
            outcome: closed.outcome.as_str(),
            reason: closed.reason.clone(),
        });
        Self {
            process: process.name.to_string(),
            submitter: process.submitter.to_string(),
            executor: process.executor.as_ref().map(Party::to_string),
            epoch: process.epoch,
            observers: process.observers.iter().map(Party::to_string).collect(),
            created_at: process.created_at.to_string(),
            closed,
            role,
            channels: None,
        }
    }
}

impl ChannelDescription {
    pub(super) fn of(head: &Head, by: &Actor, subscribers: usize) -> Self {
        let Head { process, channel } = head;
        let Channel { options, .. } = &**channel;
        let role = match by {
            Actor::Host => Some(ADMIN),
            Actor::Party(party) => head.role(party).map(Role::as_str),
        };
        Self {
            id: format!("{}_{}", process.name, channel.name),
            process: process.name.to_string(),
            channel: channel.name.to_string(),
            executor: channel.executor.as_ref().map(Party::to_string),
            epoch: channel.epoch,
            role,
            gaps: match options.gaps {
                Gaps::Hold => "hold",
                Gaps::Report => "report",
                Gaps::Arrival => "arrival",
            },
            full: match options.full {
                WhenFull::Reject => "reject",
                WhenFull::DropOldest => "drop_oldest",
                WhenFull::Archive => "archive",
            },
            entries_max: options.entries_max,
            bytes_max: options.bytes_max,
            events: options.events,
            created_at: channel.created_at.to_string(),
            newest: channel.newest.0,
            oldest: channel.oldest.0,
            hot: channel.hot.0,
            entries: channel.entries(),
            bytes: channel.bytes,
            archive_bytes: channel.archive_bytes,
            dropped: channel.dropped(),
            closed: closed(head).map(CloseReason::as_str),
            subscribers,
            senders: None,
        }
    }

    pub(super) fn with_senders(mut self, channel: &Channel) -> Self {
        self.senders = Some(channel.senders.iter().map(SenderView::of).collect());
        self
    }
}

/// What somebody is called who is no party.
pub(super) const ADMIN: &str = "admin";

/// Why nothing more comes in a channel; none while something may.
pub(super) fn closed(head: &Head) -> Option<CloseReason> {
    match &head.process.closed {
        Some(closed) => Some(CloseReason::Closed(closed.outcome)),
        None => head.channel.is_ended(&head.process).then_some(CloseReason::Ended),
    }
}

/// What somebody is to a process as its record says, without its channels.
pub(super) fn role_in(process: &Process, party: &Party) -> Option<&'static str> {
    if process.submitter == *party {
        Some(Role::Submitter.as_str())
    } else if process.executor.as_ref() == Some(party) {
        Some(Role::Executor(process.epoch).as_str())
    } else if process.observers.contains(party) {
        Some(Role::Observer.as_str())
    } else {
        None
    }
}

/// The same for whoever acts and may see it: who is nothing in the record executes one of the channels.
pub(super) fn role_of(view: &ProcessView, by: &Actor) -> &'static str {
    match by {
        Actor::Host => ADMIN,
        Actor::Party(party) => {
            let executes = view.channels.iter().any(|channel| channel.executor.as_ref() == Some(party));
            match role_in(&view.process, party) {
                Some("observer") | None if executes => Role::Executor(0).as_str(),
                role => role.unwrap_or(Role::Observer.as_str()),
            }
        }
    }
}

pub(super) fn outcome(name: &str) -> Result<Outcome> {
    Outcome::parse(name).ok_or_else(|| option("outcome", name, "success, failed and cancelled are possible"))
}

impl SenderView {
    fn of(sender: &Sender) -> Self {
        Self {
            senderid: sender.party.to_string(),
            epoch: sender.epoch,
            sequence: sender.last,
            highest: sender.highest(),
            ended: sender.ended.map(|by| by.as_str()),
        }
    }
}

impl From<Appended> for AppendedView {
    fn from(answer: Appended) -> Self {
        let Appended { position, epoch, sequence, repeated } = answer;
        Self { position: position.0, sequence, epoch, repeated }
    }
}
