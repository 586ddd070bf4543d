//! Checkpoints on their way: one put at a time, the newest state waits.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::client::{CheckpointClient, JsonText, SourceError, SourceFault};
use super::coalesce::{self, Saved, Stamp};
use super::policy::{Backoff, RuntimeConfig};

/// What two checkpoints are compared by: who wrote them does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    state: Vec<u8>,
    cursor: Option<String>,
}

/// Puts what a run hands over, and says when the next is due.
pub(super) struct Keeper {
    checkpoints: Arc<dyn CheckpointClient>,
    client_id: Arc<str>,
    content_type: Arc<str>,
    stamp: Stamp,
    /// Who wrote what is kept now, as far as is known.
    seen: Option<Stamp>,
    kept: Option<Content>,
    under_way: Option<UnderWay>,
    backoff: Backoff,
    not_before: Instant,
    interval: Duration,
    next_tick: Instant,
    /// Since the last snapshot.
    events: u64,
    bytes: u64,
    pressing: bool,
    bounds: (u64, u64),
    /// Events that no put has in it.
    behind: u64,
    behind_max: u64,
}

struct UnderWay {
    content: Content,
    /// Events that it has in it.
    events: u64,
    put: BoxFuture<'static, Result<(), SourceError>>,
}

/// What became of a put.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Done,
    /// It is tried again after a while.
    Failed(SourceError),
}

impl Keeper {
    pub(super) fn new(
        checkpoints: Arc<dyn CheckpointClient>,
        config: &RuntimeConfig,
        content_type: &str,
        loaded: Option<&Saved>,
    ) -> Self {
        let seen = loaded.and_then(|saved| saved.stamp.clone());
        let content =
            |saved: &Saved| Content { state: coalesce::compared(&saved.state), cursor: saved.cursor.clone() };
        let now = Instant::now();
        let interval = config.checkpoint_interval;
        Self {
            checkpoints,
            client_id: config.client_id.as_str().into(),
            content_type: content_type.into(),
            stamp: Stamp {
                generation: seen.as_ref().map_or(0, |seen| seen.generation) + 1,
                owner: format!("{:032x}", rand::random::<u128>()),
            },
            seen,
            kept: loaded.map(content),
            under_way: None,
            backoff: Backoff::new(config.reconnect_min, config.reconnect_max),
            not_before: now,
            interval,
            next_tick: now + interval,
            events: 0,
            bytes: 0,
            pressing: false,
            bounds: (config.checkpoint_events.max(1), config.checkpoint_bytes.max(1)),
            behind: 0,
            behind_max: config.behind_events_max.max(1),
        }
    }

    /// Events were handled.
    pub(super) fn count(&mut self, events: u64, bytes: u64) {
        self.events += events;
        self.behind += events;
        self.bytes += bytes;
        if self.events >= self.bounds.0 || self.bytes >= self.bounds.1 || self.kept.is_none() {
            // Without any checkpoint a crash would lose even the place to begin at.
            self.pressing = true;
        }
    }

    /// The cursor moved without an event.
    pub(super) fn moved(&mut self) {
        self.pressing = self.pressing || self.kept.is_none();
    }

    /// A good moment: what there is should be put soon.
    pub(super) fn press(&mut self) {
        self.pressing = self.pressing || self.events > 0;
    }

    /// Whether so much is unsaved that nothing more should be handled.
    pub(super) fn is_behind(&self) -> bool {
        self.behind >= self.behind_max
    }

    /// When to flush, and to hand a state over where [`Keeper::is_free`].
    pub(super) fn due(&self) -> Instant {
        match self.pressing && self.under_way.is_none() {
            true => self.not_before.min(self.next_tick),
            false => self.next_tick,
        }
    }

    /// The time has come; the next one is an interval from now.
    pub(super) fn ticked(&mut self) {
        self.next_tick = Instant::now() + self.interval;
    }

    /// Whether a state would be put at once.
    pub(super) fn is_free(&self) -> bool {
        self.under_way.is_none() && Instant::now() >= self.not_before
    }

    /// Puts a state unless it is the one that is kept.
    pub(super) fn hand_over(&mut self, saved: &Saved) -> Result<(), SourceError> {
        if self.kept.is_none() && saved.cursor.is_none() && self.behind == 0 {
            // There is nothing to go on from yet.
            return Ok(());
        }
        (self.events, self.bytes, self.pressing) = (0, 0, false);
        let content = Content { state: coalesce::compared(&saved.state), cursor: saved.cursor.clone() };
        if self.kept.as_ref() == Some(&content) {
            self.behind = 0;
            return Ok(());
        }
        let value = coalesce::write(saved, &self.stamp)?;
        let put = put(
            Arc::clone(&self.checkpoints),
            (Arc::clone(&self.client_id), Arc::clone(&self.content_type)),
            value,
            (self.stamp.clone(), self.seen.clone()),
        );
        self.under_way = Some(UnderWay { content, events: self.behind, put: put.boxed() });
        Ok(())
    }

    /// Waits for the put that is under way; for ever where none is. A future that is dropped loses nothing.
    pub(super) async fn turn(&mut self) -> Result<Kept, SourceError> {
        let Some(under_way) = &mut self.under_way else { return std::future::pending().await };
        let answer = (&mut under_way.put).await;
        let Some(UnderWay { content, events, .. }) = self.under_way.take() else {
            return std::future::pending().await;
        };
        match answer {
            Ok(()) => {
                (self.kept, self.seen) = (Some(content), Some(self.stamp.clone()));
                self.behind = self.behind.saturating_sub(events);
                self.backoff.reset();
                Ok(Kept::Done)
            }
            Err(error) => {
                let Some(asked) = error.wait() else { return Err(error) };
                self.not_before = Instant::now() + self.backoff.wait(asked);
                self.pressing = true;
                Ok(Kept::Failed(error))
            }
        }
    }

    /// What should be put could not be made.
    pub(super) fn delay(&mut self, asked: Duration) {
        self.not_before = Instant::now() + self.backoff.wait(asked);
    }

    /// There is no later: the next put waits for nothing.
    pub(super) fn hurry(&mut self) {
        self.not_before = Instant::now();
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }
}

/// Looks who wrote last, since a put replaces whatever is there. That cannot tell two that put in the same moment, but the
/// next put of the one who was replaced does.
async fn put(
    checkpoints: Arc<dyn CheckpointClient>,
    (client_id, content_type): (Arc<str>, Arc<str>),
    value: JsonText,
    (own, seen): (Stamp, Option<Stamp>),
) -> Result<(), SourceError> {
    if let Some(there) = checkpoints.get(&client_id).await? {
        let by = coalesce::stamp_of(&there.value);
        if by.as_ref() != Some(&own) && by != seen {
            let who = match by {
                Some(by) => format!("run {} of another host", by.generation),
                None => "another runtime".to_owned(),
            };
            let message = format!("{who} saves under client id `{client_id}`, too; this one stops");
            return Err(SourceError::stop(SourceFault::TakenOver, message));
        }
    }
    checkpoints.put(&client_id, &content_type, value).await?;
    Ok(())
}
