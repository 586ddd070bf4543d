//! One run, from the checkpoint that it begins with to the last one that it saves.

mod lost;
mod marks;
mod recheck;
mod saving;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::recheck::Recheck;
use super::client::{
    CheckpointClient, ControlEvent, EventClient, EventEnvelope, EventStream, SourceError, SourceFault,
};
use super::coalesce::{self, Saved};
use super::keeper::Keeper;
use super::policy::{Backoff, RuntimeConfig};
use super::recent::Recent;
use super::reducer::Reducer;
use super::status::{Progress, SourceState};
use crate::clock::Clock;
use crate::error::{Blame, Classify as _, Retry};
use crate::limits::{SOURCE_BATCH_BYTES_MAX, SOURCE_BATCH_EVENTS_MAX, SOURCE_LAST_SAVE_MAX};
use crate::telemetry::metrics as names;

/// The cursor of the oldest event that a server has.
const OLDEST: &str = "start";
/// A wait that nobody asked for is the usual one.
const USUAL: Duration = Duration::ZERO;

/// Everything that a run is made of.
pub(super) struct Run {
    pub(super) events: Arc<dyn EventClient>,
    pub(super) checkpoints: Arc<dyn CheckpointClient>,
    pub(super) reducer: Box<dyn Reducer>,
    pub(super) config: RuntimeConfig,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) progress: Progress,
    pub(super) stop: CancellationToken,
}

/// A run that has taken up its checkpoint.
struct Feed {
    run: Run,
    keeper: Keeper,
    recent: Recent,
    /// Up to where events are handled. It moves as they come, whatever the processor says.
    cursor: Option<String>,
    place: Place,
    /// The newest event that was handled, while a stream that began before it has not shown it again.
    again: Option<String>,
    /// The stream is not before the newest place: it began there, or has shown what lies before.
    is_ahead: bool,
    /// What the running stream shows, as far as it has said so.
    shows: SourceState,
    /// The last stream was live, and we closed it ourselves: nothing was missed on it.
    closed_by_us: bool,
    backoff: Backoff,
    /// Of events that are to be tried again.
    patience: Backoff,
}

/// Where the next subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Some events before the newest, which is how what came late is found.
    Overlap,
    /// After the newest.
    Newest,
    /// Where the server said.
    After(String),
    Oldest,
    Now,
}

/// What comes after a stream.
enum Next {
    Stop,
    Again,
    Wait(Duration),
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Stop,
}

/// What ended a batch that was gathered.
enum Cut {
    /// Nothing more had arrived.
    Quiet,
    Control(ControlEvent),
    End,
    Failed(SourceError),
}

impl Run {
    pub(super) async fn until_the_end(self) -> Result<(), SourceError> {
        let (clock, progress) = (Arc::clone(&self.clock), self.progress.clone());
        let answer = self.begun().await;
        if let Err(error) = &answer {
            progress.note(|status| status.last_error = Some((error.code(), error.to_string())));
        }
        let state = if answer.is_ok() { SourceState::Stopped } else { SourceState::Failed };
        progress.enter(state, clock.now());
        answer
    }

    async fn begun(mut self) -> Result<(), SourceError> {
        let mut backoff = Backoff::new(self.config.reconnect_min, self.config.reconnect_max);
        let loaded = loop {
            let stop = self.stop.clone();
            let Some(answer) = stop.run_until_cancelled(self.load()).await else { return Ok(()) };
            match answer {
                Ok(loaded) => break loaded,
                Err(error) => {
                    let Some(asked) = error.wait() else { return Err(error) };
                    self.waits(&error);
                    let wait = tokio::time::sleep(backoff.wait(asked));
                    if stop.run_until_cancelled(wait).await.is_none() {
                        return Ok(());
                    }
                }
            }
        };
        let keeper = Keeper::new(
            Arc::clone(&self.checkpoints),
            &self.config,
            self.reducer.content_type(),
            loaded.as_ref(),
        );
        let (saved, remembered, at_mark) =
            loaded.map_or((None, Vec::new(), false), |saved| (saved.cursor, saved.recent, saved.at_mark));
        // Also where another run of before, or another host, has come to another place.
        self.progress.note(|status| status.cursor.clone_from(&saved));
        let begin =
            saved.clone().or_else(|| self.config.after_cursor.clone()).filter(|text| !text.is_empty());
        let place = match begin.as_deref() {
            Some(OLDEST) => Place::Oldest,
            _ => Place::Overlap,
        };
        let recent = Recent::new(begin.filter(|begin| begin != OLDEST), remembered, at_mark);
        let feed = Feed {
            keeper,
            recent,
            cursor: saved,
            place,
            again: None,
            is_ahead: false,
            shows: SourceState::Connecting,
            closed_by_us: false,
            patience: Backoff::new(self.config.reconnect_min, self.config.reconnect_max),
            backoff: Backoff::new(self.config.reconnect_min, self.config.reconnect_max),
            run: self,
        };
        feed.run().await
    }

    /// Takes up what is kept. Only asking for it is tried again.
    async fn load(&mut self) -> Result<Option<Saved>, SourceError> {
        let Some(checkpoint) = self.checkpoints.get(&self.config.client_id).await? else { return Ok(None) };
        let (got, want) = (&checkpoint.content_type, self.reducer.content_type());
        if !got.is_empty() && got != want {
            let message = format!("checkpoint content type mismatch: got \"{got}\", want \"{want}\"");
            return Err(SourceError::stop(SourceFault::ContentType, message));
        }
        let saved = coalesce::read(&checkpoint.value)?;
        self.reducer.load(&saved.state).map_err(|error| SourceError {
            fault: SourceFault::Load,
            retry: Retry::Never,
            message: format!("load checkpoint: {error}"),
            cause: error.cause,
        })?;
        Ok(Some(saved))
    }

    fn waits(&self, error: &SourceError) {
        self.progress.note(|status| status.last_error = Some((error.code(), error.to_string())));
        self.progress.enter(SourceState::Waiting, self.clock.now());
        warn!(
            error.kind = error.code(),
            error.blame = error.blame().as_str(),
            %error,
            client = self.config.client_id,
            "a source has to wait"
        );
    }
}

impl Feed {
    async fn run(mut self) -> Result<(), SourceError> {
        let fed = self.feed().await;
        let can_save = match &fed {
            Ok(()) => true,
            // Whoever may not put, or has nothing to put, does not try.
            Err(error) => !matches!(
                error.fault,
                SourceFault::ForeignCheckpoint | SourceFault::TakenOver | SourceFault::TooLarge
            ),
        };
        if !can_save {
            return fed;
        }
        let late = || SourceError::pass(SourceFault::Unreachable, "the last save was not answered in time");
        let saved = timeout(SOURCE_LAST_SAVE_MAX, self.last_save()).await.unwrap_or_else(|_| Err(late()));
        if let (Err(_), Err(error)) = (&fed, &saved) {
            warn!(error.kind = error.code(), error.blame = Blame::Host.as_str(), %error, "the last save of a source failed");
        }
        fed.and(saved)
    }

    /// One stream after another, until somebody stops it or nothing can be done.
    async fn feed(&mut self) -> Result<(), SourceError> {
        loop {
            self.shows = SourceState::Connecting;
            self.run.progress.enter(self.shows, self.run.clock.now());
            let asked = self.after_cursor();
            self.begins(asked.as_deref());
            let request = self.run.config.request(asked.clone());
            let events = Arc::clone(&self.run.events);
            let Some(opened) = self.meanwhile(events.subscribe(request)).await? else { return Ok(()) };
            let next = match opened {
                Ok(stream) => {
                    let begun = Instant::now();
                    let next = self.consume(stream, asked.as_deref(), begun).await?;
                    self.backoff.lived(begun.elapsed());
                    next
                }
                Err(error) => self.broken(error)?,
            };
            match next {
                Next::Stop => return Ok(()),
                Next::Again => {}
                Next::Wait(asked) => {
                    let wait = self.backoff.wait(asked);
                    if self.pause(wait).await? == Flow::Stop {
                        return Ok(());
                    }
                }
            }
            // In this order: whoever sees the count sees no state of before.
            self.run.progress.enter(SourceState::Connecting, self.run.clock.now());
            self.run.progress.note(|status| status.reconnects += 1);
        }
    }

    fn after_cursor(&self) -> Option<String> {
        match &self.place {
            Place::Overlap => self.recent.before(self.run.config.overlap_events).map(str::to_owned),
            Place::Newest => self.recent.newest().map(str::to_owned),
            Place::After(cursor) => Some(cursor.clone()),
            Place::Oldest => Some(OLDEST.to_owned()),
            Place::Now => None,
        }
    }

    /// Whether a new stream would begin where this one ends.
    fn has_place(&self) -> bool {
        match &self.place {
            Place::Overlap | Place::Newest => self.recent.newest().is_some(),
            Place::After(_) | Place::Oldest => true,
            Place::Now => false,
        }
    }

    /// Whether there is anything to look back at. Where nothing is known yet, the place to begin at stays what it is; so
    /// does one that the server named, which may be ahead of everything that is known.
    fn can_look_back(&self) -> bool {
        self.recent.newest().is_some() && !matches!(self.place, Place::After(_))
    }

    fn look_back(&mut self) {
        // The oldest lies before everything that is known.
        if self.can_look_back() && self.place != Place::Oldest {
            self.place = Place::Overlap;
        }
    }

    /// What to do about a stream that failed, or was not opened.
    fn broken(&mut self, error: SourceError) -> Result<Next, SourceError> {
        self.closed_by_us = false;
        let Some(asked) = error.wait() else { return Err(error) };
        self.run.waits(&error);
        metrics::counter!(names::SOURCE_RECONNECTS, "reason" => error.code()).increment(1);
        Ok(Next::Wait(asked))
    }

    fn leave(&self, reason: &'static str) {
        info!(reason, client = self.run.config.client_id, "a stream of events is opened again");
        metrics::counter!(names::SOURCE_RECONNECTS, "reason" => reason).increment(1);
    }

    async fn consume(
        &mut self,
        mut stream: Box<dyn EventStream>,
        asked: Option<&str>,
        begun: Instant,
    ) -> Result<Next, SourceError> {
        let idle_max = self.run.config.idle_max;
        let mut recheck = Recheck::new(self.run.config.recheck, asked, begun);
        let (mut heard, mut was_reading) = (begun, true);
        loop {
            let due = self.keeper.due();
            let reading = !self.keeper.is_behind();
            if reading && !was_reading {
                // Nobody has listened.
                heard = Instant::now();
            }
            was_reading = reading;
            let rechecks = reading && self.can_look_back();
            // What comes between two streams without a place is lost. A dead connection is noticed all the same.
            let watches = reading && !idle_max.is_zero() && self.has_place();
            let again = recheck.due().filter(|_| rechecks);
            // Whatever is dropped here can be asked again: a put goes on, and a stream gives up nothing. An event that is
            // there comes before the two clocks that end a stream.
            let came = tokio::select! {
                biased;
                () = self.run.stop.cancelled() => return Ok(Next::Stop),
                kept = self.keeper.turn() => {
                    self.kept(kept?);
                    continue;
                }
                () = sleep_until(due) => {
                    self.save_what_is_due().await?;
                    continue;
                }
                came = stream.recv(), if reading => came,
                () = sleep_until(again.unwrap_or(begun)), if again.is_some() => {
                    let nothing_is_unread = self.shows == SourceState::Live;
                    let next = self.recheck();
                    self.closed_by_us = nothing_is_unread;
                    return Ok(next);
                }
                () = sleep_until(heard + idle_max), if watches => {
                    self.closed_by_us = false;
                    self.leave("idle");
                    return Ok(Next::Wait(USUAL));
                }
            };
            let (events, cut) = self.gather(came, stream.as_mut());
            if !events.is_empty() && self.take(&events).await? == Flow::Stop {
                return Ok(Next::Stop);
            }
            heard = Instant::now();
            recheck.came(&cut, heard);
            let next = match cut {
                Cut::Quiet => None,
                Cut::Control(event) => self.control(event, asked, begun).await?,
                Cut::End => {
                    self.closed_by_us = false;
                    self.leave("end");
                    Some(Next::Wait(USUAL))
                }
                Cut::Failed(error) => Some(self.broken(error)?),
            };
            if let Some(next) = next {
                return Ok(next);
            }
            // On a stream that is never quiet the clock above has no turn. What is still unread of it may be gone where it
            // is asked for again.
            if rechecks && recheck.is_due(Instant::now()) {
                return Ok(self.recheck());
            }
        }
    }

    fn recheck(&mut self) -> Next {
        self.closed_by_us = false;
        self.leave("recheck");
        self.look_back();
        Next::Again
    }

    /// What has arrived, without waiting for more, and without what came before.
    fn gather(
        &mut self,
        first: Result<Option<EventEnvelope>, SourceError>,
        stream: &mut dyn EventStream,
    ) -> (Vec<EventEnvelope>, Cut) {
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut cursors = HashSet::new();
        let mut came = first;
        loop {
            let envelope = match came {
                Ok(Some(envelope)) => envelope,
                Ok(None) => return (events, Cut::End),
                Err(error) => return (events, Cut::Failed(error)),
            };
            if let Some(control) = ControlEvent::of(&envelope) {
                return (events, Cut::Control(control));
            }
            self.closed_by_us = false;
            let known = envelope
                .cursor
                .as_ref()
                .is_some_and(|cursor| self.recent.knows(cursor) || !cursors.insert(cursor.clone()));
            if known {
                self.came_again(envelope.cursor.as_deref());
                self.run.progress.note(|status| status.repeated += 1);
                metrics::counter!(names::SOURCE_REPEATED).increment(1);
            } else {
                bytes += envelope.data.len();
                events.push(envelope);
            }
            if events.len() >= SOURCE_BATCH_EVENTS_MAX || bytes >= SOURCE_BATCH_BYTES_MAX {
                return (events, Cut::Quiet);
            }
            match stream.recv().now_or_never() {
                Some(more) => came = more,
                None => return (events, Cut::Quiet),
            }
        }
    }

    /// Has events handled, in order and each until it is.
    async fn take(&mut self, events: &[EventEnvelope]) -> Result<Flow, SourceError> {
        let mut rest = events;
        while !rest.is_empty() {
            let handled = self.run.reducer.handle(rest).await;
            let (done, left) = rest.split_at(handled.events.min(rest.len()));
            self.handled(done);
            rest = left;
            let Some(failure) = handled.failure else {
                if done.is_empty() {
                    let message = "the processor handled nothing and did not say why";
                    return Err(SourceError::stop(SourceFault::Processor, message));
                }
                continue;
            };
            let Some(asked) = failure.wait() else { return Err(failure) };
            self.run.waits(&failure);
            let wait = self.patience.wait(asked);
            if self.pause(wait).await? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Go)
    }

    fn handled(&mut self, events: &[EventEnvelope]) {
        if events.is_empty() {
            return;
        }
        for cursor in events.iter().filter_map(|envelope| envelope.cursor.as_deref()) {
            self.recent.note(cursor);
        }
        let newest = events.iter().rev().find_map(|envelope| envelope.cursor.as_ref());
        if let Some(newest) = newest {
            self.cursor = Some(newest.clone());
            self.place = Place::Overlap;
            self.again = None;
        }
        let count = events.len() as u64;
        self.keeper.count(count, events.iter().map(|envelope| envelope.data.len() as u64).sum());
        self.backoff.reset();
        self.patience.reset();
        self.goes_on();
        self.run.progress.note(|status| {
            status.events += count;
            if let Some(newest) = newest {
                status.cursor = Some(newest.clone());
            }
        });
        metrics::counter!(names::SOURCE_EVENTS).increment(count);
    }

    /// What the stream waited for is over.
    fn goes_on(&self) {
        self.run.progress.waits_no_more(self.shows, self.run.clock.now());
    }

    /// Acts on an event about the stream. None goes on reading.
    async fn control(
        &mut self,
        event: ControlEvent,
        asked: Option<&str>,
        begun: Instant,
    ) -> Result<Option<Next>, SourceError> {
        self.run.reducer.control(&event);
        match event {
            ControlEvent::Phase { phase, cursor } => {
                if let Some(cursor) = cursor {
                    self.mark(phase, &cursor);
                }
                self.shows = phase.into();
                self.closed_by_us &= self.shows != SourceState::Live;
                self.run.progress.enter(self.shows, self.run.clock.now());
                self.keeper.press();
                Ok(None)
            }
            ControlEvent::CursorLost => self.cursor_lost(asked).await.map(Some),
            ControlEvent::EventsMissing { reason } => {
                self.closed_by_us = false;
                warn!(
                    error.kind = "source_events_missing",
                    error.blame = Blame::Caller.as_str(),
                    reason,
                    "a server may have left events out; the newest are read again"
                );
                self.look_back();
                // One that says so again and again is not followed at once each time.
                Ok(Some(if begun.elapsed() >= self.run.config.reconnect_min {
                    Next::Again
                } else {
                    Next::Wait(USUAL)
                }))
            }
            ControlEvent::Evicted { reason, cursor } => {
                self.closed_by_us = false;
                warn!(
                    error.kind = "source_evicted",
                    error.blame = Blame::Caller.as_str(),
                    reason,
                    cursor,
                    "a server closed the stream"
                );
                metrics::counter!(names::SOURCE_RECONNECTS, "reason" => "evicted").increment(1);
                match cursor.filter(|cursor| !self.recent.knows(cursor)) {
                    // Events that were not for us lie between. The run's own cursor moves with the next that is.
                    Some(cursor) => self.place = Place::After(cursor),
                    // While the newest are read again, the server is behind what is handled.
                    None => self.look_back(),
                }
                Ok(Some(Next::Wait(USUAL)))
            }
            ControlEvent::Other { .. } => Ok(None),
        }
    }

    async fn pause(&mut self, wait: Duration) -> Result<Flow, SourceError> {
        let waited = self.meanwhile(sleep_until(Instant::now() + wait)).await?;
        Ok(if waited.is_some() { Flow::Go } else { Flow::Stop })
    }

    /// Waits for something, and keeps saving meanwhile. None when the run is to stop.
    async fn meanwhile<T>(&mut self, wanted: impl Future<Output = T>) -> Result<Option<T>, SourceError> {
        let mut wanted = pin!(wanted);
        loop {
            let due = self.keeper.due();
            tokio::select! {
                biased;
                () = self.run.stop.cancelled() => return Ok(None),
                wanted = wanted.as_mut() => return Ok(Some(wanted)),
                kept = self.keeper.turn() => self.kept(kept?),
                () = sleep_until(due) => self.save_what_is_due().await?,
            }
        }
    }
}
