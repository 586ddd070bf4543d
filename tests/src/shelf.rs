//! A table store in memory whose reads can be held up and whose watchers can be made to lose commits: what is
//! needed to try live queries in every order in which things may happen. It orders and filters in its own words.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, ready};
use millrace::event::{Revision, TenantId};
use millrace::tables::{
    CommitChanges, Query, Row, RowChange, RowChanges, RowChangesSender, RowCursor, RowPage, TableError,
    TableSchema, TableStore, Value, row_changes,
};
use tokio::sync::Semaphore;

#[derive(Debug, Default)]
struct State {
    revision: u64,
    rows: BTreeMap<String, Arc<Row>>,
    watchers: Vec<RowChangesSender>,
    reads: usize,
}

/// One table of one tenant.
#[derive(Clone, Debug)]
pub struct Shelf {
    schema: Arc<Mutex<TableSchema>>,
    state: Arc<Mutex<State>>,
    /// Permits to answer reads.
    gate: Arc<Semaphore>,
}

impl Shelf {
    pub fn new(schema: TableSchema) -> Self {
        Self {
            schema: Arc::new(Mutex::new(schema)),
            state: Arc::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    pub fn schema_now(&self) -> TableSchema {
        self.schema.lock().expect("no test panics while it holds this").clone()
    }

    pub fn set_schema(&self, schema: TableSchema) {
        *self.schema.lock().expect("no test panics while it holds this") = schema;
    }

    /// Commits changes: cells, or none for a delete. Answers the revision.
    pub fn commit(&self, changes: &[(String, Option<Vec<Value>>)]) -> Revision {
        self.commit_of(1, changes)
    }

    /// The same, as if it had so many bytes.
    pub fn commit_of(&self, bytes: usize, changes: &[(String, Option<Vec<Value>>)]) -> Revision {
        let mut state = self.lock();
        state.revision += 1;
        let revision = Revision(state.revision);
        let mut last = BTreeMap::new();
        for (key, cells) in changes {
            let version = revision.0;
            let row = cells.clone().map(|cells| Arc::new(Row { key: key.clone(), version, revision, cells }));
            last.insert(key.clone(), row);
        }
        let mut rows = Vec::new();
        for (key, row) in last {
            match row {
                Some(row) => {
                    state.rows.insert(key, Arc::clone(&row));
                    rows.push(RowChange::Put(row));
                }
                None => {
                    state.rows.remove(&key);
                    rows.push(RowChange::Delete { key, version: revision.0 });
                }
            }
        }
        let commits = Arc::new(vec![CommitChanges { revision, rows }]);
        state.watchers.retain(|watcher| watcher.send(&commits, bytes));
        revision
    }

    /// A commit that leaves this table alone.
    pub fn commit_elsewhere(&self) -> Revision {
        let mut state = self.lock();
        state.revision += 1;
        Revision(state.revision)
    }

    /// Watchers lose what they have not taken.
    pub fn lose(&self) {
        let mut state = self.lock();
        let revision = Revision(state.revision);
        state.watchers.retain(|watcher| watcher.lose(revision));
    }

    /// From now on reads wait, after they have seen their rows.
    pub fn hold_reads(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn let_reads_go(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
        self.gate.add_permits(Semaphore::MAX_PERMITS);
    }

    pub fn rows(&self) -> Vec<Arc<Row>> {
        self.lock().rows.values().cloned().collect()
    }

    pub fn revision(&self) -> Revision {
        Revision(self.lock().revision)
    }

    /// How often rows were read.
    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    /// Who watches.
    pub fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }
}

/// What a query means for these rows: at most `limit + 1` of them.
pub fn select(schema: &TableSchema, rows: &[Arc<Row>], query: &Query) -> Vec<Arc<Row>> {
    let value = |row: &Row, column: &str| match column {
        "key" => Value::Text(row.key.clone()),
        named => row.cells[schema.column(named).expect("a known column").0].clone(),
    };
    let holds = |row: &Row| {
        let key = Value::Text(row.key.clone());
        query.holds(&|column: &str| match column {
            "key" => &key,
            named => &row.cells[schema.column(named).expect("a known column").0],
        })
    };
    let compare = |row: &Row, values: &[Value], key: &str| {
        for (part, other) in query.order.iter().zip(values) {
            let one = compare(&value(row, &part.column), other);
            let one = if part.descending { one.reverse() } else { one };
            if one != Ordering::Equal {
                return one;
            }
        }
        row.key.as_str().cmp(key)
    };
    let order = |row: &Row| query.order.iter().map(|part| value(row, &part.column)).collect::<Vec<_>>();
    let behind = |row: &Row| {
        query.after.as_ref().is_none_or(|after| compare(row, &after.values, &after.key) == Ordering::Greater)
    };
    let mut found: Vec<_> = rows.iter().filter(|row| holds(row) && behind(row)).cloned().collect();
    found.sort_by(|a, b| compare(a, &order(b), &b.key));
    found.truncate(query.limit as usize + 1);
    found
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).expect("floats are finite"),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        other => panic!("{other:?} have no order"),
    }
}

impl TableStore for Shelf {
    fn declare(&self, _: &str, _: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(ready(Ok(())))
    }

    fn check(&self, _: &str, _: &[TableSchema]) -> Result<(), TableError> {
        Ok(())
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        vec![("test".into(), self.schema_now())]
    }

    fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        let schema = self.schema_now();
        if schema.name == table { Ok(schema) } else { Err(TableError::Unknown { table: table.into() }) }
    }

    fn query(&self, _: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        let schema = self.schema_now();
        if let Err(error) = query.validate(&schema) {
            return Box::pin(ready(Err(error.into())));
        }
        let (rows, revision) = {
            let mut state = self.lock();
            state.reads += 1;
            (state.rows.values().cloned().collect::<Vec<_>>(), Revision(state.revision))
        };
        let mut rows = select(&schema, &rows, query);
        let more = rows.len() > query.limit as usize;
        rows.truncate(query.limit as usize);
        let next = rows.last().filter(|_| more).map(|row| RowCursor { values: vec![], key: row.key.clone() });
        let rows = rows.into_iter().map(|row| Row::clone(&row)).collect();
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            drop(gate.acquire().await.expect("the gate stays"));
            Ok(RowPage { rows, next, revision })
        })
    }

    fn get(
        &self,
        _: &TenantId,
        _: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        let state = self.lock();
        let row = state.rows.get(key).map(|row| Row::clone(row));
        Box::pin(ready(Ok((Revision(state.revision), row))))
    }

    fn watch(&self, _: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        let known = self.schema(table).map(drop);
        let mut state = self.lock();
        let (sender, changes) = row_changes(Revision(state.revision));
        state.watchers.push(sender);
        Box::pin(ready(known.map(|()| changes)))
    }
}
