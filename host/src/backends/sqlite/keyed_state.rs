//! What a task keeps between events: its saved state, and its keyed state with sizes and expiry.
//!
//! The sizes stand beside the task and change in the transaction that changes the entries, so a
//! limit costs no counting.

use rusqlite::{Connection, OptionalExtension};

use super::committer::{Committer, Stop};
use super::database::{signed, unsigned};
use super::pages::ReadResult;
use super::readers::ReadStop;
use super::shared::Shared;
use crate::checkpoints::{
    Checkpoint, Commit, CommitError, EffectRef, SavedState, ScanLimit, StateEntry, StatePage, StateValue,
    TaskId, stored_expiry,
};
use crate::error::BackendError;
use crate::event::{Micros, Position, Revision};
use crate::limits::{GUEST_STATE_BYTES_CEILING, STATE_EXPIRED_ENTRIES_MAX};

fn task_number(conn: &Connection, task: &TaskId) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT id FROM tasks WHERE processor = ?1 AND tenant = ?2 AND lane = ?3")?
        .query_row((&*task.processor, task.tenant.as_str(), task.lane), |row| row.get(0))
        .optional()
}

/// A task's saved state. One that no version may load is not read into memory.
pub(super) fn saved_state(
    conn: &Connection,
    number: i64,
    task: &TaskId,
) -> Result<Option<SavedState>, Stop<CommitError>> {
    let mut statement = conn.prepare_cached(
        "SELECT length(state), content_type, CASE WHEN length(state) <= ?2 THEN state END
         FROM states WHERE task = ?1",
    )?;
    let mut rows = statement.query((number, signed(GUEST_STATE_BYTES_CEILING as u64)))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let bytes = unsigned(row.get(0)?);
    match row.get::<_, Option<Vec<u8>>>(2)? {
        Some(state) => Ok(Some(SavedState { content_type: row.get(1)?, state })),
        None => Err(Stop::Refused(CommitError::StateTooLarge { task: task.clone(), bytes })),
    }
}

/// The last commit: position and state as of one moment.
pub(super) fn checkpoint(conn: &Connection, task: &TaskId) -> ReadResult<Option<Checkpoint>, CommitError> {
    let found = conn
        .prepare_cached(
            "SELECT id, position, revision FROM tasks
             WHERE processor = ?1 AND tenant = ?2 AND lane = ?3 AND revision > 0",
        )?
        .query_row((&*task.processor, task.tenant.as_str(), task.lane), |row| {
            Ok((row.get::<_, i64>(0)?, unsigned(row.get(1)?), unsigned(row.get(2)?)))
        })
        .optional()?;
    let Some((number, position, revision)) = found else { return Ok(None) };
    let saved = saved_state(conn, number, task).map_err(|stop| match stop {
        Stop::Refused(refused) => ReadStop::Refused(refused),
        Stop::Storage(error) => ReadStop::Storage(error),
    })?;
    Ok(Some(Checkpoint {
        position: Position(position),
        saved,
        revision: Revision(revision),
        parked: Vec::new(),
    }))
}

pub(super) fn state_get(
    conn: &Connection,
    task: &TaskId,
    key: &[u8],
) -> ReadResult<Option<StateValue>, CommitError> {
    let Some(task) = task_number(conn, task)? else { return Ok(None) };
    Ok(conn
        .prepare_cached("SELECT value, expires_at FROM keyed_state WHERE task = ?1 AND key = ?2")?
        .query_row((task, key), |row| {
            Ok(StateValue { value: row.get(0)?, expires_at: stored_expiry(row.get(1)?) })
        })
        .optional()?)
}

pub(super) fn state_scan(
    conn: &Connection,
    task: &TaskId,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: ScanLimit,
) -> ReadResult<StatePage, CommitError> {
    let mut page = StatePage::default();
    let Some(task) = task_number(conn, task)? else { return Ok(page) };
    if limit.entries == 0 {
        return Ok(page);
    }
    // One statement for all cases: the later of the two lower bounds decides.
    let (from, including) = match after {
        Some(after) if after >= prefix => (after, false),
        _ => (prefix, true),
    };
    let mut statement = conn.prepare_cached(
        "SELECT key, value, expires_at FROM keyed_state WHERE task = ?1 AND key >= ?2 ORDER BY key",
    )?;
    let mut rows = statement.query((task, from))?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let key = row.get_ref(0)?.as_blob()?;
        if !key.starts_with(prefix) {
            break;
        }
        if !including && key == from {
            continue;
        }
        let value = row.get_ref(1)?.as_blob()?;
        if limit.ends(page.entries.len(), bytes, key.len() + value.len()) {
            page.more = true;
            break;
        }
        bytes += key.len() + value.len();
        let expires_at = stored_expiry(row.get(2)?);
        page.entries.push(StateEntry { key: key.to_vec(), value: value.to_vec(), expires_at });
    }
    Ok(page)
}

/// What is old enough to be removed: the host's time, and for how many microseconds an ended entry is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiredAge {
    pub(super) now: Micros,
    pub(super) keep: i64,
}

/// Entries that ended `?2` before the host's time `?1` and before the tenant's last event that their task
/// has passed. The events' own time decides, too: where old events are handled, be it for the first time or again,
/// what ended long ago by the clock on the wall is still alive. A store whose log is elsewhere has the time of the last
/// event that the task itself has handled.
const EXPIRED: &str =
    "FROM tasks t CROSS JOIN tenants n CROSS JOIN keyed_state k INDEXED BY keyed_state_expiry
 WHERE t.keyed_entries > 0 AND n.name = t.tenant AND k.task = t.id AND k.expires_at > 0
   AND k.expires_at < min(?1, coalesce((SELECT at FROM events INDEXED BY events_tenant
     WHERE tenant = n.id AND position <= t.position ORDER BY position DESC LIMIT 1), t.passed_at)) - ?2";

/// Entries and bytes of a task's keyed state.
#[derive(Clone, Copy)]
struct Size {
    entries: u64,
    bytes: u64,
}

impl Committer {
    /// The last write of each entry, in the order of the keys.
    pub(super) fn write_keyed_state(&self, task: i64, commit: &Commit) -> Result<(), Stop<CommitError>> {
        type Write<'a> = (&'a [u8], Option<(&'a [u8], i64)>);
        let mut writes: Vec<Write<'_>> = Vec::new();
        for effect in commit.effects.iter().flat_map(|effects| effects.iter()) {
            match effect {
                EffectRef::StatePut { key, value, expires_at } => {
                    writes.push((key, Some((value, expires_at.map_or(0, |at| at.0)))));
                }
                EffectRef::StateDelete { key } => writes.push((key, None)),
                _ => {}
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        // Stable: writes of one key stay in their order, so the last of a run wins.
        writes.sort_by_key(|(key, _)| *key);
        let before = self.keyed_size(task)?;
        let mut size = before;
        let mut known =
            self.conn.prepare_cached("SELECT length(value) FROM keyed_state WHERE task = ?1 AND key = ?2")?;
        let mut put = self.conn.prepare_cached(
            "INSERT INTO keyed_state(task, key, value, expires_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT(task, key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at",
        )?;
        let mut delete = self.conn.prepare_cached("DELETE FROM keyed_state WHERE task = ?1 AND key = ?2")?;
        for run in writes.chunk_by(|a, b| a.0 == b.0) {
            let Some((key, write)) = run.last() else { continue };
            let old: Option<i64> = known.query_row((task, key), |row| row.get(0)).optional()?;
            if let Some(old) = old {
                size.entries = size.entries.saturating_sub(1);
                size.bytes = size.bytes.saturating_sub(unsigned(old) + key.len() as u64);
            }
            match write {
                Some((value, expires_at)) => {
                    put.execute((task, key, value, expires_at))?;
                    size.entries += 1;
                    size.bytes += (key.len() + value.len()) as u64;
                }
                None if old.is_some() => drop(delete.execute((task, key))?),
                None => {}
            }
        }
        self.check_keyed_size(commit, before, size)?;
        self.conn
            .prepare_cached("UPDATE tasks SET keyed_entries = ?2, keyed_bytes = ?3 WHERE id = ?1")?
            .execute((task, signed(size.entries), signed(size.bytes)))?;
        Ok(())
    }

    fn keyed_size(&self, task: i64) -> Result<Size, rusqlite::Error> {
        self.conn
            .prepare_cached("SELECT keyed_entries, keyed_bytes FROM tasks WHERE id = ?1")?
            .query_row([task], |row| {
                Ok(Size { entries: unsigned(row.get(0)?), bytes: unsigned(row.get(1)?) })
            })
    }

    /// A task that is over a limit, since it was lowered, may still shrink.
    fn check_keyed_size(&self, commit: &Commit, before: Size, size: Size) -> Result<(), Stop<CommitError>> {
        let limits = self.keyed_limits;
        let over = |name: &str, asked: u64, max: u64| {
            Err(Stop::Refused(CommitError::Refused {
                task: commit.task.clone(),
                reason: format!(
                    "its keyed state would have {asked} {}; {name} is {max}: delete entries, give them a time to live, or raise store.{name}",
                    if name == "keyed_state_bytes_max" { "bytes" } else { "entries" }
                ),
            }))
        };
        if size.bytes > limits.bytes_max && size.bytes > before.bytes {
            return over("keyed_state_bytes_max", size.bytes, limits.bytes_max);
        }
        if size.entries > limits.entries_max && size.entries > before.entries {
            return over("keyed_state_entries_max", size.entries, limits.entries_max);
        }
        Ok(())
    }

    /// Removes some of the entries that ended long ago: at most a transaction's share.
    ///
    /// A commit that is on its way and writes such an entry anew comes after this and simply writes it.
    pub(super) fn purge_expired(&mut self, age: ExpiredAge) -> Result<u64, Stop<BackendError>> {
        let mut find = self.conn.prepare_cached(&format!(
            "SELECT k.task, k.key, length(k.key) + length(k.value) {EXPIRED} LIMIT ?3"
        ))?;
        let expired = find
            .query_map((age.now.0, age.keep, signed(STATE_EXPIRED_ENTRIES_MAX)), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let mut delete = self.conn.prepare_cached("DELETE FROM keyed_state WHERE task = ?1 AND key = ?2")?;
        let mut shrink = self.conn.prepare_cached(
            "UPDATE tasks SET keyed_entries = max(keyed_entries - 1, 0), keyed_bytes = max(keyed_bytes - ?2, 0)
             WHERE id = ?1",
        )?;
        for (task, key, bytes) in &expired {
            delete.execute((task, key))?;
            shrink.execute((task, bytes))?;
        }
        Ok(expired.len() as u64)
    }
}

impl Shared {
    /// Whether there is an entry to remove. A failure says no: the next look is a second away.
    pub(super) fn has_expired(&self, conn: &Connection, age: ExpiredAge) -> bool {
        let found =
            conn.query_row(&format!("SELECT EXISTS(SELECT 1 {EXPIRED})"), (age.now.0, age.keep), |row| {
                row.get(0)
            });
        found.unwrap_or(false)
    }
}
