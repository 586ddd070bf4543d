//! Groups as rows: where each stands, what its entries have been through, its dead letters.
//!
//! A group's place is one row, whatever it has acknowledged out of order: ranges of positions are text in it. So
//! an acknowledgement is one update, and what was acknowledged in a group commit is one sync.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, Row};
use tokio::sync::oneshot;

use super::SqliteStore;
use super::changes::stored_number;
use super::committer::{Committer, Stop};
use super::database::{backend, signed, unsigned};
use super::group_letters::{letter_page, replaying};
use super::pages::ReadResult;
use super::readers::ReadStop;
use super::request::{Answer, GroupRequest, Request};
use super::shared::{Shared, from_json, stored_tenant, to_json};
use crate::event::{Micros, Position, TenantId};
use crate::streams::StreamName;
use crate::streams::groups::{
    GroupError, GroupId, GroupName, GroupOptions, GroupStore, GroupWrite, LetterPage, LoadedGroup, Loss,
    LossReport, NewGroup, Ranges, StoredGroup, Tried, Unread, check_groups, lose,
};
use crate::streams::name::EVENTS;

/// What groups add to the schema.
pub(super) const SCHEMA: &str = "
CREATE TABLE consumer_groups(
  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL,
  incarnation INTEGER NOT NULL, options TEXT NOT NULL, created_at INTEGER NOT NULL, low INTEGER NOT NULL,
  done TEXT NOT NULL, delivered TEXT NOT NULL, lost_events INTEGER NOT NULL, lost_until INTEGER NOT NULL,
  lost_at INTEGER, stopped INTEGER NOT NULL, UNIQUE(tenant, stream, name));
CREATE INDEX consumer_groups_low ON consumer_groups(low);
CREATE TABLE group_tried(
  grp INTEGER NOT NULL, position INTEGER NOT NULL, attempts INTEGER NOT NULL, due INTEGER NOT NULL,
  message TEXT NOT NULL, PRIMARY KEY(grp, position)) WITHOUT ROWID;
CREATE TABLE group_letters(
  grp INTEGER NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
  consumer TEXT NOT NULL, dead_at INTEGER NOT NULL, replaying INTEGER NOT NULL,
  position INTEGER NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL, PRIMARY KEY(grp, position));
";

const GROUP_COLUMNS: &str = "id, tenant, stream, name, incarnation, options, created_at, low, done, delivered, \
     lost_events, lost_until, lost_at, stopped";

type Written<T> = Result<T, Stop<GroupError>>;
type Reply<T> = oneshot::Sender<Result<T, GroupError>>;

/// A group and its number in the database.
struct Numbered {
    number: i64,
    row: StoredGroup,
}

fn group_of(row: &Row<'_>) -> rusqlite::Result<Numbered> {
    let damaged = |column: usize, what: &str| {
        let error = Box::<dyn std::error::Error + Send + Sync>::from(what.to_owned());
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    let ranges = |column: usize| {
        Ranges::parse(row.get_ref(column)?.as_str()?).ok_or_else(|| damaged(column, "these are no ranges"))
    };
    let name = GroupName::new(row.get_ref(3)?.as_str()?).map_err(|error| damaged(3, &error.to_string()))?;
    let position = |column| row.get::<_, i64>(column).map(unsigned).map(Position);
    Ok(Numbered {
        number: row.get(0)?,
        row: StoredGroup {
            group: GroupId {
                tenant: stored_tenant(row.get_ref(1)?.as_str()?)?,
                stream: row.get_ref(2)?.as_str()?.into(),
                name,
            },
            incarnation: unsigned(row.get(4)?),
            options: from_json(row.get_ref(5)?.as_str()?)?,
            created_at: Micros(row.get(6)?),
            low: position(7)?,
            done: ranges(8)?,
            delivered: ranges(9)?,
            lost_events: unsigned(row.get(10)?),
            lost_until: position(11)?,
            lost_at: row.get::<_, Option<i64>>(12)?.map(Micros),
            stopped: row.get(13)?,
        },
    })
}

fn find(conn: &Connection, id: &GroupId) -> rusqlite::Result<Option<Numbered>> {
    conn.prepare_cached(&format!(
        "SELECT {GROUP_COLUMNS} FROM consumer_groups WHERE tenant = ?1 AND stream = ?2 AND name = ?3"
    ))?
    .query_row((id.tenant.as_str(), &*id.stream, id.name.as_str()), group_of)
    .optional()
}

fn unknown(id: &GroupId) -> GroupError {
    GroupError::Unknown { group: id.clone() }
}

fn found(conn: &Connection, id: &GroupId) -> ReadResult<Numbered, GroupError> {
    find(conn, id)?.ok_or_else(|| ReadStop::Refused(unknown(id)))
}

fn load(conn: &Connection, id: &GroupId) -> ReadResult<LoadedGroup, GroupError> {
    let Numbered { number, row } = found(conn, id)?;
    let mut statement =
        conn.prepare_cached("SELECT position, attempts, due, message FROM group_tried WHERE grp = ?1")?;
    let tried = statement.query_map([number], |row| {
        let tried = Tried { attempts: row.get(1)?, due: Micros(row.get(2)?), message: row.get(3)? };
        Ok((Position(unsigned(row.get(0)?)), tried))
    })?;
    let tried = tried.collect::<rusqlite::Result<_>>()?;
    let mut statement =
        conn.prepare_cached("SELECT position FROM group_letters WHERE grp = ?1 AND replaying = 0")?;
    let dead = statement.query_map([number], |row| Ok(Position(unsigned(row.get(0)?))))?;
    let dead = dead.collect::<rusqlite::Result<_>>()?;
    let replaying = replaying(conn, number, &row.group.tenant)?;
    Ok(LoadedGroup { row, tried, dead, replaying })
}

fn list(conn: &Connection, of: Option<(&TenantId, &str)>, limit: i64) -> rusqlite::Result<Vec<StoredGroup>> {
    let (wanted, order) = match of {
        Some(_) => ("tenant = ?1 AND stream = ?2", "name"),
        None => ("?1 IS NULL AND ?2 IS NULL", "low"),
    };
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {GROUP_COLUMNS} FROM consumer_groups WHERE {wanted} ORDER BY {order} LIMIT ?3"
    ))?;
    let (tenant, stream) = of.map(|(tenant, stream)| (tenant.as_str(), stream)).unzip();
    let rows = statement.query_map((tenant, stream, limit), |row| Ok(group_of(row)?.row))?;
    rows.collect()
}

/// Where a stream's positions are found.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Among the events, under the number of a tenant, or of a stream with a name of its own made negative.
    Events(i64),
    /// Among the entries of a change stream.
    Entries(i64),
}

impl Source {
    /// None for a stream that has nothing.
    fn of(conn: &Connection, tenant: i64, stream: &str) -> rusqlite::Result<Option<Self>> {
        if stream == EVENTS {
            return Ok(Some(Self::Events(tenant)));
        }
        let number = stored_number(conn, tenant, stream)?;
        Ok(number.map(|number| match stream.parse() {
            Ok(StreamName::Changes(_)) => Self::Entries(number),
            _ => Self::Events(-number),
        }))
    }

    fn number(self) -> i64 {
        let (Self::Events(number) | Self::Entries(number)) = self;
        number
    }

    /// Events between two positions, counted up to `max`.
    fn count(self, conn: &Connection, after: u64, until: u64, max: u64) -> rusqlite::Result<u64> {
        if until <= after {
            return Ok(0);
        }
        conn.prepare_cached(match self {
            Self::Events(_) => {
                "SELECT count(*) FROM (SELECT 1 FROM events INDEXED BY events_tenant
                 WHERE tenant = ?1 AND position > ?2 AND position <= ?3 LIMIT ?4)"
            }
            Self::Entries(_) => {
                "SELECT count(*) FROM (SELECT 1 FROM stream_entries
                 WHERE stream = ?1 AND position > ?2 AND position <= ?3 LIMIT ?4)"
            }
        })?
        .query_row((self.number(), signed(after), signed(until), signed(max)), |row| row.get(0).map(unsigned))
    }

    /// Positions after one, with the time of append.
    const fn times(self) -> &'static str {
        match self {
            Self::Events(_) => {
                "SELECT position, appended_at FROM events WHERE tenant = ?1 AND position > ?2 ORDER BY position"
            }
            Self::Entries(_) => {
                "SELECT position, appended_at FROM stream_entries CROSS JOIN events USING (position)
                 WHERE stream = ?1 AND position > ?2 ORDER BY position"
            }
        }
    }
}

/// The same without what a group has done.
fn count_undone(
    conn: &Connection,
    source: Source,
    row: &StoredGroup,
    (after, until): (u64, u64),
    max: u64,
) -> rusqlite::Result<u64> {
    let mut undone = 0;
    let mut from = after;
    for (first, last) in row.done.iter().filter(|(_, last)| *last > after) {
        undone += source.count(conn, from, (first - 1).min(until), max - undone)?;
        from = from.max(last);
        if undone == max {
            return Ok(undone);
        }
    }
    Ok(undone + source.count(conn, from, until, max - undone)?)
}

fn unread(
    conn: &Connection,
    shared: &Shared,
    id: &GroupId,
    after: Position,
    max: u64,
) -> ReadResult<Unread, GroupError> {
    let row = found(conn, id)?.row;
    let Some(tenant) = shared.tenant_number(conn, &id.tenant)? else { return Ok(Unread::default()) };
    let Some(source) = Source::of(conn, tenant, &id.stream)? else { return Ok(Unread::default()) };
    let events = count_undone(conn, source, &row, (after.0, u64::MAX), max)?;
    let mut statement = conn.prepare_cached(source.times())?;
    let mut rows = statement.query((source.number(), signed(after.0)))?;
    let mut oldest_at = None;
    while let Some(event) = rows.next()? {
        if !row.done.contains(unsigned(event.get(0)?)) {
            oldest_at = Some(Micros(event.get(1)?));
            break;
        }
    }
    Ok(Unread { events, is_least: events == max, oldest_at })
}

impl Committer {
    /// Carries out what a group asks for. An error means that the whole transaction fails.
    pub(super) fn apply_to_group(&mut self, request: GroupRequest) -> rusqlite::Result<()> {
        match request {
            GroupRequest::Ensure { group, wanted, reply } => {
                let result = self.ensure_group(&group, wanted);
                self.answer(Answer::GroupMade, reply, result)
            }
            GroupRequest::Write { group, write, reply } => {
                let result = self.write_group(&group, *write);
                self.answer(Answer::GroupDone, reply, result)
            }
            GroupRequest::Seek { group, to, reply } => {
                let result = self.seek_group(&group, to);
                self.answer(Answer::GroupDone, reply, result)
            }
            GroupRequest::Remove { group, reply } => {
                let result = self.remove_group(&group);
                self.answer(Answer::GroupDone, reply, result)
            }
        }
    }

    fn answer<T>(
        &mut self,
        answer: impl FnOnce(Reply<T>, Result<T, GroupError>) -> Answer,
        reply: Reply<T>,
        result: Written<T>,
    ) -> rusqlite::Result<()> {
        match result {
            Ok(done) => self.note_answer(answer(reply, Ok(done))),
            Err(Stop::Refused(refused)) => self.note_answer(answer(reply, Err(refused))),
            Err(Stop::Storage(error)) => {
                let failed = backend(&error);
                answer(reply, Err(failed.clone().into())).fail(&failed);
                return Err(error);
            }
        }
        Ok(())
    }

    fn ensure_group(&mut self, id: &GroupId, wanted: NewGroup) -> Written<(StoredGroup, bool)> {
        if let Some(Numbered { number, mut row }) = find(&self.conn, id)? {
            row.options = wanted.change.apply(row.options).map_err(Stop::Refused)?;
            self.conn
                .prepare_cached("UPDATE consumer_groups SET options = ?2 WHERE id = ?1")?
                .execute((number, to_json(&row.options)?))?;
            return Ok((row, false));
        }
        let options = wanted.change.apply(GroupOptions::default()).map_err(Stop::Refused)?;
        let (on_stream, of_tenant): (i64, i64) = self
            .conn
            .prepare_cached(
                "SELECT count(*) FILTER (WHERE stream = ?2), count(*) FROM consumer_groups WHERE tenant = ?1",
            )?
            .query_row((id.tenant.as_str(), &*id.stream), |row| Ok((row.get(0)?, row.get(1)?)))?;
        let on_stream = (unsigned(on_stream), wanted.groups_max);
        check_groups(on_stream, (unsigned(of_tenant), wanted.tenant_groups_max)).map_err(Stop::Refused)?;
        let row = StoredGroup {
            group: id.clone(),
            incarnation: self.next_incarnation(),
            options,
            created_at: self.clock.now(),
            low: wanted.start,
            done: Ranges::default(),
            delivered: Ranges::default(),
            lost_events: 0,
            lost_until: Position::START,
            lost_at: None,
            stopped: false,
        };
        self.conn
            .prepare_cached(
                "INSERT INTO consumer_groups(tenant, stream, name, incarnation, options, created_at, low, done,
                 delivered, lost_events, lost_until, stopped) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '', '', 0, 0, 0)",
            )?
            .execute((
                id.tenant.as_str(),
                &*id.stream,
                id.name.as_str(),
                signed(row.incarnation),
                to_json(&row.options)?,
                row.created_at.0,
                signed(row.low.0),
            ))?;
        Ok((row, true))
    }

    /// A number that no group has had. It shares the counter of the generations, which only grows.
    fn next_incarnation(&mut self) -> u64 {
        self.counters.generation += 1;
        self.counters.generation
    }

    fn remove_group(&mut self, id: &GroupId) -> Written<()> {
        let Some(Numbered { number, .. }) = find(&self.conn, id)? else {
            return Err(Stop::Refused(unknown(id)));
        };
        for sql in [
            "DELETE FROM group_tried WHERE grp = ?1",
            "DELETE FROM group_letters WHERE grp = ?1",
            "DELETE FROM consumer_groups WHERE id = ?1",
        ] {
            self.conn.prepare_cached(sql)?.execute([number])?;
        }
        Ok(())
    }

    fn seek_group(&mut self, id: &GroupId, to: Position) -> Written<()> {
        let Some(Numbered { number, .. }) = find(&self.conn, id)? else {
            return Err(Stop::Refused(unknown(id)));
        };
        let incarnation = self.next_incarnation();
        self.conn
            .prepare_cached(
                "UPDATE consumer_groups SET low = ?2, incarnation = ?3, done = '', delivered = '', stopped = 0
                 WHERE id = ?1",
            )?
            .execute((number, signed(to.0), signed(incarnation)))?;
        Ok(self.forget_tried(number, Position(u64::MAX))?)
    }

    /// Forgets the attempts of what is gone. A replayed dead letter keeps its own.
    fn forget_tried(&self, number: i64, until: Position) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "DELETE FROM group_tried WHERE grp = ?1 AND position <= ?2 AND position NOT IN
                 (SELECT position FROM group_letters WHERE grp = ?1 AND replaying = 1)",
            )?
            .execute((number, signed(until.0)))
            .map(drop)
    }

    fn write_group(&mut self, id: &GroupId, write: GroupWrite) -> Written<()> {
        let Some(Numbered { number, row }) = find(&self.conn, id)? else {
            return Err(Stop::Refused(unknown(id)));
        };
        if row.incarnation != write.incarnation {
            return Err(Stop::Refused(GroupError::Interrupted { group: id.clone() }));
        }
        let GroupWrite { low, mut done, mut delivered, tried, dead, replaying, resolved, .. } = write;
        // Retention may have moved it on in between.
        let low = row.low.max(low);
        done.cut(low.0);
        delivered.cut(low.0);
        self.conn
            .prepare_cached("UPDATE consumer_groups SET low = ?2, done = ?3, delivered = ?4 WHERE id = ?1")?
            .execute((number, signed(low.0), done.to_string(), delivered.to_string()))?;
        for (position, tried) in tried {
            match tried {
                Some(Tried { attempts, due, message }) => self
                    .conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO group_tried(grp, position, attempts, due, message)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute((number, signed(position.0), attempts, due.0, message))?,
                None => self
                    .conn
                    .prepare_cached("DELETE FROM group_tried WHERE grp = ?1 AND position = ?2")?
                    .execute((number, signed(position.0)))?,
            };
        }
        for letter in &dead {
            self.write_group_letter(number, letter)?;
        }
        for (sql, positions) in [
            ("UPDATE group_letters SET replaying = 1 WHERE grp = ?1 AND position = ?2", replaying),
            ("DELETE FROM group_letters WHERE grp = ?1 AND position = ?2", resolved),
        ] {
            for position in positions {
                self.conn.prepare_cached(sql)?.execute((number, signed(position.0)))?;
            }
        }
        Ok(())
    }

    /// What removing everything up to a position takes from groups. Before it is removed, in its transaction.
    pub(super) fn lose_from_groups(&mut self, trimmed: Position) -> rusqlite::Result<()> {
        self.lose_behind(trimmed, None)
    }

    /// The same for what a cap drops from one stream.
    pub(super) fn lose_from_groups_of(
        &mut self,
        (tenant, stream): (i64, &str),
        dropped: Position,
    ) -> rusqlite::Result<()> {
        self.lose_behind(dropped, Some((tenant, stream)))
    }

    fn lose_behind(&mut self, trimmed: Position, of: Option<(i64, &str)>) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT {GROUP_COLUMNS} FROM consumer_groups INDEXED BY consumer_groups_low WHERE low < ?1"
        ))?;
        let behind: Vec<Numbered> =
            statement.query_map([signed(trimmed.0)], group_of)?.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        for Numbered { number, row } in behind {
            let Some(tenant) = self.tenants.get(&row.group.tenant).map(|tenant| tenant.number) else {
                continue;
            };
            if of.is_some_and(|of| of != (tenant, &*row.group.stream)) {
                continue;
            }
            let Some(source) = Source::of(&self.conn, tenant, &row.group.stream)? else { continue };
            if count_undone(&self.conn, source, &row, (row.low.0, trimmed.0), 1)? == 0 {
                continue;
            }
            let newest = Position(self.counters.newest);
            let Loss { until, stop } = lose(&row, trimmed, newest);
            let lost = (row.low.0, until.0);
            let events = count_undone(&self.conn, source, &row, lost, u64::MAX >> 1)?;
            let (mut done, mut delivered) = (row.done, row.delivered);
            done.cut(until.0);
            delivered.cut(until.0);
            self.conn
                .prepare_cached(
                    "UPDATE consumer_groups SET low = ?2, done = ?3, delivered = ?4, lost_events = lost_events + ?5,
                     lost_until = ?2, lost_at = ?6, stopped = stopped OR ?7 WHERE id = ?1",
                )?
                .execute((
                    number,
                    signed(until.0),
                    done.to_string(),
                    delivered.to_string(),
                    signed(events),
                    self.clock.now().0,
                    stop,
                ))?;
            self.forget_tried(number, until)?;
            self.note_loss(LossReport {
                group: Arc::new(row.group),
                events,
                until,
                policy: row.options.on_lost,
                before: row.lost_at,
            });
        }
        Ok(())
    }
}

type Answered<'a, T> = BoxFuture<'a, Result<T, GroupError>>;

impl GroupStore for SqliteStore {
    fn ensure(&self, group: &GroupId, wanted: NewGroup) -> Answered<'_, (StoredGroup, bool)> {
        let group = group.clone();
        self.request(|reply| Request::Group(GroupRequest::Ensure { group, wanted, reply }))
    }

    fn remove(&self, group: &GroupId) -> Answered<'_, ()> {
        let group = group.clone();
        self.request(|reply| Request::Group(GroupRequest::Remove { group, reply }))
    }

    fn load(&self, group: &GroupId) -> Answered<'_, LoadedGroup> {
        let group = group.clone();
        self.read(move |conn, _| load(conn, &group))
    }

    fn row(&self, group: &GroupId) -> Answered<'_, StoredGroup> {
        let group = group.clone();
        self.read(move |conn, _| found(conn, &group).map(|found| found.row))
    }

    fn list(&self, of: Option<(&TenantId, &str)>, limit: usize) -> Answered<'_, Vec<StoredGroup>> {
        let of = of.map(|(tenant, stream)| (tenant.clone(), stream.to_owned()));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |conn, _| {
            let of = of.as_ref().map(|(tenant, stream)| (tenant, stream.as_str()));
            Ok(list(conn, of, limit)?)
        })
    }

    fn write(&self, group: &GroupId, write: GroupWrite) -> Answered<'_, ()> {
        let (group, write) = (group.clone(), Box::new(write));
        self.request(|reply| Request::Group(GroupRequest::Write { group, write, reply }))
    }

    fn seek(&self, group: &GroupId, to: Position) -> Answered<'_, ()> {
        let group = group.clone();
        self.request(|reply| Request::Group(GroupRequest::Seek { group, to, reply }))
    }

    fn letters(&self, group: &GroupId, after: Position, limit: usize) -> Answered<'_, LetterPage> {
        let group = group.clone();
        self.read(move |conn, _| {
            let Numbered { number, row } = found(conn, &group)?;
            Ok(letter_page(conn, (number, &row.group.tenant), after, limit)?)
        })
    }

    fn unread(&self, group: &GroupId, after: Position, max: u64) -> Answered<'_, Unread> {
        let group = group.clone();
        self.read(move |conn, shared| unread(conn, shared, &group, after, max))
    }
}
