//! What is written ahead of the client of a stream: bounded in events and in bytes.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::limits::{GRPC_STREAM_QUEUE_BYTES_MAX, GRPC_STREAM_QUEUE_MAX};
use crate::memory_v1::EventNotification;

pub(super) type Message = Result<EventNotification, Status>;

/// The end that is written to.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    out: mpsc::Sender<(Message, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

/// Nobody takes anything any more.
#[derive(Debug)]
pub(super) struct Closed;

impl Queue {
    /// A queue, and what comes out of it.
    pub(super) fn open() -> (Self, BoxStream<'static, Message>) {
        let (out, messages) = mpsc::channel(GRPC_STREAM_QUEUE_MAX);
        let bytes = Arc::new(Semaphore::new(GRPC_STREAM_QUEUE_BYTES_MAX as usize));
        let messages = ReceiverStream::new(messages).map(|(message, _ahead)| message);
        (Self { out, bytes }, messages.boxed())
    }

    /// Waits for room, and makes the message only then: who waits holds nothing. One that is larger than the whole queue goes
    /// alone. Dropped before it answers, nothing is sent.
    pub(super) async fn send(&self, bytes: usize, message: impl FnOnce() -> Message) -> Result<(), Closed> {
        let weight = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, GRPC_STREAM_QUEUE_BYTES_MAX);
        let ahead = Arc::clone(&self.bytes).acquire_many_owned(weight).await.map_err(|_| Closed)?;
        let place = self.out.reserve().await.map_err(|_| Closed)?;
        place.send((message(), ahead));
        Ok(())
    }

    /// Waits until nobody takes anything any more.
    pub(super) async fn closed(&self) {
        self.out.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn send(queue: &Queue, bytes: usize) -> bool {
        let message = || Ok(EventNotification { data: vec![0; bytes], ..EventNotification::default() });
        queue.send(bytes, message).now_or_never().is_some_and(|sent| sent.is_ok())
    }

    #[tokio::test]
    async fn no_more_than_its_bytes_are_ahead_of_a_client() {
        let (queue, mut messages) = Queue::open();
        let half = GRPC_STREAM_QUEUE_BYTES_MAX as usize / 2;
        assert!(send(&queue, half) && send(&queue, half));
        assert!(!send(&queue, 1), "it is full");
        messages.next().await.unwrap().unwrap();
        assert!(!send(&queue, half + 1) && send(&queue, half));
        // One that is larger than all of it waits until nothing is ahead of it.
        assert!(!send(&queue, half * 10));
        messages.next().await.unwrap().unwrap();
        messages.next().await.unwrap().unwrap();
        assert!(send(&queue, half * 10) && !send(&queue, 1));
        assert_eq!(messages.next().await.unwrap().unwrap().data.len(), half * 10);
    }

    #[tokio::test]
    async fn no_more_than_its_events_are_ahead_of_a_client_and_who_left_is_known() {
        let (queue, messages) = Queue::open();
        assert!((0..GRPC_STREAM_QUEUE_MAX).all(|_| send(&queue, 1)));
        assert!(!send(&queue, 1), "it is full");
        drop(messages);
        queue.closed().await;
        queue.send(1, || Ok(EventNotification::default())).await.unwrap_err();
    }
}
