//! Who is told by events how to fail: the processor in plain Rust, or a guest that brings an engine, under the same runner.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace::backends::sqlite::SqliteOptions;
use millrace::checkpoints::{CheckpointStore, DeadLetterRow};
use millrace::event::Position;
use millrace::plugins::{PluginSettings, WasmRuntime};
use millrace::processors::{
    Manifest, OrderingKey, Processor, ProcessorFactory, ProcessorSettings, Runner, TaskContext, Trap,
};
use millrace::tables::{Query, TableStore, Value};
use millrace_tests::guests::{load_shared, sharing_code};
use millrace_tests::scene::{Scene, scripted, tenant_id};
use millrace_tests::scripted::{Scripted, Watch, applied};
use millrace_tests::until;

use crate::plugins::rig::{component, options};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actor {
    Native,
    Js,
    Python,
}

impl Actor {
    pub(super) fn plugin(self) -> &'static str {
        match self {
            Self::Native => "scripted",
            Self::Js => "hostile-js",
            Self::Python => "hostile-python",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Native => "counts",
            Self::Js => "seen_js",
            Self::Python => "seen_python",
        }
    }
}

/// A guest that is told, under a version and with an ordering key of the test's.
#[derive(Debug)]
struct Told {
    guest: Arc<dyn ProcessorFactory>,
    manifest: Manifest,
    digest: String,
}

impl Told {
    /// The first version does as it is told. Later ones are mended: they know nothing of the tries of an earlier one, and
    /// fail at what is rejected alone.
    fn new(actor: Actor, version: u64) -> Self {
        let mode = if version == 1 { "as_told" } else { "mended" };
        let config = BTreeMap::from([("mode".to_owned(), mode.to_owned())]);
        let settings = PluginSettings { config, ..PluginSettings::default() };
        let runtime = WasmRuntime::new(sharing_code(options())).expect("the runtime starts");
        let guest = load_shared(&runtime, &component(actor.plugin()), &settings).expect("the guest loads");
        let manifest = Manifest { version: semver::Version::new(version, 0, 0), ..guest.manifest().clone() };
        let digest = format!("{}-{version}", guest.digest());
        Self { guest, manifest, digest }
    }
}

impl ProcessorFactory for Told {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        self.guest.instantiate(context)
    }

    fn has_room(&self) -> bool {
        self.guest.has_room()
    }
}

/// A scene with its actor.
pub(super) struct Stage {
    pub(super) scene: Scene,
    pub(super) actor: Actor,
    /// What the one in plain Rust tells of itself.
    pub(super) watch: Arc<Watch>,
}

impl Stage {
    pub(super) async fn new(actor: Actor) -> Self {
        Self::with(actor, |options| options).await
    }

    pub(super) async fn with(actor: Actor, options: impl FnOnce(SqliteOptions) -> SqliteOptions) -> Self {
        let scene = Scene::with(options, |store| store).await;
        Self { scene, actor, watch: Arc::default() }
    }

    /// The actor under another version is another build.
    pub(super) fn factory(&self, version: u64) -> Arc<dyn ProcessorFactory> {
        match self.actor {
            Actor::Native => {
                Arc::new(Scripted { watch: Arc::clone(&self.watch), ..Scripted::new("scripted", version) })
            }
            actor => Arc::new(Told::new(actor, version)),
        }
    }

    pub(super) async fn start(&self, settings: ProcessorSettings) -> Runner {
        self.run(self.factory(1), settings).await
    }

    /// The same with one key for all events.
    pub(super) async fn start_single(&self, settings: ProcessorSettings) -> Runner {
        let factory: Arc<dyn ProcessorFactory> = match self.actor {
            Actor::Native => {
                let mut single = scripted();
                single.manifest.ordering_key = OrderingKey::Single;
                Arc::new(single)
            }
            actor => {
                let mut single = Told::new(actor, 1);
                single.manifest.ordering_key = OrderingKey::Single;
                Arc::new(single)
            }
        };
        self.run(factory, settings).await
    }

    async fn run(&self, factory: Arc<dyn ProcessorFactory>, settings: ProcessorSettings) -> Runner {
        let tables = &factory.manifest().tables;
        self.scene.store.declare(self.actor.plugin(), tables).await.expect("good tables");
        Runner::start(&self.scene.engine, factory, settings)
    }

    pub(super) async fn publish(&self, events: &[(&str, &str, &str)]) -> Position {
        self.scene.publish("a", events).await
    }

    pub(super) async fn done(&self, runner: &Runner, through: Position) {
        self.scene.done(runner, through).await;
    }

    /// Key to how often it was counted, out of the table.
    pub(super) async fn counts(&self) -> BTreeMap<String, i64> {
        let query = Query { limit: 1_000, ..Query::all(self.actor.table()) };
        let page = self.scene.store.query(&tenant_id("a"), &query).await.expect("the table can be read");
        let count = |value: &Value| match value {
            Value::Int(count) => *count,
            Value::Text(count) => count.parse().expect("the guest notes a number"),
            other => panic!("{other:?}"),
        };
        page.rows.iter().map(|row| (row.key.clone(), count(&row.cells[0]))).collect()
    }

    /// Key to the versions that were applied, in that order, lane by lane, out of the committed states.
    pub(super) async fn applied_by_lane(&self) -> BTreeMap<u32, BTreeMap<String, Vec<u64>>> {
        let store = &self.scene.store;
        let mut lanes = BTreeMap::new();
        for row in store.tasks(Some(self.actor.plugin())).await.expect("tasks can be read") {
            let checkpoint = store.checkpoint(&row.task).await.expect("checkpoints can be read");
            let Some(saved) = checkpoint.and_then(|checkpoint| checkpoint.saved) else { continue };
            lanes.insert(row.task.lane, applied(&saved.state));
        }
        lanes
    }

    /// The same of all lanes.
    pub(super) async fn applied(&self) -> BTreeMap<String, Vec<u64>> {
        self.applied_by_lane().await.into_values().flatten().collect()
    }

    pub(super) async fn dead(&self) -> Vec<DeadLetterRow> {
        let dead = self.scene.store.dead_letters(self.actor.plugin(), None, 100).await;
        dead.expect("dead letters can be read")
    }

    pub(super) async fn letter(&self, position: u64) -> DeadLetterRow {
        let letter = self.scene.store.dead_letter(self.actor.plugin(), None, Position(position)).await;
        letter.expect("dead letters can be read").expect("it is a dead letter")
    }
}

pub(super) async fn passed(runner: &Runner, through: Position) {
    until("the processor has passed", || runner.status().done_through >= through).await;
}

/// Events that wait, and keys that a letter holds.
pub(super) fn parked(runner: &Runner) -> (u64, u64) {
    let tasks = runner.status().tasks;
    (tasks.iter().map(|task| task.parked_events).sum(), tasks.iter().map(|task| task.held_keys).sum())
}
