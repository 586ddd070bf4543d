//! Claims about snapshots: what is believed of one, and how hosts find out that they need one. C48 to C51 are restated:
//! a populated store takes a snapshot without force, since it never goes back for one.

use std::sync::Arc;

use millrace::backends::memory::{MemoryControlStore, MemoryFeed};
use millrace::clock::{Clock, ManualClock, SystemClock};
use millrace::control::snapshot::{Drift, FORMAT, Snapshots, drift, read, state_digest, write};
use millrace::control::trust::{KeyRole, TrustStore};
use millrace::control::{
    Believing, Board as _, Bootstrap as _, ControlEvent, ControlFeedError, ControlStore as _, ControlVersion,
    Entry, FleetMark, SnapshotRef,
};
use millrace::error::Classify as _;
use millrace::event::Micros;
use millrace::limits::CONTROL_SNAPSHOT_BYTES_MAX;
use millrace_tests::control::artifacts::SpoilableArtifacts;
use millrace_tests::control::{at, deployed, id, of_a_new_kind, removed, state, trust_changed, unsigned, v};
use millrace_tests::control_events::{key, trust, trusted};
use tokio::task::JoinSet;

/// The feed goes further than any snapshot here.
const NEWEST: ControlVersion = ControlVersion(9_999);

/// The origin and other hosts: a store each, one board and one repository.
struct Fleet {
    artifacts: Arc<SpoilableArtifacts>,
    board: MemoryFeed,
}

struct Member {
    store: MemoryControlStore,
    keys: Believing,
    snapshots: Snapshots,
}

impl Fleet {
    fn new() -> Self {
        Self { artifacts: Arc::default(), board: MemoryFeed::new() }
    }

    fn member(&self) -> Member {
        self.member_with(trust())
    }

    fn member_with(&self, keys: TrustStore) -> Member {
        self.member_at(keys, Arc::new(SystemClock))
    }

    fn member_at(&self, keys: TrustStore, clock: Arc<dyn Clock>) -> Member {
        let store = MemoryControlStore::new(Arc::new(SystemClock));
        let keys = Believing::new(keys);
        let snapshots = Snapshots::new(
            Arc::new(store.clone()),
            self.artifacts.clone(),
            Arc::new(self.board.clone()),
            keys.clone(),
            clock,
        );
        Member { store, keys, snapshots }
    }

    /// Marks something as the fleet's snapshot.
    async fn mark(&self, version: u64, text: String) -> SnapshotRef {
        let snapshot = SnapshotRef { version: v(version), digest: self.artifacts.add(text) };
        let mark =
            FleetMark { version: v(version), state_digest: "other".into(), snapshot: Some(snapshot.clone()) };
        self.board.set_mark(&mark).await.unwrap();
        snapshot
    }
}

impl Member {
    async fn apply(&self, events: &[(u64, ControlEvent)]) {
        for (version, event) in events {
            self.store.apply(v(*version), event).await.unwrap();
        }
    }

    async fn text(&self) -> String {
        let (cursor, rows) = self.store.desired().await.unwrap();
        write(cursor, &rows)
    }
}

/// C48: what comes out is what went in, with its cursor; and it is kept for as long as it is the mark's.
#[tokio::test]
async fn c48_a_snapshot_carries_state_and_cursor() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    let events =
        [(3, deployed(1, "p", 4)), (1_200, removed(2, "q", 2)), (1_234, trust_changed(3, 1, trusted()))];
    origin.apply(&events).await;
    let mark = origin.snapshots.publish().await.unwrap();
    assert_eq!(mark.version, v(1_234));
    assert_eq!(fleet.board.mark().await.unwrap(), Some(mark.clone()));
    let new = fleet.member();
    let restored = new.snapshots.bootstrap(v(1_235), NEWEST).await.unwrap();
    assert_eq!(restored.cursor, v(1_234));
    assert_eq!(restored.entities, ["plugin:p", "plugin:q", "trust"]);
    assert_eq!(new.store.desired().await.unwrap(), origin.store.desired().await.unwrap());
    // The same state makes no new snapshot; another one takes its place.
    assert_eq!(origin.snapshots.publish().await.unwrap(), mark);
    origin.apply(&[(1_240, deployed(4, "p", 5))]).await;
    let next = origin.snapshots.publish().await.unwrap();
    assert_eq!(fleet.artifacts.pinned(), [next.snapshot.unwrap().digest], "the former one may be collected");
}

/// C49: bytes that are not what the digest says change nothing.
#[tokio::test]
async fn c49_a_tampered_snapshot_changes_nothing() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    origin.apply(&[(1, deployed(1, "p", 1)), (2, deployed(2, "q", 1))]).await;
    let digest = origin.snapshots.publish().await.unwrap().snapshot.unwrap().digest;
    let text = String::from_utf8(fleet.artifacts.bytes(&digest).unwrap().to_vec()).unwrap();
    let new = fleet.member();
    for tampered in
        [text.replace("plugin.deployed", "plugin.removed_"), text[..text.len() / 2].into(), String::new()]
    {
        assert_ne!(tampered, text);
        fleet.artifacts.spoil(&digest, tampered);
        let error = new.snapshots.bootstrap(v(3), NEWEST).await.unwrap_err();
        assert!(matches!(error, ControlFeedError::ArtifactDamaged { .. }), "{error}");
        assert!(state(&new.store).await.is_empty());
        assert_eq!(new.store.cursor().await.unwrap(), v(0));
    }
    fleet.artifacts.spoil(&digest, text);
    new.snapshots.bootstrap(v(3), NEWEST).await.unwrap();
    assert_eq!(state(&new.store).await.len(), 2);
}

/// C50: another format is refused, although its digest is right. C52: so is one of another version than the mark says.
#[tokio::test]
async fn c50_c52_a_snapshot_of_another_format_or_version_is_refused() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    origin.apply(&[(1, deployed(1, "p", 1))]).await;
    let text = origin.text().await;
    let new = fleet.member();
    fleet.mark(1, text.replace(FORMAT, "millrace.control.snapshot.v2")).await;
    let error = new.snapshots.bootstrap(v(2), NEWEST).await.unwrap_err();
    assert!(matches!(error, ControlFeedError::NotUnderstood { .. }), "{error}");
    fleet.mark(7, text).await;
    let error = new.snapshots.bootstrap(v(2), NEWEST).await.unwrap_err();
    assert!(matches!(error, ControlFeedError::InvalidEvent { .. }), "{error}");
    assert_eq!(new.store.cursor().await.unwrap(), v(0));
    assert!(state(&new.store).await.is_empty());
}

/// C51, for the better: a store that has something is neither refused nor set back.
#[tokio::test]
async fn c51_a_populated_store_keeps_what_is_newer() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    origin.apply(&[(1, deployed(1, "p", 1)), (2, deployed(2, "q", 1)), (3, removed(3, "r", 2))]).await;
    origin.snapshots.publish().await.unwrap();
    let host = fleet.member();
    host.apply(&[(5, deployed(5, "p", 2)), (1, deployed(6, "r", 1))]).await;
    let restored = host.snapshots.bootstrap(v(3), NEWEST).await.unwrap();
    assert_eq!(restored.entities, ["plugin:q", "plugin:r"]);
    assert_eq!(restored.cursor, v(5));
    assert_eq!(state(&host.store).await, [at("p", 2, 5), at("q", 1, 2), at("r", 2, 3)]);
}

/// What is not signed, of a later host, in twice or from nowhere is set aside, and the rest is restored.
#[tokio::test]
async fn what_is_wrong_in_a_snapshot_holds_nothing_up() {
    let origin = Fleet::new().member();
    let foreign = unsigned(2, "foreign", 1, 2).sign(&key(8)).unwrap();
    origin.apply(&[(1, deployed(1, "good", 1)), (2, foreign), (3, deployed(3, "later", 1))]).await;
    let text = origin.text().await;
    let now = SystemClock.now();
    let all = read(text.as_bytes(), &trust(), now).unwrap();
    assert_eq!((all.events.len(), all.set_aside.len()), (2, 1));
    assert_eq!(all.set_aside[0].code, "control_event_untrusted");
    // A later host's kind, which must be understood.
    let strange = text.replace("plugin.deployed", "plugin.dreamt");
    let none = read(strange.as_bytes(), &trust(), now).unwrap();
    assert!(none.events.is_empty() && none.set_aside.len() == 3);
    assert!(none.set_aside.iter().all(|aside| aside.code == "control_event_not_understood"));
    // Twice, and from a place that the snapshot does not reach.
    let (_, rows) = origin.store.desired().await.unwrap();
    let twice = read(write(v(3), &[rows[1].clone(), rows[1].clone()]).as_bytes(), &trust(), now).unwrap();
    assert_eq!((twice.events.len(), twice.set_aside.len()), (1, 1));
    let beyond = read(write(v(2), &rows).as_bytes(), &trust(), now).unwrap();
    assert_eq!(beyond.events.len(), 1, "the one of version 3 has no place in it");
    assert!(read(b"{}", &trust(), now).is_err());
    let large = vec![0; usize::try_from(CONTROL_SNAPSHOT_BYTES_MAX).unwrap() + 1];
    let large = read(&large, &trust(), now).unwrap_err();
    assert_eq!(large.code(), "control_snapshot_bytes_max", "{large}");
}

/// A list of keys in a snapshot vouches for the rest of it, if a root key that this host believes vouches for the list.
#[tokio::test]
async fn a_snapshots_keys_count_for_its_events() {
    let mut list = trusted();
    list.keys.push(key(9).trusted_as(KeyRole::Release, "new"));
    let by_new = unsigned(1, "a", 1, 1).sign(&key(9)).unwrap();
    let origin = Fleet::new().member();
    origin.apply(&[(1, by_new), (2, trust_changed(2, 1, list.clone()))]).await;
    let text = origin.text().await;
    let believed = read(text.as_bytes(), &trust(), SystemClock.now()).unwrap();
    assert_eq!((believed.events.len(), believed.set_aside.len()), (2, 0));
    let stranger = TrustStore::new(
        0,
        &millrace::control::Trusted { keys: vec![key(7).trusted_as(KeyRole::Root, "another fleet")] },
    )
    .unwrap();
    let refused = read(text.as_bytes(), &stranger, SystemClock.now()).unwrap();
    assert_eq!((refused.events.len(), refused.set_aside.len()), (0, 2));
}

/// What expired since it was applied was in time for the fleet; what is from the future was not.
#[tokio::test]
async fn a_snapshot_keeps_what_has_expired_since() {
    let now = SystemClock.now();
    let expired = millrace::control::UnsignedEvent {
        expires_at: Some(millrace_tests::control::ISSUED_AT + 1),
        ..unsigned(1, "p", 1, 1)
    };
    let future =
        millrace::control::UnsignedEvent { issued_at: now.0 + 86_400_000_000, ..unsigned(2, "q", 1, 2) };
    let origin = Fleet::new().member();
    let sign = millrace_tests::control::sign;
    origin.apply(&[(1, sign(&expired)), (2, sign(&future)), (3, of_a_new_kind(3))]).await;
    let restore = read(origin.text().await.as_bytes(), &trust(), now).unwrap();
    let ids: Vec<_> = restore.events.iter().map(|(_, event)| event.id().clone()).collect();
    assert_eq!(ids, [id(1)]);
    assert_eq!(restore.set_aside.len(), 1);
    assert_eq!(restore.set_aside[0].code, "control_event_out_of_time");
}

/// W7: a snapshot that is taken while the store is written to is one moment of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m6_w7_a_snapshot_under_load_is_one_moment() {
    const EVENTS: u64 = 200;
    let fleet = Fleet::new();
    let origin = fleet.member();
    let (store, mut writing) = (origin.store.clone(), JoinSet::new());
    writing.spawn(async move {
        for n in 1..=EVENTS {
            store.apply(v(n), &deployed(n, &format!("p{}", n % 5), n)).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    loop {
        let mark = origin.snapshots.publish().await.unwrap();
        let new = fleet.member();
        new.snapshots.bootstrap(v(mark.version.0 + 1), NEWEST).await.unwrap();
        let (cursor, rows) = new.store.desired().await.unwrap();
        assert_eq!(cursor, mark.version);
        let mut found: Vec<u64> = rows.iter().map(|row| row.revision).collect();
        found.sort_unstable();
        let expected: Vec<u64> = (cursor.0.saturating_sub(4).max(1)..=cursor.0).collect();
        assert_eq!(found, expected, "nothing that the cursor has passed is missing");
        assert_eq!(state_digest(&rows, &new.keys.keys()), mark.state_digest);
        if cursor == v(EVENTS) {
            break;
        }
    }
    writing.join_next().await.unwrap().unwrap();
}

/// W17: the newest snapshot does not reach to where the feed begins. That is no way to start.
#[tokio::test]
async fn w17_a_snapshot_that_is_too_old_is_not_taken() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    let host = fleet.member();
    let none = host.snapshots.bootstrap(v(4), NEWEST).await.unwrap_err();
    assert_eq!(none.code(), "control_behind_retention");
    origin.apply(&[(2, deployed(1, "p", 1))]).await;
    origin.snapshots.publish().await.unwrap();
    let old = host.snapshots.bootstrap(v(4), NEWEST).await.unwrap_err();
    assert_eq!(old.code(), "control_behind_retention");
    assert!(state(&host.store).await.is_empty());
    assert_eq!(
        host.snapshots.bootstrap(v(3), NEWEST).await.unwrap().cursor,
        v(2),
        "right up to where the feed begins"
    );
}

/// Who can write the mark can say anything of how far a snapshot goes. Nobody signs that: hosts do not pass by what the feed
/// has, nor what it will have.
#[tokio::test]
async fn a_snapshot_takes_nobody_further_than_the_feed_goes() {
    let fleet = Fleet::new();
    let (origin, new, host) = (fleet.member(), fleet.member(), fleet.member());
    let events = [(1, deployed(1, "p", 1)), (2, deployed(2, "q", 1))];
    origin.apply(&events).await;
    host.apply(&events[1..]).await;
    let (_, rows) = origin.store.desired().await.unwrap();
    let far = 1 << 40;
    let snapshot = fleet.mark(far, write(v(far), &rows)).await;
    assert_eq!(new.snapshots.bootstrap(v(3), v(7)).await.unwrap().cursor, v(7));
    assert_eq!(state(&new.store).await, state(&origin.store).await);
    assert_eq!(host.snapshots.resync().await.unwrap().unwrap().cursor, v(2));
    assert_eq!(state(&host.store).await, state(&origin.store).await);
    // The mark is of where the host is, and its snapshot of a place far beyond.
    let (board, ill) = (Fleet { board: MemoryFeed::new(), ..fleet }, events[1..].to_vec());
    let host = board.member();
    host.apply(&ill).await;
    let mark = FleetMark { version: v(2), state_digest: "other".into(), snapshot: Some(snapshot) };
    board.board.set_mark(&mark).await.unwrap();
    assert_eq!(host.snapshots.heal().await.unwrap().unwrap().cursor, v(2));
    assert_eq!(state(&host.store).await, state(&origin.store).await);
}

/// An origin that was rebuilt from the feed has less than it had: what has expired since is no news. What it had marked is
/// not lost by its next mark, whether that is of the same version or of a later one.
#[tokio::test]
async fn a_rebuilt_origin_marks_no_less_than_was_marked() {
    for later in [None, Some((3, deployed(3, "r", 1)))] {
        let fleet = Fleet::new();
        let origin = fleet.member();
        let kept = trust_changed(1, 1, trusted());
        origin.apply(&[(1, kept), (2, deployed(2, "q", 1))]).await;
        origin.keys.recall(&origin.store).await.unwrap();
        let former = origin.snapshots.publish().await.unwrap();
        let rebuilt = fleet.member();
        rebuilt.apply(&[(2, deployed(2, "q", 1))]).await;
        rebuilt.apply(later.as_slice()).await;
        let mark = rebuilt.snapshots.publish().await.unwrap();
        assert_eq!(rebuilt.keys.keys().revision(), 1, "{later:?}");
        let new = fleet.member();
        let version = mark.version.0;
        assert_eq!(version, if later.is_some() { 3 } else { 2 });
        let restored = new.snapshots.bootstrap(v(version + 1), NEWEST).await.unwrap();
        assert_eq!(restored.entities.len(), if later.is_some() { 3 } else { 2 }, "{restored:?}");
        if later.is_none() {
            assert_eq!(mark, former, "it says the same again");
        }
    }
}

/// The machine of an origin that is rebuilt has a clock that is behind: what it does not believe yet is not lost by its next
/// mark, and it marks once its clock is right.
#[tokio::test]
async fn an_origin_whose_clock_is_behind_marks_nothing_less() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    let events = [(1, deployed(1, "p", 1)), (2, deployed(2, "q", 1))];
    origin.apply(&events).await;
    let former = origin.snapshots.publish().await.unwrap();
    let kept = fleet.artifacts.pinned();
    let clock = Arc::new(ManualClock::default());
    let issued_at = millrace_tests::control::ISSUED_AT;
    clock.set(Micros(issued_at - 3_600_000_000));
    let rebuilt = fleet.member_at(trust(), clock.clone());
    // It has passed the events by, as its applier does, and what came since.
    rebuilt.store.take(vec![Entry::PassedBy { version: v(3) }]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(rebuilt.snapshots.publish().await.unwrap_err().code(), "control_event_out_of_time");
        assert_eq!(fleet.board.mark().await.unwrap(), Some(former.clone()));
        assert_eq!(fleet.artifacts.pinned(), kept);
    }
    clock.set(Micros(issued_at + 1));
    assert_eq!(rebuilt.snapshots.publish().await.unwrap().version, v(3));
    let new = fleet.member();
    new.snapshots.bootstrap(v(4), NEWEST).await.unwrap();
    assert_eq!(state(&new.store).await, state(&origin.store).await);
}

/// Who can write a mark, and has no key, keeps no origin from marking with what is of no time yet.
#[tokio::test]
async fn no_origin_waits_for_what_nobody_vouches_for() {
    let fleet = Fleet::new();
    let (origin, stranger) = (fleet.member(), fleet.member());
    let far = millrace::control::UnsignedEvent {
        issued_at: SystemClock.now().0 + 86_400_000_000,
        ..unsigned(1, "p", 1, 1)
    };
    stranger.apply(&[(1, far.sign(&key(8)).unwrap())]).await;
    fleet.mark(1, stranger.text().await).await;
    origin.apply(&[(2, deployed(2, "q", 1))]).await;
    assert_eq!(origin.snapshots.publish().await.unwrap().version, v(2));
}

/// What cannot be got any more is made again, and does not wait for the next change.
#[tokio::test]
async fn a_snapshot_that_is_lost_is_made_again() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    origin.apply(&[(1, deployed(1, "p", 1))]).await;
    let mark = origin.snapshots.publish().await.unwrap();
    let digest = mark.snapshot.clone().unwrap().digest;
    fleet.artifacts.lose(&digest);
    assert_eq!(origin.snapshots.publish().await.unwrap(), mark);
    assert_eq!(fleet.artifacts.pinned(), [digest]);
    assert_eq!(fleet.member().snapshots.bootstrap(v(2), NEWEST).await.unwrap().cursor, v(1));
    // Of one that nobody can get, nothing is taken in, and it does not stay.
    let rebuilt = fleet.member();
    rebuilt.apply(&[(1, deployed(7, "q", 1))]).await;
    fleet.artifacts.lose(&mark.snapshot.unwrap().digest);
    assert_eq!(rebuilt.snapshots.publish().await.unwrap().version, v(1));
    assert_eq!(fleet.member().snapshots.bootstrap(v(2), NEWEST).await.unwrap().entities, ["plugin:q"]);
}

/// A mark of a version that the feed does not have would stay for ever, and hosts would compare themselves with it in vain.
/// One that the feed has is another origin's, which is ahead.
#[tokio::test]
async fn a_mark_beyond_the_feed_gives_way_to_the_origins() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    origin.apply(&[(2, deployed(1, "p", 1))]).await;
    let far = fleet.mark(1 << 40, "nothing".into()).await;
    let stands = || async { fleet.board.mark().await.unwrap().unwrap().snapshot };
    // Nobody knows how far the feed goes; then it goes that far; then the look at it may only be late.
    for newest in [None, Some(v(1 << 40)), Some(v(3))] {
        origin.snapshots.saw_newest(newest);
        origin.snapshots.publish().await.unwrap();
        assert_eq!(stands().await, Some(far.clone()), "{newest:?}");
    }
    let mark = origin.snapshots.publish().await.unwrap();
    assert_eq!(mark.version, v(2));
    assert_eq!(fleet.board.mark().await.unwrap(), Some(mark));
}

/// W8: a host that has missed a change, a removal included, finds out and repairs it; one that has not leaves all alone.
#[tokio::test]
async fn c53_w8_a_missed_removal_is_found_and_repaired() {
    let fleet = Fleet::new();
    let (origin, well, ill) = (fleet.member(), fleet.member(), fleet.member());
    assert_eq!(ill.snapshots.heal().await.unwrap(), None, "there is no mark yet");
    let feed = [
        (1, deployed(1, "p", 1)),
        (2, deployed(2, "q", 1)),
        (3, removed(3, "p", 2)),
        (4, deployed(4, "q", 2)),
    ];
    origin.apply(&feed).await;
    well.apply(&feed).await;
    ill.apply(&[feed[0].clone(), feed[1].clone()]).await;
    let mark = origin.snapshots.publish().await.unwrap();
    assert_eq!(ill.snapshots.compare().await.unwrap(), Some((mark.clone(), Drift::Behind)));
    assert_eq!(ill.snapshots.heal().await.unwrap(), None, "it may yet come");
    // The removal never came.
    ill.apply(&feed[3..]).await;
    assert_eq!(well.snapshots.compare().await.unwrap(), Some((mark.clone(), Drift::Same)));
    assert_eq!(well.snapshots.heal().await.unwrap(), None);
    let healed = ill.snapshots.heal().await.unwrap().unwrap();
    assert_eq!(healed.entities, ["plugin:p"]);
    assert_eq!(state(&ill.store).await, state(&origin.store).await);
    assert_eq!(ill.snapshots.compare().await.unwrap(), Some((mark, Drift::Same)));
    well.apply(&[(5, deployed(5, "q", 3))]).await;
    assert!(matches!(well.snapshots.compare().await.unwrap(), Some((_, Drift::Ahead))));
}

/// A host that has something that the fleet does not have is told of once, and its snapshot is not fetched again and again.
#[tokio::test]
async fn what_a_snapshot_cannot_repair_is_tried_once() {
    let fleet = Fleet::new();
    let (origin, host) = (fleet.member(), fleet.member());
    origin.apply(&[(2, deployed(1, "p", 1))]).await;
    host.apply(&[(1, deployed(9, "mine", 1)), (2, deployed(1, "p", 1))]).await;
    let digest = origin.snapshots.publish().await.unwrap().snapshot.unwrap().digest;
    assert_eq!(host.snapshots.heal().await.unwrap(), None);
    fleet.artifacts.spoil(&digest, "it would be noticed if somebody read this");
    assert_eq!(host.snapshots.heal().await.unwrap(), None);
    assert_eq!(state(&host.store).await, [at("mine", 1, 9), at("p", 1, 1)]);
}

/// A host whose clock is behind does not believe what is from its future; once its clock is right it does, unasked.
#[tokio::test]
async fn what_is_too_early_for_a_host_is_tried_until_it_is_not() {
    let fleet = Fleet::new();
    let origin = fleet.member();
    let clock = Arc::new(ManualClock::default());
    let issued_at = millrace_tests::control::ISSUED_AT;
    clock.set(Micros(issued_at - 3_600_000_000));
    let host = fleet.member_at(trust(), clock.clone());
    origin.apply(&[(1, deployed(1, "p", 1))]).await;
    origin.snapshots.publish().await.unwrap();
    // It has passed the event by, as its applier does.
    host.store.take(vec![Entry::PassedBy { version: v(1) }]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(host.snapshots.heal().await.unwrap(), None);
        assert!(state(&host.store).await.is_empty());
    }
    clock.set(Micros(issued_at + 1));
    let healed = host.snapshots.heal().await.unwrap().unwrap();
    assert_eq!(healed.entities, ["plugin:p"]);
    assert_eq!(state(&host.store).await, [at("p", 1, 1)]);
}

/// The digest is of what is desired: other orders of arrival and other control versions give the same.
#[tokio::test]
async fn the_digest_of_a_state_is_of_what_is_desired() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.member(), fleet.member());
    one.apply(&[(1, deployed(1, "p", 1)), (2, deployed(2, "q", 1))]).await;
    other.apply(&[(7, deployed(2, "q", 1)), (5, deployed(1, "p", 1))]).await;
    let digest_of = |rows: &[_]| state_digest(rows, &trust());
    let (_, rows) = one.store.desired().await.unwrap();
    let (_, same) = other.store.desired().await.unwrap();
    let digest = digest_of(&rows);
    assert_eq!(digest, digest_of(&same));
    assert!(digest.starts_with("sha256:") && digest.len() == 71);
    assert_ne!(digest, digest_of(&rows[..1]));
    other.apply(&[(8, deployed(8, "q", 2))]).await;
    let (_, changed) = other.store.desired().await.unwrap();
    assert_ne!(digest, digest_of(&changed));
    let newer = TrustStore::new(1, &trusted()).unwrap();
    assert_ne!(digest, state_digest(&rows, &newer), "keys of another revision are another state");
    let mark = FleetMark { version: v(2), state_digest: digest.clone(), snapshot: None };
    assert_eq!(drift(&mark, v(2), "other"), Drift::Differs);
    assert_eq!(drift(&mark, v(1), "other"), Drift::Behind);
    assert_eq!(drift(&mark, v(3), "other"), Drift::Ahead);
    assert_eq!(drift(&mark, v(3), &digest), Drift::Same);
}
