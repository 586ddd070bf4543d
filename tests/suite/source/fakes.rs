//! Three stand-ins: a client for events, one for checkpoints, and a processor. No endpoint is needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending};
use millrace::clock::SystemClock;
use millrace::event::Micros;
use millrace::processors::source::{
    CheckpointClient, ControlEvent, EventClient, EventEnvelope, EventStream, Handled, JsonText, Progress,
    Reducer, RemoteCheckpoint, Runtime, RuntimeConfig, RuntimeParts, SourceError, SourceFault,
    SubscribeRequest,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// The form of the fake processor's state.
pub(super) const CONTENT_TYPE: &str = "application/vnd.test+json";

/// What a stream does, step by step; after the last step it says nothing for ever.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Event(EventEnvelope),
    Fails(SourceError),
    Ends,
    /// Goes on when the test says so.
    Waits(Arc<Notify>),
}

/// Opens the streams that a test has written, in order.
#[derive(Debug, Default)]
pub(super) struct FakeEvents {
    streams: Mutex<VecDeque<Vec<Step>>>,
    refusals: Mutex<VecDeque<SourceError>>,
    /// A subscription after the first takes until the test says so.
    slow: Option<Arc<Notify>>,
    /// Every stream after the written ones ends at once.
    ends_at_once: bool,
    asked: Mutex<Vec<(Instant, SubscribeRequest)>>,
}

impl FakeEvents {
    pub(super) fn of(streams: Vec<Vec<Step>>) -> Self {
        Self { streams: Mutex::new(streams.into()), ..Self::default() }
    }

    /// Each ends at once.
    pub(super) fn ending() -> Self {
        Self { ends_at_once: true, ..Self::default() }
    }

    /// Opens the first at once, and each other one when the test says so.
    pub(super) fn slow(streams: Vec<Vec<Step>>, gate: Arc<Notify>) -> Self {
        Self { slow: Some(gate), ..Self::of(streams) }
    }

    /// The next subscription fails.
    pub(super) fn refuse(&self, error: SourceError) {
        self.refusals.lock().unwrap().push_back(error);
    }

    pub(super) fn asked(&self) -> Vec<SubscribeRequest> {
        self.asked.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }

    pub(super) fn after_cursors(&self) -> Vec<Option<String>> {
        self.asked().into_iter().map(|request| request.after_cursor).collect()
    }

    /// The times between subscriptions.
    pub(super) fn gaps(&self) -> Vec<Duration> {
        let asked = self.asked.lock().unwrap();
        asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }
}

impl EventClient for FakeEvents {
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn EventStream>, SourceError>> {
        async move {
            let is_first = {
                let mut asked = self.asked.lock().unwrap();
                asked.push((Instant::now(), request));
                asked.len() == 1
            };
            if let Some(gate) = self.slow.as_ref().filter(|_| !is_first) {
                gate.notified().await;
            }
            if let Some(error) = self.refusals.lock().unwrap().pop_front() {
                return Err(error);
            }
            let written = self.streams.lock().unwrap().pop_front();
            let ends = if self.ends_at_once { vec![Step::Ends] } else { Vec::new() };
            Ok(Box::new(FakeStream(written.unwrap_or(ends).into())) as Box<dyn EventStream>)
        }
        .boxed()
    }
}

struct FakeStream(VecDeque<Step>);

impl EventStream for FakeStream {
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<EventEnvelope>, SourceError>> {
        async move {
            if let Some(Step::Waits(gate)) = self.0.front() {
                gate.notified().await;
                self.0.pop_front();
            }
            match self.0.pop_front() {
                Some(Step::Event(envelope)) => Ok(Some(envelope)),
                Some(Step::Fails(error)) => Err(error),
                Some(Step::Ends) => Ok(None),
                Some(Step::Waits(_)) | None => pending().await,
            }
        }
        .boxed()
    }
}

/// Keeps one checkpoint, and what was asked of it.
#[derive(Debug, Default)]
pub(super) struct FakeCheckpoints {
    kept: Mutex<Option<RemoteCheckpoint>>,
    puts: Mutex<Vec<Value>>,
    gets: Mutex<usize>,
    failing_gets: Mutex<VecDeque<SourceError>>,
    failing_puts: Mutex<VecDeque<SourceError>>,
    /// No put succeeds while this is on.
    pub(super) refuses_puts: AtomicBool,
}

impl FakeCheckpoints {
    /// With a checkpoint that somebody has left.
    pub(super) fn with(content_type: &str, value: &Value) -> Self {
        let kept = RemoteCheckpoint {
            client_id: "client".into(),
            content_type: content_type.into(),
            value: JsonText::from(value),
            updated_at: None,
        };
        Self { kept: Mutex::new(Some(kept)), ..Self::default() }
    }

    pub(super) fn fail_get(&self, error: SourceError) {
        self.failing_gets.lock().unwrap().push_back(error);
    }

    pub(super) fn fail_put(&self, error: SourceError) {
        self.failing_puts.lock().unwrap().push_back(error);
    }

    /// The values that were put, in order.
    pub(super) fn puts(&self) -> Vec<Value> {
        self.puts.lock().unwrap().clone()
    }

    pub(super) fn gets(&self) -> usize {
        *self.gets.lock().unwrap()
    }

    /// What is kept now; null where there is nothing.
    pub(super) fn kept(&self) -> Value {
        self.kept.lock().unwrap().as_ref().map(|kept| kept.value.value()).unwrap_or_default()
    }

    /// Somebody else saves.
    pub(super) fn replace(&self, value: &Value) {
        if let Some(kept) = self.kept.lock().unwrap().as_mut() {
            kept.value = JsonText::from(value);
        }
    }
}

impl CheckpointClient for FakeCheckpoints {
    fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<RemoteCheckpoint>, SourceError>> {
        async move {
            *self.gets.lock().unwrap() += 1;
            match self.failing_gets.lock().unwrap().pop_front() {
                Some(error) => Err(error),
                None => Ok(self.kept.lock().unwrap().clone()),
            }
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        client_id: &'a str,
        content_type: &'a str,
        value: JsonText,
    ) -> BoxFuture<'a, Result<RemoteCheckpoint, SourceError>> {
        async move {
            if let Some(error) = self.failing_puts.lock().unwrap().pop_front() {
                return Err(error);
            }
            if self.refuses_puts.load(Ordering::SeqCst) {
                return Err(passing());
            }
            self.puts.lock().unwrap().push(value.value());
            let kept = RemoteCheckpoint {
                client_id: client_id.into(),
                content_type: content_type.into(),
                value,
                updated_at: Some(Micros(1)),
            };
            *self.kept.lock().unwrap() = Some(kept.clone());
            Ok(kept)
        }
        .boxed()
    }
}

/// What the fake processor was asked, and how it is to behave.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) handled: Vec<String>,
    /// `load`, `flush` and `snapshot`, in order.
    pub(super) calls: Vec<&'static str>,
    pub(super) loaded: Option<Value>,
    pub(super) controls: Vec<ControlEvent>,
    /// Handling an event of this cursor fails so, once.
    pub(super) fails_at: Option<(String, SourceError)>,
    /// Events of this kind change nothing in the state.
    pub(super) ignores: Option<String>,
    /// The state says that this is how far it is, as states of other runtimes do.
    pub(super) says: Option<String>,
}

/// Counts events by their data.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeProcessor {
    pub(super) notes: Arc<Mutex<Notes>>,
    counted: u64,
}

impl Reducer for FakeProcessor {
    fn content_type(&self) -> &str {
        CONTENT_TYPE
    }

    fn load(&mut self, state: &[u8]) -> Result<(), SourceError> {
        let state: Value = serde_json::from_slice(state)
            .map_err(|error| SourceError::stop(SourceFault::Load, error.to_string()))?;
        self.counted = state["counted"].as_u64().unwrap_or_default();
        let mut notes = self.notes.lock().unwrap();
        notes.calls.push("load");
        notes.loaded = Some(state);
        Ok(())
    }

    fn handle<'a>(&'a mut self, events: &'a [EventEnvelope]) -> BoxFuture<'a, Handled> {
        async move {
            let mut notes = self.notes.lock().unwrap();
            for (index, envelope) in events.iter().enumerate() {
                let cursor = envelope.cursor.clone().unwrap_or_default();
                if let Some((_, error)) = notes.fails_at.take_if(|(at, _)| *at == cursor) {
                    return Handled { events: index, failure: Some(error) };
                }
                if notes.ignores.as_ref() != Some(&envelope.kind) {
                    self.counted += 1;
                }
                notes.handled.push(cursor);
            }
            Handled { events: events.len(), failure: None }
        }
        .boxed()
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async move {
            self.notes.lock().unwrap().calls.push("flush");
            Ok(())
        }
        .boxed()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, SourceError> {
        let mut notes = self.notes.lock().unwrap();
        notes.calls.push("snapshot");
        let mut state = json!({ "counted": self.counted });
        if let Some(cursor) = &notes.says {
            state["lastEventCursor"] = cursor.as_str().into();
        }
        Ok(state.to_string().into_bytes())
    }

    fn control(&mut self, event: &ControlEvent) {
        self.notes.lock().unwrap().controls.push(event.clone());
    }

    fn begin_anew(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        async { Ok(()) }.boxed()
    }
}

/// A runtime of the three, and the three.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) events: Arc<FakeEvents>,
    pub(super) checkpoints: Arc<FakeCheckpoints>,
    pub(super) processor: FakeProcessor,
    pub(super) config: RuntimeConfig,
}

impl Rig {
    pub(super) fn new(streams: Vec<Vec<Step>>) -> Self {
        Self::of(FakeEvents::of(streams), FakeCheckpoints::default())
    }

    pub(super) fn of(events: FakeEvents, checkpoints: FakeCheckpoints) -> Self {
        let config = RuntimeConfig {
            checkpoint_interval: Duration::from_millis(5),
            reconnect_min: Duration::from_millis(2),
            reconnect_max: Duration::from_millis(8),
            ..RuntimeConfig::new("client")
        };
        Self {
            events: Arc::new(events),
            checkpoints: Arc::new(checkpoints),
            processor: FakeProcessor::default(),
            config,
        }
    }

    pub(super) fn parts(&self) -> RuntimeParts {
        RuntimeParts {
            events: Some(self.events.clone()),
            checkpoints: Some(self.checkpoints.clone()),
            processor: Some(Box::new(self.processor.clone())),
            config: self.config.clone(),
            clock: Arc::new(SystemClock),
            progress: Progress::default(),
        }
    }

    pub(super) fn start(&self) -> Runtime {
        Runtime::start(self.parts()).unwrap()
    }

    pub(super) fn handled(&self) -> Vec<String> {
        self.processor.notes.lock().unwrap().handled.clone()
    }
}

/// An event with a cursor.
pub(super) fn event(cursor: &str) -> Step {
    of_kind("entry", cursor)
}

pub(super) fn of_kind(kind: &str, cursor: &str) -> Step {
    Step::Event(EventEnvelope {
        event: "created".into(),
        kind: kind.into(),
        data: format!("{{\"entry\":\"e{cursor}\"}}").into_bytes(),
        cursor: Some(cursor.into()),
        time: Micros(1),
    })
}

/// An event that cannot become one of ours.
pub(super) fn no_event(cursor: &str) -> Step {
    Step::Event(EventEnvelope {
        event: "created".into(),
        kind: "entry".into(),
        data: b"no json".to_vec(),
        cursor: Some(cursor.into()),
        time: Micros(1),
    })
}

/// An event about the stream.
pub(super) fn about(event: &str, data: &Value, cursor: Option<&str>) -> Step {
    Step::Event(EventEnvelope {
        event: event.into(),
        kind: "stream".into(),
        data: data.to_string().into_bytes(),
        cursor: cursor.map(str::to_owned),
        time: Micros(1),
    })
}

pub(super) fn cursor_lost() -> Step {
    about("invalidate", &json!({ "reason": "cursor beyond retention window" }), None)
}

pub(super) fn passing() -> SourceError {
    SourceError::pass(SourceFault::Unreachable, "the server went away")
}

pub(super) fn fatal() -> SourceError {
    let cause = std::io::Error::other("the very one");
    SourceError::stop(SourceFault::Denied, "not allowed").because(cause)
}
