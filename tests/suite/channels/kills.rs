//! A host that is killed again and again while both sides of several channels append over HTTP and others follow. Whoever
//! gets no answer sends the same again; whoever is cut off comes back with the id of the last event.

mod followers;
mod look;
mod senders;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::task::{JoinError, JoinSet};

use followers::Followed;
use senders::Sender;

const SEED: u64 = 0x00c4_a11e;
const KILLS: usize = 8;
/// Of all of it. It takes seconds.
const PATIENCE: Duration = Duration::from_secs(180);
const PROCESSES: [&str; 2] = ["one", "two"];
const CHANNELS: [&str; 3] = ["reject", "drop_oldest", "archive"];
/// Entries that channels hold which let go of some.
const HELD: u64 = 20;

/// An entry, wherever it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    sender: String,
    epoch: u64,
    sequence: u64,
    entry_type: String,
    text: String,
}

impl Said {
    /// With its position.
    fn read(entry: &Value) -> (u64, Self) {
        let number = |name: &str| entry[name].as_u64().unwrap_or_else(|| panic!("{name}: {entry}"));
        let text = |name: &str| entry[name].as_str().unwrap_or_else(|| panic!("{name}: {entry}")).to_owned();
        let said = Self {
            sender: text("senderid"),
            epoch: number("epoch"),
            sequence: number("sequence"),
            entry_type: text("type"),
            text: text("text"),
        };
        (number("position"), said)
    }

    fn to_json(&self) -> Value {
        json!({ "sequence": self.sequence, "type": self.entry_type, "text": self.text })
    }
}

/// A channel, and what is known of it.
#[derive(Debug)]
struct Place {
    process: &'static str,
    /// It is named after what it does when it is full.
    channel: &'static str,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// All that was ever sent, by sender and number.
    sent: BTreeMap<(String, u64), Said>,
    /// Of each sender the last number that was acknowledged, and the last that was sent.
    senders: BTreeMap<String, (u64, u64)>,
    /// Where acknowledged entries lie.
    acknowledged: BTreeMap<u64, Said>,
    /// What the follower was sent.
    followed: BTreeMap<u64, Said>,
}

impl Place {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    fn path(&self) -> String {
        format!("/v1/processes/{}/channels/{}", self.process, self.channel)
    }

    /// Whether its oldest entries go for good.
    fn drops(&self) -> bool {
        self.channel == "drop_oldest"
    }
}

/// The host, as those outside see it.
#[derive(Debug)]
struct Scene {
    url: String,
    http: reqwest::Client,
    places: Vec<Arc<Place>>,
    /// Whoever appends holds it for one try; whoever looks at the logs has it alone.
    gate: RwLock<()>,
    /// From now on each sender says that it is done.
    over: AtomicBool,
    acknowledged: AtomicU64,
    /// What was sent and got no answer.
    lost: AtomicU64,
}

impl Scene {
    /// Makes both processes.
    async fn new(host: &HostProcess) -> Self {
        let place = |process, channel| Arc::new(Place { process, channel, notes: Mutex::default() });
        let places = PROCESSES.iter().flat_map(|process| CHANNELS.map(|channel| place(*process, channel)));
        let scene = Self {
            url: host.url.clone(),
            http: reqwest::Client::new(),
            places: places.collect(),
            gate: RwLock::default(),
            over: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        };
        let body = json!({ "executor": "exe", "channels": [
            { "name": "reject" },
            { "name": "drop_oldest", "full": "drop_oldest", "entries_max": HELD },
            { "name": "archive", "full": "archive", "entries_max": HELD },
        ] });
        for process in PROCESSES {
            let request = scene.http.put(format!("{}/v1/processes/{process}?as=sub", scene.url)).json(&body);
            assert_eq!(request.send().await.unwrap().status(), 201);
        }
        scene
    }

    async fn get(&self, path: &str) -> Value {
        loop {
            match self.http.get(format!("{}{path}", self.url)).send().await {
                Ok(answer) => return answer.error_for_status().unwrap().json().await.unwrap(),
                // It may have asked on a connection to the host that was killed.
                Err(error) => assert!(!error.is_connect(), "{error:?}"),
            }
        }
    }
}

/// What the test waits for, for as long as nobody who takes part has failed.
async fn unless_someone_fails<T>(
    wanted: impl Future<Output = T>,
    senders: &mut JoinSet<()>,
    followers: &mut JoinSet<Followed>,
) -> T {
    tokio::pin!(wanted);
    loop {
        let failed: Option<JoinError> = tokio::select! {
            wanted = &mut wanted => return wanted,
            Some(sender) = senders.join_next() => sender.err(),
            Some(follower) = followers.join_next() => {
                panic!("a follower has ended while senders are at work: {follower:?}")
            }
        };
        if let Some(failed) = failed {
            std::panic::resume_unwind(failed.into_panic());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_leave_each_acknowledged_entry_at_its_place_and_followers_see_exactly_the_log() {
    tokio::time::timeout(PATIENCE, run(SEED)).await.expect("it ends");
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(workspace_binary("millrace")).set("channels.channel_rate_limited=false");
    let mut host = HostProcess::start_as(setup, &dir.path().join("store")).await.unwrap();
    let scene = Arc::new(Scene::new(&host).await);
    let (mut senders, mut followers) = (JoinSet::new(), JoinSet::new());
    for place in &scene.places {
        for who in ["sub", "exe"] {
            // Some are done in the midst of it.
            let done_after = (place.process == "two" && who == "exe").then(|| rng.random_range(10..40));
            let rng = StdRng::seed_from_u64(rng.random());
            let sender = Sender { scene: Arc::clone(&scene), place: Arc::clone(place), who, rng, done_after };
            senders.spawn(sender.run());
        }
        followers.spawn(followers::follow(Arc::clone(&scene), Arc::clone(place)));
    }
    for _ in 0..KILLS {
        let wanted = scene.acknowledged.load(Ordering::Relaxed) + rng.random_range(40..200);
        let moment = Duration::from_micros(rng.random_range(0..5_000));
        let reached = async {
            while scene.acknowledged.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(moment).await;
        };
        unless_someone_fails(reached, &mut senders, &mut followers).await;
        host.kill().unwrap();
        // Whoever had sent something has heard by then that no answer comes.
        let _quiet = unless_someone_fails(scene.gate.write(), &mut senders, &mut followers).await;
        host.kill_and_start().await.unwrap();
        for place in &scene.places {
            look::look(&scene, place).await;
        }
    }
    scene.over.store(true, Ordering::Relaxed);
    while let Some(sender) = senders.join_next().await {
        sender.unwrap();
    }
    let mut followed = BTreeMap::new();
    while let Some(follower) = followers.join_next().await {
        let follower = follower.unwrap();
        followed.insert((follower.process, follower.channel), follower);
    }
    for place in &scene.places {
        let log = look::look(&scene, place).await;
        look::at_the_end(&scene, place, &log, &followed[&(place.process, place.channel)]).await;
    }
    assert!(scene.lost.load(Ordering::Relaxed) > 0, "no kill came between a question and its answer");
    assert!(host.terminate().unwrap(), "the host ends well");
}
