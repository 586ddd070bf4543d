//! Claims about every step of the controller: whoever ends there, or fails there, is followed by another one with the same end.

use std::sync::Arc;

use millrace::control::rollout::Progress;
use millrace::control::{ControlStore, Kind};
use millrace_tests::control::steps::{Cut, SteppedStore, Steps};

use super::stage::{GOOD, Habits, Stage};
use super::{plan, wave};

/// More than any run needs.
const ROUNDS: usize = 14;

/// What a run left behind.
#[derive(Debug, PartialEq)]
struct End {
    revision: u64,
    progress: (u32, Progress),
    kinds: Vec<Kind>,
    /// By host: what it serves, and how often it was touched.
    hosts: Vec<(String, bool, u64)>,
    marked: bool,
}

async fn run(habits: Habits, steps: &Arc<Steps>) -> End {
    let fleet = [("canary-1", "canary"), ("edge-1", "edge"), ("edge-2", "edge")];
    let mut stage = Stage::running(&fleet).await;
    stage.habits.insert("2.0.0".into(), habits);
    let waves = plan(&[wave(100, &[("tier", "canary")], 5), wave(100, &[], 5)]);
    stage.deploy("2.0.0", Some(waves)).await;

    let durable = stage.first().store.clone();
    let stepped: Arc<dyn ControlStore> =
        Arc::new(SteppedStore { inner: durable.clone(), steps: steps.clone() });
    stage.origins[0].controller = Arc::new(stage.controller(stepped, stage.board.clone()));
    let mut is_dead = false;
    for _ in 0..ROUNDS {
        tokio::select! {
            biased;
            () = steps.killed(), if !is_dead => {
                // Another one takes over, with nothing but what is durable.
                stage.origins[0].controller = Arc::new(stage.controller(durable.clone(), stage.board.clone()));
                is_dead = true;
            }
            _ = stage.step() => {}
        }
    }
    let new = stage.on("2.0.0").into_iter().map(str::to_owned).collect::<Vec<_>>();
    let (version, _) = durable.desired().await.unwrap();
    // Of one that nobody disturbs: its steps do not count.
    let mark = stage.controller(durable.clone(), stage.board.clone()).mark().await.unwrap();
    let hosts = stage.hosts.iter().map(|h| (h.name.clone(), new.contains(&h.name), h.activations)).collect();
    End {
        revision: stage.desired().await.0,
        progress: stage.progress().await,
        kinds: stage.kinds().await,
        hosts,
        marked: mark.is_some_and(|mark| mark.version == version),
    }
}

async fn every_step(habits: Habits, expected_progress: (u32, Progress)) {
    let undisturbed = Steps::all();
    let expected = run(habits, &undisturbed).await;
    assert_eq!(expected.progress, expected_progress);
    assert!(expected.marked);
    let names = undisturbed.passed();
    assert!(names.iter().any(|name| name == "after propose"), "{names:?}");
    for (at, name) in names.iter().enumerate() {
        for cut in [Cut::Kill, Cut::Fail] {
            let steps = Steps::cut(at, cut);
            let end = run(habits, &steps).await;
            assert_eq!(end, expected, "{cut:?} at step {at}, {name}");
        }
    }
}

#[tokio::test]
async fn a_controller_that_ends_anywhere_is_followed_to_the_same_end() {
    every_step(GOOD, (1, Progress::Complete)).await;
}

#[tokio::test]
async fn a_controller_that_ends_anywhere_still_takes_a_bad_version_back() {
    every_step(Habits { traps: 2, ..GOOD }, (0, Progress::RolledBack)).await;
}
