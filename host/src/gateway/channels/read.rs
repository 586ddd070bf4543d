//! Reading a channel: a page, a page that waits, or all that follows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::channel_id;
use super::entry_json::{self, Shape};
use super::follow::Follower;
use super::single::readable;
use super::views::{closed, option};
use super::who::Asker;
use crate::channels::{
    Actor, ChannelError, ChannelId, CloseReason, Entry, EntryPage, Head, Place, in_senders_order,
};
use crate::gateway::Edge;
use crate::gateway::auth::Reader;
use crate::gateway::json::{write_number, write_text};
use crate::gateway::params::{self, Asked, Params};
use crate::gateway::problem::Problem;
use crate::limits::CHANNEL_WAIT_MAX;

/// An entry of a channel.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ChannelEntryView {
    /// Its place in the channel, from 1 on without holes.
    pub position: u64,
    pub senderid: String,
    /// Of the sender.
    pub epoch: u32,
    /// Counted by the sender.
    pub sequence: u64,
    /// The sequence of another sender's entry that it answers.
    pub inreplyto: Option<u64>,
    pub timestamp: String,
    /// `data`, `end` or `error`.
    #[serde(rename = "type")]
    pub entry_type: String,
    pub error: Option<String>,
    /// Standard base64; null where there is none.
    pub payload: Option<String>,
    /// With `payload=text`, instead of `payload`, where it is UTF-8.
    pub text: Option<String>,
    /// With `payload=json`, instead of `payload`, where it is JSON.
    pub json: Option<serde_json::Value>,
}

/// A part of a channel's log.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ChannelPage {
    pub entries: Vec<ChannelEntryView>,
    /// The `after` of the next page: a cursor, which is of this process and of no other one that has its name later.
    pub next: String,
    /// The first position that can still be read, and the newest.
    pub oldest: u64,
    pub newest: u64,
    /// Entries after `after` that were dropped.
    pub missed: u64,
    /// Nothing comes after this page: `ended`, `success`, `failed` or `cancelled`; null while something may.
    pub closed: Option<String>,
}

/// The entries after a position: a page, or all that follow as server-sent events.
///
/// A page begins after `after`: a cursor, as `next` of a page and the ids of events are, or a position, the number of
/// entries that were read before. A cursor of a process that was removed is refused with `cursor_foreign` where another one
/// has its name now; a position is taken as it is, and nobody knows of which process it was. With `wait_ms` the answer waits for an
/// entry where there is none, until the channel can grow no more. `order=senders` orders the page so that each
/// sender's entries are in the order of its numbers, and an answer comes after what it answers; the log stays as it is.
///
/// With `Accept: text/event-stream` the answer begins with a `ready` event, and then has an `entry` event for each entry,
/// its id the cursor behind it. It goes on after `Last-Event-ID` (or `last_event_id`), or else after `after`. `lagged` says that
/// the follower is behind, from where it goes on, and how many entries the channel has dropped before that. `closed` is
/// the last event, with a `reason` (`ended`, `success`, `failed`, `cancelled`, `removed`, `revoked`) and the last
/// position: whoever comes back with its id while the channel is there and has grown no more is answered 204, after which
/// an EventSource stays away. `gap` says that the id of the last event means nothing here, as that of a process that was removed does, and that
/// everything follows.
/// `error` carries a problem and ends the stream, and `closing` says that the host stops.
#[utoipa::path(
    get,
    path = "/v1/processes/{process}/channels/{channel}/entries",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("channel" = String, Path, description = "The channel's name"),
        ("after" = Option<String>, Query, description = "A cursor, a position, `oldest` (the default) or `newest`"),
        ("limit" = Option<u32>, Query, description = "Entries of the page; 0, the default, is as many as fit 4 MiB"),
        ("wait_ms" = Option<u64>, Query, description = "How long to wait for an entry: 0, the default, to 30000"),
        ("order" = Option<String>, Query, description = "`log`, the default, or `senders`"),
        ("payload" = Option<String>, Query, description = "How payloads are shown: `base64`, the default, `text` or `json`; what is neither, or is JSON deeper than 120 levels, is base64 all the same"),
        ("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID, for clients that cannot set it"),
        ("as" = Option<String>, Query, description = "With `admin`: as this party would see it"),
    ),
    responses(
        (status = 200, description = "A page, or the stream", content(
            (ChannelPage = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = 204, description = "The stream's end was told before"),
    )
)]
pub(in crate::gateway) async fn read(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::take(caller, &mut params)?;
    let asked = Asked::take(&headers, &mut params)?;
    let shape = Shape::take(&mut params)?;
    let wait = params.number::<u64>("wait_ms")?;
    let order = params.take("order")?;
    params.finish()?;
    let id = channel_id(&asker.caller, &path)?;
    let by = asker.actor()?;
    if asked.follow {
        for (name, is_given) in
            [("limit", asked.limit.is_some()), ("wait_ms", wait.is_some()), ("order", order.is_some())]
        {
            if is_given {
                return Err(params::invalid(name, "is for pages, not for the stream"));
            }
        }
        return follow(edge, asker, (&id, &by), &asked, shape).await;
    }
    let by_senders = match order.as_deref() {
        None | Some("log") => false,
        Some("senders") => true,
        Some(_) => return Err(params::invalid("order", "is `log` or `senders`")),
    };
    let wait = Duration::from_millis(wait.unwrap_or(0));
    if wait > CHANNEL_WAIT_MAX {
        let possible = format!("0 to {} are possible", CHANNEL_WAIT_MAX.as_millis());
        return Err(option("wait_ms", &wait.as_millis().to_string(), &possible).into());
    }
    let after = match asked.after.as_deref().map(Start::parse).transpose()? {
        None => Place::START,
        Some(Start::At(place)) => place,
        Some(Start::Newest) => newest(&readable(&edge, &id, &by).await?),
    };
    let router = &edge.services.channels;
    let limit = asked.limit.unwrap_or(0);
    let stopping = edge.stopping.clone();
    let page = tokio::select! {
        biased;
        page = router.wait_after(&id, &by, after, limit, wait) => page?,
        problem = asker.caller.valid.ended() => return Err(problem),
        () = stopping.cancelled() => {
            return Err(Problem::new("host_stopping", "the host is stopping; nothing had come"));
        }
    };
    // Who has read all there is should know whether more can come.
    let closed = if page.next >= page.newest && closed(&page.head).is_some() {
        // Asked once more, for what has come to stay.
        let head = router.get_by_process_and_name(&id.process, &id.name).await?;
        let last = head.is_of(&page.head.process) && head.channel.newest <= page.next;
        closed(&head).filter(|_| last)
    } else {
        None
    };
    Ok(written(&page, by_senders, shape, closed))
}

/// Where a reader begins.
enum Start {
    At(Place),
    Newest,
}

impl Start {
    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "oldest" => return Ok(Self::At(Place::START)),
            "newest" | "tail" => return Ok(Self::Newest),
            _ => {}
        }
        Place::parse(text).map(Self::At).ok_or_else(|| {
            let found = params::cut(text);
            params::invalid("after", format!("is `{found}`, not a cursor, a position, `oldest` or `newest`"))
        })
    }
}

/// Behind all that a channel has now.
fn newest(head: &Head) -> Place {
    Place::of(&head.process, head.channel.newest)
}

fn written(page: &EntryPage, by_senders: bool, shape: Shape, closed: Option<CloseReason>) -> Response {
    let ordered: Vec<Arc<Entry>>;
    let entries = if by_senders {
        ordered = in_senders_order(&page.entries);
        &ordered
    } else {
        &page.entries
    };
    let mut out = b"{\"entries\":[".to_vec();
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        entry_json::write(&mut out, entry, shape);
    }
    out.extend_from_slice(b"],\"next\":");
    write_text(&mut out, &Place::of(&page.head.process, page.next).to_string());
    for (name, number) in [("oldest", page.oldest.0), ("newest", page.newest.0), ("missed", page.missed)] {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        write_number(&mut out, number);
    }
    out.extend_from_slice(b",\"closed\":");
    match closed {
        Some(reason) => write_text(&mut out, reason.as_str()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], out).into_response()
}

async fn follow(
    edge: Arc<Edge>,
    asker: Asker,
    (id, by): (&ChannelId, &Actor),
    asked: &Asked,
    shape: Shape,
) -> Result<Response, Problem> {
    // Who comes now would be sent away at once.
    if edge.stopping.is_cancelled() {
        return Err(Problem::new("host_stopping", "the host is stopping"));
    }
    let head = readable(&edge, id, by).await?;
    let (after, mut gap) = match (&asked.last_seen, &asked.after) {
        (Some(seen), _) => match resumed(seen, &head) {
            Resumed::After(place) => (place, None),
            Resumed::Anew(code) => (Place::START, Some(code)),
            // An EventSource comes back after any other answer.
            Resumed::Over => return Ok(StatusCode::NO_CONTENT.into_response()),
        },
        (None, Some(after)) => match Start::parse(after)? {
            Start::At(place) => (place, None),
            Start::Newest => (newest(&head), None),
        },
        (None, None) => (Place::START, None),
    };
    let router = &edge.services.channels;
    let subscription = match router.subscribe(id, by, after).await {
        // The process was made again since it was looked at.
        Err(ChannelError::CursorForeign { .. }) if asked.last_seen.is_some() => {
            gap = Some(FOREIGN);
            router.subscribe(id, by, Place::START).await?
        }
        subscribed => subscribed?,
    };
    Ok(Follower::new(edge, asker.caller, subscription, shape, gap).answer())
}

enum Resumed {
    After(Place),
    /// What was seen means nothing here, for this reason. That is no error: a browser would send it again and again.
    Anew(&'static str),
    /// The end was seen, and it is the end still.
    Over,
}

/// What the id of the last `closed` event has behind the place.
pub(super) const END: &str = ".end";

/// What was seen was another process's, which had the name before.
const FOREIGN: &str = "cursor_foreign";

fn resumed(seen: &str, head: &Head) -> Resumed {
    let (place, ended) = match seen.strip_suffix(END) {
        Some(place) => (place, true),
        None => (seen, false),
    };
    let newest = head.channel.newest;
    match Place::parse(place) {
        None => Resumed::Anew("cursor_invalid"),
        Some(place) if !place.is_of(&head.process) => Resumed::Anew(FOREIGN),
        Some(place) if place.position > newest => Resumed::Anew("position_ahead"),
        Some(place) if ended && place.position == newest && closed(head).is_some() => Resumed::Over,
        // Whatever comes under the name until it is followed: this is the process that was looked at.
        Some(place) => Resumed::After(Place::of(&head.process, place.position)),
    }
}
