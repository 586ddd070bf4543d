//! Hot swaps of guests that bring an engine, while events come as fast as they are taken: nothing is lost and nothing is
//! doubled. `cargo xtask chaos --kills 0 --swaps N --plugins …` does it as often as it is told.

use millrace::event::{EventBatch, Micros, Position};
use millrace::gateway::read_event;
use millrace::plugins::PluginSettings;
use millrace::plugins::trial::{Cut, Fold, Folded};
use millrace_tests::chaos::{difference, setup};
use millrace_tests::entries;
use millrace_tests::guests::lend_code;
use millrace_tests::swaps::{PLUGINS, at_full_rate, builds, has_taken, side_by_side};
use millrace_tests::workspace_binary;
use serde_json::json;

use crate::plugins::rig::{load_once, tenant};

const SWAPS: usize = 6;

/// The guest keeps a state and entries, writes rows and emits; the dump has all of it.
async fn swapped(plugin: &str, table: &str, emitted: &str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let builds = builds(plugin).expect("the guest is built");
    for host in ["swapped", "quiet"] {
        lend_code(&dir.path().join(host), &builds).expect("the folder is the test's");
    }
    let host = setup(workspace_binary("millrace"));
    let found = at_full_rate(&host, &[plugin], SWAPS, dir.path(), |_| {}).await.expect("the run ends");
    assert_eq!(found.swaps, SWAPS);
    if let Some(difference) = difference(&found.quiet, &found.swapped) {
        panic!("the dumps differ:\n{difference}");
    }
    for section in [format!("== rows_{table}: "), "== states: ".to_owned(), "== keyed state: ".to_owned()] {
        assert!(found.quiet.contains(&section), "the dump has {section}");
        assert!(!found.quiet.contains(&format!("{section}0\n")), "something is in {section}");
    }
    assert!(found.quiet.contains(emitted), "events of type {emitted} are in the dump");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_of_a_js_guest_at_full_rate_lose_and_double_nothing() {
    swapped("debounce", "batches", "debounce.batch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_of_a_python_guest_at_full_rate_lose_and_double_nothing() {
    swapped("hostile-python", "seen_python", "hostile-python.twice").await;
}

// What chaos tells by.

#[test]
fn a_run_of_swaps_fails_over_a_plugin_that_takes_nothing_or_has_no_rows() {
    let status = |events: u64| {
        let tables = json!([{ "name": "turns" }, { "name": "passed" }]);
        json!({ "name": "tracer", "counters": { "events": events }, "manifest": { "tables": tables } })
    };
    let (empty, filled) = ("== rows_turns: 0\n== rows_passed: 0\n", "== rows_turns: 0\n== rows_passed: 10\n");
    has_taken(&status(400), filled).expect("it has taken events, and has rows");
    let nothing = has_taken(&status(0), filled).expect_err("it took none").to_string();
    assert!(nothing.contains("the swaps of tracer show nothing: it took none of the events"), "{nothing}");
    let rowless = has_taken(&status(400), empty).expect_err("it has no rows").to_string();
    assert!(rowless.contains("it took 400 events, and none of its 2 tables has a row"), "{rowless}");
}

#[test]
fn a_plugin_that_takes_what_others_emit_is_swapped_alone() {
    assert_eq!(side_by_side(&PLUGINS), [PLUGINS.to_vec()]);
    assert_eq!(side_by_side(&["debounce", "turn-tracer"]), [["debounce"], ["turn-tracer"]]);
    let mixed = side_by_side(&["debounce", "flight-board", "delay-watch"]);
    assert_eq!(mixed, [vec!["flight-board", "delay-watch"], vec!["debounce"]]);
}

/// What the tracer makes of the entries of these numbers.
fn traced(numbers: &[u64]) -> Folded {
    let mut events = EventBatch::new(tenant());
    for (index, number) in numbers.iter().enumerate() {
        read_event(&mut events, entries::line(*number).as_bytes(), Micros(0)).expect("an event");
        events.set_position(index, Position(index as u64 + 1));
    }
    let tracer = load_once("turn-tracer", &PluginSettings::default());
    Fold::new(&*tracer, &events).run(Cut::batches(50)).expect("it begins")
}

#[test]
fn a_lost_and_a_doubled_entry_show_in_what_the_tracer_leaves() {
    let all: Vec<u64> = (0..180).collect();
    let whole = traced(&all);
    assert_eq!((whole.events, whole.letters.len()), (180, 0), "it takes all of them");
    assert_eq!(whole.emitted.len(), 30, "each conversation's turn has ended, and none at a tick");
    let left = |folded: &Folded| (folded.rows.clone(), folded.emitted.len(), folded.state.clone());
    assert_eq!(left(&traced(&all)), left(&whole));
    // One of each kind, in the order in which a conversation has them.
    for (place, number) in [60, 70, 80, 90, 100, 110].into_iter().enumerate() {
        let mut lost = all.clone();
        lost.remove(number);
        assert_ne!(left(&traced(&lost)), left(&whole), "entry {number} is lost");
        // A turn knows its entries; what is in none is counted.
        if place % 2 == 1 {
            let mut doubled = all.clone();
            doubled.insert(number, all[number]);
            assert_ne!(left(&traced(&doubled)), left(&whole), "entry {number} is doubled");
        }
    }
}
