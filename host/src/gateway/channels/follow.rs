//! One follower of a channel, as server-sent events.

use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::entry_json::{self, Shape};
use super::read::END;
use crate::channels::{Entry, Notice, Subscription};
use crate::event::Position;
use crate::gateway::Edge;
use crate::gateway::auth::Caller;
use crate::gateway::metrics::{self, Living};
use crate::gateway::problem::Problem;
use crate::gateway::serve::{RawStream, TakeOver};
use crate::limits::CHANNEL_FOLLOW_ENTRIES_MAX;

/// Bytes of text that are prepared at once. A slow client holds no more than this, one entry, and what it was given.
const SSE_CHUNK_BYTES: usize = 256 << 10;

/// Lives as long as its connection.
pub(super) struct Follower {
    edge: Arc<Edge>,
    caller: Caller,
    subscription: Subscription,
    shape: Shape,
    /// Why the id that the client came with means nothing here.
    gap: Option<&'static str>,
    /// What was given and is not yet sent.
    given: std::vec::IntoIter<Arc<Entry>>,
    /// The newest position at the beginning.
    replay_until: Position,
    ended: bool,
    _living: Living,
}

impl Follower {
    pub(super) fn new(
        edge: Arc<Edge>,
        caller: Caller,
        subscription: Subscription,
        shape: Shape,
        gap: Option<&'static str>,
    ) -> Self {
        Self {
            edge,
            caller,
            subscription,
            shape,
            gap,
            given: Vec::new().into_iter(),
            replay_until: Position::START,
            ended: false,
            _living: Living::sse_client(),
        }
    }

    /// There are many such streams and most are idle: each is served on its bare socket, without the buffers that come
    /// with a connection of HTTP.
    pub(super) fn answer(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // A proxy that buffers would hold events back.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        let serve = move |stream| self.serve(stream).boxed();
        (headers, Extension(TakeOver::new(serve))).into_response()
    }

    async fn serve(mut self, stream: RawStream) {
        let (hard, stopping) = (self.edge.hard.clone(), self.edge.stopping.clone());
        let within = self.edge.options.write_wait_max;
        let said = async {
            while let Some(chunk) = self.next().await {
                stream.write(&chunk, within).await?;
            }
            Ok::<_, io::Error>(())
        };
        tokio::select! {
            said = said => {
                if said.is_err() {
                    return;
                }
            }
            // Dropping the rest ends the subscription.
            () = stream.gone() => return,
            () = hard.cancelled() => return,
        }
        stream.finish(&stopping).await;
    }

    /// The next piece of text; none when the stream is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.ended {
                return None;
            }
            if self.edge.stopping.is_cancelled() {
                return Some(self.closing());
            }
            if let Err(problem) = self.caller.valid.check() {
                return Some(self.error(&problem));
            }
            let out = self.entries();
            if !out.is_empty() {
                return Some(out);
            }
            let stopping = self.edge.stopping.clone();
            let ended = self.caller.valid.ended();
            // Each arm that is dropped loses nothing: the subscription stays at its place.
            let notice = tokio::select! {
                notice = self.subscription.next(CHANNEL_FOLLOW_ENTRIES_MAX) => notice,
                () = stopping.cancelled() => return Some(self.closing()),
                problem = ended => return Some(self.error(&problem)),
                () = tokio::time::sleep(self.edge.options.sse_heartbeat) => return Some(b": \n\n".to_vec()),
            };
            match notice {
                Ok(Some(Notice::Entries(entries))) => self.given = entries.into_iter(),
                Ok(Some(notice)) => return Some(self.told(&notice)),
                Ok(None) => self.ended = true,
                Err(error) => return Some(self.error(&error.into())),
            }
        }
    }

    /// Entries that were given, as many as make a piece.
    fn entries(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < SSE_CHUNK_BYTES {
            let Some(entry) = self.given.next() else { break };
            let place = self.subscription.place(entry.position);
            out.extend_from_slice(format!("id: {place}\nevent: entry\ndata: ").as_bytes());
            match self.shape {
                Shape::Base64 => out.extend_from_slice(&entry_json::followed(&entry, self.replay_until)),
                shape => entry_json::write(&mut out, &entry, shape),
            }
            out.extend_from_slice(b"\n\n");
        }
        out
    }

    fn told(&mut self, notice: &Notice) -> Vec<u8> {
        match notice {
            Notice::Ready { after, oldest, newest } => {
                self.replay_until = *newest;
                let data = json!({ "after": after.0, "oldest": oldest.0, "newest": newest.0 });
                let place = self.subscription.place(*after).to_string();
                let mut out = b"retry: 1000\n".to_vec();
                out.extend_from_slice(&event("ready", Some(&place), &data));
                if let Some(code) = self.gap.take() {
                    metrics::problem(code, 1);
                    let data = json!({ "code": code, "position": after.0 });
                    out.extend_from_slice(&event("gap", Some(&place), &data));
                }
                out
            }
            Notice::Lagged { resume_at, missed, behind } => {
                let data = json!({ "resume_at": resume_at.0, "missed": missed, "behind": behind });
                let before = self.subscription.place(Position(resume_at.0.saturating_sub(1)));
                event("lagged", Some(&before.to_string()), &data)
            }
            Notice::Closed { reason, last } => {
                self.ended = true;
                let data = json!({ "reason": reason.as_str(), "last": last.0 });
                event("closed", Some(&format!("{}{END}", self.subscription.place(*last))), &data)
            }
            // They are written as they are sent.
            Notice::Entries(_) => Vec::new(),
        }
    }

    /// Says why it is the end.
    fn error(&mut self, problem: &Problem) -> Vec<u8> {
        self.ended = true;
        metrics::problem(problem.code(), 1);
        event("error", None, &problem.to_json())
    }

    fn closing(&mut self) -> Vec<u8> {
        self.ended = true;
        event("closing", None, &json!({ "code": "host_stopping" }))
    }
}

fn event(name: &str, id: Option<&str>, data: &Value) -> Vec<u8> {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n").into_bytes()
}
