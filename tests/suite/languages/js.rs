//! Plugins in JavaScript: what they compute, what they see of the world, and how their mistakes are told. What needs no host
//! is tested in `guest-sdk/js/tests` and `plugins/debounce/tests`, which run here, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millrace::checkpoints::EffectRef;
use millrace::event::Micros;
use millrace::plugins::PluginSettings;
use millrace::tables::{Cell, Cells};
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::flights;
use serde_json::{Value, json};

use super::{ENTRY, ENTRY_BYTES};
use crate::plugins::rig::{Rig, batch, component, context, load_once};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs the JavaScript tests of a folder.
fn node_tests(folder: &str) -> Result<()> {
    let dir = repository().join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir.join("tests")).with_context(|| format!("{} has tests", dir.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".test.mjs") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{} has no tests", dir.display());
    let mut node = Command::new("node");
    node.arg("--test").args(&files).current_dir(&dir).stdin(Stdio::null());
    let output = node.output().context("Node 20.19, 22.12 or later is needed")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the tests of {folder} failed:\n{said}");
    Ok(())
}

#[test]
fn the_javascript_sdk_passes_its_own_tests() -> Result<()> {
    node_tests("guest-sdk/js")
}

#[test]
fn debounce_passes_its_own_tests() -> Result<()> {
    node_tests("plugins/debounce")
}

// What comes into a component and what does not.

/// The import sections of a component, one after the other: names of what it asks for stand in them.
fn import_sections(component: &[u8]) -> Vec<u8> {
    const PREAMBLE_BYTES: usize = 8;
    const IMPORTS: u8 = 10;
    let mut imports = Vec::new();
    let mut rest = &component[PREAMBLE_BYTES..];
    while let Some((id, after)) = rest.split_first() {
        let (mut bytes, mut shift, mut at) = (0_usize, 0, 0);
        loop {
            let byte = after[at];
            bytes |= usize::from(byte & 0x7f) << shift;
            (shift, at) = (shift + 7, at + 1);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let section = &after[at..at + bytes];
        if *id == IMPORTS {
            imports.extend_from_slice(section);
        }
        rest = &after[at + bytes..];
    }
    imports
}

#[test]
fn a_js_guest_imports_nothing_of_wasi() {
    for name in ["debounce", "probe-js"] {
        let imports = import_sections(&component(name));
        let imports = String::from_utf8_lossy(&imports);
        assert!(imports.contains("millrace:processor/log@"), "{name}: the sections are read: {imports}");
        assert!(!imports.contains("wasi:"), "{name}: {imports}");
    }
}

/// What the probe wrote of an event: the event's time, the guest's time, its chance, and the payload.
type Probed = (i64, i64, String, Vec<u8>);

fn probed(events: &[(&str, &str, &str)], sizes: usize) -> Vec<Probed> {
    let factory = load_once("probe-js", &PluginSettings::default());
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let mut found = Vec::new();
    for (index, part) in events.chunks(sizes).enumerate() {
        let outcome = instance.handle(&batch(part, (index * sizes) as u64)).expect("it behaves");
        assert_eq!(outcome.handled, part.len());
        for effect in outcome.effects.iter() {
            let EffectRef::Put { cells, .. } = effect else { panic!("{effect:?}") };
            let cells: Vec<_> = Cells::new(cells).collect::<Result<_, _>>().expect("sound cells");
            let [Cell::Timestamp(at), Cell::Timestamp(now), Cell::Text(chance), Cell::Bytes(payload)] =
                cells[..]
            else {
                panic!("{cells:?}")
            };
            found.push((at, now, chance.to_owned(), payload.to_vec()));
        }
    }
    found
}

#[test]
fn a_date_in_a_js_guest_is_the_events_own() {
    let events = [("a", "x", "1"), ("b", "x", "1"), ("c", "x", "1")];
    let found = probed(&events, 3);
    for (at, now, ..) in &found {
        assert_eq!(at, now, "however the batch is cut");
    }
    let times: BTreeSet<i64> = found.iter().map(|(at, ..)| *at).collect();
    assert_eq!(times.len(), 3);
    assert_eq!(probed(&events, 1), found);
}

/// The host's bytes are made by bindings with classes of their own; to a plugin they must be bytes all the same.
#[test]
fn the_bytes_of_an_event_can_be_written_to_a_row() {
    let payloads = ["1", "{\"text\":\"ü\"}", "\"plain and longer than what is cut\""];
    let events = payloads.map(|payload| ("a", "x", payload));
    let found: Vec<Vec<u8>> = probed(&events, 3).into_iter().map(|(.., payload)| payload).collect();
    assert_eq!(found, payloads.map(|payload| payload.as_bytes().to_vec()));
}

#[test]
fn a_js_guest_reads_the_bytes_of_a_channels_entry() {
    let found = probed(&[("a", "entry", ENTRY)], 1);
    assert_eq!(found[0].3, ENTRY_BYTES);
}

// What a plugin computes.

/// An open window of the model.
#[derive(Clone, Debug)]
struct Window {
    number: u64,
    opened: usize,
    events: u64,
    first: i64,
    last: i64,
}

/// What closed windows leave behind: the last one of each key as a row, and all of them as events.
#[derive(Debug, Default)]
struct Told {
    rows: BTreeMap<String, (u64, Value)>,
    events: Vec<Value>,
}

const QUIET: i64 = 3 * 3_600_000_000;
const AGE: i64 = 5 * 3_600_000_000;
const EVENTS_MAX: u64 = 3;
const WINDOWS_MAX: usize = 300;

fn due(window: &Window) -> i64 {
    (window.last + QUIET).min(window.first + AGE)
}

impl Told {
    fn close(&mut self, key: &str, window: &Window, reason: &str, at: i64) {
        let text = |time: i64| Micros(time).to_string();
        let values = json!({ "events": window.events, "first_at": text(window.first),
            "last_at": text(window.last), "reason": reason });
        let mut payload = values.clone();
        payload["key"] = key.into();
        self.events
            .push(json!({ "agg_id": key, "version": window.number, "at": text(at), "payload": payload }));
        self.rows.insert(key.to_owned(), (window.number, values));
    }

    /// The windows of these events by the rules that the plugin's first lines give, without any of its shortcuts.
    fn of(lines: &[String]) -> Result<Self> {
        let mut told = Self::default();
        let mut open: BTreeMap<String, Window> = BTreeMap::new();
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut latest = i64::MIN;
        for (place, line) in lines.iter().enumerate() {
            let event: Value = serde_json::from_str(line)?;
            let text = |member: &str| event[member].as_str().context("it is text");
            let key = format!("{}/{}", text("aggregate")?, text("agg_id")?);
            let at = Micros::parse(text("at")?)?.0;
            latest = latest.max(at);
            let mut over: Vec<(i64, String)> =
                open.iter().filter(|(_, w)| due(w) <= latest).map(|(key, w)| (due(w), key.clone())).collect();
            over.sort();
            for (end, key) in over {
                let window = open.remove(&key).context("it was open")?;
                let reason = if window.first + AGE < window.last + QUIET { "age" } else { "quiet" };
                told.close(&key, &window, reason, end);
            }
            let is_open = open.contains_key(&key);
            if !is_open {
                if open.len() >= WINDOWS_MAX {
                    let oldest = open.iter().min_by_key(|(_, w)| w.opened).map(|(key, _)| key.clone());
                    let oldest = oldest.context("there is one")?;
                    let window = open.remove(&oldest).context("it was open")?;
                    told.close(&oldest, &window, "limit", latest);
                }
                let number = numbers.entry(key.clone()).or_default();
                *number += 1;
                let window = Window { number: *number, opened: place, events: 0, first: at, last: at };
                open.insert(key.clone(), window);
            }
            let window = open.get_mut(&key).context("it is open")?;
            window.events += 1;
            (window.first, window.last) = (window.first.min(at), window.last.max(at));
            if window.events >= EVENTS_MAX {
                let window = open.remove(&key).context("it was open")?;
                told.close(&key, &window, "count", window.last);
            }
        }
        Ok(told)
    }
}

async fn debouncing(component: Bytes) -> Result<Embedded> {
    let host = Embedded::start_with_code_of(vec![component.clone()], |config| {
        let debounce = config.plugins.entry("debounce".into()).or_default();
        // One lane: windows of all keys share the bound, and the time.
        debounce.lanes = Some(1);
        for (name, value) in [
            ("quiet_ms", (QUIET / 1_000).to_string()),
            ("age_ms_max", (AGE / 1_000).to_string()),
            ("events_max", EVENTS_MAX.to_string()),
            ("windows_max", WINDOWS_MAX.to_string()),
        ] {
            debounce.config.insert(name.into(), value);
        }
    })
    .await?;
    host.client.deploy_bytes(component).await?.ok()?;
    Ok(host)
}

/// The batches that were told of, with what the model knows of them.
async fn told_events(client: &Client) -> Result<Vec<Value>> {
    let events = client.events("debounce.batch").await?;
    let known = |event: &Value| {
        json!({ "agg_id": event["agg_id"], "version": event["version"], "at": event["at"],
            "payload": event["payload"] })
    };
    Ok(events.iter().map(known).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debounce_tells_what_its_model_tells_of_the_flights() -> Result<()> {
    Box::pin(tells_what_the_model_tells(component("debounce").into())).await
}

/// Runs a build of debounce over flights.
pub(crate) async fn tells_what_the_model_tells(component: Bytes) -> Result<()> {
    let lines: Vec<String> = flights::lines()?.into_iter().take(10_000).collect();
    let expected = Told::of(&lines)?;
    let reasons: BTreeSet<&str> =
        expected.events.iter().filter_map(|event| event["payload"]["reason"].as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["age", "count", "limit", "quiet"]), "windows close in every way");

    let host = debouncing(component).await?;
    // A restart in the middle: what is open then is open afterwards.
    let (first, second) = lines.split_at(4_501);
    host.client.publish(upload(first)).await?;
    host.client.settle().await?;
    let host = host.restart().await?;
    host.client.publish(upload(second)).await?;
    host.client.settle().await?;

    let found = told_events(&host.client).await?;
    for (index, event) in expected.events.iter().enumerate() {
        assert_eq!(found.get(index), Some(event), "batch {index}");
    }
    assert_eq!(found.len(), expected.events.len(), "there are batches that nobody expects");
    let rows = host.client.rows("batches", "limit=1000").await?;
    assert_eq!(rows.len(), expected.rows.len());
    for row in &rows {
        let key = row["key"].as_str().context("a key")?;
        let (version, values) = expected.rows.get(key).with_context(|| format!("row {key}"))?;
        assert_eq!((&row["version"], &row["values"]), (&json!(version), values), "row {key}");
    }
    host.stop().await;
    Ok(())
}

fn upload(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

// How mistakes are told.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_js_error_names_its_line_in_the_dead_letter() {
    let source = repository().join("plugins/probe-js/src/plugin.mjs");
    let source = fs::read_to_string(source).expect("the plugin's source");
    let place = source.lines().position(|line| line.contains("value.missing.member")).expect("the mistake");
    let rig = Rig::sharing("probe-js", &PluginSettings::default());
    let events = [("a", "x", "1"), ("b", "mistake", "{}"), ("c", "loud", "1")];
    let last = rig.publish(&events).await;
    let runner = rig.run("probe-js", PluginSettings::default()).await;
    rig.done(&runner, last).await;
    assert_eq!(rig.keys("probed_js").await, ["a", "c"], "the others are handled");
    let dead = rig.dead("probe-js").await;
    let [(agg_id, reason, said)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((agg_id.as_str(), reason.as_str()), ("b", "trap"));
    assert!(said.contains("TypeError: "), "it says what: {said}");
    let line = format!("mistake@src/plugin.mjs:{}:", place + 1);
    assert!(said.contains(&line), "it says where, {line}: {said}");
    assert!(!said.contains("initializer.js") && !said.contains("millrace-js-"), "and nothing else: {said}");
}
