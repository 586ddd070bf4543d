//! Control events as rows, and back.

use rusqlite::{OptionalExtension as _, Row};

use super::{Done, Work};
use crate::backends::sqlite::committer::Stop;
use crate::backends::sqlite::database::{signed, unsigned};
use crate::control::rules::Standing;
use crate::control::{ControlEvent, ControlVersion, DesiredRow, EventId};
use crate::error::BackendError;

pub(super) fn standing(version: ControlVersion, event: &ControlEvent) -> Standing {
    Standing {
        revision: event.unsigned().revision,
        version,
        event_id: event.id().to_string(),
        digest: event.digest(),
    }
}

/// A stored event. It was read as one before it was stored, so it only fails under a version that knows less.
pub(super) fn event(json: &str) -> Done<ControlEvent> {
    let failed =
        |error| BackendError::Failed { detail: format!("a stored control event cannot be read: {error}") };
    ControlEvent::parse(json).map_err(|error| Stop::Refused(failed(error).into()))
}

pub(super) fn event_id(id: String) -> Done<EventId> {
    EventId::try_from(id).map_err(Stop::Refused)
}

pub(super) fn version(row: &Row<'_>, column: usize) -> rusqlite::Result<ControlVersion> {
    Ok(ControlVersion(unsigned(row.get(column)?)))
}

/// The tables `desired`, `proposed` and `carried` have the same columns.
impl Work<'_> {
    pub(super) fn standing(&self, table: &str, entity: &str) -> Done<Option<Standing>> {
        let sql = format!("SELECT revision, version, event_id, digest FROM {table} WHERE entity = ?1");
        let found = self.db.prepare_cached(&sql)?.query_row([entity], |row| {
            Ok(Standing {
                revision: unsigned(row.get(0)?),
                version: version(row, 1)?,
                event_id: row.get(2)?,
                digest: row.get(3)?,
            })
        });
        Ok(found.optional()?)
    }

    /// The newest of an entity in a table is this one now.
    pub(super) fn put(&self, table: &str, entity: &str, row: &Standing, json: &str) -> Done<()> {
        let sql = format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
        let Standing { revision, version, event_id, digest } = row;
        self.db.prepare_cached(&sql)?.execute((
            entity,
            signed(*revision),
            signed(version.0),
            event_id,
            digest,
            json,
        ))?;
        Ok(())
    }

    /// In the order of entities.
    pub(super) fn all(&self, table: &str) -> Done<Vec<DesiredRow>> {
        let sql = format!("SELECT entity, revision, version, event FROM {table} ORDER BY entity");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(DesiredRow {
                entity: row.get(0)?,
                revision: unsigned(row.get(1)?),
                version: version(row, 2)?,
                event: event(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?)?,
            });
        }
        Ok(all)
    }
}
