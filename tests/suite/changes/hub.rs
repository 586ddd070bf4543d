//! Following changes in this process: the checklist's items of a hub.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use millrace::error::Classify;
use millrace::event::Position;
use millrace::limits::CHANGE_QUEUE_BATCHES_MAX;
use millrace::streams::{
    AggregateScopes, ChangeMode, ChangeRequest, ChangeStream, Delivery, GapCause, HubError, StreamName,
};
use millrace_tests::conformance::change_streams::{asset_scopes, change};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;

use super::rig::{CONFLATED, Log, events, is, next, of, rig, rig_on, settle, several};

#[tokio::test]
async fn u1_a_request_resolves_by_id_field_and_tenant_and_the_tenant_ignores_an_id() {
    let rig = rig().await;
    let name = |request| rig.hub.resolve(&tenant("acme"), &request).unwrap().to_string();
    assert_eq!(name(of("id", "A1")), "changes:asset:id:A1");
    assert_eq!(name(of("site", "S1")), "changes:asset:site:S1");
    assert_eq!(name(of("tenant", "rival")), "changes:asset:tenant");
}

/// That there is no tenant cannot happen: a request is made for one.
#[tokio::test]
async fn u2_an_unknown_aggregate_or_scope_and_a_missing_id_are_errors() {
    let rig = rig().await;
    let pump = ChangeRequest { aggregate: "pump", scope: "id", id: "P" };
    for (request, code) in [
        (pump, "aggregate_unknown"),
        (of("kind", "x"), "scope_unknown"),
        (of("id", ""), "scope_id_missing"),
        (of("site", ""), "scope_id_missing"),
    ] {
        let refused = rig.hub.subscribe(&tenant("acme"), &request, CONFLATED).unwrap_err();
        assert_eq!(refused.code(), code);
    }
    assert_eq!(rig.hub.stats(), Default::default(), "nothing is followed for it");
}

#[tokio::test]
async fn u3_an_event_reaches_all_of_its_streams_and_an_empty_field_is_skipped() {
    let rig = rig().await;
    let mut by_id = rig.follow("id", "A1", ChangeMode::Raw);
    let mut by_site = rig.follow("site", "S1", ChangeMode::Raw);
    let mut by_tenant = rig.follow("tenant", "", ChangeMode::Raw);
    rig.append(change("asset", "A1", 1, "created", r#"{"site_id":""}"#)).await;
    rig.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S1"}"#)).await;
    for all in [&mut by_id, &mut by_tenant] {
        assert_eq!(several(all, 2).await, [is("A1", 1, 1), is("A1", 2, 2)]);
    }
    assert_eq!(events(&mut by_site).await, [is("A1", 2, 2)]);
}

#[tokio::test]
async fn u4_conflation_keeps_only_the_latest_and_nothing_extra() {
    let rig = rig().await;
    let mut follower = rig.follow("id", "A1", CONFLATED);
    for version in 1..=5 {
        rig.publish("A1", version).await;
        settle().await;
    }
    assert!(follower.next().now_or_never().is_none(), "the window has not ended");
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("A1", 5, 5)]);
    rig.publish("A1", 6).await;
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("A1", 6, 6)], "and nothing extra in between");
}

#[tokio::test]
async fn u5_distinct_aggregates_all_survive() {
    let rig = rig().await;
    let mut follower = rig.follow("tenant", "", CONFLATED);
    for (agg_id, version) in [("A", 1), ("B", 1), ("A", 2), ("C", 1)] {
        rig.publish(agg_id, version).await;
    }
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("B", 1, 2), is("A", 2, 3), is("C", 1, 4)]);
}

#[tokio::test]
async fn u6_a_raw_publish_bypasses_the_window() {
    let rig = rig().await;
    let mut follower = rig.follow("id", "A1", CONFLATED);
    rig.publish("A1", 1).await;
    settle().await;
    let stream = ChangeStream::new("asset", "id", "A1");
    rig.hub.publish_now(&stream, change("asset", "A1", 9, "moved", "{}"));
    assert!(follower.next().now_or_never().is_some(), "it is there at once");
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await, [is("A1", 1, 1)], "what waited comes when its window ends");
}

#[tokio::test]
async fn u7_cancel_and_the_end_of_the_host_stop_and_close() {
    let rig = rig().await;
    let mut cancelled = rig.follow("id", "A1", CONFLATED);
    let mut follower = rig.follow("id", "A1", CONFLATED);
    rig.publish("A1", 1).await;
    settle().await;
    cancelled.close();
    cancelled.close();
    assert!(cancelled.next().await.is_none());
    rig.end_windows().await;
    assert_eq!(events(&mut follower).await.len(), 1, "the other one goes on");
    rig.tasks.shutdown(Duration::from_secs(1)).await;
    assert!(follower.next().await.is_none(), "the host's end closes it");
    let refused = rig.hub.subscribe(&tenant("acme"), &of("id", "A1"), CONFLATED).unwrap_err();
    assert_eq!(refused, HubError::Closed);
}

#[tokio::test]
async fn u8_the_gate_denies_before_anything_is_resolved() {
    let rig = rig().await;
    let hub = rig
        .hub
        .clone()
        .with_gate(Arc::new(|tenant, request| tenant.as_str() == "acme" && request.scope != "tenant"));
    let acme = tenant("acme");
    for (who, request) in [
        (&acme, of("tenant", "")),
        (&tenant("rival"), of("id", "A1")),
        // Who is denied does not learn whether there is such a thing.
        (&tenant("rival"), ChangeRequest { aggregate: "none", scope: "none", id: "" }),
    ] {
        assert_eq!(hub.subscribe(who, &request, CONFLATED).unwrap_err(), HubError::Denied);
        assert_eq!(hub.resolve(who, &request).unwrap_err(), HubError::Denied);
    }
    assert!(hub.subscribe(&acme, &of("id", "A1"), CONFLATED).is_ok());
}

/// A gate that allows one aggregate and denies another: whoever follows the first sees nothing of the second, though
/// both have events in streams of the same scope and id.
pub(super) async fn sn26_a_live_follower_of_what_is_allowed_gets_nothing_of_what_is_denied(log: Log) {
    let rig = rig_on(log).await;
    let mut scopes = asset_scopes();
    scopes.push(AggregateScopes { aggregate: "pump".to_owned(), ..scopes[0].clone() });
    rig.log.declare_scopes("assets", &scopes).await.unwrap();
    let hub = rig.hub.clone().with_gate(Arc::new(|_, request| request.aggregate == "asset"));
    let (acme, mut version) = (tenant("acme"), 0);
    for mode in [ChangeMode::Raw, CONFLATED] {
        for (scope, id) in [("id", "X"), ("site", "S1"), ("tenant", "")] {
            let mut follower = hub.subscribe(&acme, &of(scope, id), mode).unwrap();
            let denied = ChangeRequest { aggregate: "pump", scope, id };
            assert_eq!(hub.subscribe(&acme, &denied, mode).unwrap_err(), HubError::Denied);
            assert_eq!(hub.stats().subscriptions, 1, "who is denied is not there");
            version += 3;
            rig.append(change("pump", "X", version, "updated", r#"{"site_id":"S1"}"#)).await;
            let position = rig.publish("X", version + 1).await;
            rig.append(change("pump", "X", version + 2, "updated", r#"{"site_id":"S1"}"#)).await;
            rig.end_windows().await;
            assert_eq!(events(&mut follower).await, [is("X", version + 1, position.0)], "{scope}");
            rig.end_windows().await;
            assert!(follower.next().now_or_never().is_none(), "{scope}");
            drop(follower);
            settle().await;
        }
    }
}

#[tokio::test]
async fn u9_raw_keeps_all_in_order_modes_do_not_mix_and_overflow_ends_with_a_mark() {
    let rig = rig().await;
    let mut follower = rig.follow("tenant", "", ChangeMode::Raw);
    let mixed = rig.hub.subscribe(&tenant("acme"), &of("tenant", ""), CONFLATED).unwrap_err();
    assert_eq!(mixed.code(), "change_modes_mixed");
    let last = CHANGE_QUEUE_BATCHES_MAX as u64 + 3;
    for version in 1..=last {
        rig.publish("A", version).await;
        settle().await;
    }
    for version in 1..=CHANGE_QUEUE_BATCHES_MAX as u64 {
        assert_eq!(events(&mut follower).await, [is("A", version, version)], "what was taken in is whole");
    }
    let end = next(&mut follower).await;
    let Delivery::End { after, cause: GapCause::Overflow } = end else { panic!("{end:?}") };
    assert_eq!(after, Position(CHANGE_QUEUE_BATCHES_MAX as u64));
    assert!(follower.next().await.is_none());
    let stream = StreamName::Changes(ChangeStream::new("asset", "tenant", ""));
    let rest = rig.log.read_stream(&tenant("acme"), &stream, after, ALL).await.unwrap();
    assert_eq!(rest.events.len(), 3, "the stream has the rest");
}

#[tokio::test]
async fn u10_the_tail_starts_with_the_first_subscriber_stops_with_the_last_and_starts_again() {
    let rig = rig().await;
    assert_eq!(rig.hub.stats().tails, 0);
    let mut first = rig.follow("id", "A1", CONFLATED);
    let second = rig.follow("id", "A1", CONFLATED);
    let third = rig.follow("site", "S1", ChangeMode::Raw);
    let stats = rig.hub.stats();
    assert_eq!((stats.tails, stats.streams, stats.subscriptions), (1, 2, 3), "one reader for all");
    drop((second, third));
    settle().await;
    assert_eq!(rig.hub.stats().tails, 1, "it survives that others leave");
    rig.publish("A1", 1).await;
    rig.end_windows().await;
    assert_eq!(events(&mut first).await, [is("A1", 1, 1)]);
    drop(first);
    settle().await;
    assert_eq!(rig.hub.stats(), Default::default());
    assert!(!format!("{:?}", rig.tasks).contains("changes of"), "its task has ended");
    rig.publish("A1", 2).await;
    let mut again = rig.follow("id", "A1", CONFLATED);
    assert_eq!((rig.hub.stats().tails, again.position()), (1, Position(2)));
    rig.publish("A1", 3).await;
    rig.end_windows().await;
    assert_eq!(events(&mut again).await, [is("A1", 3, 3)]);
}
