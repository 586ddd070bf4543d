//! Where control events come from and go to. Each technology implements these; `tests` has one conformance suite.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};

use super::{ControlEvent, ControlFeedError, ControlVersion, EventId, Result};
use crate::error::Classify as _;
use crate::limits::{CONTROL_HOST_BYTES_MAX, CONTROL_REPORT_BYTES_MAX};

/// Reads a feed. It keeps no cursor that counts: the applier's own does.
pub trait ControlSource: Send + Sync + Debug {
    /// For logs and metrics: `file`, `redis`.
    fn name(&self) -> &'static str;

    /// Events above a control version, ascending, at most `limit`; waits up to `wait` for one and may answer none.
    /// `BehindRetention` when events above `after` are gone, or `after` is not of this feed: a server that lost its data has
    /// another one now. What comes next is then above `after`, so that nobody takes it for something known. Who is told
    /// that starts from a snapshot. Where that is older than the feed, the origin goes on at the version before `oldest`,
    /// and the others wait for its next snapshot. What cannot be read as an event is answered as [`Received::Broken`] at
    /// its place and never keeps others from being answered. Costs the same whatever lies before `after`. A source with an
    /// acker may answer again what was not acknowledged, above `after` or not.
    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>>;

    /// For sources that need to be told what was committed.
    fn acker(&self) -> Option<&dyn Acker> {
        None
    }
}

/// Tells a source that an event is committed here.
pub trait Acker: Send + Sync + Debug {
    /// Only after the commit. What was acknowledged before, or never answered, changes nothing. After an error the event
    /// comes again. A [`Received::Broken`] has no id: it counts as acknowledged once a poll asks for what is after it.
    fn acknowledge(&self, event: &EventId, version: ControlVersion) -> BoxFuture<'_, Result<()>>;
}

/// What a poll answers.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    pub events: Vec<Received>,
    /// The oldest control version that is retained, and the newest; 0 where the feed has none.
    pub oldest: ControlVersion,
    pub newest: ControlVersion,
}

/// One entry of a feed.
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
#[derive(Clone, Debug)]
pub enum Received {
    Event {
        version: ControlVersion,
        event: ControlEvent,
    },
    /// It cannot be read as an event. It has a place, so that it can be passed by.
    Broken {
        version: ControlVersion,
        name: String,
        /// For programs: by which it was refused, or one of [`Received::UNREADABLE`] and [`Received::MISSING`].
        code: &'static str,
        reason: String,
    },
}

impl Received {
    /// Code of an entry in which there is nothing that could be an event.
    pub const UNREADABLE: &'static str = "control_event_unreadable";
    /// Code of an entry whose event somebody has removed from the middle of the feed.
    pub const MISSING: &'static str = "control_event_missing";

    /// An entry that is refused as an event.
    pub fn refused(version: ControlVersion, name: impl Into<String>, error: &ControlFeedError) -> Self {
        Self::Broken { version, name: name.into(), code: error.code(), reason: error.to_string() }
    }

    pub fn unreadable(version: ControlVersion, name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Broken { version, name: name.into(), code: Self::UNREADABLE, reason: reason.into() }
    }

    pub fn missing(version: ControlVersion, name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Broken { version, name: name.into(), code: Self::MISSING, reason: reason.into() }
    }

    pub fn version(&self) -> ControlVersion {
        match self {
            Self::Event { version, .. } | Self::Broken { version, .. } => *version,
        }
    }
}

/// Appends to a feed.
pub trait ControlSink: Send + Sync + Debug {
    fn name(&self) -> &'static str;

    /// Durable when it answers. Gives the event the next control version; the same event id answers the version that it
    /// has, within the window that the backend states ([`ControlSink::repeats_known_for`]). The same id with other content
    /// is refused. After an error the event may have been appended: the caller repeats it.
    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>>;

    /// The caller knows of an event at this version. A feed whose newest is below has lost its end, or is an older copy: what
    /// is appended next is above.
    fn saw(&self, _version: ControlVersion) {}

    /// For how long a repeat is recognised; none is for ever.
    fn repeats_known_for(&self) -> Option<Duration> {
        None
    }

    /// Up to which version events go when of those up to `through` the newest `kept` stay. Where versions lie close together,
    /// each counts as an event.
    fn keeping(&self, through: ControlVersion, kept: u64) -> BoxFuture<'_, Result<ControlVersion>> {
        ready(Ok(ControlVersion(through.0.saturating_sub(kept)))).boxed()
    }

    /// Removes events up to a control version that a snapshot covers. Answers how many went; a backend may keep more.
    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>>;
}

/// What hosts and their controller tell each other beside the feed: the newest word of each, nothing more. It may be lost:
/// everybody says it again.
pub trait Board: Send + Sync + Debug {
    /// Writes a host's report over its former one. The board gives it the time at which it came.
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The newest report of each host, and for how long it has been there.
    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>>;

    /// Forgets a host.
    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Writes the controller's mark over the former one, unless that one's control version is higher.
    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>>;

    /// One that cannot be read is none.
    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>>;

    /// Takes the mark away, so that one of any version may follow.
    fn forget_mark(&self) -> BoxFuture<'_, Result<()>>;
}

/// What the controller says of the whole: hosts compare themselves with it, and start from its snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetMark {
    /// As of this control version the desired state of every host has this digest.
    pub version: ControlVersion,
    pub state_digest: String,
    #[serde(default)]
    pub snapshot: Option<SnapshotRef>,
}

/// A snapshot of the desired state, in the artifact repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    pub version: ControlVersion,
    pub digest: String,
}

/// What every board asks before it takes a report: the host's name is that of a file and of keys, and a report is small.
pub fn check_report(host: &str, report: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let named = (1..=CONTROL_HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(fits);
    if !named || host.starts_with('.') {
        let host: String = host.chars().take(80).collect();
        return Err(ControlFeedError::Settings {
            setting: "control.host".into(),
            detail: format!(
                "`{host}` is not 1 to {CONTROL_HOST_BYTES_MAX} letters, digits, `.`, `_` and `-`, or begins with a dot"
            ),
        });
    }
    if report.len() > CONTROL_REPORT_BYTES_MAX {
        return Err(ControlFeedError::Limit {
            limit: "control_report_bytes_max",
            asked: report.len() as u64,
            max: CONTROL_REPORT_BYTES_MAX as u64,
        });
    }
    Ok(())
}
