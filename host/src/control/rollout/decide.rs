//! Whether a rollout goes on, waits, or is taken back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::samples::{Rates, Sample};
use super::{Gate, Progress, RolloutState, is_target, wave_of};
use crate::control::report::{PluginReport, Seen, newest};
use crate::control::{Desired, Phase, PluginSpec, RunState};
use crate::limits::{CONTROL_CONTROLLER_SETTLE, CONTROL_HOST_GONE_AFTER, CONTROL_HOST_SILENT_AFTER};
use crate::plugins::PluginState;

/// Hosts that a sentence names; of others it says how many there are.
const NAMED_HOSTS: usize = 5;

/// What there is to look at.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub plugin: &'a str,
    pub desired: &'a Desired,
    /// That of the desired state: what hosts report of another says nothing.
    pub revision: u64,
    /// Since when hosts can know this revision, in microseconds since 1970 by the clock of whoever asks.
    pub since: i64,
    /// Since when whoever asks has seen reports: what has been missing for less long may only be late.
    pub looking_since: i64,
    /// The present wave has passed its gate before. What is missing since is waited for, and broken gates still count.
    pub passed: bool,
    pub now: i64,
    pub reports: &'a [Seen],
    pub silence: Silence,
}

/// When a host counts as silent, and when as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    pub silent_after: Duration,
    /// It is no part of the fleet any more, and nobody waits for it. When it comes back it does what is desired then.
    pub gone_after: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Self { silent_after: CONTROL_HOST_SILENT_AFTER, gone_after: CONTROL_HOST_GONE_AFTER }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Wait {
        why: String,
    },
    /// The wave has passed, and the plan leaves it to people to go on.
    Passed,
    /// The next wave.
    Advance,
    /// All waves have passed.
    Complete,
    /// Everybody goes back to the former version.
    Halt {
        broken: Broken,
        why: String,
    },
}

/// Which gate a wave broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Broken {
    /// Too many hosts have set the version aside.
    Quarantined,
    Traps,
    Errors,
    Time,
    Lag,
    /// In the shadow of the version before.
    ShadowErrors,
    ShadowTime,
    /// It was not healthy in time.
    Waited,
}

impl Broken {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::Traps => "traps",
            Self::Errors => "errors",
            Self::Time => "time",
            Self::Lag => "lag",
            Self::ShadowErrors => "shadow_errors",
            Self::ShadowTime => "shadow_time",
            Self::Waited => "waited",
        }
    }
}

/// Looks at a rollout. The same look is always answered the same, whatever the order of the reports.
pub fn decide(look: &Look<'_>) -> Decision {
    let wait = |why: &str| Decision::Wait { why: why.to_owned() };
    let Desired { rollout: Some(rollout), spec: Some(spec), state, stable, .. } = look.desired else {
        return wait("there is no rollout");
    };
    match (rollout.progress, state) {
        (Progress::Running, RunState::Running) => {}
        (Progress::Running, _) => return wait("the plugin is paused"),
        (Progress::Halted, _) => return wait("the rollout is halted"),
        (Progress::Complete | Progress::RolledBack, _) => return wait("the rollout is over"),
    }
    let fleet = Fleet::of(look, rollout, spec, stable.as_ref());
    let judge =
        Judge { gate: &rollout.plan.gate, rollout, fleet: &fleet, waited: since(look.now, look.since) };
    if let Some((broken, why)) = judge.broken() {
        return Decision::Halt { broken, why };
    }
    let missing = judge.missing();
    if !missing.is_empty() {
        let why = missing.join("; ");
        let bound = rollout.soak_s().saturating_add(rollout.plan.gate.wait_s_max);
        let settled = since(look.now, look.looking_since) > CONTROL_CONTROLLER_SETTLE;
        if !look.passed && judge.waited > Duration::from_secs(bound) && settled {
            let why = format!("it was not healthy within {bound} s: {why}");
            return Decision::Halt { broken: Broken::Waited, why };
        }
        return Decision::Wait { why };
    }
    if rollout.is_last_wave() {
        Decision::Complete
    } else if rollout.plan.automatic {
        Decision::Advance
    } else {
        Decision::Passed
    }
}

/// How far a host is with the version of the rollout.
enum Standing<'a> {
    Active,
    Quarantined(&'a str),
    /// Not there yet, with the reason.
    Missing(String),
}

struct Member<'a> {
    host: &'a str,
    standing: Standing<'a>,
    /// What it says of the version, also when it says nothing any more.
    told: Option<&'a PluginReport>,
}

/// The hosts that matter.
struct Fleet<'a> {
    /// By wave, up to the present one; waves of nobody are left out.
    waves: BTreeMap<u32, Vec<Member<'a>>>,
    /// What the version before did.
    before: Sample,
}

impl<'a> Fleet<'a> {
    fn of(
        look: &Look<'a>,
        rollout: &RolloutState,
        spec: &'a PluginSpec,
        stable: Option<&'a PluginSpec>,
    ) -> Self {
        let mut fleet = Self { waves: BTreeMap::new(), before: Sample::default() };
        for (host, seen) in newest(look.reports) {
            if seen.age > look.silence.gone_after {
                continue;
            }
            let Some(report) = &seen.report else {
                // Nobody knows its labels, so it may be one of those that are waited for.
                let standing = Standing::Missing("has a report that cannot be read".into());
                fleet.waves.entry(rollout.wave).or_default().push(Member { host, standing, told: None });
                continue;
            };
            if !is_target(look.desired, &report.labels) {
                continue;
            }
            let told = report.plugins.get(look.plugin);
            let silent = (seen.age > look.silence.silent_after).then_some(seen.age);
            match wave_of(&rollout.plan, &rollout.id, host, &report.labels) {
                Some(wave) if wave <= rollout.wave => {
                    let told = told.filter(|told| told.revision == look.revision);
                    let standing = standing(told, silent, look.revision, &spec.component.digest);
                    let told = told.filter(|told| told.serves(&spec.component.digest));
                    if stable.is_some() {
                        fleet.add_before(told.and_then(|told| told.before));
                    }
                    fleet.waves.entry(wave).or_default().push(Member { host, standing, told });
                }
                _ => {
                    let serves = |told: &&PluginReport| {
                        stable.is_some_and(|stable| told.serves(&stable.component.digest))
                    };
                    if silent.is_none() {
                        fleet.add_before(told.filter(serves).map(|told| told.now));
                    }
                }
            }
        }
        fleet
    }

    fn add_before(&mut self, sample: Option<Sample>) {
        self.before = self.before.and(sample.unwrap_or_default());
    }
}

fn standing<'a>(
    told: Option<&'a PluginReport>,
    silent: Option<Duration>,
    revision: u64,
    digest: &str,
) -> Standing<'a> {
    match (told, silent) {
        // It stays so whether the host goes on talking or not.
        (Some(told), _) if told.phase == Phase::Quarantined => Standing::Quarantined(
            told.reason.as_ref().map_or("it does not say why", |reason| &reason.message),
        ),
        (_, Some(age)) => Standing::Missing(format!("has been silent for {} s", age.as_secs())),
        (None, None) => Standing::Missing(format!("does not report on revision {revision}")),
        (Some(told), None) if told.phase != Phase::Active => {
            Standing::Missing(format!("is at `{}`", told.phase_name()))
        }
        (Some(told), None) if !told.serves(digest) => Standing::Missing("serves another version".into()),
        (Some(told), None) => match told.state {
            Some(PluginState::Failed) => {
                Standing::Missing(format!("has stopped it: {}", short(&told.message)))
            }
            Some(PluginState::Blocked) => Standing::Missing(format!("is held up: {}", short(&told.message))),
            _ => Standing::Active,
        },
    }
}

struct Judge<'a> {
    gate: &'a Gate,
    rollout: &'a RolloutState,
    fleet: &'a Fleet<'a>,
    waited: Duration,
}

impl Judge<'_> {
    /// The first gate that is broken, from the first wave on.
    fn broken(&self) -> Option<(Broken, String)> {
        self.fleet.waves.iter().find_map(|(wave, members)| {
            let (broken, why) = self.broken_in(members)?;
            Some((broken, format!("wave {}: {why}", wave.saturating_add(1))))
        })
    }

    fn broken_in(&self, members: &[Member<'_>]) -> Option<(Broken, String)> {
        let quarantined: Vec<String> = members
            .iter()
            .filter_map(|member| match member.standing {
                Standing::Quarantined(why) => Some(format!("{} ({})", member.host, short(why))),
                _ => None,
            })
            .collect();
        if self.is_over_share(quarantined.len(), members.len()) {
            let (count, all) = (quarantined.len(), members.len());
            let why = format!("{count} of {all} hosts have set it aside: {}", named(&quarantined));
            return Some((Broken::Quarantined, why));
        }
        let told = || members.iter().filter_map(|member| member.told);
        let min = self.gate.events_min;
        let sample = told().fold(Sample::default(), |sum, told| sum.and(told.now));
        let (new, old) = (sample.rates(min), known(self.fleet.before, min));
        let live =
            self.rates_broken(new, old, [Some(Broken::Traps), Some(Broken::Errors), Some(Broken::Time)]);
        live.or_else(|| self.lag_broken(members)).or_else(|| {
            let shadows = told().filter_map(|told| told.shadow);
            let (new, old) = shadows.fold((Sample::default(), Sample::default()), |(new, old), shadow| {
                (new.and(shadow.new), old.and(shadow.old))
            });
            // A shadow is as long as it was asked to be: it has no minimum.
            let kinds = [None, Some(Broken::ShadowErrors), Some(Broken::ShadowTime)];
            self.rates_broken(new.rates(min), known(old, min), kinds)
        })
    }

    fn rates_broken(&self, new: Rates, old: Rates, kinds: [Option<Broken>; 3]) -> Option<(Broken, String)> {
        let above = |kind: Option<Broken>, what: &str, new: u64, old: u64, max: u64| {
            let is_above = new > old.saturating_add(max);
            let say = || format!("{new} {what} in a million events against {old} before; {max} more may be");
            kind.filter(|_| is_above).map(|kind| (kind, say()))
        };
        let [traps, errors, time] = kinds;
        let (traps_max, errors_max) = (self.gate.traps_per_million_max, self.gate.errors_per_million_max);
        above(traps, "traps", new.traps_per_million, old.traps_per_million, traps_max)
            .or_else(|| above(errors, "errors", new.errors_per_million, old.errors_per_million, errors_max))
            .or_else(|| {
                let (new, old) = new.nanoseconds_per_event.zip(old.nanoseconds_per_event)?;
                let percent = self.gate.time_percent_max;
                // Nothing was measured before, or it took no time that could be told.
                let is_over =
                    old > 0 && u128::from(new) * 100 > u128::from(old).saturating_mul(u128::from(percent));
                let why = format!("{new} ns for an event against {old} before; {percent} % of that may be");
                time.filter(|_| is_over).map(|kind| (kind, why))
            })
    }

    /// A lag may go back while the wave soaks.
    fn lag_broken(&self, members: &[Member<'_>]) -> Option<(Broken, String)> {
        let before = self.fleet.before.lag_events;
        let max = self.gate.lag_events_max;
        let behind = members.iter().filter_map(|member| {
            let told = member.told.filter(|told| self.has_soaked(told))?;
            (told.now.lag_events > before.saturating_add(max)).then_some((told.now.lag_events, member.host))
        });
        let (lag, host) = behind.max()?;
        Some((Broken::Lag, format!("{host} is {lag} events behind, {before} before; {max} more may be")))
    }

    /// What it would take to pass.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (wave, members) in &self.fleet.waves {
            let away: Vec<String> = members.iter().filter_map(away).collect();
            if self.is_over_share(away.len(), members.len()) {
                missing.push(format!("wave {}: {}", wave.saturating_add(1), named(&away)));
            }
        }
        let mut speak = self.fleet.waves.iter().rev();
        // Of a wave of nobody, or of hosts that only stand by, those before it have to speak.
        match speak.find(|(_, members)| !members.iter().all(stands_by)) {
            None if self.fleet.waves.is_empty() => {
                missing.push("no host that reports is in a wave yet".into());
            }
            None if self.gate.events_min > 0 => missing.push(
                "every host so far stands by for one that no wave has reached; go on by hand, or begin there"
                    .into(),
            ),
            None => {}
            Some((wave, members)) => {
                let events = members.iter().filter(|member| matches!(member.standing, Standing::Active));
                let told =
                    events.filter_map(|member| member.told).fold(Sample::default(), |a, b| a.and(b.now));
                let (seen, min) = (told.events, self.gate.events_min);
                if seen < min {
                    let wave = wave.saturating_add(1);
                    missing.push(format!("wave {wave} has handled {seen} events of at least {min}"));
                }
            }
        }
        if !self.fleet.waves.values().flatten().any(|member| matches!(member.standing, Standing::Active)) {
            missing.push("no host serves it".into());
        }
        let soak = Duration::from_secs(self.rollout.soak_s());
        let soaking: Vec<String> =
            self.fleet.waves.values().flatten().filter_map(|m| self.soaking(m)).collect();
        if self.waited < soak || !soaking.is_empty() {
            let hosts = if soaking.is_empty() { String::new() } else { format!(" on {}", named(&soaking)) };
            missing.push(format!("it soaks for {} s{hosts}", soak.as_secs()));
        }
        missing
    }

    fn soaking(&self, member: &Member<'_>) -> Option<String> {
        let told = member.told.filter(|_| matches!(member.standing, Standing::Active))?;
        (!self.has_soaked(told)).then(|| member.host.to_owned())
    }

    fn has_soaked(&self, told: &PluginReport) -> bool {
        let soak = Duration::from_secs(self.rollout.soak_s());
        self.waited >= soak && Duration::from_millis(told.active_ms) >= soak
    }

    fn is_over_share(&self, some: usize, of: usize) -> bool {
        some as u128 * 100 > u128::from(self.gate.unavailable_percent_max) * of as u128
    }
}

/// Of too little, nothing is known: then the new version is held against one without faults.
fn known(before: Sample, events_min: u64) -> Rates {
    if before.events < events_min { Rates::default() } else { before.rates(events_min) }
}

/// Whether it is ready, and another host of the same log has the events.
fn stands_by(member: &Member<'_>) -> bool {
    let is_standby = member.told.is_some_and(|told| told.state == Some(PluginState::Standby));
    is_standby && matches!(member.standing, Standing::Active)
}

fn away(member: &Member<'_>) -> Option<String> {
    match &member.standing {
        Standing::Active => None,
        Standing::Quarantined(_) => Some(format!("{} has set it aside", member.host)),
        Standing::Missing(why) => Some(format!("{} {why}", member.host)),
    }
}

fn named(hosts: &[String]) -> String {
    let more = hosts.len().saturating_sub(NAMED_HOSTS);
    let mut text = hosts.iter().take(NAMED_HOSTS).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(120)]
}

fn since(now: i64, then: i64) -> Duration {
    Duration::from_micros(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}
