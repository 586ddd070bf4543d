//! What people ask a host about its fleet, and have it do.
//!
//! Promises: it answers from what this host knows and from the board, and waits for no other host; a change goes the way of
//! every change, as a signed event through the outbox. Deliberately absent: changes that this host would make up. Whoever
//! wants one makes it of what [`FleetDesk::desired`] answers, and signs it.

use std::sync::Arc;

use metrics::counter;

use super::changes::desired_of;
use super::fleet::{self, FleetStatus, HostChange};
use super::freeze::{self, Freeze};
use super::report::{HostReport, Seen};
use super::rollout::Silence;
use super::snapshot::{Drift, Snapshots};
use super::{
    Applier, Believing, Board, ControlEvent, ControlFeedError, ControlStore, ControlVersion, Controller,
    DesiredRow, EventBody, EventId, Origin, OutboxLetter, OutboxStatus, Proposed, Quarantined, Reporter,
    Restored, Result,
};
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::limits::CONTROL_PAGE_MAX;
use crate::telemetry::metrics::CONTROL_PROPOSED;

/// What it works with.
#[derive(Clone, Debug)]
pub struct DeskParts {
    pub host: String,
    /// The names of what this host reads and writes.
    pub source: String,
    pub sink: String,
    pub store: Arc<dyn ControlStore>,
    pub board: Arc<dyn Board>,
    pub keys: Believing,
    pub clock: Arc<dyn Clock>,
    pub applier: Arc<Applier>,
    pub snapshots: Arc<Snapshots>,
    pub reporter: Arc<Reporter>,
    /// Of a host with a sink.
    pub origin: Option<(Origin, Arc<Controller>)>,
    pub silence: Silence,
}

#[derive(Clone, Debug)]
pub struct FleetDesk {
    parts: Arc<DeskParts>,
}

/// What the fleet should run, as the next change is made of it.
#[derive(Clone, Debug)]
pub struct DesiredState {
    /// How far this host has read the feed.
    pub cursor: ControlVersion,
    /// Those that wait for the feed are among them, with version 0.
    pub rows: Vec<DesiredRow>,
    pub frozen: Option<Freeze>,
}

/// The outbox as a whole, and what the feed does not take of it.
#[derive(Clone, Debug)]
pub struct Outbox {
    pub status: OutboxStatus,
    pub letters: Vec<OutboxLetter>,
}

/// The host that is asked.
#[derive(Clone, Debug)]
pub struct OwnState {
    /// What it says of itself to the fleet.
    pub report: HostReport,
    pub source: String,
    pub sink: String,
    /// Of the keys that it believes; it looks at none when it is insecure.
    pub trust_revision: u64,
    pub is_insecure: bool,
    /// How it stands to the origin's word; none where there is none, or the board does not answer.
    pub drift: Option<Drift>,
}

impl FleetDesk {
    pub fn new(parts: DeskParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Keeps a signed event to be told: it is durable here, and on its way. The same event again answers the same.
    pub async fn propose(&self, text: &str) -> Result<Proposed> {
        let proposed = self.try_propose(text).await;
        let outcome = match &proposed {
            Ok(Proposed { repeated: false, .. }) => "taken",
            Ok(_) => "repeated",
            Err(problem) => problem.code(),
        };
        counter!(CONTROL_PROPOSED, "outcome" => outcome).increment(1);
        proposed
    }

    async fn try_propose(&self, text: &str) -> Result<Proposed> {
        let (origin, controller) = self.origin()?;
        let event = understood(text)?;
        let proposed = origin.propose(&event).await?;
        controller.nudge();
        Ok(proposed)
    }

    /// At the origin with what it has not told yet.
    pub async fn desired(&self) -> Result<DesiredState> {
        let store = &self.parts.store;
        let rows = store.proposed().await?;
        let (cursor, frozen) = (store.cursor().await?, freeze::present(store.as_ref()).await?);
        Ok(DesiredState { cursor, rows, frozen })
    }

    /// What is desired beside what hosts report.
    pub async fn status(&self) -> Result<FleetStatus> {
        let DesiredState { cursor, rows, .. } = self.desired().await?;
        let reports = self.reports().await?;
        let told = rows.iter().map(|row| row.version).max().unwrap_or_default();
        let mark = self.parts.board.mark().await?;
        let marked = mark.as_ref().map(|mark| mark.version).unwrap_or_default();
        let newest = cursor.max(told).max(marked);
        let mut status = fleet::status(&rows, &reports, newest, self.parts.silence);
        fleet::compare(&mut status.hosts, &reports, mark.as_ref());
        Ok(status)
    }

    /// Forgets a host that will not come back. One that lives reports again.
    pub async fn forget(&self, host: &str) -> Result<()> {
        super::check_report(host, "")?;
        self.parts.board.forget(host).await
    }

    /// What this host has set aside of the feed, the newest first.
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        self.parts.store.quarantined(CONTROL_PAGE_MAX).await
    }

    pub async fn outbox(&self) -> Result<Outbox> {
        let store = &self.parts.store;
        Ok(Outbox { status: store.outbox().await?, letters: store.letters(CONTROL_PAGE_MAX).await? })
    }

    /// Tries a dead letter again.
    pub async fn retry(&self, event: &str) -> Result<()> {
        let (origin, _) = self.origin()?;
        let id = EventId::try_from(event.to_owned())?;
        found(&id, origin.retry(&id).await?)
    }

    /// Gives a dead letter up: what was told of its entity before stands again.
    pub async fn discard(&self, event: &str) -> Result<()> {
        let (origin, _) = self.origin()?;
        let id = EventId::try_from(event.to_owned())?;
        found(&id, origin.discard(&id).await?)
    }

    /// Freezes the fleet, or with no reason lets it go on.
    pub async fn freeze(&self, by: &str, reason: Option<&str>) -> Result<Option<Freeze>> {
        let (_, controller) = self.origin()?;
        let at = self.parts.clock.now().0;
        let freeze = reason.map(|reason| Freeze { by: by.to_owned(), reason: super::cut(reason), at });
        controller.freeze(freeze.as_ref()).await?;
        Ok(freeze)
    }

    /// What an event would change on which hosts. It need not be signed; it is refused as it would be for what it is made on.
    pub async fn preview(&self, text: &str) -> Result<Vec<HostChange>> {
        let event = understood(text)?;
        let DesiredState { rows, .. } = self.desired().await?;
        let entity = event.entity();
        let stands = rows.iter().find(|row| row.entity == entity);
        let (expected, found) = (event.unsigned().base_revision, stands.map_or(0, |row| row.revision));
        if expected != found {
            return Err(ControlFeedError::RevisionConflict { entity, expected, found });
        }
        let EventBody::Plugin { desired: next, .. } = &event.unsigned().body else { return Ok(Vec::new()) };
        let present = stands.and_then(desired_of).map(|(_, desired)| desired);
        Ok(fleet::preview(present, next, &self.reports().await?, self.parts.silence))
    }

    /// Restores this host's desired state from the fleet's snapshot; none when there is no snapshot.
    pub async fn resync(&self) -> Result<Option<Restored>> {
        self.parts.applier.resync().await
    }

    /// The host that is asked. It answers this also while the board is away.
    pub async fn own(&self) -> Result<OwnState> {
        let DeskParts { source, sink, keys, snapshots, reporter, .. } = &*self.parts;
        let drift = snapshots.compare().await.ok().flatten().map(|(_, drift)| drift);
        let keys = keys.keys();
        Ok(OwnState {
            report: reporter.report().await?,
            source: source.clone(),
            sink: sink.clone(),
            trust_revision: keys.revision(),
            is_insecure: keys.is_insecure(),
            drift,
        })
    }

    /// The plugins that the feed names here, removed ones among them.
    pub async fn named(&self) -> Result<Vec<String>> {
        let unreadable = self.parts.store.unreadable().await?;
        let (_, rows) = self.parts.store.desired().await?;
        let named = rows.iter().filter_map(desired_of).map(|(plugin, _)| plugin.to_owned());
        Ok(named.chain(unreadable.plugins()).collect())
    }

    async fn reports(&self) -> Result<Vec<Seen>> {
        Ok(Seen::read(self.parts.board.reports().await?))
    }

    fn origin(&self) -> Result<&(Origin, Arc<Controller>)> {
        self.parts.origin.as_ref().ok_or(ControlFeedError::NoFeed)
    }
}

/// Whoever makes an event has it understood by the host that tells it.
fn understood(text: &str) -> Result<ControlEvent> {
    let event = ControlEvent::parse(text)?;
    if event.unsigned().body == EventBody::Unknown {
        let detail = format!("its kind `{}` is not known", event.unsigned().kind);
        return Err(ControlFeedError::NotUnderstood { detail });
    }
    Ok(event)
}

fn found(event: &EventId, found: bool) -> Result<()> {
    if found { Ok(()) } else { Err(ControlFeedError::LetterUnknown { event_id: event.to_string() }) }
}
