//! Bodies of calls: one that comes is bounded in its silence, and one that goes out says that its call is under way, and
//! goes in pieces, so that it is known how much of it is taken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;

use super::calls::Room;
use super::taking::Taking;
use crate::limits::GRPC_PIECE_BYTES_MAX;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Polled<E> = Poll<Option<Result<Frame<Bytes>, E>>>;

/// What a client sends. However long it takes, something must come now and then.
#[derive(Debug)]
pub(super) struct Asking<B> {
    body: B,
    idle_max: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl<B> Asking<B> {
    pub(super) fn new(body: B, idle_max: Duration) -> Self {
        Self { body, idle_max, deadline: Box::pin(tokio::time::sleep(idle_max)) }
    }
}

impl<B> HttpBody for Asking<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled<BoxError> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let later = Instant::now() + self.idle_max;
            self.deadline.as_mut().reset(later);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.deadline.as_mut().poll(context));
        let status = Status::deadline_exceeded(format!(
            "nothing of the call came for {:?}; body_idle_max is {:?}",
            self.idle_max, self.idle_max
        ));
        Poll::Ready(Some(Err(status.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a client is answered. The call is over when this is dropped.
#[derive(Debug)]
pub(super) struct Answering {
    body: Body,
    /// What was made and not handed over yet.
    rest: Bytes,
    taking: Arc<Taking>,
    wait_max: Duration,
    _call: (TaskTrackerToken, Room),
}

impl Answering {
    /// The answer of the call that runs here. A stream, which has no room here, ends itself in the same time, and its client
    /// may still take what was written before, and hear of the end, for as long again.
    pub(super) fn new(body: Body, call: (TaskTrackerToken, Room), wait_max: Duration) -> Self {
        let wait_max = if call.1.is_some() { wait_max } else { wait_max.saturating_mul(2) };
        let taking = Taking::here();
        if !body.is_end_stream() {
            // Whoever sends it may look for room before it asks for anything.
            taking.waits(wait_max);
        }
        Self { body, rest: Bytes::new(), taking, wait_max, _call: call }
    }

    /// The last byte goes alone: there is room for it only when all before it has gone, and then nothing of what was made
    /// stays behind in the connection.
    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = match self.rest.len() {
            len @ (0 | 1) => len,
            len => (len - 1).min(GRPC_PIECE_BYTES_MAX),
        };
        Frame::data(self.rest.split_to(bytes))
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled<Status> {
        // Nobody asks before the piece of before has gone.
        self.taking.goes_on();
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let piece = self.piece();
        self.taking.waits(self.wait_max);
        Poll::Ready(Some(Ok(piece)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::StreamExt as _;
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::timeout;

    use super::*;
    use crate::gateway::grpc::taking::bounded;

    #[tokio::test]
    async fn a_body_may_take_long_as_long_as_something_comes() {
        let piece = || Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"piece")));
        let pieces = stream::iter([piece(), piece()]).chain(stream::pending());
        let mut body = Asking::new(StreamBody::new(pieces.boxed()), Duration::from_millis(50));
        let mut deadline = body.deadline.deadline();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            body.frame().await.unwrap().unwrap();
            assert!(body.deadline.deadline() > deadline, "each piece gives it as long again");
            deadline = body.deadline.deadline();
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("body_idle_max"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_goes_in_pieces_of_which_the_last_is_one_byte() {
        let whole = Bytes::from(vec![7; 2 * GRPC_PIECE_BYTES_MAX + 10]);
        let frames =
            stream::iter([Ok::<_, Status>(Frame::data(whole.clone())), Ok(Frame::data(Bytes::new()))]);
        let tracker = tokio_util::task::TaskTracker::new();
        let body = Body::new(StreamBody::new(frames));
        let mut answer = Answering::new(body, (tracker.token(), None), Duration::from_secs(1));
        let (mut sizes, mut bytes) = (Vec::new(), Vec::new());
        while let Some(frame) = answer.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            sizes.push(data.len());
            bytes.extend_from_slice(&data);
        }
        assert_eq!(sizes, [GRPC_PIECE_BYTES_MAX, GRPC_PIECE_BYTES_MAX, 9, 1, 0]);
        assert_eq!(bytes, whole);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_asks_for_is_given_up_too() {
        let tracker = tokio_util::task::TaskTracker::new();
        let call = (tracker.token(), None);
        let wait_max = Duration::from_millis(1);
        let unasked = async {
            let frames = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"answer")))]);
            let _answer = Answering::new(Body::new(StreamBody::new(frames)), call, wait_max);
            pending::<()>().await;
        };
        timeout(Duration::from_secs(60), bounded(unasked, wait_max)).await.expect("its time is over");
        assert!(tracker.is_empty());
    }
}
