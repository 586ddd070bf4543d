//! What goes to the scripts with every call, and how their answers are read.

use redis::Value;

use super::super::faults::remote;
use super::super::link::Linked;
use super::super::scripts::{number, text};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Micros, Position, TenantId};
use crate::limits::{REDIS_CONSUMERS_COUNT_MAX, REDIS_CONSUMERS_DUE_MAX};
use crate::streams::groups::state::Tally;
use crate::streams::groups::{GroupId, GroupLimits, GroupName, LossReport, OnLost, count};

/// The bounds that scripts go by, as they are sent.
#[derive(Clone, Debug)]
pub(in super::super) struct Bounds(String);

impl Bounds {
    pub(in super::super) fn of(limits: &GroupLimits) -> Self {
        let bounds = serde_json::json!({
            "idle": u64::try_from(limits.consumer_idle.as_micros()).unwrap_or(u64::MAX),
            "consumers": limits.consumers_max,
            "own": limits.consumer_in_flight_max,
            "all": limits.in_flight_max,
            "window": limits.window_events_max,
            "dead": limits.dead_letters_max,
            "lost": limits.in_flight_max,
            "due": REDIS_CONSUMERS_DUE_MAX,
            "count": REDIS_CONSUMERS_COUNT_MAX,
        });
        Self(bounds.to_string())
    }

    pub(in super::super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a script answered, without what was counted and told already.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: String,
    pub(super) parts: Vec<Value>,
    /// The connection that it came on.
    pub(super) linked: Linked,
}

pub(super) fn shape() -> BackendError {
    remote(RemoteFault::Unsupported, "a group's script: the answer has another shape")
}

/// Reads an answer; counts and tells what the script says has happened.
pub(super) fn taken(value: Value, linked: Linked) -> Result<Answer, BackendError> {
    let Value::Array(mut parts) = value else { return Err(shape()) };
    if parts.len() < 3 {
        return Err(shape());
    }
    let rest = parts.split_off(3);
    let code = text(&parts[0]).ok_or_else(shape)?.to_owned();
    let numbers: Vec<u64> =
        text(&parts[1]).ok_or_else(shape)?.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [deliveries, redeliveries, acks, nacks, expired, dead, reaped, refused] = numbers[..] else {
        return Err(shape());
    };
    count(Tally { deliveries, redeliveries, acks, nacks, expired, dead, reaped, refused });
    tell_losses(&parts[2]);
    Ok(Answer { code, parts: rest, linked })
}

/// The list that an answer is.
pub(super) fn taken_list(answer: &Answer) -> Result<&[Value], BackendError> {
    match answer.parts.first() {
        Some(Value::Array(parts)) => Ok(parts),
        _ => Err(shape()),
    }
}

/// Counts what groups have lost and writes it to the host's log, once for each time.
pub(in super::super) fn tell_losses(losses: &Value) {
    let Value::Array(losses) = losses else { return };
    for loss in losses {
        let Some((report, why, now)) = report_of(loss) else { continue };
        match why {
            "damaged" => tracing::warn!(
                error.kind = "group_damaged",
                error.blame = "host",
                group = %report.group,
                tenant = %report.group.tenant,
                stream.position = report.until.0,
                "parts of a group were removed from the server: it goes on behind what is known to be done"
            ),
            "epoch" => tracing::warn!(
                error.kind = "new_epoch",
                error.blame = "host",
                group = %report.group,
                tenant = %report.group.tenant,
                "the log is another one: a group's place in the former one is lost, with at least what is counted"
            ),
            _ => {}
        }
        report.tell(now);
    }
}

fn report_of(loss: &Value) -> Option<(LossReport, &str, Micros)> {
    let Value::Array(parts) = loss else { return None };
    let [id, events, until, before, policy, why, now] = &parts[..] else { return None };
    let report = LossReport {
        group: id_of(text(id)?)?.into(),
        events: number(events)?,
        until: Position(number(until)?),
        policy: match text(policy)? {
            "tail" => OnLost::Tail,
            "from_oldest" => OnLost::FromOldest,
            _ => OnLost::Stop,
        },
        before: number(before).map(Micros),
    };
    Some((report, text(why)?, Micros(number(now)?)))
}

/// What a group is called in the server.
pub(super) fn name_of(id: &GroupId) -> String {
    format!("{}:{}:{}", id.tenant, id.stream, id.name)
}

/// Tenants and groups have no colon in their names.
pub(super) fn id_of(name: &str) -> Option<GroupId> {
    let (tenant, rest) = name.split_once(':')?;
    let (stream, name) = rest.rsplit_once(':')?;
    Some(GroupId {
        tenant: TenantId::new(tenant).ok()?,
        stream: stream.into(),
        name: GroupName::new(name).ok()?,
    })
}
