//! Appends of a socket: many under way at once.
//!
//! A store that needs no waiting answers each as it comes. Otherwise they are given to it one after the other, in the order
//! in which they came, and what the store does with one is not waited for before it gets the next. Answers come as they are
//! there; those of one sender in one channel come in the order of its appends.
//!
//! What closes a sender's half without a sequence waits until those before it of its sender are answered, since one of them
//! may be refused (`refusals`). What comes behind it of its sender waits as well, and nothing else does.
//!
//! None is refused because there are many: those beyond what the store is given wait here, and when enough wait, the socket
//! is not read from until some are answered. To refuse one and take the next would let it overtake.

use std::collections::VecDeque;

use futures_util::FutureExt as _;

use super::commands::{About, Reference};
use super::out::{Message, Out};
use super::refusals::{Lane, Refusals, closes_anyhow};
use super::work::{Done, Work};
use crate::channels::{
    Append, Appended, AppendedAtOnce, AtOnce, Begun, ChannelError, ChannelId, Router, Written,
};
use crate::limits::{
    CHANNEL_SOCKET_APPEND_BYTES, CHANNEL_SOCKET_APPENDS_MAX, CHANNEL_SOCKET_APPENDS_READ_MAX,
};

#[derive(Debug)]
pub(super) struct Appends {
    router: Router,
    /// Not answered yet, in the order in which they came.
    open: VecDeque<Open>,
    /// Of their entries, empty ones as well.
    bytes: usize,
    /// Of these, the ones that the store was not given yet.
    queue: VecDeque<(u64, ChannelId, Append)>,
    /// Those that wait for others of their sender before they come into the queue.
    parked: VecDeque<Parked>,
    refusals: Refusals,
    /// One is on its way to the store.
    beginning: bool,
    /// That one, and those that the store has not answered.
    under_way: usize,
    last_number: u64,
    written: Written,
    /// Followers were woken since somebody asked.
    followed: bool,
}

#[derive(Debug)]
struct Open {
    number: u64,
    lane: Lane,
    reference: Reference,
    bytes: usize,
    /// See [`closes_anyhow`].
    closes: bool,
    /// It waits for those before it.
    answer: Option<Message>,
}

#[derive(Debug)]
struct Parked {
    number: u64,
    channel: ChannelId,
    append: Append,
    closes: bool,
}

impl Parked {
    fn is_of(&self, (channel, who): &Lane) -> bool {
        self.channel == *channel && self.append.who == *who
    }
}

impl Appends {
    pub(super) fn new(router: Router) -> Self {
        Self {
            router,
            open: VecDeque::new(),
            bytes: 0,
            queue: VecDeque::new(),
            parked: VecDeque::new(),
            refusals: Refusals::default(),
            beginning: false,
            under_way: 0,
            last_number: 0,
            written: Written::new(),
            followed: false,
        }
    }

    /// Whether no more are read before one is answered.
    pub(super) fn are_full(&self) -> bool {
        self.open.len() >= CHANNEL_SOCKET_APPENDS_READ_MAX || self.bytes >= CHANNEL_SOCKET_APPEND_BYTES
    }

    /// Whether somebody on this host follows what was appended since this was asked last, and was told so.
    pub(super) fn were_followed(&mut self) -> bool {
        std::mem::take(&mut self.followed)
    }

    pub(super) fn push(
        &mut self,
        reference: Reference,
        channel: &ChannelId,
        append: Append,
        work: &Work,
        out: &mut Out,
    ) {
        let (bytes, closes) = (append.held_bytes(), closes_anyhow(&append.entries));
        let lane = (channel.clone(), append.who.clone());
        if self.parked.iter().any(|parked| parked.is_of(&lane)) || closes && self.is_awaited(&lane, u64::MAX)
        {
            let number = self.open(lane, reference, bytes, closes);
            self.parked.push_back(Parked { number, channel: channel.clone(), append, closes });
            return;
        }
        if closes && let Some(problem) = self.refusals.of_end(&lane) {
            // Those before it are answered.
            return out.refuse(&About::Append(reference), &problem);
        }
        // Behind those that wait for the store it waits, too.
        let waits = self.beginning || !self.queue.is_empty() || self.under_way >= CHANNEL_SOCKET_APPENDS_MAX;
        let done = if waits { AtOnce::Later(append) } else { self.router.append_at_once(channel, append) };
        match done {
            AtOnce::Answered(done) => {
                self.written.count(&done);
                self.followed |= done.as_ref().is_ok_and(|done| done.followed);
                if self.open.is_empty() {
                    let refused = done.as_ref().err();
                    self.note(&lane, &reference, closes, refused);
                    return answer_now(&reference, done, out);
                }
                let number = self.open(lane, reference, bytes, closes);
                self.answered(number, done.map(|done| done.places), out);
                self.begin_next(work);
            }
            AtOnce::Begun(rest) => {
                let number = self.open(lane, reference, bytes, closes);
                self.under_way += 1;
                work.push(rest.map(move |answer| Done::Appended(number, answer)).boxed());
            }
            AtOnce::Later(append) => {
                let number = self.open(lane, reference, bytes, closes);
                self.queue.push_back((number, channel.clone(), append));
                self.begin_next(work);
            }
        }
    }

    /// One that could not even be read was refused.
    pub(super) fn refused(&mut self, lane: &Lane, reference: &Reference) {
        self.refusals.refused(lane, reference);
    }

    fn note(&mut self, lane: &Lane, reference: &Reference, closes: bool, refused: Option<&ChannelError>) {
        match refused {
            None => self.refusals.appended(lane, reference),
            // It is repeated, or not: either is an answer to the refusal.
            Some(_) if closes => {}
            Some(error) => self.refusals.refused_by_log(lane, reference, error),
        }
    }

    /// Whether one that came before is not answered yet.
    fn is_awaited(&self, lane: &Lane, before: u64) -> bool {
        let mut before = self.open.iter().take_while(|open| open.number < before);
        before.any(|open| open.answer.is_none() && open.lane == *lane)
    }

    /// One that is not answered yet. Answers its number.
    fn open(&mut self, lane: Lane, reference: Reference, bytes: usize, closes: bool) -> u64 {
        self.last_number += 1;
        self.bytes += bytes;
        let number = self.last_number;
        self.open.push_back(Open { number, lane, reference, bytes, closes, answer: None });
        number
    }

    fn begin_next(&mut self, work: &Work) {
        if self.beginning || self.under_way >= CHANNEL_SOCKET_APPENDS_MAX {
            return;
        }
        let Some((number, channel, append)) = self.queue.pop_front() else { return };
        self.beginning = true;
        self.under_way += 1;
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
            Err(error) => return self.appended(number, Err(error), work, out),
        }
        self.begin_next(work);
    }

    pub(super) fn appended(
        &mut self,
        number: u64,
        answer: Result<Vec<Appended>, ChannelError>,
        work: &Work,
        out: &mut Out,
    ) {
        self.under_way -= 1;
        self.begin_next(work);
        self.answered(number, answer, out);
        self.begin_next(work);
    }

    fn answered(&mut self, number: u64, answer: Result<Vec<Appended>, ChannelError>, out: &mut Out) {
        let Ok(at) = self.open.binary_search_by_key(&number, |open| open.number) else { return };
        let Open { lane, reference, closes, .. } = &self.open[at];
        let (lane, reference, closes) = (lane.clone(), reference.clone(), *closes);
        self.note(&lane, &reference, closes, answer.as_ref().err());
        let answer = match answer {
            Ok(places) => Message::appended(&reference, &places),
            Err(error) => Message::refusal(&About::Append(reference), &error.into()),
        };
        self.tell(at, answer, out);
        self.unpark(&lane, out);
    }

    /// Those of a sender that have waited for its other ones.
    fn unpark(&mut self, lane: &Lane, out: &mut Out) {
        let mut at = 0;
        while let Some(parked) = self.parked.get(at) {
            let (number, closes) = (parked.number, parked.closes);
            if !parked.is_of(lane) {
                at += 1;
                continue;
            }
            if closes && self.is_awaited(lane, number) {
                return;
            }
            let Some(parked) = self.parked.remove(at) else { return };
            let refused = if closes { self.refusals.of_end(lane) } else { None };
            match (refused, self.open.binary_search_by_key(&number, |open| open.number)) {
                (Some(problem), Ok(at)) => {
                    let about = About::Append(self.open[at].reference.clone());
                    self.tell(at, Message::refusal(&about, &problem), out);
                }
                _ => self.queue.push_back((number, parked.channel, parked.append)),
            }
        }
    }

    /// Tells the answer, or keeps it until those before it are told.
    fn tell(&mut self, at: usize, answer: Message, out: &mut Out) {
        let open = &mut self.open[at];
        let lane = open.lane.clone();
        open.answer = Some(answer);
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
            out.push(&answer);
            false
        });
    }
}

fn answer_now(reference: &Reference, done: Result<AppendedAtOnce, ChannelError>, out: &mut Out) {
    match done {
        Ok(done) => out.appended(reference, &done.places),
        Err(error) => out.refuse(&About::Append(reference.clone()), &error.into()),
    }
}
