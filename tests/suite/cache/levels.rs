//! Both levels together, loads that end badly, and a second level that is away. What is given a level runs on every
//! one.

use std::convert::Infallible;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt as _, poll};
use millrace::cache::{
    Ask, Cache, CacheOptions, Change, Holds, Keyspace, Loaded, Lookup, Partition, ReadThrough,
};
use millrace::limits::{CACHE_PAUSE, CACHE_VALUE_BYTES_MAX};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};

use super::{Counting, Level, memory_level, on, tenant, two_levels};

fn rows(cache: &ReadThrough) -> Keyspace {
    cache.keyspace(Keyspace::new("rows", Holds::RowsOf("order".into())))
}

fn results(cache: &ReadThrough) -> Keyspace {
    cache.keyspace(Keyspace::new("results", Holds::ResultsOf("order".into())))
}

fn acme(keyspace: &Keyspace, key: &str) -> Ask {
    Ask::new(keyspace, &Partition::Tenant(tenant("acme")), key)
}

/// Answers whether it was loaded.
async fn loads(cache: &ReadThrough, ask: &Ask) -> bool {
    let mut loaded = false;
    let load = async {
        loaded = true;
        Ok::<_, Infallible>(Loaded::from(Bytes::from_static(b"v")))
    };
    let Ok(found) = cache.get_or_load(ask, load).await;
    assert_eq!(found.value.as_deref(), Some(&b"v"[..]));
    loaded
}

pub(super) async fn c76_a_warm_read_does_not_ask_the_second_level(level: Level) {
    let second = Counting::over(level);
    let cache = two_levels(100, &second);
    let ask = acme(&rows(&cache), "1");
    assert!(loads(&cache, &ask).await);
    let asked = second.gets();
    assert!(!loads(&cache, &ask).await && second.gets() == asked);
    // Another host finds it in the second level, and then in its own first one.
    let other = two_levels(100, &second);
    assert!(!loads(&other, &ask).await && second.gets() == asked + 1);
    assert!(!loads(&other, &ask).await && second.gets() == asked + 1);
}

pub(super) async fn c76_a_change_of_an_entity_takes_its_results_from_both_levels(level: Level) {
    let second = Counting::over(level);
    let (cache, other) = (two_levels(100, &second), two_levels(100, &second));
    let ask = acme(&results(&cache), "list");
    assert!(loads(&cache, &ask).await);
    cache.changed(Change { tenant: &tenant("acme"), scope: "", entity: "order", ids: &["7"] }).await;
    assert!(loads(&cache, &ask).await, "it is resolved again");
    assert!(!loads(&other, &ask).await, "for every host");
}

pub(super) async fn c76_a_change_of_one_row_leaves_its_siblings(level: Level) {
    let second = Counting::over(level);
    let cache = two_levels(100, &second);
    let rows = rows(&cache);
    for id in ["1", "2"] {
        assert!(loads(&cache, &acme(&rows, id)).await);
    }
    cache.changed(Change { tenant: &tenant("acme"), scope: "", entity: "order", ids: &["1"] }).await;
    let asked = second.gets();
    assert!(!loads(&cache, &acme(&rows, "2")).await && second.gets() == asked);
    assert!(loads(&cache, &acme(&rows, "1")).await, "only what changed is loaded");
}

pub(super) async fn c76_evicting_here_does_not_touch_the_second_level(level: Level) {
    let second = Counting::over(level);
    let cache = two_levels(100, &second);
    let (rows, results) = (rows(&cache), results(&cache));
    let asks = [acme(&rows, "1"), acme(&rows, "2"), acme(&results, "list")];
    for ask in &asks {
        assert!(loads(&cache, ask).await);
    }
    let (asked, written) = (second.gets(), second.writes());
    cache.evict(Change { tenant: &tenant("acme"), scope: "", entity: "order", ids: &["1"] });
    cache.evict(Change { tenant: &tenant("acme"), scope: "", entity: "nobody's", ids: &["2"] });
    assert_eq!((second.gets(), second.writes()), (asked, written));
    for (ask, again) in asks.iter().zip([1, 1, 2]) {
        assert!(!loads(&cache, ask).await, "the second level has it still");
        assert_eq!(second.gets(), asked + again);
    }
}

#[tokio::test]
async fn c76_the_first_level_is_bounded_in_entries_and_bytes() {
    let cache = ReadThrough::new(&CacheOptions { entries_max: 3, ..CacheOptions::default() }, None);
    let rows = rows(&cache);
    for id in ["1", "2", "3", "1", "4"] {
        loads(&cache, &acme(&rows, id)).await;
    }
    assert_eq!(cache.size().0, 3);
    assert!(!loads(&cache, &acme(&rows, "1")).await, "it was used after 2");
    assert!(loads(&cache, &acme(&rows, "2")).await);
    let small = ReadThrough::new(&CacheOptions { bytes_max: 3_000, ..CacheOptions::default() }, None);
    for id in 0..100 {
        loads(&small, &acme(&rows, &id.to_string())).await;
        assert!(small.size().1 <= 3_000, "{:?}", small.size());
    }
    assert!(small.size().0 > 1 && !loads(&small, &acme(&rows, "99")).await);
}

#[tokio::test]
async fn a_value_that_is_too_large_is_answered_and_not_kept() {
    let second = Counting::over(memory_level());
    let cache = two_levels(100, &second);
    let ask = acme(&rows(&cache), "1");
    let large = Bytes::from(vec![7; CACHE_VALUE_BYTES_MAX + 1]);
    let Ok(loaded) =
        cache.get_or_load(&ask, async { Ok::<_, Infallible>(Loaded::from(large.clone())) }).await;
    assert_eq!(loaded.value, Some(large));
    assert_eq!(cache.get(&ask).await, None);
    let nothing = Loaded { value: None, as_of: 0 };
    assert_eq!(cache.get_or_load(&ask, async { Ok::<_, Infallible>(nothing.clone()) }).await, Ok(nothing));
    assert!(loads(&cache, &ask).await, "nothing is not kept either");
}

/// Begins a load that does not end, and another read that waits for it.
macro_rules! leader_and_follower {
    ($cache:ident, $ask:ident, $load:expr => $leader:ident, $follower:ident) => {
        let mut $leader = Box::pin($cache.get_or_load(&$ask, $load));
        assert!(poll!($leader.as_mut()).is_pending());
        let mut $follower = Box::pin(loads(&$cache, &$ask));
        assert!(poll!($follower.as_mut()).is_pending(), "it waits for the first");
    };
}

#[tokio::test]
async fn sn16_a_load_that_is_given_up_lets_the_next_one_load() {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let ask = acme(&rows(&cache), "1");
    leader_and_follower!(cache, ask, pending::<Result<Loaded, Infallible>>() => leader, follower);
    drop(leader);
    assert!(follower.await, "it loads for itself");
}

#[tokio::test]
async fn sn16_a_load_that_panics_lets_the_next_one_load() {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let ask = acme(&rows(&cache), "1");
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let panics = async {
        wait.await.unwrap();
        panic!("the test wants it");
    };
    leader_and_follower!(cache, ask, AssertUnwindSafe(panics).map(|()| Ok::<_, Infallible>(Loaded::from(Bytes::new()))) => leader, follower);
    go.send(()).unwrap();
    assert!(AssertUnwindSafe(leader).catch_unwind().await.is_err());
    assert!(follower.await, "it loads for itself");
}

#[tokio::test]
async fn a_load_that_fails_fails_for_its_caller_alone_and_is_not_kept() {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let ask = acme(&rows(&cache), "1");
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let fails = async {
        wait.await.unwrap();
        Err::<Loaded, _>("no such luck")
    };
    leader_and_follower!(cache, ask, fails => leader, follower);
    go.send(()).unwrap();
    assert_eq!(leader.await, Err("no such luck"));
    assert!(follower.await);
}

/// The rule for who waits: whoever reads after an invalidation does not get what was read before it.
#[tokio::test]
async fn sn16_who_reads_after_an_invalidation_does_not_wait_for_a_load_from_before() {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let results = results(&cache);
    let ask = acme(&results, "list");
    let mut before = Box::pin(cache.get_or_load(&ask, pending::<Result<Loaded, Infallible>>()));
    assert!(poll!(before.as_mut()).is_pending());
    cache.changed(Change { tenant: &tenant("acme"), scope: "", entity: "order", ids: &[] }).await;
    assert!(loads(&cache, &ask).await);
}

/// Waits until the second level is asked again after an outage.
async fn recovered(cache: &ReadThrough, second: &Counting) {
    let (asked, begin) = (second.gets(), Instant::now());
    let other = acme(&Keyspace::new("other", Holds::Values), "k");
    while second.gets() == asked {
        assert!(begin.elapsed().as_secs() < 60, "it is not asked again");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        loads(cache, &other).await;
        cache.evict_all();
    }
}

pub(super) async fn sn24_a_second_level_that_fails_is_left_alone_and_changes_no_answer(level: Level) {
    let second = Counting::over(level);
    let cache = two_levels(100, &second);
    let rows = rows(&cache);
    second.fail(true);
    // The pause begins with the call that fails, so the time is taken before it.
    let begin = Instant::now();
    assert!(loads(&cache, &acme(&rows, "1")).await);
    let asked = second.gets();
    for turn in 0..100 {
        loads(&cache, &acme(&rows, "2")).await;
        cache.evict_all();
        assert!(loads(&cache, &acme(&rows, "3")).await, "turn {turn}");
        cache.evict_all();
    }
    let again = begin.elapsed().as_millis() / CACHE_PAUSE.as_millis();
    assert!((second.gets() - asked) as u128 <= again, "it is not asked again at once");
    second.fail(false);
    recovered(&cache, &second).await;
    assert!(loads(&cache, &acme(&rows, "4")).await);
    cache.evict_all();
    assert!(!loads(&cache, &acme(&rows, "4")).await, "it serves again");
}

/// What could not be said while it was away is said before it is asked again.
pub(super) async fn sn24_an_invalidation_during_an_outage_is_made_up_for(level: Level) {
    let second = Counting::over(level);
    let cache = two_levels(100, &second);
    let (rows, results) = (rows(&cache), results(&cache));
    let (row, list) = (acme(&rows, "1"), acme(&results, "list"));
    assert!(loads(&cache, &row).await && loads(&cache, &list).await);
    second.fail(true);
    cache.changed(Change { tenant: &tenant("acme"), scope: "", entity: "order", ids: &["1"] }).await;
    second.fail(false);
    recovered(&cache, &second).await;
    assert!(loads(&cache, &list).await && loads(&cache, &row).await, "their values were from before");
    cache.evict_all();
    assert!(!loads(&cache, &row).await && !loads(&cache, &list).await, "it serves again");
}

pub(super) async fn sn24_an_emptied_killed_or_paused_server_changes_no_answer(engine: Engine) {
    let mut server = RedisServer::start(engine, Keeps::Nothing, &[]);
    let options = CacheOptions { first_level: false, ..CacheOptions::default() };
    let cache = ReadThrough::new(&options, Some(Arc::new(on(&server))));
    let ask = acme(&rows(&cache), "1");
    assert!(loads(&cache, &ask).await && !loads(&cache, &ask).await);
    server.command(&["FLUSHALL"]);
    assert!(loads(&cache, &ask).await && !loads(&cache, &ask).await, "it is kept anew");
    server.pause();
    assert!(loads(&cache, &ask).await);
    server.resume();
    server.kill();
    assert!(loads(&cache, &ask).await);
}

/// A mark that the server evicted has another token afterwards; a counter would begin again and find the old entry.
#[tokio::test]
async fn sn16_a_mark_that_was_evicted_makes_no_old_value_good_again() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let seam: Arc<dyn Cache> = Arc::new(on(&server));
    let options = CacheOptions { first_level: false, ..CacheOptions::default() };
    let cache = ReadThrough::new(&options, Some(Arc::clone(&seam)));
    let keyspace = results(&cache);
    let (ask, acme) = (acme(&keyspace, "list"), tenant("acme"));
    let entry = keyspace.entry(&Partition::Tenant(acme.clone()), "list");
    assert!(loads(&cache, &ask).await);
    let change = Change { tenant: &acme, scope: "", entity: "order", ids: &[] };
    for turn in 0..3 {
        cache.changed(change).await;
        for mark in &entry.marks {
            server.command(&["DEL", &format!("{{test}}:cache:m:{mark}")]);
        }
        assert!(matches!(seam.get(&entry).await.unwrap(), Lookup::Miss(_)), "turn {turn}");
        assert!(loads(&cache, &ask).await && !loads(&cache, &ask).await);
    }
    // Every key ends by itself.
    let keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*"])).unwrap();
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("{test}:cache:")));
    for key in &keys {
        let left: i64 = redis::from_redis_value(server.command(&["PTTL", key])).unwrap();
        assert!(left > 0, "{key} stays for ever");
    }
}
