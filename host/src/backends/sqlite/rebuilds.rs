//! Rebuilds as they are written down, their tables, and removing what they leave.

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::SqliteStore;
use super::catalog::{create_sql, rows_table};
use super::channels::Deferred;
use super::committer::{Committer, Stop};
use super::database::{backend, signed, unsigned};
use super::deployments::{read_deployment, write_deployment};
use super::pages::ReadResult;
use super::request::{Answer, Request};
use super::shared::{TableEntry, from_json, to_json};
use crate::error::BackendError;
use crate::event::Position;
use crate::limits::REBUILD_SWEEP_ROWS_MAX;
use crate::plugins::{
    Flip, FlipReport, NewRebuild, RebuildError, RebuildProgress, RebuildRecord, RebuildStage, RebuildStep,
    RebuildStore, shadow_name,
};
use crate::tables::{TableError, TableSchema};

/// What version 9 adds: rebuilds, and under which name the indexes of a table were made, which stay with its rows when
/// it gets another one.
pub(super) const SCHEMA: &str = "
CREATE TABLE rebuilds(
  number INTEGER PRIMARY KEY AUTOINCREMENT, plugin TEXT NOT NULL, open INTEGER NOT NULL, start INTEGER NOT NULL,
  deployment TEXT NOT NULL, progress TEXT NOT NULL);
CREATE UNIQUE INDEX rebuilds_open ON rebuilds(plugin) WHERE open = 1;
ALTER TABLE tables ADD COLUMN indexes TEXT;
";

/// Processors, by the sign in their names, that no open rebuild has.
const LEFT: &str =
    "instr(?, '~') > 0 AND ? NOT IN (SELECT plugin || '~' || number FROM rebuilds WHERE open = 1)";

/// A column that names a processor, in the condition above.
fn left(column: &str) -> String {
    LEFT.replace('?', column)
}

type Reply<T, E = RebuildError> = oneshot::Sender<Result<T, E>>;

/// What rebuilds ask for.
#[derive(Debug)]
pub(super) enum RebuildRequest {
    Begin {
        wanted: Box<NewRebuild>,
        reply: Reply<RebuildRecord>,
    },
    Note {
        number: u64,
        progress: Box<RebuildProgress>,
        reply: Reply<()>,
    },
    Flip {
        flip: Box<Flip>,
        reply: Reply<FlipReport>,
    },
    Abandon {
        number: u64,
        why: String,
        reply: Reply<()>,
    },
    /// Removes a slice of what is left of former ones. Answers whether there is more.
    Sweep {
        reply: Reply<bool, BackendError>,
    },
}

impl RebuildRequest {
    /// As of every request: (items, bytes).
    pub(super) fn weight(&self) -> (usize, usize) {
        match self {
            Self::Sweep { .. } => (usize::try_from(REBUILD_SWEEP_ROWS_MAX).unwrap_or(usize::MAX), 0),
            _ => (1, 0),
        }
    }

    /// The answer that its transaction could not even begin.
    pub(super) fn fail(self, error: BackendError) {
        match self {
            Self::Begin { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Note { reply, .. } | Self::Abandon { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Flip { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Sweep { reply } => drop(reply.send(Err(error))),
        }
    }
}

pub(super) type RebuildResult<T> = Result<T, Stop<RebuildError>>;

impl RebuildStore for SqliteStore {
    fn begin(&self, wanted: NewRebuild) -> BoxFuture<'_, Result<RebuildRecord, RebuildError>> {
        let wanted = Box::new(wanted);
        self.request(|reply| Request::Rebuild(RebuildRequest::Begin { wanted, reply }))
    }

    fn note(&self, number: u64, progress: RebuildProgress) -> BoxFuture<'_, Result<(), RebuildError>> {
        let progress = Box::new(progress);
        self.request(|reply| Request::Rebuild(RebuildRequest::Note { number, progress, reply }))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<RebuildRecord>, RebuildError>> {
        SqliteStore::read(self, |conn, _| records(conn))
    }

    fn flip(&self, flip: Flip) -> BoxFuture<'_, Result<FlipReport, RebuildError>> {
        let flip = Box::new(flip);
        self.request(|reply| Request::Rebuild(RebuildRequest::Flip { flip, reply }))
    }

    fn abandon(&self, number: u64, why: String) -> BoxFuture<'_, Result<(), RebuildError>> {
        self.request(|reply| Request::Rebuild(RebuildRequest::Abandon { number, why, reply }))
    }
}

/// The newest of each plugin.
fn records(conn: &Connection) -> ReadResult<Vec<RebuildRecord>, RebuildError> {
    let mut statement = conn.prepare_cached(
        "SELECT number, start, deployment, progress FROM rebuilds
         WHERE number IN (SELECT max(number) FROM rebuilds GROUP BY plugin) ORDER BY plugin",
    )?;
    let mut rows = statement.query([])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(RebuildRecord {
            number: unsigned(row.get(0)?),
            start: Position(unsigned(row.get(1)?)),
            deployment: read_deployment(row.get_ref(2)?.as_str()?)?,
            progress: from_json(row.get_ref(3)?.as_str()?)?,
        });
    }
    Ok(records)
}

/// Whether there is anything that no rebuild needs any more. A failure says no: the next look is a second away.
pub(super) fn has_leftovers(conn: &Connection) -> bool {
    let sql = format!(
        "SELECT EXISTS(SELECT 1 FROM tables WHERE {}) OR EXISTS(SELECT 1 FROM tasks WHERE {})",
        left("owner"),
        left("processor")
    );
    let found = conn.prepare_cached(&sql).and_then(|mut statement| statement.query_row([], |row| row.get(0)));
    found.unwrap_or(false)
}

impl Committer {
    /// Carries out what rebuilds ask for. An error means that the whole transaction fails.
    pub(super) fn apply_to_rebuilds(&mut self, request: RebuildRequest) -> rusqlite::Result<()> {
        match request {
            RebuildRequest::Begin { wanted, reply } => {
                let result = self.begin_rebuild(&wanted);
                self.answer_later(reply, result)
            }
            RebuildRequest::Note { number, progress, reply } => {
                let result = self.note_rebuild(number, &progress);
                self.answer_later(reply, result)
            }
            RebuildRequest::Flip { flip, reply } => {
                let result = self.flip(&flip);
                self.answer_later(reply, result)
            }
            RebuildRequest::Abandon { number, why, reply } => {
                let result = self.abandon_rebuild(number, &why);
                self.answer_later(reply, result)
            }
            RebuildRequest::Sweep { reply } => {
                let result = self.sweep_rebuilds();
                self.answer_later(reply, result)
            }
        }
    }

    fn answer_later<T, E>(&mut self, reply: Reply<T, E>, result: Result<T, Stop<E>>) -> rusqlite::Result<()>
    where
        T: Send + 'static,
        E: From<BackendError> + Send + 'static,
    {
        let result = match result {
            Ok(done) => Ok(done),
            Err(Stop::Refused(refused)) => Err(refused),
            Err(Stop::Storage(error)) => {
                drop(reply.send(Err(backend(&error).into())));
                return Err(error);
            }
        };
        self.note_answer(Answer::Deferred(Deferred::new(reply, result)));
        Ok(())
    }

    /// Writes a rebuild down and makes its tables, which nobody sees.
    pub(super) fn begin_rebuild(&mut self, wanted: &NewRebuild) -> RebuildResult<RebuildRecord> {
        let NewRebuild { deployment, tables, start, accept_unemitted } = wanted;
        let plugin = deployment.plugin.as_str();
        let running: Option<i64> = self
            .conn
            .prepare_cached("SELECT number FROM rebuilds WHERE plugin = ?1 AND open = 1")?
            .query_row([plugin], |row| row.get(0))
            .optional()?;
        if let Some(number) = running {
            let number = unsigned(number);
            return Err(Stop::Refused(RebuildError::Running { plugin: plugin.to_owned(), number }));
        }
        for table in tables {
            table.validate().map_err(|error| Stop::Refused(TableError::from(error).into()))?;
            self.may_replace(plugin, &table.name)?;
        }
        let progress = RebuildProgress { accept_unemitted: *accept_unemitted, ..RebuildProgress::default() };
        self.conn.prepare_cached("DELETE FROM rebuilds WHERE plugin = ?1")?.execute([plugin])?;
        self.conn
            .prepare_cached(
                "INSERT INTO rebuilds(plugin, open, start, deployment, progress) VALUES (?1, 1, ?2, ?3, ?4)",
            )?
            .execute((plugin, signed(start.0), write_deployment(deployment)?, to_json(&progress)?))?;
        let number = unsigned(self.conn.last_insert_rowid());
        let owner = shadow_name(plugin, number);
        for table in tables {
            let name = shadow_name(&table.name, number);
            let schema = TableSchema { name: name.clone(), ..table.clone() };
            self.conn.execute_batch(&create_sql(&schema, &name))?;
            self.conn
                .prepare_cached("INSERT INTO tables(name, owner, schema) VALUES (?1, ?2, ?3)")?
                .execute((&name, &owner, to_json(&schema)?))?;
            self.catalog
                .insert(name.clone(), TableEntry { owner: Some(owner.clone()), schema, indexes: name });
            self.note_hidden_change();
        }
        Ok(RebuildRecord { number, deployment: deployment.clone(), start: *start, progress })
    }

    /// Whether a table of this name would be this plugin's to write.
    pub(super) fn may_replace(&self, plugin: &str, table: &str) -> RebuildResult<()> {
        let owner = self.catalog.get(table).and_then(|entry| entry.owner.clone());
        match owner.filter(|owner| owner != plugin) {
            None => Ok(()),
            Some(owner) => Err(Stop::Refused(TableError::Owned { table: table.to_owned(), owner }.into())),
        }
    }

    pub(super) fn note_rebuild(&self, number: u64, progress: &RebuildProgress) -> RebuildResult<()> {
        let noted = self
            .conn
            .prepare_cached("UPDATE rebuilds SET progress = ?2 WHERE number = ?1 AND open = 1")?
            .execute((signed(number), to_json(progress)?))?;
        if noted == 0 { Err(Stop::Refused(RebuildError::Gone { number })) } else { Ok(()) }
    }

    /// Ends a rebuild. Its tables and tasks are swept away.
    pub(super) fn abandon_rebuild(&self, number: u64, why: &str) -> RebuildResult<()> {
        let progress: Option<String> = self
            .conn
            .prepare_cached("SELECT progress FROM rebuilds WHERE number = ?1 AND open = 1")?
            .query_row([signed(number)], |row| row.get(0))
            .optional()?;
        let Some(progress) = progress else { return Err(Stop::Refused(RebuildError::Gone { number })) };
        let progress = RebuildProgress {
            stage: RebuildStage::Abandoned,
            message: why.to_owned(),
            ..from_json(&progress)?
        };
        self.conn
            .prepare_cached("UPDATE rebuilds SET open = 0, progress = ?2 WHERE number = ?1")?
            .execute((signed(number), to_json(&progress)?))?;
        Ok(())
    }

    /// Removes a slice of what no rebuild needs any more. Answers whether there is more of it.
    pub(super) fn sweep_rebuilds(&mut self) -> Result<bool, Stop<BackendError>> {
        let table: Option<String> = self
            .conn
            .prepare_cached(&format!("SELECT name FROM tables WHERE {} LIMIT 1", left("owner")))?
            .query_row([], |row| row.get(0))
            .optional()?;
        if let Some(table) = table {
            RebuildStep::Sweeping.reached();
            self.sweep_table(&table)?;
            return Ok(true);
        }
        let task: Option<(i64, String)> = self
            .conn
            .prepare_cached(&format!("SELECT id, processor FROM tasks WHERE {} LIMIT 1", left("processor")))?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((task, processor)) = task else { return Ok(false) };
        RebuildStep::Sweeping.reached();
        self.sweep_task(task, &processor)?;
        Ok(true)
    }

    fn sweep_table(&mut self, table: &str) -> Result<(), rusqlite::Error> {
        let (rows, limit) = (rows_table(table), signed(REBUILD_SWEEP_ROWS_MAX));
        let slice =
            format!("DELETE FROM {rows} WHERE (_tenant, key) IN (SELECT _tenant, key FROM {rows} LIMIT ?1)");
        if self.conn.prepare(&slice)?.execute([limit])? as u64 >= REBUILD_SWEEP_ROWS_MAX {
            return Ok(());
        }
        self.conn.execute_batch(&format!("DROP TABLE {rows}"))?;
        self.conn.prepare_cached("DELETE FROM tables WHERE name = ?1")?.execute([table])?;
        self.catalog.remove(table);
        self.note_hidden_change();
        Ok(())
    }

    /// The task itself goes last, since it is what leads to the rest.
    fn sweep_task(&self, task: i64, processor: &str) -> Result<(), rusqlite::Error> {
        let limit = signed(REBUILD_SWEEP_ROWS_MAX);
        for (table, key) in [("keyed_state", "key"), ("parked_events", "position"), ("parked_keys", "key")] {
            let slice = format!(
                "DELETE FROM {table} WHERE task = ?1 AND {key} IN (SELECT {key} FROM {table} WHERE task = ?1 LIMIT ?2)"
            );
            if self.conn.prepare_cached(&slice)?.execute((task, limit))? as u64 >= REBUILD_SWEEP_ROWS_MAX {
                return Ok(());
            }
        }
        let letters = "DELETE FROM dead_letters WHERE seq IN
                       (SELECT seq FROM dead_letters WHERE processor = ?1 LIMIT ?2)";
        if self.conn.prepare_cached(letters)?.execute((processor, limit))? as u64 >= REBUILD_SWEEP_ROWS_MAX {
            return Ok(());
        }
        self.conn.prepare_cached("DELETE FROM states WHERE task = ?1")?.execute([task])?;
        self.conn.prepare_cached("DELETE FROM tasks WHERE id = ?1")?.execute([task])?;
        Ok(())
    }
}
