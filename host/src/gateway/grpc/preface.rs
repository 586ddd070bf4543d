//! The first bytes of a connection, which every client of HTTP/2 sends at once.
//!
//! They are read before anything else begins: whoever says nothing, or something else, holds a place for a bounded time only
//! and holds up no stop.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that has said it, and says it again to whom it is given.
#[derive(Debug)]
pub(super) struct Prefaced<S> {
    stream: S,
    unread: &'static [u8],
}

impl<S: AsyncRead + Unpin> Prefaced<S> {
    /// Waits for it. None for a client that speaks otherwise, or goes away.
    pub(super) async fn of(mut stream: S) -> Option<Self> {
        let mut said = [0; PREFACE.len()];
        stream.read_exact(&mut said).await.ok()?;
        (said == PREFACE).then_some(Self { stream, unread: PREFACE })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let (now, later) = self.unread.split_at(self.unread.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.unread = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        let (mut client, server) = tokio::io::duplex(100);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(b"more").await.unwrap();
        drop(client);
        let mut prefaced = Prefaced::of(server).await.unwrap();
        let mut read = [0; 5];
        prefaced.read_exact(&mut read).await.unwrap();
        let mut rest = Vec::new();
        prefaced.read_to_end(&mut rest).await.unwrap();
        assert_eq!([&read[..], &rest].concat(), [PREFACE, b"more"].concat());
    }

    #[tokio::test]
    async fn other_first_bytes_are_none_of_ours() {
        for said in ["GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "PRI * HTTP/2.0", ""] {
            let (mut client, server) = tokio::io::duplex(100);
            client.write_all(said.as_bytes()).await.unwrap();
            drop(client);
            assert!(Prefaced::of(server).await.is_none(), "{said}");
        }
    }
}
