//! Groups beside the log in memory: what would be durable, under the log's own lock.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::{MemoryLog, State};
use crate::event::{Micros, Position, TenantId};
use crate::streams::groups::{
    GroupError, GroupId, GroupLetter, GroupOptions, GroupStore, GroupWrite, LetterPage, LoadedGroup, Loss,
    LossReport, NewGroup, Ranges, StoredGroup, Tried, Unread, check_groups, lose,
};

/// All groups of a log.
#[derive(Debug, Default)]
pub(super) struct Kept {
    groups: BTreeMap<GroupId, KeptGroup>,
    incarnations: u64,
}

#[derive(Debug)]
struct KeptGroup {
    row: StoredGroup,
    tried: BTreeMap<Position, Tried>,
    letters: BTreeMap<Position, GroupLetter>,
}

type Result<T> = std::result::Result<T, GroupError>;

impl Kept {
    fn group(&mut self, id: &GroupId) -> Result<&mut KeptGroup> {
        self.groups.get_mut(id).ok_or_else(|| GroupError::Unknown { group: id.clone() })
    }

    fn incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    fn ensure(&mut self, id: &GroupId, wanted: NewGroup, now: Micros) -> Result<(StoredGroup, bool)> {
        if let Some(found) = self.groups.get_mut(id) {
            found.row.options = wanted.change.apply(found.row.options)?;
            return Ok((found.row.clone(), false));
        }
        let options = wanted.change.apply(GroupOptions::default())?;
        let of_tenant = || self.groups.keys().filter(|other| other.tenant == id.tenant);
        let on_stream = of_tenant().filter(|other| other.stream == id.stream).count() as u64;
        let of_tenant = of_tenant().count() as u64;
        check_groups((on_stream, wanted.groups_max), (of_tenant, wanted.tenant_groups_max))?;
        let row = StoredGroup {
            group: id.clone(),
            incarnation: self.incarnation(),
            options,
            created_at: now,
            low: wanted.start,
            done: Ranges::default(),
            delivered: Ranges::default(),
            lost_events: 0,
            lost_until: Position::START,
            lost_at: None,
            stopped: false,
        };
        let kept = KeptGroup { row: row.clone(), tried: BTreeMap::new(), letters: BTreeMap::new() };
        self.groups.insert(id.clone(), kept);
        Ok((row, true))
    }

    fn load(&mut self, id: &GroupId) -> Result<LoadedGroup> {
        let found = self.group(id)?;
        let (replaying, dead): (Vec<_>, Vec<_>) = found.letters.values().partition(|letter| letter.replaying);
        Ok(LoadedGroup {
            row: found.row.clone(),
            tried: found.tried.iter().map(|(position, tried)| (*position, tried.clone())).collect(),
            dead: dead.into_iter().map(GroupLetter::position).collect(),
            replaying: replaying.into_iter().cloned().collect(),
        })
    }

    fn write(&mut self, id: &GroupId, write: GroupWrite) -> Result<()> {
        let found = self.group(id)?;
        if found.row.incarnation != write.incarnation {
            return Err(GroupError::Interrupted { group: id.clone() });
        }
        let row = &mut found.row;
        row.low = row.low.max(write.low);
        (row.done, row.delivered) = (write.done, write.delivered);
        row.done.cut(row.low.0);
        row.delivered.cut(row.low.0);
        for (position, tried) in write.tried {
            match tried {
                Some(tried) => drop(found.tried.insert(position, tried)),
                None => drop(found.tried.remove(&position)),
            }
        }
        for letter in write.dead {
            found.letters.insert(letter.position(), letter);
        }
        for position in write.replaying {
            if let Some(letter) = found.letters.get_mut(&position) {
                letter.replaying = true;
            }
        }
        for position in write.resolved {
            found.letters.remove(&position);
        }
        Ok(())
    }

    fn seek(&mut self, id: &GroupId, to: Position) -> Result<()> {
        let incarnation = self.incarnation();
        let found = self.group(id)?;
        let row = &mut found.row;
        (row.low, row.incarnation, row.stopped) = (to, incarnation, false);
        (row.done, row.delivered) = (Ranges::default(), Ranges::default());
        found.forget_tried(Position(u64::MAX));
        Ok(())
    }

    /// What removing everything up to a position, of one stream or of all, takes from groups. Before it is removed.
    pub(super) fn lose(
        &mut self,
        log: &State,
        trimmed: Position,
        of: Option<(&TenantId, &str)>,
        now: Micros,
    ) -> Vec<LossReport> {
        let mut reports = Vec::new();
        let concerned =
            |id: &GroupId| of.is_none_or(|(tenant, stream)| id.tenant == *tenant && &*id.stream == stream);
        let behind =
            self.groups.values_mut().filter(|kept| kept.row.low < trimmed && concerned(&kept.row.group));
        for kept in behind {
            if log.undone(&kept.row, kept.row.low, trimmed).next().is_none() {
                continue;
            }
            let Loss { until, stop } = lose(&kept.row, trimmed, Position(log.newest()));
            let events = log.undone(&kept.row, kept.row.low, until).count() as u64;
            let row = &mut kept.row;
            reports.push(LossReport {
                group: row.group.clone().into(),
                events,
                until,
                policy: row.options.on_lost,
                before: row.lost_at,
            });
            row.lost_events += events;
            (row.low, row.lost_until, row.lost_at) = (until, until, Some(now));
            row.stopped |= stop;
            row.done.cut(until.0);
            row.delivered.cut(until.0);
            kept.forget_tried(until);
        }
        reports
    }
}

impl KeptGroup {
    /// Forgets the attempts of what is gone. A replayed dead letter keeps its own.
    fn forget_tried(&mut self, until: Position) {
        let letters = &self.letters;
        self.tried.retain(|position, _| {
            *position > until || letters.get(position).is_some_and(|letter| letter.replaying)
        });
    }
}

impl State {
    /// Events of a group's stream between two positions that it has not done.
    fn undone<'a>(
        &'a self,
        row: &'a StoredGroup,
        after: Position,
        until: Position,
    ) -> impl Iterator<Item = u64> + 'a {
        let held = self.held(&row.group.tenant, &row.group.stream);
        let begin = held.map_or(0, |held| held.partition_point(|position| *position <= after.0));
        let rest = held.into_iter().flat_map(move |held| held.range(begin..)).copied();
        rest.take_while(move |position| *position <= until.0).filter(|position| !row.done.contains(*position))
    }
}

impl MemoryLog {
    fn on_groups<T>(&self, act: impl FnOnce(&mut Kept) -> Result<T>) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
    {
        ready(act(&mut self.lock().groups)).boxed()
    }
}

impl GroupStore for MemoryLog {
    fn ensure(&self, group: &GroupId, wanted: NewGroup) -> BoxFuture<'_, Result<(StoredGroup, bool)>> {
        let now = self.clock.now();
        self.on_groups(|kept| kept.ensure(group, wanted, now))
    }

    fn remove(&self, group: &GroupId) -> BoxFuture<'_, Result<()>> {
        self.on_groups(|kept| {
            kept.group(group)?;
            kept.groups.remove(group);
            Ok(())
        })
    }

    fn load(&self, group: &GroupId) -> BoxFuture<'_, Result<LoadedGroup>> {
        self.on_groups(|kept| kept.load(group))
    }

    fn row(&self, group: &GroupId) -> BoxFuture<'_, Result<StoredGroup>> {
        self.on_groups(|kept| kept.group(group).map(|found| found.row.clone()))
    }

    fn list(&self, of: Option<(&TenantId, &str)>, limit: usize) -> BoxFuture<'_, Result<Vec<StoredGroup>>> {
        self.on_groups(|kept| {
            let wanted = |id: &GroupId| of.is_none_or(|(t, s)| id.tenant == *t && &*id.stream == s);
            let found = kept.groups.values().filter(|kept| wanted(&kept.row.group));
            let mut rows: Vec<_> = found.map(|kept| kept.row.clone()).collect();
            if of.is_none() {
                rows.sort_by_key(|row| row.low);
            }
            rows.truncate(limit);
            Ok(rows)
        })
    }

    fn write(&self, group: &GroupId, write: GroupWrite) -> BoxFuture<'_, Result<()>> {
        self.on_groups(|kept| kept.write(group, write))
    }

    fn seek(&self, group: &GroupId, to: Position) -> BoxFuture<'_, Result<()>> {
        self.on_groups(|kept| kept.seek(group, to))
    }

    fn letters(&self, group: &GroupId, after: Position, limit: usize) -> BoxFuture<'_, Result<LetterPage>> {
        self.on_groups(|kept| {
            let found = kept.group(group)?.letters.range(Position(after.0.saturating_add(1))..);
            LetterPage::fill(found.map(|(_, letter)| Ok(letter.clone())), limit)
        })
    }

    fn unread(&self, group: &GroupId, after: Position, max: u64) -> BoxFuture<'_, Result<Unread>> {
        let mut state = self.lock();
        let row = state.groups.group(group).map(|found| found.row.clone());
        let counted = row.map(|row| {
            let most = usize::try_from(max).unwrap_or(usize::MAX);
            let mut undone = state.undone(&row, after, Position(u64::MAX)).take(most).peekable();
            let oldest_at =
                undone.peek().and_then(|oldest| state.at(*oldest)).map(|stored| Micros(stored.appended_at));
            let events = undone.count() as u64;
            Unread { events, is_least: events == max, oldest_at }
        });
        ready(counted).boxed()
    }
}
