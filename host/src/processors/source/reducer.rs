//! What a run feeds: five operations over batches, and the plain processors of this host as such.

use std::fmt::{self, Debug};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use super::client::{ControlEvent, EventEnvelope, SourceError, SourceFault};
use super::mapping::Mapping;
use crate::checkpoints::SavedState;
use crate::error::Retry;
use crate::event::{EventBatch, TenantId};
use crate::processors::{Failure, FailureKind, FlushReason, LoadError, Processor, Trap};

/// Takes foreign events. Its operations are called one after another, never two at a time.
pub trait Reducer: Send + Debug {
    /// Names the form of the state.
    fn content_type(&self) -> &str;

    /// Called once, before anything else, where there is a checkpoint.
    fn load(&mut self, state: &[u8]) -> Result<(), SourceError>;

    /// Handles events in order. What it answers as handled is handled for good: a state that is saved next has it.
    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled>;

    /// Work that is due by time, and whatever must be out before a state is saved: called before every snapshot.
    fn flush(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }

    /// The state to go on from. Pure: a second call answers the same.
    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError>;

    /// Hears of what happens to the stream. It is not asked: the policy decides.
    fn control(&mut self, _event: &ControlEvent) {}

    /// Everything comes again from the oldest event, and what was made of it is to be made anew. Who cannot do that refuses:
    /// the run ends, and nothing counts twice.
    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>>;
}

/// How far a reducer came. `failure`, if any, is about event number `events`.
#[derive(Clone, Debug, Default)]
pub struct Handled {
    pub events: usize,
    pub failure: Option<SourceError>,
}

/// A processor of this host as a reducer, for those who embed a [`Runtime`](super::Runtime). Its effects have nowhere to
/// go here: only its state is kept, and any other effect ends the run by name.
pub struct OfProcessor {
    content_type: String,
    /// None while it works, and after it fell.
    processor: Option<Box<dyn Processor>>,
    /// A processor is loaded before anything else, also where there is no state.
    loaded: bool,
    mapping: Mapping,
    tenant: TenantId,
}

impl OfProcessor {
    pub fn new(
        content_type: impl Into<String>,
        processor: Box<dyn Processor>,
        source: &str,
        tenant: TenantId,
    ) -> Self {
        Self {
            content_type: content_type.into(),
            processor: Some(processor),
            loaded: false,
            mapping: Mapping::new(source),
            tenant,
        }
    }

    /// Works off the runtime's threads: a guest may take long.
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn Processor) -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        let fell = || SourceError::stop(SourceFault::Processor, "the processor fell over before");
        let mut processor = self.processor.take().ok_or_else(fell)?;
        let load = !std::mem::replace(&mut self.loaded, true);
        let worked = tokio::task::spawn_blocking(move || {
            let loaded = if load { processor.load(None) } else { Ok(()) };
            let answer = loaded.map(|()| work(processor.as_mut())).map_err(not_loaded);
            (processor, answer)
        });
        let (processor, answer) = worked.await.map_err(|error| {
            SourceError::stop(SourceFault::Processor, "the processor panicked").because(error)
        })?;
        let answer = answer?;
        self.processor = Some(processor);
        Ok(answer)
    }

    /// What trapped is not used again.
    fn fell(&mut self, trap: Trap) -> SourceError {
        self.processor = None;
        trapped(trap)
    }

    async fn handled(&mut self, events: &[EventEnvelope]) -> Result<Handled, SourceError> {
        let mut batch = EventBatch::new(self.tenant.clone());
        let refused = events.iter().find_map(|envelope| {
            let pushed = self.mapping.event(envelope, |event| batch.push(&event));
            pushed.err().map(|invalid| SourceError::stop(SourceFault::Processor, invalid.to_string()))
        });
        // What stands before an event that is none is handled all the same: the cursor moves over it.
        let whole = batch.len();
        if whole == 0 {
            return Ok(Handled { events: 0, failure: refused });
        }
        let worked = self.work(move |processor| processor.handle(&batch)).await?;
        let outcome = worked.map_err(|trap| self.fell(trap))?;
        refuse_effects(outcome.effects.len())?;
        let failure = match outcome.failure {
            Some(failure) => Some(failed(failure)),
            None => refused.filter(|_| outcome.handled >= whole),
        };
        Ok(Handled { events: outcome.handled, failure })
    }
}

impl Reducer for OfProcessor {
    fn content_type(&self) -> &str {
        &self.content_type
    }

    fn load(&mut self, state: &[u8]) -> Result<(), SourceError> {
        let saved = SavedState { content_type: self.content_type.clone(), state: state.to_vec() };
        let Some(processor) = &mut self.processor else { return Ok(()) };
        self.loaded = true;
        processor.load(Some(&saved)).map_err(not_loaded)
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        async move {
            match self.handled(events).await {
                Ok(handled) => handled,
                Err(failure) => Handled { events: 0, failure: Some(failure) },
            }
        }
        .boxed()
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async move {
            let flushed = self.work(|processor| processor.flush(FlushReason::Tick)).await?;
            let effects = flushed.map_err(|trap| self.fell(trap))?.map_err(failed)?;
            refuse_effects(effects.len())
        }
        .boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        match &mut self.processor {
            Some(processor) => processor.snapshot().map_err(|trap| self.fell(trap)),
            None => Err(SourceError::stop(SourceFault::Processor, "the processor fell over before")),
        }
    }

    /// Its state has what would come again, and there is no other one to begin with.
    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        let message = "the server no longer knows the cursor, and a processor as such cannot begin anew: on_cursor_lost = \"rebuild\" is for an importer; take away its checkpoint to begin without a state";
        ready(Err(SourceError::stop(SourceFault::CursorLost, message))).boxed()
    }
}

impl Debug for OfProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfProcessor").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

fn refuse_effects(effects: usize) -> Result<(), SourceError> {
    if effects == 0 {
        return Ok(());
    }
    let message = format!(
        "the processor asked for {effects} effects; where its events come from outside it has its state and nothing else"
    );
    Err(SourceError::stop(SourceFault::Processor, message))
}

fn not_loaded(error: LoadError) -> SourceError {
    match error {
        LoadError::Trap(trap) => trapped(trap),
        other => SourceError::stop(SourceFault::Load, other.to_string()),
    }
}

fn failed(failure: Failure) -> SourceError {
    let retry = match failure.kind {
        FailureKind::Retry => Retry::After(std::time::Duration::ZERO),
        FailureKind::Reject | FailureKind::Fatal => Retry::Never,
    };
    SourceError { fault: SourceFault::Processor, retry, message: failure.message, cause: None }
}

fn trapped(trap: Trap) -> SourceError {
    SourceError::stop(SourceFault::Processor, trap.to_string()).because(trap)
}
