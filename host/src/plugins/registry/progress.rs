//! Telling a caller how far its deploy is.

use tokio::sync::mpsc;

use crate::plugins::DeployStep;

/// Who wants to know. A deploy waits for nobody: a caller without room, or who is gone, is not told.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(pub(super) Option<mpsc::Sender<DeployStep>>);

impl Progress {
    pub(super) fn tell(&self, step: DeployStep) {
        if let Some(caller) = &self.0 {
            // See above.
            let _ = caller.try_send(step);
        }
    }
}
