//! States over versions, and what an event's time makes of keyed state.

use millrace::plugins::{FailurePolicy, PluginSettings, PluginState};
use millrace::tables::Value;

use super::{config, deploy, deploy_unseen, numbers, publish, refusal, settle, start};

fn ints(pairs: &[(&str, i64)]) -> Vec<(String, Value)> {
    pairs.iter().map(|(key, n)| ((*key).to_owned(), Value::Int(*n))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_content_type_takes_over_under_load_and_the_old_version_is_refused_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    publish(&host, &[("a", "x", 0)]).await;
    deploy(&host, "counter").await.unwrap();
    let load = async {
        for round in 0..200 {
            publish(&host, &[("a", "x", round), ("b", "x", round), ("a", "y", round)]).await;
        }
    };
    settle(&host, "counter").await;
    let (swapped, ()) = tokio::join!(deploy(&host, "counter_v2"), load);
    assert_eq!(swapped.unwrap().deployment.version, "2.0.0");
    publish(&host, &[("a", "x", 0)]).await;
    settle(&host, "counter").await;
    let (code, says) = refusal(&host, "counter").await;
    assert_eq!(code, "state_refused");
    assert!(
        says.contains("counter.v2+json`, this version reads `application/vnd.millrace.counter.v1"),
        "{says}"
    );
    let status = settle(&host, "counter").await;
    assert_eq!((status.deployment.version.as_str(), status.state), ("2.0.0", PluginState::Running));
    assert_eq!(status.last_refusal.unwrap().code, "state_refused");
    publish(&host, &[("b", "x", 0)]).await;
    settle(&host, "counter").await;
    assert_eq!(numbers(&host, "counters").await, ints(&[("a", 402), ("b", 201)]));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_without_state_leaves_the_saved_one_for_a_later_version() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let host = start(&config).await;
    deploy(&host, "counter").await.unwrap();
    publish(&host, &[("a", "x", 0), ("a", "x", 0)]).await;
    settle(&host, "counter").await;
    deploy(&host, "counter_stateless").await.unwrap();
    publish(&host, &[("a", "x", 0)]).await;
    let status = settle(&host, "counter").await;
    assert_eq!(status.warnings.len(), 1);
    assert!(
        status.warnings[0].message.contains("the 7 bytes that an earlier one saved stay"),
        "{:?}",
        status.warnings
    );
    host.shutdown().await;
    let host = start(&config).await;
    settle(&host, "counter").await;
    let status = deploy(&host, "counter").await.unwrap();
    assert_eq!((status.deployment.version.as_str(), status.warnings.len()), ("1.0.0", 0));
    publish(&host, &[("a", "x", 0)]).await;
    settle(&host, "counter").await;
    assert_eq!(
        numbers(&host, "counters").await,
        ints(&[("a", 3)]),
        "what the stateless version saw is not in it"
    );
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_with_state_begins_without_one_over_a_version_that_kept_none() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    deploy(&host, "counter_stateless").await.unwrap();
    publish(&host, &[("a", "x", 0)]).await;
    settle(&host, "counter").await;
    // It would refuse what it has given itself, which the shadow finds out.
    deploy_unseen(&host, "counter_refuses").await.expect("there is no state that it could refuse");
    deploy(&host, "counter").await.expect("it has not committed one either");
    publish(&host, &[("a", "x", 0)]).await;
    settle(&host, "counter").await;
    assert_eq!(numbers(&host, "counters").await, ints(&[("a", 1)]));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_warns_from_half_of_its_bound_and_one_beyond_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let bounded = |bytes| PluginSettings { state_bytes_max: Some(bytes), ..PluginSettings::default() };
    config.plugins.insert("counter".into(), bounded(22));
    let host = start(&config).await;
    deploy(&host, "counter").await.unwrap();
    publish(&host, &[("a", "x", 0)]).await;
    assert!(settle(&host, "counter").await.warnings.is_empty());
    // {"a":1,"b":1} has 13 bytes, and with "c" 19.
    publish(&host, &[("b", "x", 0)]).await;
    let status = settle(&host, "counter").await;
    let warning = &status.warnings[0];
    assert_eq!((warning.tenant.as_str(), warning.lane), ("default", 0));
    assert!(warning.message.contains("has 13 bytes, over half of guest_state_bytes_max = 22"), "{warning:?}");
    publish(&host, &[("c", "x", 0), ("d", "x", 0), ("c", "x", 0)]).await;
    let status = settle(&host, "counter").await;
    assert_eq!(status.counters.dead_letters, 1);
    let dead = host.plugins().dead_letters("counter", None, 10).await.unwrap();
    assert_eq!((dead[0].reason.as_str(), dead[0].event.get(0).agg_id), ("limit", "d"));
    assert!(
        dead[0].message.contains("the snapshot has 25 bytes; guest_state_bytes_max is 22"),
        "{}",
        dead[0].message
    );
    assert_eq!(numbers(&host, "counters").await, ints(&[("a", 1), ("b", 1), ("c", 2)]));
    host.plugins().pause("counter").await.unwrap();
    host.shutdown().await;
    // With the bound lowered, no version may load what was saved.
    config.plugins.insert("counter".into(), bounded(10));
    let host = start(&config).await;
    let (code, says) = refusal(&host, "counter_v2").await;
    assert_eq!(code, "guest_state_bytes_max");
    assert!(says.contains("has 19 bytes; guest_state_bytes_max is 10"), "{says}");
    assert_eq!(host.plugins().show("counter").await.unwrap().deployment.version, "1.0.0");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_expire_by_the_time_of_the_events_however_they_arrive() {
    let mut events = vec![("a", "x", 0), ("b", "x", 1), ("a", "x", 9), ("c", "expiring.keep", 9)];
    events.extend([
        ("sum-10", "expiring.sum", 10),
        ("b", "x", 11),
        ("late", "x", 3),
        ("sum-19", "expiring.sum", 19),
    ]);
    // b ended at 11 and began anew; a ended at 19; c stays; the late one ended at 13.
    let large: Vec<String> = (0..12).map(|n| format!("large-{n:02}")).collect();
    events.extend(large.iter().map(|key| (key.as_str(), "expiring.large", 20)));
    events.extend([("sum-29", "expiring.sum", 29), ("sum-30", "expiring.sum", 30)]);
    let mut seen = Vec::new();
    for chunk in [1, 3, 100] {
        let dir = tempfile::tempdir().unwrap();
        let host = start(&config(dir.path())).await;
        deploy(&host, "expiring").await.unwrap();
        for events in events.chunks(chunk) {
            publish(&host, events).await;
            if chunk == 1 {
                settle(&host, "expiring").await;
            }
        }
        let status = settle(&host, "expiring").await;
        assert_eq!(status.counters.dead_letters, 0);
        let mut rows = numbers(&host, "expiring_counts").await;
        rows.retain(|(key, _)| !key.starts_with("large"));
        seen.push(rows);
        host.shutdown().await;
    }
    let expected = [
        ("a", 2),
        ("b", 1),
        ("c", 0),
        ("late", 1),
        ("sum-10", 3),
        ("sum-19", 2),
        ("sum-29", 13),
        ("sum-30", 1),
    ];
    for rows in seen {
        assert_eq!(rows, ints(&expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_takes_keyed_state_over_its_limit_becomes_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.store.keyed_state_entries_max = 3;
    // The guest has one key for all: it would stop at the first letter.
    config.processors.on_failure = FailurePolicy::Skip;
    let host = start(&config).await;
    deploy(&host, "keyed").await.unwrap();
    publish(&host, &["a", "b", "c", "d", "a", "e"].map(|key| (key, "x", 0))).await;
    settle(&host, "keyed").await;
    assert_eq!(numbers(&host, "keyed_counts").await, ints(&[("a", 2), ("b", 1), ("c", 1)]));
    let dead = host.plugins().dead_letters("keyed", None, 10).await.unwrap();
    let why: Vec<_> = dead.iter().map(|dead| (dead.event.get(0).agg_id, dead.reason.as_str())).collect();
    assert_eq!(why, [("e", "refused"), ("d", "refused")]);
    assert!(dead[0].message.contains("keyed_state_entries_max is 3"), "{}", dead[0].message);
    host.shutdown().await;
}
