//! Brings recorded spans to a collector over OTLP/HTTP, in batches.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::warn;

use super::{TRACER, Tracer, dropped};
use crate::limits::{SPAN_BATCH_MAX, SPAN_EXPORT_MAX, SPAN_EXPORT_WAIT, SPAN_QUEUE_MAX};
use crate::telemetry::TelemetryError;
use crate::telemetry::metrics::SPANS_EXPORTED;

/// How often failing exports are told of.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Where spans go and how many.
#[derive(Clone)]
pub struct OtlpOptions {
    /// The collector's base address; `/v1/traces` is added.
    pub endpoint: String,
    /// Sent with every export, such as a collector's key.
    pub headers: HashMap<String, String>,
    pub service_name: String,
    /// The share of traces that begin here and are recorded; those that begin elsewhere were decided on there.
    pub sample_ratio: f64,
}

impl std::fmt::Debug for OtlpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers hold secrets.
        f.debug_struct("OtlpOptions").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// The exporter of the process, at work.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    work: JoinHandle<()>,
}

impl Exporter {
    /// Starts it on the current tokio runtime; from here on there is a tracer. Once in a process.
    pub fn start(options: OtlpOptions) -> Result<Self, TelemetryError> {
        let failed = |detail: String| TelemetryError::Install { detail };
        let base = options.endpoint.trim_end_matches('/');
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{base}/v1/traces"))
            .with_headers(options.headers)
            .with_timeout(SPAN_EXPORT_MAX)
            .build();
        let mut exporter = exporter.map_err(|error| failed(error.to_string()))?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", options.service_name),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        exporter.set_resource(&resource);
        let (queue, spans) = mpsc::channel(SPAN_QUEUE_MAX);
        TRACER
            .set(Tracer::new(queue, options.sample_ratio))
            .map_err(|_| failed("this process exports traces already".into()))?;
        let (stop, stopped) = oneshot::channel();
        let export = Export { exporter, spans, warned: None };
        let work = tokio::runtime::Handle::current().spawn(export.run(stopped));
        Ok(Self { stop, work })
    }

    /// Exports what is recorded, within this time; the rest is lost with the process.
    pub async fn shut_down(self, within: Duration) {
        // It cannot have ended before it is told to.
        let _ = self.stop.send(());
        if tokio::time::timeout(within, self.work).await.is_err() {
            warn!(
                error.kind = "export_failed",
                error.blame = "host",
                "the last spans did not reach the collector in time"
            );
        }
    }
}

struct Export {
    exporter: SpanExporter,
    spans: mpsc::Receiver<SpanData>,
    warned: Option<Instant>,
}

impl Export {
    async fn run(mut self, stopped: oneshot::Receiver<()>) {
        let mut stopped = std::pin::pin!(stopped);
        let mut batch = Vec::new();
        loop {
            // Waits a moment for company: a span alone is an HTTP request.
            tokio::select! {
                () = tokio::time::sleep(SPAN_EXPORT_WAIT) => {}
                // Asked to end, or the handle is gone.
                _ = &mut stopped => break,
            }
            while self.take(&mut batch) {
                self.export(std::mem::take(&mut batch)).await;
            }
        }
        while self.take(&mut batch) {
            self.export(std::mem::take(&mut batch)).await;
        }
    }

    /// Takes what has been recorded, up to a batch; answers whether there is any.
    fn take(&mut self, batch: &mut Vec<SpanData>) -> bool {
        while batch.len() < SPAN_BATCH_MAX
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
        !batch.is_empty()
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len();
        match self.exporter.export(batch).await {
            Ok(()) => metrics::counter!(SPANS_EXPORTED).increment(spans as u64),
            Err(error) => {
                dropped("export_failed", spans);
                if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    warn!(
                        error.kind = "export_failed",
                        error.blame = "host",
                        %error,
                        spans,
                        "spans did not reach the trace collector; this is said once a minute at most"
                    );
                }
            }
        }
    }
}
