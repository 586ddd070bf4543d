//! What the host says about itself: trace messages on stderr, metrics on `/metrics`, traces to a collector.
//!
//! Promises: set up once, before anything is started; field and metric names
//! stand in one place each ([`fields`], [`metrics`]). Deliberately absent: an
//! exporter with its own port; the gateway serves what [`Telemetry::render`] gives.

pub mod fields;
pub mod metrics;
pub mod traces;

use std::fmt;
use std::io::{self, IsTerminal as _};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::traces::{Exporter, OtlpOptions};
use crate::config::{TelemetryConfig, TraceFormat};

/// The handle of the metrics. Clones are the same.
#[derive(Clone)]
pub struct Telemetry {
    prometheus: PrometheusHandle,
}

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    #[error(
        "`telemetry.filter` is `{filter}`, which is not a filter such as `info` or `millrace=debug,warn`: {detail}"
    )]
    Filter { filter: String, detail: String },
    #[error("telemetry cannot be installed: {detail}")]
    Install { detail: String },
}

impl Telemetry {
    /// Installs the subscriber and the recorder of the process. A second call fails.
    pub fn install(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(&config.filter).map_err(|error| TelemetryError::Filter {
            filter: config.filter.clone(),
            detail: error.to_string(),
        })?;
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            // The subscriber would report a message it cannot write by `eprintln!`, which panics then, in
            // whatever thread it is: a full disk under the messages would end the store's committer.
            .log_internal_errors(false);
        let installed = match config.format {
            TraceFormat::Text => lines.with_ansi(io::stderr().is_terminal()).finish().try_init(),
            TraceFormat::Json => lines.json().flatten_event(true).finish().try_init(),
        };
        installed.map_err(|error| TelemetryError::Install { detail: error.to_string() })?;
        Self::record()
    }

    /// Installs only the recorder: what an embedding program with its own subscriber wants.
    pub fn record() -> Result<Self, TelemetryError> {
        let failed = |detail: String| TelemetryError::Install { detail };
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), metrics::SECONDS_BUCKETS)
            .map_err(|error| failed(error.to_string()))?
            .set_buckets_for_metric(Matcher::Suffix("_batch_events".into()), metrics::EVENTS_BUCKETS)
            .map_err(|error| failed(error.to_string()))?
            .build_recorder();
        let prometheus = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|error| failed(error.to_string()))?;
        metrics::describe();
        Ok(Self { prometheus })
    }

    /// Starts the export of traces, if a collector is configured. On a tokio runtime, once in a process.
    pub fn export_traces(config: &TelemetryConfig) -> Result<Option<Exporter>, TelemetryError> {
        let Some(endpoint) = config.otlp_endpoint.clone() else { return Ok(None) };
        let options = OtlpOptions {
            endpoint,
            headers: config.otlp_headers.clone().into_iter().collect(),
            service_name: config.service_name.clone(),
            sample_ratio: config.trace_sample_ratio.0,
        };
        Exporter::start(options).map(Some)
    }

    /// All metrics in Prometheus' text format, with what was recorded until now.
    pub fn render(&self) -> String {
        self.prometheus.run_upkeep();
        self.prometheus.render()
    }

    /// Takes recorded samples into the histograms, so that their buffer stays small between scrapes.
    /// To be called every few seconds.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}
