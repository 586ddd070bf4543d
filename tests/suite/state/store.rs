//! What the store does with state: migration of older stores, expiry, sizes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{
    CheckpointStore, CommitError, EffectBatch, EffectKind, EffectRecord, InvalidEffect, ScanLimit,
};
use millrace::clock::ManualClock;
use millrace::error::Classify;
use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::limits::{GUEST_STATE_BYTES_CEILING, STATE_EXPIRED_KEEP};
use millrace::plugins::DeploymentStore;
use millrace::streams::{EventLog, PageLimit};
use millrace_tests::conformance::effects::{Effects, commit, task};
use rusqlite::Connection;

const ROWS: &str = "
INSERT INTO meta VALUES ('epoch', 'FORMER');
UPDATE meta SET value = 9 WHERE name IN ('revision', 'generation');
INSERT INTO tenants VALUES (1, 'acme', 1);
INSERT INTO events VALUES (1, 1, 'e1', 'leg', 'a', 1, 'leg.x', 5, 1, 0, NULL, NULL, NULL, NULL, 6, '{\"n\":1}');
INSERT INTO tasks VALUES (4, 'board', 'acme', 0, 3, 1, 9, 7), (5, 'board', 'acme', 1, 3, 1, 8, 7);
INSERT INTO states VALUES (4, 'application/x-old', x'010203');
INSERT INTO keyed_state VALUES (4, x'61', x'31'), (4, x'6262', x'3233'), (5, x'63', x'');
INSERT INTO deployment_history VALUES (1, 'board', '{}');
";

/// An event that became a dead letter twice: its plugin was removed and deployed again.
const DEAD: &str =
    "INSERT INTO dead_letters(processor, task_tenant, lane, reason, message, attempts, dead_at,
  position, tenant, id, aggregate, agg_id, version, type, at, schema_version, depth, payload)
 VALUES ('board', 'acme', 0, 'reject', ?1, 1, 7, 1, 'acme', 'e1', 'leg', 'a', 1, 'leg.x', 5, 1, 0, '1')";

fn version_1(dir: &Path) {
    let conn = Connection::open(dir.join("millrace.db")).unwrap();
    conn.execute_batch("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL;").unwrap();
    conn.execute_batch(include_str!("version_1.sql")).unwrap();
    conn.execute_batch(ROWS).unwrap();
    for message in ["first", "second"] {
        conn.execute(DEAD, [message]).unwrap();
    }
    conn.execute_batch("PRAGMA user_version = 1").unwrap();
}

#[tokio::test]
async fn a_store_of_version_1_is_migrated_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    version_1(dir.path());
    for start in 0..2 {
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
        assert_eq!(&*store.epoch().0, "FORMER");
        let acme = TenantId::new("acme").unwrap();
        let page = EventLog::read(&store, &acme, Position::START, PageLimit { events: 10, bytes: 1 << 20 })
            .await
            .unwrap();
        assert_eq!((page.events.len(), page.events.get(0).payload), (1, &b"{\"n\":1}"[..]));
        let lane = task("board", "acme", 0);
        let checkpoint = store.checkpoint(&lane).await.unwrap().unwrap();
        let saved = checkpoint.saved.unwrap();
        assert_eq!((checkpoint.position, saved.state.as_slice()), (Position(1), &[1, 2, 3][..]));
        let scanned = store.state_scan(&lane, b"", None, ScanLimit::new(10)).unwrap();
        let entries: Vec<_> =
            scanned.entries.iter().map(|e| (e.key.as_slice(), e.value.as_slice(), e.expires_at)).collect();
        assert_eq!(entries, [(&b"a"[..], &b"1"[..], None), (b"bb", b"23", None)]);
        let rows = store.tasks(Some("board")).await.unwrap();
        let sizes: Vec<_> = rows.iter().map(|row| (row.keyed_entries, row.keyed_bytes)).collect();
        // The second start finds what the first one added.
        assert_eq!(sizes, [(2, 6), (1 + start, 1 + 3 * start)]);
        let dead = store.dead_letters("board", None, 10).await.unwrap();
        assert_eq!(dead.iter().map(|d| d.message.as_str()).collect::<Vec<_>>(), ["second"]);
        let other = task("board", "acme", 1);
        let (generation, _) = store.claim(&other).await.unwrap();
        let mut effects = Effects::default();
        effects.state_put_until(b"n", b"22", i64::MAX);
        store.commit(commit(&other, generation, 1, &[], &mut effects)).await.unwrap();
        assert!(store.history("other").await.unwrap().is_empty());
        store.close().await;
    }
}

/// Appends an event of this time; answers its position.
async fn event_at(store: &SqliteStore, tenant: &str, at: i64) -> u64 {
    let mut batch = EventBatch::new(TenantId::new(tenant).unwrap());
    let event = Event {
        aggregate: "leg",
        agg_id: "a",
        version: 1,
        event_type: "leg.x",
        at: Micros(at),
        ..Event::default()
    };
    batch.push(&event).unwrap();
    store.append(batch).await.unwrap()[0].position.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_ended_long_ago_are_removed_but_not_while_their_time_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let now = 1_000_000_000_000_000;
    clock.set(Micros(now));
    let options = SqliteOptions { clock: clock.clone(), ..SqliteOptions::new(dir.path()) };
    let store = SqliteStore::open(options).unwrap();
    let keep = i64::try_from(STATE_EXPIRED_KEEP.as_micros()).unwrap();
    // Both tasks hold the same. One has come up to now; the other handles what happened long ago.
    let (lane, replayed) = (task("board", "acme", 0), task("board", "replays", 0));
    let mut effects = Effects::default();
    for (task, at) in [(&replayed, now - 2 * keep), (&lane, now)] {
        let position = event_at(&store, task.tenant.as_str(), at).await;
        let (generation, _) = store.claim(task).await.unwrap();
        // More than one step of the removal.
        for n in 0..1_500_u32 {
            effects.state_put_until(format!("old/{n:04}").as_bytes(), b"12", now - keep - 1 - i64::from(n));
        }
        effects.state_put_until(b"young", b"1", now - keep).state_put(b"for good", b"1");
        store.commit(commit(task, generation, position, &[], &mut effects)).await.unwrap();
    }
    let begun = Instant::now();
    let rows = loop {
        let rows = store.tasks(Some("board")).await.unwrap();
        if rows[0].keyed_entries <= 2 {
            break rows;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} entries are left", rows[0].keyed_entries);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!((rows[0].keyed_entries, rows[0].keyed_bytes), (2, 15));
    assert_eq!(rows[1].keyed_entries, 1_502, "for its events nothing has ended yet");
    let page = store.state_scan(&lane, b"", None, ScanLimit::new(10)).unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.as_slice()).collect();
    assert_eq!(keys, [&b"for good"[..], b"young"]);
    // A commit that rewrites a removed entry simply writes it.
    let (generation, _) = store.claim(&lane).await.unwrap();
    effects.state_put(b"old/0000", b"new");
    store.commit(commit(&lane, generation, 2, &[], &mut effects)).await.unwrap();
    assert_eq!(store.state_get(&lane, b"old/0000").unwrap().unwrap().value, b"new");
}

#[tokio::test]
async fn keyed_state_beyond_its_limits_is_refused_and_may_always_shrink() {
    let dir = tempfile::tempdir().unwrap();
    let lane = task("board", "acme", 0);
    let open = |entries, bytes| {
        let options = SqliteOptions {
            keyed_state_entries_max: entries,
            keyed_state_bytes_max: bytes,
            ..SqliteOptions::new(dir.path())
        };
        SqliteStore::open(options).unwrap()
    };
    let store = open(3, 100);
    let (generation, _) = store.claim(&lane).await.unwrap();
    let mut effects = Effects::default();
    effects.state_put(b"a", b"1").state_put(b"b", b"1").state_put(b"c", b"1");
    store.commit(commit(&lane, generation, 1, &[], &mut effects)).await.unwrap();
    for (key, bytes, says) in [
        (&b"d"[..], 1, "would have 4 entries; keyed_state_entries_max is 3: delete"),
        (b"a", 100, "would have 105 bytes; keyed_state_bytes_max is 100: delete"),
    ] {
        effects.state_put(key, &vec![0; bytes]);
        let refused = store.commit(commit(&lane, generation, 2, &[], &mut effects)).await.unwrap_err();
        assert!(matches!(refused, CommitError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
        assert!(refused.to_string().contains("raise store.keyed_state_"), "{refused}");
    }
    assert_eq!(store.state_get(&lane, b"d").unwrap(), None, "nothing of it is written");
    store.close().await;
    // The limits were lowered: what is there stays, may be written and deleted, and does not grow.
    let store = open(1, 1);
    let (generation, _) = store.claim(&lane).await.unwrap();
    let fits =
        |effects: &mut Effects, position| store.commit(commit(&lane, generation, position, &[], effects));
    fits(effects.state_put(b"a", b"2"), 2).await.unwrap();
    fits(effects.state_put(b"a", b"22"), 3).await.unwrap_err();
    fits(effects.state_delete(b"a").state_delete(b"b"), 4).await.unwrap();
    fits(effects.state_put(b"a", b"2"), 5).await.unwrap_err();
}

#[tokio::test]
async fn a_state_beyond_the_ceiling_is_refused_without_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let lane = task("board", "acme", 0);
    let store = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
    let (generation, _) = store.claim(&lane).await.unwrap();
    let one = commit(&lane, generation, 1, &[], &mut Effects::default());
    store.commit(one).await.unwrap();
    store.close().await;
    let bytes = GUEST_STATE_BYTES_CEILING + 1;
    let conn = Connection::open(dir.path().join("millrace.db")).unwrap();
    conn.execute(
        "INSERT INTO states SELECT id, 'application/x-huge', zeroblob(?1) FROM tasks",
        [i64::try_from(bytes).unwrap()],
    )
    .unwrap();
    drop(conn);
    let store = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
    for refused in [store.claim(&lane).await.map(drop), store.checkpoint(&lane).await.map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), "guest_state_bytes_max");
        assert!(refused.to_string().contains(&format!("has {bytes} bytes")), "{refused}");
    }
    assert_eq!(store.tasks(None).await.unwrap()[0].state_bytes, bytes as u64);
}

#[test]
fn an_expiry_before_1970_is_refused() {
    let record = EffectRecord {
        kind: EffectKind::StatePut,
        table: 0,
        event: 0,
        version: 0,
        at: -1,
        schema_version: 0,
        start: 0,
        key_bytes: 1,
        aggregate_bytes: 0,
        type_bytes: 0,
        id_bytes: 0,
        body_bytes: 0,
        depth: 0,
    };
    let refused = EffectBatch::check(b"k".to_vec(), vec![record], &[], &[]).unwrap_err();
    assert_eq!(refused, InvalidEffect::StateExpiry { index: 0, at: -1 });
}
