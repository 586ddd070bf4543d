//! Claims about what processors keep: saved state over versions, keyed state that expires, and looking at both.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod show;
mod store;
mod versions;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace::config::Config;
use millrace::error::Classify;
use millrace::event::{Event, EventBatch, Micros, TenantId};
use millrace::host::Host;
use millrace::plugins::{ControlError, DeployFrom, DeployOptions, DeployRequest, PluginState, PluginStatus};
use millrace::tables::{Query, Value};

use super::plugins::rig::component;

pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.serve.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.serve.data = dir.join("data");
    config.store.disk_free_bytes_min = 0;
    config.processors.instances_max = 16;
    config.processors.guest_call_ms_max = 20_000;
    // These versions are told apart by what they keep, and not by their time for one event on a busy machine.
    config.processors.shadow_time_ratio_max = 1_000_000;
    config
}

pub(crate) async fn start(config: &Config) -> Host {
    Host::builder().config(config.clone()).start().await.unwrap()
}

pub(crate) async fn deploy(host: &Host, guest: &str) -> Result<PluginStatus, ControlError> {
    let request = DeployRequest {
        component: component(guest).into(),
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: "api:test".into(),
        options: DeployOptions::default(),
        paused: false,
        settings: None,
        progress: None,
    };
    host.plugins().deploy(request).await
}

/// Without a run in the shadow.
pub(crate) async fn deploy_unseen(host: &Host, guest: &str) -> Result<PluginStatus, ControlError> {
    let request = DeployRequest {
        component: component(guest).into(),
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: "api:test".into(),
        options: DeployOptions { no_shadow: true, ..DeployOptions::default() },
        paused: false,
        settings: None,
        progress: None,
    };
    host.plugins().deploy(request).await
}

pub(crate) async fn refusal(host: &Host, guest: &str) -> (&'static str, String) {
    let error = deploy(host, guest).await.unwrap_err();
    (error.code(), error.to_string())
}

/// Appends events given as (agg-id, type, second).
pub(crate) async fn publish(host: &Host, events: &[(&str, &str, i64)]) {
    let log = host.log();
    let newest = log.bounds().newest.0;
    let mut batch = EventBatch::new(TenantId::new("default").unwrap());
    for (index, (agg_id, event_type, second)) in events.iter().enumerate() {
        let event = Event {
            aggregate: "thing",
            agg_id,
            event_type,
            version: newest + index as u64 + 1,
            at: Micros(1_000_000_000_000_000 + second * 1_000_000),
            payload: b"1",
            ..Event::default()
        };
        batch.push(&event).unwrap();
    }
    log.append(batch).await.unwrap();
}

/// Waits until the plugin has done everything there is.
pub(crate) async fn settle(host: &Host, plugin: &str) -> PluginStatus {
    let begun = Instant::now();
    loop {
        let status = host.plugins().show(plugin).await.unwrap();
        assert_ne!(status.state, PluginState::Failed, "{}", status.message);
        if status.lag_events == 0 {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not done: {status:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Key to the first column.
pub(crate) async fn numbers(host: &Host, table: &str) -> Vec<(String, Value)> {
    let query = Query { limit: 1_000, ..Query::all(table) };
    let page = host.tables().query(&TenantId::new("default").unwrap(), &query).await.unwrap();
    page.rows.into_iter().map(|row| (row.key, row.cells[0].clone())).collect()
}
