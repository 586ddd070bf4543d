//! The credential of an open connection: what it opened ends with it, unless a newer one takes its place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::problem::Problem;
use super::shell::{Authenticate, Until, until_cancelled};

/// Who watches, now. Clones are the same. One waits for its end.
#[derive(Clone, Debug)]
pub(super) struct Credential(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    caller: Mutex<Caller>,
    newer: Notify,
}

/// Comes when the host stops, or a credential that nothing can renew is not good any more.
pub(in super::super) fn until_ended(caller: &Caller, edge: &Edge) -> Until {
    let (ended, stopped) = (caller.valid.ended(), until_cancelled(edge.stopping.clone()));
    async move {
        tokio::select! {
            problem = ended => problem.into(),
            fault = stopped => fault,
        }
    }
    .boxed()
}

impl Credential {
    pub(super) fn new(caller: Caller) -> Self {
        Self(Arc::new(Shown { caller: Mutex::new(caller), newer: Notify::new() }))
    }

    fn caller(&self) -> MutexGuard<'_, Caller> {
        // Nothing that can panic happens under it.
        self.0.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes when the host stops, or the credential is not good any more and no newer one has come.
    pub(super) fn until(&self, edge: &Edge) -> Until {
        let (credential, stopped) = (self.clone(), until_cancelled(edge.stopping.clone()));
        async move {
            tokio::pin!(stopped);
            loop {
                let ended = credential.caller().valid.ended();
                tokio::select! {
                    problem = ended => return problem.into(),
                    fault = &mut stopped => return fault,
                    // One that came before anybody waited is not missed.
                    () = credential.0.newer.notified() => {}
                }
            }
        }
        .boxed()
    }

    /// Takes a newer token. It must be of the same tenant and read the same rows: what is open was opened so.
    pub(super) fn renewals(&self, edge: &Arc<Edge>) -> Authenticate {
        let (credential, edge) = (self.clone(), Arc::clone(edge));
        Arc::new(move |token| {
            let (credential, edge) = (credential.clone(), Arc::clone(&edge));
            async move {
                let caller = edge.authenticate(&token).await?;
                if !caller.sees_the_same(&credential.caller()) {
                    let detail = "the token is of another tenant, or reads other rows than the first one";
                    return Err(Problem::new("token_differs", detail).into());
                }
                *credential.caller() = caller;
                credential.0.newer.notify_one();
                Ok(())
            }
            .boxed()
        })
    }
}
