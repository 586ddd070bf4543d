//! Wakes whoever waits for a change, without saying which. It is rung for each append, and hardly ever by several at once:
//! one list of those who wait costs less then than the several of `tokio::sync::watch`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Rung after each change, and once more when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Bell(Arc<Tower>);

#[derive(Debug, Default)]
struct Tower {
    /// How often it was rung.
    rung: AtomicU64,
    waiting: Notify,
}

/// Somebody who has heard the bell so far.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    tower: Arc<Tower>,
    heard: u64,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.0.rung.fetch_add(1, Ordering::AcqRel);
        self.0.waiting.notify_waiters();
    }

    /// From now on.
    pub(super) fn listen(&self) -> Listener {
        Listener { heard: self.0.rung(), tower: Arc::clone(&self.0) }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

impl Tower {
    fn rung(&self) -> u64 {
        self.rung.load(Ordering::Acquire)
    }
}

impl Listener {
    /// What was rung so far needs no second look.
    pub(super) fn forget(&mut self) {
        self.heard = self.tower.rung();
    }

    /// Waits until it has been rung since this was last answered or forgotten. Cancel-safe.
    pub(super) async fn rung(&mut self) {
        loop {
            // Of what is rung from here on it is told, whether it waits already or not.
            let next = self.tower.waiting.notified();
            let rung = self.tower.rung();
            if rung != self.heard {
                self.heard = rung;
                return;
            }
            next.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_listens_hears_what_is_rung_since_it_looked_and_once() {
        let bell = Bell::default();
        bell.ring();
        let mut listener = bell.listen();
        assert_eq!(listener.rung().now_or_never(), None, "that was before");
        bell.ring();
        bell.ring();
        let mut other = listener.clone();
        assert_eq!(listener.rung().now_or_never(), Some(()));
        assert_eq!(listener.rung().now_or_never(), None);
        other.forget();
        assert_eq!(other.rung().now_or_never(), None);
        bell.ring();
        assert_eq!((listener.rung().now_or_never(), other.rung().now_or_never()), (Some(()), Some(())));
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_told_when_there_is_no_bell_any_more() {
        let bell = Bell::default();
        let (mut one, mut another) = (bell.listen(), bell.listen());
        let ring = async {
            tokio::task::yield_now().await;
            bell.ring();
        };
        tokio::join!(one.rung(), another.rung(), ring);
        let gone = async move {
            tokio::task::yield_now().await;
            drop(bell);
        };
        tokio::join!(one.rung(), gone);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_that_is_rung_from_another_thread_is_missed() {
        let (bell, count) = (Bell::default(), Arc::new(AtomicU64::new(0)));
        let mut listener = bell.listen();
        let counted = Arc::clone(&count);
        let rings = std::thread::spawn(move || {
            for _ in 0..100_000 {
                counted.fetch_add(1, Ordering::AcqRel);
                bell.ring();
            }
            bell
        });
        let last = async {
            while count.load(Ordering::Acquire) < 100_000 {
                listener.rung().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), last).await.expect("it hears the last one");
        drop(rings.join());
    }
}
