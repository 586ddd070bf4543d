//! One suite per seam: functions over a `dyn` seam, run for every backend.

#![expect(clippy::unwrap_used, reason = "a suite is test code, though it lives in a library")]

pub mod appends;
pub mod artifacts;
pub mod cache;
pub mod change_streams;
pub mod channels;
pub mod checkpoints;
pub mod cluster;
pub mod control_outbox;
pub mod control_store;
pub mod deployments;
pub mod effects;
pub mod event_log;
pub mod groups;
pub mod leases;
pub mod parked;
pub mod presence;
pub mod tables;

use std::sync::Arc;

use millrace::checkpoints::CheckpointStore;
use millrace::plugins::DeploymentStore;
use millrace::streams::EventLog;
use millrace::tables::TableStore;

/// The seams of one store that share a transaction.
#[derive(Clone, Debug)]
pub struct Seams {
    pub log: Arc<dyn EventLog>,
    pub checkpoints: Arc<dyn CheckpointStore>,
    pub tables: Arc<dyn TableStore>,
    pub deployments: Arc<dyn DeploymentStore>,
}

/// Runs a seam's whole suite for one backend: `conformance!(memory, event_log, setup; case, case)`.
/// `setup` is a function that answers a future with the backend and whatever must outlive the test.
#[macro_export]
macro_rules! conformance {
    ($backend:ident, $suite:ident, $setup:expr; $($case:ident),+ $(,)?) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let (backend, _keep) = ($setup)().await;
                    $crate::conformance::$suite::$case(backend).await;
                }
            )+
        }
    };
}
