//! Request bodies under bounds: declared length, bytes seen, and silence.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::problem::Problem;
use crate::limits::{LINGER_BYTES_MAX, LINGER_WAIT};

/// A bound on a body, by name.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimit {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
}

/// Reads a body piece by piece.
#[derive(Debug)]
pub(super) struct BodyReader {
    body: Body,
    idle: Duration,
    limit: BodyLimit,
    seen: u64,
}

impl BodyReader {
    /// Refuses a body that says it is too large before a byte of it is read,
    /// and a compressed one: it could unfold to any size.
    pub(super) fn new(
        headers: &HeaderMap,
        body: Body,
        idle: Duration,
        limit: BodyLimit,
    ) -> Result<Self, Problem> {
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(Problem::new("content_encoding_unsupported", "the body has a Content-Encoding"));
        }
        let declared = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0);
        if declared > limit.bytes {
            return Err(too_large(limit, declared));
        }
        Ok(Self { body, idle, limit, seen: 0 })
    }

    /// The next piece; none at the end. Cancel-safe. Each call waits anew.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = match tokio::time::timeout(self.idle, self.body.frame()).await {
                Err(_) => {
                    let detail = format!(
                        "nothing of the body came for {:?}; body_idle_max is {:?}",
                        self.idle, self.idle
                    );
                    return Err(Problem::new("body_idle_max", detail));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    tracing::debug!(cause = %error, "request body broke off");
                    return Err(Problem::new("body_broken", "the body ended before it was complete"));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            self.seen += data.len() as u64;
            if self.seen > self.limit.bytes {
                return Err(too_large(self.limit, self.seen));
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Gives the rest back unread.
    pub(super) fn abandon(&mut self) {
        self.body = Body::empty();
    }

    /// Takes in what a client still sends and throws it away, until it stops for a moment or has sent much: a
    /// connection that closes on unread bytes is reset, and takes the last answers with it.
    pub(super) async fn pass_over_rest(&mut self) {
        let mut left = LINGER_BYTES_MAX;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(LINGER_WAIT, self.body.frame()).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if bytes > left {
                return;
            }
            left -= bytes;
        }
    }

    /// The whole body. The buffer grows with what arrives, not with what was promised.
    pub(super) async fn whole(mut self) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await? else { return Ok(first) };
        let mut all = BytesMut::from(&first[..]);
        all.extend_from_slice(&second);
        while let Some(more) = self.next().await? {
            all.extend_from_slice(&more);
        }
        Ok(all.freeze())
    }
}

fn too_large(limit: BodyLimit, asked: u64) -> Problem {
    let BodyLimit { name, bytes } = limit;
    Problem::new(name, format!("the body has {asked} bytes or more; {name} is {bytes}"))
        .limit(name, asked, bytes)
}

/// The content type without its parameters, in lower case; empty where there is none.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .map(|text| text.trim().to_ascii_lowercase())
        .unwrap_or_default()
}

/// Refuses a content type and lists those that are taken.
pub(super) fn unsupported(found: &str, supported: &[&str]) -> Problem {
    let detail = if found.is_empty() {
        "the request has no Content-Type".to_owned()
    } else {
        format!("content type `{}` is not taken here", found.chars().take(100).collect::<String>())
    };
    Problem::new("content_type_unsupported", detail).with("supported", supported.to_vec().into())
}
