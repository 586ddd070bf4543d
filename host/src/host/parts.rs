//! What a host is made of, as the configuration says it.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::auth::auth_options;
use super::control::Fleet;
use super::shared_log::SharedLog;
use super::source::Source;
use super::{HostBuilder, HostError, off_the_runtime};
use crate::backends::file::FileClientCheckpoints;
use crate::backends::memory::{MemoryChannels, MemoryPresence};
use crate::backends::sqlite::{LogPlace, SqliteOptions, SqliteStore};
use crate::cache::{Cache, CacheOptions, ReadThrough};
use crate::channels::{ChannelLimits, ChannelStore, Router};
use crate::checkpoints::{ClientCheckpoints, NoClientCheckpoints};
use crate::config::{ChannelsStore, GrpcCheckpoints};
use crate::control::ArtifactRepository;
use crate::gateway::{GatewayOptions, GrpcServerOptions, Readiness, Services};
use crate::live::LiveEngine;
use crate::plugins::{ArtifactStore, FileArtifacts, Registry, RegistryParts, RuntimeOptions, WasmRuntime};
use crate::presence::{Presence, PresenceLimits};
use crate::processors::{Engine, GuestPool, ProcessorSettings, ShadowSettings};
use crate::streams::groups::{GroupLimits, GroupOwner, Groups};
use crate::streams::upcast::{InvalidUpcast, UpcastLog};
use crate::streams::{EventLog, Hub, Retention};
use crate::tables::TableStore;

/// What keeps groups going for as long as it is polled.
pub(super) type Keep = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

impl HostBuilder {
    /// A log as consumers see it, with the upcasters in Rust and those of the configuration.
    pub(super) fn upcast(&self, log: Arc<dyn EventLog>) -> Result<Arc<dyn EventLog>, InvalidUpcast> {
        let mut upcasters = self.upcasters.clone();
        upcasters.declare(&self.config.upcasters)?;
        Ok(match upcasters.is_empty() {
            true => log,
            false => Arc::new(UpcastLog::new(log, Arc::new(upcasters))),
        })
    }

    pub(super) fn cache(&self) -> Result<ReadThrough, HostError> {
        let config = &self.config.cache;
        let options = CacheOptions {
            entries_max: config.entries_max,
            bytes_max: config.bytes_max,
            ttl: config.ttl(),
            ..CacheOptions::default()
        };
        let second =
            config.redis.as_deref().map(|address| second_level(address, &config.name)).transpose()?;
        Ok(ReadThrough::new(&options, second))
    }

    pub(super) async fn open_store(&self) -> Result<SqliteStore, HostError> {
        let config = &self.config.store;
        let options = SqliteOptions {
            retention: Retention { age: config.retention_age(), events: config.retention_events },
            disk_free_bytes_min: config.disk_free_bytes_min,
            dedup_events_max: config.dedup_events_max,
            tail_bytes_max: config.tail_bytes_max,
            tombstone_age_max: config.tombstone_age_max(),
            dead_letters_max: config.dead_letters_max,
            change_stream_events_max: config.change_stream_events_max,
            keyed_state_bytes_max: config.keyed_state_bytes_max,
            keyed_state_entries_max: config.keyed_state_entries_max,
            state_expired_keep: config.state_expired_keep(),
            wal_bytes_soft_max: config.wal_bytes_soft_max,
            wal_bytes_hard_max: config.wal_bytes_hard_max,
            channels: self.channel_limits(),
            clock: Arc::clone(&self.clock),
            log: if self.config.serve.log.is_some() { LogPlace::Elsewhere } else { LogPlace::Own },
            ..SqliteOptions::new(&self.config.serve.data)
        };
        Ok(off_the_runtime(move || SqliteStore::open(options)).await??)
    }

    pub(super) async fn registry(
        &self,
        store: &SqliteStore,
        log: &Arc<dyn EventLog>,
        shared_log: Option<&SharedLog>,
        pool: &GuestPool,
    ) -> Result<Registry, HostError> {
        let config = &self.config.processors;
        let data = &self.config.serve.data;
        let artifacts: Arc<dyn ArtifactStore> = Arc::new(FileArtifacts::open(data.join("artifacts"))?);
        let options = RuntimeOptions {
            cache_dir: Some(data.join("precompiled")),
            cache_shared: false,
            instances_max: config.instances_max,
            memory_bytes_max: config.guest_memory_bytes_max,
            state_bytes_max: config.guest_state_bytes_max,
            call_max: config.guest_call_max(),
            metering: config.guest_metering,
            fuel_max: config.guest_fuel_max,
            compiler: self.compiler.clone(),
            compile_memory_bytes_max: config.compile_memory_bytes_max,
            compile_max: config.compile_max(),
            precompiled_bytes_max: config.precompiled_bytes_max,
            artifacts: Some(Arc::clone(&artifacts)),
            channels_elsewhere: self.config.channels.store == ChannelsStore::Memory,
        };
        let runtime = off_the_runtime(move || WasmRuntime::new(options)).await??;
        let engine = Engine {
            log: Arc::clone(log),
            checkpoints: Arc::new(store.clone()),
            pool: pool.clone(),
            clock: Arc::clone(&self.clock),
            shared_log: shared_log.map(|shared| shared.for_processors(store)),
            runtime: tokio::runtime::Handle::current(),
        };
        Ok(Registry::new(RegistryParts {
            engine,
            runtime: Arc::new(runtime),
            artifacts,
            deployments: Arc::new(store.clone()),
            rebuilds: Arc::new(store.clone()),
            tables: Arc::new(store.clone()),
            settings: self.config.plugins.clone(),
            processors: ProcessorSettings {
                retries_max: config.retries_max,
                retry_wait_min: config.retry_wait_min(),
                retry_wait_max: config.retry_wait_max(),
                on_failure: config.on_failure,
                on_position_lost: config.on_position_lost,
                parked_events_max: config.parked_events_max,
                parked_bytes_max: config.parked_bytes_max,
                breaker_failures_max: config.breaker_failures_max,
                breaker_wait_min: config.breaker_wait_min(),
                breaker_wait_max: config.breaker_wait_max(),
                commit_events_max: config.commit_events_max,
                commit_events: config.commit_events_max / 2,
                commit_bytes_max: config.commit_bytes_max,
                idle_max: config.task_idle_max(),
                shadow: ShadowSettings {
                    events: config.shadow_events,
                    time: config.shadow(),
                    time_max: config.shadow_max(),
                    time_ratio_max: config.shadow_time_ratio_max,
                    errors_max: config.shadow_errors_max,
                    ..ShadowSettings::default()
                },
                ..ProcessorSettings::default()
            },
        }))
    }

    /// Groups lie where the log lies; and what has to run for them.
    pub(super) fn groups(
        &self,
        store: &SqliteStore,
        log: &Arc<dyn EventLog>,
        shared_log: Option<&SharedLog>,
    ) -> (Arc<dyn Groups>, Keep) {
        let config = &self.config.groups;
        let limits = GroupLimits {
            groups_max: config.groups_max,
            tenant_groups_max: config.tenant_groups_max,
            consumers_max: config.group_consumers_max,
            consumer_idle: config.group_consumer_idle_max(),
            in_flight_max: config.group_in_flight_max,
            consumer_in_flight_max: config.group_consumer_in_flight_max,
            window_events_max: config.group_window_events_max,
            window_bytes_max: config.group_window_bytes_max,
            waiters_max: config.group_waiters_max,
            dead_letters_max: config.group_dead_letters_max,
        };
        if let Some(shared) = shared_log {
            return shared.groups(log, limits);
        }
        let groups =
            GroupOwner::new(Arc::clone(log), Arc::new(store.clone()), Arc::clone(&self.clock), limits);
        let keeper = groups.clone();
        let keep = move || {
            let keeper = keeper.clone();
            async move { keeper.keep().await }.boxed()
        };
        (Arc::new(groups), Arc::new(keep))
    }

    /// Rooms are known to all hosts of a shared log.
    pub(super) fn presence(&self, shared_log: Option<&SharedLog>) -> Arc<dyn Presence> {
        let config = &self.config.presence;
        let limits = PresenceLimits {
            rooms_max: config.presence_rooms_max,
            members_max: config.presence_members_max,
            state_bytes_max: config.presence_state_bytes_max,
            message_bytes_max: config.presence_message_bytes_max,
            followers_max: config.presence_followers_max,
            ttl: config.presence_ttl(),
            ttl_min: config.presence_ttl_min(),
            ttl_max: config.presence_ttl_max(),
            ..PresenceLimits::default()
        };
        match shared_log {
            Some(shared) => shared.presence(limits),
            None => Arc::new(MemoryPresence::open(limits, Arc::clone(&self.clock))),
        }
    }

    /// Where channels are kept: where the log is, unless they are to be in memory.
    pub(super) fn channels(
        &self,
        store: &SqliteStore,
        shared_log: Option<&SharedLog>,
    ) -> Arc<dyn ChannelStore> {
        let (limits, clock) = (self.channel_limits(), Arc::clone(&self.clock));
        match (self.config.channels.store, shared_log) {
            (ChannelsStore::Memory, _) => Arc::new(MemoryChannels::new(limits, clock)),
            (ChannelsStore::Durable, Some(shared)) => shared.channels(limits, clock),
            (ChannelsStore::Durable, None) => Arc::new(store.clone()),
        }
    }

    fn channel_limits(&self) -> ChannelLimits {
        let config = &self.config.channels;
        ChannelLimits {
            processes_max: config.processes_max,
            channels_max: config.channels_max,
            observers_max: config.process_observers_max,
            payload_bytes_max: config.channel_payload_bytes_max,
            entries_max: config.channel_entries_max,
            bytes_max: config.channel_bytes_max,
            process_bytes_max: config.process_bytes_max,
            archive_bytes_max: config.channel_archive_bytes_max,
            archive_entries_max: config.channel_archive_entries_max,
            batch_entries_max: config.channel_batch_entries_max,
            batch_bytes_max: config.channel_batch_bytes_max,
            hold: config.channel_hold(),
            hold_entries_max: config.channel_hold_entries_max,
            hold_bytes_max: config.channel_hold_bytes_max,
            hold_host_bytes_max: config.channel_hold_host_bytes_max,
            rate_limited: config.channel_rate_limited,
            burst: config.channel_burst.into(),
            rate: config.channel_rate.into(),
            sender_burst: config.channel_sender_burst.into(),
            sender_rate: config.channel_sender_rate.into(),
            subscriber_entries_max: config.channel_subscriber_entries_max,
            subscribers_max: config.channel_subscribers_max,
            keep: config.channel_keep(),
            // Each store says it for itself.
            events: false,
        }
    }

    pub(super) fn gateway_options(&self) -> GatewayOptions {
        let config = &self.config.gateway;
        GatewayOptions {
            auth: auth_options(&self.config.auth),
            grpc: self.config.grpc.bind.map(|bind| GrpcServerOptions {
                bind,
                tls: self.config.grpc.cert_file.clone().zip(self.config.grpc.key_file.clone()),
            }),
            cors_origins: config.cors_origins.clone(),
            tenant_requests_per_s: config.tenant_requests_per_s,
            tenant_requests_burst: config.tenant_requests_burst,
            header_wait_max: config.header_wait_max(),
            body_idle_max: config.body_idle_max(),
            body_bytes_max: config.body_bytes_max,
            upload_bytes_max: config.upload_bytes_max,
            artifact_bytes_max: self.config.control.artifact_bytes_max,
            connections_max: config.connections_max,
            sse_heartbeat: config.sse_heartbeat(),
            log_away_max: config.log_away_max(),
            change_window: config.change_window(),
            write_wait_max: config.write_wait_max(),
            live_message_bytes_max: config.live_message_bytes_max,
            live_subscriptions_max: config.live_subscriptions_max,
            live_first_command_wait_max: config.live_first_command_wait_max(),
            drain_max: self.config.serve.drain_max() / 2,
            ..GatewayOptions::new(self.config.serve.bind)
        }
    }

    /// Checkpoints of clients lie in this host's folder, which hosts of the same log cannot read.
    fn clients(&self) -> Arc<dyn ClientCheckpoints> {
        if self.config.serve.log.is_some() && self.config.grpc.checkpoints == GrpcCheckpoints::Auto {
            return Arc::new(NoClientCheckpoints);
        }
        Arc::new(FileClientCheckpoints::new(&self.config.serve.data, Arc::clone(&self.clock)))
    }

    pub(super) fn services(
        &self,
        (store, log, tables): (&SqliteStore, &Arc<dyn EventLog>, &Arc<dyn TableStore>),
        (registry, artifacts, fleet): (&Registry, &Arc<dyn ArtifactRepository>, Option<&Fleet>),
        (live, hub, groups): (&LiveEngine, &Hub, &Arc<dyn Groups>),
        (presence, channels): (Arc<dyn Presence>, &Router),
        (sources, ready): (&[Source], Arc<dyn Fn() -> Readiness + Send + Sync>),
    ) -> Services {
        Services {
            log: Arc::clone(log),
            hub: hub.clone(),
            groups: Arc::clone(groups),
            presence,
            channels: channels.clone(),
            tables: Arc::clone(tables),
            live: Arc::new(live.clone()),
            plugins: Arc::new(registry.clone()),
            artifacts: Arc::clone(artifacts),
            fleet: fleet.map(Fleet::desk),
            sources: sources.iter().map(Source::handle).collect(),
            checkpoints: Arc::new(store.clone()),
            clients: self.clients(),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.render),
            ready,
        }
    }
}

/// A server that cannot be reached is no reason not to start: rows are read from the store meanwhile.
#[cfg(feature = "redis")]
fn second_level(address: &str, name: &str) -> Result<Arc<dyn Cache>, HostError> {
    use crate::backends::redis::{InvalidAddress, RedisCache, RedisLink};
    let address = address.parse().map_err(|error: InvalidAddress| HostError::Cache(error.to_string()))?;
    Ok(Arc::new(RedisCache::new(RedisLink::new(address, None, name))))
}

#[cfg(not(feature = "redis"))]
fn second_level(_: &str, _: &str) -> Result<Arc<dyn Cache>, HostError> {
    Err(HostError::Cache("this host was built without Redis".into()))
}
