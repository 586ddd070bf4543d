//! What an operator may give a plugin beyond the world's own imports: clock, randomness, environment,
//! outgoing HTTP, one folder, channels to append to.
//!
//! Promises: nothing is given that `grants` does not name, and what a grant reaches (hosts, variables, the
//! folder, the channels) is said beside it; the one without the other is an error, so that the list of grants tells all
//! that a plugin may do. Values of environment variables are never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hosts::HostPattern;
use super::http::HttpAccess;
use super::tls;
use super::{GrantStatus, PluginError, PluginSettings};
use crate::checkpoints::ChannelGrant;
use crate::limits::{
    GUEST_CALL_CEILING, GUEST_ENV_BYTES_MAX, GUEST_HTTP_HOSTS_MAX, GUEST_MEMORY_BYTES_CEILING,
};

/// Every grant there is, in the order in which they are shown.
pub const GRANTS: [&str; 6] = ["clock", "random", "env", "http", "read_dir", "channels"];

/// Where a guest finds the folder of `read_dir`.
pub(super) const DATA_DIR: &str = "/data";

/// The value of an environment variable: often a key to something, so it is in no message.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvValue(pub String);

impl fmt::Debug for EnvValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

/// What a plugin was given, ready for use.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants {
    pub(super) clock: bool,
    pub(super) random: bool,
    pub(super) env: Arc<BTreeMap<String, EnvValue>>,
    pub(super) http: Option<Arc<HttpAccess>>,
    pub(super) read_dir: Option<PathBuf>,
    pub(super) channels: ChannelGrant,
}

impl PluginSettings {
    /// Whether these settings can be meant: the key that is wrong, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        self.check_grants()?;
        let reach: [(&'static str, bool, &str); 4] = [
            ("env", !self.env.is_empty(), "env"),
            ("http_hosts", !self.http_hosts.is_empty(), "http"),
            ("read_dir", self.read_dir.is_some(), "read_dir"),
            ("channels", !self.channels.is_empty(), "channels"),
        ];
        for (key, said, grant) in reach {
            match (self.grants(grant), said) {
                (true, false) => {
                    return Err(("grants", format!("`{grant}` is granted without `{key}`, so to nothing")));
                }
                (false, true) => {
                    return Err((
                        key,
                        format!("it is for the grant `{grant}`, which `grants` does not name"),
                    ));
                }
                _ => {}
            }
        }
        if self.http_ca_file.is_some() && !self.grants("http") {
            let why = "it is for the grant `http`, which `grants` does not name";
            return Err(("http_ca_file", why.into()));
        }
        self.check_env()?;
        hosts(&self.http_hosts).map_err(|why| ("http_hosts", why))?;
        ChannelGrant::parse(&self.channels).map_err(|why| ("channels", why))?;
        self.check_ceilings()
    }

    fn check_grants(&self) -> Result<(), (&'static str, String)> {
        match self.grants.iter().find(|name| !GRANTS.contains(&name.as_str())) {
            Some(name) => Err((
                "grants",
                PluginError::GrantUnknown { grant: super::sandbox::cut(name, 80).into() }.to_string(),
            )),
            None => Ok(()),
        }
    }

    fn check_env(&self) -> Result<(), (&'static str, String)> {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.0.contains('\0') {
                return Err(("env", format!("`{name}` cannot be an environment variable")));
            }
        }
        let bytes: usize = self.env.iter().map(|(name, value)| name.len() + value.0.len()).sum();
        if bytes > GUEST_ENV_BYTES_MAX {
            let why = format!("it has {bytes} bytes; guest_env_bytes_max is {GUEST_ENV_BYTES_MAX}");
            return Err(("env", why));
        }
        Ok(())
    }

    fn check_ceilings(&self) -> Result<(), (&'static str, String)> {
        if let Some(asked) = self.memory_bytes_max.filter(|asked| *asked > GUEST_MEMORY_BYTES_CEILING) {
            let max = GUEST_MEMORY_BYTES_CEILING;
            return Err(("memory_bytes_max", format!("{asked} is over guest_memory_bytes_ceiling = {max}")));
        }
        let ceiling = GUEST_CALL_CEILING.as_millis();
        match self.call_ms_max {
            Some(0) => Err(("call_ms_max", "0 would end every call at once; it counts from 1".into())),
            Some(asked) if u128::from(asked) > ceiling => {
                Err(("call_ms_max", format!("{asked} is over guest_call_ms_ceiling = {ceiling}")))
            }
            _ => Ok(()),
        }
    }

    fn grants(&self, grant: &str) -> bool {
        self.grants.iter().any(|name| name == grant)
    }

    /// The grants of a plugin as its status shows them: those it has and those it wants.
    pub(super) fn grant_status(&self, wanted: &[String]) -> Vec<GrantStatus> {
        let status = |name: &str| GrantStatus {
            name: name.to_owned(),
            granted: self.grants(name),
            wanted: wanted.iter().any(|wanted| wanted == name),
            reach: match name {
                "env" => self.env.keys().cloned().collect(),
                "http" => self.http_hosts.clone(),
                "read_dir" => self.read_dir.iter().map(|path| path.display().to_string()).collect(),
                "channels" => self.channels.clone(),
                _ => Vec::new(),
            },
        };
        GRANTS.iter().map(|name| status(name)).filter(|grant| grant.granted || grant.wanted).collect()
    }
}

impl Grants {
    /// What the settings of a plugin give it, if they are sound.
    pub(super) fn given(plugin: &str, settings: &PluginSettings) -> Result<Self, PluginError> {
        let unusable = |key: &str, detail: String| PluginError::Settings {
            key: format!("plugins.{plugin}.{key}"),
            detail,
        };
        if let Some(unknown) = settings.grants.iter().find(|name| !GRANTS.contains(&name.as_str())) {
            return Err(PluginError::GrantUnknown { grant: unknown.clone() });
        }
        settings.check().map_err(|(key, why)| unusable(key, why))?;
        if let Some(path) = &settings.read_dir {
            readable(path).map_err(|why| unusable("read_dir", why))?;
        }
        let http = hosts(&settings.http_hosts).map_err(|why| unusable("http_hosts", why))?;
        let http = if settings.grants("http") {
            let client = tls::client(settings.http_ca_file.as_deref());
            let client = client.map_err(|why| unusable("http_ca_file", why))?;
            Some(Arc::new(HttpAccess::new(http, client)))
        } else {
            None
        };
        Ok(Self {
            clock: settings.grants("clock"),
            random: settings.grants("random"),
            env: Arc::new(settings.env.clone()),
            http,
            read_dir: settings.read_dir.clone(),
            channels: ChannelGrant::parse(&settings.channels).map_err(|why| unusable("channels", why))?,
        })
    }

    /// Refuses a manifest that wants more than this.
    pub(super) fn cover(&self, plugin: &str, wanted: &[String]) -> Result<(), PluginError> {
        for grant in wanted {
            let given = match grant.as_str() {
                "clock" => self.clock,
                "random" => self.random,
                "env" => !self.env.is_empty(),
                "http" => self.http.is_some(),
                "read_dir" => self.read_dir.is_some(),
                "channels" => !self.channels.is_empty(),
                _ => return Err(PluginError::GrantUnknown { grant: super::sandbox::cut(grant, 80).into() }),
            };
            if !given {
                return Err(missing(plugin, grant, "its manifest wants"));
            }
        }
        Ok(())
    }
}

/// The refusal of a plugin that needs a grant it was not given.
pub(super) fn missing(plugin: &str, grant: &str, why: &str) -> PluginError {
    let beside = match grant {
        "env" => ", and the variables to plugins.NAME.env",
        "http" => ", and the hosts to plugins.NAME.http_hosts",
        "read_dir" => ", and the folder to plugins.NAME.read_dir",
        "channels" => ", and the channels to plugins.NAME.channels",
        _ => "",
    };
    PluginError::GrantMissing {
        plugin: plugin.to_owned(),
        grant: grant.to_owned(),
        why: why.to_owned(),
        give: format!("add it to plugins.NAME.grants{beside}").replace("NAME", plugin),
    }
}

/// Whether a folder can be given to guests now. Looked at again before every instance.
pub(super) fn readable(path: &Path) -> Result<(), String> {
    let listed = std::fs::read_dir(path);
    listed.map(drop).map_err(|error| format!("the folder {} cannot be read: {error}", path.display()))
}

fn hosts(list: &[String]) -> Result<Vec<HostPattern>, String> {
    if list.len() > GUEST_HTTP_HOSTS_MAX {
        let (asked, max) = (list.len(), GUEST_HTTP_HOSTS_MAX);
        return Err(format!("it has {asked} hosts; guest_http_hosts_max is {max}"));
    }
    list.iter().map(|text| HostPattern::parse(text)).collect()
}
