//! Everything but reading: what consumers say of their leases, and what is asked about a group.

use redis::Value;

use super::answers::{Answer, id_of, shape, taken_list};
use super::{Inner, Result};
use crate::backends::redis::faults::ends_session;
use crate::backends::redis::scripts::{GROUP_MANAGE, GROUP_SETTLE, bytes, number, text};
use crate::error::BackendError;
use crate::event::{Micros, Position, TenantId};
use crate::limits::{
    GROUP_LETTERS_BYTES_MAX, GROUP_REASON_BYTES_MAX, REDIS_CONSUMERS_SWEEP_MAX, REDIS_TURNS_MAX,
};
use crate::streams::groups::{
    ConsumerName, ConsumerStatus, DeadReason, GroupChange, GroupError, GroupId, GroupLag, GroupLetter,
    GroupLimits, GroupOptions, GroupStart, GroupStatus, LetterPage, LetterVerdict, Receipt, Refusal, Settle,
    Settled, check_groups, check_settles, horizon, start_of, stream_of,
};

/// How often a settlement is said when its connection is lost before it is known to have come to stay.
const SETTLE_TURNS_MAX: usize = 3;

/// How a group stands, by its own script.
struct Standing {
    options: String,
    created_at: Micros,
    low: Position,
    lag_events: u64,
    lag_is_least: bool,
    oldest_at: Option<Micros>,
    in_flight: usize,
    retrying: usize,
    waiting: usize,
    dead_letters: usize,
    consumers: usize,
    lost_events: u64,
    lost_until: Position,
    lost_at: Option<Micros>,
    stopped: bool,
}

/// Where a group stands after it has stepped over what is gone.
pub(super) struct Stepped {
    pub(super) frontier: Position,
    /// It had to say so, and does not go on.
    pub(super) stopped: bool,
}

/// A number that no group has had: a sum of it and what is added later has to be exact in a script.
fn incarnation() -> String {
    (ulid::Ulid::new().random() & u128::from(u64::MAX >> 12)).to_string()
}

impl Inner {
    async fn manage(&self, id: &GroupId, words: &[&str]) -> Result<Answer> {
        stream_of(&id.stream)?;
        let call = self.call(&GROUP_MANAGE, Some(id), |command, _| {
            command.arg(words);
        });
        call.await
    }

    pub(super) async fn ensure(
        &self,
        id: &GroupId,
        start: GroupStart,
        change: GroupChange,
    ) -> Result<(GroupStatus, bool)> {
        stream_of(&id.stream)?;
        // What is wrong in itself is refused before there is a group.
        change.apply(GroupOptions::default())?;
        let mut known: String = match self.standing(id).await {
            Ok(standing) => standing.options,
            Err(GroupError::Unknown { .. }) => String::new(),
            Err(error) => return Err(error),
        };
        for _ in 0..REDIS_TURNS_MAX {
            let former = if known.is_empty() { GroupOptions::default() } else { options_of(&known)? };
            // It stays where it is, and where it began may be long gone.
            let begin =
                if known.is_empty() { start_of(&*self.log, id, start).await? } else { Position::START };
            let wanted = serde_json::to_string(&change.apply(former)?).map_err(unread)?;
            let GroupLimits { groups_max, tenant_groups_max, .. } = self.limits;
            let (begin, on_stream, of_tenant) =
                (begin.to_string(), groups_max.to_string(), tenant_groups_max.to_string());
            let words = ["ensure", &known, &wanted, &begin, &on_stream, &incarnation(), &of_tenant];
            let answer = self.manage(id, &words).await?;
            let first = answer.parts.first().ok_or_else(shape)?;
            match answer.code.as_str() {
                "ok" => {
                    self.durable(&answer).await?;
                    let created = number::<u8>(first).ok_or_else(shape)? == 1;
                    return Ok((self.status(id).await?, created));
                }
                "groups" => {
                    let on_stream = number(first).ok_or_else(shape)?;
                    let of_tenant = answer.parts.get(1).and_then(number).ok_or_else(shape)?;
                    check_groups((on_stream, groups_max), (of_tenant, tenant_groups_max))?;
                    return Err(shape().into());
                }
                // Somebody was faster.
                _ => known = text(first).ok_or_else(shape)?.to_owned(),
            }
        }
        Err(GroupError::Interrupted { group: id.clone() })
    }

    pub(super) async fn remove(&self, id: &GroupId) -> Result<()> {
        let answer = self.manage(id, &["remove"]).await?;
        self.durable(&answer).await?;
        self.wake(id);
        Ok(())
    }

    pub(super) async fn seek(&self, id: &GroupId, to: GroupStart) -> Result<GroupStatus> {
        // Whether there is one is said before whether the place is right.
        self.standing(id).await?;
        let to = start_of(&*self.log, id, to).await?;
        let answer = self.manage(id, &["seek", &to.to_string(), &incarnation()]).await?;
        self.durable(&answer).await?;
        self.wake(id);
        self.status(id).await
    }

    async fn standing(&self, id: &GroupId) -> Result<Standing> {
        let answer = self.manage(id, &["status"]).await?;
        Ok(Standing::read(taken_list(&answer)?).ok_or_else(shape)?)
    }

    pub(super) async fn status(&self, id: &GroupId) -> Result<GroupStatus> {
        let standing = self.standing(id).await?;
        let bounds = horizon(&*self.log, &id.tenant, &stream_of(&id.stream)?).await?;
        Ok(GroupStatus {
            group: id.clone(),
            options: options_of(&standing.options)?,
            created_at: standing.created_at,
            low: standing.low,
            lag_events: standing.lag_events,
            lag_is_least: standing.lag_is_least,
            oldest_at: standing.oldest_at,
            in_flight: standing.in_flight,
            retrying: standing.retrying,
            waiting: standing.waiting,
            dead_letters: standing.dead_letters,
            consumers: standing.consumers,
            lost_events: standing.lost_events,
            lost_until: standing.lost_until,
            lost_at: standing.lost_at,
            stopped: standing.stopped,
            trimmed: bounds.trimmed,
            newest: bounds.newest,
        })
    }

    pub(super) async fn list(&self, tenant: &TenantId, stream: &str) -> Result<Vec<GroupStatus>> {
        stream_of(stream)?;
        let siblings = format!("{tenant}:{stream}:");
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(self.link.key("groups:names")).arg(format!("[{siblings}"));
        command.arg([format!("[{siblings}").as_bytes(), &[255]].concat());
        let names: Vec<String> = self.ask(&command).await?;
        let mut found = Vec::with_capacity(names.len());
        // A stream of another name may begin with this one's.
        for id in names.iter().filter_map(|name| id_of(name)).filter(|id| &*id.stream == stream) {
            match self.status(&id).await {
                Ok(status) => found.push(status),
                Err(GroupError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) async fn settle(&self, id: &GroupId, said: Vec<Settle>) -> Result<Vec<Settled>> {
        stream_of(&id.stream)?;
        check_settles(&said)?;
        let mut turns = SETTLE_TURNS_MAX;
        let settled = loop {
            let call = self
                .call(&GROUP_SETTLE, Some(id), |command, _| said.iter().for_each(|one| add(command, one)));
            let answer = call.await?;
            let parts = taken_list(&answer)?;
            let settled = parts.chunks(2).map(settled_of).collect::<Option<Vec<_>>>().ok_or_else(shape)?;
            let lasting = |settled: &Settled| !matches!(settled, Settled::Refused(_) | Settled::Renewed(_));
            if !settled.iter().any(lasting) {
                break settled;
            }
            turns -= 1;
            match self.durable(&answer).await {
                Ok(()) => break settled,
                // Whether what now is the server has it is found out by saying it again.
                Err(GroupError::Backend(error)) if ends_session(&error) && turns > 0 => {}
                Err(error) => return Err(error),
            }
        };
        self.wake(id);
        Ok(settled)
    }

    /// Takes leases back that nobody has got, as if there had been none. Where that fails, they end by themselves, and each
    /// was an attempt.
    pub(super) async fn give_back(&self, id: &GroupId, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        let call = self.call(&GROUP_SETTLE, Some(id), |command, _| {
            receipts.iter().for_each(|receipt| write(command, "b", receipt, (None, "")));
        });
        if let Err(error) = call.await {
            tracing::debug!(%error, group = %id, "leases that nobody has got wait for their end");
        }
    }

    pub(super) async fn consumers(&self, id: &GroupId) -> Result<Vec<ConsumerStatus>> {
        let answer = self.manage(id, &["consumers"]).await?;
        let parts = taken_list(&answer)?;
        let consumer = |parts: &[Value]| {
            let [name, seen_at, in_flight] = parts else { return None };
            let name = ConsumerName::new(text(name)?).ok()?;
            Some(ConsumerStatus { name, in_flight: number(in_flight)?, seen_at: Micros(number(seen_at)?) })
        };
        let consumers = parts.chunks(3).map(consumer).collect::<Option<Vec<_>>>();
        let mut consumers = consumers.ok_or_else(shape)?;
        consumers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(consumers)
    }

    pub(super) async fn letters(&self, id: &GroupId, after: Position, limit: usize) -> Result<LetterPage> {
        let (after, limit, bytes) =
            (after.to_string(), limit.to_string(), GROUP_LETTERS_BYTES_MAX.to_string());
        let answer = self.manage(id, &["letters", &after, &limit, &bytes]).await?;
        let parts = taken_list(&answer)?;
        let letters = parts.chunks(8).map(|parts| self.letter(&id.tenant, parts));
        let letters = letters.collect::<Option<_>>().ok_or_else(shape)?;
        Ok(LetterPage { letters, more: answer.parts.get(1) == Some(&Value::Int(1)) })
    }

    fn letter(&self, tenant: &TenantId, parts: &[Value]) -> Option<GroupLetter> {
        let [position, replaying, attempts, reason, message, consumer, at, body] = parts else { return None };
        Some(GroupLetter {
            event: self.kept(tenant, Position(number(position)?), bytes(body)?)?,
            attempts: number(attempts)?,
            reason: DeadReason::parse(text(reason)?),
            message: text(message)?.to_owned(),
            consumer: text(consumer)?.to_owned(),
            at: Micros(number(at)?),
            replaying: number::<u8>(replaying)? == 1,
        })
    }

    pub(super) async fn decide(
        &self,
        id: &GroupId,
        position: Position,
        verdict: LetterVerdict,
    ) -> Result<()> {
        let verdict = match verdict {
            LetterVerdict::Replay => "replay",
            LetterVerdict::Discard => "discard",
        };
        let answer = self.manage(id, &["decide", &position.to_string(), verdict]).await?;
        if answer.code == "letter" {
            return Err(GroupError::UnknownLetter { group: id.clone(), position });
        }
        self.durable(&answer).await?;
        self.wake(id);
        Ok(())
    }

    pub(super) async fn lags(&self, limit: usize) -> Result<Vec<GroupLag>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.link.key("groups")).arg(0).arg(limit - 1);
        let names: Vec<String> = self.ask(&command).await?;
        let mut lags = Vec::with_capacity(names.len());
        for group in names.iter().filter_map(|name| id_of(name)) {
            match self.standing(&group).await {
                Ok(Standing { lag_events, oldest_at, .. }) => {
                    lags.push(GroupLag { group, events: lag_events, oldest_at });
                }
                Err(GroupError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lags)
    }

    /// Lets a group count as lost what somebody has deleted from the log next to where it stands, and go on behind it.
    pub(super) async fn step_over(&self, id: &GroupId) -> Result<Stepped> {
        let answer = self.manage(id, &["gone"]).await?;
        let [frontier, stopped] = taken_list(&answer)? else { return Err(shape().into()) };
        let frontier = Position(number(frontier).ok_or_else(shape)?);
        Ok(Stepped { frontier, stopped: number::<u8>(stopped) == Some(1) })
    }

    /// Looks after some groups that have something due. Answers whether there may be more.
    pub(super) async fn sweep_some(&self) -> Result<bool> {
        let call = self.call(&GROUP_MANAGE, None, |command, _| {
            command.arg("sweep").arg(REDIS_CONSUMERS_SWEEP_MAX);
        });
        let answer = call.await?;
        Ok(answer.parts.first() == Some(&Value::Int(1)))
    }
}

impl Standing {
    fn read(parts: &[Value]) -> Option<Self> {
        let [
            options,
            created_at,
            low,
            _frontier,
            lag_events,
            is_least,
            oldest_at,
            in_flight,
            retrying,
            waiting,
            dead_letters,
            consumers,
            lost_events,
            lost_until,
            lost_at,
            stopped,
        ] = parts
        else {
            return None;
        };
        Some(Self {
            options: text(options)?.to_owned(),
            created_at: Micros(number(created_at)?),
            low: Position(number(low)?),
            lag_events: number(lag_events)?,
            lag_is_least: number::<u8>(is_least)? == 1,
            oldest_at: number(oldest_at).map(Micros),
            in_flight: number(in_flight)?,
            retrying: number(retrying)?,
            waiting: number(waiting)?,
            dead_letters: number(dead_letters)?,
            consumers: number(consumers)?,
            lost_events: number(lost_events)?,
            lost_until: Position(number(lost_until)?),
            lost_at: number(lost_at).map(Micros),
            stopped: number::<u8>(stopped)? == 1,
        })
    }
}

fn options_of(json: &str) -> Result<GroupOptions> {
    Ok(serde_json::from_str(json).map_err(unread)?)
}

fn unread(error: serde_json::Error) -> BackendError {
    BackendError::Failed { detail: format!("a group's options: {error}") }
}

fn add(command: &mut redis::Cmd, said: &Settle) {
    let (what, receipt, ms, reason) = match said {
        Settle::Ack(receipt) => ("a", receipt, None, ""),
        Settle::Nack { receipt, delay_ms, reason } => ("n", receipt, *delay_ms, reason.as_str()),
        Settle::Renew { receipt, lease_ms } => ("r", receipt, *lease_ms, ""),
    };
    write(command, what, receipt, (ms, reason));
}

fn write(command: &mut redis::Cmd, what: &str, receipt: &Receipt, (ms, reason): (Option<u64>, &str)) {
    let Receipt { incarnation, life, position, sequence } = *receipt;
    command.arg(what).arg(incarnation).arg(life).arg(position.0).arg(sequence);
    command.arg(ms.map(|ms| ms.to_string()).unwrap_or_default());
    command.arg(&reason[..reason.floor_char_boundary(GROUP_REASON_BYTES_MAX)]);
}

fn settled_of(parts: &[Value]) -> Option<Settled> {
    let [what, at] = parts else { return None };
    let at = Micros(number(at)?);
    Some(match text(what)? {
        "A" => Settled::Acknowledged,
        "Y" => Settled::Already,
        "T" => Settled::Retry(at),
        "D" => Settled::DeadLetter,
        "N" => Settled::Renewed(at),
        "X" => Settled::Refused(Refusal::LeaseExpired),
        "L" => Settled::Refused(Refusal::Lost),
        _ => Settled::Refused(Refusal::Unknown),
    })
}
