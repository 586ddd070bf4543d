//! Calling the scripts, over lost connections and while the log is looked at anew.

use redis::{FromRedisValue, Value};
use tokio::time::Instant;

use super::answers::{Answer, name_of, taken};
use super::{Inner, Result};
use crate::backends::redis::faults::{backend, ends_session, remote};
use crate::backends::redis::scripts::Script;
use crate::error::{BackendError, RemoteFault};
use crate::limits::{REDIS_CONSUMERS_CALL_WAIT_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN};
use crate::streams::groups::{GroupError, GroupId};

impl Inner {
    /// Runs a script for a group, or for none. `fill` adds its own arguments; it is told whether a call before may have
    /// been carried out without an answer.
    pub(super) async fn call(
        &self,
        script: &Script,
        id: Option<&GroupId>,
        fill: impl Fn(&mut redis::Cmd, bool),
    ) -> Result<Answer> {
        let end = Instant::now() + REDIS_CONSUMERS_CALL_WAIT_MAX;
        let (mut wait, mut again) = (REDIS_RETRY_WAIT_MIN, false);
        let name = id.map(name_of).unwrap_or_default();
        loop {
            let error = match self.once(script, &name, |command| fill(command, again)).await {
                Ok(answer) if answer.code == "unknown" => {
                    let group = id.cloned().ok_or(BackendError::Closed)?;
                    return Err(GroupError::Unknown { group });
                }
                // The follower of the log finds that out, too, and then begins with the other one.
                Ok(answer) if answer.code == "log" => {
                    remote(RemoteFault::Unreachable, "a group's script: the log is another one")
                }
                Ok(answer) => return Ok(answer),
                Err(error) if ends_session(&error) => {
                    again = true;
                    error
                }
                Err(error) => return Err(error.into()),
            };
            if Instant::now() + wait > end {
                return Err(error.into());
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
        }
    }

    async fn once(
        &self,
        script: &Script,
        name: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> std::result::Result<Answer, BackendError> {
        let mut linked = self.link.shared().await?;
        let epoch = self.log.epoch();
        let time = self.clock.as_ref().map(|clock| clock.now().0.to_string()).unwrap_or_default();
        let keys = self.keys.of_groups();
        let call = script.run(&mut linked.connection, &keys, |command| {
            command.arg(&*epoch.0).arg(&time).arg(self.bounds.as_str()).arg(name);
            fill(command);
        });
        let answer: std::result::Result<Value, _> =
            call.await.map_err(|error| backend("about a group", &error));
        let answer = self.link.ended(linked.number, answer).await?;
        taken(answer, linked)
    }

    /// A command that only reads.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T> {
        let mut linked = self.link.shared().await?;
        let answer = command.query_async(&mut linked.connection).await;
        let answer = answer.map_err(|error| backend("looking for groups", &error));
        Ok(self.link.ended(linked.number, answer).await?)
    }

    /// Waits until what a script has written has come to stay.
    pub(super) async fn durable(&self, answer: &Answer) -> Result<()> {
        let status = self.statuses.borrow().clone();
        match (status.durability, status.problem) {
            (Some(durability), _) => Ok(self.barrier.reached(durability, &answer.linked).await?),
            (None, Some(problem)) => Err(problem.into()),
            (None, None) => Err(BackendError::Closed.into()),
        }
    }
}
