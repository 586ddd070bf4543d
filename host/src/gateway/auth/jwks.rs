//! The key set of an issuer: read at the start, from time to time, and when a token names a key that is new.
//!
//! Promises: reading is bounded in time, bytes and keys; it happens at most once in a while however many
//! unknown keys clients make up; a set that cannot be read leaves the last good one in place.

use std::time::Duration;

use metrics::counter;
use tokio::sync::Mutex;

use super::fetch;
use super::keys::{KeySet, Secrets};
use super::options::{JwtKeys, JwtOptions};
use super::validity::Standing;
use crate::event::Micros;
use crate::limits::JWKS_BYTES_MAX;
use crate::telemetry::metrics::JWKS_READS;

/// Reads key sets into the standing of all credentials.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) options: JwtOptions,
    /// When the set was last asked for, well or not. Whoever holds it is asking.
    asked: Mutex<Option<Micros>>,
}

impl Issuer {
    pub(super) fn new(options: JwtOptions) -> Self {
        Self { options, asked: Mutex::default() }
    }

    /// Reads the set again because a token names a key that it does not have. Says false, and waits for nobody,
    /// when that was done a moment ago. Several at once wait for one reading.
    pub(super) async fn look_again(&self, standing: &Standing) -> bool {
        let before = standing.keys();
        let mut asked = self.asked.lock().await;
        let now = standing.clock.now();
        let least = i64::try_from(self.options.jwks_refresh_min.as_micros()).unwrap_or(i64::MAX);
        // A clock that was set back counts as time gone by.
        let recent = asked.is_some_and(|at| at <= now && now.0 - at.0 < least);
        if recent || matches!(self.options.keys, JwtKeys::Hs256SecretFile(_)) {
            // Somebody may have read it while this one waited.
            return !std::sync::Arc::ptr_eq(&before, &standing.keys());
        }
        *asked = Some(now);
        self.read(standing).await
    }

    /// Reads the set anew whenever its time has come, for as long as it is polled.
    pub(super) async fn keep_reading(&self, standing: &Standing) {
        if matches!(self.options.keys, JwtKeys::Hs256SecretFile(_)) {
            return;
        }
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            let mut asked = self.asked.lock().await;
            // Where a token was faster than the first reading, that one counts.
            if pause.is_zero() && standing.keys().len() > 0 {
                pause = self.options.jwks_refresh;
                continue;
            }
            *asked = Some(standing.clock.now());
            let read = self.read(standing).await;
            drop(asked);
            let never = !read && standing.keys().len() == 0;
            pause = if never { self.options.jwks_refresh_min } else { self.options.jwks_refresh };
            pause = pause.max(Duration::from_millis(100));
        }
    }

    async fn read(&self, standing: &Standing) -> bool {
        let read = tokio::time::timeout(self.options.jwks_wait_max, read(&self.options.keys)).await;
        let set = read.unwrap_or_else(|_| {
            Err(format!("it did not come within jwks_wait_max = {:?}", self.options.jwks_wait_max))
        });
        match set {
            Ok(set) => {
                counter!(JWKS_READS, "outcome" => "read").increment(1);
                standing.replace_keys(set);
                true
            }
            Err(why) => {
                counter!(JWKS_READS, "outcome" => "failed").increment(1);
                tracing::warn!(
                    error.kind = "jwks_unreadable",
                    error.blame = "host",
                    cause = %why,
                    keys = standing.keys().len(),
                    "the key set cannot be read; the last one stays"
                );
                false
            }
        }
    }
}

/// Reads what keys there are.
async fn read(keys: &JwtKeys) -> Result<KeySet, String> {
    match keys {
        JwtKeys::Hs256SecretFile(path) | JwtKeys::JwksFile(path) => {
            let (keys, path) = (keys.clone(), path.clone());
            let read = tokio::task::spawn_blocking(move || read_file(&keys, &path)).await;
            read.unwrap_or_else(|error| Err(error.to_string()))
        }
        JwtKeys::JwksUrl(url) => KeySet::parse(&fetch::get(url, JWKS_BYTES_MAX).await?, Secrets::PassedOver),
    }
}

/// The same for what is there at once, when the host starts. None where the network has to be asked.
pub(super) fn read_now(keys: &JwtKeys) -> Result<Option<KeySet>, String> {
    match keys {
        JwtKeys::Hs256SecretFile(path) | JwtKeys::JwksFile(path) => read_file(keys, path).map(Some),
        JwtKeys::JwksUrl(url) => fetch::check(url).map(|()| None),
    }
}

fn read_file(keys: &JwtKeys, path: &std::path::Path) -> Result<KeySet, String> {
    use std::io::Read as _;
    let told = |why: String| format!("{}: {why}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| told(e.to_string()))?;
    file.take(JWKS_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| told(e.to_string()))?;
    if bytes.len() > JWKS_BYTES_MAX {
        return Err(told(format!("it is larger than jwks_bytes_max = {JWKS_BYTES_MAX}")));
    }
    if matches!(keys, JwtKeys::JwksFile(_)) {
        return KeySet::parse(&bytes, Secrets::Counted).map_err(told);
    }
    // An editor's line end is not part of the secret.
    let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    super::keys::Key::secret(None, secret).map(KeySet::of).map_err(told)
}
