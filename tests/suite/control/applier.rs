//! Claims about the applier: what it decides on an entry, and what it does when something is away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::memory::{MemoryControlStore, MemoryFeed};
use millrace::clock::SystemClock;
use millrace::control::snapshot::Snapshots;
use millrace::control::trust::KeyRole;
use millrace::control::{
    Acker, Applier, ApplierOptions, ApplierSeams, Believing, Bootstrap, ControlEvent, ControlFeedError,
    ControlSink as _, ControlSource, ControlStore, ControlVersion, EventId, NoBootstrap, Polled, Received,
    Restore, Restored, Result,
};
use millrace::error::{BackendError, RemoteFault};
use millrace_tests::control::artifacts::SpoilableArtifacts;
use millrace_tests::control::{
    at, deployed, id, of_a_new_kind, removed, sign, state, trust_changed, unsigned, v,
};
use millrace_tests::control_events::{key, trust, trusted};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

/// A host that applies, for as long as it is there.
struct Host {
    store: MemoryControlStore,
    keys: Believing,
    applier: Arc<Applier>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

fn options() -> ApplierOptions {
    ApplierOptions {
        poll_wait: Duration::from_millis(20),
        poll_gap: Duration::from_millis(1),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        heal_every: Duration::from_millis(1),
        ..ApplierOptions::default()
    }
}

impl Host {
    fn start(source: Arc<dyn ControlSource>) -> Self {
        Self::start_with(source, MemoryControlStore::new(Arc::new(SystemClock)), Arc::new(NoBootstrap))
    }

    fn start_with(
        source: Arc<dyn ControlSource>,
        store: MemoryControlStore,
        bootstrap: Arc<dyn Bootstrap>,
    ) -> Self {
        Self::start_as(source, store, bootstrap, options())
    }

    fn start_as(
        source: Arc<dyn ControlSource>,
        store: MemoryControlStore,
        bootstrap: Arc<dyn Bootstrap>,
        options: ApplierOptions,
    ) -> Self {
        let keys = Believing::new(trust());
        let seams = ApplierSeams {
            source,
            store: Arc::new(store.clone()),
            keys: keys.clone(),
            bootstrap,
            clock: Arc::new(SystemClock),
        };
        let applier = Arc::new(Applier::new(seams, options));
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        let (worker, token) = (Arc::clone(&applier), stop.clone());
        running.spawn(async move { worker.run(&token).await });
        Self { store, keys, applier, stop, running }
    }

    /// Waits until a control version is applied.
    async fn reaches(&self, version: u64) {
        let mut known = self.applier.follow();
        let reached = known.wait_for(|known| known.cursor >= v(version));
        let cursor = tokio::time::timeout(LONG, reached).await.map(|known| known.unwrap().cursor);
        cursor.unwrap_or_else(|_| panic!("{version} is not reached"));
    }

    async fn aside(&self) -> Vec<(u64, String)> {
        let mut aside: Vec<_> = self
            .store
            .quarantined(1_000)
            .await
            .unwrap()
            .into_iter()
            .map(|aside| (aside.version.0, aside.code))
            .collect();
        aside.sort();
        aside
    }

    async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.running.join_next()).await.expect("it stops").unwrap().unwrap();
    }
}

async fn put(feed: &MemoryFeed, event: &ControlEvent) -> u64 {
    feed.append(event).await.unwrap().0
}

/// What a poll answers.
type Poll = Result<Vec<(u64, ControlEvent)>>;

/// Answers what a test has prepared, poll by poll, and then nothing.
#[derive(Debug, Default)]
struct Prepared {
    polls: Mutex<VecDeque<Poll>>,
    asked: Mutex<Vec<u64>>,
    acks_to_fail: AtomicUsize,
    acknowledged: Mutex<Vec<(EventId, u64)>>,
}

impl Prepared {
    fn new(polls: impl IntoIterator<Item = Poll>) -> Arc<Self> {
        Arc::new(Self { polls: Mutex::new(polls.into_iter().collect()), ..Self::default() })
    }
}

impl ControlSource for Prepared {
    fn name(&self) -> &'static str {
        "prepared"
    }

    fn poll(&self, after: ControlVersion, _: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        async move {
            self.asked.lock().unwrap().push(after.0);
            let next = self.polls.lock().unwrap().pop_front();
            let Some(next) = next else {
                tokio::time::sleep(wait).await;
                return Ok(Polled::default());
            };
            let received = |(version, event)| Received::Event { version: v(version), event };
            Ok(Polled { events: next?.into_iter().map(received).collect(), ..Polled::default() })
        }
        .boxed()
    }

    fn acker(&self) -> Option<&dyn Acker> {
        Some(self)
    }
}

impl Acker for Prepared {
    fn acknowledge(&self, event: &EventId, version: ControlVersion) -> BoxFuture<'_, Result<()>> {
        let fails = self
            .acks_to_fail
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if !fails {
            self.acknowledged.lock().unwrap().push((event.clone(), version.0));
        }
        let answer = if fails { Err(away()) } else { Ok(()) };
        std::future::ready(answer).boxed()
    }
}

fn away() -> ControlFeedError {
    BackendError::Remote { fault: RemoteFault::Unreachable, detail: "told to be away".into() }.into()
}

/// C25: acknowledged once, by its id and version, after it was applied.
#[tokio::test]
async fn c25_an_event_is_acknowledged_once_it_is_applied() {
    let source = Prepared::new([Ok(vec![(5, deployed(1, "p", 1))])]);
    let host = Host::start(source.clone());
    host.reaches(5).await;
    millrace_tests::until("the acknowledgement", || !source.acknowledged.lock().unwrap().is_empty()).await;
    assert_eq!(*source.acknowledged.lock().unwrap(), [(id(1), 5)]);
    assert_eq!(host.store.applied(&id(1)).await.unwrap(), Some(v(5)));
}

/// C26: an acknowledgement that fails stops nothing; the event comes again, changes nothing and is acknowledged.
#[tokio::test]
async fn c26_a_failing_acknowledgement_stops_nothing() {
    let source = Prepared::new([Ok(vec![(40, deployed(1, "p", 1)), (41, deployed(2, "q", 1))])]);
    source.acks_to_fail.store(1, Ordering::SeqCst);
    let host = Host::start(source.clone());
    host.reaches(41).await;
    millrace_tests::until("the second acknowledgement", || !source.acknowledged.lock().unwrap().is_empty())
        .await;
    assert_eq!(*source.acknowledged.lock().unwrap(), [(id(2), 41)]);
    assert_eq!(state(&host.store).await, [at("p", 1, 1), at("q", 1, 2)]);
    source.polls.lock().unwrap().push_back(Ok(vec![(40, deployed(1, "p", 1))]));
    millrace_tests::until("the repeat", || source.acknowledged.lock().unwrap().len() == 2).await;
    assert_eq!(source.acknowledged.lock().unwrap()[1], (id(1), 40));
    assert_eq!(host.store.cursor().await.unwrap(), v(41));
    assert_eq!(host.store.forget_applied(v(99)).await.unwrap(), 2, "one record of each");
}

/// W2: a hundred good events behind a poisoned one, and one that nobody can read, are applied at once.
#[tokio::test]
async fn m2_w2_a_poison_at_the_head_stops_nobody() {
    let feed = MemoryFeed::new();
    feed.append_broken("first.json", "it is no JSON");
    put(&feed, &unsigned(2, "evil", 1, 2).sign(&key(8)).unwrap()).await;
    for n in 1..=100 {
        put(&feed, &deployed(100 + n, &format!("p{n}"), 1)).await;
    }
    let host = Host::start(Arc::new(feed));
    host.reaches(102).await;
    assert_eq!(state(&host.store).await.len(), 100);
    let aside = host.aside().await;
    assert_eq!(aside, [(1, "control_event_unreadable".into()), (2, "control_event_untrusted".into())]);
    assert_eq!(host.applier.follow().borrow().entities.len(), 100);
}

/// W4: what failed and came again after younger ones is not lost.
#[tokio::test]
async fn m3_w4_an_older_message_that_comes_again_is_applied() {
    let source = Prepared::new([
        Ok(vec![(6, deployed(6, "q", 1)), (7, deployed(7, "p", 2))]),
        Ok(vec![(5, deployed(5, "r", 1)), (4, deployed(4, "p", 1))]),
    ]);
    let host = Host::start(source.clone());
    millrace_tests::until("all are acknowledged", || source.acknowledged.lock().unwrap().len() == 4).await;
    assert_eq!(state(&host.store).await, [at("p", 2, 7), at("q", 1, 6), at("r", 1, 5)]);
    assert_eq!(host.store.cursor().await.unwrap(), v(7));
}

/// W1: two changes of one plugin before anybody polls: the feed has both, and the last holds.
#[tokio::test]
async fn m1_w1_two_changes_before_anybody_polls() {
    let feed = MemoryFeed::new();
    put(&feed, &deployed(1, "p", 1)).await;
    put(&feed, &removed(2, "p", 2)).await;
    let host = Host::start(Arc::new(feed));
    host.reaches(2).await;
    assert_eq!(state(&host.store).await, [at("p", 2, 2)]);
    assert!(host.aside().await.is_empty());
}

/// W6: a kind that this host does not know passes by, unless it must be understood. Either way the next is applied.
#[tokio::test]
async fn m5_w6_an_old_host_meets_a_new_kind() {
    let feed = MemoryFeed::new();
    put(&feed, &of_a_new_kind(1)).await;
    let must = sign(&unsigned(2, "p", 1, 2)).to_json().replace("plugin.deployed", "plugin.dreamt");
    let refused = ControlEvent::parse(&must).unwrap_err();
    assert!(matches!(refused, ControlFeedError::NotUnderstood { .. }));
    feed.append_refused(id(2).as_str(), &refused);
    put(&feed, &deployed(3, "p", 1)).await;
    let host = Host::start(Arc::new(feed));
    host.reaches(3).await;
    assert_eq!(state(&host.store).await, [at("p", 1, 3)]);
    let aside = host.store.quarantined(9).await.unwrap();
    assert_eq!(aside.len(), 1);
    assert_eq!(aside[0].code, "control_event_not_understood", "whoever is alarmed knows what helps");
    assert!(aside[0].reason.contains("bring the host up to date"), "{}", aside[0].reason);
}

/// Keys count from the event on that brings them, also within one answer of the source.
#[tokio::test]
async fn keys_change_in_the_order_of_the_feed() {
    let mut with_new = trusted();
    with_new.keys.push(key(9).trusted_as(KeyRole::Release, "new"));
    let mut without = with_new.clone();
    without.keys.last_mut().unwrap().revoked = true;
    let by_new = |number, plugin: &str| unsigned(number, plugin, 1, number).sign(&key(9)).unwrap();
    let feed = MemoryFeed::new();
    put(&feed, &by_new(1, "early")).await;
    put(&feed, &trust_changed(2, 1, with_new)).await;
    put(&feed, &by_new(3, "in-time")).await;
    put(&feed, &trust_changed(4, 2, without)).await;
    put(&feed, &by_new(5, "late")).await;
    let host = Host::start(Arc::new(feed.clone()));
    host.reaches(5).await;
    let untrusted = |version| (version, "control_event_untrusted".to_owned());
    assert_eq!(host.aside().await, [untrusted(1), untrusted(5)]);
    assert_eq!(host.keys.keys().revision(), 2);
    let store = host.store.clone();
    host.stop().await;
    // After a restart, from the file's list on.
    put(&feed, &by_new(6, "later")).await;
    put(&feed, &deployed(7, "p", 1)).await;
    let host = Host::start_with(Arc::new(feed), store, Arc::new(NoBootstrap));
    host.reaches(7).await;
    assert_eq!(host.aside().await, [untrusted(1), untrusted(5), untrusted(6)]);
    assert_eq!(host.keys.keys().revision(), 2);
}

/// What was applied in its time and expires before it comes again was not set aside.
#[tokio::test]
async fn a_repeat_that_has_expired_is_only_a_repeat() {
    let past = millrace::control::UnsignedEvent {
        expires_at: Some(millrace_tests::control::ISSUED_AT + 1),
        ..unsigned(1, "p", 1, 1)
    };
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    store.apply(v(1), &sign(&past)).await.unwrap();
    let never = millrace::control::UnsignedEvent { event_id: id(2), ..past.clone() };
    let source = Prepared::new([Ok(vec![(1, sign(&past)), (2, sign(&never))])]);
    let host = Host::start_with(source, store, Arc::new(NoBootstrap));
    host.reaches(2).await;
    assert_eq!(host.aside().await, [(2, "control_event_out_of_time".into())]);
    assert_eq!(state(&host.store).await, [at("p", 1, 1)]);
}

/// A feed that is away is asked again; nothing is lost, and what is known stays.
#[tokio::test]
async fn a_feed_that_is_away_is_asked_again() {
    let source = Prepared::new([
        Err(away()),
        Err(away()),
        Ok(vec![(1, deployed(1, "p", 1))]),
        Err(ControlFeedError::Backend(BackendError::Remote {
            fault: RemoteFault::Denied,
            detail: "until somebody repairs it".into(),
        })),
        Ok(vec![(2, deployed(2, "q", 1))]),
    ]);
    let host = Host::start(source.clone());
    host.reaches(2).await;
    assert_eq!(state(&host.store).await, [at("p", 1, 1), at("q", 1, 2)]);
    assert_eq!(source.asked.lock().unwrap()[..5], [0, 0, 0, 1, 1]);
}

/// A snapshot for those who are behind.
#[derive(Debug)]
struct Shelf {
    store: MemoryControlStore,
    restores: Mutex<VecDeque<Restore>>,
    healed: Mutex<Option<Restore>>,
    asked: AtomicUsize,
}

impl Shelf {
    fn new(store: &MemoryControlStore, restores: impl IntoIterator<Item = Restore>) -> Arc<Self> {
        let restores = Mutex::new(restores.into_iter().collect());
        let store = store.clone();
        Arc::new(Self { store, restores, healed: Mutex::default(), asked: AtomicUsize::new(0) })
    }
}

impl Bootstrap for Shelf {
    fn bootstrap(&self, _: ControlVersion, _: ControlVersion) -> BoxFuture<'_, Result<Restored>> {
        async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let restore = self.restores.lock().unwrap().pop_front().ok_or_else(away)?;
            self.store.restore(restore).await
        }
        .boxed()
    }

    fn heal(&self) -> BoxFuture<'_, Result<Option<Restored>>> {
        async move {
            let restore = self.healed.lock().unwrap().take();
            match restore {
                Some(restore) => self.store.restore(restore).await.map(Some),
                None => Ok(None),
            }
        }
        .boxed()
    }
}

/// W17: away for longer than the feed remembers. A snapshot that is older than the feed is not enough; one that is not
/// takes its place, keys included, and the tail goes on.
#[tokio::test]
async fn m18_w17_a_host_behind_the_feed_starts_from_a_snapshot() {
    let mut list = trusted();
    list.keys.push(key(9).trusted_as(KeyRole::Release, "new"));
    let feed = MemoryFeed::new();
    put(&feed, &deployed(1, "p", 1)).await;
    put(&feed, &trust_changed(2, 1, list.clone())).await;
    put(&feed, &deployed(3, "p", 2)).await;
    put(&feed, &unsigned(4, "q", 1, 4).sign(&key(9)).unwrap()).await;
    feed.trim(v(3)).await.unwrap();
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let old = Restore { version: v(1), events: vec![(v(1), deployed(1, "p", 1))], set_aside: Vec::new() };
    let new = Restore {
        version: v(3),
        events: vec![(v(2), trust_changed(2, 1, list)), (v(3), deployed(3, "p", 2))],
        set_aside: Vec::new(),
    };
    let shelf = Shelf::new(&store, [old, new]);
    let host = Host::start_with(Arc::new(feed), store, shelf.clone());
    host.reaches(4).await;
    assert_eq!(shelf.asked.load(Ordering::SeqCst), 2);
    let rows = state(&host.store).await;
    assert_eq!(rows[..2], [at("p", 2, 3), at("q", 1, 4)]);
    assert!(host.aside().await.is_empty(), "the tail was judged by the keys of the snapshot");
    assert_eq!(host.applier.follow().borrow().entities.len(), 3);
}

/// What hosts and origin have read, and more, is gone from the feed for ever. No snapshot reaches to where it begins now: the
/// origin goes on there, marks that, and the others follow.
#[tokio::test]
async fn w17_a_feed_that_has_lost_what_came_next_holds_nobody_up_for_ever() {
    let (feed, board) = (MemoryFeed::new(), MemoryFeed::new());
    for n in 1..=4 {
        put(&feed, &deployed(n, "p", n)).await;
    }
    feed.trim(v(3)).await.unwrap();
    let artifacts = Arc::new(SpoilableArtifacts::default());
    let snapshots = |store: &MemoryControlStore| {
        let (store, keys) = (Arc::new(store.clone()), Believing::new(trust()));
        Arc::new(Snapshots::new(
            store,
            artifacts.clone(),
            Arc::new(board.clone()),
            keys,
            Arc::new(SystemClock),
        ))
    };
    let at_one = || async {
        let store = MemoryControlStore::new(Arc::new(SystemClock));
        store.apply(v(1), &deployed(1, "p", 1)).await.unwrap();
        store
    };
    let (first, second) = (at_one().await, at_one().await);
    let marks = snapshots(&first);
    marks.publish().await.unwrap();
    let waiting = snapshots(&second);
    let host = Host::start_with(Arc::new(feed.clone()), second, waiting);
    let options = ApplierOptions { is_origin: true, ..options() };
    let origin = Host::start_as(Arc::new(feed), first, marks.clone(), options);
    origin.reaches(4).await;
    assert_eq!(host.store.cursor().await.unwrap(), v(1), "it waits for the origin's word");
    assert_eq!(marks.publish().await.unwrap().version, v(4));
    host.reaches(4).await;
    for store in [&origin.store, &host.store] {
        assert_eq!(state(store).await, [at("p", 4, 4)]);
    }
}

/// A host that knows nothing, and finds nothing to start from, does not begin with the tail of the feed alone.
#[tokio::test]
async fn an_origin_that_has_lost_all_does_not_mark_an_empty_fleet() {
    let source = Prepared::new((0..3).map(|_| Err(behind(7))));
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let options = ApplierOptions { is_origin: true, ..options() };
    let host = Host::start_as(source.clone(), store, Arc::new(NoBootstrap), options);
    millrace_tests::until("the last of the answers", || source.asked.lock().unwrap().len() > 3).await;
    assert_eq!(host.store.cursor().await.unwrap(), v(0));
}

fn behind(oldest: u64) -> ControlFeedError {
    ControlFeedError::BehindRetention { asked: 0, oldest }
}

/// The feed was emptied and has nothing yet: a snapshot leads nowhere, and the answer stays the same.
#[tokio::test]
async fn a_host_beyond_an_emptied_feed_does_not_ask_without_a_pause() {
    #[derive(Debug, Default)]
    struct Emptied(AtomicUsize);
    impl ControlSource for Emptied {
        fn name(&self) -> &'static str {
            "emptied"
        }
        fn poll(&self, _: ControlVersion, _: usize, _: Duration) -> BoxFuture<'_, Result<Polled>> {
            async move {
                self.0.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Err(behind(1))
            }
            .boxed()
        }
    }
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    store.apply(v(3), &deployed(1, "p", 1)).await.unwrap();
    let snapshot = Restore { version: v(3), ..Restore::default() };
    let shelf = Shelf::new(&store, vec![snapshot; 1_000]);
    let source = Arc::new(Emptied::default());
    let options = ApplierOptions { retry_min: LONG * 60, retry_max: LONG * 60, ..options() };
    let _host = Host::start_as(source.clone(), store, shelf, options);
    millrace_tests::until("it has asked", || source.0.load(Ordering::SeqCst) > 0).await;
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
    // Once for what is new, and once for how far the feed goes.
    assert_eq!(source.0.load(Ordering::SeqCst), 2, "it waits before it asks again");
}

/// What a comparison repairs is told to whoever follows.
#[tokio::test]
async fn what_is_healed_is_followed() {
    let feed = MemoryFeed::new();
    put(&feed, &deployed(1, "p", 1)).await;
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let shelf = Shelf::new(&store, []);
    let host = Host::start_with(Arc::new(feed), store, shelf.clone());
    host.reaches(1).await;
    let mut known = host.applier.follow();
    *shelf.healed.lock().unwrap() =
        Some(Restore { version: v(1), events: vec![(v(1), removed(9, "p", 2))], set_aside: Vec::new() });
    let told = known.wait_for(|known| known.entities.get("plugin:p").is_some_and(|p| p.revision == 2));
    tokio::time::timeout(LONG, told).await.expect("it is told").unwrap();
}

/// A restore was cut off, or failed, after its commit: what is in the store then, the list of keys above all, counts here
/// though there is nothing left to repair.
#[tokio::test]
async fn what_a_restore_brought_counts_though_nobody_told_of_it() {
    let feed = MemoryFeed::new();
    put(&feed, &deployed(1, "p", 1)).await;
    let host = Host::start(Arc::new(feed));
    host.reaches(1).await;
    let unheard = Restore {
        version: v(1),
        events: vec![(v(1), trust_changed(2, 1, trusted()))],
        set_aside: Vec::new(),
    };
    host.store.restore(unheard).await.unwrap();
    millrace_tests::until("the keys count", || host.keys.keys().revision() == 1).await;
    let mut known = host.applier.follow();
    let told = known.wait_for(|known| known.entities.contains_key("trust"));
    tokio::time::timeout(LONG, told).await.expect("it is told").unwrap();
}

/// Whoever follows sees all that was known at once, before the feed is there.
#[tokio::test]
async fn what_was_known_is_told_while_the_feed_is_away() {
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    store.apply(v(3), &deployed(1, "p", 1)).await.unwrap();
    let source = Prepared::new((0..10_000).map(|_| Err(away())));
    let host = Host::start_with(source, store, Arc::new(NoBootstrap));
    let mut known = host.applier.follow();
    let told = tokio::time::timeout(LONG, known.wait_for(|known| known.loaded)).await;
    let told = told.expect("it is told").unwrap().clone();
    assert_eq!(told.cursor, v(3));
    assert_eq!(told.entities["plugin:p"].event, id(1));
    host.stop().await;
}

/// It stops while a poll waits, and applies nothing afterwards.
#[tokio::test]
async fn it_stops_in_the_middle_of_a_poll() {
    #[derive(Debug)]
    struct Never(tokio::sync::watch::Sender<bool>);
    impl ControlSource for Never {
        fn name(&self) -> &'static str {
            "never"
        }
        fn poll(&self, _: ControlVersion, _: usize, _: Duration) -> BoxFuture<'_, Result<Polled>> {
            self.0.send_replace(true);
            std::future::pending().boxed()
        }
    }
    let source = Arc::new(Never(tokio::sync::watch::Sender::new(false)));
    let mut asked = source.0.subscribe();
    let host = Host::start(source);
    tokio::time::timeout(LONG, asked.wait_for(|asked| *asked)).await.expect("at once").unwrap();
    host.stop().await;
}
