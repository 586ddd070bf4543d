//! Appends on their way, by channel: one call under way for each, and all that has come meanwhile in the next.
//!
//! A call whose answer is lost may have been carried out or not. Nothing else is done with the channel before that is
//! known: if its first entry lies where it was meant to, it was; if the channel is as it was before, the same call is sent
//! again; if neither, it never will be.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use redis::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::calls::{Answer, Said, key_of};
use super::decide::{Before, Decided, Found, Plan, Wanted, decide};
use super::entries::{decode, mark};
use super::manage::outrun;
use super::records::{Seen, shape};
use super::settling::{Settling, Told};
use super::write::By;
use super::{Result, Shared};
use crate::backends::redis::faults::{ends_session, remote};
use crate::backends::redis::scripts::{list, number};
use crate::channels::{Append, Appended, ChannelError, ChannelId, Head, ReadLimit};
use crate::error::{BackendError, RemoteFault};
use crate::event::Position;
use crate::limits::{
    REDIS_ANSWER_WAIT_MAX, REDIS_CHANNELS_FIND_MAX, REDIS_CHANNELS_GROUP_BYTES_MAX,
    REDIS_CHANNELS_GROUP_ENTRIES_MAX, REDIS_CHANNELS_TURNS_MAX, REDIS_CHANNELS_WAITING_BYTES_MAX,
    REDIS_CHANNELS_WAITING_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN,
};
use crate::tasks::TaskKind;

pub(super) type Reply = oneshot::Sender<Result<Vec<Appended>>>;

/// One append that waits.
#[derive(Debug)]
pub(super) struct Request {
    append: Append,
    reply: Reply,
    deadline: Instant,
}

/// What waits; a channel that is here has a task.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_channel: HashMap<ChannelId, VecDeque<Request>>,
    waiting: usize,
    bytes: usize,
}

impl Request {
    fn bytes(&self) -> usize {
        self.append.held_bytes()
    }
}

impl Lanes {
    /// Some of what waits for a channel, from the front; none where nothing does.
    fn take(&mut self, id: &ChannelId) -> Option<Vec<Request>> {
        let waiting = self.by_channel.get_mut(id)?;
        let (mut entries, mut bytes, mut group) = (0, 0, Vec::new());
        while let Some(next) = waiting.front() {
            entries += next.append.entries.len();
            bytes += next.bytes();
            let full = entries > REDIS_CHANNELS_GROUP_ENTRIES_MAX || bytes > REDIS_CHANNELS_GROUP_BYTES_MAX;
            if full && !group.is_empty() {
                break;
            }
            group.extend(waiting.pop_front());
        }
        self.waiting -= group.len();
        self.bytes -= group.iter().map(Request::bytes).sum::<usize>();
        if group.is_empty() {
            self.by_channel.remove(id);
            return None;
        }
        Some(group)
    }
}

/// The task of a channel. However it ends, nobody waits for it afterwards.
struct Lane {
    shared: Arc<Shared>,
    id: ChannelId,
    /// Nothing waits any more, or another task has it.
    ended: bool,
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut lanes = self.shared.lanes();
        // Whoever waits is told by the end of its request.
        while lanes.take(&self.id).is_some() {}
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes its place behind all that was asked before, and waits for its answer.
    pub(super) async fn append(self: &Arc<Self>, id: &ChannelId, append: Append) -> Result<Vec<Appended>> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.append_wait_max;
        self.enqueue(id, Request { append, reply, deadline })?;
        match tokio::time::timeout_at(deadline + REDIS_ANSWER_WAIT_MAX, answer).await {
            Ok(answer) => answer.unwrap_or(Err(BackendError::Closed.into())),
            Err(_) => Err(in_doubt().into()),
        }
    }

    fn enqueue(self: &Arc<Self>, id: &ChannelId, request: Request) -> Result<()> {
        let mut lanes = self.lanes();
        let bytes = request.bytes();
        if lanes.waiting >= REDIS_CHANNELS_WAITING_MAX
            || lanes.bytes + bytes > REDIS_CHANNELS_WAITING_BYTES_MAX
        {
            let detail = "channels: too many appends wait for the server";
            return Err(ChannelError::Backend(remote(RemoteFault::Timeout, detail)));
        }
        lanes.waiting += 1;
        lanes.bytes += bytes;
        if let Some(waiting) = lanes.by_channel.get_mut(id) {
            waiting.push_back(request);
            return Ok(());
        }
        lanes.by_channel.insert(id.clone(), VecDeque::from([request]));
        drop(lanes);
        let lane = Lane { shared: Arc::clone(self), id: id.clone(), ended: false };
        self.tasks.spawn(TaskKind::BACKGROUND, "channel appends", lane.run().map(Ok));
        Ok(())
    }
}

/// An append that may or may not have been carried out.
fn in_doubt() -> BackendError {
    remote(
        RemoteFault::Timeout,
        "channels: an append was not answered in time; the same numbers again are safe, and tell what became of it",
    )
}

impl Lane {
    async fn run(mut self) {
        loop {
            let group = self.shared.lanes().take(&self.id);
            let Some(mut group) = group else {
                self.ended = true;
                return;
            };
            let now = Instant::now();
            for late in group.extract_if(.., |request| request.deadline <= now) {
                // Nobody may be waiting any more.
                let _ = late.reply.send(Err(in_doubt().into()));
            }
            if !group.is_empty() {
                Turn::new(&self.shared, &self.id, group).run().await;
            }
        }
    }
}

/// One group of appends on its way into a channel.
struct Turn<'a> {
    shared: &'a Arc<Shared>,
    id: &'a ChannelId,
    group: Vec<Request>,
    /// What is known of the channel.
    seen: Option<Seen>,
    /// It is what the server has just said.
    fresh: bool,
    found: Found,
    /// What was sent without an answer, and what it stood on.
    doubt: Option<(Seen, Plan)>,
    /// That was sent once more.
    resent: bool,
    /// The last answer.
    heard: Option<Answer>,
    turns: usize,
}

impl<'a> Turn<'a> {
    fn new(shared: &'a Arc<Shared>, id: &'a ChannelId, group: Vec<Request>) -> Self {
        let life = shared.known().life;
        Self {
            shared,
            id,
            group,
            seen: shared.recalled(id, life),
            fresh: false,
            found: Found::new(),
            doubt: None,
            resent: false,
            heard: None,
            turns: 0,
        }
    }

    async fn run(mut self) {
        let end = self.group.iter().map(|request| request.deadline).max().unwrap_or_else(Instant::now);
        let mut wait = REDIS_RETRY_WAIT_MIN;
        loop {
            match self.step().await {
                Ok(Some(settling)) => return self.shared.settle(settling).await,
                Ok(None) => {}
                Err(error) if ends_session(&error) && Instant::now() + wait < end => {
                    (self.seen, self.fresh) = (None, false);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
                }
                Err(error) => {
                    let error = if self.doubt.is_some() { in_doubt() } else { error };
                    self.shared.look_at(&self.id.process);
                    for request in self.group {
                        let _ = request.reply.send(Err(error.clone().into()));
                    }
                    return;
                }
            }
        }
    }

    /// One step towards the answers; none when there are more to take.
    async fn step(&mut self) -> std::result::Result<Option<Settling>, BackendError> {
        let Some(seen) = self.seen.clone() else { return self.look().await };
        let plan = match self.doubt.take() {
            Some((_, plan)) => {
                self.resent = true;
                plan
            }
            None => match self.decided(&seen) {
                Decided::Plan(plan) => plan,
                Decided::Find(wanted) => {
                    self.find(wanted).await?;
                    return Ok(None);
                }
            },
        };
        if !self.fresh && plan.answers.iter().any(std::result::Result::is_err) {
            // What refuses them may be over.
            self.seen = None;
            return Ok(None);
        }
        if plan.entries.is_empty() {
            return Ok(Some(self.settling(plan, None)));
        }
        if self.turns > REDIS_CHANNELS_TURNS_MAX {
            return Err(outrun());
        }
        self.shared.turn(self.turns).await;
        self.turns += 1;
        self.write(seen, plan).await
    }

    fn decided(&self, seen: &Seen) -> Decided {
        let appends = self.group.iter().map(|request| &request.append);
        decide(seen, appends, &self.found, self.shared.clock.now(), &self.shared.limits)
    }

    /// Asks the server how the channel is, and finds out what became of a call without an answer.
    async fn look(&mut self) -> std::result::Result<Option<Settling>, BackendError> {
        let after = self.doubt.as_ref().map_or(Position::START, |(seen, _)| seen.head.channel.newest);
        let limit = ReadLimit { entries: usize::from(self.doubt.is_some()), bytes: 0 };
        let stretch = self.shared.stretch(self.id, after, limit, limit.entries).await?;
        let life = stretch.answer.stamp.life;
        let seen = stretch.record.as_ref().and_then(|record| Seen::of(record, &self.id.name, life));
        self.heard = Some(stretch.answer);
        let Some(seen) = seen else {
            // Nothing of it is there, whatever was sent.
            self.doubt = None;
            let refuse = |request: Request| (request.reply, Err(self.id.unknown()));
            let replies = std::mem::take(&mut self.group).into_iter().map(refuse).collect();
            return Ok(Some(Settling { told: None, answer: None, replies, id: self.id.clone() }));
        };
        if let Some((before, plan)) = self.doubt.take() {
            let first = stretch.page.as_ref().and_then(|page| page.entries.first());
            let lies = first == plan.entries.first();
            if lies && seen.incarnation == before.incarnation {
                let head = stretch.record.and_then(|record| record.head(&self.id.name));
                let told = head.map(|head| (seen.incarnation, head));
                return Ok(Some(self.settling(plan, told)));
            }
            let same = seen.incarnation == before.incarnation
                && seen.head.process.version == before.head.process.version
                && seen.head.channel.newest == before.head.channel.newest;
            // Otherwise it is decided anew, and what was sent comes too late.
            self.doubt = (same && !self.resent).then_some((before, plan));
            self.resent = false;
        }
        (self.seen, self.fresh) = (Some(seen), true);
        Ok(None)
    }

    /// Finds out where entries lie that are repeated, from the newest on.
    async fn find(&mut self, wanted: Vec<Wanted>) -> std::result::Result<(), BackendError> {
        let mut left = wanted;
        let mut upto = String::new();
        loop {
            let marks: Vec<String> =
                left.iter().map(|one| mark(&one.sender, one.epoch, one.sequence)).collect();
            let asked = |command: &mut redis::Cmd| {
                command.arg("find").arg(key_of(&self.id.process)).arg(self.id.name.as_str());
                command.arg(&upto).arg(REDIS_CHANNELS_FIND_MAX);
                for (mark, one) in marks.iter().zip(&left) {
                    command.arg(mark).arg(one.bytes);
                }
            };
            let mut answer = self.shared.read(asked).await?;
            let _ = self.shared.taken(&self.id.process, &mut answer)?;
            for place in list(answer.next()?).ok_or_else(shape)? {
                let [index, position, entry]: [Value; 3] =
                    list(place).and_then(|parts| parts.try_into().ok()).ok_or_else(shape)?;
                let wanted = number(&index).and_then(|index: usize| left.get(index)).ok_or_else(shape)?;
                let before = match decode(entry)?.pop() {
                    Some(entry) => Before::Entry(entry),
                    None => Before::Other(Position(number(&position).ok_or_else(shape)?)),
                };
                self.found.insert(wanted.clone(), before);
            }
            left.retain(|wanted| !self.found.contains_key(wanted));
            let next: u64 = answer.parts.first().and_then(number).ok_or_else(shape)?;
            self.heard = Some(answer);
            if next == 0 || left.is_empty() {
                break;
            }
            upto = next.to_string();
        }
        self.found.extend(left.into_iter().map(|wanted| (wanted, Before::Dropped)));
        Ok(())
    }

    async fn write(&mut self, seen: Seen, plan: Plan) -> std::result::Result<Option<Settling>, BackendError> {
        let tag = self.shared.tag();
        let mut answer = match self.shared.write(self.id, &seen, &plan, &By::default(), &tag).await {
            Ok(answer) => answer,
            Err(error) => {
                if ends_session(&error) {
                    (self.doubt, self.resent) = (Some((seen, plan)), false);
                }
                return Err(error);
            }
        };
        if !answer.done() {
            // Where only the log has changed, the channel is as it was seen.
            if answer.said != Said::Moved {
                (self.seen, self.fresh) = (self.shared.instead(self.id, &tag, &mut answer)?, true);
            }
            if self.resent {
                // The call before it may have come in meanwhile.
                (self.doubt, self.seen) = (Some((seen, plan)), None);
            }
            return Ok(None);
        }
        let head = self.shared.written(self.id, &seen, &plan, &answer)?;
        self.heard = Some(answer);
        Ok(Some(self.settling(plan, Some((seen.incarnation, head)))))
    }

    /// Answers all, once what the server said last has come to stay.
    fn settling(&mut self, plan: Plan, told: Option<(Arc<str>, Head)>) -> Settling {
        let requests = std::mem::take(&mut self.group).into_iter();
        let replies = requests.zip(plan.answers).map(|(request, answer)| (request.reply, answer)).collect();
        let told = told.map(|(incarnation, head)| Told { incarnation, head, entries: plan.entries });
        Settling { id: self.id.clone(), told, answer: self.heard.take(), replies }
    }
}
