//! The one part that appends. It sends what has arrived as one script call; what comes in meanwhile is the next one, and
//! there is no timer. A second call is sent while the first is under way, so that the server need not wait for it. A
//! request is answered when the follower has made its events visible, which it does once they are
//! durable.
//!
//! A call whose answer is lost may have been carried out or not. It is sent again in the next session, whatever server
//! that leads to: the ids of its events make that safe.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::faults::{ends_session, remote};
use super::group::{Outcome, send};
use super::requests::Request;
use super::shared::{Session, Shared};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Epoch, Position};
use crate::limits::{
    REDIS_CALLS_MAX, REDIS_GROUP_BYTES_MAX, REDIS_GROUP_EVENTS_AIM, REDIS_GROUP_REQUESTS_MAX,
    REDIS_QUEUE_MAX, REDIS_TURNS_MAX,
};
use crate::streams::{Appended, StreamError};
use crate::tasks::TaskError;
use crate::telemetry::metrics as names;

/// How exact a deadline is.
const DEADLINE_TICK: Duration = Duration::from_millis(100);

pub(super) struct Appender {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
    session: Option<Session>,
    /// To be sent, the oldest first.
    waiting: VecDeque<Request>,
    /// Groups that were sent, in order, and their calls.
    under_way: VecDeque<Arc<Vec<Request>>>,
    calls: Calls,
    /// In the server's memory, and to be answered once visible.
    placed: VecDeque<Placed>,
}

/// Calls of the script, and what came of them, in the order in which they were made.
type Calls = FuturesOrdered<BoxFuture<'static, Result<Vec<Outcome>, BackendError>>>;

struct Placed {
    request: Request,
    answer: Vec<Appended>,
    epoch: Epoch,
    newest: Position,
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Request>) -> Self {
        Self {
            shared,
            queue,
            session: None,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            calls: Calls::new(),
            placed: VecDeque::new(),
        }
    }

    /// Runs until nobody can append any more.
    pub(super) async fn run(mut self) -> Result<(), TaskError> {
        let mut sessions = self.shared.session.subscribe();
        let mut published = self.shared.published.subscribe();
        let mut tick = tokio::time::interval(DEADLINE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sessions.mark_changed();
        loop {
            self.send_next();
            let room = self.waiting.len() + self.placed.len() < REDIS_QUEUE_MAX;
            // Nothing is lost when an arm is dropped: what a call carries stays with its group.
            tokio::select! {
                request = self.queue.recv(), if room => match request {
                    Some(request) => self.take_in(request),
                    None => return Ok(()),
                },
                Some(done) = self.calls.next() => self.done(done),
                changed = published.changed() => {
                    changed?;
                    self.settle();
                }
                changed = sessions.changed() => {
                    changed?;
                    let session = sessions.borrow_and_update().clone();
                    self.begin(session);
                }
                _ = tick.tick() => self.expire(),
            }
        }
    }

    fn take_in(&mut self, request: Request) {
        self.waiting.push_back(request);
        while self.waiting.len() < REDIS_GROUP_REQUESTS_MAX {
            let Ok(request) = self.queue.try_recv() else { return };
            self.waiting.push_back(request);
        }
    }

    /// Sends groups while there is something to send, and somebody to send it to.
    fn send_next(&mut self) {
        while self.send_group() {}
    }

    /// Sends a group; answers whether it did.
    fn send_group(&mut self) -> bool {
        let Some(session) = &self.session else { return false };
        // What is known of fields is read before a call, and has to be that still when it is carried out.
        let calls_max = if self.shared.scopes().scopes.is_empty() { REDIS_CALLS_MAX } else { 1 };
        if self.under_way.len() >= calls_max || self.waiting.is_empty() {
            return false;
        }
        let (mut events, mut bytes, mut group) = (0, 0, Vec::new());
        while let Some(next) = self.waiting.front() {
            events += next.events.len();
            bytes += next.bytes();
            let full = events > REDIS_GROUP_EVENTS_AIM
                || bytes > REDIS_GROUP_BYTES_MAX
                || group.len() == REDIS_GROUP_REQUESTS_MAX;
            if full && !group.is_empty() {
                break;
            }
            group.extend(self.waiting.pop_front());
        }
        let newest = self.shared.bounds().newest;
        for request in &mut group {
            request.again = request.tried.is_some();
            request.tried.get_or_insert_with(|| (session.epoch.clone(), newest));
        }
        let group = Arc::new(group);
        self.calls.push_back(send(Arc::clone(&self.shared), session.clone(), Arc::clone(&group)).boxed());
        self.under_way.push_back(group);
        true
    }

    /// Takes the answer to the first of the calls that were under way.
    fn done(&mut self, done: Result<Vec<Outcome>, BackendError>) {
        let Some(group) = self.under_way.pop_front() else { return };
        let requests = Arc::into_inner(group).expect("the call that shared it has ended");
        let outcomes = match done {
            Ok(outcomes) => outcomes,
            Err(error) => return self.failed(requests, error),
        };
        let mut again = Vec::new();
        for (mut request, outcome) in requests.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Placed { placed, epoch } => {
                    let newest = placed.iter().map(|one| one.position).max().unwrap_or_default();
                    let answer = request.answer(&placed);
                    self.placed.push_back(Placed { request, answer, epoch, newest });
                }
                Outcome::Refused(error) => request.finish(Err(error)),
                _ if request.turns >= REDIS_TURNS_MAX => {
                    let detail = "an append met other values in the log each time that it was sent";
                    request.finish(Err(remote(RemoteFault::Timeout, detail).into()));
                }
                outcome => {
                    request.turns += 1;
                    // It was not carried out.
                    request.tried = None;
                    match outcome {
                        Outcome::Spelled { event, hash } => request.events[event].hash = hash,
                        Outcome::Moved { known } => {
                            request.known.iter_mut().zip(known).for_each(|(is, known)| *is |= known);
                        }
                        _ => {}
                    }
                    again.push(request);
                }
            }
        }
        self.put_back(again);
        self.settle();
    }

    /// The call failed as a whole.
    fn failed(&mut self, requests: Vec<Request>, error: BackendError) {
        if !ends_session(&error) {
            // The server has refused it, and a script is refused before it has written anything.
            for request in requests {
                request.finish(Err(error.clone().into()));
            }
            return;
        }
        if let Some(session) = self.session.take() {
            self.shared.failed(&session, &error);
        }
        // The calls behind it went the same way. What has had its time is told why, and not sent again.
        let now = Instant::now();
        let requests = requests.into_iter().chain(self.take_back());
        let (late, again): (Vec<_>, Vec<_>) = requests.partition(|request| request.deadline <= now);
        for request in late {
            request.finish(Err(error.clone().into()));
        }
        self.put_back(again);
    }

    /// Another session, or none: what was sent and not seen has to be sent again.
    fn begin(&mut self, session: Option<Session>) {
        let same = matches!((&self.session, &session), (Some(old), Some(new)) if old.number == new.number);
        if same {
            return;
        }
        self.settle();
        let mut again: Vec<Request> = self.placed.drain(..).map(|placed| placed.request).collect();
        again.extend(self.take_back());
        for request in again.iter_mut().chain(&mut self.waiting) {
            // In another life of the log it is not.
            request.known.fill(false);
        }
        counter!(names::REDIS_REPEATED_APPENDS).increment(again.len() as u64);
        self.session = session;
        self.put_back(again);
    }

    /// Takes what the calls that are under way carry; they end.
    fn take_back(&mut self) -> Vec<Request> {
        self.calls = Calls::new();
        let groups = self.under_way.drain(..);
        groups.flat_map(|group| Arc::into_inner(group).expect("the call that shared it has ended")).collect()
    }

    fn put_back(&mut self, requests: Vec<Request>) {
        for request in requests.into_iter().rev() {
            self.waiting.push_front(request);
        }
    }

    /// Answers what has become visible.
    fn settle(&mut self) {
        let published = self.shared.published.borrow().clone();
        let mut again = Vec::new();
        while let Some(first) = self.placed.front() {
            let foreign = first.epoch != published.epoch;
            if !foreign && first.newest > published.newest {
                break;
            }
            let Some(Placed { request, answer, .. }) = self.placed.pop_front() else { break };
            if foreign {
                again.push(request);
            } else {
                request.finish(Ok(answer));
            }
        }
        self.put_back(again);
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let problem = self.shared.late("appending: not durable within append_wait_ms_max");
        let due = |request: &Request| request.deadline <= now;
        if self.waiting.iter().any(due) {
            for request in std::mem::take(&mut self.waiting) {
                if due(&request) {
                    request.finish(Err(problem.clone().into()));
                } else {
                    self.waiting.push_back(request);
                }
            }
        }
        if self.placed.iter().any(|placed| due(&placed.request)) {
            for placed in std::mem::take(&mut self.placed) {
                if due(&placed.request) {
                    placed.request.finish(Err(StreamError::Backend(problem.clone())));
                } else {
                    self.placed.push_back(placed);
                }
            }
        }
    }
}
