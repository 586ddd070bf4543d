//! The sources of a host: what they are made of, and the task that each takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{HostBuilder, HostError, Stage};
use crate::backends::file::FileSourceCheckpoints;
use crate::backends::grpc::{Credential, GrpcOptions, MemoryClient};
use crate::clock::Clock;
use crate::cluster::Ownerships;
use crate::config::{GrpcSourceConfig, SecretText, SourceCheckpoints};
use crate::error::Classify as _;
use crate::event::TenantId;
use crate::limits::{SOURCE_LAST_SAVE_MAX, SOURCE_STOPPED_WAITS};
use crate::plugins::{Rebuilder, Registry};
use crate::processors::source::{
    BegunRebuilds, CheckpointClient, EventClient, Importer, ImporterParts, Progress, Runtime, RuntimeConfig,
    RuntimeParts, SourceHandle, SourceLetters,
};
use crate::streams::EventLog;
use crate::tasks::{TaskKind, Tasks};

/// What every source of this kind is called: there is one.
const GRPC: &str = "grpc";

/// One source, which can be started again and again.
#[derive(Clone)]
pub(super) struct Source {
    events: Arc<dyn EventClient>,
    checkpoints: Arc<dyn CheckpointClient>,
    config: RuntimeConfig,
    importer: ImporterParts,
    clock: Arc<dyn Clock>,
    /// Of a log that hosts share: one of them runs it.
    owners: Option<Ownerships>,
}

impl HostBuilder {
    pub(super) fn sources(
        &self,
        log: &Arc<dyn EventLog>,
        owners: Option<Ownerships>,
        registry: &Registry,
    ) -> Result<Vec<Source>, HostError> {
        let Some(config) = &self.config.source.grpc else { return Ok(Vec::new()) };
        let wrong = |error: &dyn std::fmt::Display| HostError::Source(format!("source.grpc: {error}"));
        let secret = |text: &Option<SecretText>, file: &Option<std::path::PathBuf>| {
            let text = text.as_ref().map(|text| Credential::Text(text.0.clone()));
            text.or_else(|| file.clone().map(Credential::File))
        };
        let options = GrpcOptions {
            endpoint: config.endpoint.clone(),
            client_id: config.client_id.clone(),
            api_key: secret(&config.api_key, &config.api_key_file),
            bearer_token: secret(&config.bearer_token, &config.bearer_token_file),
            ca_file: config.ca_file.clone(),
            server_name: config.server_name.clone(),
            client_cert: config.client_cert_file.clone().zip(config.client_key_file.clone()),
            ..GrpcOptions::default()
        };
        let client = MemoryClient::new(options, Arc::clone(&self.clock)).map_err(|error| wrong(&error))?;
        let dir = self.config.serve.data.join("sources");
        let checkpoints: Arc<dyn CheckpointClient> = match config.checkpoints {
            SourceCheckpoints::Store => Arc::new(FileSourceCheckpoints::new(dir, Arc::clone(&self.clock))),
            SourceCheckpoints::Remote => Arc::new(client.clone()),
        };
        let importer = ImporterParts {
            source: GRPC.into(),
            tenant: TenantId::new(&config.tenant).map_err(|error| wrong(&error))?,
            log: Arc::clone(log),
            letters: SourceLetters::default(),
            progress: Progress::default(),
            rebuilds: config.rebuilds.clone(),
            rebuilder: Arc::new(Rebuilder::new(Arc::new(registry.clone()), format!("source:{GRPC}"))),
            begun: BegunRebuilds::default(),
        };
        Ok(vec![Source {
            events: Arc::new(client),
            checkpoints,
            config: runtime_config(config),
            importer,
            clock: Arc::clone(&self.clock),
            owners,
        }])
    }
}

fn runtime_config(config: &GrpcSourceConfig) -> RuntimeConfig {
    let cursor = config.after_cursor.trim();
    RuntimeConfig {
        kinds: config.kinds.clone(),
        entry_channels: config.entry_channels.clone(),
        entry_content_types: config.entry_content_types.clone(),
        entry_roles: config.entry_roles.clone(),
        scope: config.scope,
        after_cursor: (!cursor.is_empty()).then(|| cursor.to_owned()),
        justification: config.justification.clone(),
        checkpoint_interval: config.checkpoint_interval.0,
        reconnect_min: config.reconnect_min.0,
        reconnect_max: config.reconnect_max.0,
        on_cursor_lost: config.on_cursor_lost,
        idle_max: config.idle_max.0,
        recheck: config.recheck.0,
        overlap_events: config.overlap_events,
        ..RuntimeConfig::new(&config.client_id)
    }
    // Here, since the wait after a stop is made of the same times.
    .bounded()
}

impl Source {
    /// What the edge shows of it.
    pub(super) fn handle(&self) -> SourceHandle {
        SourceHandle {
            name: self.importer.source.clone(),
            tenant: self.importer.tenant.clone(),
            progress: self.importer.progress.clone(),
            letters: self.importer.letters.clone(),
        }
    }

    /// Runs until the host drains, from when the log serves.
    pub(super) fn start(&self, tasks: &Tasks, stages: &watch::Receiver<Stage>) {
        let (source, stop, stages) = (self.clone(), tasks.token().clone(), stages.clone());
        tasks.supervise(TaskKind::SUPERVISED, "source", move || {
            let (source, stop, mut stages) = (source.clone(), stop.clone(), stages.clone());
            async move {
                let begun = |stage: &Stage| matches!(stage, Stage::Ready | Stage::Stopping);
                // It ends with the host otherwise.
                drop(stop.run_until_cancelled(stages.wait_for(begun)).await);
                source.run(&stop).await;
                Ok(())
            }
        });
    }

    /// Where hosts share a log, one of them runs it: it would come to the same, since ids tell what comes twice, at the cost of
    /// both.
    async fn run(&self, stop: &CancellationToken) {
        let Some(owners) = &self.owners else { return self.keep_running(stop).await };
        let end = CancellationToken::new();
        let (mut ownership, kept) = owners.keep(&format!("source:{}", self.importer.source), end.clone());
        let owning = async {
            while let Some(generation) = stop.run_until_cancelled(ownership.gained()).await {
                let lost = stop.child_token();
                let watching = async {
                    ownership.lost(generation).await;
                    lost.cancel();
                };
                tokio::join!(lost.run_until_cancelled(watching), self.keep_running(&lost));
            }
            // Given back after the last save.
            end.cancel();
        };
        tokio::join!(owning, kept);
    }

    /// What stops a source is often mended at the other side, so it is tried again after a long while.
    async fn keep_running(&self, stop: &CancellationToken) {
        let name = &self.importer.source;
        while !stop.is_cancelled() {
            let parts = RuntimeParts {
                events: Some(Arc::clone(&self.events)),
                checkpoints: Some(Arc::clone(&self.checkpoints)),
                processor: Some(Box::new(Importer::new(self.importer.clone()))),
                config: self.config.clone(),
                clock: Arc::clone(&self.clock),
                progress: self.importer.progress.clone(),
            };
            let runtime = match Runtime::start(parts) {
                Ok(runtime) => runtime,
                // The settings were checked: there is nothing that could be missing.
                Err(error) => {
                    return error!(error.kind = "source_settings", error.blame = "host", %error, "a source does not start");
                }
            };
            let ended = match stop.run_until_cancelled(runtime.wait()).await {
                Some(ended) => ended,
                None => runtime.shutdown(SOURCE_LAST_SAVE_MAX * 2).await,
            };
            if let Err(error) = ended {
                error!(
                    error.kind = error.code(),
                    error.blame = error.blame().as_str(),
                    %error,
                    source = name,
                    "a source stopped; the host goes on without it, and tries it again later"
                );
                // Ends early when the host does.
                stop.run_until_cancelled(tokio::time::sleep(self.wait())).await;
            }
        }
        info!(source = name, "a source has ended");
    }

    fn wait(&self) -> Duration {
        self.config.reconnect_max.max(self.config.reconnect_min) * SOURCE_STOPPED_WAITS
    }
}
