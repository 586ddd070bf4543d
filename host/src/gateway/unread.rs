//! Requests that were answered before their body had come to its end.
//!
//! HTTP/1.1 has no way past the rest of a body but to read it, so such a connection closes after its answer. A client
//! that is not told may send its next request on it, which is then lost without an answer, and it cannot know whether that
//! was done. So a short rest is read, and the connection goes on; of a longer one the answer says `Connection: close`
//! (RFC 9112, 9.6). A body that is still read while its answer is sent, as that of an upload is, is no such body: where that
//! ends early, the connection closes without a word, since the answer's head is out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::websocket::has_token;
use crate::limits::{LINGER_WAIT, UNREAD_BYTES_MAX};

/// Reads the rest of a body that was left, or has the answer say that the connection closes.
pub(super) async fn pass_over(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Who waits to be told to send the body does not send it after this answer; and whose connection closes anyway need not
    // wait for its answer until it has.
    let headers = request.headers();
    let ends = headers.contains_key(header::EXPECT) || has_token(headers, &header::CONNECTION, "close");
    let left = Left::default();
    let watched = request.map(|body| Body::new(Watched { body: Some(body), left: left.clone() }));
    let mut response = next.run(watched).await;
    if let Some(rest) = left.take()
        && (ends || !is_passed_over(rest).await)
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the rest was short, and came.
async fn is_passed_over(mut rest: Body) -> bool {
    if rest.size_hint().lower() > UNREAD_BYTES_MAX {
        return false;
    }
    let read = async {
        let mut left = UNREAD_BYTES_MAX;
        while let Some(frame) = rest.frame().await {
            let bytes = frame.map(|frame| frame.data_ref().map_or(0, Bytes::len) as u64);
            let Some(after) = bytes.ok().and_then(|bytes| left.checked_sub(bytes)) else { return false };
            left = after;
        }
        true
    };
    tokio::time::timeout(LINGER_WAIT, read).await.unwrap_or(false)
}

/// A body that was dropped before its end.
#[derive(Clone, Debug, Default)]
struct Left(Arc<Mutex<Option<Body>>>);

impl Left {
    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that is handed back where it is dropped before its end.
#[derive(Debug)]
struct Watched {
    /// None at its end.
    body: Option<Body>,
    left: Left,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
