//! A position at which a processor stands still, with everything up to it done, flushed and committed.
//!
//! Two runs of the same events stand at the same position before one takes the other's place. What the one has
//! handled by then it has emitted, and what comes afterwards the other will: each emission is made exactly once.
//! Work that time brings is done by both when they come to stand, and not again until they go on.

use std::sync::Arc;

use futures_util::future::join_all;

use super::super::runner::{Runner, Shared};
use super::super::task::Task;
use crate::event::{Position, TenantId};
use crate::limits::{REBUILD_HOLD_AGAIN, REBUILD_HOLD_LOOK};

/// Something was handled already that lies behind the position that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the processor has come to position {0} already")]
pub struct Ahead(pub Position);

/// How the tasks of a processor stand to a position.
enum Look {
    All(Vec<Arc<Task>>),
    NotYet,
    Ahead(Position),
}

impl Runner {
    /// Has every tenant come to this position and stand there: nothing behind it is handed out, and every task
    /// flushes and commits. Answers when all do. Until [`Self::release`] they stay there, also when this call is
    /// dropped; calls with other positions move them on, and never back.
    ///
    /// Parked events have no part in this: they are tried while the others stand, in commits of their own.
    pub async fn hold_at(&self, barrier: Position) -> Result<(), Ahead> {
        let shared = self.shared();
        self.halt_at(barrier);
        loop {
            match shared.halted(barrier) {
                Look::Ahead(position) => return Err(Ahead(position)),
                Look::All(tasks) => {
                    let standing = join_all(tasks.iter().map(|task| task.stand(barrier))).await;
                    if let Some(Some(Err(ahead))) = standing.iter().find(|s| matches!(s, Some(Err(_)))) {
                        return Err(*ahead);
                    }
                    if standing.iter().all(|stands| matches!(stands, Some(Ok(())))) {
                        return Ok(());
                    }
                    // One could not be flushed, and is asked again. The others answer without a call.
                    tokio::time::sleep(REBUILD_HOLD_AGAIN).await;
                }
                // A run begins or begins again, or a feed has some way to go.
                Look::NotYet => tokio::time::sleep(REBUILD_HOLD_LOOK).await,
            }
        }
    }

    /// Has nothing handed out behind this position. What has passed it already stays where it is.
    pub fn halt_at(&self, barrier: Position) {
        let shared = self.shared();
        shared.barrier.send_replace(Some(barrier));
        if shared.settings.background {
            shared.pool.line_up_again(&shared.name);
        }
    }

    /// Lets all go on.
    pub fn release(&self) {
        let shared = self.shared();
        shared.barrier.send_replace(None);
        for task in shared.tasks() {
            task.release();
        }
    }

    /// Ends it where it stands: nothing more is handled, flushed or committed. A lease that comes with it is kept
    /// until [`Self::stop`].
    pub fn cut_off(&self) {
        let shared = self.shared();
        shared.cancel.cancel();
        for task in shared.tasks() {
            task.close();
        }
        shared.jobs.close();
    }
}

impl Shared {
    /// The tasks of all tenants, once each tenant's feed has halted at the position.
    fn halted(&self, barrier: Position) -> Look {
        // A tenant that is new after this has nothing up to the barrier: that was the log's newest position before.
        let tenants: Vec<TenantId> =
            self.log.tenants().into_iter().filter(|tenant| self.serves(tenant)).collect();
        let mut all = Vec::new();
        for tenant in &tenants {
            match self.halted_tasks(tenant) {
                Some((position, _)) if position > barrier => return Look::Ahead(position),
                Some((position, tasks)) if position == barrier && !tasks.is_empty() => all.extend(tasks),
                _ => return Look::NotYet,
            }
        }
        Look::All(all)
    }
}
