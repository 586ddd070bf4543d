//! Answering appends, and telling followers, once what was written has come to stay: one wait for all that came meanwhile.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::calls::Answer;
use super::lanes::Reply;
use super::{Result, Shared};
use crate::channels::{Appended, ChannelId, Entry, Head};
use crate::error::BackendError;
use crate::limits::REDIS_CHANNELS_SETTLING_MAX;
use crate::tasks::TaskError;

/// A group of appends that the server has carried out, or that is refused.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) id: ChannelId,
    pub(super) told: Option<Told>,
    /// What has to come to stay; none where the server was not asked.
    pub(super) answer: Option<Answer>,
    pub(super) replies: Vec<(Reply, Result<Vec<Appended>>)>,
}

/// What followers are told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) incarnation: Arc<str>,
    pub(super) head: Head,
    pub(super) entries: Vec<Arc<Entry>>,
}

impl Settling {
    /// On which connection it was answered, where that has to come to stay.
    fn waits_on(&self) -> Option<u64> {
        let answer = self.answer.as_ref()?;
        let says = self.told.is_some() || self.replies.iter().any(|(_, answer)| answer.is_ok());
        (says && !answer.lasts()).then_some(answer.linked.number)
    }

    fn finish(self, shared: &Shared) {
        if let Some(Told { incarnation, head, entries }) = self.told {
            shared.publish(&self.id, &incarnation, head, &entries);
        }
        for (reply, answer) in self.replies {
            // Nobody may be waiting any more.
            let _ = reply.send(answer);
        }
    }

    fn fail(self, shared: &Shared, error: &BackendError) {
        shared.look_at(&self.id.process);
        for (reply, answer) in self.replies {
            let _ = reply.send(answer.and_then(|_| Err(error.clone().into())));
        }
    }
}

impl Shared {
    pub(super) async fn settle(&self, settling: Settling) {
        if settling.waits_on().is_none() {
            if let Some(answer) = settling.answer.as_ref().filter(|answer| answer.lasts()) {
                self.lasts(&answer.stamp);
            }
            return settling.finish(self);
        }
        // Without the task that waits, nobody does.
        let _ = self.settling.send(settling).await;
    }
}

/// Waits for what others hand over, in the order in which they do.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut waiting: mpsc::Receiver<Settling>,
) -> std::result::Result<(), TaskError> {
    let mut all = Vec::new();
    while waiting.recv_many(&mut all, REDIS_CHANNELS_SETTLING_MAX).await > 0 {
        while let Some(number) = all.first().map(Settling::waits_on) {
            let same = all.iter().take_while(|settling| settling.waits_on() == number).count();
            let group: Vec<Settling> = all.drain(..same).collect();
            let answers = group.iter().filter_map(|settling| settling.answer.as_ref());
            let settled = match answers.max_by_key(|answer| answer.stamp.at()) {
                Some(last) => shared.settled(last).await,
                None => Ok(()),
            };
            for settling in group {
                match &settled {
                    Ok(()) => settling.finish(&shared),
                    Err(error) => settling.fail(&shared, error),
                }
            }
        }
    }
    Ok(())
}
