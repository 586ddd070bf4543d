//! Claims about a host that is killed again and again: the result is that of a quiet run.

use millrace_tests::chaos::{InPlay, Scenario, Storm, difference, setup};
use millrace_tests::guests::lend_code;
use millrace_tests::host::Setup;
use millrace_tests::swaps::{PLUGINS, at_full_rate, builds};
use millrace_tests::workspace_binary;

fn host() -> Setup {
    setup(workspace_binary("millrace"))
}

/// Runs a scenario both ways; answers the dump that both have left.
async fn same_as_quiet(scenario: &Scenario) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let [quiet, stormy] = ["quiet", "stormy"].map(|name| dir.path().join(name));
    // Kills come within milliseconds of an upload, and not while a build is compiled.
    let builds = scenario.builds().expect("the guests are built");
    for data in [&quiet, &stormy] {
        lend_code(data, &builds).expect("the folder is the test's");
    }
    let quiet = scenario.quiet(&quiet).await.expect("the quiet run ends");
    let stormy = scenario.stormy(&stormy, &mut |_| Ok(())).await;
    let (stormy, Storm { kills, swaps, resolves, .. }) = stormy.expect("the stormy run ends");
    assert_eq!((kills, swaps, resolves), (scenario.kills, scenario.swaps, scenario.resolves));
    if let Some(difference) = difference(&quiet, &stormy) {
        panic!("the dumps differ:\n{difference}");
    }
    quiet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_five_kills_and_twenty_swaps_leave_the_store_of_a_quiet_run() {
    let in_play = InPlay { flights: usize::MAX, ..InPlay::default() };
    let scenario = Scenario { kills: 25, swaps: 20, resolves: 0, seed: 0x5eed, in_play, host: host() };
    let dump = same_as_quiet(&scenario).await;
    assert!(dump.contains("== rows_flights: 26968\n"), "the dump holds the flights");
}

/// The guest is "chaotic": it keeps state of both kinds, emits, asks for other tries, rejects and traps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_during_retries_decided_dead_letters_traps_and_emitted_events_leave_the_store_of_a_quiet_run() {
    let in_play = InPlay {
        chaotic_events: 6_000,
        flaky_every: 200,
        bad_every: 300,
        poison_every: 600,
        shy_every: 300,
        ..InPlay::default()
    };
    let scenario = Scenario { kills: 25, swaps: 10, resolves: 10, seed: 0xc4a05, in_play, host: host() };
    let dump = same_as_quiet(&scenario).await;
    for section in ["== dead letters: 0\n", "== keyed state: 0\n", "== states: 0\n"] {
        assert!(!dump.contains(section), "nothing of what is in play is in the dump: {section}");
    }
    assert!(dump.contains("echo.made"), "events were emitted");
}

/// Instances and code go and come back all the time, in the midst of everything but events that are tried again:
/// the guest counts their tries in memory only, which goes with its instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_a_host_whose_plugins_are_idle_between_any_two_events_leave_the_store_of_a_quiet_run() {
    let in_play = InPlay { chaotic_events: 800, bad_every: 150, poison_every: 300, ..InPlay::default() };
    let host = host().set("processors.task_idle_ms_max=1");
    let scenario = Scenario { kills: 4, swaps: 3, resolves: 2, seed: 0x1d1e, in_play, host };
    let dump = same_as_quiet(&scenario).await;
    assert!(dump.contains("echo.made"), "events were emitted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_one_swaps_at_full_rate_lose_and_double_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let of = |plugin: &&str| builds(plugin).expect("the guest is built");
    let builds: Vec<_> = PLUGINS.iter().flat_map(of).collect();
    for host in ["swapped", "quiet"] {
        lend_code(&dir.path().join(host), &builds).expect("the folder is the test's");
    }
    let found = at_full_rate(&host(), &PLUGINS, 17, dir.path(), |_| {}).await.expect("the run ends");
    assert_eq!(found.swaps, 51);
    if let Some(difference) = difference(&found.quiet, &found.swapped) {
        panic!("the dumps differ:\n{difference}");
    }
    assert!(!found.quiet.contains("== rows_flights: 0\n"), "the dump holds the flights");
}

#[test]
fn a_difference_between_dumps_names_section_and_line() {
    assert_eq!(difference("== rows: 1\na\n", "== rows: 1\na\n"), None);
    let text = difference("== rows: 2\na\nb\n", "== rows: 2\na\na\n").expect("they differ");
    assert_eq!(text, "+ == rows: a\n- == rows: b\n");
}
