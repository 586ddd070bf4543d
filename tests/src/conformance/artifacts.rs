//! What every artifact repository must do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use millrace::control::{ArtifactInfo, ArtifactRepository, ByteStream, ControlFeedError, Result, sized};
use millrace::error::Classify as _;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::control_events::digest_of;

type Repository = Arc<dyn ArtifactRepository>;

const LARGE: u64 = 64 << 20;
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3_600);

/// Bytes that differ from place to place, so that parts in a wrong order show.
pub fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Content as it comes over a network: in pieces that fit nothing.
pub fn pieces(content: &[u8]) -> ByteStream<'static> {
    let pieces: Vec<_> = content.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

pub async fn put(artifacts: &dyn ArtifactRepository, content: &[u8]) -> ArtifactInfo {
    artifacts.put(pieces(content), Some(&digest_of(content)), LARGE).await.unwrap()
}

pub async fn read(artifacts: &dyn ArtifactRepository, digest: &str) -> Result<Vec<u8>> {
    let (info, mut content) = artifacts.get(digest).await?;
    let mut all = Vec::new();
    while let Some(piece) = content.next().await {
        all.extend_from_slice(&piece?);
    }
    assert_eq!(info.bytes, all.len() as u64);
    Ok(all)
}

pub async fn all(artifacts: &dyn ArtifactRepository) -> Vec<String> {
    let found = artifacts.list(None, 1_000).await.unwrap();
    found.into_iter().map(|info| info.digest).collect()
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    result.unwrap_err().code()
}

pub async fn c38_c43_what_is_put_comes_back_and_may_be_put_again(artifacts: Repository) {
    let bytes = content(10_000);
    let digest = digest_of(&bytes);
    assert_eq!(artifacts.info(&digest).await.unwrap(), None);
    assert_eq!(code(read(&*artifacts, &digest).await), "artifact_missing");
    assert_eq!(code(artifacts.attached(&digest).await), "artifact_missing");
    let first = put(&*artifacts, &bytes).await;
    assert_eq!((first.digest.as_str(), first.bytes, first.pins.len()), (digest.as_str(), 10_000, 0));
    assert_eq!(artifacts.info(&digest).await.unwrap().unwrap(), first);
    assert_eq!(read(&*artifacts, &digest).await.unwrap(), bytes);
    let again = put(&*artifacts, &bytes).await;
    assert!(again.stored_at >= first.stored_at, "{again:?}");
    // Who does not know the digest is told.
    let unknown = artifacts.put(pieces(&bytes), None, LARGE).await.unwrap();
    assert_eq!(unknown.digest, digest);
    assert_eq!(read(&*artifacts, &digest).await.unwrap(), bytes);
    assert_eq!(all(&*artifacts).await, [digest]);
}

pub async fn content_of_every_length_comes_back(artifacts: Repository) {
    for length in [0, 1, (256 << 10) - 1, 256 << 10, (512 << 10) - 1, 512 << 10, (512 << 10) + 1, 1_600_000] {
        let bytes = content(length);
        let info = put(&*artifacts, &bytes).await;
        assert_eq!(info.bytes, length as u64);
        assert!(read(&*artifacts, &info.digest).await.unwrap() == bytes, "{length}");
    }
}

pub async fn c40_c45_a_text_that_is_no_digest_reaches_nothing(artifacts: Repository) {
    let good = digest_of(b"good");
    let hex = &good["sha256:".len()..];
    let malformed = [
        String::new(),
        hex.to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("md5:{hex}"),
        format!("sha256:{}", "g".repeat(64)),
        "../../../../etc/passwd".to_owned(),
        format!("sha256:{}", "../".repeat(21) + "a"),
        format!("sha256:/{}", &hex[1..]),
        format!("sha256:{}\0", &hex[1..]),
    ];
    put(&*artifacts, b"good").await;
    for digest in &malformed {
        assert_eq!(
            code(artifacts.put(pieces(b"x"), Some(digest), LARGE).await),
            "digest_invalid",
            "{digest}"
        );
        assert_eq!(code(artifacts.get(digest).await.map(|_| ())), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.info(digest).await), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.list(Some(digest), 1).await), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.pin(digest, "me").await), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.unpin(digest, "me").await), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.attach(digest, "me", Bytes::new()).await), "digest_invalid", "{digest}");
        assert_eq!(code(artifacts.attached(digest).await), "digest_invalid", "{digest}");
    }
    let long = "x".repeat(129);
    for name in ["", ".", "..", ".x", "a/b", "../x", "a b", "a\0", "ä", &long] {
        assert_eq!(code(artifacts.pin(&good, name).await), "artifact_name_invalid", "{name}");
        assert_eq!(code(artifacts.unpin(&good, name).await), "artifact_name_invalid", "{name}");
        assert_eq!(
            code(artifacts.attach(&good, name, Bytes::new()).await),
            "artifact_name_invalid",
            "{name}"
        );
    }
    assert_eq!(all(&*artifacts).await, [good]);
}

pub async fn c41_c44_content_with_another_digest_is_not_stored(artifacts: Repository) {
    let (bytes, other) = (content(1_200_000), digest_of(b"other"));
    let refused = artifacts.put(pieces(&bytes), Some(&other), LARGE).await.unwrap_err();
    match refused {
        ControlFeedError::ArtifactMismatch { digest, found } => {
            assert_eq!((digest, found), (other.clone(), digest_of(&bytes)));
        }
        error => panic!("{error}"),
    }
    assert_eq!(artifacts.info(&other).await.unwrap(), None);
    assert_eq!(artifacts.info(&digest_of(&bytes)).await.unwrap(), None);
    assert!(all(&*artifacts).await.is_empty());
}

/// The key is the content's: a second upload changes nothing that an earlier event points at.
pub async fn w1_two_quick_changes_do_not_overwrite_each_other(artifacts: Repository) {
    let (first, second) = (b"board 1".to_vec(), b"board 2".to_vec());
    let (one, two) = (put(&*artifacts, &first).await.digest, put(&*artifacts, &second).await.digest);
    assert_eq!(code(artifacts.put(pieces(&second), Some(&one), LARGE).await), "artifact_mismatch");
    assert_eq!(read(&*artifacts, &one).await.unwrap(), first);
    assert_eq!(read(&*artifacts, &two).await.unwrap(), second);
}

pub async fn c47_the_size_is_bounded_and_the_bound_fits(artifacts: Repository) {
    let bytes = content(700_000);
    let digest = digest_of(&bytes);
    let refused = artifacts.put(pieces(&bytes), Some(&digest), 699_999).await.unwrap_err();
    assert!(
        matches!(refused, ControlFeedError::Limit { limit: "artifact_bytes_max", max: 699_999, .. }),
        "{refused}"
    );
    // Also of what does not end.
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 4_096]))).boxed();
    assert_eq!(code(artifacts.put(endless, None, 1 << 20).await), "artifact_bytes_max");
    for wrong in [699_999, 700_001] {
        let sized = sized(wrong, pieces(&bytes));
        assert_eq!(code(artifacts.put(sized, Some(&digest), LARGE).await), "artifact_size", "{wrong}");
    }
    assert!(all(&*artifacts).await.is_empty());
    artifacts.put(sized(700_000, pieces(&bytes)), Some(&digest), 700_000).await.unwrap();
    assert_eq!(read(&*artifacts, &digest).await.unwrap(), bytes);
}

pub async fn c47_content_that_breaks_off_or_is_given_up_is_not_stored(artifacts: Repository) {
    let bytes = content(900_000);
    let digest = digest_of(&bytes);
    let broken = || Err(ControlFeedError::ArtifactBroken { detail: "the cable".into() });
    let breaks = pieces(&bytes).chain(stream::iter([broken()])).boxed();
    assert_eq!(code(artifacts.put(breaks, Some(&digest), LARGE).await), "artifact_broken");
    // It stands still behind all of its content, and is given up there.
    let (reached, waits) = oneshot::channel();
    let mut reached = Some(reached);
    let still = stream::poll_fn(move |_| {
        if let Some(reached) = reached.take() {
            reached.send(()).unwrap();
        }
        std::task::Poll::Pending
    });
    let stands = pieces(&bytes).chain(still).boxed();
    let (repository, wanted) = (Arc::clone(&artifacts), digest.clone());
    let mut putting = JoinSet::new();
    putting.spawn(async move { repository.put(stands, Some(&wanted), LARGE).await });
    waits.await.unwrap();
    putting.shutdown().await;
    assert_eq!(artifacts.info(&digest).await.unwrap(), None);
    assert!(all(&*artifacts).await.is_empty());
    put(&*artifacts, &bytes).await;
    assert_eq!(read(&*artifacts, &digest).await.unwrap(), bytes);
}

pub async fn c47_eight_puts_of_the_same_at_once_all_succeed(artifacts: Repository) {
    let bytes = content(1_100_000);
    let mut putting = JoinSet::new();
    for _ in 0..8 {
        let (artifacts, bytes) = (Arc::clone(&artifacts), bytes.clone());
        putting.spawn(async move { put(&*artifacts, &bytes).await.digest });
    }
    let digests = putting.join_all().await;
    assert_eq!(digests, vec![digest_of(&bytes); 8]);
    assert_eq!(read(&*artifacts, &digests[0]).await.unwrap(), bytes);
    assert_eq!(all(&*artifacts).await.len(), 1);
}

pub async fn a_list_comes_in_pages_in_the_order_of_digests(artifacts: Repository) {
    let mut expected = Vec::new();
    for number in 0..23_u8 {
        expected.push(put(&*artifacts, &[number]).await.digest);
    }
    expected.sort_unstable();
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = artifacts.list(after.as_deref(), 5).await.unwrap();
        assert!(page.len() <= 5);
        let Some(last) = page.last() else { break };
        after = Some(last.digest.clone());
        found.extend(page.into_iter().map(|info| info.digest));
    }
    assert_eq!(found, expected);
    // After one that is not there, and within one folder of a prefix.
    let between = format!("{}0", &expected[10][..expected[10].len() - 1]);
    let between = if between == expected[10] { expected[9].clone() } else { between };
    let behind: Vec<_> = expected.iter().filter(|digest| **digest > between).take(3).cloned().collect();
    let page = artifacts.list(Some(&between), 3).await.unwrap();
    assert_eq!(page.into_iter().map(|info| info.digest).collect::<Vec<_>>(), behind);
}

pub async fn what_is_pinned_stays_and_the_rest_is_collected(artifacts: Repository) {
    let [kept, loose] = [b"kept".as_slice(), b"loose"].map(|bytes| (digest_of(bytes), bytes));
    for (_, bytes) in [&kept, &loose] {
        put(&*artifacts, bytes).await;
    }
    assert_eq!(code(artifacts.pin(&digest_of(b"none"), "me").await), "artifact_missing");
    artifacts.unpin(&digest_of(b"none"), "me").await.unwrap();
    for name in ["host-1:board.active", "snapshot", "snapshot"] {
        artifacts.pin(&kept.0, name).await.unwrap();
    }
    let info = artifacts.info(&kept.0).await.unwrap().unwrap();
    assert_eq!(info.pins, ["host-1:board.active", "snapshot"]);
    let listed = artifacts.list(None, 9).await.unwrap();
    assert!(listed.contains(&info), "{listed:?}");

    assert!(artifacts.collect(LONG, false).await.unwrap().is_empty(), "all of it is young");
    let would = artifacts.collect(Duration::ZERO, true).await.unwrap();
    assert_eq!(would.iter().map(|info| &info.digest).collect::<Vec<_>>(), [&loose.0]);
    assert_eq!(all(&*artifacts).await.len(), 2, "a dry run removes nothing");
    let gone = artifacts.collect(Duration::ZERO, false).await.unwrap();
    assert_eq!(gone.iter().map(|info| (&info.digest, info.bytes)).collect::<Vec<_>>(), [(&loose.0, 5)]);
    assert_eq!(code(read(&*artifacts, &loose.0).await), "artifact_missing");
    assert_eq!(read(&*artifacts, &kept.0).await.unwrap(), b"kept");

    artifacts.unpin(&kept.0, "snapshot").await.unwrap();
    assert!(artifacts.collect(Duration::ZERO, false).await.unwrap().is_empty(), "it has another pin");
    artifacts.unpin(&kept.0, "host-1:board.active").await.unwrap();
    artifacts.unpin(&kept.0, "host-1:board.active").await.unwrap();
    assert_eq!(artifacts.collect(Duration::ZERO, false).await.unwrap().len(), 1);
    assert!(all(&*artifacts).await.is_empty());
    put(&*artifacts, b"kept").await;
    assert_eq!(artifacts.info(&kept.0).await.unwrap().unwrap().pins, Vec::<String>::new());
}

pub async fn pins_and_notes_are_bounded(artifacts: Repository) {
    let digest = put(&*artifacts, b"popular").await.digest;
    for number in 0..256 {
        artifacts.pin(&digest, &format!("pin-{number}")).await.unwrap();
    }
    assert_eq!(code(artifacts.pin(&digest, "one-more").await), "artifact_pins_max");
    artifacts.pin(&digest, "pin-7").await.unwrap();
    for number in 0..64 {
        artifacts.attach(&digest, &format!("note-{number}"), Bytes::from_static(b"n")).await.unwrap();
    }
    assert_eq!(
        code(artifacts.attach(&digest, "one-more", Bytes::from_static(b"n")).await),
        "artifact_notes_max"
    );
    artifacts.attach(&digest, "note-7", Bytes::from_static(b"n")).await.unwrap();
}

pub async fn a_note_is_written_once_and_goes_with_its_artifact(artifacts: Repository) {
    let digest = put(&*artifacts, b"signed").await.digest;
    let note = |text: &'static [u8]| Bytes::from_static(text);
    assert_eq!(code(artifacts.attach(&digest_of(b"none"), "a", note(b"x")).await), "artifact_missing");
    assert!(artifacts.attached(&digest).await.unwrap().is_empty());
    artifacts.attach(&digest, "build-b", note(b"\x00\xff two")).await.unwrap();
    artifacts.attach(&digest, "build-a", note(b"one")).await.unwrap();
    artifacts.attach(&digest, "build-a", note(b"one")).await.unwrap();
    assert_eq!(code(artifacts.attach(&digest, "build-a", note(b"two")).await), "artifact_note_taken");
    let large = Bytes::from(vec![0; (64 << 10) + 1]);
    assert_eq!(code(artifacts.attach(&digest, "large", large.clone()).await), "artifact_note_bytes_max");
    artifacts.attach(&digest, "large", large.slice(1..)).await.unwrap();
    let found = artifacts.attached(&digest).await.unwrap();
    let expected =
        [("build-a", note(b"one")), ("build-b", note(b"\x00\xff two")), ("large", large.slice(1..))];
    assert_eq!(found, expected.map(|(name, note)| (name.to_owned(), note)));
    assert_eq!(artifacts.collect(Duration::ZERO, false).await.unwrap().len(), 1);
    assert_eq!(code(artifacts.attached(&digest).await), "artifact_missing");
    put(&*artifacts, b"signed").await;
    assert!(artifacts.attached(&digest).await.unwrap().is_empty());
}

/// Whoever put or pinned something while others collected finds it, or is told that it is missing; never half of it.
pub async fn collecting_while_others_put_and_pin_damages_nothing(artifacts: Repository) {
    let bytes = content(600_000);
    let mut working = JoinSet::new();
    for worker in 0..4 {
        let (artifacts, bytes) = (Arc::clone(&artifacts), bytes.clone());
        working.spawn(async move {
            let name = format!("worker-{worker}");
            let mut pinned = 0;
            for _ in 0..8 {
                let digest = put(&*artifacts, &bytes).await.digest;
                match artifacts.pin(&digest, &name).await {
                    Ok(()) => {
                        assert!(read(&*artifacts, &digest).await.unwrap() == bytes, "what is pinned stays");
                        artifacts.unpin(&digest, &name).await.unwrap();
                        pinned += 1;
                    }
                    Err(error) => assert_eq!(error.code(), "artifact_missing"),
                }
                match read(&*artifacts, &digest).await {
                    Ok(found) => assert!(found == bytes),
                    Err(error) => assert_eq!(error.code(), "artifact_missing"),
                }
            }
            pinned
        });
    }
    let collector = Arc::clone(&artifacts);
    let mut collecting = JoinSet::new();
    collecting.spawn(async move {
        loop {
            collector.collect(Duration::ZERO, false).await.unwrap();
            // So that others are between its looks now and then.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    let pinned: Vec<i32> = working.join_all().await;
    collecting.shutdown().await;
    assert!(pinned.iter().sum::<i32>() > 0, "somebody was in time");
}

/// Runs the whole suite for one backend.
#[macro_export]
macro_rules! artifacts_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!(
            $backend, artifacts, $setup;
            c38_c43_what_is_put_comes_back_and_may_be_put_again,
            content_of_every_length_comes_back,
            c40_c45_a_text_that_is_no_digest_reaches_nothing,
            c41_c44_content_with_another_digest_is_not_stored,
            w1_two_quick_changes_do_not_overwrite_each_other,
            c47_the_size_is_bounded_and_the_bound_fits,
            c47_content_that_breaks_off_or_is_given_up_is_not_stored,
            c47_eight_puts_of_the_same_at_once_all_succeed,
            a_list_comes_in_pages_in_the_order_of_digests,
            what_is_pinned_stays_and_the_rest_is_collected,
            pins_and_notes_are_bounded,
            a_note_is_written_once_and_goes_with_its_artifact,
            collecting_while_others_put_and_pin_damages_nothing,
        );
    };
}
