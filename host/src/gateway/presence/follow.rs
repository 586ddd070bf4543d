//! One follower of a room, as server-sent events.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::views::{MemberView, RosterView, opaque};
use crate::gateway::Edge;
use crate::gateway::auth::Caller;
use crate::gateway::metrics::{self, Living};
use crate::gateway::problem::Problem;
use crate::presence::{Change, MemberName, Notice, RoomId, What};

/// Lives inside of its response's body and ends with it.
pub(super) struct Follower {
    edge: Arc<Edge>,
    caller: Caller,
    room: RoomId,
    follower: crate::presence::Follower,
    phase: Phase,
    _living: Living,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first roster was not sent yet: `ready` comes behind it.
    Begin,
    Follow,
    End,
}

impl Follower {
    pub(super) fn new(
        edge: Arc<Edge>,
        caller: Caller,
        room: RoomId,
        follower: crate::presence::Follower,
    ) -> Self {
        Self { edge, caller, room, follower, phase: Phase::Begin, _living: Living::sse_client() }
    }

    pub(super) fn answer(self) -> Response {
        let stream = unfold(Box::new(self), |mut follower| async move {
            let chunk = follower.next().await?;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), follower))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // A proxy that buffers would hold events back.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(stream)).into_response()
    }

    /// The next piece of text; none when the stream is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.phase == Phase::End {
            return None;
        }
        if self.edge.stopping.is_cancelled() {
            return Some(self.closing());
        }
        if let Err(problem) = self.caller.valid.check() {
            return Some(self.error(&problem));
        }
        let stopping = self.edge.stopping.clone();
        let ended = self.caller.valid.clone();
        // Each arm that is dropped loses nothing: the follower keeps what was not taken.
        tokio::select! {
            notice = self.follower.next() => Some(match notice {
                Ok(notice) => self.write(&notice),
                Err(error) => self.error(&error.into()),
            }),
            () = stopping.cancelled() => Some(self.closing()),
            problem = ended.ended() => Some(self.error(&problem)),
            () = tokio::time::sleep(self.edge.options.sse_heartbeat) => Some(b": \n\n".to_vec()),
        }
    }

    fn write(&mut self, notice: &Notice) -> Vec<u8> {
        match notice {
            Notice::Change(change) => changed(change),
            Notice::Gap(cause) => {
                metrics::problem(cause.code(), 1);
                text("gap", &json!({ "code": cause.code() }))
            }
            Notice::Roster(roster) => {
                let mut out = Vec::new();
                let begins = std::mem::replace(&mut self.phase, Phase::Follow) == Phase::Begin;
                if begins {
                    out.extend_from_slice(b"retry: 1000\n");
                }
                out.extend_from_slice(&text("roster", &RosterView::of(&self.room, roster)));
                if begins {
                    out.extend_from_slice(&text("ready", &json!({ "sequence": roster.sequence })));
                }
                out
            }
        }
    }

    /// Says why it is the end.
    fn error(&mut self, problem: &Problem) -> Vec<u8> {
        self.phase = Phase::End;
        metrics::problem(problem.code(), 1);
        text("error", &problem.to_json())
    }

    fn closing(&mut self) -> Vec<u8> {
        self.phase = Phase::End;
        text("closing", &json!({ "code": "host_stopping" }))
    }
}

fn changed(Change { sequence, what }: &Change) -> Vec<u8> {
    let sequence = *sequence;
    match what {
        What::Joined(member) => {
            let MemberView { member, joined_at, state } = MemberView::of(member);
            text("join", &Joined { sequence, member, joined_at, state })
        }
        What::Updated { member, state } => {
            text("update", &Updated { sequence, member: member.as_str(), state: opaque(state) })
        }
        What::Left { member, reason } => {
            text("leave", &Left { sequence, member: member.as_str(), reason: reason.as_str() })
        }
        What::Said { from, payload } => {
            let from = from.as_ref().map(MemberName::as_str);
            text("message", &Said { sequence, from, payload: opaque(payload) })
        }
    }
}

#[derive(Serialize)]
struct Joined {
    sequence: u64,
    member: String,
    joined_at: String,
    state: Box<RawValue>,
}

#[derive(Serialize)]
struct Updated<'a> {
    sequence: u64,
    member: &'a str,
    state: Box<RawValue>,
}

#[derive(Serialize)]
struct Left<'a> {
    sequence: u64,
    member: &'a str,
    reason: &'static str,
}

#[derive(Serialize)]
struct Said<'a> {
    sequence: u64,
    from: Option<&'a str>,
    payload: Box<RawValue>,
}

fn text<T: Serialize>(event: &str, data: &T) -> Vec<u8> {
    let mut out = format!("event: {event}\ndata: ").into_bytes();
    serde_json::to_writer(&mut out, data).expect("what is written here has text keys only");
    out.extend_from_slice(b"\n\n");
    out
}
