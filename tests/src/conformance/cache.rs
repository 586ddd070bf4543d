//! What every second level of the cache must do, through the engine that uses it and at the seam.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace::cache::{
    Ask, Cache, CacheOptions, Change, Entry, Holds, Keyspace, Loaded, Lookup, Partition, ReadThrough, Stored,
};
use millrace::event::TenantId;

/// Runs all of it for a backend.
#[macro_export]
macro_rules! cache_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, cache, $setup;
            c24_what_was_set_is_found,
            c25_a_tenant_and_a_scope_do_not_see_what_others_have,
            c26_another_version_of_the_keyspace_finds_nothing,
            c27_a_removed_value_is_gone_and_removing_nothing_is_no_error,
            c75_what_is_everybodys_is_found_by_all_tenants,
            c75_keys_and_keyspaces_are_forgotten_and_others_stay,
            c75_many_misses_at_the_same_time_are_one_load,
            c75_a_value_ends_with_its_time,
            c75_a_change_of_an_entity_reaches_three_partitions_and_no_sibling,
            c75_a_change_without_a_scope_reaches_every_scope_of_its_tenant,
            sn16_a_load_from_before_an_invalidation_is_not_stored,
            sn16_of_two_who_miss_the_same_the_faster_stores,
            sn16_a_value_that_was_removed_while_it_was_loaded_is_not_stored_by_another_host,
        );
    };
}

/// An engine that keeps nothing itself, as every host after a miss.
fn engine(cache: &Arc<dyn Cache>) -> ReadThrough {
    let options = CacheOptions { first_level: false, ..CacheOptions::default() };
    ReadThrough::new(&options, Some(Arc::clone(cache)))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a tenant's name")
}

fn of(name: &str) -> Partition {
    Partition::Tenant(tenant(name))
}

fn scope(tenant_name: &str, scope: &str) -> Partition {
    Partition::Scope(tenant(tenant_name), scope.into())
}

fn values() -> Keyspace {
    Keyspace::new("values", Holds::Values)
}

fn results(cache: &ReadThrough) -> Keyspace {
    cache.keyspace(Keyspace::new("results", Holds::ResultsOf("order".into())))
}

async fn set(cache: &ReadThrough, keyspace: &Keyspace, partition: &Partition, key: &str, value: &str) {
    cache.set(&Ask::new(keyspace, partition, key), Bytes::copy_from_slice(value.as_bytes())).await;
}

async fn get(cache: &ReadThrough, keyspace: &Keyspace, partition: &Partition, key: &str) -> Option<String> {
    let found = cache.get(&Ask::new(keyspace, partition, key)).await;
    found.map(|value| String::from_utf8_lossy(&value).into_owned())
}

async fn load(cache: &ReadThrough, ask: &Ask, value: &'static str) -> Bytes {
    let loaded =
        cache.get_or_load(ask, async { Ok::<_, Infallible>(Loaded::from(Bytes::from(value))) }).await;
    let Ok(loaded) = loaded;
    loaded.value.expect("a value was loaded")
}

fn change<'a>(tenant: &'a TenantId, scope: &'a str, ids: &'a [&'a str]) -> Change<'a> {
    Change { tenant, scope, entity: "order", ids }
}

pub async fn c24_what_was_set_is_found(cache: Arc<dyn Cache>) {
    let (cache, acme) = (engine(&cache), of("acme"));
    assert_eq!(get(&cache, &values(), &acme, "k").await, None);
    set(&cache, &values(), &acme, "k", "one").await;
    assert_eq!(get(&cache, &values(), &acme, "k").await.as_deref(), Some("one"));
    set(&cache, &values(), &acme, "k", "two").await;
    assert_eq!(get(&cache, &values(), &acme, "k").await.as_deref(), Some("two"));
    // Whatever a key holds, it is that key and no other.
    for key in ["", "a/b", "a%2Fb", "{acme}:x", "schlüssel \u{0}"] {
        assert_eq!(get(&cache, &values(), &acme, key).await, None, "{key:?}");
        set(&cache, &values(), &acme, key, key).await;
        assert_eq!(get(&cache, &values(), &acme, key).await.as_deref(), Some(key));
    }
}

pub async fn c25_a_tenant_and_a_scope_do_not_see_what_others_have(cache: Arc<dyn Cache>) {
    let cache = engine(&cache);
    let partitions = [
        Partition::Global,
        of("acme"),
        of("apex"),
        scope("acme", ""),
        scope("acme", "eu"),
        scope("apex", "eu"),
    ];
    for (number, partition) in partitions.iter().enumerate() {
        assert_eq!(get(&cache, &values(), partition, "k").await, None, "{partition:?}");
        set(&cache, &values(), partition, "k", &number.to_string()).await;
    }
    for (number, partition) in partitions.iter().enumerate() {
        assert_eq!(get(&cache, &values(), partition, "k").await, Some(number.to_string()), "{partition:?}");
    }
}

pub async fn c26_another_version_of_the_keyspace_finds_nothing(cache: Arc<dyn Cache>) {
    let (cache, acme) = (engine(&cache), of("acme"));
    set(&cache, &values(), &acme, "k", "old").await;
    assert_eq!(get(&cache, &values().version(2), &acme, "k").await, None);
    set(&cache, &values().version(2), &acme, "k", "new").await;
    assert_eq!(get(&cache, &values(), &acme, "k").await.as_deref(), Some("old"));
}

pub async fn c27_a_removed_value_is_gone_and_removing_nothing_is_no_error(cache: Arc<dyn Cache>) {
    let (cache, acme) = (engine(&cache), of("acme"));
    set(&cache, &values(), &acme, "k", "one").await;
    set(&cache, &values(), &acme, "l", "two").await;
    cache.remove(&values(), &acme, &["k", "absent"]).await;
    assert_eq!(get(&cache, &values(), &acme, "k").await, None);
    assert_eq!(get(&cache, &values(), &acme, "l").await.as_deref(), Some("two"));
    cache.remove(&values(), &acme, &["k"]).await;
    cache.remove(&values(), &acme, &[]).await;
}

pub async fn c75_what_is_everybodys_is_found_by_all_tenants(cache: Arc<dyn Cache>) {
    let (one, other) = (engine(&cache), engine(&cache));
    set(&one, &values(), &Partition::Global, "k", "shared").await;
    assert_eq!(get(&other, &values(), &Partition::Global, "k").await.as_deref(), Some("shared"));
}

pub async fn c75_keys_and_keyspaces_are_forgotten_and_others_stay(cache: Arc<dyn Cache>) {
    let cache = engine(&cache);
    let other = Keyspace::new("values2", Holds::Values);
    for partition in [of("acme"), of("apex")] {
        for key in ["a", "b"] {
            set(&cache, &values(), &partition, key, key).await;
            set(&cache, &other, &partition, key, key).await;
        }
    }
    cache.invalidate_keyspace(&values(), &of("acme")).await;
    for key in ["a", "b"] {
        assert_eq!(get(&cache, &values(), &of("acme"), key).await, None);
        assert_eq!(get(&cache, &values(), &of("apex"), key).await.as_deref(), Some(key));
        assert_eq!(get(&cache, &other, &of("acme"), key).await.as_deref(), Some(key));
    }
    // What comes afterwards is kept again.
    set(&cache, &values(), &of("acme"), "a", "again").await;
    assert_eq!(get(&cache, &values(), &of("acme"), "a").await.as_deref(), Some("again"));
}

pub async fn c75_many_misses_at_the_same_time_are_one_load(cache: Arc<dyn Cache>) {
    let cache = engine(&cache);
    let loads = Arc::new(AtomicUsize::new(0));
    let (go, wait) = tokio::sync::watch::channel(false);
    let ask = Ask::new(&values(), &of("acme"), "k");
    let one = |mut wait: tokio::sync::watch::Receiver<bool>| {
        let (cache, ask, loads) = (cache.clone(), ask.clone(), Arc::clone(&loads));
        async move {
            let loaded = cache.get_or_load(&ask, async {
                loads.fetch_add(1, Ordering::SeqCst);
                wait.wait_for(|go| *go).await.expect("the test goes on");
                Ok::<_, Infallible>(Loaded::from(Bytes::from_static(b"loaded")))
            });
            let Ok(loaded) = loaded.await;
            loaded.value.expect("a value was loaded")
        }
    };
    let mut all: Vec<_> = (0..16).map(|_| Box::pin(one(wait.clone()))).collect();
    // Whoever is asked first loads, and all others have asked before the load ends.
    while loads.load(Ordering::SeqCst) == 0 {
        for one in &mut all {
            assert!(futures_util::poll!(one.as_mut()).is_pending());
        }
        tokio::task::yield_now().await;
    }
    for one in &mut all {
        assert!(futures_util::poll!(one.as_mut()).is_pending());
    }
    go.send_replace(true);
    for value in futures_util::future::join_all(all).await {
        assert_eq!(value, "loaded");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(get(&cache, &values(), &of("acme"), "k").await.as_deref(), Some("loaded"));
}

pub async fn c75_a_value_ends_with_its_time(cache: Arc<dyn Cache>) {
    let entry = values().entry(&of("acme"), "k");
    let Lookup::Miss(stamp) = cache.get(&entry).await.unwrap() else { panic!("nothing was stored") };
    let stored =
        cache.put(&entry, &stamp, Bytes::from_static(b"v"), Duration::from_millis(20)).await.unwrap();
    assert_eq!(stored, Stored::Kept);
    let begin = std::time::Instant::now();
    while let Lookup::Hit(value) = cache.get(&entry).await.unwrap() {
        assert_eq!(value, "v");
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn c75_a_change_of_an_entity_reaches_three_partitions_and_no_sibling(cache: Arc<dyn Cache>) {
    let cache = engine(&cache);
    let results = results(&cache);
    let unrelated = cache.keyspace(Keyspace::new("other", Holds::ResultsOf("customer".into())));
    let reached = [Partition::Global, of("acme"), scope("acme", "eu")];
    let others = [of("apex"), scope("acme", "us"), scope("acme", ""), scope("apex", "eu")];
    for partition in reached.iter().chain(&others) {
        set(&cache, &results, partition, "k", "v").await;
        set(&cache, &unrelated, partition, "k", "v").await;
    }
    cache.changed(change(&tenant("acme"), "eu", &["1"])).await;
    for partition in &reached {
        assert_eq!(get(&cache, &results, partition, "k").await, None, "{partition:?}");
    }
    for partition in &others {
        assert_eq!(get(&cache, &results, partition, "k").await.as_deref(), Some("v"), "{partition:?}");
    }
    for partition in reached.iter().chain(&others) {
        assert_eq!(get(&cache, &unrelated, partition, "k").await.as_deref(), Some("v"), "{partition:?}");
    }
}

/// The reference leaves values of scopes as they are when a change has no scope. They may be made of it.
pub async fn c75_a_change_without_a_scope_reaches_every_scope_of_its_tenant(cache: Arc<dyn Cache>) {
    let cache = engine(&cache);
    let results = results(&cache);
    let rows = cache.keyspace(Keyspace::new("rows", Holds::RowsOf("order".into())));
    for partition in [scope("acme", ""), scope("acme", "eu"), scope("acme", "us"), scope("apex", "eu")] {
        set(&cache, &results, &partition, "k", "v").await;
        set(&cache, &rows, &partition, "1", "v").await;
    }
    cache.changed(change(&tenant("acme"), "", &["1"])).await;
    for name in ["", "eu", "us"] {
        assert_eq!(get(&cache, &results, &scope("acme", name), "k").await, None, "{name}");
        assert_eq!(get(&cache, &rows, &scope("acme", name), "1").await, None, "{name}");
    }
    assert_eq!(get(&cache, &results, &scope("apex", "eu"), "k").await.as_deref(), Some("v"));
    assert_eq!(get(&cache, &rows, &scope("apex", "eu"), "1").await.as_deref(), Some("v"));
}

pub async fn sn16_a_load_from_before_an_invalidation_is_not_stored(cache: Arc<dyn Cache>) {
    let (cache, acme) = (engine(&cache), of("acme"));
    let results = results(&cache);
    let rows = cache.keyspace(Keyspace::new("rows", Holds::RowsOf("order".into())));
    for (what, keyspace) in [("keyspace", values()), ("key", values()), ("entity", results), ("row", rows)] {
        let ask = Ask::new(&keyspace, &acme, "1");
        let loaded = cache.get_or_load(&ask, async {
            // It has read "old", and then:
            match what {
                "keyspace" => cache.invalidate_keyspace(&keyspace, &acme).await,
                "key" => cache.remove(&keyspace, &acme, &["1"]).await,
                _ => cache.changed(change(&tenant("acme"), "", &["1"])).await,
            }
            Ok::<_, Infallible>(Loaded::from(Bytes::from_static(b"old")))
        });
        let Ok(loaded) = loaded.await;
        assert_eq!(loaded.value.as_deref(), Some(&b"old"[..]), "the read itself began before");
        assert_eq!(cache.get(&ask).await, None, "{what}");
        assert_eq!(load(&cache, &ask, "new").await, "new", "{what}");
        assert_eq!(cache.get(&ask).await.as_deref(), Some(&b"new"[..]), "{what}");
        cache.remove(&keyspace, &acme, &["1"]).await;
    }
}

pub async fn sn16_of_two_who_miss_the_same_the_faster_stores(cache: Arc<dyn Cache>) {
    let entry = values().entry(&of("acme"), "k");
    let (first, second) = (cache.get(&entry).await.unwrap(), cache.get(&entry).await.unwrap());
    assert_eq!(first, second, "a miss is the same for all until somebody stores");
    let Lookup::Miss(stamp) = first else { panic!("nothing was stored") };
    let minute = Duration::from_secs(60);
    let put = |value: &'static str| cache.put(&entry, &stamp, Bytes::from(value), minute);
    assert_eq!(put("a").await.unwrap(), Stored::Kept);
    assert_eq!(put("b").await.unwrap(), Stored::Already);
    assert_eq!(cache.get(&entry).await.unwrap(), Lookup::Hit(Bytes::from("a")));
    let never = Entry { name: "never missed".into(), ..entry.clone() };
    assert_eq!(cache.put(&never, &stamp, Bytes::from("c"), minute).await.unwrap(), Stored::Stale);
}

pub async fn sn16_a_value_that_was_removed_while_it_was_loaded_is_not_stored_by_another_host(
    cache: Arc<dyn Cache>,
) {
    let (one, other) = (engine(&cache), engine(&cache));
    let ask = Ask::new(&values(), &of("acme"), "k");
    let Ok(_) = one
        .get_or_load(&ask, async {
            other.remove(&values(), &of("acme"), &["k"]).await;
            // A third one has missed it since, and has stored what is true now.
            load(&other, &ask, "new").await;
            Ok::<_, Infallible>(Loaded::from(Bytes::from_static(b"old")))
        })
        .await;
    assert_eq!(one.get(&ask).await.as_deref(), Some(&b"new"[..]));
}
