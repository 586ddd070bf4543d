//! `GET /v1/channels/ws`: any number of channels over one WebSocket.
//!
//! Promises: what a subscription is sent has neither hole nor repeat, replay included, and never more entries than it has
//! credit; whoever reads slowly is read from slowly, and what is held for it is bounded whatever its channels hold; one
//! subscription that is slow, without credit or failing holds up no other one of the socket; every subscription that ends
//! is told so, with a reason and the place to go on from, and every socket that the host ends has a last message with a
//! code. Appends reach the store in the order in which they were sent, many of them under way at once, and none is refused for
//! their number: a client that sends more than the store takes is read from more slowly.
//!
//! What has come together is obeyed together, in its order, and what comes of it goes out in one write.
//!
//! `serving` is the task of a socket, `follows` its subscriptions, `appends` its appends, `refusals` what an `end` must know
//! of them, `commands` and `binary` what clients say, `out` what they are sent.

mod appends;
mod binary;
mod commands;
mod follows;
mod meter;
mod out;
mod refusals;
mod serving;
mod work;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use self::serving::{SocketOptions, serve};
use super::append::body_limit;
use crate::channels::ChannelLimits;
use crate::gateway::Edge;
use crate::gateway::auth::{Caller, Right, Somebody};
use crate::gateway::live::{Framed, until_ended};
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;
use crate::gateway::websocket::{Opened, upgrade};
use crate::limits::CHANNEL_ENTRY_EXTRA_BYTES;

/// Channels over a WebSocket: many subscriptions and appends, of any of the tenant's processes.
///
/// Text messages are JSON objects with an `op`. A client says
///
/// - `{"op":"subscribe","id","process","channel","after","credit","as","binary"}`: follows a channel after a cursor, which is
///   a text, or after a position, a number; from the beginning where it is left out. A cursor of an earlier process of the
///   same name is refused with `cursor_foreign`, where a position would leave out entries of the new one without a word.
///   The `id` is the client's, up to 64 bytes. At most `credit` entries are sent, 256 where it is left out, and then more
///   as there is more credit;
/// - `{"op":"credit","id","add"}`: so many more entries;
/// - `{"op":"unsubscribe","id"}`;
/// - `{"op":"append","ref","process","channel","as","epoch"}` with `entries`, an array, or with the members of one entry as
///   `POST …/entries` takes them. The `ref`, a whole number or up to 64 bytes of text, is the client's. Any number may be
///   sent without waiting for answers: 256 are under way in the log at once, and while 1,024 are not answered, or 16 MiB,
///   the host reads nothing more from the socket. They reach the log in the order in which they were sent, and answers to
///   one sender in one channel come in that order. An append that was not answered when the socket ended may have been
///   done; sent again under its sequence, it is there once. One that is refused stops none behind it but an `end` or `error`
///   of the same sender that has no sequence: that waits until those before it are answered, and is refused with
///   `channel_end_after_refusal` if one of them was. Repeated, it closes the half all the same. With sequences nobody waits,
///   and what is missing is a gap;
/// - `{"op":"ping","nonce"}`, which is answered by a `heartbeat` with the same nonce.
///
/// The host says
///
/// - `ready` with `id`, `number`, `role`, `after`, `cursor`, `oldest` and `newest`: what comes up to `newest` is replay;
/// - `entries` with `id`, `entries`, as `GET …/entries` shows them, in the order of their positions, each once, and the
///   `cursor` behind the last of them;
/// - `lagged` with `id`, `resume_at`, `cursor`, `missed` and `behind`: so many entries were dropped by the channel before they
///   could be sent (often 0: then the follower is only far behind), and it goes on at `resume_at`;
/// - `closed` with `id`, `reason`, `last`, a position, and its `cursor`: the last message of a subscription. Reasons are
///   `ended`, `success`, `failed`, `cancelled`, `removed`, `revoked`, `unsubscribed`, and `interrupted` behind an `error` of
///   the host. To go on, after this or on another socket, subscribe after the last `cursor`;
/// - `appended` with `ref` and `appended`: `position`, `sequence`, `epoch` and `repeated` of each entry;
/// - `error` with the `id` or `ref` that it is about, the members of a problem, and at times `retry_ms`. The socket goes on;
/// - `heartbeat` after some silence, along with a ping of the protocol below;
/// - `closing` with `code`, `detail`, `fix` and `retry_ms`, last of all: the host stops, the credential is over, or a message
///   was too large or no message at all.
///
/// With `"binary":true` entries come as binary messages, one each, and an append may be one too. Numbers are big-endian. An
/// entry: version 1 (1 byte), the `number` of the subscription (4), flags (1), position (8), epoch (4), sequence (8), the
/// sequence that it answers or 0 (8), microseconds since 1970 (8, signed), length (2) and text of the sender, length (2) and
/// text of the error, the payload. An append: version 1 (1), `ref` (8), flags (1), epoch (4), sequence or 0 for the next one
/// (8), the sequence that it answers or 0 (8), length (1) and name of the process, length (1) and name of the channel, length
/// (2) and name of the party as `as` (empty: nobody), length (2) and text of the error, the payload. Flags: the lowest two bits
/// are the type (0 `data`, 1 `end`, 2 `error`), 4 says that there is a payload, 8 that an entry has an error, 16 that the
/// epoch of an append counts. The cursor behind a binary entry is that of `ready` with the entry's position behind the dot.
///
/// Subscribing needs the right `read`, appending `publish`, and `as` the right `admin`.
#[utoipa::path(
    get,
    path = "/v1/channels/ws",
    tag = "channels",
    responses((status = 101, description = "A WebSocket"))
)]
pub(in crate::gateway) async fn open(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    params: Params,
    mut request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    if !caller.may(Right::Publish) {
        caller.needs(Right::Read)?;
    }
    upgrade(&edge, &mut request, None, move |edge, opened| attend(edge, caller, opened))
}

async fn attend(edge: Arc<Edge>, caller: Caller, Opened { stream, early, place: _place }: Opened) {
    let router = edge.services.channels.clone();
    let options = SocketOptions {
        heartbeat: edge.options.sse_heartbeat,
        write_wait_max: edge.options.write_wait_max,
        first_command_wait_max: edge.options.live_first_command_wait_max,
        message_bytes_max: message_bytes_max(router.limits()),
    };
    let mut conn = Framed::server(stream, early, options.message_bytes_max).await;
    let until = until_ended(&caller, &edge);
    tokio::select! {
        end = serve(router, caller, &mut conn, &options, until) => {
            tracing::debug!(end = ?end, "socket of channels ended");
        }
        () = edge.hard.cancelled() => {}
    }
}

/// Any append over HTTP fits, with what stands in its address there.
fn message_bytes_max(limits: &ChannelLimits) -> usize {
    let entries = usize::try_from(body_limit(limits).bytes).unwrap_or(usize::MAX);
    entries.saturating_add(8 * CHANNEL_ENTRY_EXTRA_BYTES)
}
