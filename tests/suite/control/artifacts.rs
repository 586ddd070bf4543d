//! Artifact repositories: the suite over all of them, and when what is stored counts as old.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::file::FileArtifactRepository;
use millrace::backends::memory::MemoryArtifactRepository;
use millrace::backends::redis::{RedisAck, RedisArtifactRepository, RedisLink};
use millrace::clock::{ManualClock, SystemClock};
use millrace::config::{ConfigError, Layers};
use millrace::control::ArtifactRepository;
use millrace::event::Micros;
use millrace_tests::conformance::artifacts::{all, put};
use millrace_tests::control_events::{NOW, digest_of};
use millrace_tests::redis_server::{Engine, RedisServer};

async fn in_memory() -> (Arc<dyn ArtifactRepository>, ()) {
    (Arc::new(MemoryArtifactRepository::new(Arc::new(SystemClock))), ())
}

/// Whatever a case does, it leaves nothing half written.
struct EmptySpool(tempfile::TempDir);

impl Drop for EmptySpool {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let begun = std::time::Instant::now();
        loop {
            // What a case gave up is removed by the thread that was writing it.
            let left: Vec<_> = std::fs::read_dir(self.0.path().join("spool")).unwrap().collect();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the spool is not empty: {left:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

async fn in_a_folder() -> (Arc<dyn ArtifactRepository>, EmptySpool) {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = FileArtifactRepository::open(dir.path(), Arc::new(SystemClock)).unwrap();
    (Arc::new(artifacts), EmptySpool(dir))
}

fn on(server: &RedisServer) -> RedisArtifactRepository {
    let link = RedisLink::new(server.url().parse().unwrap(), None, "fleet");
    RedisArtifactRepository::new(link, RedisAck::Auto)
}

async fn on_redis() -> (Arc<dyn ArtifactRepository>, RedisServer) {
    let server = RedisServer::durable(Engine::Redis);
    (Arc::new(on(&server)), server)
}

async fn on_valkey() -> (Arc<dyn ArtifactRepository>, RedisServer) {
    let server = RedisServer::durable(Engine::Valkey);
    (Arc::new(on(&server)), server)
}

millrace_tests::artifacts_conformance!(memory, in_memory);
millrace_tests::artifacts_conformance!(folder, in_a_folder);
millrace_tests::artifacts_conformance!(redis, on_redis);
millrace_tests::artifacts_conformance!(valkey, on_valkey);

#[tokio::test]
async fn what_is_put_again_is_young_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let repositories: [Arc<dyn ArtifactRepository>; 2] = [
        Arc::new(MemoryArtifactRepository::new(clock.clone())),
        Arc::new(FileArtifactRepository::open(dir.path(), clock.clone()).unwrap()),
    ];
    let day = Duration::from_secs(24 * 3_600);
    let days = |days: i64| clock.set(Micros(NOW.0 + days * 24 * 3_600 * 1_000_000));
    for artifacts in repositories {
        days(0);
        put(&*artifacts, b"again").await;
        put(&*artifacts, b"once").await;
        days(20);
        assert_eq!(put(&*artifacts, b"again").await.stored_at, NOW.0 + 20 * 24 * 3_600 * 1_000_000);
        days(30);
        assert!(artifacts.collect(day * 31, false).await.unwrap().is_empty());
        let gone = artifacts.collect(day * 30, false).await.unwrap();
        assert_eq!(gone.len(), 1, "{gone:?}");
        assert_eq!((gone[0].digest.as_str(), gone[0].stored_at), (&*digest_of(b"once"), NOW.0));
        assert_eq!(all(&*artifacts).await, [digest_of(b"again")]);
    }
}

/// C39, which is about names of backends.
#[test]
fn c39_an_unknown_place_of_artifacts_is_an_error_that_lists_those_there_are() {
    let resolve = |assignment: &str| {
        let mut layers = Layers::new();
        layers.assignment(assignment).unwrap();
        layers.resolve()
    };
    let error = resolve("control.artifacts=oci").unwrap_err().to_string();
    for word in ["control.artifacts", "oci", "file", "redis"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let error = resolve("control.artifacts=redis").unwrap_err();
    assert!(matches!(&error, ConfigError::Invalid { key, .. } if key == "control.artifacts_url"), "{error}");
    let error = resolve("control.artifact_bytes_max=0").unwrap_err();
    assert!(
        matches!(&error, ConfigError::Invalid { key, .. } if key == "control.artifact_bytes_max"),
        "{error}"
    );
}
