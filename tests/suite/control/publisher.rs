//! Claims about the publisher: what is carried, in which order, and what becomes of the rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::memory::{MemoryControlStore, MemoryFeed};
use millrace::backends::nop::NopFeed;
use millrace::clock::{ManualClock, SystemClock};
use millrace::control::rollout::{Plan, Progress, RolloutState};
use millrace::control::trust::{KeyRole, TrustStore, TrustedKey};
use millrace::control::{
    Believing, ControlEvent, ControlFeedError, ControlSink, ControlSource as _, ControlStore, ControlVersion,
    Desired, EventId, Kind, Origin, PluginSpec, PublisherOptions, Received, Result, RunState, SigningKey,
    Trusted, UnsignedEvent,
};
use millrace::error::{BackendError, Classify as _, RemoteFault};
use millrace::event::Micros;
use millrace::limits::CONTROL_PUBLISH_EVENTS_MAX;
use millrace_tests::control::{NOW, deployed, id, sign, trust_changed, unsigned, v};
use millrace_tests::control_events::{ISSUED, about, key, release_key, running, spec, trust, trusted};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

/// A feed that refuses events as a test says, so often.
#[derive(Debug, Default)]
struct Moody {
    feed: MemoryFeed,
    refusals: Mutex<HashMap<EventId, (usize, Option<ControlFeedError>)>>,
    tried: Mutex<Vec<EventId>>,
}

impl Moody {
    fn refuse(&self, event: u64, times: usize, error: ControlFeedError) {
        self.refusals.lock().unwrap().insert(id(event), (times, Some(error)));
    }

    fn tried(&self) -> Vec<EventId> {
        self.tried.lock().unwrap().clone()
    }

    async fn feed(&self) -> Vec<EventId> {
        let polled = self.feed.poll(v(0), 1_000, Duration::ZERO).await.unwrap();
        let id = |entry: &Received| match entry {
            Received::Event { event, .. } => event.id().clone(),
            Received::Broken { .. } => panic!("{entry:?}"),
        };
        polled.events.iter().map(id).collect()
    }
}

impl ControlSink for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        self.tried.lock().unwrap().push(event.id().clone());
        let mut refusals = self.refusals.lock().unwrap();
        if let Some((left, Some(error))) = refusals.get_mut(event.id())
            && *left > 0
        {
            *left -= 1;
            return std::future::ready(Err(error.clone())).boxed();
        }
        self.feed.append(event)
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.feed.trim(through)
    }
}

fn remote(fault: RemoteFault) -> ControlFeedError {
    BackendError::Remote { fault, detail: "told to fail".into() }.into()
}

fn options() -> PublisherOptions {
    PublisherOptions {
        wait_min: Duration::from_millis(1),
        wait_max: Duration::from_millis(2),
        denials_max: 4,
        ..PublisherOptions::default()
    }
}

struct Stage {
    store: MemoryControlStore,
    origin: Origin,
    running: JoinSet<()>,
}

impl Stage {
    fn new() -> Self {
        let store = MemoryControlStore::new(Arc::new(SystemClock));
        let origin = Origin::new(Arc::new(store.clone()), Believing::new(trust()), Arc::new(SystemClock));
        Self { store, origin, running: JoinSet::new() }
    }

    fn publish(&mut self, sink: Arc<dyn ControlSink>) {
        self.publish_as(sink, options());
    }

    fn publish_as(&mut self, sink: Arc<dyn ControlSink>, options: PublisherOptions) {
        let publisher = self.origin.publisher(sink, options);
        self.running.spawn(async move { publisher.run(&CancellationToken::new()).await });
    }

    async fn propose(&self, events: &[(u64, &str, u64)]) {
        for (number, plugin, revision) in events {
            self.origin.propose(&deployed(*number, plugin, *revision)).await.unwrap();
        }
    }

    /// Until the outbox holds so many events, of which so many are dead.
    async fn is_left(&self, waiting: u64, dead: u64) {
        let begin = std::time::Instant::now();
        loop {
            let status = self.store.outbox().await.unwrap();
            if (status.waiting, status.dead) == (waiting, dead) {
                return;
            }
            assert!(begin.elapsed() < LONG, "the outbox stays {status:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// C31, C33: in order, each once, and with its version written back.
#[tokio::test]
async fn c31_c33_what_was_proposed_is_in_the_feed_in_order_and_once() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    stage.propose(&[(1, "p", 1), (2, "p", 2), (3, "p", 3)]).await;
    stage.publish(sink.clone());
    stage.is_left(0, 0).await;
    // Woken by the proposal: it does not wait for the next look.
    stage.propose(&[(4, "p", 4)]).await;
    stage.is_left(0, 0).await;
    assert_eq!(sink.feed().await, [id(1), id(2), id(3), id(4)]);
    assert_eq!(sink.tried().len(), 4, "what is published is not sent again");
    for n in 1..=4 {
        assert_eq!(stage.store.told(&id(n)).await.unwrap().unwrap().version, Some(v(n)));
    }
}

/// C32: a failure leaves the event waiting with its error, and it is tried again.
#[tokio::test]
async fn c32_w11_a_failure_is_tried_again() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    sink.refuse(1, 3, remote(RemoteFault::Timeout));
    stage.propose(&[(1, "p", 1)]).await;
    stage.publish(sink.clone());
    stage.is_left(0, 0).await;
    assert_eq!(sink.tried(), [id(1), id(1), id(1), id(1)]);
    assert_eq!(sink.feed().await, [id(1)]);
}

/// W5: while one event of a plugin cannot be published, none behind it is; other plugins go on.
#[tokio::test]
async fn m4_w5_a_failure_holds_its_plugin_and_nobody_else() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    sink.refuse(1, usize::MAX, remote(RemoteFault::Unreachable));
    stage.propose(&[(1, "p", 1), (2, "p", 2), (3, "q", 1), (4, "q", 2), (5, "r", 1)]).await;
    stage.publish(sink.clone());
    stage.is_left(2, 0).await;
    // It goes on for as long as it takes: unreachable is never dead.
    millrace_tests::until("more tries than denials", || sink.tried().len() > 3 + 3 * 4).await;
    assert!(!sink.tried().contains(&id(2)));
    sink.refuse(1, 0, remote(RemoteFault::Unreachable));
    stage.is_left(0, 0).await;
    let feed = sink.feed().await;
    let place = |number| feed.iter().position(|event| *event == id(number)).unwrap();
    assert!(place(1) < place(2) && place(3) < place(4), "{feed:?}");
    assert_eq!(stage.store.outbox().await.unwrap().dead, 0);
}

/// W11: so many that fail that there is no room for another one in a round starve nobody.
#[tokio::test]
async fn w11_many_that_fail_do_not_starve_one_that_does_not() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    let many = CONTROL_PUBLISH_EVENTS_MAX as u64 + 5;
    for number in 1..=many {
        sink.refuse(number, usize::MAX, remote(RemoteFault::Timeout));
        stage.propose(&[(number, &format!("p{number}"), 1)]).await;
    }
    stage.propose(&[(many + 1, "good", 1)]).await;
    let wait = Duration::from_secs(1);
    stage.publish_as(sink.clone(), PublisherOptions { wait_min: wait, wait_max: wait, ..options() });
    stage.is_left(many, 0).await;
    assert_eq!(sink.feed().await, [id(many + 1)]);
}

/// What the feed can never take is a dead letter at once. It holds its plugin until somebody decides.
#[tokio::test]
async fn what_can_never_be_published_is_dead_at_once() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    // The id is in the feed with other content.
    sink.feed.append(&sign(&unsigned(1, "other", 1, 77))).await.unwrap();
    stage.propose(&[(1, "p", 1), (2, "p", 2), (3, "q", 1)]).await;
    stage.publish(sink.clone());
    stage.is_left(2, 1).await;
    let letter = stage.store.letters(9).await.unwrap().remove(0);
    assert_eq!((&letter.event, letter.attempts), (&id(1), 1));
    assert!(letter.error.contains("known with other content"), "{}", letter.error);
    assert_eq!(sink.tried().iter().filter(|event| **event == id(1)).count(), 1);
    assert!(stage.origin.retry(&id(1)).await.unwrap());
    stage.is_left(2, 1).await;
    assert!(stage.origin.discard(&id(1)).await.unwrap());
    stage.is_left(0, 0).await;
    assert!(sink.feed().await.contains(&id(2)), "what was behind it goes on");
}

/// A feed that says of itself that it cannot is asked for a while; then a person is needed.
#[tokio::test]
async fn a_feed_that_denies_is_given_up_after_a_while() {
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    sink.refuse(1, usize::MAX, remote(RemoteFault::Denied));
    stage.propose(&[(1, "p", 1)]).await;
    stage.publish(sink.clone());
    stage.is_left(1, 1).await;
    assert_eq!(sink.tried().len(), 4, "denials_max");
    sink.refuse(1, 0, remote(RemoteFault::Denied));
    assert!(stage.origin.retry(&id(1)).await.unwrap());
    stage.is_left(0, 0).await;
}

/// C13, C36: a feed that carries nothing gives no version, and that is no success.
#[tokio::test]
async fn c13_c36_a_feed_that_carries_nothing_publishes_nothing() {
    let mut stage = Stage::new();
    stage.propose(&[(1, "p", 1)]).await;
    stage.publish(Arc::new(NopFeed));
    stage.is_left(1, 1).await;
    assert_eq!(stage.store.told(&id(1)).await.unwrap().unwrap().version, None);
    let letter = stage.store.letters(9).await.unwrap().remove(0);
    assert_eq!(letter.error, ControlFeedError::NoFeed.to_string());
}

/// W12: two publishers of one store: each event is in the feed once, those of one plugin in their order.
#[tokio::test]
async fn m9_w12_two_publishers_share_one_outbox() {
    const PLUGINS: u64 = 10;
    const REVISIONS: u64 = 10;
    let mut stage = Stage::new();
    let sink = Arc::new(Moody::default());
    for _ in 0..2 {
        stage.publish(sink.clone());
    }
    for revision in 1..=REVISIONS {
        for plugin in 0..PLUGINS {
            let number = 1 + plugin + revision * PLUGINS;
            stage.propose(&[(number, &format!("p{plugin}"), revision)]).await;
        }
    }
    stage.is_left(0, 0).await;
    let polled = sink.feed.poll(v(0), 1_000, Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.len() as u64, PLUGINS * REVISIONS);
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for entry in polled.events {
        let Received::Event { event, .. } = entry else { panic!("{entry:?}") };
        let before = newest.insert(event.entity(), event.unsigned().revision).unwrap_or(0);
        assert_eq!(event.unsigned().revision, before + 1, "{}", event.entity());
    }
}

/// What no host would take any more is not published as if it were news: it waits for somebody, and so does what was made on
/// it.
#[tokio::test]
async fn what_expires_or_loses_its_key_while_it_waits_is_a_dead_letter() {
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let clock = Arc::new(ManualClock::default());
    clock.set(NOW);
    let keys = Believing::new(trust());
    let origin = Origin::new(Arc::new(store.clone()), keys, clock.clone());
    let brief = UnsignedEvent { expires_at: Some(NOW.0 + 1), ..unsigned(1, "p", 1, 1) };
    origin.propose(&sign(&brief)).await.unwrap();
    for event in [deployed(2, "p", 2), deployed(3, "q", 1)] {
        origin.propose(&event).await.unwrap();
    }
    clock.set(Micros(NOW.0 + 2));
    let mut stage = Stage { store, origin, running: JoinSet::new() };
    let sink = Arc::new(Moody::default());
    stage.publish(sink.clone());
    stage.is_left(2, 1).await;
    assert_eq!(sink.tried(), [id(3)]);
    assert!(stage.store.letters(9).await.unwrap()[0].error.contains("expired"));
    // Its key was in the list when it was proposed.
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    store.propose(&unsigned(4, "p", 1, 4).sign(&key(9)).unwrap()).await.unwrap();
    let origin = Origin::new(Arc::new(store.clone()), Believing::new(trust()), clock);
    let mut stage = Stage { store, origin, running: JoinSet::new() };
    stage.publish(sink.clone());
    stage.is_left(1, 1).await;
    assert_eq!(sink.tried(), [id(3)]);
}

/// A host that started with a clock that is behind gives up nothing for it: what seems to be of the future waits, and is told
/// once the clock is right.
#[tokio::test]
async fn what_is_too_early_for_the_clock_waits_until_it_is_right() {
    const HOUR: i64 = 3_600_000_000;
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let clock = Arc::new(ManualClock::default());
    clock.set(NOW);
    let origin = Origin::new(Arc::new(store.clone()), Believing::new(trust()), clock.clone());
    let earlier = unsigned(3, "q", 1, 3);
    let earlier = UnsignedEvent { issued_at: earlier.issued_at - 2 * HOUR, ..earlier };
    for event in [deployed(1, "p", 1), deployed(2, "p", 2), sign(&earlier)] {
        origin.propose(&event).await.unwrap();
    }
    clock.set(Micros(NOW.0 - HOUR));
    let mut stage = Stage { store, origin, running: JoinSet::new() };
    let sink = Arc::new(Moody::default());
    stage.publish(sink.clone());
    // What is told of the third is told of the first, too: they were claimed together.
    stage.is_left(2, 0).await;
    assert_eq!(sink.tried(), [id(3)]);
    clock.set(NOW);
    stage.is_left(0, 0).await;
    assert_eq!(sink.feed().await, [id(3), id(1), id(2)]);
}

/// The feed is an older copy, and nobody has read it yet: what is told is above all that this host has read, or it and others
/// would take it for something known.
#[tokio::test]
async fn what_is_told_is_above_what_was_read() {
    let mut stage = Stage::new();
    stage.store.apply(v(9), &deployed(1, "p", 1)).await.unwrap();
    stage.propose(&[(2, "p", 2)]).await;
    stage.publish_as(Arc::new(MemoryFeed::new()), PublisherOptions { is_of_source: true, ..options() });
    stage.is_left(0, 0).await;
    let version = stage.store.told(&id(2)).await.unwrap().unwrap().version;
    assert!(version > Some(v(9)), "{version:?}");
}

/// The origin checks what it is given as every host does, and keeps nothing of what it refuses.
#[tokio::test]
async fn an_origin_refuses_what_hosts_would_refuse() {
    let stage = Stage::new();
    let foreign = unsigned(1, "p", 1, 1).sign(&key(8)).unwrap();
    assert_eq!(stage.origin.propose(&foreign).await.unwrap_err().code(), "control_event_untrusted");
    let over = millrace::control::UnsignedEvent {
        expires_at: Some(millrace_tests::control::ISSUED_AT + 1),
        ..unsigned(2, "p", 1, 1)
    };
    assert_eq!(stage.origin.propose(&sign(&over)).await.unwrap_err().code(), "control_event_out_of_time");
    assert!(stage.store.proposed().await.unwrap().is_empty());
    let conflict = stage.origin.propose(&deployed(3, "p", 2)).await.unwrap_err();
    assert_eq!(conflict.code(), "revision_conflict");
}

/// A build that no host would run does not get into the feed. What stands is not news: it can be paused and taken back, and
/// its successor deployed, whatever has become of its key.
#[tokio::test]
async fn an_origin_refuses_a_build_that_no_host_would_run() {
    let (another, clock) = (key(7), Arc::new(ManualClock::default()));
    clock.set(Micros(ISSUED + 1));
    let expired = TrustedKey {
        expires_at: Some(ISSUED - 1),
        ..another.trusted_as(KeyRole::Build, "the former build server")
    };
    let trusting = |keys: &[TrustedKey]| {
        let keys = trusted().keys.into_iter().chain(keys.iter().cloned()).collect();
        TrustStore::new(0, &Trusted { keys }).unwrap()
    };
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let with = |keys| Origin::new(Arc::new(store.clone()), Believing::new(keys), clock.clone());
    let bare = |version: &str| {
        let mut spec = spec("p", version, version.as_bytes());
        spec.component.signatures.clear();
        spec
    };
    let built = |version: &str, key: &SigningKey| {
        let spec = bare(version);
        PluginSpec { component: spec.component.built_by("p", key), ..spec }
    };
    let deploy = |spec: PluginSpec, revision| about("p", Kind::Deployed, running(spec), revision);
    let signed = |event: &UnsignedEvent| event.sign(&release_key()).unwrap();
    let strict = with(trusting(std::slice::from_ref(&expired)));
    for (spec, why) in [
        (bare("1.0.0"), "it is not signed; a build key has to"),
        (built("1.0.0", &release_key()), "is a release key"),
        (built("1.0.0", &key(9)), "is not known here"),
        (built("1.0.0", &another), "had expired at"),
        (spec("q", "1.0.0", b"1.0.0"), "did not sign this content"),
    ] {
        let refused = strict.propose(&signed(&deploy(spec, 1))).await.unwrap_err();
        assert_eq!(refused.code(), "control_event_untrusted");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(store.proposed().await.unwrap().is_empty());

    // It stands, from a time when its key counted.
    let valid = TrustedKey { expires_at: None, ..expired.clone() };
    let stands = built("1.0.0", &another);
    let first = signed(&deploy(stands.clone(), 1));
    with(trusting(std::slice::from_ref(&valid))).propose(&first).await.unwrap();
    let revoked = with(trusting(&[TrustedKey { revoked: true, ..valid }]));
    assert!(revoked.propose(&first).await.unwrap().repeated, "its answer may have been lost");
    let again = revoked.propose(&signed(&deploy(stands.clone(), 2))).await.unwrap_err();
    assert!(again.to_string().contains("is revoked"), "{again}");
    strict.propose(&signed(&deploy(stands.clone(), 2))).await.unwrap();
    let paused = Desired { state: RunState::Paused, ..running(stands.clone()) };
    revoked.propose(&signed(&about("p", Kind::Paused, paused, 3))).await.unwrap();
    let id = id(70);
    let rollout =
        RolloutState { id: id.to_string(), plan: Plan::at_once(), wave: 0, progress: Progress::Running };
    let over = |spec: PluginSpec| {
        let rollout = Some(rollout.clone());
        Desired { stable: Some(stands.clone()), rollout, ..running(spec) }
    };
    let next = about("p", Kind::Deployed, over(spec("p", "2.0.0", b"2.0.0")), 4);
    revoked.propose(&signed(&next)).await.unwrap();
    // A pause with which something new comes along is no pause.
    let hidden = about("p", Kind::Paused, Desired { state: RunState::Paused, ..over(bare("3.0.0")) }, 5);
    assert_eq!(revoked.propose(&signed(&hidden)).await.unwrap_err().code(), "control_event_untrusted");
    // With no look at signatures, all of it is taken.
    with(trust().insecure()).propose(&signed(&deploy(bare("3.0.0"), 5))).await.unwrap();
}

/// The answer to a proposal may get lost; by the time it comes again, the list of keys that it brought may count already.
#[tokio::test]
async fn the_same_proposal_again_is_answered_though_it_is_past() {
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let event = trust_changed(1, 1, trusted());
    let before = Origin::new(Arc::new(store.clone()), Believing::new(trust()), Arc::new(SystemClock));
    before.propose(&event).await.unwrap();
    let learnt = Believing::new(trust().after(&event).unwrap());
    let after = Origin::new(Arc::new(store), learnt, Arc::new(SystemClock));
    assert!(after.propose(&event).await.unwrap().repeated);
    let other = after.propose(&trust_changed(2, 1, trusted())).await.unwrap_err();
    assert_eq!(other.code(), "control_event_untrusted");
}
