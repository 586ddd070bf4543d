//! Writing what has changed in a group: one write at a time, with all that has come until it begins.
//!
//! A write says of the whole group what is done, and says once what became of an entry. None begins before the former
//! one is known to have come to stay: otherwise it could say that an entry is done whose dead letter went down with the
//! former one. It is a task of its own, since whoever asked for it may leave.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::error::GroupError;
use super::owner::{Group, Held, Inner};
use super::status::Result;
use crate::tasks::TaskKind;

/// What is to be written of a group.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// So many had something to write.
    taken: u64,
    /// A task writes.
    writing: bool,
    /// Waiting reads can use what one of those did that wait for it.
    wakes: bool,
}

impl Turns {
    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }
}

/// Up to which turn everything is written, and why no further.
#[derive(Debug, Default)]
pub(super) struct Written {
    upto: u64,
    failed: Option<GroupError>,
}

/// A task that writes. However it ends, nobody waits for it afterwards.
struct Writing {
    inner: Arc<Inner>,
    group: Arc<Group>,
    ended: bool,
}

impl Inner {
    /// Lets be written what is not. Answers which turn this is.
    pub(super) fn begin_write(self: &Arc<Self>, group: &Arc<Group>, held: &mut Held, wakes: bool) -> u64 {
        let turns = &mut held.turns;
        turns.taken += 1;
        turns.wakes |= wakes;
        if !turns.writing {
            turns.writing = true;
            let writing = Writing { inner: Arc::clone(self), group: Arc::clone(group), ended: false };
            self.tasks.spawn(TaskKind::SESSION, "group writes", writing.run().map(Ok));
        }
        turns.taken
    }
}

impl Group {
    /// Waits until a turn is written.
    pub(super) async fn wrote(&self, turn: u64) -> Result<()> {
        let mut written = self.written.subscribe();
        let seen = written.wait_for(|written| written.upto >= turn || written.failed.is_some()).await;
        match seen {
            Ok(written) if written.upto >= turn => Ok(()),
            Ok(written) => Err(written.failed.clone().unwrap_or_else(|| self.interrupted())),
            Err(_) => Err(self.interrupted()),
        }
    }

    fn interrupted(&self) -> GroupError {
        GroupError::Interrupted { group: self.id.clone() }
    }
}

impl Writing {
    async fn run(mut self) {
        // No other task writes, so nobody else has changed it.
        let mut done = self.group.written.borrow().upto;
        loop {
            let (write, upto, wakes) = {
                let mut held = self.group.lock();
                let Held { state, turns, .. } = &mut *held;
                if turns.taken == done {
                    turns.writing = false;
                    self.ended = true;
                    return;
                }
                (state.write(), turns.taken, std::mem::take(&mut turns.wakes))
            };
            if let Err(error) = self.inner.store.write(&self.group.id, write).await {
                self.fail(error);
                return;
            }
            done = upto;
            self.group.written.send_modify(|written| written.upto = upto);
            if wakes {
                self.group.changed.notify_waiters();
            }
        }
    }

    /// What is in memory is more than the store has: it goes.
    fn fail(&mut self, error: GroupError) {
        self.ended = true;
        self.inner.close(&self.group);
        self.group.written.send_modify(|written| written.failed = Some(error));
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.ended {
            let error = self.group.interrupted();
            self.fail(error);
        }
    }
}
