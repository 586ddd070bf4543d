//! The shapes of groups on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::event::{Epoch, Micros, Position};
use crate::gateway::wire::EventView;
use crate::streams::groups::{ConsumerStatus, GroupStatus, OnLost};

/// What a group is made with, or changed to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::gateway) struct GroupRequest {
    /// Where a new group begins: `oldest`, which is the default, `newest`, or a cursor. One that is there stays where it is.
    pub from: Option<String>,
    /// How long a consumer has an entry to itself: 50 to 43200000, or else 30000.
    pub lease_ms: Option<u64>,
    /// Deliveries after which an entry that fails becomes a dead letter: 1 to 1000, or else 5.
    pub attempts_max: Option<u32>,
    /// First and longest wait of an entry that failed; doubles in between. Or else 1000 and 60000.
    pub backoff_ms_min: Option<u64>,
    pub backoff_ms_max: Option<u64>,
    pub on_lost: Option<OnLost>,
}

/// Where a group goes on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct SeekRequest {
    /// `oldest`, `newest`, or a cursor: the group goes on behind it.
    pub to: String,
}

/// A read.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct ReadRequest {
    /// The consumer's own name, the same each time.
    pub consumer: String,
    /// Entries: 1 to 1000, or else 100.
    pub limit: Option<usize>,
    /// Bytes: 1 to 4194304, which is the default.
    pub bytes: Option<usize>,
    /// How long to wait where there is nothing: 0, which is the default, to 30000.
    pub wait_ms: Option<u64>,
}

/// Entries that are done.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct AckRequest {
    pub receipts: Vec<String>,
}

/// Entries that failed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct NackRequest {
    pub receipts: Vec<String>,
    /// How long they wait: 0 to 43200000, or else what the group's backoff says.
    pub delay_ms: Option<u64>,
    /// What went wrong; it stands in the dead letter. Of more than 1024 bytes the rest is cut off.
    #[serde(default)]
    pub reason: String,
}

/// Entries that take longer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct RenewRequest {
    pub receipts: Vec<String>,
    /// How long from now: 50 to 43200000, or else the group's lease.
    pub lease_ms: Option<u64>,
}

/// A group of consumers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct GroupView {
    pub group: String,
    pub stream: String,
    pub created_at: String,
    pub lease_ms: u64,
    pub attempts_max: u32,
    pub backoff_ms_min: u64,
    pub backoff_ms_max: u64,
    pub on_lost: OnLost,
    /// Everything up to this cursor is acknowledged, a dead letter, or lost.
    pub position: String,
    /// Events that are not acknowledged.
    pub lag_events: u64,
    /// There may be more: counting ended there.
    pub lag_is_least: bool,
    /// Since the oldest of them was appended; 0 when there is none.
    pub lag_seconds: f64,
    /// Delivered and not acknowledged.
    pub in_flight: usize,
    /// Failed, and waiting for another try.
    pub retrying: usize,
    /// Taken out of the log and not delivered: ready, or behind another entry of their key.
    pub waiting: usize,
    pub dead_letters: usize,
    pub consumers: usize,
    /// Events that retention removed before they were acknowledged, in all.
    pub lost_events: u64,
    /// Up to where, and when that last happened.
    pub lost_until: Option<String>,
    pub lost_at: Option<String>,
    /// It lost events and delivers nothing until it is moved.
    pub stopped: bool,
    /// What is held begins behind this cursor.
    pub oldest: String,
    pub newest: String,
}

impl GroupView {
    pub(super) fn of(status: GroupStatus, epoch: &Epoch, now: Micros) -> Self {
        let cursor = |position: Position| format!("{}.{position}", epoch.0);
        let behind = status.oldest_at.map_or(0, |at| now.0.saturating_sub(at.0).max(0));
        Self {
            group: status.group.name.to_string(),
            stream: status.group.stream.to_string(),
            created_at: status.created_at.to_string(),
            lease_ms: status.options.lease_ms,
            attempts_max: status.options.attempts_max,
            backoff_ms_min: status.options.backoff_ms_min,
            backoff_ms_max: status.options.backoff_ms_max,
            on_lost: status.options.on_lost,
            position: cursor(status.low),
            lag_events: status.lag_events,
            lag_is_least: status.lag_is_least,
            lag_seconds: behind as f64 / 1e6,
            in_flight: status.in_flight,
            retrying: status.retrying,
            waiting: status.waiting,
            dead_letters: status.dead_letters,
            consumers: status.consumers,
            lost_events: status.lost_events,
            lost_until: (status.lost_events > 0).then(|| cursor(status.lost_until)),
            lost_at: status.lost_at.map(|at| at.to_string()),
            stopped: status.stopped,
            oldest: cursor(status.trimmed),
            newest: cursor(status.newest),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct GroupList {
    pub groups: Vec<GroupView>,
}

/// One entry that a consumer is given.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct EntryView {
    /// What to acknowledge it with. Good until the lease ends.
    pub receipt: String,
    /// How often it was delivered, this time included.
    pub attempt: u32,
    /// When the lease ends.
    pub deadline: String,
    /// It is a dead letter that was replayed: its key went on without it.
    pub replayed: bool,
    pub event: EventView,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct EntryList {
    pub entries: Vec<EntryView>,
    /// Events that retention has ever removed before this group had acknowledged them.
    pub lost_events: u64,
}

/// What became of one receipt.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct SettledView {
    pub receipt: String,
    /// `acknowledged`, `already`, `retry`, `dead_letter`, `renewed` or `refused`.
    pub outcome: String,
    /// Why it was refused: `lease_expired`, `entry_lost` or `receipt_unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// When it is delivered again, or when the lease now ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// What became of receipts, in their order. Where all were refused, the answer is a problem with these.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct SettledList {
    pub results: Vec<SettledView>,
    /// How many were refused.
    pub refused: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ConsumerView {
    pub consumer: String,
    /// Entries that it has and did not acknowledge.
    pub in_flight: usize,
    /// When it last read or answered.
    pub seen_at: String,
}

impl From<ConsumerStatus> for ConsumerView {
    fn from(status: ConsumerStatus) -> Self {
        Self {
            consumer: status.name.to_string(),
            in_flight: status.in_flight,
            seen_at: status.seen_at.to_string(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ConsumerList {
    pub consumers: Vec<ConsumerView>,
}

/// An entry that was delivered as often as it may be.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct GroupLetterView {
    /// Its number: the position of its event.
    pub letter: u64,
    /// `nacked` or `lease_expired`.
    pub reason: String,
    /// What the last consumer said.
    pub message: String,
    pub attempts: u32,
    /// Who had it last.
    pub consumer: String,
    pub at: String,
    /// It was replayed and is not yet acknowledged.
    pub replaying: bool,
    pub event: EventView,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct GroupLetterList {
    pub dead_letters: Vec<GroupLetterView>,
    /// The `after` of the next page; none where this is the last one.
    pub next: Option<u64>,
}

/// What became of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct DecidedView {
    pub letter: u64,
    /// `replaying` or `discarded`.
    pub outcome: String,
}
