//! Whatever fails, whoever intervenes: each key's events are applied in stream order, and exactly once.
//!
//! Random events (good ones, ones that ask for retries, are rejected, or make the instance fall, also in
//! `snapshot`), over several lanes and keys, while commits fail, the processor is restarted and swapped, and
//! dead letters are replayed and discarded at random. The committed state says which events were applied, in
//! which order. A failing run names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::event::Position;
use millrace::processors::{ProcessorSettings, Resolved, Runner, Verdict};
use millrace_tests::faulty::{Fault, Faulty};
use millrace_tests::scene::{Scene, scripted};
use millrace_tests::scripted::{Scripted, Watch};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

/// Runs in the ordinary suite; `MILLRACE_ORDER_RUNS` asks for more.
const RUNS: u64 = 12;
const ROUNDS: usize = 12;

/// What was published: key to (version, type), in order.
type Published = BTreeMap<String, Vec<(u64, &'static str)>>;

struct Run {
    rng: StdRng,
    scene: Scene,
    faulty: Arc<Faulty>,
    watch: Arc<Watch>,
    runner: Runner,
    settings: ProcessorSettings,
    version: u64,
    published: Published,
    /// Versions of events that were given up.
    discarded: BTreeSet<u64>,
    /// Versions of events that may have been given up.
    undecided: BTreeSet<u64>,
    last: Position,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut made = None;
        let scene = Scene::with_checkpoints(|store| {
            let wrapped = Arc::new(Faulty::new(store, Fault::NotWritten, u64::MAX));
            made = Some(Arc::clone(&wrapped));
            wrapped
        })
        .await;
        let settings = ProcessorSettings {
            lanes: rng.random_range(1..=3),
            retries_max: 2,
            retry_wait_min: Duration::from_millis(1),
            retry_wait_max: Duration::from_millis(4),
            commit_events: rng.random_range(1..=30),
            parked_events_max: rng.random_range(6..=60),
            breaker_failures_max: rng.random_range(3..=20),
            breaker_wait_min: Duration::from_millis(1),
            // In half of the runs, instances go whenever there is nothing to do.
            idle_max: Duration::from_millis(if rng.random() { 1 } else { 60_000 }),
            breaker_wait_max: Duration::from_millis(4),
            ..ProcessorSettings::default()
        };
        let (runner, watch) = scene.start(scripted(), settings.clone());
        let faulty = made.expect("it was made");
        let (published, discarded, undecided) = (Published::new(), BTreeSet::new(), BTreeSet::new());
        let last = Position::START;
        Self {
            rng,
            scene,
            faulty,
            watch,
            runner,
            settings,
            version: 1,
            published,
            discarded,
            undecided,
            last,
        }
    }

    async fn publish(&mut self) {
        let base = self.scene.last().0;
        let mut events = Vec::new();
        for index in 0..self.rng.random_range(1..=25_u64) {
            let key = format!("k{}", self.rng.random_range(0..6));
            let (event_type, payload) = match self.rng.random_range(0..100) {
                0..70 => ("add", "1"),
                70..80 => ("retry", "1"),
                80..86 => ("retry", "4"),
                86..92 => ("reject", "1"),
                92..97 => ("trap", "1"),
                _ => ("trap-in-snapshot", "1"),
            };
            self.published.entry(key.clone()).or_default().push((base + index + 1, event_type));
            events.push((key, event_type, payload));
        }
        let events: Vec<_> = events.iter().map(|(key, of, payload)| (key.as_str(), *of, *payload)).collect();
        self.last = self.scene.publish("a", &events).await;
    }

    async fn disturb(&mut self) {
        match self.rng.random_range(0..10) {
            0 => self.restart().await,
            1..3 => {
                let fault = if self.rng.random() { Fault::NotWritten } else { Fault::AnswerLost };
                self.faulty.arm(fault, self.rng.random_range(1..4));
            }
            3..5 => {
                self.version += 1;
                let next =
                    Scripted { watch: Arc::clone(&self.watch), ..Scripted::new("scripted", self.version) };
                self.runner.swap(Arc::new(next)).await.expect("a good version takes over");
            }
            5..8 => {
                let verdict = if self.rng.random() { Verdict::Replay } else { Verdict::Discard };
                self.decide_one(verdict).await;
            }
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }

    async fn restart(&mut self) {
        // Half of the time cut off where it stands.
        let deadline = if self.rng.random() { Duration::from_secs(10) } else { Duration::ZERO };
        self.runner.stop(deadline).await;
        self.runner = self.scene.start_again(&self.watch, self.version, self.settings.clone());
    }

    /// A random open letter. Whoever is interrupted looks again.
    async fn decide_one(&mut self, verdict: Verdict) {
        let letters = self.scene.dead().await;
        if letters.is_empty() {
            return;
        }
        let letter = letters[self.rng.random_range(0..letters.len())].clone();
        let version = letter.event.get(0).version;
        match self.runner.resolve(letter.clone(), verdict).await {
            Ok(Resolved::Discarded { .. }) => drop(self.discarded.insert(version)),
            Ok(Resolved::Replayed { out_of_order, .. }) => {
                assert!(!out_of_order, "every letter holds its key")
            }
            Ok(Resolved::FailedAgain { .. }) => {}
            // The run ended before it was told; its commit may be written or not, even a moment later.
            Err(_) if verdict == Verdict::Discard => drop(self.undecided.insert(version)),
            Err(_) => {}
        }
    }

    /// Without faults, until nothing is left to decide.
    async fn finish(&mut self, seed: u64) {
        self.faulty.arm(Fault::NotWritten, u64::MAX);
        let begin = Instant::now();
        loop {
            let status = self.runner.status();
            let waits = status.tasks.iter().any(|task| task.parked_events + task.held_keys > 0);
            if status.done_through >= self.last && !waits && self.scene.dead().await.is_empty() {
                return;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "seed {seed} does not end: {status:?}, last {}, letters {:?}",
                self.last,
                self.scene.dead().await
            );
            self.decide_one(Verdict::Discard).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn check(&self, seed: u64) {
        let applied = self.scene.applied().await;
        for (key, events) in &self.published {
            let versions = applied.get(key).cloned().unwrap_or_default();
            assert!(
                versions.windows(2).all(|pair| pair[0] < pair[1]),
                "seed {seed}: {key} was applied out of order or twice: {versions:?}"
            );
            let never = ["reject", "trap", "trap-in-snapshot"];
            let expected: Vec<u64> = events
                .iter()
                .filter(|(version, of)| !never.contains(of) && !self.discarded.contains(version))
                .filter(|(version, _)| !self.undecided.contains(version) || versions.contains(version))
                .map(|(version, _)| *version)
                .collect();
            assert_eq!(versions, expected, "seed {seed}: {key}");
        }
        let counted = self.scene.counts("a").await;
        for (key, versions) in &applied {
            let count = i64::try_from(versions.len()).expect("test runs are short");
            assert_eq!(counted.get(key), Some(&count), "seed {seed}: the row of {key} is that of its state");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_keys_events_are_applied_in_order_and_once_whatever_fails() {
    let runs = std::env::var("MILLRACE_ORDER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let first = std::env::var("MILLRACE_ORDER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut seen = [0_u64; 3];
    for seed in first..first + runs {
        let mut run = Run::new(seed).await;
        for _ in 0..ROUNDS {
            run.publish().await;
            run.disturb().await;
        }
        run.finish(seed).await;
        run.check(seed).await;
        let counts = run.runner.status().counts;
        seen = [seen[0] + counts.parkings, seen[1] + counts.traps, seen[2] + run.discarded.len() as u64];
        assert!(run.runner.stop(Duration::from_secs(60)).await);
    }
    assert!(seen.iter().all(|count| *count > 0), "parked, fell, discarded: {seen:?}");
}
