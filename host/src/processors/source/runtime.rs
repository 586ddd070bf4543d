//! The loop as a library: events in, checkpoints out, a processor in between. It needs no endpoint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{CheckpointClient, EventClient, SourceError, SourceFault};
use super::policy::RuntimeConfig;
use super::reducer::Reducer;
use super::run::Run;
use super::status::{Progress, SourceStatus};
use crate::clock::Clock;

/// What a runtime is made of. The first four must be there.
#[derive(Debug)]
pub struct RuntimeParts {
    pub events: Option<Arc<dyn EventClient>>,
    pub checkpoints: Option<Arc<dyn CheckpointClient>>,
    pub processor: Option<Box<dyn Reducer>>,
    pub config: RuntimeConfig,
    pub clock: Arc<dyn Clock>,
    /// Where it writes how it is doing.
    pub progress: Progress,
}

/// What is missing, looked at in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("event client is required")]
    EventClient,
    #[error("checkpoint client is required")]
    CheckpointClient,
    #[error("processor is required")]
    Processor,
    #[error("client ID is required")]
    ClientId,
}

/// A running loop. Dropping it ends it like a kill: what was not saved comes again.
#[derive(Debug)]
pub struct Runtime {
    /// The one task, which is aborted with it.
    task: Mutex<JoinSet<()>>,
    stop: CancellationToken,
    ended: watch::Receiver<Option<Result<(), SourceError>>>,
    progress: Progress,
}

impl Runtime {
    /// Starts at once, on the current tokio runtime. What the other side says comes by [`Runtime::wait`].
    pub fn start(parts: RuntimeParts) -> Result<Self, StartError> {
        let RuntimeParts { events, checkpoints, processor, config, clock, progress } = parts;
        let events = events.ok_or(StartError::EventClient)?;
        let checkpoints = checkpoints.ok_or(StartError::CheckpointClient)?;
        let reducer = processor.ok_or(StartError::Processor)?;
        if config.client_id.trim().is_empty() {
            return Err(StartError::ClientId);
        }
        let config = config.bounded();
        let stop = CancellationToken::new();
        let (say, ended) = watch::channel(None);
        let run = Run {
            events,
            checkpoints,
            reducer,
            config,
            clock,
            progress: progress.clone(),
            stop: stop.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            let answer = Box::pin(run.until_the_end()).await;
            say.send_replace(Some(answer));
        });
        Ok(Self { task: Mutex::new(task), stop, ended, progress })
    }

    /// How it ended, once it has: well after a shutdown, or with the very error that ended it.
    pub async fn wait(&self) -> Result<(), SourceError> {
        let mut ended = self.ended.clone();
        let answer = ended.wait_for(Option::is_some).await.map(|answer| (*answer).clone());
        match answer {
            Ok(Some(answer)) => answer,
            // It was cut off, or it panicked.
            Ok(None) | Err(_) => {
                Err(SourceError::pass(SourceFault::Store, "the run was cut off before its last save"))
            }
        }
    }

    /// Ends it: what is handled is flushed and saved, within this time. A second call answers the same.
    pub async fn shutdown(&self, within: Duration) -> Result<(), SourceError> {
        self.stop.cancel();
        if let Ok(answer) = tokio::time::timeout(within, self.wait()).await {
            return answer;
        }
        self.task.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.wait().await
    }

    pub fn status(&self) -> SourceStatus {
        self.progress.now()
    }

    /// Hears of every change of [`Runtime::status`].
    pub fn follow(&self) -> watch::Receiver<SourceStatus> {
        self.progress.follow()
    }
}
