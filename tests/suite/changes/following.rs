//! Following changes in this process: order, gaps, and who comes and goes. What is given a log runs on every one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use millrace::backends::memory::MemoryLog;
use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::event::Position;
use millrace::limits::{CHANGE_QUEUE_BATCHES_MAX, CHANGE_WINDOW, CHANGE_WINDOW_CEILING, CHANGE_WINDOW_MIN};
use millrace::streams::{
    ChangeMode, ChangeRequest, ChangeStream, Delivery, GapCause, Hub, HubError, Subscription,
};
use millrace_tests::conformance::change_streams::{change, change_of};
use millrace_tests::conformance::effects::tenant;
use tokio::task::JoinSet;

use super::rig::{CONFLATED, Log, events, is, next, of, rig, rig_on, settle, several};

pub(super) async fn c16_an_event_that_is_published_after_the_subscribe_arrives_with_position_and_version(
    log: Log,
) {
    let rig = rig_on(log).await;
    rig.publish("A1", 6).await;
    let mut follower = rig.follow("id", "A1", ChangeMode::Raw);
    assert_eq!(follower.position(), Position(1));
    rig.publish("A1", 7).await;
    assert_eq!(events(&mut follower).await, [is("A1", 7, 2)]);
}

pub(super) async fn c17_every_follower_sees_every_event(log: Log) {
    let rig = rig_on(log).await;
    let mut followers: Vec<_> = (0..3).map(|_| rig.follow("tenant", "", ChangeMode::Raw)).collect();
    rig.publish("A", 1).await;
    rig.publish("B", 1).await;
    for follower in &mut followers {
        assert_eq!(several(follower, 2).await, [is("A", 1, 1), is("B", 1, 2)]);
    }
}

pub(super) async fn c32_conflation_keeps_the_latest_version_whatever_the_order(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("id", "A1", CONFLATED);
    for version in [2, 3, 1] {
        rig.publish("A1", version).await;
    }
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("A1", 3, 2)]);
    rig.publish("A1", 4).await;
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("A1", 4, 4)]);
}

pub(super) async fn c33_a_thousand_aggregates_of_one_window_come_in_one_delivery(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("tenant", "", CONFLATED);
    let ids: Vec<String> = (0..1_000).map(|n| format!("A{n}")).collect();
    rig.publish_all(&ids).await;
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await.len(), 1_000);
}

pub(super) async fn c34_events_past_the_log_reach_raw_followers_too_and_nobody_else(log: Log) {
    let rig = rig_on(log).await;
    let mut raw = rig.follow("site", "S1", ChangeMode::Raw);
    let mut other = rig.follow("site", "S2", ChangeMode::Raw);
    let stream = ChangeStream::new("asset", "site", "S1");
    rig.hub.publish_now(&stream, change("asset", "A1", 9, "moved", "{}"));
    rig.hub.publish_now(&stream, change_of("rival", "asset", "A1", 9, "moved", "{}"));
    assert_eq!(events(&mut raw).await, [is("A1", 9, 0)]);
    settle().await;
    assert!(raw.next().now_or_never().is_none());
    assert!(other.next().now_or_never().is_none());
}

/// A stream has one mode in one hub; the hub of another host on the same log follows the very same one raw.
pub(super) async fn c34_raw_followers_get_each_event_at_once_while_the_window_of_a_conflated_one_lasts(
    log: Log,
) {
    const MICROSECOND: Duration = Duration::from_micros(1);
    const STEP: Duration = Duration::from_millis(10);
    let rig = rig_on(log).await;
    let other = Hub::new(Arc::clone(&rig.log), rig.tasks.clone(), rig.clock.clone());
    let mut conflated = rig.follow("site", "S1", CONFLATED);
    let mut raw = [
        rig.follow("id", "A1", ChangeMode::Raw),
        other.subscribe(&tenant("acme"), &of("site", "S1"), ChangeMode::Raw).unwrap(),
    ];
    // The last one comes in the last moment of the window that the first one began.
    let last_moment = CHANGE_WINDOW - 2 * STEP - MICROSECOND;
    for (version, later) in [(8, Duration::ZERO), (9, STEP), (10, STEP), (11, last_moment)] {
        rig.advance(later);
        let position = rig.publish("A1", version).await.0;
        for raw in &mut raw {
            assert_eq!(events(raw).await, [is("A1", version, position)]);
        }
        settle().await;
        assert!(conflated.next().now_or_never().is_none(), "the window lasts: {version}");
    }
    rig.advance(MICROSECOND);
    assert_eq!(events(&mut conflated).await, [is("A1", 11, 4)], "the latest alone");
    rig.end_windows().await;
    settle().await;
    for follower in raw.iter_mut().chain([&mut conflated]) {
        assert!(follower.next().now_or_never().is_none(), "nothing comes twice");
    }
}

pub(super) async fn c35_a_closed_subscription_delivers_nothing_more(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("id", "A1", ChangeMode::Raw);
    rig.publish("A1", 1).await;
    settle().await;
    follower.close();
    rig.publish("A1", 2).await;
    settle().await;
    assert!(follower.next().await.is_none());
    assert_eq!(rig.hub.stats().subscriptions, 0);
}

pub(super) async fn c36_the_end_of_its_owner_closes_a_subscription(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("id", "A1", ChangeMode::Raw);
    let mut owner = JoinSet::new();
    owner.spawn(async move { follower.next().await.is_some() });
    settle().await;
    assert_eq!(rig.hub.stats().subscriptions, 1);
    owner.shutdown().await;
    settle().await;
    assert_eq!(rig.hub.stats(), Default::default());
}

/// Whoever waits is woken by the end and gets nothing more, neither what waited for the end of its window.
pub(super) async fn c36_receivers_that_wait_end_with_the_tasks_of_their_hub(log: Log) {
    let rig = rig_on(log).await;
    let mut receivers = JoinSet::new();
    for (scope, id, mode) in [("id", "A1", ChangeMode::Raw), ("site", "S1", CONFLATED)] {
        let mut follower = rig.follow(scope, id, mode);
        receivers.spawn(async move {
            let mut got = 0;
            while let Some(delivery) = follower.next().await {
                let Delivery::Events(events) = delivery else { panic!("{delivery:?}") };
                got += events.len();
            }
            assert!(follower.next().await.is_none(), "it stays ended");
            (mode.name(), got)
        });
    }
    rig.publish("A1", 1).await;
    settle().await;
    assert!(receivers.try_join_next().is_none(), "they wait for more");
    let shutdown = rig.tasks.shutdown(Duration::from_secs(20)).await;
    assert_eq!(shutdown.cut_off, [""; 0]);
    let ended = tokio::time::timeout(Duration::from_secs(20), receivers.join_all()).await;
    let mut ended = ended.expect("the receivers end");
    ended.sort_unstable();
    assert_eq!(ended, [("conflated", 0), ("raw", 1)]);
    assert_eq!(rig.hub.stats(), Default::default());
}

pub(super) async fn c37_a_denied_request_is_not_resolved(log: Log) {
    let rig = rig_on(log).await;
    let hub = rig.hub.clone().with_gate(Arc::new(|_, _| false));
    let unknown = ChangeRequest { aggregate: "none", scope: "id", id: "x" };
    assert_eq!(hub.resolve(&tenant("acme"), &unknown).unwrap_err().code(), "changes_denied");
}

pub(super) async fn c40_a_raw_follower_gets_every_event_in_order(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("tenant", "", ChangeMode::Raw);
    let mut seen = Vec::new();
    for version in 1..=300 {
        rig.publish(if version % 3 == 0 { "A" } else { "B" }, version).await;
        settle().await;
        if version % 50 == 0 {
            while let Some(Some(Delivery::Events(events))) = follower.next().now_or_never() {
                seen.extend(events.records().iter().map(|record| record.position));
            }
        }
    }
    assert_eq!(seen, (1..=300).collect::<Vec<u64>>());
}

pub(super) async fn c41_raw_and_conflated_streams_live_beside_each_other(log: Log) {
    let rig = rig_on(log).await;
    let mut raw = rig.follow("id", "A1", ChangeMode::Raw);
    let mut conflated = rig.follow("site", "S1", CONFLATED);
    for version in 1..=3 {
        rig.publish("A1", version).await;
    }
    assert_eq!(several(&mut raw, 3).await.len(), 3);
    rig.end_windows().await;
    assert_eq!(events(&mut conflated).await, [is("A1", 3, 3)]);
}

pub(super) async fn c42_modes_do_not_mix_either_way_until_the_stream_is_left(log: Log) {
    let rig = rig_on(log).await;
    let acme = tenant("acme");
    for (one, other) in [(ChangeMode::Raw, CONFLATED), (CONFLATED, ChangeMode::Raw)] {
        let first = rig.follow("id", "A1", one);
        let mixed = rig.hub.subscribe(&acme, &of("id", "A1"), other).unwrap_err();
        assert!(matches!(mixed, HubError::MixedModes { mode, .. } if mode == one.name()), "{mixed}");
        drop(first);
        drop(rig.hub.subscribe(&acme, &of("id", "A1"), other).unwrap());
    }
}

#[tokio::test]
async fn windows_are_each_subscribers_own_within_their_bounds() {
    let rig = rig().await;
    let acme = tenant("acme");
    let of_ms = |ms| ChangeMode::Conflated { window: Duration::from_millis(ms) };
    for window in [Duration::ZERO, CHANGE_WINDOW_CEILING + Duration::from_millis(1)] {
        let mode = ChangeMode::Conflated { window };
        let refused = rig.hub.subscribe(&acme, &of("id", "A1"), mode).unwrap_err();
        assert_eq!(refused.code(), "change_window_ms");
    }
    let mut slow = rig.follow("id", "A1", of_ms(200));
    let mut fast = rig.follow("id", "A1", of_ms(10));
    for version in 1..=3 {
        rig.publish("A1", version).await;
        settle().await;
        rig.advance(Duration::from_millis(10));
        assert_eq!(events(&mut fast).await, [is("A1", version, version)]);
    }
    assert!(slow.next().now_or_never().is_none());
    rig.advance(Duration::from_secs(1));
    assert_eq!(events(&mut slow).await, [is("A1", 3, 3)]);
}

pub(super) async fn c44_one_reader_serves_two_and_survives_the_first_who_leaves(log: Log) {
    let rig = rig_on(log).await;
    let first = rig.follow("id", "A1", ChangeMode::Raw);
    let mut second = rig.follow("id", "A1", ChangeMode::Raw);
    assert_eq!(rig.hub.stats().tails, 1);
    drop(first);
    rig.publish("A1", 1).await;
    assert_eq!(events(&mut second).await, [is("A1", 1, 1)]);
    drop(second);
    settle().await;
    assert_eq!(rig.hub.stats().tails, 0);
}

pub(super) async fn c45_a_new_subscriber_starts_the_reader_again(log: Log) {
    let rig = rig_on(log).await;
    for round in 1..=20 {
        // Sometimes the reader has not even seen that it was left.
        let mut follower = rig.follow("id", "A1", ChangeMode::Raw);
        if round % 2 == 0 {
            settle().await;
        }
        rig.publish("A1", round).await;
        assert_eq!(events(&mut follower).await, [is("A1", round, round)]);
    }
}

pub(super) async fn c46_a_burst_of_updates_converges_to_the_last_version(log: Log) {
    let rig = rig_on(log).await;
    let mut follower = rig.follow("site", "S1", CONFLATED);
    let mut last = 0;
    for version in 1..=5 {
        rig.publish("A1", version).await;
        if version % 2 == 1 {
            rig.end_windows().await;
            for (_, version, _) in events(&mut follower).await {
                assert!(version > last, "versions only grow");
                last = version;
            }
        }
    }
    assert_eq!(last, 5);
}

pub(super) async fn c48_a_follower_of_another_tenant_stays_silent(log: Log) {
    let rig = rig_on(log).await;
    let mut rivals: Vec<Subscription> = [("id", "A1"), ("tenant", "acme"), ("site", "S1")]
        .map(|(scope, id)| rig.hub.subscribe(&tenant("rival"), &of(scope, id), ChangeMode::Raw).unwrap())
        .into();
    rig.publish("A1", 1).await;
    // A marker of its own is the first thing that each of them gets.
    rig.append(change_of("rival", "asset", "A1", 7, "updated", r#"{"site_id":"S1"}"#)).await;
    for rival in &mut rivals {
        assert_eq!(events(rival).await, [is("A1", 7, 2)]);
    }
}

pub(super) async fn sn08_what_a_slow_follower_does_not_get_is_told(log: Log) {
    let rig = rig_on(log).await;
    let short = ChangeMode::Conflated { window: CHANGE_WINDOW_MIN };
    let mut follower = rig.follow("id", "A1", short);
    let mut quick = rig.follow("id", "A1", short);
    let last = CHANGE_QUEUE_BATCHES_MAX as u64 + 5;
    for version in 1..=last {
        rig.publish("A1", version).await;
        rig.end_windows().await;
        assert_eq!(events(&mut quick).await, [is("A1", version, version)]);
    }
    let gap = next(&mut follower).await;
    let Delivery::Gap { through, cause: GapCause::Overflow } = gap else { panic!("{gap:?}") };
    let mut seen = through.0;
    while let Some(Some(Delivery::Events(events))) = follower.next().now_or_never() {
        for record in events.records() {
            assert_eq!(record.position, seen + 1, "after the gap everything is there");
            seen = record.position;
        }
    }
    assert_eq!(seen, last);
}

pub(super) async fn sn09_deliveries_are_ordered_by_number_from_nine_to_ten(log: Log) {
    let rig = rig_on(log).await;
    for version in 1..=8 {
        rig.publish("filler", version).await;
    }
    let mut follower = rig.follow("tenant", "", CONFLATED);
    for agg_id in ["z", "a", "m"] {
        rig.publish(agg_id, 1).await;
    }
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("z", 1, 9), is("a", 1, 10), is("m", 1, 11)]);
}

pub(super) async fn sn10_who_joins_while_an_emptied_stream_has_something_pending_is_served(log: Log) {
    let rig = rig_on(log).await;
    let leaving = rig.follow("id", "A1", CONFLATED);
    rig.publish("A1", 1).await;
    settle().await;
    drop(leaving);
    let mut joining = rig.follow("id", "A1", CONFLATED);
    assert_eq!(joining.position(), Position(1));
    rig.publish("A1", 2).await;
    rig.end_windows().await;
    assert_eq!(events(&mut joining).await, [is("A1", 2, 2)]);
    // The same when the reader has had the time to end.
    rig.publish("A1", 3).await;
    settle().await;
    drop(joining);
    settle().await;
    let mut joining = rig.follow("id", "A1", CONFLATED);
    rig.publish("A1", 4).await;
    rig.end_windows().await;
    assert_eq!(events(&mut joining).await, [is("A1", 4, 4)]);
}

pub(super) async fn sn21_thousands_of_streams_have_one_reader(log: Log) {
    let rig = rig_on(log).await;
    let acme = tenant("acme");
    let ids: Vec<String> = (0..5_000).map(|n| format!("A{n}")).collect();
    let mut followers: Vec<Subscription> = ids
        .iter()
        .map(|id| ChangeRequest { aggregate: "asset", scope: "id", id })
        .map(|request| rig.hub.subscribe(&acme, &request, CONFLATED).unwrap())
        .collect();
    let stats = rig.hub.stats();
    assert_eq!((stats.tails, stats.streams, stats.subscriptions), (1, 5_000, 5_000));
    rig.publish_all(&ids).await;
    rig.end_windows().await;
    for (follower, id) in followers.iter_mut().zip(&ids) {
        let events = events(follower).await;
        assert_eq!((events.len(), &events[0].0), (1, id));
    }
    drop(followers);
    settle().await;
    assert_eq!(rig.hub.stats(), Default::default());
}

/// However slow: what a follower sees, and reads again where it is told to, ends at the last version.
pub(super) async fn sn22_a_slow_follower_always_ends_with_the_last_state(log: Log) {
    let short = ChangeMode::Conflated { window: CHANGE_WINDOW_MIN };
    let rig = rig_on(log).await;
    let mut version = 0;
    for taken_every in [1, 7, 40, 90] {
        let mut quick = rig.follow("id", "A1", short);
        let mut follower = rig.follow("id", "A1", short);
        let (mut known, mut gaps) = (0, 0);
        for round in 1..=180 {
            version += 1;
            rig.publish("A1", version).await;
            rig.end_windows().await;
            assert_eq!(events(&mut quick).await, [is("A1", version, version)]);
            if round % taken_every != 0 {
                continue;
            }
            while let Some(Some(delivery)) = follower.next().now_or_never() {
                match delivery {
                    Delivery::Events(events) => known = events.get(0).version,
                    // It reads the state, which has the version of the position.
                    Delivery::Gap { through, .. } => (known, gaps) = (through.0, gaps + 1),
                    Delivery::End { .. } => panic!("a conflated stream does not end"),
                }
            }
        }
        assert_eq!(gaps > 0, taken_every > CHANGE_QUEUE_BATCHES_MAX as u64, "{taken_every}");
        assert_eq!(known, version - 180 % taken_every, "{taken_every}");
    }
}

#[tokio::test]
async fn a_reader_that_fell_behind_the_tail_says_so_to_everybody() {
    let log: Log = Arc::new(MemoryLog::with_options(Arc::new(SystemClock), 1_000, 1));
    let rig = rig_on(log).await;
    let mut conflated = rig.follow("id", "A1", CONFLATED);
    let mut raw = rig.follow("tenant", "", ChangeMode::Raw);
    // The tail keeps one chunk, and the reader gets no turn in between.
    for version in 1..=3 {
        rig.publish("A1", version).now_or_never().unwrap();
    }
    let gap = next(&mut conflated).await;
    assert!(matches!(gap, Delivery::Gap { through: Position(3), cause: GapCause::TailLost }), "{gap:?}");
    let end = next(&mut raw).await;
    assert!(matches!(end, Delivery::End { after: Position(0), cause: GapCause::TailLost }), "{end:?}");
    rig.publish("A1", 4).await;
    rig.end_windows().await;
    assert_eq!(events(&mut conflated).await, [is("A1", 4, 4)]);
}
