//! The way to the committer: its queue, and a line before it for calls that find it full. Requests reach the queue in the
//! order of the calls, whoever of those that wait is woken or polled first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::request::Request;

/// Requests that the queue has no room for, each with the number of its call. As many as there are callers that wait.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Of `waiting`, so that calls need no lock while the queue has room.
    length: AtomicUsize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    calls: u64,
    requests: VecDeque<(u64, Request)>,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place before it returns; the future is only there to wait when the queue is full. Dropping it takes a
    /// request back that is still in the line. Where the committer is gone, so is the request, and with it its reply.
    pub(super) fn enqueue(
        self: &Arc<Self>,
        queue: &mpsc::Sender<Request>,
        mut request: Request,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let place = 'placed: {
            if self.length.load(Ordering::Acquire) == 0 {
                match queue.try_send(request) {
                    Ok(()) | Err(TrySendError::Closed(_)) => break 'placed None,
                    Err(TrySendError::Full(back)) => request = back,
                }
            }
            let mut waiting = self.lock();
            waiting.calls += 1;
            let call = waiting.calls;
            waiting.requests.push_back((call, request));
            // There may be room by now, and nobody of those before who was woken for it has been polled.
            while let Some((first, request)) = waiting.requests.pop_front() {
                if let Err(TrySendError::Full(back)) = queue.try_send(request) {
                    waiting.requests.push_front((first, back));
                    break;
                }
            }
            self.set_length(&waiting);
            waiting.has(call).then(|| Place { line: Arc::clone(self), queue: queue.clone(), call })
        };
        async move {
            if let Some(place) = place {
                place.wait().await;
            }
        }
    }

    /// After what left the line was sent: who sees that it is empty comes behind all that was in it.
    fn set_length(&self, waiting: &Waiting) {
        self.length.store(waiting.requests.len(), Ordering::Release);
    }
}

impl Waiting {
    fn at(&self, call: u64) -> Result<usize, usize> {
        self.requests.binary_search_by_key(&call, |(call, _)| *call)
    }

    fn has(&self, call: u64) -> bool {
        self.at(call).is_ok()
    }
}

/// Of one call in the line.
#[derive(Debug)]
struct Place {
    line: Arc<Line>,
    queue: mpsc::Sender<Request>,
    call: u64,
}

impl Place {
    /// Sends whatever is first in the line until its own request is sent.
    async fn wait(self) {
        while self.line.lock().has(self.call) {
            let Ok(permit) = self.queue.clone().reserve_owned().await else { return };
            let mut waiting = self.line.lock();
            if let Some((_, request)) = waiting.requests.pop_front() {
                drop(permit.send(request));
                self.line.set_length(&waiting);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.line.lock();
        let taken = waiting.at(self.call).ok().and_then(|at| waiting.requests.remove(at));
        self.line.set_length(&waiting);
        drop(waiting);
        drop(taken);
    }
}
