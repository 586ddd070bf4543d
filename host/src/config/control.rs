//! What an operator may set of the control feed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LogAddress, millis};
use crate::control::{ControlFeedError, check_labels, check_report};
use crate::limits;

/// The feed of a host that is alone.
const NOP: &str = "nop";

/// What a fleet runs, and how this host hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where this host hears what to run: `nop` for a host that is alone, `file`, `sqlite`, `redis`, `nats`, or what an
    /// embedder has added.
    pub source: String,
    /// Where this host tells its fleet what to run. `nop` for every host but the origin.
    pub sink: String,
    /// The folder of `file` and `sqlite`; none: `control-feed` in `serve.data`.
    pub dir: Option<PathBuf>,
    /// The server of `redis` and `nats`.
    pub url: Option<LogAddress>,
    /// What names on a server begin with, so that several fleets can share it.
    pub prefix: String,
    /// This host's name in its fleet, which no other has; none: one that is made once and kept in `serve.data`.
    pub host: Option<String>,
    /// By which rollouts and targets find it.
    pub labels: BTreeMap<String, String>,
    /// Authorities (PEM) that the server's certificate is checked against; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// The file of a user of NATS.
    pub credentials: Option<PathBuf>,
    /// How many servers of a cluster of NATS keep the feed.
    pub replicas: Option<u8>,
    /// How long NATS keeps events, longer than any host is away; and for how long it recognises a repeat.
    pub events_age_seconds: Option<u64>,
    pub duplicates_window_seconds: Option<u64>,
    /// Whom this host believes; none: `trust.json` in `serve.data`.
    pub trust_file: Option<PathBuf>,
    /// A release key, with which the origin carries rollouts on. Without one they go on by hand.
    pub signing_key: Option<PathBuf>,
    /// Looks at no signature: whoever can write to the feed decides what runs here.
    pub insecure_dev: bool,
    /// How long one look at the feed waits for news, and the least time between two that found none.
    pub poll_wait_ms: u64,
    pub poll_gap_ms: u64,
    /// How often this host compares itself with its fleet.
    pub heal_ms: u64,
    /// How often this host says how it is.
    pub report_ms: u64,
    /// Where artifacts lie for the whole fleet: `file`, a folder, or `redis`, a server.
    pub artifacts: ArtifactsConfig,
    /// The folder of `file`; none: `artifact-repository` in `serve.data`.
    pub artifacts_dir: Option<PathBuf>,
    /// The server of `redis`; none: that of `serve.log`.
    pub artifacts_url: Option<LogAddress>,
    pub artifact_bytes_max: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactsConfig {
    #[default]
    File,
    Redis,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            source: NOP.into(),
            sink: NOP.into(),
            dir: None,
            url: None,
            prefix: "millrace".into(),
            host: None,
            labels: BTreeMap::new(),
            ca_file: None,
            credentials: None,
            replicas: None,
            events_age_seconds: None,
            duplicates_window_seconds: None,
            trust_file: None,
            signing_key: None,
            insecure_dev: false,
            poll_wait_ms: millis(limits::CONTROL_POLL_WAIT),
            poll_gap_ms: millis(limits::CONTROL_POLL_GAP),
            heal_ms: millis(limits::CONTROL_HEAL_EVERY),
            report_ms: millis(limits::CONTROL_REPORT_EVERY),
            artifacts: ArtifactsConfig::default(),
            artifacts_dir: None,
            artifacts_url: None,
            artifact_bytes_max: limits::ARTIFACT_BYTES_MAX,
        }
    }
}

impl ControlConfig {
    /// Whether this host is one of a fleet.
    pub fn is_fed(&self) -> bool {
        self.source != NOP
    }

    /// Whether this host tells its fleet what to run.
    pub fn is_origin(&self) -> bool {
        self.sink != NOP
    }

    pub fn poll_wait(&self) -> Duration {
        Duration::from_millis(self.poll_wait_ms)
    }

    pub fn poll_gap(&self) -> Duration {
        Duration::from_millis(self.poll_gap_ms)
    }

    pub fn heal_every(&self) -> Duration {
        Duration::from_millis(self.heal_ms)
    }

    pub fn report_every(&self) -> Duration {
        Duration::from_millis(self.report_ms)
    }

    pub fn events_age_max(&self) -> Option<Duration> {
        self.events_age_seconds.map(Duration::from_secs)
    }

    pub fn duplicates_window(&self) -> Option<Duration> {
        self.duplicates_window_seconds.map(Duration::from_secs)
    }

    /// The first thing that is wrong: a key, and why. `log` is whether the host has a server for its log.
    pub(super) fn check(&self, log: bool) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: &str| Err((format!("control.{key}"), why.to_owned()));
        for (key, value) in [
            ("artifact_bytes_max", self.artifact_bytes_max),
            ("poll_wait_ms", self.poll_wait_ms),
            ("poll_gap_ms", self.poll_gap_ms),
            ("heal_ms", self.heal_ms),
            ("report_ms", self.report_ms),
            ("replicas", self.replicas.map_or(1, u64::from)),
            ("events_age_seconds", self.events_age_seconds.unwrap_or(1)),
            ("duplicates_window_seconds", self.duplicates_window_seconds.unwrap_or(1)),
        ] {
            if value == 0 {
                return wrong(key, "0 would stop everything; it counts from 1");
            }
        }
        let report_max = limits::CONTROL_HOST_SILENT_AFTER / 2;
        if self.report_every() > report_max {
            let max = millis(report_max);
            return wrong("report_ms", &format!("a host that says nothing for twice {max} counts as silent"));
        }
        if self.artifacts == ArtifactsConfig::Redis && self.artifacts_url.is_none() && !log {
            return wrong("artifacts_url", "artifacts = \"redis\" needs it where there is no serve.log");
        }
        if self.is_origin() && !self.is_fed() {
            let why = "a host that has a control.sink runs what its fleet runs: name the same feed here";
            return wrong("source", why);
        }
        if self.signing_key.is_some() && !self.is_origin() {
            return wrong("signing_key", "rollouts are carried on by the host with a control.sink alone");
        }
        if let Some(Err(problem)) = self.host.as_deref().map(|host| check_report(host, "")) {
            return wrong("host", &detail(problem));
        }
        check_labels("they", &self.labels).or_else(|problem| wrong("labels", &detail(problem)))
    }
}

/// What is wrong, without whose word it is.
fn detail(problem: ControlFeedError) -> String {
    match problem {
        ControlFeedError::InvalidEvent { detail } | ControlFeedError::Settings { detail, .. } => detail,
        other => other.to_string(),
    }
}
