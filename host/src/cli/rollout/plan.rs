//! Plans as people write them: a file, or waves on the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use toml::{Table, Value};

use crate::cli::fleet::read_bounded;
use crate::cli::{CliError, printable, spans};
use crate::control::ControlFeedError;
use crate::control::rollout::{Gate, Plan, Wave};
use crate::limits::CONTROL_EVENT_BYTES_MAX;

/// In which order hosts get it.
#[derive(Debug, Args)]
pub(in crate::cli) struct PlanArgs {
    /// A file with waves and a gate; without a plan every host gets it at once
    #[arg(long, value_name = "FILE", conflicts_with = "wave")]
    plan: Option<PathBuf>,
    /// A wave: LABEL=VALUE or `all`, then :PERCENT, then :SOAK, such as zone=a:50:10m; repeatable
    #[arg(long, value_name = "WAVE", value_parser = wave)]
    wave: Vec<Wave>,
}

impl PlanArgs {
    /// None is every host at once.
    pub(in crate::cli) fn read(&self) -> Result<Option<Plan>, CliError> {
        if let Some(path) = &self.plan {
            return read(path).map(Some);
        }
        if self.wave.is_empty() {
            return Ok(None);
        }
        let mut waves = self.wave.clone();
        let everybody = |wave: &Wave| wave.labels.is_empty() && wave.percent == 100;
        if !waves.last().is_some_and(everybody) {
            waves.push(Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 });
        }
        let plan = Plan { waves, gate: Gate::default(), automatic: true };
        plan.check().map_err(|error| {
            CliError::usage(
                printable(&format!("these waves are no plan: {}", detail(&error))),
                "`millrace rollout start --help` shows how they are written",
            )
        })?;
        Ok(Some(plan))
    }
}

fn read(path: &Path) -> Result<Plan, CliError> {
    let wrong = |why: String| {
        CliError::usage(
            printable(&format!("{}: {why}", path.display())),
            "correct the file; `millrace rollout start --help` has a whole plan",
        )
    };
    let content = read_bounded(path, CONTROL_EVENT_BYTES_MAX as u64)?;
    let text = String::from_utf8(content).map_err(|_| wrong("it is not UTF-8".into()))?;
    parse(&text).map_err(wrong)
}

/// Reads a plan; the error names the member that is wrong.
fn parse(text: &str) -> Result<Plan, String> {
    let mut plan = Members { path: String::new(), members: table(text)? };
    let mut waves = Vec::new();
    for (path, value) in plan.list("waves")?.into_iter().enumerate().map(|(n, v)| (format!("waves[{n}]"), v))
    {
        waves.push(wave_of(Members::of(path, value)?)?);
    }
    let gate = match plan.take("gate") {
        Some((path, value)) => gate_of(Members::of(path, value)?)?,
        None => Gate::default(),
    };
    let automatic = match plan.take("automatic") {
        None => true,
        Some((_, Value::Boolean(automatic))) => automatic,
        Some((path, _)) => return Err(format!("{path} is neither true nor false")),
    };
    plan.end("waves, gate and automatic")?;
    let plan = Plan { waves, gate, automatic };
    plan.check().map_err(|error| detail(&error))?;
    Ok(plan)
}

/// A file's members. The error has the line, and no picture of it.
pub(super) fn table(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let line =
            error.span().and_then(|span| text.get(..span.start)).map(|before| before.lines().count().max(1));
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{line}{}", error.message().replace('\n', "; "))
    })
}

fn wave_of(mut wave: Members) -> Result<Wave, String> {
    let mut labels = BTreeMap::new();
    if let Some((path, value)) = wave.take("labels") {
        for (name, value) in Members::of(path.clone(), value)?.members {
            match value {
                Value::String(text) => labels.insert(name, text),
                _ => return Err(format!("{path}.{name} is not a text")),
            };
        }
    }
    let percent = match wave.number("percent")? {
        None => 100,
        Some((path, number)) => percent(number).map_err(|why| format!("{path} {why}"))?,
    };
    let soak_s = wave.seconds("soak", "soak_s")?.unwrap_or(0);
    wave.end("labels, percent and soak")?;
    Ok(Wave { labels, percent, soak_s })
}

fn gate_of(mut members: Members) -> Result<Gate, String> {
    let mut gate = Gate::default();
    for (name, place) in [
        ("events_min", &mut gate.events_min),
        ("traps_per_million_max", &mut gate.traps_per_million_max),
        ("errors_per_million_max", &mut gate.errors_per_million_max),
        ("time_percent_max", &mut gate.time_percent_max),
        ("lag_events_max", &mut gate.lag_events_max),
    ] {
        if let Some((_, number)) = members.number(name)? {
            *place = number;
        }
    }
    if let Some((path, number)) = members.number("unavailable_percent_max")? {
        gate.unavailable_percent_max = u8::try_from(number)
            .ok()
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| format!("{path} is {number}; it is 0 to 100"))?;
    }
    if let Some(seconds) = members.seconds("wait_max", "wait_s_max")? {
        gate.wait_s_max = seconds;
    }
    members.end(
        "events_min, traps_per_million_max, errors_per_million_max, time_percent_max, lag_events_max, \
         unavailable_percent_max and wait_max",
    )?;
    Ok(gate)
}

fn percent(number: u64) -> Result<u8, String> {
    let percent = u8::try_from(number).ok().filter(|percent| (1..=100).contains(percent));
    percent.ok_or_else(|| format!("is {number}; it is 1 to 100"))
}

/// `role=canary:100:10m`, `all:5:1h`.
fn wave(text: &str) -> Result<Wave, String> {
    let mut parts = text.split(':');
    let labels = selector(parts.next().unwrap_or_default())?;
    let percent = match parts.next() {
        None => 100,
        Some(text) => {
            let number = text.strip_suffix('%').unwrap_or(text).parse::<u64>();
            let number = number.map_err(|_| format!("`{text}` is not a number of percent, such as 25"))?;
            percent(number).map_err(|why| format!("percent {why}"))?
        }
    };
    let soak_s = match parts.next() {
        None => 0,
        Some(text) => {
            spans::parse(text).and_then(whole_seconds).map_err(|why| format!("soak `{text}`: {why}"))?
        }
    };
    match parts.next() {
        None => Ok(Wave { labels, percent, soak_s }),
        Some(_) => {
            Err("a wave has three parts at most: labels, percent and soak, such as zone=a:50:10m".into())
        }
    }
}

/// `zone=a,tier=edge`, or `all` for every host.
pub(super) fn selector(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    if text == "all" {
        return Ok(labels);
    }
    for part in text.split(',') {
        match part.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                labels.insert(name.to_owned(), value.to_owned());
            }
            _ => return Err(format!("`{part}` is neither `all` nor a label such as zone=a")),
        }
    }
    crate::control::check_labels("labels", &labels).map_err(|error| detail(&error))?;
    Ok(labels)
}

/// One line for each wave, for people.
pub(super) fn lines(plan: &Plan) -> Vec<String> {
    let line = |(index, wave): (usize, &Wave)| {
        let labels: Vec<String> = wave.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let hosts = match (labels.is_empty(), wave.percent) {
            (true, 100) => "every host".to_owned(),
            (true, percent) => format!("{percent} % of all hosts"),
            (false, 100) => format!("hosts with {}", labels.join(", ")),
            (false, percent) => format!("{percent} % of hosts with {}", labels.join(", ")),
        };
        let soak = spans::text(std::time::Duration::from_secs(wave.soak_s));
        format!("wave {}: {hosts}, soaks {soak}", index + 1)
    };
    plan.waves.iter().enumerate().map(line).collect()
}

fn whole_seconds(span: std::time::Duration) -> Result<u64, String> {
    match span.subsec_nanos() {
        0 => Ok(span.as_secs()),
        _ => Err("it is counted in whole seconds".into()),
    }
}

/// What is wrong, without the words for an event that nobody has seen yet.
fn detail(error: &ControlFeedError) -> String {
    match error {
        ControlFeedError::InvalidEvent { detail } => detail.clone(),
        other => other.to_string(),
    }
}

/// Members of a table that are taken one by one, so that what is left is not known.
struct Members {
    path: String,
    members: Table,
}

impl Members {
    fn of(path: String, value: Value) -> Result<Self, String> {
        match value {
            Value::Table(members) => Ok(Self { path, members }),
            _ => Err(format!("{path} is not a table of members")),
        }
    }

    fn name(&self, member: &str) -> String {
        if self.path.is_empty() { member.to_owned() } else { format!("{}.{member}", self.path) }
    }

    fn take(&mut self, member: &str) -> Option<(String, Value)> {
        let value = self.members.remove(member)?;
        Some((self.name(member), value))
    }

    fn list(&mut self, member: &str) -> Result<Vec<Value>, String> {
        match self.take(member) {
            Some((_, Value::Array(values))) => Ok(values),
            Some((path, _)) => Err(format!("{path} is not a list; write [[{path}]] above each")),
            None => Err(format!("it has no {}; write [[{member}]] above each", self.name(member))),
        }
    }

    fn number(&mut self, member: &str) -> Result<Option<(String, u64)>, String> {
        match self.take(member) {
            None => Ok(None),
            Some((path, Value::Integer(number))) => match u64::try_from(number) {
                Ok(number) => Ok(Some((path, number))),
                Err(_) => Err(format!("{path} is {number}; it counts from 0")),
            },
            Some((path, _)) => Err(format!("{path} is not a whole number")),
        }
    }

    /// A time such as `10m`, or as its other name a number of seconds.
    fn seconds(&mut self, member: &str, in_seconds: &str) -> Result<Option<u64>, String> {
        let seconds = self.number(in_seconds)?;
        match (self.take(member), seconds) {
            (None, seconds) => Ok(seconds.map(|(_, seconds)| seconds)),
            (Some((path, _)), Some((other, _))) => Err(format!("{path} and {other} say the same; keep one")),
            (Some((path, Value::String(text))), None) => match spans::parse(&text).and_then(whole_seconds) {
                Ok(seconds) => Ok(Some(seconds)),
                Err(why) => Err(format!("{path} is `{text}`: {why}")),
            },
            (Some((path, _)), None) => Err(format!("{path} is not a time such as \"10m\"")),
        }
    }

    fn end(self, known: &str) -> Result<(), String> {
        match self.members.keys().next() {
            Some(name) => Err(format!("{} is not known; there are {known}", self.name(name))),
            None => Ok(()),
        }
    }
}
