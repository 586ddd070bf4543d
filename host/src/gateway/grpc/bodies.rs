//! Bodies of calls: one that comes is bounded in its silence, and one that goes out says that its call is under way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;

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
    _call: TaskTrackerToken,
}

impl Answering {
    pub(super) fn new(body: Body, call: TaskTrackerToken) -> Self {
        Self { body, _call: call }
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled<Status> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

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
}
