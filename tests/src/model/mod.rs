//! Live queries against what a query means: random writes, readers and mishaps; after every batch the client's
//! array is the answer to its query.
//!
//! Three laws hold at every step. A snapshot and the deltas after it are the query. To resume at any cut is not to
//! have been cut. To reanchor is to subscribe afresh. The suite runs this short, `cargo xtask soak` long.

mod ground;
mod world;

use millrace::live::{LiveQuery, Mode};
use millrace::tables::{Column, ColumnType, Condition, Filter, Operator, Order, Query, TableSchema, Value};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use serde_json::{Value as Json, json};

use world::World;

pub fn column(name: &str, column_type: ColumnType) -> Column {
    Column { name: name.into(), column_type, nullable: true, filterable: true, sortable: true }
}

/// The table that the model writes.
pub fn board() -> TableSchema {
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

/// What one step of a run does.
#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<ground::Written>),
    /// Another table changes.
    Elsewhere,
    /// What watchers are told next is lost.
    Lose,
    /// The table is made anew with these rows.
    Rebuild(Vec<ground::Written>),
    /// Another version of the plugin has one more column.
    AddColumn,
    HoldReads,
    LetReadsGo,
    /// The store is ahead of what watchers are told.
    HoldNews,
    LetNewsGo,
    Ask(usize, Asked),
    /// From one of the rows that it sees on, with another size.
    Reanchor(usize, u8, u32),
    Disconnect(usize),
    Connect(usize),
    /// Somebody else resumes where this one was so many batches ago.
    Cut(usize, u8),
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

/// A query, and the same as a client writes it.
fn query(asked: &Asked) -> (LiveQuery, Json) {
    let text = |team: usize| Value::Text(TEAMS[team].into());
    let is = |column: &str, operator: Operator, values: Vec<Value>| {
        Filter::Is(Condition { column: column.into(), operator, values })
    };
    let (filter, written) = match asked.filter % 7 {
        0 => (Filter::default(), json!([])),
        1 => (
            is("team", Operator::Eq, vec![text(0)]),
            json!([{"column": "team", "op": "eq", "value": "blue"}]),
        ),
        2 => (
            is("team", Operator::In, vec![text(0), text(1)]),
            json!([{"column": "team", "op": "in", "value": ["blue", "red"]}]),
        ),
        3 => (
            Filter::Not(Box::new(is("team", Operator::Eq, vec![text(1)]))),
            json!([{"not": {"column": "team", "op": "eq", "value": "red"}}]),
        ),
        4 => (
            Filter::Any(vec![
                is("rank", Operator::IsNull, vec![]),
                is("rank", Operator::Gt, vec![Value::Int(0)]),
            ]),
            json!([{"or": [{"column": "rank", "op": "isnull"}, {"column": "rank", "op": "gt", "value": 0}]}]),
        ),
        5 => (
            Filter::All(vec![
                is("team", Operator::Eq, vec![text(2)]),
                is("rank", Operator::Eq, vec![Value::Int(1)]),
            ]),
            json!([{"column": "team", "op": "eq", "value": ""}, {"column": "rank", "op": "eq", "value": 1}]),
        ),
        _ => (
            is("note", Operator::Lt, vec![Value::Int(5)]),
            json!([{"column": "note", "op": "lt", "value": 5}]),
        ),
    };
    let by = |column: &str, descending| Order { column: column.into(), descending };
    let order = match asked.order % 5 {
        0 => vec![],
        1 => vec![by("rank", false)],
        2 => vec![by("rank", true)],
        3 => vec![by("team", true), by("rank", false)],
        _ => vec![by("note", true), by("team", false)],
    };
    let sort: Vec<_> =
        order.iter().map(|part| json!({"column": part.column, "desc": part.descending})).collect();
    let written = json!({"table": "board", "where": written, "sort": sort, "limit": asked.limit});
    let query = Query { filter, order, limit: asked.limit, ..Query::all("board") };
    (LiveQuery { query, mode: Mode::Maintained, columns: None }, written)
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let cells = (prop::option::weighted(0.85, -4..5_i64), 0..3_u8, 0..9_i64);
    let change = (0..90_usize, prop::option::weighted(0.75, cells));
    let asked = (any::<u8>(), any::<u8>(), prop_oneof![1..4_u32, 1..=50_u32])
        .prop_map(|(filter, order, limit)| Asked { filter, order, limit });
    let viewer = 0..VIEWERS;
    let writes = prop_oneof![
        60 => prop::collection::vec(change.clone(), 1..5).prop_map(Step::Commit),
        4 => Just(Step::Elsewhere),
        1 => Just(Step::Lose),
        1 => prop::collection::vec(change, 0..50).prop_map(Step::Rebuild),
        1 => Just(Step::AddColumn),
        1 => Just(Step::HoldReads),
        5 => Just(Step::LetReadsGo),
        2 => Just(Step::HoldNews),
        6 => Just(Step::LetNewsGo),
    ];
    let reads = prop_oneof![
        8 => (viewer.clone(), asked).prop_map(|(viewer, asked)| Step::Ask(viewer, asked)),
        4 => (viewer.clone(), any::<u8>(), 1..=50_u32)
            .prop_map(|(viewer, at, limit)| Step::Reanchor(viewer, at, limit)),
        2 => viewer.clone().prop_map(Step::Disconnect),
        8 => viewer.clone().prop_map(Step::Connect),
        6 => (viewer.clone(), any::<u8>()).prop_map(|(viewer, back)| Step::Cut(viewer, back)),
        25 => viewer.prop_map(Step::Take),
    ];
    prop::collection::vec(prop_oneof![3 => writes, 2 => reads], count)
}

/// Which tables a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    /// The embedded store, with commits from three lanes side by side.
    Store,
}

/// What runs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub steps: usize,
    /// Arrays that were compared with what their query means.
    pub compared: usize,
    /// Cuts that were resumed and compared with what was never cut.
    pub resumed: usize,
    /// Moved windows that were compared with fresh subscriptions.
    pub reanchored: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.compared += other.compared;
        self.resumed += other.resumed;
        self.reanchored += other.reanchored;
    }
}

/// Runs one world of so many steps to its end. The seed decides all of it, save what the threads of a store do.
/// An error holds the shortest list of steps that was found to fail.
pub fn run(kind: Kind, seed: u64, count: usize) -> Result<Tally, String> {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: if kind == Kind::Store { 40 } else { 400 },
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tally = std::cell::Cell::new(Tally::default());
    let done = quietly(|| {
        runner.run(&steps(count), |steps| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let ran = runtime.block_on(async {
                let mut world = World::new(kind).await;
                for step in &steps {
                    world.step(step).await;
                }
                world.end().await
            });
            tally.set(Tally { steps: steps.len(), ..ran });
            Ok(())
        })
    });
    match done {
        Ok(()) => Ok(tally.get()),
        Err(TestError::Fail(why, steps)) => {
            let place = PLACE.with_borrow(Clone::clone);
            Err(format!("{why}\nat {place}\nafter these steps: {steps:?}"))
        }
        Err(TestError::Abort(why)) => Err(why.to_string()),
    }
}

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// Where this thread last panicked while it was quiet.
    static PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Does something without a word about panics on this thread: while the shortest list of steps is sought, the same
/// one comes hundreds of times, and the report has it.
fn quietly<T>(what: impl FnOnce() -> T) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if QUIET.get() {
                PLACE.set(panic.location().map(ToString::to_string).unwrap_or_default());
            } else {
                before(panic);
            }
        }));
    });
    QUIET.set(true);
    let done = what();
    QUIET.set(false);
    done
}

/// The one command that runs a world again.
pub fn again(kind: Kind, seed: u64, count: usize) -> String {
    let store = if kind == Kind::Store { " --store" } else { " --memory" };
    format!("cargo xtask soak --races 0 --steps {count} --seed {seed}{store}")
}
