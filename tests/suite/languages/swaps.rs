//! Hot swaps of guests that bring an engine, while events come as fast as they are taken: nothing is lost and nothing is
//! doubled. `cargo xtask chaos --kills 0 --swaps N --plugins …` does it as often as it is told.

use millrace_tests::chaos::{difference, setup};
use millrace_tests::guests::lend_code;
use millrace_tests::swaps::{at_full_rate, builds};
use millrace_tests::workspace_binary;

const SWAPS: usize = 12;

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
