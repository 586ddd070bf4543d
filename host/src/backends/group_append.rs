//! Appends to a control feed that come while one is under way are written together: a sync costs the same for many.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::control::{ControlEvent, ControlVersion, Result};
use crate::error::BackendError;
use crate::limits::{CONTROL_APPENDS_AT_ONCE_MAX, CONTROL_APPENDS_WAITING_MAX};

/// Something that writes several events at the price of one.
pub(super) trait WritesTogether: Send + Sync + 'static {
    fn appends(&self) -> &Appends;

    /// One outcome for each event, in their order; an error is that of all of them. Blocks.
    fn write(&self, events: &[ControlEvent]) -> Result<Vec<Result<ControlVersion>>>;
}

/// Events that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Appends {
    waiting: Mutex<Vec<Waiting>>,
    writing: Mutex<()>,
}

#[derive(Debug)]
struct Waiting {
    event: ControlEvent,
    reply: oneshot::Sender<Result<ControlVersion>>,
}

/// Writes an event, off the async threads. One that is dropped meanwhile may be written all the same.
pub(super) fn append<W: WritesTogether>(
    writer: &Arc<W>,
    event: &ControlEvent,
) -> BoxFuture<'static, Result<ControlVersion>> {
    let (writer, event) = (Arc::clone(writer), event.clone());
    async move {
        let (reply, answer) = oneshot::channel();
        writer.appends().wait(Waiting { event, reply })?;
        // The first thread writes what all have brought; the others find nothing left to do. Only a panic fails here,
        // and then there is no answer either.
        let _ = tokio::task::spawn_blocking(move || write_waiting(&*writer)).await;
        answer.await.unwrap_or_else(|_| Err(BackendError::Closed.into()))
    }
    .boxed()
}

fn write_waiting<W: WritesTogether>(writer: &W) {
    let appends = writer.appends();
    let _writing = appends.writing.lock().unwrap_or_else(PoisonError::into_inner);
    let (events, replies): (Vec<_>, Vec<_>) =
        appends.take().into_iter().map(|one| (one.event, one.reply)).unzip();
    if events.is_empty() {
        return;
    }
    let outcomes =
        writer.write(&events).unwrap_or_else(|error| events.iter().map(|_| Err(error.clone())).collect());
    for (reply, outcome) in replies.into_iter().zip(outcomes) {
        // Whoever has stopped waiting asks again with the same id.
        let _ = reply.send(outcome);
    }
}

impl Appends {
    fn wait(&self, one: Waiting) -> Result<()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= CONTROL_APPENDS_WAITING_MAX {
            // Not the event's fault: it is to be tried again.
            let max = CONTROL_APPENDS_WAITING_MAX;
            let detail = format!("{max} appends wait to be written; control_appends_waiting_max is {max}");
            return Err(BackendError::Failed { detail }.into());
        }
        waiting.push(one);
        Ok(())
    }

    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let some = waiting.len().min(CONTROL_APPENDS_AT_ONCE_MAX);
        waiting.drain(..some).collect()
    }
}
