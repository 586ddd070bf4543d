//! Writing deployments, and forgetting a plugin.

use super::committer::{Committer, Stop};
use super::shared::to_json;
use crate::error::BackendError;
use crate::limits::DEPLOYMENT_HISTORY_MAX;
use crate::plugins::{Candidate, Deployment};

impl Committer {
    /// Writes a plugin's deployment; the former one becomes history.
    pub(super) fn deploy(&mut self, deployment: &Deployment) -> Result<(), Stop<BackendError>> {
        self.retire_deployment(&deployment.plugin)?;
        self.conn
            .prepare_cached("INSERT INTO deployments(plugin, deployment) VALUES (?1, ?2)")?
            .execute((&deployment.plugin, to_json(deployment)?))?;
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
