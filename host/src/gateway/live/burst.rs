//! A stream that is read in bursts: what has come is taken with one call, however little of it is asked for at a time.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::LIVE_READ_BURST_BYTES;

/// Keeps room only for what has come and was not asked for yet: none while nothing comes.
#[derive(Debug)]
pub(super) struct Burst<S> {
    stream: S,
    rest: Bytes,
    /// Not all was taken of what was written last.
    is_behind: bool,
}

impl<S> Burst<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, rest: Bytes::new(), is_behind: false }
    }

    /// Whether the stream did not take all of what was to be written to it last: the rest lies with whoever wrote that.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Burst<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            if buffer.remaining() >= LIVE_READ_BURST_BYTES {
                return Pin::new(&mut self.stream).poll_read(context, buffer);
            }
            let mut room = [MaybeUninit::uninit(); LIVE_READ_BURST_BYTES];
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            let (asked, rest) = read.filled().split_at(read.filled().len().min(buffer.remaining()));
            buffer.put_slice(asked);
            if !rest.is_empty() {
                self.rest = Bytes::copy_from_slice(rest);
            }
            return Poll::Ready(Ok(()));
        }
        let asked = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..asked]);
        self.rest.advance(asked);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Burst<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.is_behind = !matches!(wrote, Poll::Ready(Ok(count)) if count == bytes.len());
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Gives so many bytes at a time, and counts how often it was asked.
    struct Source {
        left: Vec<u8>,
        at_once: usize,
        reads: usize,
    }

    impl AsyncRead for Source {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            let count = self.left.len().min(self.at_once).min(buffer.remaining());
            let given: Vec<_> = self.left.drain(..count).collect();
            buffer.put_slice(&given);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_comes_is_the_same_whatever_is_asked_for_at_a_time() {
        let all: Vec<u8> = (0..3 * LIVE_READ_BURST_BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for (asked, at_once) in [(1, 7), (100, 1_000), (128, usize::MAX), (2 * LIVE_READ_BURST_BYTES, 5_000)]
        {
            let mut burst = Burst::new(Source { left: all.clone(), at_once, reads: 0 });
            let mut came = Vec::new();
            let mut room = vec![0; asked];
            loop {
                let count = burst.read(&mut room).await.unwrap();
                if count == 0 {
                    break;
                }
                came.extend_from_slice(&room[..count]);
            }
            assert!(came == all, "{asked} of {at_once}");
        }
    }

    #[tokio::test]
    async fn small_reads_of_what_has_come_together_cost_one() {
        let left = vec![1; LIVE_READ_BURST_BYTES];
        let mut burst = Burst::new(Source { left, at_once: usize::MAX, reads: 0 });
        let mut room = [0; 128];
        for _ in 0..LIVE_READ_BURST_BYTES / room.len() {
            burst.read_exact(&mut room).await.unwrap();
        }
        assert_eq!(burst.stream.reads, 1);
        // What was taken is let go.
        assert_eq!(burst.rest, Bytes::new());
        assert_eq!(burst.read(&mut room).await.unwrap(), 0);
    }
}
