//! Claims about ends in the middle: at every step that touches something durable the host is killed, and the next one comes
//! to the same end; at every step something fails once, and the end is the same.

use millrace_tests::control::steps::Cut;

use super::*;

/// What a host has to get through.
#[derive(Clone, Copy, Debug)]
enum Way {
    First,
    Over,
    Bad,
    Paused,
    Resumed,
    Removed,
    Retired,
    Tripped,
    Config,
}

const WAYS: [Way; 9] = [
    Way::First,
    Way::Over,
    Way::Bad,
    Way::Paused,
    Way::Resumed,
    Way::Removed,
    Way::Retired,
    Way::Tripped,
    Way::Config,
];

/// What is left when all is done.
#[derive(Debug, PartialEq)]
struct End {
    phase: Option<Phase>,
    code: Option<String>,
    serving: Option<String>,
    now: Option<(String, bool)>,
    settings: Option<PluginSettings>,
    pinned: Vec<(String, String)>,
}

impl Way {
    /// What was there before.
    async fn prepare(self, scene: &mut Scene) {
        let before = match self {
            Self::First => return,
            Self::Resumed => about("board", Kind::Paused, paused(scene.spec("board 1")), 1),
            _ => scene.deployed("board 1", 1),
        };
        scene.apply(before).await;
        scene.start();
        let phase = if matches!(self, Self::Resumed) { Phase::Paused } else { Phase::Active };
        scene.reaches("board", 1, phase).await;
        scene.kill().await;
    }

    async fn begin(self, scene: &Scene) {
        let config = br#"{"mode":"other"}"#;
        scene.supply.put(config);
        let event = match self {
            Self::First | Self::Over => scene.deployed("board 2", 2),
            Self::Bad => scene.deployed("board 2 state", 2),
            Self::Tripped => scene.over(running(scene.spec("board 2 traps")), "board 1", 2),
            Self::Paused => about("board", Kind::Paused, paused(scene.spec("board 2")), 2),
            Self::Resumed => about("board", Kind::Resumed, running(scene.spec("board 1")), 2),
            Self::Removed => about("board", Kind::Removed, removed(), 2),
            Self::Retired => {
                let targets = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
                let desired = Desired { targets, ..running(scene.spec("board 1")) };
                about("board", Kind::Deployed, desired, 2)
            }
            Self::Config => {
                let spec = PluginSpec { config: Some(component("board", config)), ..scene.spec("board 1") };
                about("board", Kind::ConfigChanged, running(spec), 2)
            }
        };
        scene.apply(event).await;
    }

    async fn is_done(self, scene: &Scene) -> bool {
        let row = scene.row("board").await;
        let is = |phase| {
            let is_aside = phase == Phase::Quarantined;
            row.as_ref()
                .is_some_and(|row| (row.revision, row.phase, row.reason.is_some()) == (2, phase, is_aside))
        };
        match self {
            Self::First | Self::Over | Self::Resumed | Self::Config => is(Phase::Active),
            Self::Paused => is(Phase::Paused),
            Self::Bad => is(Phase::Quarantined),
            Self::Tripped => is(Phase::Quarantined) && scene.now("board") == runs("1"),
            Self::Removed => row.is_none() && scene.now("board").is_none(),
            Self::Retired => is(Phase::Retired),
        }
    }

    async fn end(self, scene: &Scene) -> End {
        let row = scene.row("board").await;
        End {
            phase: row.as_ref().map(|row| row.phase),
            code: row.as_ref().and_then(|row| row.reason.clone()).map(|(code, _)| code),
            serving: row.and_then(|row| row.serving),
            now: scene.now("board"),
            settings: scene.plugins.deployment("board").and_then(|deployment| deployment.settings),
            pinned: scene.supply.pinned(),
        }
    }

    /// Answers the end, and the steps that were passed until it was reached.
    async fn go(self, cut: Option<(usize, Cut)>) -> (End, Vec<String>) {
        let mut scene = Scene::new();
        // Whoever traps does so at the first look, so that the steps are always the same.
        let poll =
            if matches!(self, Self::Tripped) { Duration::from_millis(1) } else { scene.options.breaker_poll };
        scene.options.breaker_poll = poll;
        self.prepare(&mut scene).await;
        let steps = cut.map_or_else(Steps::all, |(at, cut)| Steps::cut(at, cut));
        if matches!(cut, Some((_, Cut::Fail))) {
            scene.plugins.be_impatient();
        }
        self.begin(&scene).await;
        scene.start_with(&steps);
        let killed = steps.killed();
        tokio::pin!(killed);
        let begun = Instant::now();
        let is_killed = loop {
            if self.is_done(&scene).await {
                break false;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{self:?}, cut {cut:?}: waited a minute");
            tokio::select! {
                () = &mut killed => break true,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        };
        if is_killed {
            scene.kill().await;
            scene.start();
        }
        let passed = steps.passed();
        scene.kill().await;
        // Whoever comes after it finds nothing to do.
        let after = Steps::all();
        scene.start_with(&after);
        let begun = Instant::now();
        while !(self.is_done(&scene).await && after.passed().iter().any(|step| step == "after show")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{self:?}, cut {cut:?}: waited a minute");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        scene.kill().await;
        (self.end(&scene).await, passed)
    }
}

async fn same_end_after(cut: Cut) {
    for way in WAYS {
        let (expected, steps) = way.go(None).await;
        assert!(steps.len() > 8, "{way:?} has steps: {steps:?}");
        for at in 0..steps.len() {
            let (end, passed) = way.go(Some((at, cut))).await;
            assert_eq!(end, expected, "{way:?}, cut at {at} of {steps:?}, after {:?}", passed.last());
        }
    }
}

#[tokio::test]
async fn whoever_is_killed_at_any_step_is_followed_by_the_same_end() {
    same_end_after(Cut::Kill).await;
}

#[tokio::test]
async fn a_step_that_fails_once_changes_nothing_in_the_end() {
    same_end_after(Cut::Fail).await;
}
