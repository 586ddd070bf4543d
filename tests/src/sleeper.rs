//! A future that waits, and whether anything has woken it since.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// Polled once, and then only to look whether it is still waiting.
pub struct Sleeper<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<F> std::fmt::Debug for Sleeper<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleeper").field("woken", &self.woken.0).finish_non_exhaustive()
    }
}

impl<F: Future> Sleeper<F> {
    /// Lets it begin to wait, which it has to.
    pub fn new(future: F) -> Self {
        let mut sleeper = Self { future: Box::pin(future), woken: Arc::default() };
        assert!(sleeper.waits(), "there is nothing to wait for");
        sleeper
    }

    /// Nothing has woken it, and there is nothing for it.
    pub fn sleeps(&mut self) -> bool {
        !self.woken.0.load(Ordering::SeqCst) && self.waits()
    }

    fn waits(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
    }
}
