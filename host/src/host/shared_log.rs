//! A log that several hosts share: reaching it, carrying to it what processors emit, and to its channels what they append,
//! and remembering how far it was.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::{info, warn};

use super::HostError;
use super::parts::Keep;
use crate::backends::redis::{
    InvalidAddress, RedisAck, RedisAddress, RedisChannels, RedisGroups, RedisLeases, RedisLink, RedisLog,
    RedisOptions, RedisPresence,
};
use crate::backends::sqlite::SqliteStore;
use crate::channels::{ChannelLimits, ChannelStore};
use crate::checkpoints::{ChannelCarrier, LogMarks as _, Outbox as _};
use crate::clock::Clock;
use crate::cluster::Ownerships;
use crate::config::{Config, LogAddress, RedisAckConfig, RedisConfig};
use crate::error::{BackendError, Classify as _};
use crate::limits::{LOG_MARK_EVERY, REDIS_CHANGE_STREAM_EVENTS_MAX, REDIS_EVENTS_MAX};
use crate::presence::{Presence, PresenceLimits};
use crate::processors::{Relay, SharedLog as ForProcessors};
use crate::streams::groups::{GroupLimits, Groups};
use crate::streams::{EventLog, Retention};
use crate::tasks::{TaskKind, Tasks};

/// An address in `serve.log` that is none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("serve.log: {0}")]
pub struct InvalidLog(#[from] InvalidAddress);

/// The shared log of one host. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct SharedLog {
    log: RedisLog,
    /// For what lies beside it.
    link: RedisLink,
    owners: Ownerships,
    store: SqliteStore,
    /// None where channels are in memory.
    channels: Arc<OnceLock<RedisChannels>>,
    /// They outlive what processors do, since they carry what comes of that.
    tasks: Tasks,
}

/// When something on the server counts as kept.
pub(super) fn ack(redis: &RedisConfig) -> RedisAck {
    match redis.ack {
        RedisAckConfig::Auto => RedisAck::Auto,
        RedisAckConfig::Memory => RedisAck::Memory,
        RedisAckConfig::Synced => RedisAck::Synced,
        RedisAckConfig::Replicated => RedisAck::Replicated { replicas: redis.replicas },
    }
}

impl SharedLog {
    /// None when the log is the store's own. Reaches for the server, and does not wait for it.
    pub(super) async fn open(config: &Config, store: &SqliteStore) -> Result<Option<Self>, HostError> {
        let Some(LogAddress(address)) = &config.serve.log else { return Ok(None) };
        let address: RedisAddress = address.parse().map_err(InvalidLog)?;
        let redis = &config.redis;
        let link = RedisLink::new(address.clone(), redis.ca_file.clone(), &*redis.name);
        let events = config.store.retention_events.unwrap_or(REDIS_EVENTS_MAX);
        let change_events = config.store.change_stream_events_max.unwrap_or(REDIS_CHANGE_STREAM_EVENTS_MAX);
        let log = RedisLog::open(RedisOptions {
            ca_file: redis.ca_file.clone(),
            name: redis.name.clone(),
            ack: ack(redis),
            retention: Retention { age: config.store.retention_age(), events: Some(events) },
            dedup_events_max: config.store.dedup_events_max,
            change_stream_events_max: Some(change_events),
            tail_bytes_max: config.store.tail_bytes_max,
            append_wait_max: redis.append_wait_max(),
            known: store.log_mark().await?,
            ..RedisOptions::new(address)
        });
        // One process at a time has a store, so the next run of this host need not wait for the end of the last one's
        // leases.
        let owners =
            Ownerships::new(Arc::new(RedisLeases::new(link.clone())), store.epoch().0, redis.lease());
        let (channels, tasks) = (Arc::default(), Tasks::new());
        Ok(Some(Self { log, link, owners, store: store.clone(), channels, tasks }))
    }

    pub(super) fn log(&self) -> Arc<dyn EventLog> {
        Arc::new(self.log.clone())
    }

    /// Groups of consumers beside the log, and what has to run for them.
    pub(super) fn groups(&self, log: &Arc<dyn EventLog>, limits: GroupLimits) -> (Arc<dyn Groups>, Keep) {
        let groups = RedisGroups::new(self.link.clone(), &self.log, Arc::clone(log), limits);
        let keeper = groups.clone();
        let keep = move || {
            let keeper = keeper.clone();
            async move { keeper.keep().await }.boxed()
        };
        (Arc::new(groups), Arc::new(keep))
    }

    /// Processes and their channels beside the log. What processors append goes to them.
    pub(super) fn channels(&self, limits: ChannelLimits, clock: Arc<dyn Clock>) -> Arc<dyn ChannelStore> {
        let channels = self.channels.get_or_init(|| RedisChannels::beside(&self.log, limits, clock));
        Arc::new(channels.clone())
    }

    pub(super) fn presence(&self, limits: PresenceLimits) -> Arc<dyn Presence> {
        Arc::new(RedisPresence::open(self.link.clone(), limits))
    }

    pub(super) fn for_processors(&self, store: &SqliteStore) -> ForProcessors {
        ForProcessors { owners: self.owners.clone(), outbox: Arc::new(store.clone()) }
    }

    /// Which host does what.
    pub(super) fn owners(&self) -> Ownerships {
        self.owners.clone()
    }

    /// Why it does not serve now; none while it does.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.log.status().problem?;
        // What the server said may name what only the operator should know; `/readyz` asks for no credential.
        Some(format!("the log does not serve: {}", problem.code()))
    }

    /// Returns once it serves for the first time.
    pub(super) async fn reached(&self) {
        let mut statuses = self.log.statuses();
        // It ends with the log otherwise, and that with the host.
        drop(statuses.wait_for(|status| status.problem.is_none()).await);
    }

    /// Begins to carry what processors emit and append, once it is known which of them this host has.
    pub(super) fn carry(&self) {
        let (outbox, log, owners) = (Arc::new(self.store.clone()), self.log(), self.owners.clone());
        let channels =
            self.channels.get().map(|channels| Arc::new(channels.clone()) as Arc<dyn ChannelCarrier>);
        self.tasks.supervise(TaskKind::BACKGROUND, "relay", move || {
            let relay = Relay::new(outbox.clone(), Arc::clone(&log), Some(owners.clone()));
            let relay = relay.with_channels(channels.clone());
            async move {
                relay.run().await;
                Ok(())
            }
        });
    }

    /// Begins to remember how far the log is.
    pub(super) fn remember(&self) {
        let marker = self.clone();
        self.tasks.spawn(TaskKind::BACKGROUND, "log marks", async move {
            let mut marked = None;
            loop {
                tokio::time::sleep(LOG_MARK_EVERY).await;
                let now = marker.log.mark();
                if now != marked && marker.mark_or_say().await {
                    marked = now;
                }
            }
        });
    }

    /// Writes down how far the log is: before processors start, too, so that no commit is of a log that the store does
    /// not know.
    pub(super) async fn mark(&self) -> Result<(), BackendError> {
        match self.log.mark() {
            Some((epoch, newest)) => self.store.mark_log(epoch, newest).await,
            None => Ok(()),
        }
    }

    async fn mark_or_say(&self) -> bool {
        let marked = self.mark().await;
        if let Err(error) = &marked {
            warn!(error.kind = error.code(), error.blame = "host", %error, "how far the log is was not written down");
        }
        marked.is_ok()
    }

    /// Ends, once everything that processors emitted and appended is carried, or at the deadline.
    pub(super) async fn end(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.mark_or_say().await;
        let left = self.store.len();
        if left > 0 {
            info!(events = left, "emitted events and appended entries stay in the store for the next start");
        }
        self.tasks.shutdown(deadline.saturating_duration_since(Instant::now())).await;
    }
}
