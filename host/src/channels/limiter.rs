//! How fast somebody may append: a bucket of tokens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::ChannelError;
use super::names::{Party, ProcessId};
use super::options::ChannelLimits;
use crate::limits::CHANNEL_LIMITERS_MAX;

/// Tokens that come back at a steady rate, fractions included. It is full at the start, and every question moves its
/// clock, one that is denied too. At rate 0 nothing comes back.
#[derive(Debug)]
pub struct RateLimiter {
    tokens_max: f64,
    rate: f64,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    /// Of so many tokens, and so many a second.
    pub fn new(tokens_max: f64, rate: f64) -> Self {
        Self { tokens_max, rate, level: Mutex::new(Level { tokens: tokens_max, at: Instant::now() }) }
    }

    /// Takes a token, if there is one.
    pub fn allow(&self) -> bool {
        self.take(1, Instant::now()).is_ok()
    }

    /// Takes so many tokens at once, or says when to ask again. Who wants more than the bucket holds waits until it is
    /// full, and owes the rest.
    pub fn take(&self, tokens: usize, now: Instant) -> Result<(), Duration> {
        let tokens = tokens as f64;
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(level.at).as_secs_f64();
        level.tokens = (level.tokens + elapsed * self.rate).min(self.tokens_max);
        level.at = level.at.max(now);
        let needed = tokens.min(self.tokens_max.max(1.0));
        if level.tokens >= needed {
            level.tokens -= tokens;
            return Ok(());
        }
        let missing = needed - level.tokens;
        Err(if self.rate > 0.0 {
            Duration::from_secs_f64((missing / self.rate).min(3_600.0))
        } else {
            Duration::MAX
        })
    }

    /// Gives tokens back that were taken for nothing.
    fn put_back(&self, tokens: usize) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        level.tokens = (level.tokens + tokens as f64).min(self.tokens_max);
    }

    /// What there was after the last question.
    pub fn tokens(&self) -> f64 {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).tokens
    }

    fn is_full(&self, now: Instant) -> bool {
        let level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(level.at).as_secs_f64();
        level.tokens + elapsed * self.rate >= self.tokens_max
    }
}

/// The buckets of processes and of their senders.
#[derive(Debug, Default)]
pub struct Limiters(Mutex<HashMap<ProcessId, Buckets>>);

#[derive(Debug)]
struct Buckets {
    process: RateLimiter,
    senders: HashMap<Party, RateLimiter>,
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
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(process) {
            if all.len() >= CHANNEL_LIMITERS_MAX {
                all.retain(|_, buckets| {
                    !buckets.process.is_full(now) || buckets.senders.values().any(|s| !s.is_full(now))
                });
            }
            let buckets =
                Buckets { process: RateLimiter::new(limits.burst, limits.rate), senders: HashMap::new() };
            all.insert(process.clone(), buckets);
        }
        let Some(Buckets { process: shared, senders }) = all.get_mut(process) else { return Ok(()) };
        if !senders.contains_key(who) {
            // Former executors.
            senders.retain(|_, limiter| !limiter.is_full(now));
            senders.insert(who.clone(), RateLimiter::new(limits.sender_burst, limits.sender_rate));
        }
        let refused = |who: String, burst, rate, after| ChannelError::RateLimited { who, burst, rate, after };
        if let Some(own) = senders.get(who) {
            own.take(entries, now).map_err(|after| {
                refused(format!("sender `{who}`"), limits.sender_burst, limits.sender_rate, after)
            })?;
            shared.take(entries, now).map_err(|after| {
                own.put_back(entries);
                refused(format!("process `{process}`"), limits.burst, limits.rate, after)
            })?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, process: &ProcessId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(process);
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
