//! Claims about hosts on a full disk: of the feed, of an origin, of a host that listens. What runs goes on running, nothing
//! that was taken is lost, and it is over when it is over.

use std::ffi::OsString;
use std::path::PathBuf;

use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::control::{ControlSource as _, ControlVersion};
use millrace_tests::control_events::digest_of;
use millrace_tests::guests::variant;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::powercut::build_preloaded;

use super::hosted_fleet::{
    Fleet, aside, converged, counted, deploy, elsewhere, eventually, hand_in, push, same_state, serving,
    until_said, version,
};

const BOTH: [&str; 2] = ["a", "b"];

/// A folder of a fleet in which nothing can grow while a file exists.
struct Disk {
    shim: PathBuf,
    dir: PathBuf,
    flag: PathBuf,
}

impl Disk {
    fn of(fleet: &Fleet, folder: &str) -> Self {
        let dir = fleet.path(folder);
        std::fs::create_dir(&dir).unwrap();
        let shim = build_preloaded("fulldisk", &fleet.path("")).unwrap();
        Self { shim, dir, flag: fleet.path("full") }
    }

    /// A host to which it is full.
    fn under(&self, mut setup: Setup) -> Setup {
        let env = [("LD_PRELOAD", &self.shim), ("FULLDISK_DIR", &self.dir), ("FULLDISK_FLAG", &self.flag)];
        setup.env.extend(env.map(|(name, value)| (name.into(), OsString::from(value))));
        setup
    }

    fn fill(&self) {
        std::fs::write(&self.flag, "").unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(&self.flag).unwrap();
    }
}

/// Both run the first of these builds.
async fn both_run(a: &HostProcess, builds: &[Vec<u8>]) {
    for build in builds {
        push(a, build).await;
    }
    let revision = deploy(a, version(&builds[0]), None).await;
    converged(a, &BOTH, revision).await;
}

fn builds() -> [Vec<u8>; 2] {
    [variant(1, "good"), variant(2, "good")]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_on_a_full_disk_gets_every_change_once_there_is_room() {
    let fleet = Fleet::new();
    let disk = Disk::of(&fleet, "feed");
    let a = fleet.start("a", disk.under(fleet.origin("a"))).await;
    let b = fleet.start("b", fleet.setup("b", "edge")).await;
    let builds = builds();
    both_run(&a, &builds).await;
    disk.fill();
    // It is durable in the outbox when it is answered.
    let revision = deploy(&a, version(&builds[1]), None).await;
    until_said(&a, "a control event is not in the feed yet").await;
    assert!(a.said().contains("disk_full"), "{}", a.said());
    let outbox = a.get("/v1/fleet/outbox").await.unwrap();
    assert_eq!((outbox["waiting"].as_u64(), outbox["dead"].as_u64()), (Some(1), Some(0)), "{outbox}");
    for host in [&a, &b] {
        assert_eq!(serving(host).await, digest_of(&builds[0]), "what runs goes on");
        assert_eq!(counted(host, 1).await, 1);
    }
    disk.free();
    converged(&a, &BOTH, revision).await;
    for host in [&a, &b] {
        assert_eq!(serving(host).await, digest_of(&builds[1]));
        assert_eq!(aside(host).await, Vec::<String>::new());
        same_state(host, 2).await;
    }
    let feed = FileFeed::open(FileFeedOptions::new(fleet.path("feed"))).unwrap();
    let polled = feed.poll(ControlVersion(0), 10, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.len(), 2, "each is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_on_a_full_disk_refuses_changes_and_loses_none_that_it_took() {
    let fleet = Fleet::new();
    let disk = Disk::of(&fleet, "a");
    let a = fleet.start("a", disk.under(fleet.origin("a"))).await;
    let b = fleet.start("b", fleet.setup("b", "edge")).await;
    let builds = builds();
    both_run(&a, &builds).await;
    disk.fill();
    let mut taken = 0;
    let refused = loop {
        let event = elsewhere(&format!("p{taken}"), 1);
        let (status, answer) = hand_in(&a, &event).await;
        if status != 202 {
            assert_eq!((status, answer["code"].as_str()), (507, Some("disk_full")), "{answer}");
            break event;
        }
        taken += 1;
        assert!(taken < 10_000, "a full disk takes everything");
    };
    for host in [&a, &b] {
        assert_eq!(serving(host).await, digest_of(&builds[0]), "what runs goes on");
    }
    disk.free();
    let (status, answer) = hand_in(&a, &refused).await;
    assert_eq!(
        (status, answer["repeated"].as_bool()),
        (202, Some(false)),
        "nothing of it was kept: {answer}"
    );
    let revision = deploy(&a, version(&builds[1]), None).await;
    converged(&a, &BOTH, revision).await;
    eventually("all is told", &a, "/v1/fleet/outbox", |seen| seen["waiting"] == 0).await;
    // Both builds, what was taken, and what was refused first.
    for host in [&a, &b] {
        same_state(host, 2 + taken + 1).await;
        assert_eq!(serving(host).await, digest_of(&builds[1]));
        assert_eq!(aside(host).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_a_full_disk_runs_on_with_what_it_has_and_catches_up() {
    let fleet = Fleet::new();
    let disk = Disk::of(&fleet, "b");
    let a = fleet.start("a", fleet.origin("a")).await;
    let b = fleet.start("b", disk.under(fleet.setup("b", "edge"))).await;
    let builds = builds();
    both_run(&a, &builds).await;
    assert_eq!(counted(&b, 1).await, 1);
    disk.fill();
    let revision = deploy(&a, version(&builds[1]), None).await;
    let is_there = |seen: &serde_json::Value| {
        let hosts = seen["plugins"][0]["hosts"].as_array().unwrap();
        hosts
            .iter()
            .any(|line| line["host"] == "a" && line["revision"] == revision && line["converged"] == true)
    };
    eventually("the other one has it", &a, "/v1/fleet/status", is_there).await;
    until_said(&b, "disk_full").await;
    assert_eq!(serving(&b).await, digest_of(&builds[0]), "what runs goes on");
    disk.free();
    converged(&a, &BOTH, revision).await;
    assert_eq!(serving(&b).await, digest_of(&builds[1]));
    assert_eq!(counted(&b, 2).await, 2);
    same_state(&b, 2).await;
    assert_eq!(aside(&b).await, Vec::<String>::new());
}
