//! What processors append to channels on a server: out of the outbox of their host, once, whichever host carries it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use millrace::backends::redis::{RedisChannels, RedisLeases, RedisLink, RedisLog, RedisOptions};
use millrace::backends::sqlite::{LogPlace, SqliteOptions, SqliteStore};
use millrace::channels::{
    Actor, Change, ChannelLimits, ChannelOptions, ChannelStore, EntryType, NewEntry, Outcome,
};
use millrace::checkpoints::{
    CarriedAppend, CarriedAppends, CarryError, ChannelCarrier, CheckpointStore, Commit, CommitError,
    EffectBatch, Fate, Generation, Outbox, OutboxBatch, OutboxDone, TaskId, WhileFull,
};
use millrace::clock::SystemClock;
use millrace::cluster::{Asked, LeaseStore};
use millrace::error::BackendError;
use millrace::event::{Event, EventBatch, Position};
use millrace::limits::{CAUSATION_DEPTH_MAX, OUTBOX_EVENTS_MAX};
use millrace::processors::{Carried, Relay};
use millrace::streams::EventLog;
use millrace_tests::conformance::appends::{
    channel, entries, make, party, process, send, texts, with_events,
};
use millrace_tests::conformance::effects::{Effects, commit, task, tenant};
use millrace_tests::conformance::event_log::ALL;
use millrace_tests::cutter::Cutter;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::until;
use tokio::sync::watch;

use super::{open, options};

/// A log with channels beside it, and what processors at some host append to them.
struct Place {
    log: RedisLog,
    beside: RedisChannels,
    channels: Arc<dyn ChannelStore>,
}

impl Place {
    async fn on(options: RedisOptions) -> Self {
        let log = open(options).await;
        let limits = ChannelLimits { rate_limited: false, ..ChannelLimits::default() };
        let beside = RedisChannels::beside(&log, limits, Arc::new(SystemClock));
        let channels: Arc<dyn ChannelStore> = Arc::new(beside.clone());
        Self { log, beside, channels }
    }

    fn relay(&self, outbox: Arc<dyn Outbox>) -> Relay {
        let log: Arc<dyn EventLog> = Arc::new(self.log.clone());
        Relay::new(outbox, log, None).with_channels(Some(Arc::new(self.beside.clone())))
    }

    async fn carry(&self, store: &SqliteStore) -> Carried {
        self.relay(Arc::new(store.clone())).carry().await.unwrap()
    }

    /// The texts of a channel of the process `p`, in order.
    async fn said(&self, name: &str) -> Vec<String> {
        texts(&self.channels, &channel("p", name)).await
    }
}

fn plain() -> ChannelOptions {
    ChannelOptions::default()
}

fn store(dir: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions { log: LogPlace::Elsewhere, ..SqliteOptions::new(dir) }).unwrap()
}

fn carried(events: u64) -> Carried {
    Carried { events, refused: 0, left: false }
}

/// A task of `board`, at some host.
struct Board {
    store: SqliteStore,
    task: TaskId,
    generation: Generation,
}

impl Board {
    async fn at(store: &SqliteStore) -> Self {
        let task = task("board", "acme", 0);
        let generation = store.claim(&task).await.unwrap().0;
        Self { store: store.clone(), task, generation }
    }

    /// Commits effects that no event has caused, as those of a flush.
    async fn flush(&self, position: u64, effects: &mut Effects) -> Result<(), CommitError> {
        let whole = commit(&self.task, self.generation, position, &[], effects);
        self.store.commit(whole).await.map(drop)
    }

    /// Commits effects of events that were handled, in one commit.
    async fn handle(&self, of: Vec<Arc<EffectBatch>>, position: u64) {
        let nothing = commit(&self.task, self.generation, position, &[], &mut Effects::default());
        self.store.commit(Commit { effects: of, ..nothing }).await.unwrap();
    }
}

/// Effects of the event at a position, to which so many processors have led.
fn caused_at_depth(position: u64, depth: u32, effects: &mut Effects) -> Arc<EffectBatch> {
    let mut batch = EventBatch::new(tenant("acme"));
    let event = Event {
        position: Position(position),
        aggregate: "leg",
        agg_id: "a",
        version: position,
        event_type: "x",
        payload: b"1",
        ..Event::default()
    };
    batch.push(&event).unwrap();
    let mut checked = Arc::unwrap_or_clone(effects.check_at_depth(&[], depth));
    checked.carry_on(&batch);
    Arc::new(checked)
}

fn caused(position: u64, effects: &mut Effects) -> Arc<EffectBatch> {
    caused_at_depth(position, 0, effects)
}

/// What was refused for good, in order: the channel and the code.
fn kept_apart(dir: &Path) -> Vec<(String, String)> {
    let db = rusqlite::Connection::open(dir.join("millrace.db")).unwrap();
    let mut found =
        db.prepare("SELECT aggregate, code FROM outbox_refused WHERE entry = 1 ORDER BY seq").unwrap();
    let rows = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[tokio::test]
async fn what_a_commit_appends_waits_in_the_store_and_is_carried_in_order_with_what_it_emits() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let place = Place::on(options(&server)).await;
        make(&place.channels, "p", &[("c", plain()), ("d", plain())]).await;
        send(&place.channels, &channel("p", "c"), "ask").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = store(dir.path());
        let board = Board::at(&at).await;
        let mut first = Effects::default();
        first.append("p", "c", "one").replying_to(1).append("p", "d", "other").emit("e", 1, "{}");
        board.handle(vec![caused(1, &mut first)], 1).await;
        let mut second = Effects::default();
        second.append("p", "c", "").append_of_type("end", "p", "c", "bye").emit("e", 2, "{}");
        board.handle(vec![caused(2, &mut second)], 2).await;
        assert_eq!((at.len(), place.said("c").await), (6, vec!["ask".to_owned()]));
        at.close().await;
        drop((at, board));
        let at = store(dir.path());
        assert_eq!(at.len(), 6, "they are in the store, and outlive its closing");
        assert_eq!(place.carry(&at).await, carried(6));
        assert!(at.is_empty());
        let board = || "plugin:board".to_owned();
        let (data, end) = (EntryType::Data, EntryType::End);
        assert_eq!(
            entries(&place.channels, &channel("p", "c")).await,
            [
                (1, "ada".to_owned(), 0, 1, data, "ask".to_owned()),
                (2, board(), 1, 1, data, "one".to_owned()),
                (3, board(), 1, 2, data, String::new()),
                (4, board(), 1, 3, end, "bye".to_owned()),
            ]
        );
        assert_eq!(place.said("d").await, ["other"]);
        let page = place.log.read(&tenant("acme"), Position::START, ALL).await.unwrap();
        assert_eq!(page.events.iter().map(|event| event.version).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(place.carry(&at).await, Carried::default());
    }
}

/// Forgets what was settled, once: as a host does that ends between the append and that.
#[derive(Debug)]
struct EndsBeforeItSettles {
    store: SqliteStore,
    left: AtomicUsize,
}

impl Outbox for EndsBeforeItSettles {
    fn waiting(&self, held: &[Arc<str>]) -> BoxFuture<'_, Result<Vec<OutboxBatch>, BackendError>> {
        self.store.waiting(held)
    }

    fn settle(&self, done: OutboxDone) -> BoxFuture<'_, Result<(), BackendError>> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return ready(Err(BackendError::Closed)).boxed();
        }
        self.store.settle(done)
    }

    fn added(&self) -> watch::Receiver<u64> {
        self.store.added()
    }

    fn len(&self) -> u64 {
        self.store.len()
    }

    fn is_empty_of(&self, processor: &str) -> bool {
        self.store.is_empty_of(processor)
    }
}

/// The end of a half is among them: carried once more it must not be taken for something that comes behind the end.
#[tokio::test]
async fn what_was_carried_and_not_crossed_off_is_in_its_channel_once() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", with_events()), ("d", plain())]).await;
    let dir = tempfile::tempdir().unwrap();
    let at = store(dir.path());
    let board = Board::at(&at).await;
    let mut both = Effects::default();
    both.append("p", "c", "1").append("p", "d", "1").append("p", "c", "2");
    board.handle(vec![caused(1, &mut both)], 1).await;
    // Two that say the same are two, and so are those of two flushes.
    for position in [1, 2] {
        board
            .flush(position, Effects::default().append("p", "d", "flushed").append("p", "d", "flushed"))
            .await
            .unwrap();
    }
    let mut end = Effects::default();
    board.handle(vec![caused(3, end.append_of_type("end", "p", "c", ""))], 3).await;
    let outbox = EndsBeforeItSettles { store: at.clone(), left: AtomicUsize::new(1) };
    let relay = place.relay(Arc::new(outbox));
    assert!(matches!(relay.carry().await, Err(BackendError::Closed)));
    assert_eq!(at.len(), 8);
    assert_eq!(place.said("c").await, ["1", "2", ""], "it has arrived");
    // Behind what is there already, in the same call.
    let mut more = Effects::default();
    board.handle(vec![caused(4, more.append("p", "d", "last"))], 4).await;
    assert_eq!(relay.carry().await.unwrap(), carried(9));
    assert_eq!(place.said("c").await, ["1", "2", ""]);
    assert_eq!(place.said("d").await, ["1", "flushed", "flushed", "flushed", "flushed", "last"]);
    until("the log has the events", || place.log.bounds().newest == Position(3)).await;
    assert!(at.is_empty());
    at.close().await;
    assert!(kept_apart(dir.path()).is_empty());
}

/// The other host has a store of its own, cuts its batches in another way, and begins with the oldest event.
#[tokio::test]
async fn a_host_that_takes_over_and_handles_everything_again_appends_nothing_twice() {
    let server = RedisServer::durable(Engine::Valkey);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", plain()), ("d", plain())]).await;
    let effects = |position: u64| {
        let mut effects = Effects::default();
        effects.append("p", "c", &format!("{position}a")).append("p", "d", &format!("{position}"));
        caused(position, effects.append("p", "c", &format!("{position}b")))
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (store(one.path()), store(two.path()));
    let board = Board::at(&first).await;
    board.handle(vec![effects(1), effects(2)], 2).await;
    assert_eq!(place.carry(&first).await, carried(6));
    // This is left behind.
    board.handle(vec![effects(3)], 3).await;
    let elsewhere = Place::on(options(&server)).await;
    let board = Board::at(&second).await;
    for position in 1..=4 {
        board.handle(vec![effects(position)], position).await;
    }
    assert_eq!(elsewhere.carry(&second).await, carried(12));
    assert_eq!(place.carry(&first).await, carried(3), "and what was left behind says nothing new");
    let expected: Vec<_> = (1..=4).flat_map(|n| [format!("{n}a"), format!("{n}b")]).collect();
    assert_eq!(place.said("c").await, expected);
    assert_eq!(place.said("d").await, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn what_was_refused_once_is_not_appended_by_a_host_that_takes_over_later() {
    let server = RedisServer::durable(Engine::Redis);
    let (place, elsewhere) = (Place::on(options(&server)).await, Place::on(options(&server)).await);
    make(&place.channels, "p", &[("c", plain())]).await;
    place.channels.change(&process("p"), Actor::Host, Change::Unassign).await.unwrap();
    let carry = async |place: &Place, keys: &[&str]| {
        let appends = to_c(keys.iter().map(|key| one(key, key)).collect());
        place.beside.carry("board", &appends, None, WhileFull::Wait).await.unwrap()
    };
    let refused = carry(&place, &["1.0"]).await;
    assert!(matches!(&refused[..], [Fate::Refused { code: "channel_forbidden", .. }]), "{refused:?}");
    let assign = Change::Assign(party("plugin:board"));
    place.channels.change(&process("p"), Actor::Host, assign).await.unwrap();
    assert_eq!(carry(&place, &["2.0"]).await, [Fate::Appended]);
    let fates = carry(&elsewhere, &["1.0", "2.0", "3.0"]).await;
    assert_eq!(fates, [Fate::Repeated, Fate::Repeated, Fate::Appended]);
    assert_eq!(place.said("c").await, ["2.0", "3.0"]);
}

fn one(key: &str, text: &str) -> CarriedAppend {
    let entry = NewEntry { payload: Some(text.to_owned().into()), ..NewEntry::default() };
    CarriedAppend { key: key.into(), entry, depth: 1, scope: "".into(), traceparent: "".into() }
}

fn to_c(appends: Vec<CarriedAppend>) -> CarriedAppends {
    CarriedAppends { channel: channel("p", "c"), appends }
}

#[tokio::test]
async fn a_host_that_lost_its_lease_appends_nothing() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", with_events())]).await;
    let leases = RedisLeases::new(RedisLink::new(server.url().parse().unwrap(), None, "millrace"));
    let ttl = Duration::from_secs(600);
    let Asked::Granted(former) = leases.acquire("board", "one", ttl).await.unwrap() else {
        panic!("it is free")
    };
    leases.release(&former).await.unwrap();
    let Asked::Granted(lease) = leases.acquire("board", "two", ttl).await.unwrap() else {
        panic!("it is free")
    };
    let entry = to_c(vec![one("1.0", "x")]);
    let under =
        |generation| place.beside.carry("board", &entry, Some(("board", generation)), WhileFull::Wait);
    let refused = under(former.fence.generation).await;
    assert!(matches!(refused, Err(CarryError::Fenced)), "{refused:?}");
    assert!(place.said("c").await.is_empty());
    assert_eq!(under(lease.fence.generation).await.unwrap(), [Fate::Appended]);
    assert_eq!(under(lease.fence.generation).await.unwrap(), [Fate::Repeated]);
    assert!(matches!(under(former.fence.generation).await, Err(CarryError::Fenced)));
    assert_eq!(place.said("c").await, ["x"]);
}

#[tokio::test]
async fn an_entry_whose_answer_is_lost_is_appended_once_with_its_event() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let place = Place::on(RedisOptions::new(address)).await;
    make(&place.channels, "p", &[("c", with_events())]).await;
    let carry = async |appends: Vec<CarriedAppend>| {
        let appends = to_c(appends);
        place.beside.carry("board", &appends, None, WhileFull::Wait).await.unwrap()
    };
    assert_eq!(carry(vec![one("1.0", "x")]).await, [Fate::Appended]);
    cutter.cut_after("unlucky");
    let mut end = one("2.1", "");
    end.entry.entry_type = EntryType::End;
    let fates = carry(vec![one("2.0", "unlucky"), end]).await;
    assert_eq!((fates, cutter.cuts()), (vec![Fate::Repeated, Fate::Repeated], 1));
    assert_eq!(place.said("c").await, ["x", "unlucky", ""]);
    until("the log has three events", || place.log.bounds().newest == Position(3)).await;
}

#[tokio::test]
async fn what_a_channel_refuses_is_dropped_and_counted_and_holds_up_nothing() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", plain()), ("loops", with_events()), ("ends", plain())]).await;
    for name in ["closed", "other", "former"] {
        make(&place.channels, name, &[(name, plain())]).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = store(dir.path());
    let board = Board::at(&at).await;
    board.handle(vec![caused(1, Effects::default().append("former", "former", "mine"))], 1).await;
    assert_eq!(place.carry(&at).await, carried(1));
    let close = Change::Close { outcome: Outcome::Success, reason: String::new() };
    place.channels.change(&process("closed"), Actor::Host, close).await.unwrap();
    for of in ["other", "former"] {
        let assign = Change::Assign(party("plugin:other"));
        place.channels.change(&process(of), Actor::Host, assign).await.unwrap();
    }
    let mut effects = Effects::default();
    effects.append("nowhere", "none", "x").append("p", "missing", "x").append("p", "c", "first");
    effects.append("other", "other", "x").append("former", "former", "x").append("closed", "closed", "x");
    effects.append("p", "c", "answers nothing").replying_to(9).append("p", "c", "second");
    effects.append_of_type("end", "p", "ends", "").append("p", "ends", "behind the end");
    let of_two = caused(2, &mut effects);
    let deep = caused_at_depth(3, CAUSATION_DEPTH_MAX, Effects::default().append("p", "loops", "too deep"));
    let after = caused(4, Effects::default().append("p", "c", "third").emit("e", 1, "{}"));
    board.handle(vec![of_two, deep, after], 4).await;
    assert_eq!(place.carry(&at).await, Carried { events: 5, refused: 8, left: false });
    assert!(at.is_empty());
    assert_eq!(place.said("c").await, ["first", "second", "third"]);
    assert_eq!((place.said("ends").await, place.said("loops").await), (vec![String::new()], Vec::new()));
    assert_eq!(texts(&place.channels, &channel("former", "former")).await, ["mine"]);
    at.close().await;
    let mut refused = kept_apart(dir.path());
    refused.sort();
    let expected = [
        ("c", "channel_reply_unknown"),
        ("closed", "process_closed"),
        ("ends", "channel_half_closed"),
        ("former", "channel_access_revoked"),
        ("loops", "causation_depth_max"),
        ("missing", "channel_unknown"),
        ("none", "channel_unknown"),
        ("other", "channel_forbidden"),
    ];
    let expected: Vec<_> = expected.iter().map(|(name, code)| ((*name).into(), (*code).into())).collect();
    assert_eq!(refused, expected);
}

/// What comes behind it waits as long, in order, and other processors do not.
#[tokio::test]
async fn an_entry_for_a_full_channel_is_given_time_and_then_holds_up_nothing() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    let small = ChannelOptions { entries_max: 1, ..plain() };
    make(&place.channels, "p", &[("small", small), ("c", plain())]).await;
    let dir = tempfile::tempdir().unwrap();
    let at = store(dir.path());
    let board = Board::at(&at).await;
    let mut first = Effects::default();
    first.append("p", "small", "fits").append("p", "small", "does not").append("p", "small", "nor this");
    first.append_of_type("end", "p", "small", "");
    board.handle(vec![caused(1, &mut first)], 1).await;
    board.handle(vec![caused(2, Effects::default().emit("e", 1, "{}").append("p", "c", "behind"))], 2).await;
    let patient = place.relay(Arc::new(at.clone()));
    assert_eq!(patient.carry().await.unwrap(), Carried { events: 1, refused: 0, left: true });
    assert_eq!(patient.carry().await.unwrap(), Carried { events: 0, refused: 0, left: true });
    assert_eq!(place.said("small").await, ["fits"], "the end waits for what is before it");
    assert_eq!((place.log.bounds().newest, place.said("c").await), (Position::START, Vec::new()));
    let hasty = place.relay(Arc::new(at.clone())).with_full_wait(Duration::ZERO);
    assert!(hasty.carry().await.unwrap().left, "it counts from here on");
    assert_eq!(hasty.carry().await.unwrap(), Carried { events: 3, refused: 2, left: false });
    assert_eq!(
        (place.said("small").await, place.said("c").await),
        (vec!["fits".into(), String::new()], vec!["behind".to_owned()])
    );
    assert!(at.is_empty());
    at.close().await;
    let full = ("small".to_owned(), "channel_full".to_owned());
    assert_eq!(kept_apart(dir.path()), [full.clone(), full]);
}

#[tokio::test]
async fn what_is_appended_has_its_room_in_the_outbox_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let at = store(dir.path());
    let board = Board::at(&at).await;
    let some = || {
        let mut effects = Effects::default();
        for _ in 0..1_000 {
            effects.append("p", "c", "x");
        }
        effects
    };
    for position in 1..=OUTBOX_EVENTS_MAX / 1_000 {
        board.flush(position, &mut some()).await.unwrap();
    }
    let refused = board.flush(200, Effects::default().append("p", "c", "x")).await.unwrap_err();
    assert!(refused.to_string().contains("outbox_events_max is 100000"), "{refused}");
    assert_eq!(at.len(), OUTBOX_EVENTS_MAX);
}

/// What is remembered of a plugin's appends goes with the events of the log that they can come from.
#[tokio::test]
async fn what_was_appended_is_forgotten_with_what_the_log_had_then() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", with_events())]).await;
    let carry = async |key: &str| {
        let appends = to_c(vec![one(key, "x")]);
        place.beside.carry("board", &appends, None, WhileFull::Wait).await.unwrap()
    };
    for key in ["1.0", "2.0", "3.0"] {
        assert_eq!(carry(key).await, [Fate::Appended]);
    }
    let kept = "{millrace}:channels:carried:acme:board";
    assert_eq!(server.number(&["ZCARD", kept]), 3);
    // Retention has passed the first two.
    server.command(&["HSET", "{millrace}:meta", "trimmed", "3"]);
    assert_eq!(carry("3.0").await, [Fate::Repeated]);
    assert_eq!(carry("4.0").await, [Fate::Appended]);
    assert_eq!(server.number(&["ZCARD", kept]), 2);
    // And all of it, of a plugin that appends no more.
    server.command(&["HSET", "{millrace}:meta", "trimmed", "9"]);
    place.channels.expire(millrace::event::Micros(1)).await.unwrap();
    assert_eq!(server.number(&["EXISTS", kept, "{millrace}:channels:carriers"]), 0);
}

#[tokio::test]
async fn an_entry_carried_to_a_channel_with_events_is_an_event_one_deeper() {
    let server = RedisServer::durable(Engine::Redis);
    let place = Place::on(options(&server)).await;
    make(&place.channels, "p", &[("c", with_events())]).await;
    let dir = tempfile::tempdir().unwrap();
    let at = store(dir.path());
    let board = Board::at(&at).await;
    board.handle(vec![caused_at_depth(7, 4, Effects::default().append("p", "c", "deep"))], 7).await;
    assert_eq!(place.carry(&at).await, carried(1));
    until("the log has it", || place.log.bounds().newest == Position(1)).await;
    let page = place.log.read(&tenant("acme"), Position::START, ALL).await.unwrap();
    let event = page.events.get(0);
    assert_eq!((event.event_type, event.agg_id, event.version), ("channel.data", "p_c", 1));
    assert_eq!(event.depth, 5);
    let said: serde_json::Value = serde_json::from_slice(event.payload).unwrap();
    assert_eq!((&said["text"], &said["senderid"]), (&"deep".into(), &"plugin:board".into()));
}
