//! What one instance lives in: its bounds, its empty WASI, and what it may ask the host.
//!
//! Without a grant (see `grants`), WASI answers without the outside world: no files, no
//! arguments, no environment, no sockets; randomness is a fixed seed (std's
//! `HashMap` asks for it), and every clock answers the current event's
//! `at`: a guest that imports a clock gets its events one a call. So the same events give the same rows.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::AsyncWrite;
use wasmtime::component::ResourceTable;
use wasmtime::{StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{
    FsPerms, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use super::bindings::imported;
use super::bindings::imported::log::Level;
use super::call_time::CallTime;
use super::grants::{DATA_DIR, Grants};
use super::http::GuestHttp;
use super::memory::CountedLimits;
use crate::checkpoints::ScanLimit;
use crate::error::Blame;
use crate::event::EventRecord;
use crate::limits::{
    GUEST_CORE_INSTANCES_MAX, GUEST_LAST_WORDS_BYTES_MAX, GUEST_LOG_BYTES_MAX, GUEST_LOGS_PER_SECOND_MAX,
    GUEST_MEMORIES_MAX, GUEST_RANDOM_BYTES_MAX, GUEST_RESOURCES_MAX, GUEST_TABLE_ELEMENTS_MAX,
    GUEST_TABLES_MAX,
};
use crate::processors::TaskContext;
use crate::telemetry::metrics::GUEST_FUEL;

/// Data of one instance's store.
pub(super) struct Guest {
    wasi: WasiCtx,
    http: GuestHttp,
    resources: ResourceTable,
    pub(super) limits: CountedLimits,
    context: Option<TaskContext>,
    config: Arc<BTreeMap<String, String>>,
    logs: Arc<Logs>,
    event_time: Arc<AtomicI64>,
    pub(super) call: CallTime,
    /// Which setting says how long a call may take, for the message when it took longer.
    pub(super) call_limit: Arc<str>,
    fuel: Option<Fuel>,
}

/// Where calls are measured by fuel.
struct Fuel {
    /// Of one call.
    max: u64,
    used: metrics::Counter,
}

/// What differs between plugins.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) plugin: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) memory_bytes_max: usize,
    /// Size of a snapshot, taken or loaded.
    pub(super) state_bytes_max: usize,
    /// Which setting says how long a call may take, for the message when it took longer.
    pub(super) call_limit: Arc<str>,
    /// What a call may burn; none where it is measured by time.
    pub(super) fuel_max: Option<u64>,
    pub(super) grants: Grants,
    pub(super) config: Arc<BTreeMap<String, String>>,
}

impl Guest {
    /// A sandbox for a task; without one, for `describe`.
    pub(super) fn new(sandbox: &Sandbox, context: Option<TaskContext>) -> Self {
        let event_time = Arc::new(AtomicI64::new(0));
        let logs = Arc::new(Logs::new(sandbox, context.as_ref()));
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdout(Lines(Arc::clone(&logs))).stderr(Lines(Arc::clone(&logs)));
        wasi.max_random_size(GUEST_RANDOM_BYTES_MAX);
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        if !sandbox.grants.clock {
            wasi.wall_clock(EventTime(Arc::clone(&event_time)));
            wasi.monotonic_clock(EventTime(Arc::clone(&event_time)));
        }
        if !sandbox.grants.random {
            wasi.secure_random(StdRng::seed_from_u64(0)).insecure_random(StdRng::seed_from_u64(1));
            wasi.insecure_random_seed(2);
        }
        for (name, value) in &*sandbox.grants.env {
            wasi.env(name, &value.0);
        }
        if let Some(dir) = &sandbox.grants.read_dir
            && let Err(error) = wasi.preopened_dir(dir, DATA_DIR, FsPerms::ReadOnly)
        {
            // It was there a moment ago, when the instance was asked for. Without it, the guest finds no folder.
            logs.warn(&format!("the folder of the grant `read_dir` cannot be opened: {error:#}"));
        }
        let http = GuestHttp::new(sandbox.grants.http.clone(), Arc::clone(&logs));
        let used = || match &context {
            Some(_) => metrics::counter!(GUEST_FUEL, "plugin" => sandbox.plugin.to_string()),
            None => metrics::Counter::noop(),
        };
        let fuel = sandbox.fuel_max.map(|max| Fuel { max, used: used() });
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(GUEST_RESOURCES_MAX);
        Self {
            wasi: wasi.build(),
            http,
            resources,
            limits: CountedLimits::new(limits(sandbox.memory_bytes_max), sandbox.memory_bytes_max),
            context,
            config: Arc::clone(&sandbox.config),
            logs,
            event_time,
            call: CallTime::begin(Duration::ZERO),
            call_limit: Arc::clone(&sandbox.call_limit),
            fuel,
        }
    }

    /// A batch begins: its last event's time is what the clocks answer from now on, and messages name its
    /// position. Which event of a batch a guest is at, only the guest knows.
    pub(super) fn begin_batch(&self, last: &EventRecord) {
        self.event_time.store(last.at, Ordering::Relaxed);
        self.logs.position.store(last.position, Ordering::Relaxed);
    }

    pub(super) fn plugin(&self) -> &str {
        &self.logs.plugin
    }

    /// A call begins, which may take this long. What earlier ones printed is not its last words.
    pub(super) fn begin_call(&mut self, call_max: Duration) {
        self.call = CallTime::begin(call_max);
        self.http.hooks.until = self.call.until();
        self.logs.lock().last_words.clear();
    }

    /// An epoch that the call was given ends: how much longer it may take; none when it must end.
    pub(super) fn call_left(&mut self) -> Option<Duration> {
        let left = self.call.left();
        self.http.hooks.until = self.call.until();
        left
    }

    /// A call is over, and has so much fuel left where it had any.
    pub(super) fn end_call(&mut self, fuel_left: Option<u64>) {
        self.http.hooks.end_call();
        if let (Some(Fuel { max, used }), Some(left)) = (&self.fuel, fuel_left) {
            used.increment(max.saturating_sub(left));
        }
    }

    /// What a call may burn; none where it is measured by time.
    pub(super) fn fuel_max(&self) -> Option<u64> {
        self.fuel.as_ref().map(|fuel| fuel.max)
    }

    /// The end of what the running call printed and logged as errors, such as the message of a panic.
    pub(super) fn last_words(&self) -> String {
        let mut budget = self.logs.lock();
        // A guest may fall in the middle of a line.
        let unfinished = String::from_utf8_lossy(&std::mem::take(&mut budget.line)).into_owned();
        if !unfinished.is_empty() {
            budget.remember(&unfinished);
        }
        end_of(&budget.last_words, GUEST_LAST_WORDS_BYTES_MAX).to_owned()
    }
}

fn limits(memory_bytes_max: usize) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(memory_bytes_max)
        .table_elements(GUEST_TABLE_ELEMENTS_MAX)
        .instances(GUEST_CORE_INSTANCES_MAX as usize)
        .memories(GUEST_MEMORIES_MAX as usize)
        .tables(GUEST_TABLES_MAX as usize)
        .trap_on_grow_failure(true)
        .build()
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.resources }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let GuestHttp { ctx, hooks } = &mut self.http;
        WasiHttpCtxView { hooks, table: &mut self.resources, ctx }
    }
}

impl imported::log::Host for Guest {
    fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        if matches!(level, Level::Error) {
            self.logs.lock().remember(&message);
        }
        self.logs.write(level, &message);
        Ok(())
    }
}

impl imported::config::Host for Guest {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.config.get(&name).cloned())
    }
}

impl imported::state::Host for Guest {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Option<imported::state::EntryValue>> {
        let Some(context) = &self.context else { return Ok(None) };
        let found = context.state.get(&key);
        let found = found.map_err(|error| wasmtime::Error::new(HostFailed(error.to_string())))?;
        Ok(found.map(|found| imported::state::EntryValue {
            value: found.value,
            expires_at: found.expires_at.map_or(0, |at| at.0),
        }))
    }

    fn scan(
        &mut self,
        prefix: Vec<u8>,
        after: Option<Vec<u8>>,
        limit: u32,
    ) -> wasmtime::Result<imported::state::Page> {
        let Some(context) = &self.context else {
            return Ok(imported::state::Page { entries: Vec::new(), more: false });
        };
        let page = context.state.scan(&prefix, after.as_deref(), ScanLimit::new(limit));
        let page = page.map_err(|error| wasmtime::Error::new(HostFailed(error.to_string())))?;
        let entries = page.entries.into_iter().map(|entry| imported::state::Entry {
            key: entry.key,
            value: entry.value,
            expires_at: entry.expires_at.map_or(0, |at| at.0),
        });
        Ok(imported::state::Page { entries: entries.collect(), more: page.more })
    }
}

impl imported::types::Host for Guest {}

/// The host could not serve a call of the guest; not the guest's fault.
#[derive(Debug, thiserror::Error)]
#[error("the host failed: {0}")]
pub(super) struct HostFailed(String);

/// A clock that stands at the events.
struct EventTime(Arc<AtomicI64>);

impl EventTime {
    fn micros(&self) -> u64 {
        u64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

impl HostWallClock for EventTime {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.micros())
    }
}

impl HostMonotonicClock for EventTime {
    fn resolution(&self) -> u64 {
        1_000
    }

    fn now(&self) -> u64 {
        self.micros().saturating_mul(1_000)
    }
}

/// An instance's messages: bounded in size and rate, with its place beside them.
pub(super) struct Logs {
    plugin: Arc<str>,
    version: Arc<str>,
    tenant: String,
    lane: u32,
    /// The last event's of the batch that was handed over last; 0 before the first.
    position: AtomicU64,
    inner: Mutex<Budget>,
}

struct Budget {
    window: Instant,
    left: u32,
    dropped: u64,
    line: Vec<u8>,
    /// What the running call said: its end, and a little of what came before.
    last_words: String,
}

impl Logs {
    fn new(sandbox: &Sandbox, context: Option<&TaskContext>) -> Self {
        Self {
            plugin: Arc::clone(&sandbox.plugin),
            version: Arc::clone(&sandbox.version),
            position: AtomicU64::new(0),
            tenant: context.map(|c| c.tenant.to_string()).unwrap_or_default(),
            lane: context.map_or(0, |c| c.lane),
            inner: Mutex::new(Budget {
                window: Instant::now(),
                left: GUEST_LOGS_PER_SECOND_MAX,
                dropped: 0,
                line: Vec::new(),
                last_words: String::new(),
            }),
        }
    }

    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }

    /// What the host has to say of the guest; it counts among the guest's own messages.
    pub(super) fn warn(&self, message: &str) {
        self.write(Level::Warn, message);
    }

    /// Something that the guest asked for failed, and not by its fault.
    pub(super) fn fail(&self, kind: &str, blame: Blame, text: &str) {
        let Some(dropped) = self.room() else { return };
        tracing::warn!(
            target: "millrace::guest",
            tenant = self.tenant,
            error.kind = kind,
            error.blame = blame.as_str(),
            plugin.name = &*self.plugin,
            plugin.version = &*self.version,
            lane = self.lane,
            dropped,
            text,
            "guest request failed"
        );
    }

    /// Whether one more message may go: how many could not since the last one. Counts one that may not.
    fn room(&self) -> Option<u64> {
        let room = self.lock().take();
        if room.is_none() {
            metrics::counter!(crate::telemetry::metrics::GUEST_LOGS_DROPPED, "plugin" => self.plugin.to_string())
                .increment(1);
        }
        room
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        self.inner.lock().expect("no code panics while it holds the log budget")
    }

    fn write(&self, level: Level, message: &str) {
        let Some(dropped) = self.room() else { return };
        // A field and not the message: a line break in it must not look like another message of the host.
        let text = cut(message, GUEST_LOG_BYTES_MAX);
        let position = Some(self.position.load(Ordering::Relaxed)).filter(|position| *position > 0);
        macro_rules! at {
            ($level:ident) => {
                tracing::$level!(
                    target: "millrace::guest",
                    tenant = self.tenant,
                    plugin.name = &*self.plugin,
                    plugin.version = &*self.version,
                    lane = self.lane,
                    stream.position = position,
                    dropped,
                    text,
                    "guest message"
                )
            };
        }
        match level {
            Level::Debug => at!(debug),
            Level::Info => at!(info),
            Level::Warn => at!(warn),
            Level::Error => at!(error),
        }
    }

    /// What the guest prints is a message a line.
    fn print(&self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = self.lock().take_in(part);
            if let Some(line) = line {
                self.write(Level::Info, &line);
            }
        }
    }
}

impl Budget {
    /// Adds to the line that is being printed, up to its bound; answers it when this ends it.
    fn take_in(&mut self, part: &[u8]) -> Option<String> {
        let (text, ended) = match part.split_last() {
            Some((b'\n', text)) => (text, true),
            _ => (part, false),
        };
        let room = GUEST_LOG_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&text[..text.len().min(room)]);
        if !ended {
            return None;
        }
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            return None;
        }
        // The hint that std prints below a panic's message is no part of it.
        if !line.starts_with("note: ") {
            self.remember(&line);
        }
        Some(line)
    }

    /// Keeps what may turn out to be the last words. What can no longer be among them goes now and then.
    fn remember(&mut self, text: &str) {
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if !self.last_words.is_empty() {
            self.last_words.push('\n');
        }
        self.last_words.push_str(end_of(text, GUEST_LAST_WORDS_BYTES_MAX));
        if self.last_words.len() > 4 * GUEST_LAST_WORDS_BYTES_MAX {
            let end = end_of(&self.last_words, GUEST_LAST_WORDS_BYTES_MAX).len();
            self.last_words.drain(..self.last_words.len() - end);
        }
    }

    /// One message may go: answers how many were dropped since the last one.
    fn take(&mut self) -> Option<u64> {
        if self.window.elapsed() >= Duration::from_secs(1) {
            self.window = Instant::now();
            self.left = GUEST_LOGS_PER_SECOND_MAX;
        }
        if self.left == 0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// At most this many bytes of a text, cut between characters.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

/// The last bytes of a text, at most this many, cut between characters.
fn end_of(text: &str, bytes_max: usize) -> &str {
    let from = text.len().saturating_sub(bytes_max);
    let from = (from..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    &text[from..]
}

/// The guest's stdout and stderr.
#[derive(Clone)]
struct Lines(Arc<Logs>);

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(GUEST_LOG_BYTES_MAX)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Lines {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.0.print(bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
