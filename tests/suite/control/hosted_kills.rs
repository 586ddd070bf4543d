//! Claims about `kill -9` of whole hosts at named points: around every sync of the store, the feed, the copies and the code
//! while a change goes its way. Whoever comes after it makes the same of it as if nothing had happened.
//!
//! The steps of publisher, applier and reconciler are tried one by one in `kills.rs`, in one process. Here a preloaded library
//! (`tests/killpoint`) ends a process for good, with its threads and whatever they were at. Points are counted until a change
//! comes to its end before the next one is reached, so that none is left out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::control::changes::Deploy;
use millrace::control::{ControlEvent, ControlSource as _, ControlVersion, EventId, Received};
use millrace_tests::control_events::digest_of;
use millrace_tests::guests::variant;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::powercut::build_preloaded;

use super::hosted_fleet::{
    Fleet, PATIENCE, aside, converged, eventually, is_converged, next, push, same_state, serving,
    try_hand_in, version,
};

const BOTH: [&str; 2] = ["a", "b"];

/// More than a change has of any kind.
const POINTS_MAX: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Origin,
    Listener,
}

/// Calls before and after which a host is killed: those of a kind, on files whose path holds a text.
struct Place {
    call: &'static str,
    path: &'static str,
    /// A change has so many of them at least.
    least: usize,
}

/// Which builds are deployed.
#[derive(Clone, Copy)]
enum Builds {
    /// Two take turns, which both hosts have.
    Known,
    /// Another one each time, which nobody has.
    New,
}

/// An origin and a host that listens, one of which is killed.
struct Scene {
    fleet: Fleet,
    plan: PathBuf,
    victim: Victim,
    builds: Builds,
    a: HostProcess,
    b: HostProcess,
    /// What was told, in its order.
    told: Vec<EventId>,
    runs: usize,
}

impl Scene {
    async fn new(victim: Victim, builds: Builds) -> Self {
        let fleet = Fleet::new();
        let plan = fleet.path("plan");
        let shim = build_preloaded("killpoint", &fleet.path("")).unwrap();
        let under = |mut setup: Setup, named: Victim| {
            if named == victim {
                let env = [("LD_PRELOAD", shim.clone()), ("KILLPOINT_PLAN", plan.clone())];
                setup.env.extend(env.map(|(name, value)| (name.into(), OsString::from(value))));
            }
            setup
        };
        let a = fleet.start("a", under(fleet.origin("a"), Victim::Origin)).await;
        let b = fleet.start("b", under(fleet.setup("b", "edge"), Victim::Listener)).await;
        let mut scene = Self { fleet, plan, victim, builds, a, b, told: Vec::new(), runs: 0 };
        // Both builds are there, and compiled.
        for _ in 0..2 {
            assert!(!scene.go(None).await, "nobody is killed without a plan");
        }
        scene
    }

    fn victim(&mut self) -> &mut HostProcess {
        match self.victim {
            Victim::Origin => &mut self.a,
            Victim::Listener => &mut self.b,
        }
    }

    /// Makes one change, with a host that is killed at a point. Answers whether the point was reached.
    async fn go(&mut self, point: Option<&str>) -> bool {
        self.runs += 1;
        let number = match self.builds {
            Builds::Known => 1 + self.runs % 2,
            Builds::New => self.runs,
        };
        let build = variant(number, "good");
        push(&self.a, &build).await;
        let deploy = Deploy { spec: version(&build), plan: None, targets: None };
        let event = next(&self.a, |present, id| present.deploy(id, deploy).unwrap()).await;
        self.told.push(event.id().clone());
        if let Some(point) = point {
            let staged = self.plan.with_extension("staged");
            std::fs::write(&staged, format!("{} {point}\n", self.runs)).unwrap();
            std::fs::rename(staged, &self.plan).unwrap();
        }
        let is_killed = self.until_it_ends_or_is_done(&event).await;
        if point.is_some() {
            std::fs::remove_file(&self.plan).unwrap();
        }
        let is_killed = self.victim().has_ended().unwrap() || is_killed;
        if is_killed {
            self.victim().kill_and_start().await.unwrap();
        }
        let revision = event.unsigned().revision;
        // Whoever had no answer asks again.
        let (status, answer) = try_hand_in(&self.a, &event).await.expect("nobody is killed any more");
        assert_eq!((status, answer["revision"].as_u64()), (202, Some(revision)), "{point:?}: {answer}");
        converged(&self.a, &BOTH, revision).await;
        self.is_as_if_nothing_had_happened(point, &digest_of(&build)).await;
        is_killed
    }

    async fn until_it_ends_or_is_done(&mut self, event: &ControlEvent) -> bool {
        let (begun, revision) = (Instant::now(), event.unsigned().revision);
        let mut is_answered = false;
        loop {
            if self.victim().has_ended().unwrap() {
                return true;
            }
            if !is_answered {
                is_answered = try_hand_in(&self.a, event).await.is_some_and(|(status, _)| status == 202);
            } else if let Ok(seen) = self.a.get("/v1/fleet/status").await
                && is_converged(&seen, &BOTH, revision)
            {
                return false;
            }
            assert!(begun.elapsed() < PATIENCE, "neither end comes: {}{}", self.a.said(), self.b.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn is_as_if_nothing_had_happened(&self, point: Option<&str>, digest: &str) {
        let told = |seen: &serde_json::Value| seen["waiting"] == 0;
        eventually("all is told", &self.a, "/v1/fleet/outbox", told).await;
        let mut states = Vec::new();
        for host in [&self.a, &self.b] {
            assert_eq!(serving(host).await, digest, "{point:?}");
            assert_eq!(aside(host).await, Vec::<String>::new(), "{point:?}");
            states.push(host.get("/v1/fleet/self").await.unwrap()["state_digest"].clone());
        }
        assert_eq!(states[0], states[1], "{point:?}");
        let feed = FileFeed::open(FileFeedOptions::new(self.fleet.path("feed"))).unwrap();
        let polled = feed.poll(ControlVersion(0), 1_000, Duration::ZERO).await.unwrap();
        let ids: Vec<EventId> = polled
            .events
            .into_iter()
            .map(|entry| match entry {
                Received::Event { event, .. } => event.id().clone(),
                broken @ Received::Broken { .. } => panic!("{point:?}: {broken:?}"),
            })
            .collect();
        assert_eq!(ids, self.told, "{point:?}: each is in the feed once, in its order");
    }

    /// Kills before and after each call of these places.
    async fn every_point_is_survived(mut self, places: &[Place]) {
        for Place { call, path, least } in places {
            for when in ["before", "after"] {
                let mut reached = 0;
                while self.go(Some(&format!("{when} {call} {} {path}", reached + 1))).await {
                    reached += 1;
                    assert!(reached < POINTS_MAX, "there is no end to `{when} {call} {path}`");
                }
                assert!(reached >= *least, "`{when} {call} {path}` was reached {reached} times");
            }
        }
        let last = self.told.len() as u64;
        for host in [&self.a, &self.b] {
            same_state(host, last).await;
        }
    }
}

/// The event is proposed, claimed, settled and applied, and each phase is written down.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_killed_at_any_sync_of_its_store_is_followed_by_the_same_end() {
    let scene = Scene::new(Victim::Origin, Builds::Known).await;
    scene.every_point_is_survived(&[Place { call: "sync", path: "/control.db-wal", least: 5 }]).await;
}

/// The event is staged, synced and named, its id leads to it, and the head says so. An id is noted without data of its own,
/// so what is written and synced in the staging folder is the event, and what is written beside it the head.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_killed_anywhere_in_the_feed_is_followed_by_the_same_end() {
    let scene = Scene::new(Victim::Origin, Builds::Known).await;
    let places = [
        Place { call: "write", path: "/feed/staging/", least: 2 },
        Place { call: "sync", path: "/feed/staging/", least: 1 },
        Place { call: "sync", path: "/feed/events", least: 1 },
        Place { call: "sync", path: "/feed/ids", least: 1 },
    ];
    scene.every_point_is_survived(&places).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_at_any_sync_of_its_store_is_followed_by_the_same_end() {
    let scene = Scene::new(Victim::Listener, Builds::Known).await;
    scene.every_point_is_survived(&[Place { call: "sync", path: "/control.db-wal", least: 4 }]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_while_it_fetches_is_followed_by_the_same_end() {
    let scene = Scene::new(Victim::Listener, Builds::New).await;
    scene.every_point_is_survived(&[Place { call: "sync", path: "/artifact-copies/", least: 2 }]).await;
}

/// What was fetched becomes code, then a deployment.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_while_it_compiles_and_deploys_is_followed_by_the_same_end() {
    let scene = Scene::new(Victim::Listener, Builds::New).await;
    let places = [
        Place { call: "sync", path: "/precompiled", least: 2 },
        Place { call: "sync", path: "/millrace.db-wal", least: 1 },
    ];
    scene.every_point_is_survived(&places).await;
}
