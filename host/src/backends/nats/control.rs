//! The feed: a stream, a way into it, and a durable consumer of this host.
//!
//! A version is the sequence of the event's message. A stream that a sink makes begins at the time at which it was made,
//! in microseconds: the versions of one that was removed and made again are above all that were ever given. A sink that
//! knows of a newer version than the stream has (its files are older ones), or whose host has read one, lets it begin again
//! above that. One sink at a time does either (see `begin`). Hosts whose place is not of the stream, or of which it has not
//! all that came after, are told `BehindRetention`.

mod begin;
mod consumer;
mod held;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tracing::warn;

use super::api::{
    Published, Refusal, STREAM_NAME_IN_USE, STREAM_NOT_FOUND, STREAM_NOT_MATCH, STREAM_SUBJECTS_OVERLAP,
    StreamInfo,
};
use super::link::{Linked, NatsLink, remote};
use super::names::Names;
use super::options::NatsOptions;
use crate::control::{
    Acker, ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, EventId, Polled,
    Result,
};
use crate::error::{BackendError, Classify as _, RemoteFault};
use crate::limits::{
    CONTROL_NUMBER_MAX, CONTROL_POLL_EVENTS_MAX, NATS_MAKING_LOOKS_MAX, NATS_RETRY_WAIT_MIN,
};
use consumer::Consumer;
use held::Held;

/// Source, sink and board of one fleet, for one host. Connects when it is first used; polls take turns.
#[derive(Debug)]
pub struct NatsControl {
    pub(super) link: NatsLink,
    pub(super) options: NatsOptions,
    pub(super) names: Names,
    /// The connection on which the stream was last looked after by the sink.
    ensured: tokio::sync::Mutex<Option<u64>>,
    /// The newest version that the stream is known to have had.
    known: AtomicU64,
    /// The newest that it has shown itself, or was made to go beyond.
    shown: AtomicU64,
    consumer: tokio::sync::Mutex<Option<Consumer>>,
    held: Mutex<Held>,
}

impl NatsControl {
    pub fn new(options: NatsOptions) -> Self {
        Self {
            link: NatsLink::new(options.clone()),
            names: Names::new(&options.name, &options.host),
            options,
            ensured: tokio::sync::Mutex::default(),
            known: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            consumer: tokio::sync::Mutex::default(),
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has had an event of this version.
    fn learn(&self, version: u64) {
        // No stream comes to a place beyond that.
        if version <= CONTROL_NUMBER_MAX / 2 {
            self.known.fetch_max(version, Ordering::SeqCst);
        }
    }

    /// The stream has got so far.
    fn shows(&self, version: u64) {
        self.shown.fetch_max(version, Ordering::SeqCst);
        self.learn(version);
    }

    /// Makes the stream or looks at the one that is there, once for each connection.
    async fn ensure(&self, linked: &Linked) -> Result<()> {
        let mut ensured = self.ensured.lock().await;
        let known = self.known.load(Ordering::SeqCst);
        if *ensured == Some(linked.number) && known <= self.shown.load(Ordering::SeqCst) {
            return Ok(());
        }
        let known = self.begin(linked).await?;
        self.shown.fetch_max(known, Ordering::SeqCst);
        *ensured = Some(linked.number);
        Ok(())
    }

    async fn make(&self, linked: &Linked) -> Result<StreamInfo> {
        let (doing, stream) = ("making the stream", &self.names.stream);
        let config = json!({
            "name": stream,
            "description": "control events of a Millrace fleet",
            "subjects": [self.names.every_subject()],
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": self.options.replicas,
            "max_age": nanos(self.options.events_age_max),
            "duplicate_window": nanos(self.options.window()),
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": -1,
            "max_consumers": -1,
        });
        match linked.api(doing, format!("STREAM.CREATE.{stream}"), &config).await? {
            Ok(info) => Ok(info),
            // Another one was quicker, or is about to be: its subjects are taken before its name is.
            Err(refusal) if [STREAM_NAME_IN_USE, STREAM_SUBJECTS_OVERLAP].contains(&refusal.err_code) => {
                for _ in 0..NATS_MAKING_LOOKS_MAX {
                    if let Some(info) = linked.stream(stream).await? {
                        return Ok(info);
                    }
                    tokio::time::sleep(NATS_RETRY_WAIT_MIN).await;
                }
                Err(refusal.into_error(doing).into())
            }
            Err(refusal) => Err(refusal.into_error(doing).into()),
        }
    }

    fn check_is_ours(&self, info: &StreamInfo) -> Result<()> {
        let (stream, subjects) = (&self.names.stream, &info.config["subjects"]);
        if *subjects == json!([self.names.every_subject()]) {
            return Ok(());
        }
        let detail = format_args!("the stream {stream} is for something else: {subjects}");
        Err(remote(RemoteFault::Unsupported, detail).into())
    }

    /// Brings a stream that is there to what the settings say.
    async fn refresh(&self, linked: &Linked, info: &StreamInfo) -> Result<()> {
        let stream = &self.names.stream;
        let mut config = info.config.clone();
        config["max_age"] = nanos(self.options.events_age_max);
        config["duplicate_window"] = nanos(self.options.window());
        config["num_replicas"] = json!(self.options.replicas);
        if config == info.config {
            return Ok(());
        }
        let doing = "changing the stream's settings";
        if let Err(refusal) = linked.api::<Value>(doing, format!("STREAM.UPDATE.{stream}"), &config).await? {
            let error = refusal.into_error(doing);
            warn!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "the stream of control events keeps its former settings");
        }
        Ok(())
    }

    async fn append_event(&self, event: &ControlEvent) -> Result<ControlVersion> {
        let doing = "appending a control event";
        // The stream may have been removed since it was looked at.
        for _ in 0..2 {
            let linked = self.link.linked().await?;
            self.ensure(&linked).await?;
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", event.id().as_str());
            headers.insert("Nats-Expected-Stream", self.names.stream.as_str());
            let subject = self.names.subject(&event.entity());
            match linked.publish(doing, subject, headers, Bytes::from(event.to_json())).await? {
                Some(Ok(published)) => return self.published(&linked, event, &published).await,
                Some(Err(refusal)) if refusal.err_code == STREAM_NOT_MATCH => {
                    let detail = format_args!("{doing}: another stream takes the subjects of this one");
                    return Err(remote(RemoteFault::Unsupported, detail).into());
                }
                Some(Err(refusal)) => return Err(refusal.into_error(doing).into()),
                None => *self.ensured.lock().await = None,
            }
        }
        Err(remote(RemoteFault::Loading, format_args!("{doing}: no stream takes it")).into())
    }

    /// The server knows ids and not what came with them.
    async fn published(
        &self,
        linked: &Linked,
        event: &ControlEvent,
        published: &Published,
    ) -> Result<ControlVersion> {
        if published.duplicate {
            let first = linked.message(&self.names.stream, json!({ "seq": published.seq })).await?;
            let same = |bytes: &[u8]| {
                let stored = std::str::from_utf8(bytes).ok().and_then(|json| ControlEvent::parse(json).ok());
                stored.is_some_and(|stored| stored.digest() == event.digest())
            };
            // Of one that was trimmed meanwhile nothing is left to compare.
            if first.is_some_and(|(_, bytes)| !same(&bytes)) {
                return Err(ControlFeedError::EventIdTaken { event_id: event.id().to_string() });
            }
        }
        self.shows(published.seq);
        Ok(ControlVersion(published.seq))
    }

    async fn remove(&self, through: u64) -> Result<u64> {
        let linked = self.link.linked().await?;
        let stream = &self.names.stream;
        let Some(info) = linked.stream(stream).await? else { return Ok(0) };
        // Beyond the newest it would let the next sequence jump.
        let before = through.min(info.state.last_seq).saturating_add(1);
        let gone = |refusal: &Refusal| refusal.err_code == STREAM_NOT_FOUND;
        match linked.purge(stream, before).await? {
            Ok(purged) => Ok(purged.purged),
            Err(refusal) if gone(&refusal) => Ok(0),
            Err(refusal) => Err(refusal.into_error("trimming control events").into()),
        }
    }

    async fn confirm(&self, event: &EventId, version: u64) -> std::result::Result<(), BackendError> {
        let Some(reply) = self.held().reply(version, event) else { return Ok(()) };
        let linked = self.link.linked().await?;
        // Where nobody listens the consumer is gone, and the next one begins after what is committed here.
        linked.ask("acknowledging a control event", reply, None, Bytes::from_static(b"+ACK")).await?;
        self.held().acknowledged(version);
        Ok(())
    }
}

fn nanos(time: Duration) -> Value {
    json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl ControlSource for NatsControl {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        self.read(after.0, limit.clamp(1, CONTROL_POLL_EVENTS_MAX), wait).boxed()
    }

    fn acker(&self) -> Option<&dyn Acker> {
        Some(self)
    }
}

impl Acker for NatsControl {
    /// The server has confirmed it when this returns.
    fn acknowledge(&self, event: &EventId, version: ControlVersion) -> BoxFuture<'_, Result<()>> {
        let event = event.clone();
        async move { Ok(self.confirm(&event, version.0).await?) }.boxed()
    }
}

impl ControlSink for NatsControl {
    fn name(&self) -> &'static str {
        "nats"
    }

    /// As durable as the server's files: it syncs them now and then, so that a power cut can take the last of a stream
    /// that one server alone holds.
    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        self.append_event(event).boxed()
    }

    /// Beyond, an event has two versions; hosts know it by its id.
    fn repeats_known_for(&self) -> Option<Duration> {
        Some(self.options.window())
    }

    fn saw(&self, version: ControlVersion) {
        self.learn(version.0);
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.remove(through.0).boxed()
    }
}
