//! One suite per seam: functions over a `dyn` seam, run for every backend.

pub mod checkpoints;
pub mod event_log;
pub mod tables;

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
