//! Making, changing and removing processes.

use std::sync::Arc;

use super::calls::{Answer, key_of};
use super::records::{Record, assigned, shape, to_json};
use super::{Result, Shared, unknown};
use crate::backends::redis::faults::remote;
use crate::backends::redis::scripts::{CHANNEL_MANAGE, CHANNEL_REMOVE, list, number, text};
use crate::channels::{
    Actor, Change, Incarnation, NewProcess, ProcessId, ProcessName, ProcessView, change, create,
};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Micros, TenantId};
use crate::limits::{
    CHANNEL_SWEEP_PROCESSES_MAX, REDIS_CHANNELS_CARRIED_SWEEP, REDIS_CHANNELS_PURGE_KEYS,
    REDIS_CHANNELS_TURNS_MAX,
};

/// Somebody was faster each time.
pub(super) fn outrun() -> BackendError {
    remote(RemoteFault::Timeout, "channels: others have changed the same each time that it was tried")
}

/// The names of channels in their order.
fn names_of(view: &ProcessView) -> String {
    view.channels.iter().map(|channel| channel.name.as_str()).collect::<Vec<_>>().join("\n")
}

fn process_id(name: &str) -> Option<ProcessId> {
    let (tenant, name) = name.split_once(':')?;
    Some(ProcessId { tenant: TenantId::new(tenant).ok()?, name: ProcessName::new(name).ok()? })
}

impl Shared {
    pub(super) async fn create(&self, new: NewProcess) -> Result<(ProcessView, bool)> {
        let id = new.id.clone();
        let (incarnation, anew) = (ulid::Ulid::new().to_string(), Incarnation::new());
        let tag = self.tag();
        let (mut known, mut of_tenant, mut answer) = self.look_up(&id).await?;
        for turn in 0..REDIS_CHANNELS_TURNS_MAX {
            if let Some(made) = known.as_ref().filter(|made| *made.incarnation == *incarnation) {
                // By a call whose answer was lost.
                self.settled(&answer).await?;
                return Ok((made.view(), true));
            }
            let view = known.as_ref().map(Record::view);
            let now = (anew, self.clock.now());
            let made = create(view.as_ref(), new.clone(), of_tenant, now, &self.limits)?;
            let Some(made) = made else {
                self.settled(&answer).await?;
                return Ok((view.ok_or_else(|| unknown(&id))?, false));
            };
            self.turn(turn).await;
            answer = self.write_new(&id, &tag, &incarnation, &made).await?;
            let record = self.taken(&id, &mut answer)?;
            if answer.done() {
                self.settled(&answer).await?;
                return Ok((record.ok_or_else(shape)?.view(), true));
            }
            of_tenant = answer.parts.first().and_then(number).ok_or_else(shape)?;
            known = record;
        }
        Err(outrun().into())
    }

    async fn write_new(
        &self,
        id: &ProcessId,
        tag: &str,
        incarnation: &str,
        view: &ProcessView,
    ) -> std::result::Result<Answer, BackendError> {
        let process = to_json(&*view.process)?;
        let channels = view.channels.iter().map(|channel| Ok((channel.name.as_str(), assigned(channel)?)));
        let channels = channels.collect::<std::result::Result<Vec<_>, BackendError>>()?;
        self.call(&CHANNEL_MANAGE, tag, |command| {
            command.arg("create").arg(key_of(id)).arg(incarnation).arg(view.process.version).arg(&process);
            command.arg(names_of(view)).arg(self.limits.processes_max);
            for (name, channel) in &channels {
                command.arg(name).arg(channel);
            }
        })
        .await
    }

    pub(super) async fn change(&self, id: &ProcessId, by: &Actor, what: Change) -> Result<ProcessView> {
        let tag = self.tag();
        let (mut known, _, mut answer) = self.look_up(id).await?;
        for turn in 0..REDIS_CHANNELS_TURNS_MAX {
            let record = known.ok_or_else(|| unknown(id))?;
            let mut view = record.view();
            // Otherwise a call whose answer was lost has done it.
            if record.tag != tag {
                if !change(&mut view, by, what.clone(), self.clock.now(), &self.limits)? {
                    self.settled(&answer).await?;
                    return Ok(view);
                }
                self.turn(turn).await;
                answer = self.write_change(id, &tag, &record, &view).await?;
                known = self.taken(id, &mut answer)?;
                if !answer.done() {
                    continue;
                }
                view = known.ok_or_else(shape)?.view();
            }
            self.settled(&answer).await?;
            self.publish_view(id, &record.incarnation, &view);
            return Ok(view);
        }
        Err(outrun().into())
    }

    async fn write_change(
        &self,
        id: &ProcessId,
        tag: &str,
        before: &Record,
        view: &ProcessView,
    ) -> std::result::Result<Answer, BackendError> {
        let process = to_json(&*view.process)?;
        let closed_at =
            view.process.closed.as_ref().map(|closed| closed.at.0.to_string()).unwrap_or_default();
        let mut changed = Vec::new();
        for channel in &view.channels {
            match before.channel(&channel.name) {
                Some(known) if Arc::ptr_eq(&known.channel, channel) => {}
                known => changed.push((channel.name.as_str(), assigned(channel)?, known.is_none())),
            }
        }
        self.call(&CHANNEL_MANAGE, tag, |command| {
            command.arg("change").arg(key_of(id)).arg(&*before.incarnation).arg(view.process.version);
            command.arg(&process).arg(names_of(view)).arg(before.process.version).arg(&closed_at);
            for (name, channel, is_new) in &changed {
                command.arg(name).arg(channel).arg(u8::from(*is_new));
            }
        })
        .await
    }

    /// Lets others go first, after they were faster.
    pub(super) async fn turn(&self, turn: usize) {
        if turn > 0 {
            metrics::counter!(crate::telemetry::metrics::REDIS_CHANNELS_CONFLICTS).increment(1);
            let share = rand::random::<f64>() * turn.min(16) as f64 / 16.0;
            tokio::time::sleep(crate::limits::REDIS_CHANNELS_TURN_WAIT_MAX.mul_f64(share)).await;
        }
    }

    pub(super) async fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> Result<bool> {
        // The server knows it by another name, which its record has.
        let meant = match only {
            None => None,
            Some(only) => {
                let (record, _, answer) = self.look_up(id).await?;
                match record.filter(|record| Incarnation::of(&record.process) == only) {
                    Some(record) => Some(record.incarnation),
                    None => {
                        self.settled(&answer).await?;
                        return Ok(false);
                    }
                }
            }
        };
        let fill = |command: &mut redis::Cmd| {
            command.arg("remove").arg(key_of(id)).arg(meant.as_deref().unwrap_or_default());
        };
        let answer = self.call(&CHANNEL_REMOVE, &self.tag(), fill).await?;
        let removed = answer.parts.first().and_then(text).filter(|of| !of.is_empty());
        self.settled(&answer).await?;
        // Where none was removed none is left of what was meant: another one of the name goes on.
        self.gone(id, removed.or(meant.as_deref()), answer.stamp.at());
        Ok(answer.again || removed.is_some())
    }

    pub(super) async fn expire(&self, closed_before: Micros) -> Result<usize> {
        let mut count = 0;
        while count < CHANNEL_SWEEP_PROCESSES_MAX {
            let most = CHANNEL_SWEEP_PROCESSES_MAX - count;
            let fill = |command: &mut redis::Cmd| {
                command.arg("expire").arg(closed_before.0).arg(most).arg(REDIS_CHANNELS_PURGE_KEYS);
                command.arg(REDIS_CHANNELS_CARRIED_SWEEP);
            };
            let mut answer = self.call(&CHANNEL_REMOVE, &self.tag(), fill).await?;
            let removed = list(answer.next()?).ok_or_else(shape)?;
            let more = answer.parts.first().and_then(number::<u8>).ok_or_else(shape)? == 1;
            self.settled(&answer).await?;
            count += removed.len();
            for id in removed.iter().filter_map(text).filter_map(process_id) {
                self.gone(&id, None, answer.stamp.at());
            }
            if !more {
                break;
            }
        }
        Ok(count)
    }
}
