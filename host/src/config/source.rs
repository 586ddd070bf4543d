//! What an operator may set of sources: events that come from another system.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::event::TenantId;
use crate::limits;
use crate::processors::source::{CursorPolicy, Scope};

/// Where events come from, beside those that are published here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// A server of `memory.v1`.
    pub grpc: Option<GrpcSourceConfig>,
}

/// One server, and what is taken from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcSourceConfig {
    /// `http://host:port` in clear text, `https://host:port`, or `unix:///path`.
    pub endpoint: String,
    /// Itself or in a file, which is read again for each call.
    pub api_key: Option<SecretText>,
    pub api_key_file: Option<PathBuf>,
    pub bearer_token: Option<SecretText>,
    pub bearer_token_file: Option<PathBuf>,
    /// Authorities (PEM) that the server's certificate is checked against; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// The name in the server's certificate, where it is not that of the endpoint.
    pub server_name: Option<String>,
    /// Certificate and key (PEM) of this host.
    pub client_cert_file: Option<PathBuf>,
    pub client_key_file: Option<PathBuf>,
    /// Whose events they become.
    pub tenant: String,
    /// Whose checkpoint it is. The API key, where there is one, must belong to it.
    pub client_id: String,
    /// Empty: all kinds.
    pub kinds: Vec<String>,
    /// Empty: the server's own choice, which is `history`.
    pub entry_channels: Vec<String>,
    pub entry_content_types: Vec<String>,
    pub entry_roles: Vec<String>,
    pub scope: Scope,
    /// Where to begin without a checkpoint: `start` is the oldest event there is, empty is now.
    pub after_cursor: String,
    /// What the server writes down as the reason, with `scope = "admin"`.
    pub justification: String,
    pub checkpoint_interval: Span,
    pub reconnect_min: Span,
    pub reconnect_max: Span,
    /// Where it is kept how far this host is: in its own folder, or at the server.
    pub checkpoints: SourceCheckpoints,
    pub on_cursor_lost: CursorPolicy,
    /// With `on_cursor_lost = "rebuild"`: the plugins that are made anew.
    pub rebuilds: Vec<String>,
    /// A stream that says nothing for so long (20 s at least) is opened again, where there is a cursor to go on from; `0s` waits
    /// for ever.
    pub idle_max: Span,
    /// How often the newest events are read again, 5 s at least; `0s` leaves it out.
    pub recheck: Span,
    /// How many events are read again then, and after a reconnect.
    pub overlap_events: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceCheckpoints {
    #[default]
    Store,
    Remote,
}

/// A secret: not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

/// A time with its unit: `250ms`, `5s`, `10m`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

impl Span {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time such as \"250ms\", \"5s\", \"10m\" or \"2h\"");
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(end);
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number = number.parse::<u64>().map_err(|_| wrong())?;
        let time = number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(wrong)?;
        if time > limits::SOURCE_TIME_MAX {
            let hours = limits::SOURCE_TIME_MAX.as_secs() / 3_600;
            return Err(format!("`{text}` is over source_time_max = {hours}h"));
        }
        Ok(Self(time))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let fits =
            |unit: &&(&str, u64)| millis.is_multiple_of(u128::from(unit.1)) && (millis > 0 || unit.0 == "s");
        match UNITS.iter().rev().find(fits) {
            Some((unit, size)) => write!(f, "{}{unit}", millis / u128::from(*size)),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit, such as \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl Default for GrpcSourceConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            api_key: None,
            api_key_file: None,
            bearer_token: None,
            bearer_token_file: None,
            ca_file: None,
            server_name: None,
            client_cert_file: None,
            client_key_file: None,
            tenant: "default".into(),
            client_id: String::new(),
            kinds: Vec::new(),
            entry_channels: Vec::new(),
            entry_content_types: Vec::new(),
            entry_roles: Vec::new(),
            scope: Scope::default(),
            after_cursor: String::new(),
            justification: String::new(),
            checkpoint_interval: Span(limits::SOURCE_CHECKPOINT_INTERVAL),
            reconnect_min: Span(limits::SOURCE_RECONNECT_MIN),
            reconnect_max: Span(limits::SOURCE_RECONNECT_MAX),
            checkpoints: SourceCheckpoints::default(),
            on_cursor_lost: CursorPolicy::default(),
            rebuilds: Vec::new(),
            idle_max: Span(limits::SOURCE_IDLE_MAX),
            recheck: Span(limits::SOURCE_RECHECK),
            overlap_events: limits::SOURCE_OVERLAP_EVENTS,
        }
    }
}

impl SourceConfig {
    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self, log_is_shared: bool) -> Result<(), (String, String)> {
        let Some(grpc) = &self.grpc else { return Ok(()) };
        grpc.check().map_err(|(key, why)| (format!("source.grpc.{key}"), why))?;
        // Whoever takes the source over would not know how far it is, and skip or repeat events without a word.
        if log_is_shared && grpc.checkpoints == SourceCheckpoints::Store {
            let why = "other hosts of the log (serve.log) take the source over and cannot read this host's folder; say \"remote\"";
            return Err(("source.grpc.checkpoints".into(), why.into()));
        }
        Ok(())
    }
}

impl GrpcSourceConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, why: &str| Err((key, why.to_owned()));
        let endpoint = self.endpoint.trim();
        let schemes = ["http://", "https://", "unix:"];
        if !schemes.iter().any(|scheme| endpoint.len() > scheme.len() && endpoint.starts_with(scheme)) {
            return wrong(
                "endpoint",
                "it is required: http://host:port in clear text, https://host:port, or unix:///path",
            );
        }
        if self.client_id.trim().is_empty() {
            return wrong("client_id", "it is required: the name under which the checkpoint is kept");
        }
        if !endpoint.starts_with("unix:") && endpoint.parse::<Uri>().is_err() {
            return wrong(
                "endpoint",
                "it is no address: http://host:port, https://host:port, or unix:///path",
            );
        }
        let visible = self.client_id.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !visible || self.client_id.len() > limits::CLIENT_NAME_BYTES_MAX {
            let max = limits::CLIENT_NAME_BYTES_MAX;
            let why =
                format!("it is sent as a header: visible ASCII, client_name_bytes_max = {max} bytes of it");
            return wrong("client_id", &why);
        }
        if let Err(error) = TenantId::new(&self.tenant) {
            return wrong("tenant", &error.to_string());
        }
        if self.api_key.is_some() && self.api_key_file.is_some() {
            return wrong("api_key_file", "there is an `api_key`, too; say one of the two");
        }
        if self.bearer_token.is_some() && self.bearer_token_file.is_some() {
            return wrong("bearer_token_file", "there is a `bearer_token`, too; say one of the two");
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return wrong(
                "client_cert_file",
                "a certificate needs its `client_key_file`, and the other way round",
            );
        }
        let tls = [
            ("ca_file", self.ca_file.is_some()),
            ("server_name", self.server_name.is_some()),
            ("client_cert_file", self.client_cert_file.is_some()),
        ];
        if let Some((key, _)) = tls.into_iter().find(|(_, said)| *said && !endpoint.starts_with("https://")) {
            return wrong(key, "it is for an endpoint that begins with https://");
        }
        self.check_times()?;
        if self.overlap_events >= limits::SOURCE_RING_CURSORS {
            let max = limits::SOURCE_RING_CURSORS;
            return wrong("overlap_events", &format!("it is under source_ring_cursors = {max}"));
        }
        match (self.on_cursor_lost, self.rebuilds.is_empty()) {
            (CursorPolicy::Rebuild, true) => {
                wrong("rebuilds", "on_cursor_lost = \"rebuild\" needs the names of the plugins to make anew")
            }
            (CursorPolicy::Rebuild, false) | (_, true) => Ok(()),
            (_, false) => wrong("rebuilds", "it is for on_cursor_lost = \"rebuild\""),
        }
    }

    fn check_times(&self) -> Result<(), (&'static str, String)> {
        let (min, max) = (self.reconnect_min.0, self.reconnect_max.0);
        if !max.is_zero() && min > max {
            return Err((
                "reconnect_min",
                format!("it must not be over reconnect_max = {}", self.reconnect_max),
            ));
        }
        let (idle, recheck) = (Span(limits::SOURCE_IDLE_LEAST), Span(limits::SOURCE_RECHECK_LEAST));
        let is_short = |time: Span, least: Span| !time.0.is_zero() && time.0 < least.0;
        if is_short(self.idle_max, idle) {
            return Err((
                "idle_max",
                format!("it is not under source_idle_least = {idle}; 0s waits for ever"),
            ));
        }
        if is_short(self.recheck, recheck) {
            return Err((
                "recheck",
                format!("it is not under source_recheck_least = {recheck}; 0s leaves it out"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_are_written_as_they_are_read() {
        for text in ["250ms", "5s", "10m", "2h", "0s", "90s", "744h"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
        for not in ["5", "", "s", "-5s", "1.5s", "5 s", "99999999999999999999h", "745h"] {
            assert!(Span::parse(not).is_err(), "{not}");
        }
    }
}
