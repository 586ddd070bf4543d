//! What stands at the origin, as it tells it.

use serde::Deserialize;
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::{CliError, Exit, printable};
use crate::control::changes::Present;
use crate::control::{ControlEvent, ControlFeedError, Desired, EventBody};

/// What is desired, and whether the fleet is frozen.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Standing {
    entities: Vec<Entity>,
    #[serde(default)]
    frozen: Option<Frozen>,
}

#[derive(Debug, Deserialize)]
struct Entity {
    entity: String,
    revision: u64,
    event: Value,
}

/// Who froze the fleet, and why.
#[derive(Debug, Deserialize)]
pub(super) struct Frozen {
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
}

/// The newest of one entity; revision 0 and no event when nothing is known of it.
#[derive(Debug)]
pub(in crate::cli) struct Known {
    pub(in crate::cli) revision: u64,
    pub(in crate::cli) event: Option<ControlEvent>,
}

impl Standing {
    pub(in crate::cli) async fn read(client: &Client) -> Result<Self, CliError> {
        client.get(&["v1", "fleet", "desired"], &[]).await
    }

    pub(in crate::cli) fn plugin(&self, client: &Client, plugin: &str) -> Result<Known, CliError> {
        self.entity(client, &format!("plugin:{plugin}"))
    }

    pub(in crate::cli) fn entity(&self, client: &Client, name: &str) -> Result<Known, CliError> {
        let Some(found) = self.entities.iter().find(|found| found.entity == name) else {
            return Ok(Known { revision: 0, event: None });
        };
        let event = ControlEvent::parse(&found.event.to_string()).map_err(|error| match error {
            // Whoever changed it without knowing all of it would take something back.
            error @ ControlFeedError::NotUnderstood { .. } => CliError::failed(
                printable(&format!("what stands of {name} is of a later version: {error}")),
                "use the `millrace` of the version that the origin has",
            ),
            error => client.unexpected(&format!("{name}: {error}")),
        })?;
        Ok(Known { revision: found.revision, event: Some(event) })
    }

    /// Ends what would be refused, before anything is sent for it.
    pub(in crate::cli) fn check_thawed(&self) -> Result<(), CliError> {
        let Some(frozen) = &self.frozen else { return Ok(()) };
        Err(CliError::new(
            Exit::Refused,
            frozen.sentence(),
            "wait, or let it go on with `millrace fleet unfreeze`; halting, pausing and rolling back work meanwhile",
        ))
    }
}

impl Frozen {
    pub(super) fn sentence(&self) -> String {
        let by = if self.by.is_empty() { String::new() } else { format!(" by {}", self.by) };
        let why = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        printable(&format!("the fleet is frozen{by}{why}"))
    }
}

impl Known {
    pub(in crate::cli) fn desired(&self) -> Option<&Desired> {
        match &self.event.as_ref()?.unsigned().body {
            EventBody::Plugin { desired, .. } => Some(desired),
            _ => None,
        }
    }

    pub(in crate::cli) fn present<'a>(&'a self, plugin: &'a str) -> Present<'a> {
        Present { plugin, desired: self.desired() }
    }

    /// Why it stands so, for people.
    pub(in crate::cli) fn why(&self) -> Option<String> {
        let unsigned = self.event.as_ref()?.unsigned();
        let reason =
            if unsigned.reason.is_empty() { String::new() } else { format!(": {}", unsigned.reason) };
        Some(printable(&format!("{} by {}{reason}", unsigned.kind, unsigned.actor)))
    }
}
