//! A host's copies of artifacts. C46 is restated: no copy is larger than what was announced, and what nobody pins goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use millrace::backends::file::FileArtifactRepository;
use millrace::backends::memory::MemoryArtifactRepository;
use millrace::clock::SystemClock;
use millrace::control::{ArtifactInfo, ArtifactRef, ArtifactRepository, ByteStream, LocalArtifacts, Result};
use millrace::error::BackendError;
use millrace_tests::conformance::artifacts::{content, put, read};
use millrace_tests::control_events::digest_of;

use super::code_of;

/// A repository that can be away, that counts what is read of it, and that lies where it is told to.
#[derive(Debug)]
struct Distant {
    inner: MemoryArtifactRepository,
    away: AtomicBool,
    silent: AtomicBool,
    reads: AtomicUsize,
    /// What it hands out in the place of something.
    lies: std::sync::Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Distant {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryArtifactRepository::new(Arc::new(SystemClock)),
            away: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
            lies: std::sync::Mutex::default(),
        })
    }
}

impl ArtifactRepository for Distant {
    fn name(&self) -> &'static str {
        "distant"
    }

    fn put<'a>(
        &'a self,
        content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>> {
        self.inner.put(content, digest, bytes_max)
    }

    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>> {
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            if self.away.load(Ordering::SeqCst) {
                return Err(BackendError::Failed { detail: "away".into() }.into());
            }
            let (info, content) = self.inner.get(digest).await?;
            if self.silent.load(Ordering::SeqCst) {
                return Ok((info, stream::pending().boxed()));
            }
            let lie = self.lies.lock().unwrap().get(digest).cloned();
            match lie {
                Some(lie) => Ok((info, stream::iter([Ok(Bytes::from(lie))]).boxed())),
                None => Ok((info, content)),
            }
        }
        .boxed()
    }

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>> {
        self.inner.info(digest)
    }

    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>> {
        self.inner.list(after, limit)
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.inner.pin(digest, name)
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.inner.unpin(digest, name)
    }

    fn collect(&self, older_than: Duration, dry_run: bool) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>> {
        self.inner.collect(older_than, dry_run)
    }

    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>> {
        self.inner.attach(digest, name, note)
    }

    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>> {
        self.inner.attached(digest)
    }
}

fn local(dir: &Path, distant: &Arc<Distant>) -> LocalArtifacts {
    let copies = FileArtifactRepository::open(dir, Arc::new(SystemClock)).unwrap();
    LocalArtifacts::new(Arc::new(copies), distant.clone())
}

fn reference(content: &[u8]) -> ArtifactRef {
    ArtifactRef { digest: digest_of(content), bytes: content.len() as u64, signatures: Vec::new() }
}

/// The file that holds a copy.
fn copy_of(dir: &Path, artifact: &ArtifactRef) -> std::path::PathBuf {
    let hex = &artifact.digest["sha256:".len()..];
    dir.join("sha256").join(&hex[..2]).join(&hex[2..4]).join(hex)
}

#[tokio::test]
async fn a_copy_serves_while_the_repository_is_away_and_after_a_restart() {
    let (dir, distant) = (tempfile::tempdir().unwrap(), Distant::new());
    let artifacts = local(dir.path(), &distant);
    let bytes = content(700_000);
    let artifact = reference(&bytes);
    assert_eq!(code_of(artifacts.get(&artifact).await), "artifact_missing");
    put(&*distant, &bytes).await;
    assert!(artifacts.get(&artifact).await.unwrap() == bytes);
    assert!(artifacts.is_here(&artifact.digest).await.unwrap());
    distant.away.store(true, Ordering::SeqCst);
    let reads = distant.reads.load(Ordering::SeqCst);
    for artifacts in [artifacts, local(dir.path(), &distant)] {
        assert!(artifacts.get(&artifact).await.unwrap() == bytes);
    }
    assert_eq!(distant.reads.load(Ordering::SeqCst), reads, "nobody was asked");
    assert_eq!(code_of(local(dir.path(), &distant).get(&reference(b"new")).await), "storage_failed");
}

#[tokio::test]
async fn a_copy_is_checked_each_time_and_fetched_again_when_it_is_damaged() {
    let (dir, distant) = (tempfile::tempdir().unwrap(), Distant::new());
    let artifacts = local(dir.path(), &distant);
    let bytes = content(400_000);
    let artifact = reference(&bytes);
    put(&*distant, &bytes).await;
    artifacts.get(&artifact).await.unwrap();
    let path = copy_of(dir.path(), &artifact);
    let mut flipped = bytes.clone();
    flipped[399_999] ^= 0x80;
    let longer = [&bytes[..], b"!"].concat();
    for wrong in [flipped, longer, bytes[..1_000].to_vec(), Vec::new()] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &wrong).unwrap();
        assert!(artifacts.get(&artifact).await.unwrap() == bytes, "{} bytes", wrong.len());
        assert!(std::fs::read(&path).unwrap() == bytes, "it is put right");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &wrong).unwrap();
        distant.away.store(true, Ordering::SeqCst);
        assert_eq!(code_of(artifacts.get(&artifact).await), "storage_failed", "never the damaged bytes");
        distant.away.store(false, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn c46_what_the_repository_makes_of_it_is_not_believed_and_no_copy_is_larger_than_announced() {
    let (dir, distant) = (tempfile::tempdir().unwrap(), Distant::new());
    let artifacts = local(dir.path(), &distant);
    let bytes = content(50_000);
    let artifact = reference(&bytes);
    put(&*distant, &bytes).await;
    let lie = |lie: Vec<u8>| {
        distant.lies.lock().unwrap().insert(artifact.digest.clone(), lie);
    };
    lie(content(49_999));
    assert_eq!(code_of(artifacts.get(&artifact).await), "artifact_size");
    lie([&bytes[1..], b"!"].concat());
    assert_eq!(code_of(artifacts.get(&artifact).await), "artifact_mismatch");
    lie(vec![0; 50_001]);
    assert_eq!(code_of(artifacts.get(&artifact).await), "artifact_size");
    assert!(!artifacts.is_here(&artifact.digest).await.unwrap());
    // The reference itself may be wrong, too.
    distant.lies.lock().unwrap().clear();
    for bytes in [49_999, 50_001] {
        let wrong = ArtifactRef { bytes, ..artifact.clone() };
        assert_eq!(code_of(artifacts.get(&wrong).await), "artifact_size", "{bytes}");
    }
    assert!(artifacts.get(&artifact).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_repository_that_says_nothing_is_not_waited_for_for_ever() {
    let distant = Distant::new();
    let copies = MemoryArtifactRepository::new(Arc::new(SystemClock));
    let artifacts = LocalArtifacts::new(Arc::new(copies), distant.clone());
    put(&*distant, b"quiet").await;
    distant.silent.store(true, Ordering::SeqCst);
    let impatient = artifacts.clone().with_idle_max(Duration::from_millis(20));
    assert_eq!(code_of(impatient.get(&reference(b"quiet")).await), "artifact_broken");
    distant.silent.store(false, Ordering::SeqCst);
    assert_eq!(artifacts.get(&reference(b"quiet")).await.unwrap(), b"quiet".as_slice());
}

#[tokio::test]
async fn active_and_former_copies_are_pinned_and_others_go() {
    let (dir, distant) = (tempfile::tempdir().unwrap(), Distant::new());
    let artifacts = local(dir.path(), &distant);
    let builds = [b"one".as_slice(), b"two", b"three"];
    for build in builds {
        put(&*distant, build).await;
        artifacts.get(&reference(build)).await.unwrap();
    }
    let [one, two, three] = builds.map(digest_of);
    artifacts.pin(&three, "board.active").await.unwrap();
    artifacts.pin(&two, "board.former").await.unwrap();
    let gone = artifacts.collect(Duration::ZERO).await.unwrap();
    assert!(gone.iter().map(|info| &info.digest).eq([&one]));
    distant.away.store(true, Ordering::SeqCst);
    assert_eq!(artifacts.get(&reference(b"two")).await.unwrap(), b"two".as_slice());
    assert_eq!(code_of(artifacts.get(&reference(b"one")).await), "storage_failed");
    artifacts.unpin(&two, "board.former").await.unwrap();
    assert_eq!(artifacts.collect(Duration::ZERO).await.unwrap().len(), 1);
    assert_eq!(read(&distant.inner, &one).await.unwrap(), b"one", "the repository's own stays");
}
