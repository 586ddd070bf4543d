//! The tables that a model runs on: one in memory, or the embedded store with rows from several lanes. Beside it
//! stands what the rows ought to be, at every revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, Generation, TaskId};
use millrace::event::{Epoch, Revision, TenantId};
use millrace::live::LiveEngine;
use millrace::streams::EventLog as _;
use millrace::tables::{Cell, ColumnType, Row, TableSchema, TableStore, Value};

use super::{Cells, Kind, TEAMS, board, column};
use crate::conformance::effects::{Effects, commit, task, tenant};
use crate::meddler::Meddler;
use crate::shelf::Shelf;

const LANES: usize = 3;
const VIEWS_MAX: usize = millrace::limits::LIVE_VIEWS_MAX;

/// A key's new cells; none for a delete.
pub(super) type Written = (usize, Option<Cells>);

enum Tables {
    Memory(Shelf),
    Store { _dir: tempfile::TempDir, store: SqliteStore, lanes: Vec<(TaskId, Generation)> },
}

pub(super) struct Ground {
    tables: Tables,
    pub(super) meddler: Meddler,
    schema: TableSchema,
    /// Columns that were added since the start; all null.
    added: usize,
    commits: u64,
    rows: BTreeMap<String, Arc<Row>>,
    /// All rows as of every revision that changed some.
    pub(super) history: Vec<(Revision, Vec<Arc<Row>>)>,
}

pub(super) fn acme() -> TenantId {
    tenant("acme")
}

fn key(number: usize) -> String {
    format!("k{number:02}")
}

fn values((rank, team, note): Cells) -> Vec<Value> {
    let team = TEAMS[usize::from(team)];
    vec![rank.map_or(Value::Null, Value::Int), Value::Text(team.into()), Value::Int(note)]
}

impl Ground {
    pub(super) async fn new(kind: Kind) -> (Self, LiveEngine) {
        let schema = board();
        let (tables, meddler, epoch) = match kind {
            Kind::Memory => {
                let shelf = Shelf::new(schema.clone());
                let meddler = Meddler::new(Arc::new(shelf.clone()));
                (Tables::Memory(shelf), meddler, Epoch("model".into()))
            }
            Kind::Store => {
                let dir = tempfile::tempdir().expect("a folder");
                let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a store");
                store.declare("board", std::slice::from_ref(&schema)).await.expect("a good table");
                let mut lanes = Vec::new();
                for lane in 0..u32::try_from(LANES).expect("few") {
                    let owner = task("board", "acme", lane);
                    let (generation, _) = store.claim(&owner).await.expect("a claim");
                    lanes.push((owner, generation));
                }
                let (meddler, epoch) = (Meddler::new(Arc::new(store.clone())), store.epoch());
                (Tables::Store { _dir: dir, store, lanes }, meddler, epoch)
            }
        };
        let live = LiveEngine::new(Arc::new(meddler.clone()), epoch, VIEWS_MAX);
        let history = vec![(Revision(0), Vec::new())];
        let ground = Self { tables, meddler, schema, added: 0, commits: 0, rows: BTreeMap::new(), history };
        (ground, live)
    }

    /// Commits changes: at once in memory; in the store each lane commits its own rows, all of them side by side.
    pub(super) async fn commit(&mut self, changes: &[Written]) {
        self.commits += 1;
        // The last change of a row is the one that counts.
        let last: BTreeMap<usize, Option<Cells>> = changes.iter().copied().collect();
        let done: Vec<(Revision, Vec<Written>)> = match &self.tables {
            Tables::Memory(shelf) => {
                let padded = |cells| {
                    let mut values = values(cells);
                    values.resize(values.len() + self.added, Value::Null);
                    values
                };
                let rows: Vec<_> =
                    last.iter().map(|(number, cells)| (key(*number), cells.map(padded))).collect();
                vec![(shelf.commit(&rows), last.into_iter().collect())]
            }
            Tables::Store { store, lanes, .. } => {
                let mut of_lanes = vec![Vec::new(); LANES];
                last.into_iter().for_each(|change| of_lanes[change.0 % LANES].push(change));
                let commits = lanes.iter().zip(of_lanes).filter(|(_, changes)| !changes.is_empty());
                let commits = commits.map(|((owner, generation), changes)| {
                    let commit = commit(
                        owner,
                        *generation,
                        self.commits,
                        std::slice::from_ref(&self.schema),
                        &mut self.effects(&changes),
                    );
                    async move { (store.commit(commit).await.expect("a good commit").revision, changes) }
                });
                join_all(commits).await
            }
        };
        self.remember(done);
    }

    fn effects(&self, changes: &[Written]) -> Effects {
        let mut effects = Effects::default();
        for (number, cells) in changes {
            let Some(cells) = cells else {
                effects.delete(&key(*number), self.commits);
                continue;
            };
            let (rank, team, note) = *cells;
            let mut cells = vec![
                rank.map_or(Cell::Null, Cell::Int),
                Cell::Text(TEAMS[usize::from(team)]),
                Cell::Int(note),
            ];
            cells.resize(cells.len() + self.added, Cell::Null);
            effects.put(&key(*number), self.commits, &cells);
        }
        effects
    }

    fn remember(&mut self, mut done: Vec<(Revision, Vec<Written>)>) {
        done.sort_by_key(|(revision, _)| *revision);
        for (revision, changes) in done {
            for (number, cells) in changes {
                let key = key(number);
                match cells {
                    Some(cells) => {
                        let cells = values(cells);
                        let row = Row { key: key.clone(), version: self.commits, revision, cells };
                        self.rows.insert(key, Arc::new(row));
                    }
                    None => drop(self.rows.remove(&key)),
                }
            }
            self.history.push((revision, self.rows.values().cloned().collect()));
        }
    }

    /// A commit that leaves the table alone, where one can be had for little.
    pub(super) fn commit_elsewhere(&self) {
        if let Tables::Memory(shelf) = &self.tables {
            shelf.commit_elsewhere();
        }
    }

    /// The table is made anew: every row is another one or gone, and watchers are told to read again.
    pub(super) async fn rebuild(&mut self, rows: &[Written]) {
        let mut changes: Vec<Written> =
            self.rows.keys().map(|key| (key[1..].parse().expect("a number"), None)).collect();
        changes.extend(rows);
        self.meddler.lose_news();
        self.commit(&changes).await;
    }

    /// Another version of the plugin has one more column.
    pub(super) async fn add_column(&mut self) {
        if self.added == 2 {
            return;
        }
        self.schema.columns.push(column(&format!("extra{}", self.added), ColumnType::Int));
        self.added += 1;
        match &self.tables {
            Tables::Memory(shelf) => {
                shelf.set_schema(self.schema.clone());
                shelf.lose();
            }
            Tables::Store { store, .. } => {
                store.declare("board", std::slice::from_ref(&self.schema)).await.expect("one more column");
            }
        }
    }

    pub(super) fn rows(&self) -> Vec<Arc<Row>> {
        self.rows.values().cloned().collect()
    }

    /// All rows as of a revision.
    pub(super) fn rows_at(&self, revision: u64) -> &[Arc<Row>] {
        let at = self.history.partition_point(|(known, _)| known.0 <= revision) - 1;
        &self.history[at].1
    }
}
