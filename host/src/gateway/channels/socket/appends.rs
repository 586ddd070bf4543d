//! Appends of a socket: many under way at once.
//!
//! They are given to the store one after the other, in the order in which they came, and what the store does with one is
//! not waited for before it gets the next. Answers come as they are there; those of one sender in one channel come in
//! the order of its appends.

use std::collections::VecDeque;

use futures_util::FutureExt as _;
use serde_json::json;

use super::commands::{About, Reference};
use super::out::{Message, Out};
use super::work::{Done, Work};
use crate::channels::{Append, Appended, Begun, ChannelError, ChannelId, Party, Router};
use crate::gateway::channels::views::AppendedView;
use crate::gateway::problem::Problem;
use crate::limits::{CHANNEL_SOCKET_APPEND_BYTES, CHANNEL_SOCKET_APPENDS_MAX};

/// Answers to the same sender in the same channel keep their order.
type Lane = (ChannelId, Party);

#[derive(Debug)]
pub(super) struct Appends {
    router: Router,
    /// Not answered yet, in the order in which they came.
    open: VecDeque<Open>,
    /// Of their entries, empty ones as well.
    bytes: usize,
    /// Of these, the ones that the store was not given yet.
    queue: VecDeque<(u64, ChannelId, Append)>,
    /// One is on its way to the store.
    beginning: bool,
    last_number: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    lane: Lane,
    reference: Reference,
    bytes: usize,
    /// It waits for those before it.
    answer: Option<Message>,
}

impl Appends {
    pub(super) fn new(router: Router) -> Self {
        Self {
            router,
            open: VecDeque::new(),
            bytes: 0,
            queue: VecDeque::new(),
            beginning: false,
            last_number: 0,
        }
    }

    /// Refuses it where enough are under way: those may wait for long, and what else the client says is heard meanwhile.
    pub(super) fn push(
        &mut self,
        reference: Reference,
        channel: ChannelId,
        append: Append,
        work: &Work,
    ) -> Result<(), Problem> {
        let bytes = append.held_bytes();
        self.has_room(bytes)?;
        self.last_number += 1;
        let number = self.last_number;
        let lane = (channel.clone(), append.who.clone());
        self.bytes += bytes;
        self.open.push_back(Open { number, lane, reference, bytes, answer: None });
        self.queue.push_back((number, channel, append));
        self.begin_next(work);
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> Result<(), Problem> {
        let code = "channel_socket_appends_max";
        let (count, max) = (self.open.len(), CHANNEL_SOCKET_APPENDS_MAX);
        if count >= max {
            let detail = format!("{count} appends are under way; channel_socket_appends_max is {max}");
            return Err(Problem::new(code, detail).limit(code, count as u64 + 1, max as u64));
        }
        let (held, max) = (self.bytes, CHANNEL_SOCKET_APPEND_BYTES);
        if held >= max {
            let detail =
                format!("the appends under way have {held} bytes; channel_socket_append_bytes is {max}");
            let asked = held.saturating_add(bytes) as u64;
            return Err(Problem::new(code, detail).limit("channel_socket_append_bytes", asked, max as u64));
        }
        Ok(())
    }

    fn begin_next(&mut self, work: &Work) {
        if self.beginning {
            return;
        }
        let Some((number, channel, append)) = self.queue.pop_front() else { return };
        self.beginning = true;
        let router = self.router.clone();
        work.push(async move { Done::Begun(number, router.begin_append(&channel, append).await) }.boxed());
    }

    pub(super) fn begun(
        &mut self,
        number: u64,
        begun: Result<Begun, ChannelError>,
        work: &Work,
        out: &mut Out,
    ) {
        self.beginning = false;
        match begun {
            Ok(rest) => work.push(rest.map(move |answer| Done::Appended(number, answer)).boxed()),
            Err(error) => self.appended(number, Err(error), out),
        }
        self.begin_next(work);
    }

    pub(super) fn appended(
        &mut self,
        number: u64,
        answer: Result<Vec<Appended>, ChannelError>,
        out: &mut Out,
    ) {
        let Ok(at) = self.open.binary_search_by_key(&number, |open| open.number) else { return };
        let open = &mut self.open[at];
        let lane = open.lane.clone();
        open.answer = Some(match answer {
            Ok(appended) => {
                let places: Vec<_> = appended.into_iter().map(AppendedView::from).collect();
                Message::text(&json!({ "op": "appended", "ref": open.reference, "appended": places }))
            }
            Err(error) => Message::refusal(&About::Append(open.reference.clone()), &error.into()),
        });
        // With this one others may be free to go that came after it, and only of its lane.
        let mut blocked = false;
        self.open.retain_mut(|open| {
            if blocked || open.lane != lane {
                return true;
            }
            let Some(answer) = open.answer.take() else {
                blocked = true;
                return true;
            };
            self.bytes -= open.bytes;
            out.push(answer);
            false
        });
    }
}
