//! Random writes, readers and mishaps; after every batch the client's array is the answer to its query.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace::event::{Epoch, Revision, TenantId};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::tables::{
    Column, ColumnType, Condition, Filter, Operator, Order, Query, Row, RowCursor, TableSchema, Value,
};
use millrace_tests::shelf::{Shelf, select};
use millrace_tests::viewer::Viewer;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

pub(super) fn column(name: &str, column_type: ColumnType) -> Column {
    Column { name: name.into(), column_type, nullable: true, filterable: true, sortable: true }
}

pub(super) fn board() -> TableSchema {
    TableSchema {
        name: "board".into(),
        columns: vec![
            column("rank", ColumnType::Int),
            column("team", ColumnType::Text),
            column("note", ColumnType::Int),
        ],
        versioned: true,
        window_rows_max: 60,
    }
}

type Cells = (Option<i64>, u8, i64);
type Change = (u8, Option<Cells>);

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    /// Another table changes.
    Elsewhere,
    /// What watchers have not taken is lost.
    Lose,
    HoldReads,
    LetReadsGo,
    Ask(usize, Asked),
    Reanchor(usize, u8, u32),
    Disconnect(usize),
    Connect(usize),
    /// One takes what there is; the others fall behind.
    Take(usize),
}

#[derive(Clone, Debug)]
struct Asked {
    filter: u8,
    order: u8,
    limit: u32,
}

const VIEWERS: usize = 4;
const TEAMS: [&str; 3] = ["blue", "red", ""];

fn is(column: &str, operator: Operator, values: Vec<Value>) -> Filter {
    Filter::Is(Condition { column: column.into(), operator, values })
}

fn query(asked: &Asked) -> LiveQuery {
    let text = |team: usize| Value::Text(TEAMS[team].into());
    let filter = match asked.filter % 7 {
        0 => Filter::default(),
        1 => is("team", Operator::Eq, vec![text(0)]),
        2 => is("team", Operator::In, vec![text(0), text(1)]),
        3 => Filter::Not(Box::new(is("team", Operator::Eq, vec![text(1)]))),
        4 => Filter::Any(vec![
            is("rank", Operator::IsNull, vec![]),
            is("rank", Operator::Gt, vec![Value::Int(0)]),
        ]),
        5 => Filter::All(vec![
            is("team", Operator::Eq, vec![text(2)]),
            is("rank", Operator::Eq, vec![Value::Int(1)]),
        ]),
        _ => is("note", Operator::Lt, vec![Value::Int(5)]),
    };
    let by = |column: &str, descending| Order { column: column.into(), descending };
    let order = match asked.order % 5 {
        0 => vec![],
        1 => vec![by("rank", false)],
        2 => vec![by("rank", true)],
        3 => vec![by("team", true), by("rank", false)],
        _ => vec![by("note", true), by("team", false)],
    };
    let query = Query { filter, order, limit: asked.limit, ..Query::all("board") };
    LiveQuery { query, mode: Mode::Maintained, columns: None }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cells = (prop::option::weighted(0.85, -4..5_i64), 0..3_u8, 0..9_i64);
    let change = (0..90_u8, prop::option::weighted(0.75, cells));
    let asked = (any::<u8>(), any::<u8>(), prop_oneof![1..4_u32, 1..=50_u32])
        .prop_map(|(filter, order, limit)| Asked { filter, order, limit });
    let viewer = 0..VIEWERS;
    let step = prop_oneof![
        60 => prop::collection::vec(change, 1..5).prop_map(Step::Commit),
        4 => Just(Step::Elsewhere),
        1 => Just(Step::Lose),
        1 => Just(Step::HoldReads),
        5 => Just(Step::LetReadsGo),
        8 => (viewer.clone(), asked).prop_map(|(viewer, asked)| Step::Ask(viewer, asked)),
        3 => (viewer.clone(), any::<u8>(), 1..=50_u32).prop_map(|(viewer, at, limit)| Step::Reanchor(viewer, at, limit)),
        2 => viewer.clone().prop_map(Step::Disconnect),
        8 => viewer.clone().prop_map(Step::Connect),
        25 => viewer.prop_map(Step::Take),
    ];
    prop::collection::vec(step, 600)
}

/// Everything that has ever been, and those who watch.
struct World {
    shelf: Shelf,
    live: Arc<LiveEngine>,
    history: Vec<(Revision, Vec<Arc<Row>>)>,
    viewers: Vec<Option<Viewer>>,
    held: bool,
    compared: usize,
}

fn tenant() -> TenantId {
    TenantId::new("acme").expect("a good name")
}

/// What a client is to see of a row.
fn shown(row: &Row) -> Json {
    let plain = |value: &Value| match value {
        Value::Int(value) => json!(value),
        Value::Text(text) => json!(text),
        _ => Json::Null,
    };
    json!({"key": row.key, "rank": plain(&row.cells[0]), "team": plain(&row.cells[1]), "note": plain(&row.cells[2])})
}

impl World {
    fn new() -> Self {
        let shelf = Shelf::new(board());
        let live = LiveEngine::new(Arc::new(shelf.clone()), Epoch("model".into()), LIVE_VIEWS_MAX);
        let viewers = (0..VIEWERS).map(|_| None).collect();
        let history = vec![(Revision(0), Vec::new())];
        Self { shelf, live: Arc::new(live), history, viewers, held: false, compared: 0 }
    }

    /// Lets the engine do what it can do.
    async fn settle(&self) {
        for _ in 0..12 {
            tokio::task::yield_now().await;
        }
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(changes) => {
                let changes: Vec<_> =
                    changes.iter().map(|(key, cells)| (format!("k{key:02}"), cells.map(row))).collect();
                let revision = self.shelf.commit(&changes);
                self.history.push((revision, self.shelf.rows()));
            }
            Step::Elsewhere => {
                self.shelf.commit_elsewhere();
            }
            Step::Lose => self.shelf.lose(),
            Step::HoldReads => {
                self.held = true;
                self.shelf.hold_reads();
            }
            Step::LetReadsGo => {
                self.held = false;
                self.shelf.let_reads_go();
            }
            Step::Ask(viewer, asked) => {
                self.viewers[*viewer] = Some(Viewer::new(tenant(), query(asked)));
                self.connect(*viewer).await;
            }
            Step::Reanchor(viewer, at, limit) => self.reanchor(*viewer, *at, *limit).await,
            Step::Disconnect(viewer) => {
                if let Some(viewer) = &mut self.viewers[*viewer] {
                    viewer.disconnect();
                }
            }
            Step::Connect(viewer) => self.connect(*viewer).await,
            Step::Take(viewer) => self.take(*viewer),
        }
        self.settle().await;
    }

    /// Connects, unless that would wait for a read that is held up.
    async fn connect(&mut self, number: usize) {
        let Some(mut viewer) = self.viewers[number].take().filter(|viewer| !viewer.is_connected()) else {
            return;
        };
        let live = Arc::clone(&self.live);
        let connecting = async {
            viewer.connect(&*live).await.expect("a good query");
            viewer
        };
        let settled = async {
            self.settle().await;
            self.settle().await;
        };
        tokio::select! {
            biased;
            viewer = connecting => self.viewers[number] = Some(viewer),
            () = settled => assert!(self.held, "a query is answered unless reads are held up"),
        }
    }

    /// From one of the rows that it sees on.
    async fn reanchor(&mut self, number: usize, at: u8, limit: u32) {
        let Some(viewer) = &mut self.viewers[number] else { return };
        let mut asked = viewer.query.clone();
        let count = viewer.rows.len();
        asked.query.after = (count > 0).then(|| {
            let row = &viewer.rows[usize::from(at) % count];
            let value = |name: &str| match &row[name] {
                Json::Null => Value::Null,
                Json::String(text) => Value::Text(text.clone()),
                number => Value::Int(number.as_i64().expect("an integer")),
            };
            let values = asked.query.order.iter().map(|part| value(&part.column)).collect();
            RowCursor { values, key: row["key"].as_str().expect("a key").into() }
        });
        asked.query.limit = limit;
        viewer.ask(asked);
        self.connect(number).await;
    }

    fn take(&mut self, number: usize) {
        let Some(mut viewer) = self.viewers[number].take() else { return };
        while let Some(batch) = viewer.take_now() {
            if batch.expect("nothing fails").token().is_some() {
                self.check(&viewer);
            }
        }
        self.viewers[number] = Some(viewer);
    }

    /// What it has is the answer as of its revision.
    fn check(&mut self, viewer: &Viewer) {
        self.compared += 1;
        let at = self.history.partition_point(|(revision, _)| revision.0 <= viewer.revision) - 1;
        let (revision, rows) = &self.history[at];
        let expected: Vec<_> = answer(rows, &viewer.query.query);
        assert_eq!(viewer.rows, expected, "{:?} as of {revision}", viewer.query.query);
    }

    async fn end(&mut self) {
        self.shelf.let_reads_go();
        self.held = false;
        for number in 0..VIEWERS {
            self.connect(number).await;
        }
        for _ in 0..20 {
            self.settle().await;
        }
        for number in 0..VIEWERS {
            self.take(number);
            if let Some(viewer) = &self.viewers[number] {
                let expected = answer(&self.shelf.rows(), &viewer.query.query);
                assert_eq!(viewer.rows, expected, "{:?} in the end", viewer.query.query);
            }
        }
    }
}

fn row((rank, team, note): Cells) -> Vec<Value> {
    let team = TEAMS[usize::from(team)];
    vec![rank.map_or(Value::Null, Value::Int), Value::Text(team.into()), Value::Int(note)]
}

fn answer(rows: &[Arc<Row>], query: &Query) -> Vec<Json> {
    let mut rows = select(&board(), rows, query);
    rows.truncate(query.limit as usize);
    rows.iter().map(|row| shown(row)).collect()
}

fn run(cases: u32) {
    let compared = AtomicUsize::new(0);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps())| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new();
            for step in &steps {
                world.step(step).await;
            }
            world.end().await;
            compared.fetch_add(world.compared, Ordering::Relaxed);
        });
    });
    let compared = compared.into_inner();
    assert!(compared > cases as usize * 50, "{compared} comparisons are too few to mean anything");
}

// 300 runs of 600 steps, in parts that run side by side.

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_first_part() {
    run(75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_second_part() {
    run(75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_third_part() {
    run(75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_fourth_part() {
    run(75);
}
