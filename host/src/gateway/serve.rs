//! Connections: accepting, bounds on each, and ending them under a deadline.
//!
//! A head that cannot be read or is too large never becomes a request: hyper
//! answers it with an empty 400 or 431 and closes. These two are the only
//! answers without a problem; they are not counted either.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Request, header};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::Edge;
use super::handover::{Handover, Head};
pub(super) use super::handover::{RawStream, TakeOver};
use super::metrics::{self, Living};
use super::problem::Problem;
use crate::limits::HEADER_BYTES_MAX;

/// Connections over the limit that are told so at once; further ones are closed without a word.
const REFUSALS_AT_ONCE: usize = 64;
/// What a refused connection may cost.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long what a client still sends is thrown away after the last answer, so
/// that a client in the middle of an upload can read why it was refused.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(1);
/// The wait after a failed accept: out of file descriptors passes only when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until cancelled, then lets requests finish within the drain time.
pub(super) async fn serve(edge: Arc<Edge>, listener: TcpListener, router: Router, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(edge.options.connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_AT_ONCE));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error.kind = "accept_failed", error.blame = "host", cause = %error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (edge, router) = (Arc::clone(&edge), router.clone());
            edge.tasks.clone().spawn(async move {
                let place = ConnectionPlace(Arc::new((place, Living::connection())));
                connection(&edge, stream, router, place).await;
            });
        } else {
            metrics::connection_refused();
            if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                let max = edge.options.connections_max;
                edge.tasks.spawn(async move {
                    // A client that does not take the refusal is closed all the same.
                    let _ = tokio::time::timeout(REFUSAL_WAIT_MAX, refuse(stream, max)).await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    edge.stopping.cancel();
    edge.tasks.close();
    if tokio::time::timeout(edge.options.drain_max, edge.tasks.wait()).await.is_err() {
        tracing::warn!(
            error.kind = "drain_ended",
            error.blame = "host",
            open = edge.tasks.len(),
            "requests were cut at the end of the drain time"
        );
        edge.hard.cancel();
        edge.tasks.wait().await;
    }
}

async fn connection(edge: &Edge, stream: TcpStream, router: Router, place: ConnectionPlace) {
    // Answers go out as soon as they are there. Without it they only go out later.
    let _ = stream.set_nodelay(true);
    // What is sent to a client that vanished without a word is acknowledged by nobody: then the system ends the
    // connection in this time, and not in its own quarter of an hour. Heartbeats see to it that something is sent.
    // Without it such a client only stays longer.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(edge.options.write_wait_max));
    let handover = Arc::new(Handover::default());
    let io = WriteBound {
        handover: Some(Arc::clone(&handover)),
        ..WriteBound::new(stream, edge.options.write_wait_max, edge.stopping.clone())
    };
    let placed = Placed {
        inner: TowerToHyperService::new(router),
        place: place.clone(),
        handover: Arc::clone(&handover),
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(edge.options.header_wait_max)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(io), placed)
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            taken = handover.taken() => {
                let Some(parts) = Pin::into_inner(connection).into_parts() else { return };
                let (stream, (head, take_over)) = (parts.io.into_inner().stream, taken);
                if let Some(rest) = take_over.rest(RawStream::new(stream, head)) {
                    edge.tasks.spawn(async move {
                        rest.await;
                        drop(place);
                    });
                }
                return;
            }
            () = edge.stopping.cancelled(), if !draining => {
                connection.as_mut().graceful_shutdown();
                draining = true;
            }
            () = edge.hard.cancelled(), if draining => return,
        }
    };
    if let Err(error) = ended {
        tracing::debug!(cause = %error, "connection ended");
    }
}

/// A connection's place among `connections_max`. Who takes the connection over takes a share of it along.
#[derive(Clone, Debug)]
pub(super) struct ConnectionPlace(#[expect(dead_code, reason = "held")] Arc<(OwnedSemaphorePermit, Living)>);

/// Gives requests that may take the connection over its place, and hands it over to answers that ask for it.
struct Placed {
    inner: TowerToHyperService<Router>,
    place: ConnectionPlace,
    handover: Arc<Handover>,
}

impl Service<Request<Incoming>> for Placed {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(self.place.clone());
        }
        let (is_head, version) = (request.method() == Method::HEAD, request.version());
        let (answer, handover) = (self.inner.call(request), Arc::clone(&self.handover));
        async move {
            let mut response = answer.await?;
            match response.extensions_mut().remove::<TakeOver>() {
                Some(take_over) if !is_head => {
                    let head = Head::of(&response, version);
                    drop(response);
                    handover.give(head, take_over).await
                }
                _ => Ok(response),
            }
        }
        .boxed()
    }
}

async fn refuse(mut stream: TcpStream, max: usize) -> io::Result<()> {
    let detail = format!("{max} connections are open; connections_max is {max}");
    let problem =
        Problem::new("connections_max", detail).limit("connections_max", max as u64 + 1, max as u64);
    let body = problem.to_json().to_string();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
         Content-Length: {}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection, and the answer with it.
    let mut unread = [0; 4 << 10];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// A stream whose client must take something now and then: a write that makes
/// no progress for the bound fails, and with it the connection.
#[derive(Debug)]
pub struct WriteBound {
    stream: TcpStream,
    wait_max: Duration,
    /// There while the client takes nothing, and while lingering.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Everything is sent; the rest of what comes is thrown away.
    lingering: bool,
    stopping: CancellationToken,
    /// None once the connection is no longer one of HTTP.
    handover: Option<Arc<Handover>>,
}

impl WriteBound {
    /// `stopping` ends the wait for what a client still sends after the last answer.
    pub fn new(stream: TcpStream, wait_max: Duration, stopping: CancellationToken) -> Self {
        Self { stream, wait_max, deadline: None, lingering: false, stopping, handover: None }
    }

    /// Of a connection that was taken over.
    pub(super) fn taken_over(self) -> Self {
        Self { handover: None, ..self }
    }

    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if let Some(handover) = &self.handover {
            handover.set_behind(written.is_pending());
        }
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let wait_max = self.wait_max;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait_max)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for WriteBound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteBound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.lingering {
            std::task::ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.lingering = true;
            self.deadline = Some(Box::pin(tokio::time::sleep(LINGER_MAX)));
        }
        loop {
            let late = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(context).is_ready();
            if self.stopping.is_cancelled() || self.deadline.as_mut().is_none_or(late) {
                return Poll::Ready(Ok(()));
            }
            let mut unread = [0; 16 << 10];
            let mut buffer = ReadBuf::new(&mut unread);
            match std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // It is closed on the other side too, in one way or another.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
