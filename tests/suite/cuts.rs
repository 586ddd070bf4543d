//! Claims about power cuts in the middle of everything a host does: the end is that of a quiet run.

use millrace_tests::chaos::{InPlay, Scenario, difference, setup};
use millrace_tests::cuts::{Journalled, without_kills};
use millrace_tests::powercut::{Action, Record, Unsynced};
use millrace_tests::workspace_binary;

const CUTS: usize = 6;

/// The guest is "chaotic": it keeps state of both kinds, emits, asks for other tries, rejects and traps.
fn scenario(events: usize) -> Scenario {
    let in_play = InPlay {
        chaotic_events: events,
        flaky_every: 40,
        bad_every: 40,
        poison_every: 80,
        shy_every: 40,
        ..InPlay::default()
    };
    let host = setup(workspace_binary("millrace"));
    without_kills(&Scenario { kills: 0, swaps: 3, resolves: 6, seed: 0xc075, in_play, host })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_during_swaps_retries_and_decisions_end_in_the_store_of_a_quiet_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let scenario = scenario(400);
    let quiet_folder = dir.path().join("quiet");
    let (quiet, run) = tokio::join!(scenario.quiet(&quiet_folder), Journalled::run(&scenario, dir.path()));
    let (quiet, run) = (quiet.expect("the quiet run ends"), run.expect("the run ends"));
    for section in ["== dead letters: 0\n", "== parked events: 0\n", "== keyed state: 0\n", "== states: 0\n"]
    {
        assert!(!quiet.contains(section), "nothing of what is in play is in the dump: {section}");
    }
    assert!(quiet.contains("echo.made"), "events were emitted");
    if let Some(difference) = difference(&quiet, &run.dump) {
        panic!("without any cut the dumps differ:\n{difference}");
    }
    for (seed, cut) in (1_u64..).zip(run.cuts(CUTS, 0xc075)) {
        for unsynced in [Unsynced::Dropped, Unsynced::Torn(seed)] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            run.goes_on(cut, unsynced, folder.path(), &quiet).await.unwrap_or_else(|why| panic!("{why:#}"));
        }
    }
}

/// Cuts at the end of a short run from which records are missing; answers what is found.
async fn found_without(forgotten: impl Fn(&Journalled, &Record) -> bool) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let scenario = Scenario { swaps: 1, resolves: 1, ..scenario(120) };
    let mut run = Journalled::run(&scenario, dir.path()).await.expect("the run ends");
    let forgotten: Vec<u64> =
        run.records().iter().filter(|record| forgotten(&run, record)).map(|record| record.end).collect();
    assert!(!forgotten.is_empty(), "there is something to forget");
    run.forget(|record| forgotten.contains(&record.end));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let found = run.goes_on(run.end(), Unsynced::Dropped, folder.path(), "").await;
    format!("{:#}", found.expect_err("something is missing"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_did_not_sync_is_seen_to_lose_what_was_acknowledged() {
    let database = |record: &Record| {
        let name = record.path.file_name().unwrap_or_default().to_string_lossy();
        matches!(record.action, Action::Sync { .. }) && name.starts_with("millrace.db")
    };
    let never = found_without(|_, record| database(record)).await;
    assert!(never.contains("lost: the plugin chaotic is not deployed"), "{never}");
    let late = found_without(|run, record| {
        database(record) && record.end > run.first_resolve().expect("dead letters were decided")
    });
    let late = late.await;
    assert!(late.contains("lost: dead letter"), "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_did_not_sync_the_folder_of_components_is_seen_to_lose_them() {
    let found = found_without(|_, record| {
        matches!(record.action, Action::SyncFolder { .. }) && record.path.ends_with("artifacts")
    });
    let found = found.await;
    assert!(found.contains("chaotic does not run"), "{found}");
}
