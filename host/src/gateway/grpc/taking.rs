//! Whether a client takes what it is answered.
//!
//! HTTP/2 lets a client that reads its socket take nothing of an answer. A body is not asked for more then, so it cannot end
//! the call itself: whoever runs the call looks after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::gateway::metrics;

tokio::task_local! {
    static TAKING: Arc<Taking>;
}

/// When the call is given up, while something waits for the client.
#[derive(Debug, Default)]
pub(super) struct Taking(Mutex<Option<Instant>>);

impl Taking {
    /// That of the call which runs here.
    pub(super) fn here() -> Arc<Self> {
        TAKING.try_with(Arc::clone).unwrap_or_default()
    }

    /// Something was handed over, and must be taken in this time.
    pub(super) fn waits(&self, wait_max: Duration) {
        *self.lock() = Some(Instant::now() + wait_max);
    }

    /// It was taken, or soon is: the client has room for it.
    pub(super) fn goes_on(&self) {
        *self.lock() = None;
    }

    async fn given_up(&self, look_every: Duration) {
        loop {
            let now = Instant::now();
            let until = *self.lock();
            match until {
                Some(until) if until <= now => return,
                Some(until) => sleep_until(until).await,
                None => sleep_until(now + look_every).await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // One instant is whole whatever happened.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a call until it is over, or its client takes nothing. Dropped then, what it has written ahead is dropped with it, and
/// the client is told.
pub(super) async fn bounded<F: Future>(call: F, look_every: Duration) {
    let taking = Arc::new(Taking::default());
    let call = TAKING.scope(Arc::clone(&taking), call);
    tokio::select! {
        biased;
        _ = call => {}
        () = taking.given_up(look_every) => {
            // It was counted by the code of its answer when that was made; a stream is as it is dropped.
            metrics::grpc_untaken();
            tracing::debug!("a client took nothing of an answer; the call is ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn only_a_call_whose_answer_is_not_taken_is_counted() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _guard = ::metrics::set_default_local_recorder(&recorder);
        bounded(async {}, SHORT).await;
        assert_eq!(handle.render(), "");
        let waiting = async {
            Taking::here().waits(SHORT);
            pending::<()>().await;
        };
        bounded(waiting, SHORT).await;
        let shown = handle.render();
        assert!(shown.lines().any(|line| line == "millrace_grpc_calls_untaken_total 1"), "{shown}");
    }

    #[tokio::test]
    async fn a_call_ends_when_nothing_is_taken_and_not_before() {
        let waiting = async {
            Taking::here().waits(SHORT);
            pending::<()>().await;
        };
        bounded(waiting, SHORT).await;
        let mut done = false;
        let taken = async {
            Taking::here().waits(Duration::from_millis(20));
            Taking::here().goes_on();
            tokio::time::sleep(Duration::from_millis(60)).await;
            done = true;
        };
        bounded(taken, SHORT).await;
        assert!(done);
    }
}
