//! How fast somebody may append: buckets of tokens.
//!
//! An append passes where a token is left, however many entries it has, and owes what it takes beyond: the next one waits
//! until that is paid. So a large append needs no more luck than a small one, and in the long run nobody is faster than
//! its rate. Who is denied for what others of its process have taken has a token kept for it for some time, before those
//! that were denied after it: whoever asks most often does not get all that comes back.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::ChannelError;
use super::names::{Party, ProcessId};
use super::options::ChannelLimits;
use crate::limits::{
    CHANNEL_LIMITER_SENDERS_MAX, CHANNEL_LIMITERS_MAX, CHANNEL_TURN_KEPT, CHANNEL_TURN_WAIT_MAX,
};

/// One process's flood waits for itself, and for few others.
const SHARDS: usize = 64;

/// Tokens that come back at a steady rate, fractions included. It is full at the start, and every question moves its
/// clock, one that is denied too. At rate 0 nothing comes back.
#[derive(Debug)]
pub struct RateLimiter(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens_max: f64,
    rate: f64,
    /// Below 0 where more was taken than there was.
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    /// Of so many tokens, and so many a second.
    pub fn new(tokens_max: f64, rate: f64) -> Self {
        Self(Mutex::new(Bucket::new(tokens_max, rate, Instant::now())))
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token, if there is one.
    pub fn allow(&self) -> bool {
        self.take(1, Instant::now()).is_ok()
    }

    /// Takes so many tokens if there is one, and owes what is missing; or says when to ask again.
    pub fn take(&self, tokens: usize, now: Instant) -> Result<(), Duration> {
        self.lock().take(tokens, now)
    }

    /// What there was after the last question; less than none is owed.
    pub fn tokens(&self) -> f64 {
        self.lock().tokens
    }
}

impl Bucket {
    fn new(tokens_max: f64, rate: f64, now: Instant) -> Self {
        Self { tokens_max, rate, tokens: tokens_max, at: now }
    }

    /// Whether a token is there beside those that are kept for others, or when to ask again.
    fn ask(&mut self, kept: usize, now: Instant) -> Result<(), Duration> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.tokens_max);
        self.at = self.at.max(now);
        let missing = (1 + kept) as f64 - self.tokens;
        if missing <= 0.0 {
            return Ok(());
        }
        Err(if self.rate > 0.0 {
            Duration::from_secs_f64((missing / self.rate).min(3_600.0))
        } else {
            Duration::MAX
        })
    }

    fn take(&mut self, tokens: usize, now: Instant) -> Result<(), Duration> {
        self.ask(0, now)?;
        self.tokens -= tokens as f64;
        Ok(())
    }

    fn is_full(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens + elapsed * self.rate >= self.tokens_max
    }
}

/// The buckets of processes and of their senders. Those that were not asked for longest go beyond the bound: they are
/// full when they come again.
#[derive(Debug)]
pub struct Limiters {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// When the younger half is full, the older one goes.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<ProcessId, Buckets>,
    old: HashMap<ProcessId, Buckets>,
}

#[derive(Debug)]
struct Buckets {
    process: Bucket,
    senders: Vec<Sender>,
}

#[derive(Debug)]
struct Sender {
    party: Party,
    own: Bucket,
    turn: Option<Turn>,
}

/// A token of the process is kept for a sender.
#[derive(Clone, Copy, Debug)]
struct Turn {
    since: Instant,
    until: Instant,
}

/// By whose bucket somebody was denied, and when to ask again.
#[derive(Debug)]
enum Denied {
    Sender(Duration),
    Process(Duration),
}

impl Default for Limiters {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl Limiters {
    /// Takes tokens for entries of one sender: its own first, so that what it is denied costs its process nothing.
    pub fn take(
        &self,
        process: &ProcessId,
        who: &Party,
        entries: usize,
        limits: &ChannelLimits,
    ) -> Result<(), ChannelError> {
        self.take_at(process, who, entries, limits, Instant::now())
    }

    /// The same at a time.
    pub fn take_at(
        &self,
        process: &ProcessId,
        who: &Party,
        entries: usize,
        limits: &ChannelLimits,
        now: Instant,
    ) -> Result<(), ChannelError> {
        let taken = self.shard(process).take(process, who, entries, limits, now);
        taken.map_err(|denied| denied.told(process, who, limits))
    }

    /// Whether a sender would be denied, however little it appends. Takes nothing, and keeps no bucket for somebody new.
    pub fn ask(&self, process: &ProcessId, who: &Party, limits: &ChannelLimits) -> Result<(), ChannelError> {
        let now = Instant::now();
        let asked = {
            let mut shard = self.shard(process);
            shard.find(process).map_or(Ok(()), |buckets| buckets.ask(who, now))
        };
        asked.map_err(|denied| denied.told(process, who, limits))
    }

    fn shard(&self, process: &ProcessId) -> MutexGuard<'_, Shard> {
        let at = usize::try_from(self.hasher.hash_one(process) % SHARDS as u64).unwrap_or_default();
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remove(&self, process: &ProcessId) {
        let mut shard = self.shard(process);
        shard.young.remove(process);
        shard.old.remove(process);
    }

    /// Processes that have buckets.
    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Denied {
    fn told(self, process: &ProcessId, who: &Party, limits: &ChannelLimits) -> ChannelError {
        let (who, burst, rate, after) = match self {
            Self::Sender(after) => {
                (format!("sender `{who}`"), limits.sender_burst, limits.sender_rate, after)
            }
            Self::Process(after) => (format!("process `{process}`"), limits.burst, limits.rate, after),
        };
        ChannelError::RateLimited { who, burst, rate, after }
    }
}

impl Shard {
    fn take(
        &mut self,
        process: &ProcessId,
        who: &Party,
        entries: usize,
        limits: &ChannelLimits,
        now: Instant,
    ) -> Result<(), Denied> {
        if let Some(buckets) = self.young.get_mut(process) {
            return buckets.take(who, entries, limits, now);
        }
        let mut buckets = self.old.remove(process).unwrap_or_else(|| Buckets {
            process: Bucket::new(limits.burst, limits.rate, now),
            senders: Vec::new(),
        });
        let taken = buckets.take(who, entries, limits, now);
        if self.young.len() >= CHANNEL_LIMITERS_MAX / SHARDS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(process.clone(), buckets);
        taken
    }

    fn find(&mut self, process: &ProcessId) -> Option<&mut Buckets> {
        self.young.get_mut(process).or_else(|| self.old.get_mut(process))
    }
}

impl Sender {
    fn turn_at(&self, now: Instant) -> Option<Turn> {
        self.turn.filter(|turn| turn.until > now)
    }
}

impl Buckets {
    fn take(
        &mut self,
        who: &Party,
        entries: usize,
        limits: &ChannelLimits,
        now: Instant,
    ) -> Result<(), Denied> {
        let at = self.sender(who, limits, now);
        self.ask_of(at, now)?;
        let sender = &mut self.senders[at];
        sender.turn = None;
        sender.own.tokens -= entries as f64;
        self.process.tokens -= entries as f64;
        Ok(())
    }

    /// Who is not known here is not denied here.
    fn ask(&mut self, who: &Party, now: Instant) -> Result<(), Denied> {
        match self.senders.iter().position(|sender| sender.party == *who) {
            Some(at) => self.ask_of(at, now),
            None => Ok(()),
        }
    }

    fn ask_of(&mut self, at: usize, now: Instant) -> Result<(), Denied> {
        self.senders[at].own.ask(0, now).map_err(Denied::Sender)?;
        let turn = self.senders[at].turn_at(now);
        let others = self.senders.iter().filter_map(|sender| sender.turn_at(now));
        let kept = others.filter(|other| turn.is_none_or(|own| other.since < own.since)).count();
        self.process.ask(kept, now).map_err(|after| {
            let since = turn.map_or(now, |turn| turn.since);
            let until = now + after.min(CHANNEL_TURN_WAIT_MAX) + CHANNEL_TURN_KEPT;
            self.senders[at].turn = Some(Turn { since, until });
            Denied::Process(after)
        })
    }

    fn sender(&mut self, who: &Party, limits: &ChannelLimits, now: Instant) -> usize {
        if let Some(at) = self.senders.iter().position(|sender| sender.party == *who) {
            return at;
        }
        // Former executors.
        self.senders.retain(|sender| !sender.own.is_full(now) || sender.turn_at(now).is_some());
        if self.senders.len() >= CHANNEL_LIMITER_SENDERS_MAX
            && let Some(oldest) = (0..self.senders.len()).min_by_key(|at| self.senders[*at].own.at)
        {
            self.senders.swap_remove(oldest);
        }
        let own = Bucket::new(limits.sender_burst, limits.sender_rate, now);
        self.senders.push(Sender { party: who.clone(), own, turn: None });
        self.senders.len() - 1
    }
}
