//! Who watches which table, and what the running group commit changed in what is watched.
//!
//! A watch that begins while a group is under way counts from the end of that group: its rows may have been
//! written before anybody looked. So whoever has a watch and reads afterwards misses nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::event::{Revision, TenantId};
use crate::tables::{CommitChanges, RowChange, RowChanges, RowChangesSender, Value, row_changes};

type Senders = HashMap<TenantId, HashMap<String, Vec<RowChangesSender>>>;

/// Which tables of which tenants are watched. Changes only between groups.
pub(super) type Watched = HashMap<TenantId, HashSet<String>>;

#[derive(Debug)]
struct Waiting {
    tenant: TenantId,
    table: String,
    reply: oneshot::Sender<RowChanges>,
}

#[derive(Debug, Default)]
struct State {
    senders: Senders,
    /// What the next group looks at; none while it must be made anew.
    watched: Option<Arc<Watched>>,
    in_group: bool,
    waiting: Vec<Waiting>,
    closed: bool,
    /// As of the last commit.
    revision: Revision,
}

#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<State>);

impl Watches {
    pub(super) fn new(revision: Revision) -> Self {
        Self(Mutex::new(State { revision, ..State::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a watch. The answer comes at once, or at the end of the group that is under way; none once the
    /// store is closed.
    pub(super) fn begin(&self, tenant: &TenantId, table: &str) -> oneshot::Receiver<RowChanges> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { tenant: tenant.clone(), table: table.to_owned(), reply };
        let mut state = self.lock();
        if state.closed {
            return answer;
        }
        if state.in_group {
            state.waiting.push(waiting);
        } else {
            state.add(waiting);
        }
        answer
    }

    /// A group begins. Answers what is watched in it.
    pub(super) fn group_begins(&self) -> Arc<Watched> {
        let mut state = self.lock();
        state.in_group = true;
        let State { senders, watched, .. } = &mut *state;
        Arc::clone(watched.get_or_insert_with(|| {
            let tables = |tables: &HashMap<String, _>| tables.keys().cloned().collect();
            Arc::new(senders.iter().map(|(tenant, of)| (tenant.clone(), tables(of))).collect())
        }))
    }

    /// The group has committed, or nothing of it happened.
    pub(super) fn group_ends(&self, revision: Revision, changes: GroupChanges, columns_changed: bool) {
        let mut state = self.lock();
        state.in_group = false;
        state.revision = revision;
        if columns_changed {
            for senders in state.senders.values_mut().flat_map(HashMap::values_mut) {
                senders.retain(|sender| sender.lose(revision));
            }
        }
        for (table, senders) in state.senders.values_mut().flatten() {
            if changes.replaced.contains(table) {
                senders.retain(|sender| sender.lose(revision));
            }
        }
        for ((tenant, table), changed) in changes.tables {
            let Some(senders) = state.senders.get_mut(&tenant).and_then(|of| of.get_mut(&table)) else {
                continue;
            };
            let commits = Arc::new(changed.commits);
            let before = senders.len();
            senders.retain(|sender| sender.send(&commits, changed.bytes));
            if senders.len() < before {
                state.forget(&tenant, &table);
            }
        }
        for waiting in std::mem::take(&mut state.waiting) {
            state.add(waiting);
        }
    }

    /// Nothing is committed any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        *state = State { closed: true, ..State::default() };
    }
}

impl State {
    fn add(&mut self, waiting: Waiting) {
        let (sender, changes) = row_changes(self.revision);
        // Who asked may have gone: then the sender is dropped with the first change.
        let _ = waiting.reply.send(changes);
        let senders = self.senders.entry(waiting.tenant).or_default().entry(waiting.table).or_default();
        senders.push(sender);
        self.watched = None;
    }

    /// Leaves out a table that nobody listens to any more.
    fn forget(&mut self, tenant: &TenantId, table: &str) {
        let Some(of_tenant) = self.senders.get_mut(tenant) else { return };
        if of_tenant.get(table).is_some_and(Vec::is_empty) {
            of_tenant.remove(table);
            self.watched = None;
        }
        if of_tenant.is_empty() {
            self.senders.remove(tenant);
        }
    }
}

#[derive(Debug, Default)]
struct TableChanges {
    commits: Vec<CommitChanges>,
    bytes: usize,
}

/// What a group changes in tables that are watched.
#[derive(Debug, Default)]
pub(super) struct GroupChanges {
    tables: HashMap<(TenantId, String), TableChanges>,
    /// Tables whose rows are others now.
    replaced: HashSet<String>,
}

impl GroupChanges {
    /// Has whoever watches the table read it again.
    pub(super) fn replace(&mut self, table: &str) {
        self.replaced.insert(table.to_owned());
    }

    /// Adds what one commit changed in one table.
    pub(super) fn add(&mut self, tenant: &TenantId, table: String, revision: Revision, rows: Vec<RowChange>) {
        let changed = self.tables.entry((tenant.clone(), table)).or_default();
        changed.bytes += rows.iter().map(bytes).sum::<usize>();
        changed.commits.push(CommitChanges { revision, rows });
    }
}

/// About what a change takes in memory.
fn bytes(change: &RowChange) -> usize {
    let RowChange::Put(row) = change else { return size_of::<RowChange>() + change.key().len() };
    let held = |value: &Value| match value {
        Value::Text(text) | Value::Json(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    let cells = row.cells.iter().map(|cell| size_of::<Value>() + held(cell)).sum::<usize>();
    size_of::<RowChange>() + row.key.len() + cells
}
