//! What groups answer.

use std::sync::Arc;

use super::error::GroupError;
use super::names::{ConsumerName, GroupId, Receipt};
use super::options::GroupOptions;
use crate::event::{EventBatch, Micros, Position};
use crate::limits::GROUP_LETTERS_BYTES_MAX;

/// What somebody wants to read.
#[derive(Clone, Debug)]
pub struct GroupRead {
    pub consumer: ConsumerName,
    pub events: usize,
    pub bytes: usize,
    /// How long to wait where there is nothing.
    pub wait: std::time::Duration,
}

/// One entry, delivered to one consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub receipt: Receipt,
    /// The one event.
    pub event: Arc<EventBatch>,
    /// How often it was delivered, this time included.
    pub attempt: u32,
    /// When the lease ends.
    pub deadline: Micros,
    /// It is a dead letter that was replayed: its key went on without it.
    pub replayed: bool,
}

/// What one read answers.
#[derive(Clone, Debug, Default)]
pub struct Deliveries {
    pub entries: Vec<Delivery>,
    /// All that retention has ever taken from this group.
    pub lost_events: u64,
}

/// What became of one receipt that was acknowledged, refused or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The entry is done.
    Acknowledged,
    /// It was done before; nothing has changed.
    Already,
    /// It is delivered again at this time.
    Retry(Micros),
    /// It was delivered as often as it may be.
    DeadLetter,
    /// The lease now ends then.
    Renewed(Micros),
    Refused(Refusal),
}

/// Why a receipt changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lease has ended. The entry was or will be delivered again, or is a dead letter.
    LeaseExpired,
    /// Retention removed the entry while it was leased, and counted it as lost.
    Lost,
    /// The receipt is not of this group.
    Unknown,
}

impl Refusal {
    pub fn code(self) -> &'static str {
        match self {
            Self::LeaseExpired => "lease_expired",
            Self::Lost => "entry_lost",
            Self::Unknown => "receipt_unknown",
        }
    }
}

/// What a consumer says of an entry that it has.
#[derive(Clone, Debug)]
pub enum Settle {
    /// It is done.
    Ack(Receipt),
    /// It failed, and waits for so long; none leaves that to the group's backoff.
    Nack { receipt: Receipt, delay_ms: Option<u64>, reason: String },
    /// It takes longer: so long from now; none is the group's lease.
    Renew { receipt: Receipt, lease_ms: Option<u64> },
}

/// Why an entry became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// A consumer said that it failed.
    Nacked,
    /// Nobody acknowledged it in time.
    LeaseExpired,
}

impl DeadReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nacked => "nacked",
            Self::LeaseExpired => "lease_expired",
        }
    }

    pub fn parse(text: &str) -> Self {
        if text == "nacked" { Self::Nacked } else { Self::LeaseExpired }
    }
}

/// An entry that was delivered as often as it may be.
#[derive(Clone, Debug)]
pub struct GroupLetter {
    pub event: Arc<EventBatch>,
    pub attempts: u32,
    pub reason: DeadReason,
    /// What the last consumer said.
    pub message: String,
    /// Who had it last.
    pub consumer: String,
    pub at: Micros,
    /// It was replayed and is not yet acknowledged.
    pub replaying: bool,
}

impl GroupLetter {
    pub fn position(&self) -> Position {
        self.event.last_position()
    }
}

/// Dead letters, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct LetterPage {
    pub letters: Vec<GroupLetter>,
    /// There are more behind them.
    pub more: bool,
}

impl LetterPage {
    /// As many of these as a page may have: so many, and so many bytes unless it is one alone. Takes no more than it
    /// has to.
    pub fn fill<E>(
        letters: impl Iterator<Item = std::result::Result<GroupLetter, E>>,
        limit: usize,
    ) -> std::result::Result<Self, E> {
        let (mut page, mut bytes) = (Self::default(), 0);
        for letter in letters {
            let letter = letter?;
            bytes += letter.event.bytes() + letter.message.len();
            let full = bytes > GROUP_LETTERS_BYTES_MAX && !page.letters.is_empty();
            if full || page.letters.len() >= limit {
                page.more = true;
                break;
            }
            page.letters.push(letter);
        }
        Ok(page)
    }
}

/// What to do with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterVerdict {
    /// Deliver it again, with its attempts counted anew. It stays a dead letter until it is acknowledged.
    Replay,
    /// Forget it.
    Discard,
}

/// How a group stands.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    pub group: GroupId,
    pub options: GroupOptions,
    pub created_at: Micros,
    /// Everything up to here is acknowledged, a dead letter, or lost.
    pub low: Position,
    /// Events that are not acknowledged, however far they have come.
    pub lag_events: u64,
    /// There may be more of them.
    pub lag_is_least: bool,
    /// When the oldest of them was appended.
    pub oldest_at: Option<Micros>,
    /// Delivered and not yet acknowledged.
    pub in_flight: usize,
    /// Failed, and waiting for their time.
    pub retrying: usize,
    /// Taken out of the log and not delivered: ready, or behind another entry of their key.
    pub waiting: usize,
    pub dead_letters: usize,
    pub consumers: usize,
    /// What retention removed before it was acknowledged, in all, up to where, and when it last did.
    pub lost_events: u64,
    pub lost_until: Position,
    pub lost_at: Option<Micros>,
    /// It lost events, and its policy is to stop.
    pub stopped: bool,
    /// The newest position that retention has removed: the group's horizon.
    pub trimmed: Position,
    pub newest: Position,
}

/// How far a group is behind.
#[derive(Clone, Debug)]
pub struct GroupLag {
    pub group: GroupId,
    pub events: u64,
    pub oldest_at: Option<Micros>,
}

/// How one consumer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerStatus {
    pub name: ConsumerName,
    pub in_flight: usize,
    /// When it last read or answered.
    pub seen_at: Micros,
}

/// Shorthand of this folder.
pub(super) type Result<T> = std::result::Result<T, GroupError>;
