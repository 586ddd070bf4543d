//! How long a credential is good, and what ends it before.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::keys::KeySet;
use crate::clock::Clock;
use crate::event::Micros;
use crate::gateway::problem::Problem;
use crate::limits::CREDENTIAL_CHECK;

/// What every credential is held against: the time, the keys that count, and what was revoked.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) clock: Arc<dyn Clock>,
    keys: RwLock<Arc<KeySet>>,
    revoked: Mutex<HashMap<Revoked, Micros>>,
    revocations_max: usize,
    /// Moves when something ends before its time.
    changed: watch::Sender<()>,
}

/// What can be revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Revoked {
    /// One token, by `jti`.
    Token(String),
    /// Every token of a subject that was issued until now.
    Subject(String),
    /// A static token, by its name.
    Name(String),
}

impl Standing {
    pub(super) fn new(clock: Arc<dyn Clock>, keys: KeySet, revocations_max: usize) -> Self {
        Self {
            clock,
            keys: RwLock::new(Arc::new(keys)),
            revoked: Mutex::default(),
            revocations_max,
            changed: watch::Sender::new(()),
        }
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        // A panic elsewhere leaves the old set or the new one.
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another set in place. What a missing key has signed ends.
    pub(super) fn replace_keys(&self, keys: KeySet) {
        let keys = Arc::new(keys);
        let before = {
            let mut held = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *held, Arc::clone(&keys))
        };
        if before.marks().any(|mark| !keys.has(mark)) {
            self.changed.send_replace(());
        }
    }

    /// Remembers what is not good any more. In memory: a restart forgets it.
    pub(super) fn revoke(&self, what: Revoked) -> Result<(), Problem> {
        let now = self.clock.now();
        {
            let mut revoked = self.revoked();
            let max = self.revocations_max;
            // The oldest is not forgotten for it: that would let somebody in again.
            if revoked.len() >= max && !revoked.contains_key(&what) {
                let detail = format!("{max} revocations are remembered; revocations_max is {max}");
                let problem = Problem::new("revocations_max", detail);
                return Err(problem.limit("revocations_max", max as u64 + 1, max as u64));
            }
            revoked.insert(what, now);
        }
        self.changed.send_replace(());
        Ok(())
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<Revoked, Micros>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a credential is known by.
#[derive(Debug)]
pub(super) enum Identity {
    /// Nobody had to show anything.
    Open,
    Static {
        name: String,
    },
    Signed {
        id: Option<String>,
        subject: Option<String>,
        issued_at: Option<Micros>,
        key: [u8; 32],
    },
}

/// Whether a caller's credential is still good, and a way to learn when it is not. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Validity {
    standing: Arc<Standing>,
    identity: Arc<Identity>,
    expires_at: Option<Micros>,
    session: Option<CancellationToken>,
}

impl Validity {
    pub(super) fn new(standing: &Arc<Standing>, identity: Identity, expires_at: Option<Micros>) -> Self {
        Self { standing: Arc::clone(standing), identity: Arc::new(identity), expires_at, session: None }
    }

    /// The same credential inside of a session, which may end earlier.
    pub(super) fn in_session(&self, expires_at: Micros, session: CancellationToken) -> Self {
        let expires_at = self.expires_at.map_or(expires_at, |earlier| earlier.min(expires_at));
        Self { expires_at: Some(expires_at), session: Some(session), ..self.clone() }
    }

    /// Whether it is a token of the configuration.
    pub(super) fn is_static(&self) -> bool {
        matches!(*self.identity, Identity::Static { .. })
    }

    /// When it ends by itself.
    pub(in crate::gateway) fn expires_at(&self) -> Option<Micros> {
        self.expires_at
    }

    /// Why the credential is not good any more; none while it is.
    pub(in crate::gateway) fn check(&self) -> Result<(), Problem> {
        if self.session.as_ref().is_some_and(CancellationToken::is_cancelled) {
            return Err(Problem::new("session_unknown", "the session was ended"));
        }
        if let Some(at) = self.expires_at
            && at <= self.standing.clock.now()
        {
            return Err(Problem::new("token_expired", "the credential expired"));
        }
        if self.is_revoked() {
            return Err(Problem::new("token_revoked", "the credential was revoked"));
        }
        if let Identity::Signed { key, .. } = &*self.identity
            && !self.standing.keys().has(key)
        {
            let detail = "the key that signed the token is not in the key set any more";
            return Err(Problem::new("token_revoked", detail));
        }
        Ok(())
    }

    fn is_revoked(&self) -> bool {
        let revoked = self.standing.revoked();
        if revoked.is_empty() {
            return false;
        }
        match &*self.identity {
            Identity::Open => false,
            Identity::Static { name } => revoked.contains_key(&Revoked::Name(name.clone())),
            Identity::Signed { id, subject, issued_at, .. } => {
                let since = |subject: &String| revoked.get(&Revoked::Subject(subject.clone()));
                id.as_ref().is_some_and(|id| revoked.contains_key(&Revoked::Token(id.clone())))
                    // Who does not say when it was issued may have been issued before.
                    || subject.as_ref().and_then(since).is_some_and(|at| issued_at.is_none_or(|it| it <= *at))
            }
        }
    }

    /// Waits until the credential is not good any more, and answers why. Cancel-safe, and needs nothing but itself:
    /// streams wait for it beside what they wait for.
    pub(in crate::gateway) fn ended(&self) -> impl Future<Output = Problem> + Send + use<> {
        let valid = self.clone();
        async move {
            let mut changed = valid.standing.changed.subscribe();
            loop {
                if let Err(problem) = valid.check() {
                    return problem;
                }
                tokio::select! {
                    // It cannot fail: the sender lives in what is held here.
                    _ = changed.changed() => {}
                    () = valid.runs_out() => {}
                }
            }
        }
    }

    /// Until it may have ended by itself. Boxed: most credentials of open connections have nothing to wait for.
    fn runs_out(&self) -> BoxFuture<'_, ()> {
        if self.session.is_none() && self.expires_at.is_none() {
            return std::future::pending().boxed();
        }
        async {
            let session = self.session.clone().unwrap_or_default();
            tokio::select! {
                () = session.cancelled() => {}
                () = self.wait() => {}
            }
        }
        .boxed()
    }

    /// Until it is time to look again: clocks are set, so a long wait is cut in pieces.
    async fn wait(&self) {
        let Some(at) = self.expires_at else { return std::future::pending().await };
        let left = at.0.saturating_sub(self.standing.clock.now().0);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        tokio::time::sleep(left.min(CREDENTIAL_CHECK)).await;
    }
}
