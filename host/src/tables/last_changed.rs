//! At which revision rows changed last, for whoever keeps copies of them.
//!
//! A store notes a change before the commit that brings it can be read. So a copy that was read at revision R is
//! the row as it is now exactly when nothing is noted for its key above R; there is no moment in which a reader
//! could see the commit in the store and an older copy beside it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::{Revision, TenantId};
use crate::limits::{LAST_CHANGED_ROWS_MAX, LAST_CHANGED_TABLES_MAX};

/// The notes of one store. They begin with the first question about a table, so tables that nobody keeps copies of
/// cost nothing.
#[derive(Debug)]
pub struct LastChanged {
    life: Box<str>,
    state: Mutex<State>,
}

/// What is known of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowNote {
    /// Copies of an earlier revision are out of date, or may be.
    pub oldest: Revision,
    /// The last revision that anybody was told of. A copy that is good is the row as of this revision, too.
    pub committed: Revision,
}

#[derive(Debug, Default)]
struct State {
    committed: Revision,
    in_group: bool,
    tables: HashMap<TenantId, HashMap<Box<str>, Notes>>,
    tables_count: usize,
    rows_count: usize,
}

#[derive(Debug)]
struct Notes {
    /// Copies from before are out of date; none while the group runs in which the notes began, whose rows may have
    /// been written before.
    since: Option<Revision>,
    rows: HashMap<Box<str>, Revision>,
    /// Somebody asked since the notes were last thinned out.
    asked: bool,
}

impl LastChanged {
    /// Notes of a store whose last commit was this.
    pub fn new(committed: Revision) -> Self {
        let state = State { committed, ..State::default() };
        Self { life: ulid::Ulid::new().to_string().into(), state: Mutex::new(state) }
    }

    /// Names these notes. Copies from before them are nothing that they know of.
    pub fn life(&self) -> &str {
        &self.life
    }

    /// What is known of a row now.
    pub fn row(&self, tenant: &TenantId, table: &str, key: &str) -> RowNote {
        let mut state = self.lock();
        let committed = state.committed;
        if let Some(notes) = state.tables.get_mut(tenant).and_then(|of| of.get_mut(table)) {
            notes.asked = true;
            let since = notes.since.unwrap_or(Revision(u64::MAX));
            let noted = notes.rows.get(key).copied().unwrap_or_default();
            return RowNote { oldest: since.max(noted), committed };
        }
        if state.tables_count >= LAST_CHANGED_TABLES_MAX {
            state.tables.clear();
            (state.tables_count, state.rows_count) = (0, 0);
        }
        let since = (!state.in_group).then_some(committed);
        let notes = Notes { since, rows: HashMap::new(), asked: true };
        state.tables.entry(tenant.clone()).or_default().insert(table.into(), notes);
        state.tables_count += 1;
        RowNote { oldest: since.unwrap_or(Revision(u64::MAX)), committed }
    }

    /// A transaction begins. For the store alone, as what follows.
    pub fn group_begins(&self) {
        self.lock().in_group = true;
    }

    /// Rows that a commit of the transaction writes, before the transaction is committed.
    pub fn note<'a>(
        &self,
        tenant: &TenantId,
        table: &str,
        revision: Revision,
        keys: impl Iterator<Item = &'a str>,
    ) {
        let mut state = self.lock();
        let Some(notes) = state.tables.get_mut(tenant).and_then(|of| of.get_mut(table)) else { return };
        let before = notes.rows.len();
        for key in keys {
            match notes.rows.get_mut(key) {
                Some(noted) => *noted = revision,
                None => {
                    notes.rows.insert(key.into(), revision);
                }
            }
        }
        let added = notes.rows.len() - before;
        state.rows_count += added;
        if state.rows_count > LAST_CHANGED_ROWS_MAX {
            state.thin_out(revision);
        }
    }

    /// All rows of a table, of every tenant, are others from this revision on. Before the transaction is committed.
    pub fn note_table(&self, table: &str, revision: Revision) {
        let mut state = self.lock();
        let mut forgotten = 0;
        for notes in state.tables.values_mut().filter_map(|of| of.get_mut(table)) {
            forgotten += notes.rows.len();
            notes.rows = HashMap::new();
            // Those that began in this group count from its end.
            notes.since = notes.since.map(|since| since.max(revision));
        }
        state.rows_count -= forgotten;
    }

    /// The transaction was committed, or nothing of it happened. Before anybody is told of it.
    pub fn group_ends(&self, committed: Revision) {
        let mut state = self.lock();
        state.in_group = false;
        state.committed = committed;
        // Few: only tables whose notes began in this group.
        for notes in state.tables.values_mut().flat_map(HashMap::values_mut) {
            notes.since.get_or_insert(committed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets single rows: from now on copies of all rows from before are taken for outdated. Tables that nobody
    /// asks about any more are left out.
    fn thin_out(&mut self, revision: Revision) {
        for of in self.tables.values_mut() {
            of.retain(|_, notes| std::mem::take(&mut notes.asked));
            for notes in of.values_mut() {
                notes.rows = HashMap::new();
                notes.since = notes.since.map(|since| since.max(revision));
            }
        }
        self.tables.retain(|_, of| !of.is_empty());
        self.tables_count = self.tables.values().map(HashMap::len).sum();
        self.rows_count = 0;
    }
}
