//! N9: whatever overflows between a commit and a client, the client ends with the right rows, or is told.
//!
//! On the way there are the queue of changes (`ROW_CHANGES_BYTES_MAX`), what is kept for reads under way
//! (`LIVE_REPLAY_ROWS_MAX`), pages of reads (`ROW_PAGE_BYTES_MAX`), requests (`LIVE_COMMANDS_MAX`) and turns to
//! read (`LIVE_READS_MAX`), what a view keeps (`LIVE_RING_BYTES_MAX`) and how much of it is taken at a time
//! (`LIVE_TAKEN_BATCHES_MAX`): these are here. Sockets that take nothing are in `gateway/live_slow.rs`, the bound
//! of a write and its deadline in `live/`, rows of streamed queries and the number of views in `sharing.rs`.

use std::sync::Arc;

use futures_util::future::join_all;
use millrace::error::Classify as _;
use millrace::event::{Epoch, TenantId};
use millrace::limits::{
    LIVE_COMMANDS_MAX, LIVE_READS_MAX, LIVE_REPLAY_ROWS_MAX, LIVE_RING_BYTES_MAX, LIVE_TAKEN_BATCHES_MAX,
    LIVE_VIEWS_MAX, ROW_CHANGES_BYTES_MAX, ROW_PAGE_BYTES_MAX,
};
use millrace::live::{LiveEngine, LiveQueries as _, LiveQuery, Mode, Subscribe};
use millrace::tables::{Cell, Order, Query, Value};
use millrace_tests::conformance::effects::{Effects, tenant};
use millrace_tests::model::board;
use millrace_tests::shelf::Shelf;
use millrace_tests::until;
use millrace_tests::viewer::Viewer;

use super::rig::{Rig, by_n, until_keys, watch};

fn rig() -> (Shelf, LiveEngine) {
    let shelf = Shelf::new(board());
    // Reads are counted here: none is to be a check.
    let never = std::time::Duration::from_secs(3_600);
    let live = LiveEngine::checked_every(never, Arc::new(shelf.clone()), Epoch("one".into()), LIVE_VIEWS_MAX);
    (shelf, live)
}

fn acme() -> TenantId {
    tenant("acme")
}

fn by_rank(limit: u32) -> LiveQuery {
    let order = vec![Order { column: "rank".into(), descending: false }];
    LiveQuery { query: Query { order, limit, ..Query::all("board") }, mode: Mode::Maintained, columns: None }
}

fn cells(rank: i64) -> Option<Vec<Value>> {
    Some(vec![Value::Int(rank), Value::Null, Value::Null])
}

/// The queue of changes between a store and the engine, `ROW_CHANGES_BYTES_MAX`.
#[tokio::test]
async fn n9_more_changes_than_a_watcher_may_leave_waiting_end_in_the_right_rows() {
    let (shelf, live) = rig();
    shelf.commit(&[("a".into(), cells(1)), ("b".into(), cells(2))]);
    let mut viewer = watch(&live, by_rank(10)).await;
    // The engine has no turn meanwhile, so that it takes none of them.
    for rank in 0..40 {
        shelf.commit_of(
            ROW_CHANGES_BYTES_MAX / 16,
            &[("a".into(), cells(rank)), (format!("n{rank}"), cells(99))],
        );
        shelf.commit_of(ROW_CHANGES_BYTES_MAX / 16, &[(format!("n{rank}"), None)]);
    }
    until_keys(&mut viewer, &["b", "a"]).await;
    assert_eq!(viewer.rows[1]["rank"], 39);
    assert!(viewer.names.len() < 5, "it is told the difference: {:?}", viewer.names);
    assert_eq!(shelf.reads(), 2, "the rows were read again");
}

/// Changes that are kept while a read is under way, `LIVE_REPLAY_ROWS_MAX`.
#[tokio::test]
async fn n9_more_changes_than_are_kept_for_a_read_that_is_under_way_end_in_the_right_rows() {
    let (shelf, live) = rig();
    shelf.commit(&[("a".into(), cells(1))]);
    shelf.hold_reads();
    let mut viewer = Viewer::new(acme(), by_rank(3));
    let connecting = viewer.connect(&live);
    let writing = async {
        until("the read is under way", || shelf.reads() == 1).await;
        for round in 0..=LIVE_REPLAY_ROWS_MAX / 5_000 {
            let rank = |n: usize| i64::try_from(n + round).expect("small");
            let rows: Vec<_> = (0..5_000).map(|n| (format!("k{n:04}"), cells(rank(n)))).collect();
            shelf.commit(&rows);
            tokio::task::yield_now().await;
        }
        shelf.commit(&[("b".into(), cells(0)), ("a".into(), None)]);
        // All of it is taken in before the read ends.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        shelf.let_reads_go();
    };
    let (connected, ()) = tokio::join!(connecting, writing);
    connected.expect("a good query");
    viewer.take_until_ready().await;
    assert_eq!(viewer.keys(), ["b", "k0000", "k0001"]);
    assert_eq!(shelf.reads(), 2, "the first read was of no use");
}

/// What a view keeps for those who are behind, `LIVE_RING_BYTES_MAX`.
#[tokio::test]
async fn n9_who_is_too_slow_is_told_so_and_gets_the_rows_as_they_are() {
    let (shelf, live) = rig();
    shelf.commit(&[("a".into(), cells(0))]);
    let (mut slow, mut quick) = (watch(&live, by_rank(10)).await, watch(&live, by_rank(10)).await);
    let team = "x".repeat(LIVE_RING_BYTES_MAX / 16);
    for rank in 0..40 {
        shelf.commit(&[("a".into(), Some(vec![Value::Int(rank), Value::Text(team.clone()), Value::Null]))]);
        quick.take().await.expect("it goes on");
    }
    assert_eq!(quick.names.len(), 40, "who keeps up is told all of it");
    slow.take_until_ready().await;
    assert_eq!(slow.names.join(" "), "gap reset enter ready");
    assert_eq!(slow.rows, quick.rows);
    shelf.commit(&[("a".into(), cells(99))]);
    slow.take().await.expect("it goes on");
    assert_eq!(slow.rows[0]["rank"], 99, "and it goes on from there");
}

/// What a subscriber takes at a time, `LIVE_TAKEN_BATCHES_MAX`.
#[tokio::test]
async fn n9_who_is_behind_by_more_than_it_takes_at_a_time_gets_all_of_it() {
    let (shelf, live) = rig();
    shelf.commit(&[("a".into(), cells(-1))]);
    let mut viewer = watch(&live, by_rank(10)).await;
    let count = 3 * LIVE_TAKEN_BATCHES_MAX + 7;
    for rank in 0..count {
        shelf.commit(&[("a".into(), cells(i64::try_from(rank).expect("small")))]);
    }
    for rank in 0..count {
        viewer.take().await.expect("it goes on");
        assert_eq!(viewer.rows[0]["rank"], rank);
    }
    assert_eq!(viewer.names.len(), count, "each of them, and no gap: {:?}", viewer.names);
}

/// Requests that wait for a table's views, `LIVE_COMMANDS_MAX`, and reads that wait for their turn,
/// `LIVE_READS_MAX`.
#[tokio::test]
async fn n9_more_subscribers_at_once_than_may_wait_are_all_answered() {
    let (shelf, live) = rig();
    for n in 0..60 {
        shelf.commit(&[(format!("k{n:02}"), cells(n))]);
    }
    shelf.hold_reads();
    let asks = (0..LIVE_COMMANDS_MAX + 100).map(|n| {
        let live = live.clone();
        let limit = u32::try_from(1 + n % (3 * LIVE_READS_MAX)).expect("small");
        async move { watch(&live, by_rank(limit)).await }
    });
    let all = join_all(asks);
    let (viewers, ()) = tokio::join!(all, async {
        until("no more reads than have a turn", || shelf.reads() == LIVE_READS_MAX).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shelf.reads(), LIVE_READS_MAX);
        shelf.let_reads_go();
    });
    assert_eq!(shelf.reads(), 3 * LIVE_READS_MAX, "each query is read once");
    for viewer in viewers {
        assert_eq!(viewer.keys().len(), viewer.query.query.limit as usize);
    }
}

/// What a page of a read may hold, `ROW_PAGE_BYTES_MAX`.
#[tokio::test]
async fn n9_a_window_of_more_bytes_than_a_read_gives_is_refused_with_its_limit() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let label = "x".repeat(900 << 10);
    for n in 0..20 {
        let mut effects = Effects::default();
        lane.commit(effects.put(&format!("k{n:02}"), 1, &[Cell::Int(n), Cell::Text(&label)])).await;
    }
    assert!(20 * label.len() > ROW_PAGE_BYTES_MAX);
    let live = rig.live();
    let subscribe = |limit| Subscribe { tenant: acme(), query: by_n(limit), resume: None };
    let refused = live.subscribe(subscribe(20)).await.expect_err("it is too large");
    assert_eq!(refused.code(), "live_window_bytes_max");
    assert!(refused.to_string().contains("live_window_bytes_max is"), "{refused}");
}
