//! Subscriptions of a socket: places in logs, served in turn.
//!
//! One that has nothing to say is a waiter in its channel. One that has something waits for its turn, is given what is in
//! memory, up to its credit, and stands at the end of the line again. What is not in memory is read beside that, for a
//! few at a time, so that a slow read holds up nobody else; they are opened in the same way. One without credit is given
//! what has to do with no entry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, Abortable};
use serde_json::json;

use super::commands::{About, Subscribe, too_much_credit};
use super::out::{Out, entries_head};
use super::work::{Done, Work};
use crate::channels::{
    Actor, ChannelError, ChannelId, CloseReason, Notice, Now, Place, ReadLimit, Role, Router, Subscription,
};
use crate::event::Position;
use crate::gateway::channels::views::ADMIN;
use crate::gateway::problem::Problem;
use crate::limits::{
    CHANNEL_CREDIT_MAX, CHANNEL_SOCKET_OPENS_MAX, CHANNEL_SOCKET_READ_BYTES, CHANNEL_SOCKET_READS_MAX,
    CHANNEL_SOCKET_SUBSCRIPTIONS_MAX,
};

#[derive(Debug)]
pub(super) struct Follows {
    router: Router,
    open: HashMap<u32, Follow>,
    numbers: HashMap<Arc<str>, u32>,
    last_number: u32,
    /// Whose turn it is, and who waits for a place among those that read. Each has one place in one of them.
    turns: VecDeque<u32>,
    behind: VecDeque<u32>,
    reading: usize,
    /// Those that are opened next, and how many are now. No more wait than there are subscriptions.
    unopened: VecDeque<u32>,
    opening: usize,
}

/// What a subscription is opened with.
#[derive(Debug)]
struct Wanted {
    channel: ChannelId,
    actor: Actor,
    after: Place,
}

#[derive(Debug)]
struct Follow {
    id: Arc<str>,
    /// It waits until others are open.
    wanted: Option<Box<Wanted>>,
    binary: bool,
    /// Entries that it may still be given.
    credit: u64,
    /// Behind the last entry that it was given; or what it was asked with, until it is open.
    last: Place,
    /// The newest position when it began.
    newest: Position,
    /// None while it is opened, and while it reads.
    subscription: Option<Box<Subscription>>,
    /// How messages with its entries begin.
    head: Bytes,
    /// It stands in one of the lines.
    queued: bool,
    /// Its last read gave nothing.
    in_vain: bool,
    waiter: Option<AbortHandle>,
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Some(waiter) = &self.waiter {
            waiter.abort();
        }
    }
}

impl Follows {
    pub(super) fn new(router: Router) -> Self {
        Self {
            router,
            open: HashMap::new(),
            numbers: HashMap::new(),
            last_number: 0,
            turns: VecDeque::new(),
            behind: VecDeque::new(),
            reading: 0,
            unopened: VecDeque::new(),
            opening: 0,
        }
    }

    /// Whether somebody stands in line.
    pub(super) fn have_turns(&self) -> bool {
        !self.turns.is_empty() || self.may_read_next()
    }

    /// Whether one of those that wait for a read may have it.
    fn may_read_next(&self) -> bool {
        !self.behind.is_empty() && self.reading < CHANNEL_SOCKET_READS_MAX
    }

    pub(super) fn subscribe(
        &mut self,
        asked: Subscribe,
        channel: ChannelId,
        actor: Actor,
        work: &Work,
    ) -> Result<(), Problem> {
        let (id, max): (Arc<str>, _) = (asked.id.into(), CHANNEL_SOCKET_SUBSCRIPTIONS_MAX);
        if self.numbers.contains_key(&id) {
            return Err(Problem::new("subscription_taken", format!("subscription `{id}` is open already")));
        }
        if self.open.len() >= max {
            let detail = format!("{max} subscriptions are open; channel_socket_subscriptions_max is {max}");
            let problem = Problem::new("channel_socket_subscriptions_max", detail);
            return Err(problem.limit("channel_socket_subscriptions_max", max as u64 + 1, max as u64));
        }
        let number = self.next_number();
        let follow = Follow {
            head: entries_head(&id),
            id: Arc::clone(&id),
            wanted: Some(Box::new(Wanted { channel, actor, after: asked.after })),
            binary: asked.binary,
            credit: asked.credit,
            last: asked.after,
            newest: Position::START,
            subscription: None,
            queued: false,
            in_vain: false,
            waiter: None,
        };
        self.open.insert(number, follow);
        self.numbers.insert(id, number);
        self.unopened.push_back(number);
        self.open_next(work);
        Ok(())
    }

    /// A few at a time: what else the client says is heard meanwhile.
    fn open_next(&mut self, work: &Work) {
        while self.opening < CHANNEL_SOCKET_OPENS_MAX {
            let Some(number) = self.unopened.pop_front() else { return };
            let Some(wanted) = self.open.get_mut(&number).and_then(|follow| follow.wanted.take()) else {
                continue;
            };
            self.opening += 1;
            let router = self.router.clone();
            work.push(
                async move {
                    let Wanted { channel, actor, after } = *wanted;
                    let opened = router.subscribe(&channel, &actor, after).await;
                    Done::Opened(number, opened.map(Box::new))
                }
                .boxed(),
            );
        }
    }

    /// Clients compare it with what stands in binary messages.
    fn next_number(&mut self) -> u32 {
        loop {
            self.last_number = self.last_number.wrapping_add(1);
            if !self.open.contains_key(&self.last_number) {
                return self.last_number;
            }
        }
    }

    pub(super) fn credit(&mut self, id: &str, add: u64) -> Result<(), Problem> {
        let number = self.find(id)?;
        if let Some(follow) = self.open.get_mut(&number) {
            let credit = follow.credit.saturating_add(add);
            if credit > CHANNEL_CREDIT_MAX {
                return Err(too_much_credit(credit));
            }
            follow.credit = credit;
        }
        self.queue(number);
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, id: &str, out: &mut Out) -> Result<(), Problem> {
        let number = self.find(id)?;
        self.close(number, CloseReason::Unsubscribed.as_str(), out);
        Ok(())
    }

    fn find(&self, id: &str) -> Result<u32, Problem> {
        self.numbers
            .get(id)
            .copied()
            .ok_or_else(|| Problem::new("subscription_unknown", format!("subscription `{id}` is not open")))
    }

    /// It was opened, or could not be. One that was ended meanwhile goes unseen.
    pub(super) fn opened(
        &mut self,
        number: u32,
        opened: Result<Box<Subscription>, ChannelError>,
        work: &Work,
        out: &mut Out,
    ) {
        self.opening -= 1;
        self.open_next(work);
        let Some(follow) = self.open.get_mut(&number) else { return };
        match opened {
            Ok(subscription) => {
                follow.last = subscription.place(follow.last.position);
                follow.subscription = Some(subscription);
                self.queue(number);
            }
            Err(error) => {
                let id = follow.id.to_string();
                self.remove(number);
                out.refuse(&About::Subscription(id), &error.into());
            }
        }
    }

    /// Something has changed in its channel.
    pub(super) fn changed(&mut self, number: u32) {
        if let Some(follow) = self.open.get_mut(&number) {
            follow.waiter = None;
            self.queue(number);
        }
    }

    /// It is back from the store.
    pub(super) fn was_read(
        &mut self,
        number: u32,
        subscription: Box<Subscription>,
        read: Result<Option<Notice>, ChannelError>,
        out: &mut Out,
    ) {
        self.reading -= 1;
        let Some(follow) = self.open.get_mut(&number) else { return };
        follow.subscription = Some(subscription);
        match read {
            Ok(Some(notice)) => self.tell(number, notice, out),
            Ok(None) => {
                follow.in_vain = true;
                self.queue(number);
            }
            Err(error) => {
                // The others go on. It is told where it can go on from, too.
                out.refuse(&About::Subscription(follow.id.to_string()), &error.into());
                self.close(number, INTERRUPTED, out);
            }
        }
    }

    /// Serves whoever is first in line. False when nobody is.
    pub(super) fn take_turn(&mut self, work: &Work, out: &mut Out) -> bool {
        // Who waits for a read comes before the others: one of them could take its place again and again. Not everyone
        // that waited reads in the end, so the place is offered until somebody takes it.
        let next = if self.may_read_next() { self.behind.pop_front() } else { self.turns.pop_front() };
        let Some(number) = next else { return false };
        let Some(follow) = self.open.get_mut(&number) else { return true };
        follow.queued = false;
        let Some(subscription) = &mut follow.subscription else { return true };
        let max = usize::try_from(follow.credit).unwrap_or(usize::MAX);
        let in_vain = std::mem::take(&mut follow.in_vain);
        match subscription.now(max) {
            Now::Notice(notice) => self.tell(number, notice, out),
            Now::Stored if !in_vain => self.read(number, max, work),
            Now::Stored | Now::Nothing => {
                if follow.waiter.is_none() {
                    let (handle, registration) = AbortHandle::new_pair();
                    let changed = Abortable::new(subscription.changed(), registration);
                    work.push(changed.map(move |_| Done::Changed(number)).boxed());
                    follow.waiter = Some(handle);
                }
            }
        }
        true
    }

    fn read(&mut self, number: u32, max: usize, work: &Work) {
        let Some(follow) = self.open.get_mut(&number) else { return };
        if self.reading >= CHANNEL_SOCKET_READS_MAX {
            follow.queued = true;
            self.behind.push_back(number);
            return;
        }
        let Some(mut subscription) = follow.subscription.take() else { return };
        self.reading += 1;
        let limit = ReadLimit { entries: max, bytes: CHANNEL_SOCKET_READ_BYTES };
        work.push(
            async move {
                let read = subscription.stored(limit).await;
                Done::Read(number, subscription, read)
            }
            .boxed(),
        );
    }

    fn tell(&mut self, number: u32, notice: Notice, out: &mut Out) {
        let Some(follow) = self.open.get_mut(&number) else { return };
        match notice {
            Notice::Ready { after, oldest, newest } => {
                follow.newest = newest;
                let role = follow.subscription.as_ref().and_then(|subscription| subscription.role());
                out.text(&json!({
                    "op": "ready",
                    "id": &*follow.id,
                    "number": number,
                    "role": role.map_or(ADMIN, Role::as_str),
                    "after": after,
                    "cursor": follow.last.to_string(),
                    "oldest": oldest,
                    "newest": newest,
                }));
            }
            Notice::Entries(entries) => {
                follow.credit = follow.credit.saturating_sub(entries.len() as u64);
                if let Some(last) = entries.last() {
                    follow.last.position = last.position;
                }
                if follow.binary {
                    out.binary_entries(number, &entries);
                } else {
                    out.entries(&follow.head, follow.newest, &entries, follow.last);
                }
            }
            Notice::Lagged { resume_at, missed, behind } => {
                follow.last.position = Position(resume_at.0.saturating_sub(1));
                out.text(&json!({
                    "op": "lagged",
                    "id": &*follow.id,
                    "resume_at": resume_at,
                    "cursor": follow.last.to_string(),
                    "missed": missed,
                    "behind": behind,
                }));
            }
            Notice::Closed { reason, .. } => return self.close(number, reason.as_str(), out),
        }
        self.queue(number);
    }

    /// Gives it a place at the end of the line, if it has none.
    fn queue(&mut self, number: u32) {
        if let Some(follow) = self.open.get_mut(&number)
            && !std::mem::replace(&mut follow.queued, true)
        {
            self.turns.push_back(number);
        }
    }

    fn close(&mut self, number: u32, reason: &str, out: &mut Out) {
        if let Some(follow) = self.remove(number) {
            out.text(&json!({
                "op": "closed",
                "id": &*follow.id,
                "reason": reason,
                "last": follow.last.position,
                "cursor": follow.last.to_string(),
            }));
        }
    }

    fn remove(&mut self, number: u32) -> Option<Follow> {
        let follow = self.open.remove(&number)?;
        self.numbers.remove(&follow.id);
        if follow.wanted.is_some() {
            self.unopened.retain(|unopened| *unopened != number);
        }
        if follow.queued {
            self.turns.retain(|queued| *queued != number);
            self.behind.retain(|queued| *queued != number);
        }
        Some(follow)
    }
}

/// Its log could not be read.
const INTERRUPTED: &str = "interrupted";
