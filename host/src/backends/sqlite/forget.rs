//! Beginning a task anew.

use super::catalog::rows_table;
use super::commit::CommitResult;
use super::committer::{Committer, Stop};
use super::database::{signed, unsigned};
use super::row_writes::TableRows;
use crate::checkpoints::{CommitError, Committed, Dropped, Generation, TaskId};
use crate::event::{Position, Revision};
use crate::tables::RowChange;

impl Committer {
    /// Drops what a task has written and kept, and puts it at a position.
    pub(super) fn forget(
        &mut self,
        task: &TaskId,
        generation: Generation,
        position: Position,
    ) -> CommitResult<Committed> {
        let stored = self.stored_task(task)?;
        let current = stored.as_ref().map_or(0, |stored| stored.generation);
        let Some(stored) = stored.filter(|stored| stored.generation == generation.0) else {
            let fenced = CommitError::Fenced { task: task.clone(), held: generation.0, current };
            return Err(Stop::Refused(fenced));
        };
        self.counters.revision += 1;
        let revision = self.counters.revision;
        let changed = self.drop_rows(task, stored.number, revision)?;
        for sql in [
            "DELETE FROM keyed_state WHERE task = ?1",
            "DELETE FROM parked_events WHERE task = ?1",
            "DELETE FROM parked_keys WHERE task = ?1",
            "DELETE FROM states WHERE task = ?1",
        ] {
            self.conn.prepare_cached(sql)?.execute([stored.number])?;
        }
        self.conn
            .prepare_cached(
                "UPDATE tasks SET position = ?2, revision = ?3, at = ?4, keyed_entries = 0, keyed_bytes = 0 WHERE id = ?1",
            )?
            .execute((stored.number, signed(position.0), signed(revision), self.clock.now().0))?;
        self.note_changes(&task.tenant, revision, changed);
        Ok(Committed { revision: Revision(revision), stale: 0, dropped: Dropped::default() })
    }

    /// Removes the rows of a task. Answers what that changes in tables that are watched.
    fn drop_rows(
        &self,
        task: &TaskId,
        number: i64,
        revision: u64,
    ) -> Result<Vec<TableRows>, rusqlite::Error> {
        let of_plugin = |owner: &Option<String>| owner.as_deref() == Some(&*task.processor);
        let watched = self.watched.get(&task.tenant);
        let mut changed = Vec::new();
        for (table, _) in self.catalog.iter().filter(|(_, entry)| of_plugin(&entry.owner)) {
            let rows = rows_table(table);
            let mut statement = self
                .conn
                .prepare(&format!("SELECT key, _version FROM {rows} WHERE _task = ?1 AND _deleted = 0"))?;
            let gone = statement.query_map([number], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?;
            let gone: Vec<(String, u64)> = gone.collect::<Result<_, _>>()?;
            let keys = gone.iter().map(|(key, _)| key.as_str());
            self.shared.last_changed.note(&task.tenant, table, Revision(revision), keys);
            if watched.is_some_and(|tables| tables.contains(table)) {
                let deleted = gone.into_iter().map(|(key, version)| RowChange::Delete { key, version });
                changed.push(TableRows { table: table.clone(), rows: deleted.collect() });
            }
            self.conn.execute(&format!("DELETE FROM {rows} WHERE _task = ?1"), [number])?;
        }
        Ok(changed)
    }
}
