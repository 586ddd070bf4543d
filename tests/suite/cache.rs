//! Claims about the cache: its levels, rows through it, and what evicts.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod every_level;
mod every_log;
mod levels;
mod rows;
mod tail;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::memory::MemoryCache;
use millrace::backends::redis::{RedisCache, RedisLink};
use millrace::cache::{
    Cache, CacheOptions, Entry, Holds, Keyspace, Lookup, Partition, ReadThrough, Stamp, Stored,
};
use millrace::config::Layers;
use millrace::error::BackendError;
use millrace::event::TenantId;
use millrace_tests::embedded::Embedded;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};

/// A second level.
type Level = Arc<dyn Cache>;

fn memory_level() -> Level {
    Arc::new(MemoryCache::new(1_000, 1 << 20))
}

async fn in_memory() -> (Level, ()) {
    (memory_level(), ())
}

fn on(server: &RedisServer) -> RedisCache {
    RedisCache::new(RedisLink::new(server.url().parse().unwrap(), None, "test"))
}

async fn on_redis() -> (Level, RedisServer) {
    on_server(Engine::Redis).await
}

async fn on_valkey() -> (Level, RedisServer) {
    on_server(Engine::Valkey).await
}

/// Connected, with its scripts there: an engine gives up a level that takes long.
async fn on_server(engine: Engine) -> (Level, RedisServer) {
    let server = RedisServer::start(engine, Keeps::Nothing, &[]);
    let level: Level = Arc::new(on(&server));
    let entry = Keyspace::new("first", Holds::Values).entry(&Partition::Global, "k");
    let Lookup::Miss(stamp) = level.get(&entry).await.unwrap() else { panic!("nothing was stored") };
    let minute = Duration::from_secs(60);
    assert_eq!(level.put(&entry, &stamp, Bytes::new(), minute).await.unwrap(), Stored::Kept);
    (level, server)
}

millrace_tests::cache_conformance!(memory, in_memory);
millrace_tests::cache_conformance!(redis, on_redis);
millrace_tests::cache_conformance!(valkey, on_valkey);

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// Both levels, the first one with these bounds.
fn two_levels(entries_max: usize, second: &Arc<Counting>) -> ReadThrough {
    let options = CacheOptions { entries_max, ..CacheOptions::default() };
    ReadThrough::new(&options, Some(Arc::clone(second) as Arc<dyn Cache>))
}

/// A second level, and how often it was asked. It fails when told to.
#[derive(Debug)]
struct Counting {
    cache: Level,
    fails: AtomicBool,
    gets: AtomicUsize,
    writes: AtomicUsize,
}

impl Counting {
    fn over(cache: Level) -> Arc<Self> {
        Arc::new(Self {
            cache,
            fails: AtomicBool::new(false),
            gets: AtomicUsize::default(),
            writes: AtomicUsize::default(),
        })
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    fn counted<'a, T: 'a>(
        &'a self,
        calls: &'a AtomicUsize,
        answer: BoxFuture<'a, Result<T, BackendError>>,
    ) -> BoxFuture<'a, Result<T, BackendError>> {
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            match self.fails.load(Ordering::SeqCst) {
                true => Err(BackendError::Failed { detail: "the test wants it".into() }),
                false => answer.await,
            }
        }
        .boxed()
    }
}

impl Cache for Counting {
    fn get(&self, entry: &Entry) -> BoxFuture<'_, Result<Lookup, BackendError>> {
        let entry = entry.clone();
        self.counted(&self.gets, async move { self.cache.get(&entry).await }.boxed())
    }

    fn put(
        &self,
        entry: &Entry,
        stamp: &Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Stored, BackendError>> {
        let (entry, stamp) = (entry.clone(), stamp.clone());
        self.counted(&self.writes, async move { self.cache.put(&entry, &stamp, value, ttl).await }.boxed())
    }

    fn remove(&self, names: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        let names = names.to_vec();
        self.counted(&self.writes, async move { self.cache.remove(&names).await }.boxed())
    }

    fn invalidate(&self, marks: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        let marks = marks.to_vec();
        self.counted(&self.writes, async move { self.cache.invalidate(&marks).await }.boxed())
    }
}

#[test]
fn an_address_is_printed_without_its_password_and_settings_are_bounded() {
    let settings = |key: &str, value: &str| {
        let mut layers = Layers::new();
        layers.flag("--set", key, value);
        layers.resolve()
    };
    let resolved = settings("cache.redis", "redis://me:secret@cache.example:6379/1").unwrap();
    let printed = resolved.settings.iter().find(|setting| setting.key == "cache.redis").unwrap();
    assert_eq!(printed.value, "\"redis://********@cache.example:6379/1\"");
    for (assignment, said) in [
        ("cache.entries_max=0", "counts from 1"),
        ("cache.bytes_max=0", "counts from 1"),
        ("cache.ttl_ms=0", "counts from 1"),
        ("cache.ttl_ms=3600001", "cache_ttl_ceiling = 3600000"),
        ("cache.name=a{b", "letters, digits"),
        ("cache.entries=5", "cache.entries_max"),
    ] {
        let mut layers = Layers::new();
        let error = layers.assignment(assignment).unwrap().resolve().map(drop).expect_err(assignment);
        assert!(error.to_string().contains(said), "`{said}` in `{error}`");
    }
}

#[tokio::test]
async fn an_address_that_is_none_ends_the_start_with_a_sentence() {
    let started =
        Embedded::start_with(|config| config.cache.redis = Some("memcached://localhost".into())).await;
    let error = format!("{:#}", started.map(drop).unwrap_err());
    assert!(error.contains("cache.redis") && error.contains("write redis://host:6379"), "{error}");
}
