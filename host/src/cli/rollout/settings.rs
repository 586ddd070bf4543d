//! What a plugin may do on every host: its limits and grants, as an event carries them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::plan::table;
use crate::cli::fleet::read_bounded;
use crate::cli::{CliError, printable};
use crate::limits::CONTROL_EVENT_BYTES_MAX;

const LIMITS: [&str; 4] = ["memory_bytes_max", "call_ms_max", "state_bytes_max", "lanes"];
const GRANTS: [&str; 5] = ["grants", "env", "http_hosts", "read_dir", "channels"];

/// As they stand in a plugin's specification.
#[derive(Clone, Debug, Default)]
pub(super) struct Permissions {
    pub(super) limits: BTreeMap<String, Value>,
    pub(super) grants: BTreeMap<String, Value>,
}

impl Permissions {
    pub(super) fn read(path: &Path) -> Result<Self, CliError> {
        let wrong = |why: String| {
            CliError::usage(
                printable(&format!("{}: {why}", path.display())),
                "correct the file; `millrace rollout start --help` has an example",
            )
        };
        let content = read_bounded(path, CONTROL_EVENT_BYTES_MAX as u64)?;
        let text = String::from_utf8(content).map_err(|_| wrong("it is not UTF-8".into()))?;
        let mut permissions = Self::default();
        for (name, value) in table(&text).map_err(wrong)? {
            let place = if LIMITS.contains(&name.as_str()) {
                &mut permissions.limits
            } else if GRANTS.contains(&name.as_str()) {
                &mut permissions.grants
            } else if name == "config" {
                return Err(wrong("a configuration is a file of its own; give it with --config".into()));
            } else {
                let known = [&LIMITS[..], &GRANTS].concat().join(", ");
                return Err(wrong(format!("`{name}` is none of {known}")));
            };
            let value = serde_json::to_value(value).map_err(|error| wrong(format!("{name}: {error}")))?;
            place.insert(name, value);
        }
        Ok(permissions)
    }

    /// With more grants, each once.
    pub(super) fn granting(mut self, more: &[String]) -> Self {
        if more.is_empty() {
            return self;
        }
        let given = self.grants.remove("grants");
        let mut names: Vec<Value> = given.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
        for name in more {
            if !names.iter().any(|known| known.as_str() == Some(name)) {
                names.push(Value::from(name.as_str()));
            }
        }
        self.grants.insert("grants".into(), names.into());
        self
    }

    /// Whether a grant is among them.
    pub(super) fn gives(&self, grant: &str) -> bool {
        let names = self.grants.get("grants").and_then(Value::as_array);
        names.into_iter().flatten().any(|name| name.as_str() == Some(grant))
    }
}
