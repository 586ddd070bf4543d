//! What a cap drops from a change stream, and what that takes from groups on it, wherever both are kept.

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::backends::redis::{RedisGroups, RedisLink, RedisLog, RedisOptions};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::error::Classify;
use millrace::streams::groups::{
    GroupId, GroupLimits, GroupOwner, GroupStart, GroupStore, Groups, Refusal, Settle, Settled,
};
use millrace::streams::{AggregateScopes, EventLog, Scope};
use millrace_tests::conformance::change_streams::{cut_to, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{THREE_TRIES, append, group, read_of};
use millrace_tests::every_log::Log;
use millrace_tests::redis_server::{Engine, RedisServer};
use tempfile::TempDir;

const CAP: u64 = 4;

type Backend<K> = (Log, Arc<dyn Groups>, K);

fn beside<S: EventLog + GroupStore + 'static>(store: Arc<S>) -> (Log, Arc<dyn Groups>) {
    let (log, groups) = (Arc::clone(&store) as Log, store as Arc<dyn GroupStore>);
    let owner = GroupOwner::new(Arc::clone(&log), groups, super::manual_clock(), GroupLimits::default());
    (log, Arc::new(owner))
}

async fn in_memory() -> Backend<()> {
    let (log, groups) = beside(Arc::new(MemoryLog::new().with_change_streams_of(Some(CAP))));
    (log, groups, ())
}

async fn embedded() -> Backend<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        disk_free_bytes_min: 0,
        change_stream_events_max: Some(CAP),
        ..SqliteOptions::new(dir.path())
    };
    let (log, groups) = beside(Arc::new(SqliteStore::open(options).unwrap()));
    (log, groups, dir)
}

async fn on_redis() -> Backend<RedisServer> {
    on_server(Engine::Redis).await
}

async fn on_valkey() -> Backend<RedisServer> {
    on_server(Engine::Valkey).await
}

async fn on_server(engine: Engine) -> Backend<RedisServer> {
    let server = RedisServer::durable(engine);
    let options = RedisOptions::new(server.url().parse().unwrap());
    let log = RedisLog::open(RedisOptions { change_stream_events_max: Some(CAP), ..options });
    log.ready(std::time::Duration::from_secs(20)).await.unwrap();
    let link = RedisLink::new(server.url().parse().unwrap(), None, "millrace");
    let seam: Log = Arc::new(log.clone());
    let (limits, clock) = (GroupLimits::default(), super::manual_clock());
    let groups = RedisGroups::with_clock(link, &log, Arc::clone(&seam), limits, clock);
    (seam, Arc::new(groups), server)
}

async fn sn4_what_a_cap_drops_from_a_change_stream_is_counted_and_its_group_stops(
    log: Log,
    groups: Arc<dyn Groups>,
) {
    let scopes = AggregateScopes { aggregate: "thing".to_owned(), scopes: vec![Scope::Tenant] };
    log.declare_scopes("things", &[scopes]).await.unwrap();
    let id = GroupId { stream: "changes:thing:tenant".into(), ..group("acme", "billing") };
    let all = group("acme", "all");
    for id in [&id, &all] {
        groups.ensure(id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    }
    append(&log, &tenant("acme"), &["a1", "b1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap();
    append(&log, &tenant("acme"), &["c1", "d1", "e1", "f1", "g1", "h1", "i1", "j1"]).await;
    assert!(cut_to(5, &log, &stream("thing", "tenant", "")).await.truncated);
    let status = groups.status(&id).await.unwrap();
    assert!(status.stopped && status.lost_events >= 4, "{status:?}");
    assert_eq!(status.lost_events + status.lag_events, 9, "all but what was acknowledged");
    let settled = groups.settle(&id, vec![Settle::Ack(taken[1].receipt)]).await.unwrap();
    assert_eq!(settled, [Settled::Refused(Refusal::Lost)]);
    let error = groups.read(&id, read_of("one", 10)).await.unwrap_err();
    assert_eq!(error.code(), "group_position_lost");
    let status = groups.seek(&id, GroupStart::Oldest).await.unwrap();
    let read = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(read.len() as u64, status.lag_events);
    // The events themselves are still there.
    let status = groups.status(&all).await.unwrap();
    assert_eq!((status.lost_events, status.lag_events), (0, 10));
}

macro_rules! on_backend {
    ($backend:ident, $setup:ident) => {
        mod $backend {
            #[tokio::test]
            async fn sn4_what_a_cap_drops_from_a_change_stream_is_counted_and_its_group_stops() {
                let (log, groups, _keep) = super::$setup().await;
                super::sn4_what_a_cap_drops_from_a_change_stream_is_counted_and_its_group_stops(log, groups)
                    .await;
            }
        }
    };
}

on_backend!(memory, in_memory);
on_backend!(sqlite, embedded);
on_backend!(redis, on_redis);
on_backend!(valkey, on_valkey);
