//! Connections that are taken over: an answer that goes on for hours is written to the bare socket.
//!
//! A connection of HTTP keeps buffers for the next request and the next answer. A stream of events has neither, and
//! there are tens of thousands of them. So its handler answers with a head and a [`TakeOver`]; the head passes
//! everything that any answer passes, and is then the first thing that is written to a [`RawStream`].

use std::fmt;
use std::io::{self, IoSlice, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Response, Version};
use futures_util::future::{BoxFuture, poll_fn};
use jiff::Timestamp;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::serve::LINGER_MAX;

const INFALLIBLE: &str = "writing to memory cannot fail";

type Serve = Box<dyn FnOnce(RawStream) -> BoxFuture<'static, ()> + Send>;

/// An extension of a response: what serves the connection from here on, instead of a body. An answer to `HEAD`
/// drops it.
#[derive(Clone)]
pub(super) struct TakeOver(Arc<Mutex<Option<Serve>>>);

impl TakeOver {
    pub(super) fn new(serve: impl FnOnce(RawStream) -> BoxFuture<'static, ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(serve)))))
    }

    /// What is to be done with the connection; none if it was done already.
    pub(super) fn rest(self, stream: RawStream) -> Option<BoxFuture<'static, ()>> {
        let serve = locked(&self.0).take()?;
        Some(serve(stream))
    }
}

impl fmt::Debug for TakeOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakeOver").finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic happens under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connection's service leaves an answer that takes it over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    given: Mutex<Option<(Head, TakeOver)>>,
    news: Notify,
    /// Bytes of an earlier answer wait for the client to take them.
    behind: AtomicBool,
    caught_up: Notify,
}

impl Handover {
    /// Gives the connection away, once all earlier answers are written. It never answers: nothing polls it then.
    pub(super) async fn give<T>(&self, head: Head, take_over: TakeOver) -> T {
        while self.behind.load(Ordering::Acquire) {
            self.caught_up.notified().await;
        }
        *locked(&self.given) = Some((head, take_over));
        self.news.notify_one();
        std::future::pending().await
    }

    /// What takes the connection over.
    pub(super) async fn taken(&self) -> (Head, TakeOver) {
        loop {
            if let Some(given) = locked(&self.given).take() {
                return given;
            }
            self.news.notified().await;
        }
    }

    pub(super) fn set_behind(&self, behind: bool) {
        if self.behind.swap(behind, Ordering::AcqRel) && !behind {
            self.caught_up.notify_one();
        }
    }
}

/// The head of an answer without a length.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    /// HTTP/1.0 has no chunks: there the end of the connection is the end of the answer.
    chunked: bool,
}

impl Head {
    pub(super) fn of<B>(response: &Response<B>, version: Version) -> Self {
        let chunked = version >= Version::HTTP_11;
        let mut bytes = Vec::with_capacity(1 << 10);
        let status = response.status();
        let reason = status.canonical_reason().unwrap_or_default();
        write!(bytes, "HTTP/1.{} {} {reason}\r\n", u8::from(chunked), status.as_u16()).expect(INFALLIBLE);
        for (name, value) in response.headers() {
            if name != axum::http::header::CONTENT_LENGTH {
                bytes.extend_from_slice(name.as_str().as_bytes());
                bytes.extend_from_slice(b": ");
                bytes.extend_from_slice(value.as_bytes());
                bytes.extend_from_slice(b"\r\n");
            }
        }
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        write!(bytes, "date: {date}\r\n").expect(INFALLIBLE);
        bytes.extend_from_slice(if chunked {
            b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        } else {
            b"connection: close\r\n\r\n"
        });
        Self { bytes, chunked }
    }
}

/// A client's socket, and an answer under way on it.
#[derive(Debug)]
pub(super) struct RawStream {
    stream: TcpStream,
    /// Goes out with the first bytes.
    head: Mutex<Vec<u8>>,
    chunked: bool,
}

impl RawStream {
    pub(super) fn new(stream: TcpStream, head: Head) -> Self {
        Self { stream, head: Mutex::new(head.bytes), chunked: head.chunked }
    }

    /// Writes more of the answer, in one go where the socket takes it. Fails when the client takes nothing for
    /// `within`. What is dropped unfinished must not be followed by anything.
    pub(super) async fn write(&self, bytes: &[u8], within: Duration) -> io::Result<()> {
        let head = std::mem::take(&mut *locked(&self.head));
        let (size, end) = if self.chunked {
            (format!("{:x}\r\n", bytes.len()), b"\r\n".as_slice())
        } else {
            (String::new(), b"".as_slice())
        };
        let mut slices = [&head, size.as_bytes(), bytes, end].map(IoSlice::new);
        self.write_all(&mut slices, within).await
    }

    async fn write_all(&self, mut slices: &mut [IoSlice<'_>], within: Duration) -> io::Result<()> {
        // Leaves out slices that are empty.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.try_write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = poll_fn(|context| self.stream.poll_write_ready(context));
                    Box::pin(tokio::time::timeout(within, writable))
                        .await
                        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// When the client has closed its side. What it says meanwhile is thrown away.
    pub(super) async fn gone(&self) {
        // Not `readable()`: this also takes the place of the task that served the connection before, which would
        // be kept in memory as the one to wake.
        while poll_fn(|context| self.stream.poll_read_ready(context)).await.is_ok() {
            let mut unread = [0; 1 << 10];
            match self.stream.try_read(&mut unread) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }

    /// Ends the answer, and waits a moment for the client: closing with unread bytes would reset the connection,
    /// and the last words with it.
    pub(super) async fn finish(mut self, stopping: &CancellationToken) {
        let end: &[u8] = if self.chunked { b"0\r\n\r\n" } else { b"" };
        let said = async {
            self.write_all(&mut [IoSlice::new(end)], LINGER_MAX).await?;
            self.stream.shutdown().await
        };
        if said.await.is_ok() {
            tokio::select! {
                () = self.gone() => {}
                () = tokio::time::sleep(LINGER_MAX) => {}
                () = stopping.cancelled() => {}
            }
        }
    }
}
