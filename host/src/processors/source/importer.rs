//! Foreign events into our own log: the processor of a source that a host is configured with.
//!
//! What cannot become an event becomes a letter of the source, and the rest goes on. The state that is saved has the
//! letters and what versions are counted from; the cursor is the run's business.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::client::{EventEnvelope, SourceError, SourceFault};
use super::mapping::{Mapping, NoEvent};
use super::reducer::{Handled, Reducer};
use super::status::Progress;
use crate::error::{Blame, Classify as _};
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::limits::{
    BATCH_BYTES_MAX, EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX, SOURCE_LETTER_CHARS_MAX, SOURCE_LETTERS_MAX,
};
use crate::streams::{EventLog, PageLimit, StreamError};
use crate::telemetry::metrics as names;

/// The form of an importer's state.
pub const IMPORTER_CONTENT_TYPE: &str = "application/vnd.millrace.source+json";

/// A foreign event that is none of ours, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLetter {
    pub cursor: Option<String>,
    pub kind: String,
    pub event: String,
    pub reason: String,
    /// The beginning of its data.
    pub data: String,
    pub bytes: usize,
    pub at: Micros,
}

/// The newest letters of a source, oldest first. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SourceLetters(Arc<Mutex<VecDeque<SourceLetter>>>);

impl SourceLetters {
    pub fn list(&self) -> Vec<SourceLetter> {
        self.lock().iter().cloned().collect()
    }

    fn put(&self, letter: SourceLetter) {
        let mut letters = self.lock();
        if letters.len() >= SOURCE_LETTERS_MAX {
            letters.pop_front();
        }
        letters.push_back(letter);
    }

    fn replace(&self, letters: Vec<SourceLetter>) {
        *self.lock() = letters.into();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<SourceLetter>> {
        // A panic elsewhere leaves whole letters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes plugins anew, because what they were made of comes again.
pub trait Rebuilds: Send + Sync + Debug {
    fn rebuild<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<(), SourceError>>;
}

/// Plugins that were begun anew since something last came. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct BegunRebuilds(Arc<Mutex<HashSet<String>>>);

impl BegunRebuilds {
    fn has(&self, plugin: &str) -> bool {
        self.lock().contains(plugin)
    }

    fn note(&self, plugin: &str) {
        self.lock().insert(plugin.to_owned());
    }

    fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an importer is made of.
#[derive(Clone, Debug)]
pub struct ImporterParts {
    /// The source's name, of which ids of events are made.
    pub source: String,
    pub tenant: TenantId,
    pub log: Arc<dyn EventLog>,
    pub letters: SourceLetters,
    pub progress: Progress,
    /// Plugins to make anew when everything comes again, and who does it.
    pub rebuilds: Vec<String>,
    pub rebuilder: Arc<dyn Rebuilds>,
    /// Of one cursor that is lost each is begun once, however often a run is tried again until all are.
    pub begun: BegunRebuilds,
}

/// Appends what comes.
#[derive(Debug)]
pub struct Importer {
    parts: ImporterParts,
    mapping: Mapping,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    version: u32,
    counted: u64,
    letters: Vec<SourceLetter>,
}

impl Importer {
    pub fn new(parts: ImporterParts) -> Self {
        Self { mapping: Mapping::new(&parts.source), parts }
    }

    /// The first events that fit one append, how many envelopes they are of, and what is none of ours.
    fn batch(&mut self, events: &[EventEnvelope]) -> (EventBatch, usize, Vec<SourceLetter>) {
        let mut batch = EventBatch::new(self.parts.tenant.clone());
        let mut letters = Vec::new();
        for (index, envelope) in events.iter().enumerate() {
            // More than the names of an event can have.
            let bytes = envelope.data.len() + 8 * NAME_BYTES_MAX;
            if !batch.is_empty() && batch.bytes() + bytes > BATCH_BYTES_MAX {
                return (batch, index, letters);
            }
            let pushed = match envelope.data.len() > EVENT_PAYLOAD_BYTES_MAX {
                // It may be long: nobody needs to look whether it is JSON.
                true => Err(NoEvent::Invalid(crate::event::InvalidEvent::PayloadTooLarge {
                    bytes: envelope.data.len(),
                })),
                false => self.mapping.event(envelope, |event| batch.push(&event)),
            };
            if let Err(reason) = pushed {
                letters.push(letter(envelope, &reason));
            }
        }
        (batch, events.len(), letters)
    }

    /// Appends a batch; answers how many of its events were there. The time of receipt is part of an event, so one that
    /// comes again is not the same, and its id is what tells. What comes again mostly comes in the order of before, so
    /// where the log has one it is read on: its neighbours are there, too.
    async fn append(&self, mut batch: EventBatch) -> Result<u64, StreamError> {
        let (mut repeated, mut look) = (0, batch.len());
        while !batch.is_empty() {
            match self.parts.log.append(batch.clone()).await {
                Ok(appended) => {
                    return Ok(repeated + appended.iter().filter(|one| one.repeated).count() as u64);
                }
                Err(StreamError::IdTaken { index, position, .. }) if index < batch.len() => {
                    let held = self.held(position, look).await?;
                    let rest = without(&batch, |at, id| at == index || held.contains(id));
                    let found = batch.len() - rest.len();
                    // Where much else lies between, less is read for each.
                    look = if found > 1 { rest.len() } else { look / 2 };
                    repeated += found as u64;
                    batch = rest;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(repeated)
    }

    /// The ids of some events of the log, from a position on.
    async fn held(&self, from: Position, events: usize) -> Result<HashSet<String>, StreamError> {
        if events < 2 {
            return Ok(HashSet::new());
        }
        let limit = PageLimit { events, bytes: BATCH_BYTES_MAX };
        let after = Position(from.0.saturating_sub(1));
        match self.parts.log.read(&self.parts.tenant, after, limit).await {
            Ok(page) => Ok(page.events.iter().map(|event| event.id.to_owned()).collect()),
            // It was trimmed a moment ago, or stands in the very batch.
            Err(StreamError::PositionLost { .. } | StreamError::PositionAhead { .. }) => Ok(HashSet::new()),
            Err(error) => Err(error),
        }
    }

    async fn import(&mut self, events: &[EventEnvelope]) -> Handled {
        let mut done = 0;
        while done < events.len() {
            let (batch, taken, letters) = self.batch(&events[done..]);
            match self.append(batch).await {
                Ok(repeated) => {
                    // The next cursor that is lost is another one.
                    self.parts.begun.clear();
                    self.note(repeated, letters);
                }
                Err(error) => return Handled { events: done, failure: Some(not_appended(error)) },
            }
            done += taken;
        }
        Handled { events: done, failure: None }
    }

    fn note(&self, repeated: u64, letters: Vec<SourceLetter>) {
        if repeated > 0 {
            metrics::counter!(names::SOURCE_REPEATED).increment(repeated);
        }
        let count = letters.len() as u64;
        for letter in letters {
            warn!(
                error.kind = "source_letter",
                error.blame = Blame::Caller.as_str(),
                source = self.parts.source,
                cursor = letter.cursor,
                reason = letter.reason,
                "a foreign event cannot become one of ours"
            );
            self.parts.letters.put(letter);
        }
        metrics::counter!(names::SOURCE_LETTERS).increment(count);
        self.parts.progress.note(|status| {
            status.repeated += repeated;
            status.letters += count;
        });
    }
}

impl Reducer for Importer {
    fn content_type(&self) -> &str {
        IMPORTER_CONTENT_TYPE
    }

    fn load(&mut self, state: &[u8]) -> Result<(), SourceError> {
        let refused = |why: String| SourceError::stop(SourceFault::Load, why);
        let state: State = serde_json::from_slice(state)
            .map_err(|error| refused(format!("it is no importer's state: {error}")))?;
        if state.version > 1 {
            let version = state.version;
            return Err(refused(format!("an importer's state of version {version}; this host reads 1")));
        }
        self.mapping.count_from(state.counted);
        let count = state.letters.len() as u64;
        self.parts.letters.replace(state.letters);
        self.parts.progress.note(|status| status.letters = count);
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        self.import(events).boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        let state = State { version: 1, counted: self.mapping.counted(), letters: self.parts.letters.list() };
        serde_json::to_vec(&state).map_err(|error| {
            SourceError::stop(SourceFault::Load, "an importer's state is no JSON").because(error)
        })
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async move {
            for plugin in &self.parts.rebuilds {
                if !self.parts.begun.has(plugin) {
                    self.parts.rebuilder.rebuild(plugin).await?;
                    self.parts.begun.note(plugin);
                }
            }
            Ok(())
        }
        .boxed()
    }
}

fn without(batch: &EventBatch, drops: impl Fn(usize, &str) -> bool) -> EventBatch {
    let mut rest = EventBatch::new(batch.tenant.clone());
    for (index, event) in batch.iter().enumerate() {
        if !drops(index, event.id) {
            rest.push_from(batch, index);
        }
    }
    rest
}

fn letter(envelope: &EventEnvelope, reason: &NoEvent) -> SourceLetter {
    let short = |text: &str| text.chars().take(SOURCE_LETTER_CHARS_MAX).collect::<String>();
    // A character has four bytes at most.
    let head = &envelope.data[..envelope.data.len().min(4 * SOURCE_LETTER_CHARS_MAX)];
    SourceLetter {
        cursor: envelope.cursor.as_deref().map(short),
        kind: short(&envelope.kind),
        event: short(&envelope.event),
        reason: short(&reason.to_string()),
        data: short(&String::from_utf8_lossy(head)),
        bytes: envelope.data.len(),
        at: envelope.time,
    }
}

/// Whatever the log refuses may be mended: the events wait, the stream is held up, and nothing is lost.
fn not_appended(error: StreamError) -> SourceError {
    let wait = match error.retry() {
        crate::error::Retry::After(wait) => wait,
        crate::error::Retry::Never => std::time::Duration::ZERO,
    };
    let message = format!("foreign events cannot be appended: {error}");
    SourceError {
        retry: crate::error::Retry::After(wait),
        ..SourceError::pass(SourceFault::Store, message).because(error)
    }
}
