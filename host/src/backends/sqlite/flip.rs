//! A rebuild takes over: its tables, tasks, letters and deployment are the plugin's from one transaction to the next.
//!
//! Nothing is copied. SQLite gives a table another name by writing its schema; rows, states, keyed state and what is
//! parked belong to task numbers, which stay. Indexes keep the names under which they were made, so the catalog says
//! which those are.

use rusqlite::OptionalExtension;

use super::catalog::rows_table;
use super::committer::{Committer, Stop};
use super::database::{signed, unsigned};
use super::rebuilds::RebuildResult;
use super::shared::{TableEntry, from_json, to_json};
use crate::event::Revision;
use crate::limits::REBUILD_LISTED_MAX;
use crate::plugins::{
    Flip, FlipReport, Positions, RebuildError, RebuildProgress, RebuildStage, RebuildStep, shadow_name,
};
use crate::tables::TableSchema;

/// Who takes whose place.
struct Names<'a> {
    plugin: &'a str,
    /// The rebuild's.
    shadow: String,
    /// What the former ones are called until they are gone.
    former: String,
    number: u64,
}

/// Positions whose events the processor ?1 has parked or given up. Letters up to ?3 stay, and so do not count; what is
/// parked goes with its task, wherever it is from.
const FAILED: &str =
    "SELECT position AS p FROM parked_events WHERE task IN (SELECT id FROM tasks WHERE processor = ?1)
                      UNION SELECT position FROM dead_letters WHERE processor = ?1 AND position > ?3";

impl Committer {
    /// Does all of it or, when it is refused, nothing.
    pub(super) fn flip(&mut self, flip: &Flip) -> RebuildResult<FlipReport> {
        let (catalog, counters) = (self.catalog.clone(), self.counters.clone());
        self.execute("SAVEPOINT flip")?;
        match self.write_flip(flip) {
            Ok((report, replaced)) => {
                self.execute("RELEASE flip")?;
                for table in &replaced {
                    self.note_replaced(table);
                }
                RebuildStep::Flipping.reached();
                Ok(report)
            }
            Err(Stop::Refused(refused)) => {
                self.execute("ROLLBACK TO flip")?;
                self.execute("RELEASE flip")?;
                (self.catalog, self.counters) = (catalog, counters);
                Err(Stop::Refused(refused))
            }
            Err(stop) => Err(stop),
        }
    }

    fn write_flip(&mut self, flip: &Flip) -> RebuildResult<(FlipReport, Vec<String>)> {
        let number = flip.number;
        let record: Option<(i64, String)> = self
            .conn
            .prepare_cached(
                "SELECT start, progress FROM rebuilds WHERE number = ?1 AND plugin = ?2 AND open = 1",
            )?
            .query_row((signed(number), &flip.deployment.plugin), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((start, progress)) = record else {
            return Err(Stop::Refused(RebuildError::Gone { number }));
        };
        let plugin = flip.deployment.plugin.as_str();
        let names = Names {
            plugin,
            shadow: shadow_name(plugin, number),
            former: shadow_name(&shadow_name(plugin, "old"), number),
            number,
        };
        self.check_barrier(&names, flip)?;
        let mut report = FlipReport {
            barrier: flip.barrier.0,
            unemitted: self.only(&names.shadow, plugin, start)?,
            unhandled: self.only(plugin, &names.shadow, start)?,
            ..FlipReport::default()
        };
        if !report.is_exact() && !flip.accept_unemitted {
            return Err(Stop::Refused(RebuildError::Unemitted(Box::new(report))));
        }
        self.counters.revision += 1;
        report.revision = self.counters.revision;
        let replaced = self.flip_tables(&names)?;
        let processor = "UPDATE tasks SET processor = ?2 WHERE processor = ?1";
        self.conn.prepare_cached(processor)?.execute((plugin, &names.former))?;
        self.conn.prepare_cached(processor)?.execute((&names.shadow, plugin))?;
        report.letters_replaced = self.flip_letters(&names, start, flip.deployment.lanes)?;
        match self.deploy(&flip.deployment) {
            Ok(()) => {}
            Err(Stop::Storage(error)) => return Err(Stop::Storage(error)),
            Err(Stop::Refused(error)) => return Err(Stop::Refused(error.into())),
        }
        let progress = RebuildProgress {
            stage: RebuildStage::Flipped,
            message: String::new(),
            report: Some(report.clone()),
            ..from_json(&progress)?
        };
        self.conn
            .prepare_cached("UPDATE rebuilds SET open = 0, progress = ?2 WHERE number = ?1")?
            .execute((signed(number), to_json(&progress)?))?;
        // Before the commit can be read, as with every change of rows.
        for table in &replaced {
            self.shared.last_changed.note_table(table, Revision(report.revision));
        }
        Ok((report, replaced))
    }

    /// Both have done everything up to the barrier, and nothing behind it. Tasks that never committed have handled
    /// nothing; the rebuild has some for every tenant that the plugin has some for.
    fn check_barrier(&self, names: &Names<'_>, flip: &Flip) -> RebuildResult<()> {
        let barrier = flip.barrier;
        let elsewhere: Option<(String, String, u32, i64)> = self
            .conn
            .prepare_cached(
                "SELECT processor, tenant, lane, position FROM tasks
                 WHERE processor IN (?1, ?2) AND revision > 0 AND position <> ?3 LIMIT 1",
            )?
            .query_row((names.plugin, &names.shadow, signed(barrier.0)), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        if let Some((processor, tenant, lane, position)) = elsewhere {
            let detail = format!("task {processor}/{tenant}/{lane} stands at {position}");
            return Err(Stop::Refused(RebuildError::NotAtBarrier { barrier, detail }));
        }
        let missing: Option<String> = self
            .conn
            .prepare_cached(
                "SELECT tenant FROM tasks AS old WHERE processor = ?1 AND revision > 0 AND ?3 <> (SELECT count(*)
                 FROM tasks AS new WHERE new.processor = ?2 AND new.tenant = old.tenant AND new.revision > 0) LIMIT 1",
            )?
            .query_row((names.plugin, &names.shadow, flip.deployment.lanes), |row| row.get(0))
            .optional()?;
        match missing {
            None => Ok(()),
            Some(tenant) => {
                let detail = format!("the rebuild has not begun all lanes of tenant {tenant}");
                Err(Stop::Refused(RebuildError::NotAtBarrier { barrier, detail }))
            }
        }
    }

    /// What the one processor has parked or given up and the other has not, since it has done it or was not given it.
    fn only(&self, done: &str, failed: &str, start: i64) -> Result<Positions, rusqlite::Error> {
        let sql =
            format!("SELECT p FROM ({FAILED}) WHERE p NOT IN ({}) ORDER BY p", FAILED.replace("?1", "?2"));
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut rows = statement.query((failed, done, start))?;
        let mut positions = Positions::default();
        while let Some(row) = rows.next()? {
            positions.count += 1;
            if positions.first.len() < REBUILD_LISTED_MAX {
                positions.first.push(unsigned(row.get(0)?));
            }
        }
        Ok(positions)
    }

    /// Answers the names under which there are other rows than before, or none any more.
    fn flip_tables(&mut self, names: &Names<'_>) -> RebuildResult<Vec<String>> {
        let of = |owner: &str, catalog: &super::shared::Catalog| -> Vec<String> {
            let owned = catalog.iter().filter(|(_, entry)| entry.owner.as_deref() == Some(owner));
            owned.map(|(name, _)| name.clone()).collect()
        };
        let made: Vec<(String, String)> = of(&names.shadow, &self.catalog)
            .into_iter()
            .filter_map(|shadow| {
                let name = shadow.split('~').next()?.to_owned();
                Some((shadow, name))
            })
            .collect();
        let mut former = of(names.plugin, &self.catalog);
        for (_, name) in &made {
            // Somebody else may have declared it since the rebuild began.
            self.may_replace(names.plugin, name)?;
            if self.catalog.contains_key(name) && !former.contains(name) {
                former.push(name.clone());
            }
        }
        for name in &former {
            let to = shadow_name(&shadow_name(name, "old"), names.number);
            self.rename(name, &to, &names.former)?;
        }
        let mut replaced = former;
        for (shadow, name) in made {
            self.rename(&shadow, &name, names.plugin)?;
            if !replaced.contains(&name) {
                replaced.push(name);
            }
        }
        Ok(replaced)
    }

    fn rename(&mut self, from: &str, to: &str, owner: &str) -> Result<(), rusqlite::Error> {
        let Some(entry) = self.catalog.remove(from) else { return Ok(()) };
        self.conn.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", rows_table(from), rows_table(to)))?;
        let schema = TableSchema { name: to.to_owned(), ..entry.schema };
        self.conn
            .prepare_cached(
                "UPDATE tables SET name = ?2, owner = ?3, schema = ?4, indexes = ?5 WHERE name = ?1",
            )?
            .execute((from, to, owner, to_json(&schema)?, &entry.indexes))?;
        let entry = TableEntry { owner: Some(owner.to_owned()), schema, indexes: entry.indexes };
        self.catalog.insert(to.to_owned(), entry);
        Ok(())
    }

    /// The rebuild's letters take the place of those of the events that it was given. Answers how many those were.
    fn flip_letters(&self, names: &Names<'_>, start: i64, lanes: u32) -> Result<u64, rusqlite::Error> {
        let gone = self
            .conn
            .prepare_cached("DELETE FROM dead_letters WHERE processor = ?1 AND position > ?2")?
            .execute((names.plugin, start))?;
        self.conn
            .prepare_cached("UPDATE dead_letters SET processor = ?2 WHERE processor = ?1")?
            .execute((&names.shadow, names.plugin))?;
        // Older ones are kept to be read; the lane that they came from may be no more.
        self.conn
            .prepare_cached("UPDATE dead_letters SET lane = lane % ?2 WHERE processor = ?1 AND lane >= ?2")?
            .execute((names.plugin, lanes))?;
        Ok(gone as u64)
    }
}
