//! Plugins in Python as components: the turn tracer over the cases that its own tests have, and what Python programs take
//! for granted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use millrace::checkpoints::{EffectBatch, EffectRef, SavedState};
use millrace::event::{Event, EventBatch, Micros, Position};
use millrace::plugins::PluginSettings;
use millrace::processors::{
    Failure, FailureKind, FlushReason, LoadError, Manifest, Processor, ProcessorFactory,
};
use millrace::tables::{Cells, Value as CellValue, write_value};
use millrace_tests::guests::lend_code;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ENTRY, ENTRY_BYTES};
use crate::plugins::rig::{Rig, component, context, load_once, tenant};

/// `tests/cases.py` of the plugin says what a case is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(rename = "about")]
    _about: String,
    #[serde(default)]
    config: BTreeMap<String, String>,
    saved: Option<Saved>,
    steps: Vec<Step>,
    expected: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    content_type: String,
    state: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Events(Vec<CaseEvent>),
    Flush(String),
    Restart(bool),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseEvent {
    #[serde(rename = "type")]
    event_type: String,
    at: String,
    #[serde(default)]
    cursor: String,
    payload: Value,
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/turn-tracer/tests/cases")
}

/// Every case of an item, or whatever begins with this.
fn cases_of(folder: &Path, prefix: &str) -> Vec<(String, Case)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the cases are there") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            let text = std::fs::read_to_string(&path).expect("a case can be read");
            let case = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            found.push((name, case));
        }
    }
    assert!(!found.is_empty(), "there is no case of {prefix}");
    found
}

/// One task of the tracer, with what it has asked for.
struct Task<'a> {
    factory: &'a dyn ProcessorFactory,
    instance: Box<dyn Processor>,
    position: u64,
    rows: BTreeMap<&'static str, Map<String, Value>>,
    emitted: Vec<Value>,
    failed: Vec<Value>,
}

const TABLES: [&str; 2] = ["turns", "passed_entries"];

impl<'a> Task<'a> {
    fn start(factory: &'a dyn ProcessorFactory, saved: Option<&SavedState>) -> Result<Self, LoadError> {
        let mut instance = factory.instantiate(context()).expect("it can be instantiated");
        instance.load(saved)?;
        let rows = TABLES.map(|table| (table, Map::new())).into();
        Ok(Self { factory, instance, position: 0, rows, emitted: Vec::new(), failed: Vec::new() })
    }

    /// Events in one batch; what follows a failing one is not looked at.
    fn send(&mut self, step: usize, events: &[CaseEvent]) {
        let mut batch = EventBatch::new(tenant());
        for (position, event) in (self.position + 1..).zip(events) {
            let kind = event.event_type.split('.').next().expect("a type has a first part");
            let payload = event.payload.to_string();
            let event = Event {
                position: Position(position),
                aggregate: kind,
                agg_id: "1",
                event_type: &event.event_type,
                version: 1,
                at: Micros::parse(&event.at).expect("a time"),
                kind: if event.cursor.is_empty() { "" } else { kind },
                cursor: &event.cursor,
                payload: payload.as_bytes(),
                ..Event::default()
            };
            batch.push(&event).expect("a good event");
        }
        let outcome = self.instance.handle(&batch).expect("it does not fall");
        self.position += outcome.handled as u64;
        self.apply(&outcome.effects);
        if let Some(failure) = &outcome.failure {
            self.fail(step, failure);
        }
    }

    fn flush(&mut self, step: usize, reason: FlushReason) {
        match self.instance.flush(reason).expect("it does not fall") {
            Ok(effects) => self.apply(&effects),
            Err(failure) => self.fail(step, &failure),
        }
    }

    fn fail(&mut self, step: usize, failure: &Failure) {
        let kind = match failure.kind {
            FailureKind::Retry => "retry",
            FailureKind::Reject => "reject",
            FailureKind::Fatal => "fatal",
        };
        self.failed.push(json!({ "step": step, "kind": kind, "says": failure.message }));
    }

    fn manifest(&self) -> &Manifest {
        self.factory.manifest()
    }

    fn apply(&mut self, effects: &EffectBatch) {
        for effect in effects.iter() {
            match effect {
                EffectRef::Put { table, key, cells, .. } => {
                    let schema = &self.manifest().tables[table];
                    let cells =
                        Cells::new(cells).map(|cell| CellValue::from(cell.expect("cells were checked")));
                    let columns = schema.columns.iter().map(|column| column.name.clone());
                    let row = columns.zip(cells.map(|cell| shown(&cell))).collect::<Map<_, _>>();
                    let name = TABLES[table];
                    assert_eq!(schema.name, name);
                    let rows = self.rows.get_mut(name).expect("every table is kept");
                    rows.insert(key.to_owned(), row.into());
                }
                EffectRef::Emit(emitted) => self.emitted.push(json!({
                    "type": emitted.event_type,
                    "agg_id": emitted.agg_id,
                    "version": emitted.version,
                    "at": emitted.at.to_string(),
                    "payload": serde_json::from_slice::<Value>(emitted.payload).expect("JSON"),
                })),
                other => panic!("the tracer does not ask for {other:?}"),
            }
        }
    }

    fn saved(&mut self) -> SavedState {
        let content_type = self.manifest().state_content_type.clone().expect("it has a state");
        let state = self.instance.snapshot().expect("a snapshot");
        assert_eq!(state, self.instance.snapshot().expect("another"), "a snapshot changes nothing");
        SavedState { content_type, state }
    }

    fn restart(&mut self) {
        let saved = self.saved();
        self.instance = self.factory.instantiate(context()).expect("it can be instantiated");
        self.instance.load(Some(&saved)).expect("it loads what it saved");
        assert_eq!(saved, self.saved(), "what was loaded gives the same snapshot");
    }

    fn found(mut self) -> Value {
        let state: Value = serde_json::from_slice(&self.saved().state).expect("the state is JSON");
        json!({
            "failed": self.failed,
            "turns": self.rows["turns"],
            "passed_entries": self.rows["passed_entries"],
            "emitted": self.emitted,
            "state": state,
        })
    }
}

/// A cell as clients see it.
fn shown(cell: &CellValue) -> Value {
    let mut text = Vec::new();
    write_value(&mut text, cell);
    serde_json::from_slice(&text).expect("values are written as JSON")
}

fn run(factory: &dyn ProcessorFactory, case: &Case) -> Value {
    let saved = case.saved.as_ref().map(|saved| {
        // Text stands for itself: not every state is an object.
        let state = saved.state.as_str().map_or_else(|| saved.state.to_string(), str::to_owned);
        SavedState { content_type: saved.content_type.clone(), state: state.into_bytes() }
    });
    let mut task = match Task::start(factory, saved.as_ref()) {
        Ok(task) => task,
        Err(LoadError::Refused { message }) => return json!({ "refused": message }),
        Err(error) => panic!("it does not load: {error}"),
    };
    for (number, step) in case.steps.iter().enumerate() {
        match step {
            Step::Events(events) => task.send(number, events),
            Step::Flush(reason) => {
                assert_eq!(reason, "tick", "no case has another reason");
                task.flush(number, FlushReason::Tick);
            }
            Step::Restart(again) => {
                assert!(again, "a case restarts or says nothing of it");
                task.restart();
            }
        }
    }
    task.found()
}

/// Whatever comes out must be what is written there, and nothing else. Answers how many cases there are.
pub(crate) fn a_tracer_passes(
    tracer: &dyn Fn(&PluginSettings) -> Arc<dyn ProcessorFactory>,
    folder: &Path,
    prefix: &str,
) -> usize {
    let cases = cases_of(folder, prefix);
    for (name, case) in &cases {
        let settings = PluginSettings { config: case.config.clone(), ..PluginSettings::default() };
        assert_eq!(run(&*tracer(&settings), case), case.expected, "{name}");
    }
    cases.len()
}

fn the_component_passes(prefix: &str) {
    a_tracer_passes(&|settings| load_once("turn-tracer", settings), &cases(), prefix);
}

macro_rules! items {
    ($($test:ident: $prefix:literal,)*) => {
        $(
            #[test]
            fn $test() {
                the_component_passes($prefix);
            }
        )*

        #[test]
        fn every_case_of_the_tracer_belongs_to_a_test() {
            for (name, _) in cases_of(&cases(), "") {
                assert!([$($prefix),*].iter().any(|prefix| name.starts_with(prefix)), "{name}");
            }
        }
    };
}

items! {
    r06_bad_session_mode_is_refused: "r06_",
    r08_completed_turn_fields: "r08_",
    r09_only_the_newest_epoch_of_context: "r09_",
    r10_role_and_content_shape_is_read: "r10_",
    r11_session_is_the_conversation_group: "r11_",
    r12_span_name_is_configured: "r12_",
    r13_history_lc4j_answer_closes: "r13_",
    r14_new_words_of_the_user_cut_short: "r14_",
    r15_duplicate_context_counts_once: "r15_",
    r16_a_restart_keeps_the_open_turn: "r16_",
    r17_a_snapshot_changes_nothing: "r17_",
    r18_idle_at_exactly_the_limit: "r18_",
    r19_the_cap_closes_the_oldest: "r19_",
    r20_an_archive_closes_and_the_owner_is_the_user: "r20_",
    r21_what_cannot_be_exported_keeps_turn_and_cursor: "r21_",
    r22_drop_policy_advances: "r22_",
    r23_root_attributes: "r23_",
    r24_generation_attributes: "r24_",
    rx_states_and_entries_of_other_shapes: "rx_",
}

/// One entry of a conversation that has only one turn.
fn entry(number: u64, role: &str, channel: &str, text: &str) -> CaseEvent {
    let at = format!("2026-05-19T12:00:{number:02}Z");
    let payload = json!({
        "id": format!("e{number}"), "conversationId": "conv-1", "channel": channel, "contentType": "history",
        "content": [{ "role": role, "text": text }], "createdAt": at,
    });
    CaseEvent { event_type: "entry.created".to_owned(), at, cursor: number.to_string(), payload }
}

/// More than an event may hold: refused, one long conversation would hold up the tracing of all others.
#[test]
fn r21_a_turn_with_a_mebibyte_of_context_is_exported() {
    let tracer = load_once("turn-tracer", &PluginSettings::default());
    let mut task = Task::start(&*tracer, None).expect("it loads");
    task.send(0, &[entry(1, "USER", "history", "a question")]);
    for number in 2..22 {
        task.send(
            1,
            &[entry(number, "USER", "context", &format!("{number} {}", "\"quoted\"\n".repeat(2_500)))],
        );
    }
    task.send(2, &[entry(30, "AI", "history", "an answer")]);
    assert_eq!(task.failed, Vec::<Value>::new());
    let [closed] = &task.emitted[..] else { panic!("one turn: {}", task.emitted.len()) };
    let generation = &closed["payload"]["generation"]["attributes"];
    assert_eq!(generation["langfuse.observation.metadata.truncated"], true);
    let prompt = generation["gen_ai.prompt"].as_str().expect("there is a prompt");
    assert!(prompt.contains("e21: 21 ") && !prompt.contains("e2: 2 "), "the newest context stays");
}

/// Runs what a folder has in `tests`, as its author would.
fn unittests(folder: &str) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut python = Command::new("python3");
    python.args(["-m", "unittest", "discover", "--start-directory", "tests"]);
    python.current_dir(repository.join(folder)).env("PYTHONPATH", "../../guest-sdk/python");
    python.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    let output = python.output().expect("python3 is there, 3.11 or newer");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // What finds no tests succeeds, too.
    assert!(said.contains("Ran ") && !said.contains("Ran 0 tests"), "{said}");
}

#[test]
fn the_python_sdk_keeps_its_own_rules() {
    unittests("guest-sdk/python");
}

#[test]
fn the_tracer_passes_its_cases_as_plain_python() {
    unittests("plugins/turn-tracer");
}

/// The names of what a component imports: the contents of its import sections.
fn import_sections(component: &[u8]) -> Vec<&[u8]> {
    const IMPORTS: u8 = 10;
    let mut found = Vec::new();
    let mut rest = &component[8..];
    while let Some((&id, after)) = rest.split_first() {
        let (mut length, mut shift) = (0_usize, 0);
        rest = after;
        loop {
            let (&byte, after) = rest.split_first().expect("a section has a length");
            rest = after;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let (section, after) = rest.split_at(length);
        rest = after;
        if id == IMPORTS {
            found.push(section);
        }
    }
    found
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_python_guest_imports_nothing_of_wasi() {
    for guest in ["turn-tracer", "python-probe"] {
        let bytes = component(guest);
        let sections = import_sections(&bytes);
        let imports = |text: &str| sections.iter().any(|section| contains(section, text));
        assert!(imports("millrace:processor/log@0.1.0"), "{guest}");
        assert!(!imports("wasi:"), "{guest}");
    }
}

fn probe() -> Arc<dyn ProcessorFactory> {
    load_once("python-probe", &PluginSettings::default())
}

/// Asks a probe, in one batch, and answers what it was told by the agg-id. Events are a second apart from this one on.
fn asked(probe: &dyn ProcessorFactory, verbs: &[&str], first: &str) -> BTreeMap<String, String> {
    let first = Micros::parse(first).expect("a time");
    let mut batch = EventBatch::new(tenant());
    for (index, verb) in (0_i32..).zip(verbs) {
        let event = Event {
            position: Position(u64::from(index.unsigned_abs()) + 1),
            aggregate: "probe",
            agg_id: &format!("{index} {verb}"),
            event_type: &format!("probe.{verb}"),
            version: 1,
            at: Micros(first.0 + i64::from(index) * 1_000_000),
            payload: ENTRY.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    let mut instance = probe.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let outcome = instance.handle(&batch).expect("it does not fall");
    assert_eq!((outcome.handled, &outcome.failure), (verbs.len(), &None));
    let flushed = instance.flush(FlushReason::Tick).expect("it does not fall").expect("it flushes");
    let mut answers = BTreeMap::new();
    for effect in outcome.effects.iter().chain(flushed.iter()) {
        let EffectRef::Put { key, cells, .. } = effect else { panic!("the probe asks for {effect:?}") };
        let cell = Cells::new(cells).next().expect("a cell").expect("cells were checked");
        let CellValue::Text(answer) = CellValue::from(cell) else { panic!("an answer is text") };
        answers.insert(key.to_owned(), answer);
    }
    answers
}

#[test]
fn time_in_a_python_guest_is_the_events_own() {
    let answers = asked(&*probe(), &["time", "now", "time", "sleep"], "2026-05-19T12:00:00.25Z");
    assert_eq!(answers["0 time"], "1779192000250000");
    assert_eq!(answers["1 now"], "2026-05-19T12:00:01.250000+00:00");
    assert_eq!(answers["2 time"], "1779192002250000");
    assert!(answers["3 sleep"].contains("does not sleep"), "{}", answers["3 sleep"]);
    assert_eq!(answers["flush/tick"], "1779192003250000", "the latest that was handled");
}

#[test]
fn chance_in_a_python_guest_follows_from_the_event() {
    let (probe, verbs) = (probe(), ["chance", "chance"]);
    let once = asked(&*probe, &verbs, "2026-05-19T12:00:00Z");
    let again = asked(&*probe, &verbs, "2026-05-20T12:00:00Z");
    assert_eq!(once["0 chance"], again["0 chance"], "two instances give the same");
    assert_ne!(once["0 chance"], once["1 chance"]);
}

#[test]
fn what_a_python_guest_has_no_files_for_is_an_exception() {
    let answers = asked(&*probe(), &["late", "file", "parse"], "2026-05-19T12:00:00Z");
    assert!(answers["0 late"].starts_with("ModuleNotFoundError: `wave` was not loaded"), "{answers:?}");
    assert!(answers["1 file"].starts_with("PermissionError: '/etc/hostname'"), "{answers:?}");
    assert_eq!(answers["2 parse"], "2026-05-19", "what the interpreter would look for later is there");
}

#[test]
fn a_python_guest_reads_the_bytes_of_a_channels_entry() {
    let answers = asked(&*probe(), &["data"], "2026-05-19T12:00:00Z");
    assert_eq!(answers["0 data"], format!(r"b'{}'", ENTRY_BYTES.escape_ascii()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_exception_names_its_line_in_the_dead_letter() {
    let rig = Rig::sharing("python-probe", &PluginSettings::default());
    let events = [
        ("a", "probe.time", "1"),
        ("b", "probe.fall", "1"),
        ("c", "probe.time", "1"),
        ("d", "probe.leave", "1"),
        ("e", "probe.time", "1"),
    ];
    let last = rig.publish(&events).await;
    let runner = rig.run("python-probe", PluginSettings::default()).await;
    rig.done(&runner, last).await;
    let mut handled = rig.keys("probed").await;
    handled.retain(|key| !key.starts_with("flush/"));
    assert_eq!(handled, ["a", "c", "e"], "the others are handled");
    let mut dead = rig.dead("python-probe").await;
    dead.sort();
    let letters: Vec<(&str, &str)> = dead.iter().map(|(agg_id, reason, _)| (&**agg_id, &**reason)).collect();
    assert_eq!(letters, [("b", "trap"), ("d", "trap")]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/python-probe/app.py");
    let source = std::fs::read_to_string(source).expect("the probe's source is there");
    for ((_, _, message), (code, says)) in
        dead.iter().zip([("[\"missing\"]", "KeyError: 'missing'"), ("sys.exit", "SystemExit: enough")])
    {
        let line = 1 + source.lines().position(|line| line.contains(code)).expect("the probe has it");
        let place = format!("{says} (app.py:{line} in ");
        assert!(message.contains(&place), "`{place}` is not in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn print_and_stderr_of_a_python_guest_are_its_log() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup::new(workspace_binary("millrace"));
    let (data, probe) = (dir.path().join("data"), Bytes::from(component("python-probe")));
    lend_code(&data, std::slice::from_ref(&probe)).expect("the folder is the test's");
    let host = HostProcess::start_as(setup, &data).await.expect("the host starts");
    host.deploy(probe).await.expect("the probe is deployed");
    let event = json!({
        "aggregate": "probe", "agg_id": "a", "version": 1, "type": "probe.speak",
        "at": "2026-05-19T12:00:00Z", "payload": {},
    });
    host.publish(format!("{event}\n")).await.expect("the event is taken");
    host.settle().await.expect("the probe has handled it");
    let said = host.said();
    for (text, level) in [("a line for the log", "info"), ("and one for its errors", "warn")] {
        let line = said.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {said}"));
        assert!(line.to_lowercase().contains(level), "{level}: {line}");
        assert!(line.contains("python-probe"), "{line}");
    }
}
