//! Random secrets that stand for a caller for a while: what sessions and tickets are made of.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

use crate::event::Micros;
use crate::gateway::problem::Problem;

const SECRET_BYTES: usize = 32;

/// Keeps values under secrets that it makes up. It knows only their digests: who reads the host's memory
/// finds no secret that could be used.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    held: Mutex<HashMap<[u8; 32], Kept<T>>>,
    limit: &'static str,
    max: usize,
}

#[derive(Debug)]
struct Kept<T> {
    value: T,
    until: Micros,
}

impl<T: Clone> Shelf<T> {
    /// The limit's name is also the code of the error at the limit.
    pub(super) fn new(limit: &'static str, max: usize) -> Self {
        Self { held: Mutex::default(), limit, max }
    }

    /// Keeps a value and answers its secret. When the shelf is full, what has expired goes; what has not, stays.
    pub(super) fn put(&self, value: T, until: Micros, now: Micros) -> Result<String, Problem> {
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).map_err(|_| Problem::new("internal", "no random numbers"))?;
        let secret = URL_SAFE_NO_PAD.encode(secret);
        let mut held = self.held();
        if held.len() >= self.max {
            held.retain(|_, kept| kept.until > now);
        }
        if held.len() >= self.max {
            let (limit, max) = (self.limit, self.max);
            let problem = Problem::new(limit, format!("{max} are open; {limit} is {max}"));
            return Err(problem.limit(limit, max as u64 + 1, max as u64));
        }
        held.insert(digest(&secret), Kept { value, until });
        Ok(secret)
    }

    /// The value of a secret; none where it is unknown or over.
    pub(super) fn get(&self, secret: &str, now: Micros) -> Option<T> {
        self.held().get(&digest(secret)).filter(|kept| kept.until > now).map(|kept| kept.value.clone())
    }

    /// The same, for the last time.
    pub(super) fn take(&self, secret: &str, now: Micros) -> Option<T> {
        self.held().remove(&digest(secret)).filter(|kept| kept.until > now).map(|kept| kept.value)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept<T>>> {
        // Nothing in here leaves it half done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looking up by digest: the time it takes tells nothing about how much of a guess was right.
fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
