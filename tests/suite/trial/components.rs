//! The same over components, and against the native code of the same plugins.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use carrier_stats::CarrierStats;
use delay_watch::DelayWatch;
use flight_board::FlightBoard;
use millrace::cli::Exit;
use millrace::event::{EventBatch, Micros, Position, TenantId};
use millrace::plugins::trial::{Cut, Fold};
use millrace::plugins::{PluginRuntime as _, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::ProcessorFactory;
use millrace_tests::flights;
use millrace_tests::guests::guest;
use millrace_tests::handwritten::{Handwritten, Import};
use millrace_tests::native::Native;
use millrace_tests::workspace_binary;
use serde_json::Value;

use crate::commands::ran;

fn flights(count: usize) -> EventBatch {
    let mut batch = EventBatch::new(TenantId::new("default").expect("a name"));
    for line in flights::lines().expect("the flights").iter().take(count) {
        millrace::gateway::read_event(&mut batch, line.as_bytes(), Micros(0)).expect("an event");
        let last = batch.len() - 1;
        batch.set_position(last, Position(batch.len() as u64));
    }
    batch
}

#[test]
fn a_component_and_its_native_code_give_the_same() {
    let events = flights(2_000);
    let runtime = WasmRuntime::new(RuntimeOptions { instances_max: 4, ..RuntimeOptions::default() });
    let runtime = runtime.expect("an engine");
    let cases: [(&str, Box<dyn ProcessorFactory>); 3] = [
        ("flight-board", Box::new(Native::<FlightBoard>::new())),
        ("carrier-stats", Box::new(Native::<CarrierStats>::new())),
        ("delay-watch", Box::new(Native::<DelayWatch>::new())),
    ];
    for (name, native) in cases {
        let bytes = std::fs::read(guest(name)).expect("the guest is built");
        let component = runtime.load(&bytes, &|_| PluginSettings::default()).expect("it loads");
        let cut = Cut { batch_events: 250, restart_every: Some(700), tick_every: None };
        let one = Fold::new(&*component, &events).run(cut).expect("it runs");
        let other = Fold::new(&*native, &events).run(Cut::batches(1)).expect("it runs");
        assert_eq!(one.first_difference(&other), None, "{name}");
        assert!(one.events > 0 && !one.rows.is_empty(), "{name}: {} events", one.events);
    }
}

/// `millrace plugin check` of a guest, over some events of things.
async fn checked(name: &str, more: &[&str]) -> (Option<Exit>, Value) {
    let dir = tempfile::tempdir().expect("a folder");
    let events = dir.path().join("events.ndjson");
    let lines: String = (1..=30).map(event).collect();
    std::fs::write(&events, lines).expect("the folder is the test's");
    let guest = guest(name);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (guest, events) = (text(&guest), text(&events));
    let mut arguments = vec!["plugin", "check", &guest, "--events", &events, "--json"];
    arguments.extend(more);
    let (ended, said) = ran(&arguments).await;
    let report = serde_json::from_str(&said).unwrap_or_else(|_| panic!("no report: {said} {ended:?}"));
    (ended.err().map(|error| error.exit()), report)
}

fn event(number: u32) -> String {
    let (key, second) = (number % 4, number % 60);
    format!(
        "{{\"aggregate\":\"thing\",\"agg_id\":\"k{key}\",\"version\":{number},\"type\":\"thing.changed\",\
         \"at\":\"2026-01-05T08:00:{second:02}Z\",\"payload\":{{}}}}\n"
    )
}

fn found<'a>(report: &'a Value, code: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("a list");
    findings
        .iter()
        .find(|finding| finding["code"] == code)
        .unwrap_or_else(|| panic!("no {code} in {report:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_guest_that_depends_on_batch_size() {
    let (exit, report) = checked("counts_batches", &[]).await;
    assert_eq!(exit, Some(Exit::Refused), "{report:#}");
    let finding = found(&report, "batch_size");
    assert_eq!(finding["events"], 2, "{finding}");
    assert_eq!(finding["difference"]["place"], "row batch_places/k2, column effects_before", "{finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_nothing_where_nothing_is() {
    let (exit, report) = checked("tally", &[]).await;
    assert_eq!(exit, None, "{report:#}");
    assert_eq!(report["findings"], serde_json::json!([]), "{report:#}");
    assert_eq!((report["plugin"].as_str(), report["runs"].as_u64()), (Some("tally"), Some(12)));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_clock() {
    let (exit, report) = checked("tells_time", &[]).await;
    assert_eq!(exit, Some(Exit::Refused), "{report:#}");
    assert_eq!(found(&report, "clock")["grave"], true);
    let (exit, report) = checked("wants_clock", &["--grants", "clock"]).await;
    assert_eq!(exit, Some(Exit::Refused), "{report:#}");
    assert_eq!(found(&report, "grants")["grave"], false);
    assert_eq!(found(&report, "unrepeatable")["grave"], true, "what it writes is another time in each run");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_missing_grant() {
    let (exit, report) = checked("wants_clock", &[]).await;
    assert_eq!(exit, Some(Exit::Refused), "{report:#}");
    let message = found(&report, "grant_missing")["message"].as_str().expect("a sentence");
    assert!(message.contains("`clock`") && message.contains("plugins.wants-clock.grants"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_what_is_no_component() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("text.wasm");
    std::fs::write(&file, "not a component").expect("the folder is the test's");
    let (ended, said) = ran(&["plugin", "check", file.to_str().expect("UTF-8"), "--json"]).await;
    assert_eq!(ended.expect_err("it is none").exit(), Exit::Refused);
    let report: Value = serde_json::from_str(&said).expect("a report");
    assert_eq!(found(&report, "not_a_component")["grave"], true);
}

/// A host refuses it as well; its author hears of it before.
#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_a_component_of_another_world_version() {
    let dir = tempfile::tempdir().expect("a folder");
    let guest = Handwritten::new("later").import(Import::Log);
    // All of it, and what it offers alone.
    for ours in ["@0.1.0", "/handler@0.1.0"] {
        let later = guest.text().replace(ours, &ours.replace("0.1.0", "0.2.0"));
        assert_ne!(later, guest.text());
        let file = dir.path().join("later.wasm");
        std::fs::write(&file, wat::parse_str(later).expect("a good text")).expect("the folder is the test's");
        let (ended, said) = ran(&["plugin", "check", file.to_str().expect("UTF-8"), "--json"]).await;
        assert_eq!(ended.expect_err("it is of another world").exit(), Exit::Refused);
        let report: Value = serde_json::from_str(&said).expect("a report");
        assert_eq!((&report["ok"], &report["runs"]), (&false.into(), &0.into()), "{report:#}");
        let finding = found(&report, "wrong_world");
        assert_eq!(finding["grave"], true);
        let message = finding["message"].as_str().expect("a sentence");
        assert!(message.contains("version `0.2.0`; this host speaks 0.1"), "{message}");
        assert_eq!(report["world"], "millrace:processor@0.1.0", "what it speaks is in the report");
    }
    let (ended, said) = {
        let file = dir.path().join("present.wasm");
        std::fs::write(&file, guest.component()).expect("the folder is the test's");
        ran(&["plugin", "check", file.to_str().expect("UTF-8"), "--json"]).await
    };
    ended.unwrap_or_else(|error| panic!("of this world it is a good one: {error}\n{said}"));
}

/// What lies in a folder, with the number that a file keeps as long as it is the same one.
fn lying(folder: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, entry.metadata().expect("it is there").ino())
        })
        .collect()
}

/// `millrace plugin check` by somebody whose caches are here.
fn checks_with_caches_in(caches: &Path) {
    let file = guest("counter");
    let mut command = Command::new(workspace_binary("millrace"));
    let output = command.args(["plugin", "check"]).arg(file).env("XDG_CACHE_HOME", caches).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_component_that_is_checked_again_is_not_compiled_again() {
    let dir = tempfile::tempdir().expect("a folder");
    checks_with_caches_in(dir.path());
    let code = dir.path().join("millrace/tools/code");
    let first = lying(&code);
    assert!(first.keys().any(|name| name.ends_with(".cwasm")), "{first:?}");
    checks_with_caches_in(dir.path());
    assert_eq!(lying(&code), first, "the same files");
    // Another command is there, and may be writing this.
    let half = code.join("half-written");
    std::fs::write(&half, "half").expect("the folder is the test's");
    let other = File::open(&code).expect("a folder");
    other.lock_shared().expect("it can be locked");
    checks_with_caches_in(dir.path());
    assert!(half.exists());
    drop(other);
    checks_with_caches_in(dir.path());
    assert_eq!(lying(&code), first, "nobody was writing it any more");
}

#[test]
fn a_component_is_checked_where_nothing_can_be_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let caches = dir.path().join("no-folder");
    std::fs::write(&caches, "").expect("the folder is the test's");
    checks_with_caches_in(&caches);
}
