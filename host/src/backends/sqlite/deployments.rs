//! Writing deployments, and forgetting a plugin.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::committer::{Committer, Stop};
use super::shared::{from_json, to_json};
use crate::error::BackendError;
use crate::limits::DEPLOYMENT_HISTORY_MAX;
use crate::plugins::{Candidate, Deployment, PluginSettings};

/// A deployment as it is written down: with its settings, which nobody else sees of it.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    deployment: &'a Deployment,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Settings {
    settings: Option<PluginSettings>,
}

pub(super) fn read_deployment(text: &str) -> Result<Deployment, rusqlite::Error> {
    let Settings { settings } = from_json(text)?;
    Ok(Deployment { settings, ..from_json(text)? })
}

pub(super) fn write_deployment(deployment: &Deployment) -> Result<String, rusqlite::Error> {
    let said = |settings: &PluginSettings| match serde_json::to_value(settings) {
        Ok(Value::Object(members)) => {
            Ok(members.into_iter().filter(|(_, value)| says_something(value)).collect())
        }
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(Box::new(error))),
    };
    let settings = deployment.settings.as_ref().map(said).transpose()?;
    to_json(&Written { deployment, settings })
}

/// What is not said is not written, so that an earlier host reads whatever it knows.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

impl Committer {
    /// Writes a plugin's deployment; the former one becomes history.
    pub(super) fn deploy(&mut self, deployment: &Deployment) -> Result<(), Stop<BackendError>> {
        self.retire_deployment(&deployment.plugin)?;
        self.conn
            .prepare_cached("INSERT INTO deployments(plugin, deployment) VALUES (?1, ?2)")?
            .execute((&deployment.plugin, write_deployment(deployment)?))?;
        Ok(())
    }

    /// Takes a plugin's deployment back; the newest of its history is in its place again.
    pub(super) fn withdraw(&mut self, plugin: &str) -> Result<(), Stop<BackendError>> {
        for sql in [
            "DELETE FROM deployments WHERE plugin = ?1",
            "INSERT INTO deployments(plugin, deployment)
             SELECT plugin, deployment FROM deployment_history WHERE plugin = ?1 ORDER BY seq DESC LIMIT 1",
            "DELETE FROM deployment_history WHERE seq =
             (SELECT seq FROM deployment_history WHERE plugin = ?1 ORDER BY seq DESC LIMIT 1)",
        ] {
            self.conn.prepare_cached(sql)?.execute([plugin])?;
        }
        Ok(())
    }

    /// Writes what became of a plugin's last candidate.
    pub(super) fn put_candidate(
        &self,
        plugin: &str,
        candidate: &Candidate,
    ) -> Result<(), Stop<BackendError>> {
        self.conn
            .prepare_cached(
                "INSERT INTO candidates(plugin, report) VALUES (?1, ?2)
                 ON CONFLICT(plugin) DO UPDATE SET report = excluded.report",
            )?
            .execute((plugin, to_json(candidate)?))?;
        Ok(())
    }

    /// Forgets a plugin. Its tables keep their rows and lose their owner, and
    /// rows of its tasks may be taken over, as those tasks exist no more.
    pub(super) fn remove(&mut self, plugin: &str) -> Result<(), Stop<BackendError>> {
        self.retire_deployment(plugin)?;
        for sql in [
            "DELETE FROM keyed_state WHERE task IN (SELECT id FROM tasks WHERE processor = ?1)",
            "DELETE FROM parked_events WHERE task IN (SELECT id FROM tasks WHERE processor = ?1)",
            "DELETE FROM parked_keys WHERE task IN (SELECT id FROM tasks WHERE processor = ?1)",
            "DELETE FROM states WHERE task IN (SELECT id FROM tasks WHERE processor = ?1)",
            "DELETE FROM tasks WHERE processor = ?1",
            "DELETE FROM candidates WHERE plugin = ?1",
            "DELETE FROM rebuilds WHERE plugin = ?1 AND open = 0",
            "UPDATE tables SET owner = NULL WHERE owner = ?1",
        ] {
            self.conn.prepare_cached(sql)?.execute([plugin])?;
        }
        for entry in self.catalog.values_mut().filter(|entry| entry.owner.as_deref() == Some(plugin)) {
            entry.owner = None;
        }
        self.note_catalog_change();
        Ok(())
    }

    fn retire_deployment(&self, plugin: &str) -> Result<(), rusqlite::Error> {
        self.conn
            .prepare_cached(
                "INSERT INTO deployment_history(plugin, deployment)
                 SELECT plugin, deployment FROM deployments WHERE plugin = ?1",
            )?
            .execute([plugin])?;
        self.conn.prepare_cached("DELETE FROM deployments WHERE plugin = ?1")?.execute([plugin])?;
        self.conn
            .prepare_cached(
                "DELETE FROM deployment_history WHERE plugin = ?1 AND seq <= (
                 SELECT seq FROM deployment_history WHERE plugin = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute((plugin, DEPLOYMENT_HISTORY_MAX))?;
        Ok(())
    }
}
