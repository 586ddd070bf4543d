//! Change streams that keep so many entries each. What is given a log runs on every one, with [`CAP`].

use millrace::config::LogAddress;
use millrace::event::{EventBatch, Position};
use millrace::streams::PageLimit;
use millrace_tests::conformance::change_streams::{asset_scopes, change, cut_to, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;
use millrace_tests::embedded::Embedded;
use millrace_tests::every_log::Log;
use millrace_tests::redis_server::{Engine, RedisServer};

pub(super) const CAP: u64 = 100;

/// The reference keeps from 100 to not quite 400. Here it is a quarter more at most, once it was looked at.
pub(super) async fn c13_change_streams_have_their_newest_entries_and_say_where_they_begin(log: Log) {
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let (acme, cap) = (tenant("acme"), usize::try_from(CAP).unwrap());
    let (busy, rare) = (stream("asset", "id", "busy"), stream("asset", "id", "rare"));
    let mut positions = Vec::new();
    for ten in 0..40_u64 {
        let mut batch = EventBatch::new(acme.clone());
        for version in ten * 10 + 1..=ten * 10 + 10 {
            let agg_id = if version % 40 == 0 { "rare" } else { "busy" };
            batch.extend_from(&change("asset", agg_id, version, "updated", "{}"));
        }
        let appended = log.append(batch).await.unwrap();
        positions.extend(appended.iter().map(|one| one.position.0).filter(|position| position % 40 != 0));
        let held = log.read_stream(&acme, &busy, Position::START, ALL).await.unwrap().events.len();
        assert!(held >= cap.min(positions.len()), "{held} of {}", positions.len());
    }
    let page = cut_to(cap + cap / 4, &log, &busy).await;
    let kept: Vec<u64> = page.events.records().iter().map(|record| record.position).collect();
    assert!(kept.len() >= cap && positions.ends_with(&kept), "the newest: {kept:?}");
    assert!(page.truncated, "who reads from the beginning is told");
    let before = positions[positions.len() - kept.len() - 1];
    assert!((before..kept[0]).contains(&page.oldest.0), "{} from {before}", page.oldest);
    for (after, truncated) in [(page.oldest.0 - 1, true), (page.oldest.0, false)] {
        let read = log.read_stream(&acme, &busy, Position(after), ALL).await.unwrap();
        assert_eq!((read.truncated, read.events.len()), (truncated, kept.len()), "after {after}");
    }
    // A stream that has fewer, and the log itself, have everything.
    let page = log.read_stream(&acme, &rare, Position::START, ALL).await.unwrap();
    assert_eq!((page.events.len(), page.truncated, page.oldest), (10, false, Position::START));
    let limit = PageLimit { events: 4_096, ..ALL };
    assert_eq!(log.read(&acme, Position::START, limit).await.unwrap().events.len(), 400);
}

/// The embedded log keeps everything unless it is told.
pub(super) async fn c13_change_streams_of_a_host_on_a_server_have_their_newest_500(engine: Engine) {
    let server = RedisServer::durable(engine);
    let address = LogAddress(server.url());
    let host = Box::pin(Embedded::start_with(|config| config.serve.log = Some(address))).await.unwrap();
    assert!(host.host().wait_ready().await);
    let log = host.host().log();
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    for hundred in 0..10 {
        let mut batch = EventBatch::new(tenant("acme"));
        for version in hundred * 100 + 1..=hundred * 100 + 100 {
            batch.extend_from(&change("asset", "A1", version, "updated", "{}"));
        }
        log.append(batch).await.unwrap();
    }
    let kept = cut_to(625, &log, &stream("asset", "id", "A1")).await;
    assert!(kept.truncated && kept.events.len() >= 500, "{}", kept.events.len());
    host.stop().await;
}
