//! Control events as rows, and back.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension as _, Row};
use tracing::error;

use super::{Done, Work};
use crate::backends::sqlite::committer::Stop;
use crate::backends::sqlite::database::{signed, unsigned};
use crate::control::rules::Standing;
use crate::control::{ControlEvent, ControlVersion, DesiredRow, EventId, Unreadable};

pub(super) fn standing(version: ControlVersion, event: &ControlEvent) -> Standing {
    Standing {
        revision: event.unsigned().revision,
        version,
        event_id: event.id().to_string(),
        digest: event.digest(),
    }
}

/// A stored event, or why it is none. It was read as one before it was stored, so it only fails under a version that knows
/// less, or when the file is damaged.
pub(super) fn stored(value: ValueRef<'_>) -> std::result::Result<ControlEvent, String> {
    let json = value.as_str().map_err(|error| error.to_string())?;
    ControlEvent::parse(json).map_err(|error| error.to_string())
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

    /// In the order of entities. One that this version cannot read is left out, and keeps no other one from being answered:
    /// what serves goes on, and nothing follows a change that nobody here understands. [`Work::unreadable`] says which.
    pub(super) fn all(&self, table: &str) -> Done<Vec<DesiredRow>> {
        let sql = format!("SELECT entity, revision, version, event FROM {table} ORDER BY entity");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let (entity, revision): (String, u64) = (row.get(0)?, unsigned(row.get(1)?));
            match stored(row.get_ref(3)?) {
                Ok(event) => all.push(DesiredRow { entity, revision, version: version(row, 2)?, event }),
                Err(reason) => error!(
                    error.kind = "control_event_unreadable",
                    error.blame = "host",
                    entity,
                    revision,
                    table,
                    reason,
                    "a stored control event cannot be read by this version; its entity stays as it runs"
                ),
            }
        }
        Ok(all)
    }

    pub(super) fn unreadable(&self) -> Done<Unreadable> {
        let mut newest = BTreeMap::new();
        let desired = self.add_newest("desired", &mut newest)?;
        let proposed = self.add_newest("proposed", &mut newest)?;
        Ok(Unreadable { desired, proposed })
    }

    /// By entity the highest revision, and whether its event can be read; of one revision that which can. Answers those that
    /// cannot.
    fn add_newest(&self, table: &str, newest: &mut BTreeMap<String, (u64, bool)>) -> Done<Vec<String>> {
        let sql = format!("SELECT entity, revision, event FROM {table}");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let entity: String = row.get(0)?;
            let found = (unsigned(row.get(1)?), stored(row.get_ref(2)?).is_ok());
            if newest.get(&entity).is_none_or(|known| *known < found) {
                newest.insert(entity, found);
            }
        }
        let unreadable = newest.iter().filter(|(_, (_, is_readable))| !is_readable);
        Ok(unreadable.map(|(entity, _)| entity.clone()).collect())
    }

    pub(super) fn can_read_desired(&self, entity: &str) -> Done<bool> {
        let mut found = self.db.prepare_cached("SELECT event FROM desired WHERE entity = ?1")?;
        Ok(found.query_row([entity], |row| Ok(stored(row.get_ref(0)?).is_ok()))?)
    }
}
