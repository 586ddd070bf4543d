//! A processor that several hosts could run: when this one may, what it says then, and how it lets others.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::runner::{Shared, SharedLog};
use crate::checkpoints::Outbox;
use crate::cluster::{Ownership, Standing};
use crate::error::{Classify as _, Retry};
use crate::limits::{OUTBOX_DRAIN_MAX, OUTBOX_LOOK_EVERY, RESTART_WAIT_MAX, RESTART_WAIT_MIN};

/// How a processor stands to the other hosts of its log.
pub(super) struct Owned {
    ownership: Ownership,
    /// The generation under which its change scopes were declared last.
    declared: watch::Sender<Option<u64>>,
    given_up: CancellationToken,
    outbox: Arc<dyn Outbox>,
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("ownership", &self.ownership).finish_non_exhaustive()
    }
}

impl Owned {
    /// Asks for a processor; what comes with it has to be polled for that.
    pub(super) fn keep(
        name: &str,
        log: &SharedLog,
    ) -> (Self, impl Future<Output = ()> + Send + 'static + use<>) {
        let given_up = CancellationToken::new();
        let (ownership, keeper) = log.owners.keep(name, given_up.clone());
        let outbox = Arc::clone(&log.outbox);
        (Self { ownership, declared: watch::Sender::new(None), given_up, outbox }, keeper)
    }

    /// The host that runs it, where that is another one.
    pub(super) fn standby(&self) -> Option<String> {
        match self.ownership.now() {
            Standing::Standby { holder } => Some(holder),
            Standing::Owner(_) | Standing::Unknown => None,
        }
    }

    /// Returns once this host may run it, and has declared its change scopes, with the generation.
    pub(super) async fn declared(&self) -> (Ownership, u64) {
        let mut ownership = self.ownership.clone();
        let mut declared = self.declared.subscribe();
        loop {
            let generation = ownership.gained().await;
            tokio::select! {
                biased;
                () = ownership.lost(generation) => {}
                // The sender is as old as this is.
                Ok(_) = declared.wait_for(|declared| *declared == Some(generation)) => {
                    return (ownership.clone(), generation);
                }
            }
        }
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    /// Gives the lease back, once the log has what the processor emitted here. What is left then is carried when this
    /// host owns it again; the next owner emits the same events.
    async fn give_back(&self, name: &str) {
        let carried = async {
            while !self.outbox.is_empty_of(name) {
                tokio::time::sleep(OUTBOX_LOOK_EVERY).await;
            }
        };
        drop(tokio::time::timeout(OUTBOX_DRAIN_MAX, carried).await);
        self.given_up.cancel();
    }
}

impl Shared {
    /// Declares the change scopes each time that this host becomes the owner: the one before may have run another
    /// version, or was told to remove the plugin.
    pub(super) async fn keep_declared(self: Arc<Self>) {
        let Some(owned) = &self.owned else { return };
        let mut ownership = owned.ownership.clone();
        loop {
            let generation = tokio::select! {
                generation = ownership.gained() => generation,
                () = self.cancel.cancelled() => return,
                () = owned.given_up.cancelled() => return,
            };
            tokio::select! {
                () = self.declare() => {
                    owned.declared.send_replace(Some(generation));
                    tokio::select! {
                        () = ownership.lost(generation) => {}
                        () = self.cancel.cancelled() => return,
                    }
                }
                () = ownership.lost(generation) => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }

    /// Until it has succeeded, or cannot.
    async fn declare(&self) {
        let mut wait = RESTART_WAIT_MIN;
        loop {
            let factory = self.factory();
            let changes = &factory.manifest().changes;
            if changes.is_empty() && !self.log.scopes().has_owner(&self.name) {
                return;
            }
            let Err(error) = self.log.declare_scopes(&self.name, changes).await else { return };
            let again = error.retry() != Retry::Never;
            warn!(plugin.name = %self.name, error.kind = error.code(), error.blame = error.blame().as_str(), %error, again, "the change scopes of a plugin are not declared");
            if !again {
                // Whose events are in which change stream does not depend on who handles them.
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESTART_WAIT_MAX);
        }
    }

    /// Lets another host run it at the end, once the log has what it emitted here.
    pub(super) async fn give_up(&self) {
        let Some(owned) = self.owned.as_ref().filter(|owned| !owned.is_given_up()) else { return };
        owned.give_back(&self.name).await;
        // A lease that cannot be given back now ends by itself.
        drop(tokio::time::timeout(OUTBOX_DRAIN_MAX, self.jobs.wait()).await);
    }

    /// Lets another host run it, whose store may have what is lost here. This one asks for it no more.
    pub(super) async fn leave_to_others(&self) {
        let Some(owned) = self.owned.as_ref().filter(|owned| !owned.is_given_up()) else { return };
        warn!(plugin.name = %self.name, error.kind = "position_lost", error.blame = "host", "the processor is left to other hosts until it is resumed or deployed again here");
        owned.give_back(&self.name).await;
    }
}
