//! Artifacts in a folder: how it is laid out, what crashes and other hands leave in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace::backends::file::FileArtifactRepository;
use millrace::clock::SystemClock;
use millrace::control::ArtifactRepository as _;
use millrace_tests::conformance::artifacts::{all, content, pieces, put, read};
use millrace_tests::control_events::digest_of;
use millrace_tests::embedded::Client;
use millrace_tests::host::HostProcess;
use reqwest::Method;

use super::code_of;
use crate::bad_host::FullDisk;

fn open(dir: &Path) -> FileArtifactRepository {
    FileArtifactRepository::open(dir, Arc::new(SystemClock)).unwrap()
}

/// Where content lies.
fn place(dir: &Path, digest: &str) -> PathBuf {
    let hex = &digest["sha256:".len()..];
    dir.join("sha256").join(&hex[..2]).join(&hex[2..4]).join(hex)
}

/// Puts something else where content lies, as no repository would.
fn tamper(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn c42_content_lies_under_its_first_digits_and_is_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path());
    let digest = put(&artifacts, b"laid out").await.digest;
    let path = place(dir.path(), &digest);
    assert_eq!(fs::read(&path).unwrap(), b"laid out");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    artifacts.pin(&digest, "me").await.unwrap();
    artifacts.attach(&digest, "note", b"text".as_slice().into()).await.unwrap();
    assert!(path.with_extension("pins").join("me").is_file());
    assert_eq!(fs::read(path.with_extension("notes").join("note")).unwrap(), b"text");
    // Another process sees the same.
    let other = open(dir.path());
    assert_eq!(other.info(&digest).await.unwrap().unwrap().pins, ["me"]);
    assert_eq!(read(&other, &digest).await.unwrap(), b"laid out");
}

#[tokio::test]
async fn what_others_have_changed_is_damaged_and_never_handed_out_whole() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path());
    let bytes = content(600_000);
    let digest = put(&artifacts, &bytes).await.digest;
    let path = place(dir.path(), &digest);
    let mut flipped = bytes.clone();
    flipped[0] ^= 1;
    let mut last = bytes.clone();
    last[599_999] ^= 1;
    let mut longer = bytes.clone();
    longer.push(0);
    for wrong in [flipped, last, longer, bytes[..599_999].to_vec(), bytes[..262_144].to_vec(), Vec::new()] {
        tamper(&path, &wrong);
        let (_, mut content) = artifacts.get(&digest).await.unwrap();
        let (mut given, mut ended) = (0, None);
        while let Some(piece) = futures_util::StreamExt::next(&mut content).await {
            match piece {
                Ok(piece) => given += piece.len(),
                Err(error) => ended = Some(error),
            }
        }
        let error = ended.expect("it says so");
        assert!(error.to_string().contains("damaged"), "{error}");
        assert!(wrong.is_empty() || given < wrong.len(), "{given} of {} bytes were handed out", wrong.len());
    }
    // Whoever has the content puts it right.
    put(&artifacts, &bytes).await;
    assert!(read(&artifacts, &digest).await.unwrap() == bytes);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn a_link_or_a_folder_in_the_place_of_content_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path());
    let [linked, folder] = [b"linked".as_slice(), b"folder"].map(digest_of);
    let secret = dir.path().join("secret");
    fs::write(&secret, b"linked").unwrap();
    for (digest, what) in [(&linked, "link"), (&folder, "folder")] {
        let path = place(dir.path(), digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match what {
            "link" => std::os::unix::fs::symlink(&secret, &path).unwrap(),
            _ => fs::create_dir(&path).unwrap(),
        }
        assert_eq!(artifacts.info(digest).await.unwrap(), None, "{what}");
        assert_eq!(code_of(read(&artifacts, digest).await), "artifact_missing", "{what}");
    }
    assert!(all(&artifacts).await.is_empty());
    // Names that are not the repository's are passed by.
    let digest = put(&artifacts, b"own").await.digest;
    fs::write(dir.path().join("sha256/notes.txt"), "somebody's").unwrap();
    fs::write(place(dir.path(), &digest).with_file_name("stray"), "somebody's").unwrap();
    assert_eq!(all(&artifacts).await, [digest]);
    assert_eq!(artifacts.collect(Duration::ZERO, false).await.unwrap().len(), 1);
    assert!(dir.path().join("sha256/notes.txt").exists());
}

#[tokio::test]
async fn what_a_crash_has_left_goes_and_what_is_being_written_stays() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path());
    let spool = dir.path().join("spool");
    let names = || fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    // Half of it came.
    let (reached, waits) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let still = futures_util::stream::poll_fn(move |_| {
        if let Some(reached) = reached.take() {
            reached.send(()).unwrap();
        }
        std::task::Poll::Pending
    });
    let half =
        futures_util::StreamExt::boxed(futures_util::StreamExt::chain(pieces(&content(300_000)), still));
    let mut writing = tokio::task::JoinSet::new();
    let writer = artifacts.clone();
    writing.spawn(async move { writer.put(half, None, 1 << 20).await });
    waits.await.unwrap();
    let written = names();
    assert_eq!(written.len(), 1);
    fs::write(spool.join(".tmpleft"), "half").unwrap();
    let other = open(dir.path());
    assert_eq!(names(), written, "the leftover is gone, what is being written is not");
    fs::write(spool.join(".tmpagain"), "half").unwrap();
    other.collect(Duration::ZERO, true).await.unwrap();
    assert_eq!(names().len(), 2, "a dry run removes nothing");
    other.collect(Duration::ZERO, false).await.unwrap();
    assert_eq!(names(), written);
    writing.shutdown().await;
    millrace_tests::until("the spool is empty", || names().is_empty()).await;
}

/// A collection ended between its steps.
#[tokio::test]
async fn notes_without_content_count_for_nothing_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path());
    let digest = put(&artifacts, b"gone").await.digest;
    artifacts.attach(&digest, "note", b"old".as_slice().into()).await.unwrap();
    let path = place(dir.path(), &digest);
    fs::create_dir_all(path.with_extension("pins")).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(code_of(artifacts.attached(&digest).await), "artifact_missing");
    assert!(all(&artifacts).await.is_empty());
    assert!(artifacts.collect(Duration::ZERO, true).await.unwrap().is_empty());
    assert!(path.with_extension("notes").exists(), "a dry run removes nothing");
    assert!(artifacts.collect(Duration::ZERO, false).await.unwrap().is_empty());
    assert!(!path.with_extension("notes").exists() && !path.with_extension("pins").exists());
    put(&artifacts, b"gone").await;
    assert!(artifacts.attached(&digest).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_leaves_nothing_half_stored() -> anyhow::Result<()> {
    let disk = FullDisk::new()?;
    let host = HostProcess::start_as(disk.setup.clone(), &disk.data).await?;
    let client = Client::new(&host.url)?;
    let bytes = content(700_000);
    let digest = digest_of(&bytes);
    let path = format!("/v1/artifacts/{digest}");
    let put = || client.request(Method::PUT, &path).body(bytes.clone());
    disk.fill()?;
    let refused = client.send(put()).await?;
    assert_eq!(refused.refusal(), (507, "disk_full".into()), "{}", refused.text());
    let spool = disk.data.join("artifact-repository/spool");
    assert_eq!(fs::read_dir(&spool)?.count(), 0, "nothing is left");
    assert_eq!(client.get(&path).await?.refusal(), (404, "artifact_missing".into()));
    disk.free()?;
    assert_eq!(client.send(put()).await?.status, 200);
    assert_eq!(client.get(&path).await?.body, bytes);
    Ok(())
}
