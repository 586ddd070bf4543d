//! The credential of an open connection: what it opened ends with it, unless a newer one takes its place.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::problem::Problem;
use super::shell::{Authenticate, Fault, Until, until_cancelled};

/// Who watches, now. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Credential(Arc<watch::Sender<Caller>>);

impl Credential {
    pub(super) fn new(caller: Caller) -> Self {
        Self(Arc::new(watch::Sender::new(caller)))
    }

    /// Comes when the host stops, or the credential is not good any more and no newer one has come.
    pub(super) fn until(&self, edge: &Edge) -> Until {
        let mut callers = self.0.subscribe();
        let ended = async move {
            loop {
                let ended = callers.borrow_and_update().valid.ended();
                tokio::select! {
                    problem = ended => return Fault::from(problem),
                    changed = callers.changed() => if changed.is_err() {
                        // Nobody can send a newer one any more: this one is waited for.
                        let ended = callers.borrow().valid.ended();
                        return ended.await.into();
                    },
                }
            }
        };
        let stopped = until_cancelled(edge.stopping.clone());
        async move {
            tokio::select! {
                fault = ended => fault,
                fault = stopped => fault,
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
                if !caller.sees_the_same(&credential.0.borrow()) {
                    let detail = "the token is of another tenant, or reads other rows than the first one";
                    return Err(Problem::new("token_differs", detail).into());
                }
                credential.0.send_replace(caller);
                Ok(())
            }
            .boxed()
        })
    }
}
