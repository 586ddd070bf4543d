//! What processors append, out of the outbox of their host: in its order, each entry once.
//!
//! It does not go through the lanes, since each entry may come to something else, and what is behind one that waits has to
//! wait, too. Other appends to the channel may be faster, as those of other hosts are. What would be refused is asked for
//! by its key before: an `end` that lies there already is no second one.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::calls::{Answer, Said, key_of};
use super::decide::{Decided, Found, Plan, decide};
use super::manage::outrun;
use super::records::{Seen, shape};
use super::settling::{Settling, Told};
use super::write::By;
use super::{RedisChannels, Shared};
use crate::backends::redis::faults::ends_session;
use crate::backends::redis::scripts::{CHANNEL_MANAGE, list, number};
use crate::channels::{Append, Cause, ChannelError, ChannelId, Party, check_depth};
use crate::checkpoints::{
    CarriedAppend, CarriedAppends, CarryError, ChannelCarrier, Fate, PLUGIN_PARTY, WhileFull,
};
use crate::error::{BackendError, Classify as _};
use crate::limits::{
    REDIS_CHANNELS_CARRIED_MAX, REDIS_CHANNELS_TURNS_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN,
};

impl ChannelCarrier for RedisChannels {
    fn carry<'a>(
        &'a self,
        processor: &'a str,
        appends: &'a CarriedAppends,
        fence: Option<(&'a str, u64)>,
        full: WhileFull,
    ) -> BoxFuture<'a, Result<Vec<Fate>, CarryError>> {
        async move {
            let CarriedAppends { channel: id, appends } = appends;
            let party = match Party::new(&format!("{PLUGIN_PARTY}{processor}")) {
                Ok(party) => party,
                Err(error) => return Ok(appends.iter().map(|_| refused(&error)).collect()),
            };
            let shared = &self.inner.shared;
            let life = shared.known().life;
            let carrying = Carrying {
                shared,
                id,
                party,
                carrier: format!("{}:{processor}", id.process.tenant),
                appends,
                fence,
                full,
                fates: vec![None; appends.len()],
                seen: shared.recalled(id, life),
                fresh: false,
                asked: false,
                heard: None,
                turns: 0,
            };
            carrying.run().await
        }
        .boxed()
    }
}

fn refused(error: &ChannelError) -> Fate {
    Fate::Refused { code: error.code(), message: error.to_string() }
}

/// Whether it is for room alone that an entry is refused.
fn is_full(error: &ChannelError) -> bool {
    matches!(error, ChannelError::Full { .. } | ChannelError::Limit { limit: "process_bytes_max", .. })
}

fn cause_of(append: &CarriedAppend) -> Cause<'_> {
    Cause { depth: append.depth, scope: &append.scope, traceparent: &append.traceparent }
}

/// Entries of one processor on their way into a channel.
struct Carrying<'a> {
    shared: &'a Arc<Shared>,
    id: &'a ChannelId,
    party: Party,
    carrier: String,
    appends: &'a [CarriedAppend],
    fence: Option<(&'a str, u64)>,
    full: WhileFull,
    /// Of those for which it is known.
    fates: Vec<Option<Fate>>,
    /// What is known of the channel; where that is fresh, none says that there is none.
    seen: Option<Seen>,
    /// It is what the server has just said.
    fresh: bool,
    /// Which of them were appended before is known.
    asked: bool,
    /// What that stands on.
    heard: Option<Answer>,
    turns: usize,
}

/// What the rest of them comes to.
#[derive(Default)]
struct Outlook {
    plan: Option<Plan>,
    /// Which ones the plan appends.
    taken: Vec<usize>,
    /// Which ones are refused, or meet a full channel.
    left: Vec<(usize, Fate)>,
}

impl Carrying<'_> {
    async fn run(mut self) -> Result<Vec<Fate>, CarryError> {
        let end = Instant::now() + self.shared.append_wait_max;
        let mut wait = REDIS_RETRY_WAIT_MIN;
        loop {
            match self.step().await {
                Ok(true) => {
                    let fates = self.fates.into_iter();
                    return Ok(fates.map(|fate| fate.unwrap_or(Fate::Behind)).collect());
                }
                Ok(false) => {}
                Err(CarryError::Backend(error)) if ends_session(&error) && Instant::now() + wait < end => {
                    // What was sent may have been carried out.
                    (self.seen, self.fresh, self.asked) = (None, false, false);
                    self.shared.look_at(&self.id.process);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
                }
                Err(error) => {
                    self.shared.look_at(&self.id.process);
                    return Err(error);
                }
            }
        }
    }

    /// One step; true when there is none left.
    async fn step(&mut self) -> Result<bool, CarryError> {
        if self.seen.is_none() && !self.fresh {
            self.look().await?;
        }
        let outlook = self.outlook();
        if !outlook.left.is_empty() && !self.fresh {
            // What refuses them may be over.
            self.seen = None;
            return Ok(false);
        }
        if !outlook.left.is_empty() && !self.asked {
            self.ask().await?;
            return Ok(false);
        }
        let Outlook { plan, taken, left } = outlook;
        if let (Some(plan), Some(seen)) = (plan, self.seen.clone())
            && !plan.entries.is_empty()
        {
            if !self.write(seen, plan, &taken).await? {
                return Ok(false);
            }
        } else if let Some(heard) = &self.heard
            && self.fates.contains(&Some(Fate::Repeated))
        {
            self.shared.settled(heard).await?;
        }
        self.give_up(&left).await?;
        for (at, fate) in left {
            self.fates[at] = Some(fate);
        }
        Ok(true)
    }

    /// Has it remembered what is refused. A host that takes over handles its event again, and must not append it behind what
    /// came later, because what refused it is over.
    async fn give_up(&self, left: &[(usize, Fate)]) -> Result<(), CarryError> {
        let refused = left.iter().filter(|(_, fate)| matches!(fate, Fate::Refused { .. }));
        let refused: Vec<&str> = refused.map(|(at, _)| &*self.appends[*at].key).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let (lease, generation) = self.fence.unwrap_or_default();
        let names = &self.shared.keys;
        let keys: [&[u8]; 3] = [&names.channels, &names.meta, &names.leases];
        let tag = self.shared.tag();
        let call = self.shared.once_on(&keys, &CHANNEL_MANAGE, &tag, |command| {
            command.arg("drop").arg(&self.carrier).arg(lease).arg(generation);
            command.arg(REDIS_CHANNELS_CARRIED_MAX).arg(&refused);
        });
        match call.await?.said {
            Said::Fenced => Err(CarryError::Fenced),
            _ => Ok(()),
        }
    }

    /// Asks the server how the channel is.
    async fn look(&mut self) -> Result<(), BackendError> {
        let asked = |command: &mut redis::Cmd| {
            command.arg("head").arg(key_of(&self.id.process)).arg(self.id.name.as_str());
        };
        let mut answer = self.shared.read(asked).await?;
        let record = self.shared.taken(&self.id.process, &mut answer)?;
        self.seen = record.and_then(|record| Seen::of(&record, &self.id.name, answer.stamp.life));
        self.fresh = true;
        Ok(())
    }

    /// Those of which it is not known yet what becomes of them.
    fn rest(&self) -> Vec<usize> {
        (0..self.appends.len()).filter(|at| self.fates[*at].is_none()).collect()
    }

    /// Asks which of them were appended before.
    async fn ask(&mut self) -> Result<(), BackendError> {
        let rest = self.rest();
        let asked = |command: &mut redis::Cmd| {
            command.arg("carried").arg(key_of(&self.id.process)).arg(&self.carrier);
            for at in &rest {
                command.arg(&*self.appends[*at].key);
            }
        };
        let answer = self.shared.read(asked).await?;
        self.repeated(answer, &rest)?;
        self.asked = true;
        Ok(())
    }

    /// Takes in which of some were appended before.
    fn repeated(&mut self, mut answer: Answer, of: &[usize]) -> Result<(), BackendError> {
        for place in list(answer.next()?).ok_or_else(shape)? {
            let place = number::<usize>(&place).and_then(|place| of.get(place.checked_sub(1)?));
            self.fates[*place.ok_or_else(shape)?] = Some(Fate::Repeated);
        }
        self.heard = Some(answer);
        Ok(())
    }

    /// Decides on the rest, as far as the channel has room or nothing has to wait for that.
    fn outlook(&self) -> Outlook {
        let mut outlook = Outlook::default();
        let Some(seen) = &self.seen else {
            let (process, channel) = (self.id.process.to_string(), self.id.name.to_string());
            let unknown = refused(&ChannelError::Unknown { process, channel });
            outlook.left = self.rest().into_iter().map(|at| (at, unknown.clone())).collect();
            return outlook;
        };
        let mut asked: Vec<(usize, Append)> = Vec::new();
        for at in self.rest() {
            let one = &self.appends[at];
            match check_depth(&seen.head.channel, cause_of(one)) {
                Ok(()) => {
                    let entries = vec![one.entry.clone()];
                    asked.push((at, Append { who: self.party.clone(), epoch: None, entries }));
                }
                Err(error) => outlook.left.push((at, refused(&error))),
            }
        }
        let now = self.shared.clock.now();
        loop {
            let appends = asked.iter().map(|(_, append)| append);
            let decided = decide(seen, appends, &Found::new(), now, &self.shared.limits);
            // Who takes the next number repeats nothing.
            let Decided::Plan(plan) = decided else { return outlook };
            let answers = plan.answers.iter().enumerate();
            let mut errors = answers.filter_map(|(at, answer)| Some((at, answer.as_ref().err()?)));
            let full = errors.find(|(_, error)| is_full(error));
            if let (Some((stop, error)), WhileFull::Wait) = (full, self.full) {
                let at = asked[stop].0;
                outlook.left.retain(|(other, _)| *other < at);
                outlook.left.push((at, Fate::Full { code: error.code(), message: error.to_string() }));
                asked.truncate(stop);
                continue;
            }
            for ((at, _), answer) in asked.iter().zip(&plan.answers) {
                match answer {
                    Ok(_) => outlook.taken.push(*at),
                    Err(error) => outlook.left.push((*at, refused(error))),
                }
            }
            outlook.plan = Some(plan);
            return outlook;
        }
    }

    /// Writes what was decided, and waits until it has come to stay. False where it was not written.
    async fn write(&mut self, seen: Seen, plan: Plan, taken: &[usize]) -> Result<bool, CarryError> {
        if self.turns > REDIS_CHANNELS_TURNS_MAX {
            return Err(outrun().into());
        }
        self.shared.turn(self.turns).await;
        self.turns += 1;
        let appends = || taken.iter().map(|at| &self.appends[*at]);
        let by = By {
            fence: self.fence,
            carrier: &self.carrier,
            keys: appends().map(|append| &*append.key).collect(),
            causes: appends().map(cause_of).collect(),
        };
        let tag = self.shared.tag();
        let mut answer = self.shared.write(self.id, &seen, &plan, &by, &tag).await?;
        match answer.said {
            Said::Done => {}
            Said::Fenced => return Err(CarryError::Fenced),
            Said::Moved => return Ok(false),
            Said::Repeated => {
                self.repeated(answer, taken)?;
                return Ok(false);
            }
            Said::Changed | Said::OtherLog => {
                self.seen = self.shared.instead(self.id, &tag, &mut answer)?;
                self.fresh = true;
                return Ok(false);
            }
        }
        let head = self.shared.written(self.id, &seen, &plan, &answer)?;
        let told = Some(Told { incarnation: seen.incarnation, head, entries: plan.entries });
        let (reply, lasts) = oneshot::channel();
        let (answer, replies) = (Some(answer), vec![(reply, Ok(Vec::new()))]);
        self.shared.settle(Settling { id: self.id.clone(), told, answer, replies }).await;
        match lasts.await {
            Ok(Ok(_)) => {}
            Ok(Err(ChannelError::Backend(error))) => return Err(error.into()),
            Ok(Err(_)) | Err(_) => return Err(BackendError::Closed.into()),
        }
        for at in taken {
            self.fates[*at] = Some(Fate::Appended);
        }
        Ok(true)
    }
}
