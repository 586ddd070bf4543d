//! Followers that take less than comes.

use millrace::event::Position;
use millrace::limits::{CHANGE_QUEUE_BATCHES_MAX, CHANGE_QUEUE_BYTES_MAX};
use millrace::streams::{ChangeMode, Delivery, GapCause, PageLimit};
use millrace_tests::conformance::change_streams::{change, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;

use super::rig::{CONFLATED, Log, events, is, next, rig_on, settle};

pub(super) async fn c43_a_raw_follower_that_overflows_is_ended_and_the_others_go_on(log: Log) {
    let rig = rig_on(log).await;
    let slow = rig.follow("tenant", "", ChangeMode::Raw);
    let mut quick = rig.follow("tenant", "", ChangeMode::Raw);
    for version in 1..=CHANGE_QUEUE_BATCHES_MAX as u64 + 1 {
        rig.publish("A", version).await;
        assert_eq!(events(&mut quick).await, [is("A", version, version)]);
    }
    assert!(slow.has_gap());
    assert_eq!(rig.hub.stats().subscriptions, 1, "nothing is kept for it any more");
}

/// Nothing is taken from it in silence: it has all up to a mark, and from the mark on the log has the rest.
pub(super) async fn c43_a_raw_follower_that_overflowed_goes_on_at_its_mark_without_a_hole(log: Log) {
    let rig = rig_on(log).await;
    let mut last = 0;
    // By the number of events that wait, and by their bytes.
    for padding in [0, CHANGE_QUEUE_BYTES_MAX / 7] {
        let before = last;
        let payload = format!(r#"{{"site_id":"S1","padding":"{}"}}"#, "x".repeat(padding));
        let publish = async |version| rig.append(change("asset", "A", version, "updated", &payload)).await.0;
        let mut slow = rig.follow("tenant", "", ChangeMode::Raw);
        let mut quick = [rig.follow("tenant", "", ChangeMode::Raw), rig.follow("id", "A", ChangeMode::Raw)];
        let mut conflated = rig.follow("site", "S1", CONFLATED);
        let mut after_the_mark = 3;
        while after_the_mark > 0 {
            after_the_mark -= u64::from(slow.has_gap());
            last += 1;
            assert!(last - before < CHANGE_QUEUE_BATCHES_MAX as u64 + 5, "it is never ended");
            assert_eq!(publish(last).await, last);
            for quick in &mut quick {
                assert_eq!(events(quick).await, [is("A", last, last)], "the others go on");
            }
        }
        rig.end_windows().await;
        assert_eq!(events(&mut conflated).await, [is("A", last, last)]);

        let mut seen = before;
        let mark = loop {
            match next(&mut slow).await {
                Delivery::Events(events) => {
                    for record in events.records() {
                        assert_eq!(record.position, seen + 1);
                        seen = record.position;
                    }
                }
                Delivery::End { after, cause: GapCause::Overflow } => break after,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(mark, Position(seen), "the mark is behind what it has, and before all that it lacks");
        assert!(before < seen && seen < last, "{seen} of {last}");
        assert!(slow.next().await.is_none());

        // It follows anew, and reads what lies between from the log while more comes.
        let mut again = rig.follow("tenant", "", ChangeMode::Raw);
        last += 1;
        publish(last).await;
        let (acme, all) = (tenant("acme"), stream("asset", "tenant", ""));
        while seen < again.position().0 {
            let limit = PageLimit { events: 2, ..ALL };
            let page = rig.log.read_stream(&acme, &all, Position(seen), limit).await.unwrap();
            assert!(!page.truncated, "the log has it all");
            for record in page.events.records() {
                assert_eq!(record.position, seen + 1);
                seen = record.position;
            }
        }
        while seen < last {
            for (_, _, position) in events(&mut again).await {
                // A page may have had it already.
                assert!(position <= seen + 1, "{position} after {seen}");
                seen = seen.max(position);
            }
        }
        settle().await;
        assert!(!again.has_gap());
    }
}
