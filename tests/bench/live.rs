//! Live queries: what keeping windows costs, beside reading each one again and sending all of it.
//!
//! One core, without storage or sockets: changes are handed to the engine as a store would, and are done when a
//! window that is changed last was told. Time is that of this thread on its core.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt as _, StreamExt as _};
use millrace::event::{Epoch, Revision, TenantId};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQueries, LiveQuery, Mode, Subscribe, Subscription};
use millrace::tables::{
    Column, ColumnType, CommitChanges, Condition, Filter, Operator, Order, Query, Row, RowChange, RowChanges,
    RowChangesSender, RowPage, TableError, TableSchema, TableStore, Value, row_changes, write_text,
    write_value,
};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};

use super::tenant;

const WINDOWS: usize = 10_000;
const LIMIT: u32 = 50;
/// Rows of each window's group: some stand behind the window.
const GROUP_ROWS: usize = 80;
/// Changed rows of one commit.
const COMMIT_ROWS: usize = 100;
const CHANGES: usize = 1_000_000;
/// The same work done by reading again is slower; fewer changes are enough to know how much.
const CHANGES_AGAIN: usize = 100_000;

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column {
        name: name.into(),
        column_type,
        nullable: true,
        filterable: true,
        sortable: true,
    };
    TableSchema {
        name: "board".into(),
        columns: vec![
            column("team", ColumnType::Int),
            column("score", ColumnType::Int),
            column("name", ColumnType::Text),
            column("note", ColumnType::Text),
        ],
        versioned: false,
        window_rows_max: 1_000,
    }
}

/// Rows by their team, each in a list of its own.
#[derive(Debug)]
struct Teams {
    schema: TableSchema,
    rows: Mutex<Vec<Vec<Arc<Row>>>>,
    watchers: Mutex<Vec<RowChangesSender>>,
    revision: AtomicU64,
}

fn row(team: usize, member: usize, score: i64, revision: u64) -> Arc<Row> {
    let team_number = i64::try_from(team).expect("small");
    Arc::new(Row {
        key: format!("t{team:05}-m{member:03}"),
        version: 0,
        revision: Revision(revision),
        cells: vec![
            Value::Int(team_number),
            Value::Int(score),
            Value::Text(format!("Member {member} of team {team}")),
            Value::Text("a note of about forty characters, no more".into()),
        ],
    })
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % below
    }
}

fn score_of(row: &Row) -> i64 {
    if let Value::Int(score) = row.cells[1] { score } else { 0 }
}

impl Teams {
    fn new() -> Self {
        let mut dice = Dice(1);
        let team = |team| {
            let member = |member| row(team, member, i64::try_from(dice.next(1_000_000)).expect("small"), 1);
            (0..GROUP_ROWS).map(member).collect()
        };
        Self {
            schema: schema(),
            rows: Mutex::new((0..WINDOWS).map(team).collect()),
            watchers: Mutex::default(),
            revision: AtomicU64::new(1),
        }
    }

    /// The next commits: scores that change at random.
    fn changes(&self, dice: &mut Dice, count: usize) -> Vec<CommitChanges> {
        let mut rows = self.rows.lock().expect("nothing panics here");
        let commits = (0..count / COMMIT_ROWS).map(|_| {
            let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
            let mut changed = HashMap::new();
            while changed.len() < COMMIT_ROWS {
                let (team, member) = (dice.next(WINDOWS), dice.next(GROUP_ROWS));
                let score = i64::try_from(dice.next(1_000_000)).expect("small");
                let new = row(team, member, score, revision);
                rows[team][member] = Arc::clone(&new);
                changed.insert((team, member), new);
            }
            let rows = changed.into_values().map(RowChange::Put).collect();
            CommitChanges { revision: Revision(revision), rows }
        });
        commits.collect()
    }

    /// A change that the first window shows: when that was told, everything before it was.
    fn last_change(&self) -> CommitChanges {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let score = 1_000_000 + i64::try_from(revision).expect("small");
        let new = row(0, 0, score, revision);
        self.rows.lock().expect("nothing panics here")[0][0] = Arc::clone(&new);
        CommitChanges { revision: Revision(revision), rows: vec![RowChange::Put(new)] }
    }

    fn top(rows: &[Arc<Row>], count: usize) -> Vec<Arc<Row>> {
        let mut rows = rows.to_vec();
        rows.sort_by(|a, b| score_of(b).cmp(&score_of(a)).then_with(|| a.key.cmp(&b.key)));
        rows.truncate(count);
        rows
    }
}

impl TableStore for Teams {
    fn declare(&self, _: &str, _: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(ready(Ok(())))
    }

    fn check(&self, _: &str, _: &[TableSchema]) -> Result<(), TableError> {
        Ok(())
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        vec![("bench".into(), self.schema.clone())]
    }

    fn schema(&self, _: &str) -> Result<TableSchema, TableError> {
        Ok(self.schema.clone())
    }

    fn query(&self, _: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        let team = query.filter.conditions().first().and_then(|condition| condition.values.first().cloned());
        let Some(Value::Int(team)) = team else {
            unreachable!("every query of the benchmark names its team")
        };
        let rows = self.rows.lock().expect("nothing panics here");
        let rows = &rows[usize::try_from(team).expect("a team")];
        let top = Self::top(rows, query.limit as usize);
        let next = (top.len() < rows.len())
            .then(|| millrace::tables::RowCursor { values: vec![], key: String::new() });
        let rows = top.iter().map(|row| Row::clone(row)).collect();
        let revision = Revision(self.revision.load(Ordering::Relaxed));
        Box::pin(ready(Ok(RowPage { rows, next, revision })))
    }

    fn get(
        &self,
        _: &TenantId,
        _: &str,
        _: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        Box::pin(ready(Ok((Revision(0), None))))
    }

    fn watch(&self, _: &TenantId, _: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        let (sender, changes) = row_changes(Revision(self.revision.load(Ordering::Relaxed)));
        self.watchers.lock().expect("nothing panics here").push(sender);
        Box::pin(ready(Ok(changes)))
    }
}

/// Seconds that this thread has had a core for: others on the machine are not counted.
pub(crate) fn cpu_time() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn query(team: usize) -> LiveQuery {
    let team = Value::Int(i64::try_from(team).expect("small"));
    let filter = Filter::Is(Condition { column: "team".into(), operator: Operator::Eq, values: vec![team] });
    let order = vec![Order { column: "score".into(), descending: true }];
    let query = Query { filter, order, limit: LIMIT, ..Query::all("board") };
    LiveQuery { query, mode: Mode::Maintained, columns: None }
}

/// What a round found: changes a second, and bytes a change.
struct Found {
    rate: f64,
    bytes: f64,
}

async fn maintained(teams: &Arc<Teams>, round: usize) -> Result<(Found, f64)> {
    let live =
        LiveEngine::new(Arc::clone(teams) as Arc<dyn TableStore>, Epoch("bench".into()), LIVE_VIEWS_MAX);
    let mut subscriptions: Vec<Subscription> = Vec::with_capacity(WINDOWS);
    for team in 0..WINDOWS {
        let subscribe = Subscribe { tenant: tenant(), query: query(team), resume: None };
        subscriptions.push(live.subscribe(subscribe).await?);
    }
    for subscription in &mut subscriptions {
        subscription.batches.next().await.context("a snapshot")??;
    }
    let mut dice = Dice(round as u64 + 7);
    let (mut seconds, mut bytes, mut frames) = (0.0, 0, 0);
    // In portions that are taken in between, as clients would.
    for _ in 0..20 {
        let mut commits = teams.changes(&mut dice, CHANGES / 20);
        let last = teams.last_change();
        commits.push(last.clone());
        let commits = Arc::new(commits);
        let begin = cpu_time();
        teams.watchers.lock().expect("nothing panics here").retain(|watcher| watcher.send(&commits, 1));
        // The engine runs on this thread whenever this task waits.
        loop {
            let batch = subscriptions[0].batches.next().await.context("it goes on")??;
            bytes += batch.list().len();
            frames += batch.len();
            if batch.revision() == last.revision {
                break;
            }
        }
        seconds += cpu_time() - begin;
        for subscription in &mut subscriptions {
            // All that there is, whatever tokio thinks of the time it takes.
            while let Some(batch) = tokio::task::unconstrained(subscription.batches.next()).now_or_never() {
                let batch = batch.context("it goes on")??;
                bytes += batch.list().len();
                frames += batch.len();
            }
        }
    }
    ensure!(frames > CHANGES / 2, "{frames} frames for {CHANGES} changes are too few to be true");
    let changes = CHANGES as f64;
    Ok((Found { rate: changes / seconds, bytes: bytes as f64 / changes }, frames as f64 / seconds))
}

/// Reads the window of every changed row again and writes all of it out.
fn again(teams: &Teams, round: usize) -> Found {
    let mut dice = Dice(round as u64 + 7);
    let commits = teams.changes(&mut dice, CHANGES_AGAIN);
    let rows = teams.rows.lock().expect("nothing panics here");
    let begin = cpu_time();
    let (mut bytes, mut out) = (0, Vec::new());
    for change in commits.iter().flat_map(|commit| &commit.rows) {
        let RowChange::Put(changed) = change else { continue };
        let Value::Int(team) = changed.cells[0] else { continue };
        out.clear();
        for row in Teams::top(&rows[usize::try_from(team).expect("a team")], LIMIT as usize) {
            // A row as frames show it.
            out.extend_from_slice(b"{\"key\":");
            write_text(&mut out, &row.key);
            for (column, cell) in teams.schema.columns.iter().zip(&row.cells) {
                out.push(b',');
                write_text(&mut out, &column.name);
                out.push(b':');
                write_value(&mut out, cell);
            }
            out.extend_from_slice(b"},");
        }
        bytes += out.len();
    }
    let seconds = cpu_time() - begin;
    let changes = CHANGES_AGAIN as f64;
    Found { rate: changes / seconds, bytes: bytes as f64 / changes }
}

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    let teams = Arc::new(Teams::new());
    let mut values = [const { Vec::new() }; 5];
    for round in 0..ROUNDS {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (kept, frames) = runtime.block_on(maintained(&teams, round))?;
        drop(runtime);
        teams.watchers.lock().expect("nothing panics here").clear();
        let again = again(&teams, round);
        eprintln!(
            "  round {}: {:.0} changes/s, {frames:.0} frames/s, {:.0} bytes; again {:.0} changes/s",
            round + 1,
            kept.rate,
            kept.bytes,
            again.rate
        );
        values[0].push(kept.rate);
        values[1].push(frames);
        values[2].push(kept.rate / again.rate);
        values[3].push(kept.bytes);
        values[4].push(kept.bytes / again.bytes);
    }
    let figures: [(&str, &str, Option<f64>, Better); 5] = [
        (
            "row changes in 10,000 windows of 50 rows, per second of a core",
            "changes/s",
            Some(600_000.0),
            Better::Higher,
        ),
        ("frames encoded meanwhile", "frames/s", None, Better::Higher),
        ("of reading the window again", "times", Some(3.0), Better::Higher),
        ("bytes a change", "bytes", None, Better::Lower),
        ("of its bytes", "times", Some(0.05), Better::Lower),
    ];
    for ((name, unit, floor, better), values) in figures.into_iter().zip(&values) {
        suite.record(Figure { name, unit, floor, better }, values)?;
    }
    Ok(())
}
