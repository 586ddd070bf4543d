//! What clients have after something went wrong between the store and the engine.

use std::time::Duration;

use millrace::error::Classify as _;
use millrace::live::{LiveQueries as _, Subscribe};
use millrace::tables::Cell;
use millrace_tests::conformance::effects::{Effects, tenant};
use millrace_tests::until;
use millrace_tests::viewer::Viewer;

use super::rig::{PATIENCE, Rig, by_n, until_keys, watch};

/// Long enough that no test sees a check.
const NEVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn e8_a_view_that_drifted_is_repaired_once_and_its_viewers_have_the_stores_rows() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    for (key, n) in [("a", 1), ("b", 2), ("c", 3)] {
        lane.put(key, 1, n).await;
    }
    let live = rig.meddled(Duration::from_millis(1));
    let mut viewer = watch(&live, by_n(2)).await;
    assert_eq!(viewer.keys(), ["a", "b"]);
    // A commit that nobody hears of.
    rig.meddler.swallow_news(1);
    lane.put("a", 1, 9).await;
    until_keys(&mut viewer, &["b", "c"]).await;
    assert_eq!(viewer.names.join(" "), "leave enter", "it is told what is different");
    assert_eq!(live.repaired(), 1);
    let reads = rig.meddler.reads();
    until("some more checks", || rig.meddler.reads() > reads + 5).await;
    assert_eq!(live.repaired(), 1, "and then there is nothing to repair");
    lane.put("d", 1, 0).await;
    until_keys(&mut viewer, &["d", "b"]).await;
}

#[tokio::test]
async fn e8_a_view_that_began_with_a_lie_is_repaired() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    lane.put("b", 1, 2).await;
    rig.meddler.lie_once(|page| drop(page.rows.remove(0)));
    let live = rig.meddled(Duration::from_millis(1));
    let mut viewer = watch(&live, by_n(10)).await;
    assert_eq!(viewer.keys(), ["b"]);
    until_keys(&mut viewer, &["a", "b"]).await;
    assert_eq!(live.repaired(), 1);
}

#[tokio::test]
async fn e8_a_view_that_nobody_watches_and_one_that_cannot_be_read_are_left_alone() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    let live = rig.meddled(Duration::from_millis(1));
    let mut viewer = watch(&live, by_n(10)).await;
    rig.meddler.fail_reads();
    let reads = rig.meddler.reads();
    until("some checks", || rig.meddler.reads() > reads + 2).await;
    lane.put("b", 1, 2).await;
    until_keys(&mut viewer, &["a", "b"]).await;
    assert_eq!(live.repaired(), 0);
}

#[tokio::test]
async fn e8_news_that_are_late_are_no_drift() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    // Far from twenty times this.
    let live = rig.meddled(Duration::from_millis(500));
    let mut viewer = watch(&live, by_n(2)).await;
    rig.meddler.hold_news();
    lane.put("b", 1, 0).await;
    let reads = rig.meddler.reads();
    until("two checks", || rig.meddler.reads() > reads + 2).await;
    rig.meddler.let_news_go();
    until_keys(&mut viewer, &["b", "a"]).await;
    assert_eq!(live.repaired(), 0);
    assert_eq!(viewer.names, ["enter"]);
}

#[tokio::test]
async fn e8_a_row_that_breaks_a_check_ends_the_view_that_was_checked_and_no_other() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    let live = rig.meddled(Duration::from_millis(1));
    let (mut one, mut other) = (watch(&live, by_n(1)).await, watch(&live, by_n(2)).await);
    // A row without cells: looking at one to sort by it panics.
    rig.meddler.lie_once(|page| page.rows[0].cells.clear());
    let taken = async {
        tokio::select! {
            taken = one.take() => (taken, 2),
            taken = other.take() => (taken, 1),
        }
    };
    let (taken, left) = tokio::time::timeout(PATIENCE, taken).await.expect("one of them ends");
    assert_eq!(taken.unwrap_err().code(), "live_view_failed");
    lane.put("b", 1, 0).await;
    let (mut stays, keys) = if left == 2 { (other, vec!["b", "a"]) } else { (one, vec!["b"]) };
    until_keys(&mut stays, &keys).await;
    assert_eq!(live.repaired(), 0);
    assert_eq!(watch(&live, by_n(1)).await.keys(), ["b"], "the query can be asked again");
}

#[tokio::test]
async fn n5_a_store_that_is_ahead_when_a_window_is_filled_up_gives_no_row_twice() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let mut all = Effects::default();
    for n in 0..40 {
        all.put(&format!("k{n:02}"), 1, &[Cell::Int(n), Cell::Null]);
    }
    lane.commit(&mut all).await;
    let live = rig.meddled(NEVER);
    let mut viewer = watch(&live, by_n(3)).await;
    rig.meddler.hold_news();
    let mut gone = Effects::default();
    for n in 0..18 {
        gone.delete(&format!("k{n:02}"), 1);
    }
    lane.commit(&mut gone).await;
    // The store has this already when the window is filled up, and nobody has heard of it.
    let mut ahead = Effects::default();
    ahead.delete("k19", 1).put("x", 1, &[Cell::Int(18), Cell::Null]).put(
        "k20",
        1,
        &[Cell::Int(18), Cell::Null],
    );
    lane.commit(&mut ahead).await;
    rig.meddler.pass_news(1);
    until_keys(&mut viewer, &["k18", "k20", "x"]).await;
    let told = viewer.names.len();
    rig.meddler.let_news_go();
    lane.put("k18", 1, 99).await;
    until_keys(&mut viewer, &["k20", "x", "k21"]).await;
    assert_eq!(viewer.names[told..], ["leave", "enter"], "what it has already is not told again");
    lane.commit(Effects::default().delete("k20", 1)).await;
    until_keys(&mut viewer, &["x", "k21", "k22"]).await;
}

#[tokio::test]
async fn e2_a_change_that_the_rows_hold_already_is_not_told_and_the_next_one_is() {
    let rig = Rig::new(true).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 5, 1).await;
    lane.put("b", 1, 2).await;
    let live = rig.meddled(NEVER);
    drop(watch(&live, by_n(1)).await);
    // It is heard of after it was read.
    rig.meddler.hold_news();
    lane.put("a", 6, 3).await;
    let mut viewer = watch(&live, by_n(10)).await;
    assert_eq!(viewer.keys(), ["b", "a"]);
    rig.meddler.let_news_go();
    // An older version than the store has is no change at all.
    lane.put("a", 4, 0).await;
    lane.put("c", 1, 9).await;
    viewer.take().await.expect("it goes on");
    assert_eq!((viewer.names.join(" "), viewer.keys()), ("enter".into(), vec!["b", "a", "c"]));
}

#[tokio::test]
async fn n11_news_that_are_lost_are_made_up_for() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    lane.put("b", 1, 2).await;
    let live = rig.meddled(NEVER);
    let mut viewer = watch(&live, by_n(10)).await;
    rig.meddler.lose_news();
    lane.commit(Effects::default().delete("a", 1).put("c", 1, &[Cell::Int(3), Cell::Null])).await;
    until_keys(&mut viewer, &["b", "c"]).await;
    assert_eq!(viewer.names.join(" "), "leave enter", "it is told what is different");
    lane.put("d", 1, 0).await;
    until_keys(&mut viewer, &["d", "b", "c"]).await;
}

#[tokio::test]
async fn n11_while_the_store_cannot_be_read_nobody_is_told_anything_wrong() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let mut all = Effects::default();
    for n in 0..40 {
        all.put(&format!("k{n:02}"), 1, &[Cell::Int(n), Cell::Null]);
    }
    lane.commit(&mut all).await;
    let live = rig.meddled(NEVER);
    let mut viewer = watch(&live, by_n(3)).await;
    rig.meddler.fail_reads();
    let mut gone = Effects::default();
    for n in 0..30 {
        gone.delete(&format!("k{n:02}"), 1);
    }
    lane.commit(&mut gone).await;
    let query = by_n(7);
    let refused = live.subscribe(Subscribe { tenant: tenant("acme"), query, resume: None }).await;
    let refused = refused.expect_err("its rows cannot be read");
    assert_eq!(refused.code(), "storage_failed");
    assert!(matches!(refused.retry(), millrace::error::Retry::After(_)), "it is told to come back");
    assert!(viewer.take_now().is_none(), "it is told nothing wrong");
    rig.meddler.mend_reads();
    until_keys(&mut viewer, &["k30", "k31", "k32"]).await;
}

#[tokio::test]
async fn n11_when_the_feed_ends_clients_are_told_and_come_back_to_the_right_rows() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    let live = rig.meddled(NEVER);
    let mut viewer = watch(&live, by_n(10)).await;
    rig.meddler.end_watches();
    let end = viewer.take().await.expect_err("it is told");
    assert!(matches!(end.retry(), millrace::error::Retry::After(_)), "and to come back: {end}");
    lane.put("b", 1, 0).await;
    viewer.connect(&live).await.expect("there is a new feed");
    viewer.take_until_ready().await;
    assert_eq!(
        (viewer.names.join(" "), viewer.keys()),
        ("gap reset enter enter ready".into(), vec!["b", "a"])
    );
    lane.put("c", 1, 5).await;
    until_keys(&mut viewer, &["b", "a", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "the test owns its tasks and joins them")]
async fn e5_forty_come_and_go_while_somebody_writes_and_nothing_hangs() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let live = rig.live();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(async move {
        let mut n = 0;
        while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            n += 1;
            lane.put(&format!("k{}", n % 17), 1, n % 23).await;
        }
    });
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..40_u32 {
        let live = live.clone();
        clients.spawn(async move {
            for round in 0..5 {
                let mut viewer = Viewer::new(tenant("acme"), by_n(1 + (client + round) % 4));
                viewer.connect(&live).await.expect("a good query");
                if (client + round) % 3 > 0 {
                    viewer.take_until_ready().await;
                }
            }
        });
    }
    let all = tokio::time::timeout(super::rig::PATIENCE, clients.join_all());
    all.await.expect("all of them have come and gone");
    stop.send(()).expect("the writer writes");
    writer.await.expect("it does not panic");
    let rows = rig.keys(&by_n(4)).await;
    assert!(!rows.is_empty(), "the writer wrote");
    let mut viewer = watch(&live, by_n(4)).await;
    until_keys(&mut viewer, &rows.iter().map(String::as_str).collect::<Vec<_>>()).await;
}
