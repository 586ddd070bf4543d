//! Claims about hosts whose clocks are wrong, in both directions. The clocks are put right while the hosts run.

use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::Deploy;
use millrace::control::{ControlEvent, UnsignedEvent};
use millrace_tests::control_events::{SECOND, digest_of, release_key};
use millrace_tests::guests::variant;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::powercut::build_preloaded;
use serde_json::{Value, json};

use super::hosted_fleet::{
    Fleet, aside, converged, deploy, eventually, hand_in, is_converged, next, push, same_state, serving,
    version,
};

const ALL: [&str; 3] = ["a", "b", "c"];
const HOUR: i64 = 3_600;

/// A host's clock, and by how many seconds it is ahead.
struct Skew {
    shim: PathBuf,
    file: PathBuf,
}

impl Skew {
    fn new(fleet: &Fleet, name: &str, ahead_s: i64) -> Self {
        let file = fleet.path(name);
        std::fs::write(&file, ahead_s.to_ne_bytes()).unwrap();
        Self { shim: build_preloaded("skew", &fleet.path("")).unwrap(), file }
    }

    /// A host that has this clock, and often compares itself with the fleet.
    fn under(&self, setup: Setup) -> Setup {
        let mut setup = setup.set("control.poll_wait_ms=200");
        let env = [("LD_PRELOAD", &self.shim), ("SKEW_FILE", &self.file)];
        setup.env.extend(env.map(|(name, value)| (name.into(), OsString::from(value))));
        setup
    }

    /// The host has it mapped, so its length stays.
    fn put_right(&self) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.file).unwrap();
        file.write_all_at(&0_i64.to_ne_bytes(), 0).unwrap();
    }
}

/// A deploy that counts for some minutes from now.
async fn short_lived(origin: &HostProcess, build: &[u8]) -> ControlEvent {
    let deploy = Deploy { spec: version(build), plan: None, targets: None };
    let event = next(origin, |present, id| present.deploy(id, deploy).unwrap()).await;
    let unsigned = event.unsigned().clone();
    let expires_at = Some(SystemClock.now().0 + 600 * SECOND);
    UnsignedEvent { expires_at, ..unsigned }.sign(&release_key()).unwrap()
}

/// `b` is an hour behind: what is told now is from its future. `c` is an hour ahead: what ends soon has ended to it.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_with_wrong_clocks_set_aside_what_is_not_of_their_time_and_have_it_once_they_are_right() {
    let fleet = Fleet::new();
    let (behind, ahead) = (Skew::new(&fleet, "behind", -HOUR), Skew::new(&fleet, "ahead", HOUR));
    let a = fleet.start("a", fleet.origin("a")).await;
    let b = fleet.start("b", behind.under(fleet.setup("b", "edge"))).await;
    let c = fleet.start("c", ahead.under(fleet.setup("c", "edge"))).await;
    let (first, second) = (variant(1, "good"), variant(2, "good"));
    push(&a, &first).await;
    push(&a, &second).await;

    deploy(&a, version(&first), None).await;
    same_state(&c, 1).await;
    let has_read = |seen: &Value| seen["cursor"] == 1 && seen["drift"] == "differs";
    eventually("it has set the event aside", &b, "/v1/fleet/self", has_read).await;
    assert_eq!(aside(&b).await, ["control_event_out_of_time"]);
    assert_eq!(b.get("/v1/plugins").await.unwrap()["plugins"], json!([]), "nothing from the future runs");

    let event = short_lived(&a, &second).await;
    let (status, answer) = hand_in(&a, &event).await;
    assert_eq!(status, 202, "{answer}");
    // To the fleet it was in time, so the snapshot brings it to the host for which it was not.
    same_state(&c, 2).await;
    assert_eq!(aside(&c).await, ["control_event_out_of_time"]);
    let has_it = |seen: &Value| {
        let lines = seen["plugins"][0]["hosts"].as_array().unwrap();
        lines.iter().any(|line| line["host"] == "c" && line["revision"] == 2 && line["converged"] == true)
    };
    let status = eventually("it runs what the fleet runs", &a, "/v1/fleet/status", has_it).await;
    assert!(!is_converged(&status, &ALL, 2), "one is missing: {status:#}");
    assert_eq!(serving(&c).await, digest_of(&second));

    behind.put_right();
    ahead.put_right();
    converged(&a, &ALL, 2).await;
    for host in [&a, &b, &c] {
        same_state(host, 2).await;
        assert_eq!(serving(host).await, digest_of(&second));
    }
}

/// What it takes is by its own clock, and so is what it says; when hosts have reported is the board's to say.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_whose_clock_is_wrong_still_sees_that_its_hosts_talk() {
    for ahead_s in [HOUR, -HOUR] {
        let fleet = Fleet::new();
        let skew = Skew::new(&fleet, "skew", ahead_s);
        let a = fleet.start("a", skew.under(fleet.origin("a"))).await;
        let b = fleet.start("b", fleet.setup("b", "edge")).await;
        let build = variant(1, "good");
        push(&a, &build).await;
        let talks = |seen: &Value| {
            let hosts = seen["hosts"].as_array().unwrap();
            hosts.len() == 2 && hosts.iter().all(|host| host["presence"] == "talking")
        };
        eventually("both talk", &a, "/v1/fleet/hosts", talks).await;
        let deploy = Deploy { spec: version(&build), plan: None, targets: None };
        let event = next(&a, |present, id| present.deploy(id, deploy).unwrap()).await;
        let (status, answer) = hand_in(&a, &event).await;
        if ahead_s < 0 {
            assert_eq!(
                (status, answer["code"].as_str()),
                (422, Some("control_event_out_of_time")),
                "{answer}"
            );
            skew.put_right();
            assert_eq!(hand_in(&a, &event).await.0, 202, "nothing of it was kept");
        } else {
            assert_eq!(status, 202, "{answer}");
        }
        converged(&a, &["a", "b"], 1).await;
        assert_eq!(serving(&b).await, digest_of(&build));
    }
}
