//! What everything on a server is called: all of it begins with the log's name, and no two things share a key.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace::backends::redis::{
    RedisAck, RedisCache, RedisCluster, RedisControl, RedisGroups, RedisLeases, RedisLink, RedisOptions,
    RedisPresence,
};
use millrace::cache::{Cache as _, Holds, Keyspace, Partition};
use millrace::cluster::placement::partition;
use millrace::cluster::{
    ClusterLimits, ControlBus as _, DeltaBus as _, LeaseStore as _, MemberId, Membership as _,
};
use millrace::control::{Board as _, ControlSink as _, FleetMark};
use millrace::limits::PRESENCE_FEEDS;
use millrace::presence::{Join, MemberName, Presence as _, PresenceLimits, RoomId, RoomName};
use millrace::streams::EventLog;
use millrace::streams::groups::{GroupId, GroupLimits, GroupStart, Groups as _};
use millrace_tests::conformance::change_streams::{asset_scopes, change_of, named};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::batch;
use millrace_tests::conformance::groups::{THREE_TRIES, group, read_of};
use millrace_tests::control_events::signed_deploy;
use millrace_tests::redis_server::{Engine, RedisServer};

use super::{as_seam, open, options};

/// Their names begin alike, and have every character that a tenant's may have.
const TENANTS: [&str; 3] = ["a", "a.b", "a-b_0"];
const ROOM: &str = "r:1/%";

/// Has every part that keeps something on the server keep something; answers what its keys are called.
async fn use_everything(server: &RedisServer, name: &str) -> Vec<String> {
    let log = open(RedisOptions { name: name.into(), ..options(server) }).await;
    let link = || RedisLink::new(server.url().parse().expect("the server has an address"), None, name);
    let mut keys: Vec<String> =
        ["meta", "events", "ids", "scopes", "tenants", "values:asset"].map(str::to_owned).into();
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    for of in TENANTS {
        log.append(change_of(of, "asset", "x:y", 1, "created", r#"{"site_id":"S:%/1"}"#)).await.unwrap();
        log.append_to(&named("orders"), batch(&tenant(of), &[("o", "{}")])).await.unwrap();
        keys.extend([format!("tenant:{of}"), format!("streams:{of}"), format!("stream:{of}:orders")]);
        for stream in ["id:x%3Ay", "tenant", "site:S%3A%25/1"] {
            keys.push(format!("stream:{of}:changes:asset:{stream}"));
        }
    }

    let groups = RedisGroups::new(link(), &log, as_seam(&log), GroupLimits::default());
    for stream in ["events", "orders", "changes:asset:id:x%3Ay"] {
        let id = GroupId { stream: stream.into(), ..group("a.b", "g") };
        groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
        assert_eq!(groups.read(&id, read_of("one", 1)).await.unwrap().entries.len(), 1);
        let parts = ["", "/due", "/entries", "/flying", "/held", "/queue", "/seen", "/unfinished"];
        keys.extend(parts.map(|part| format!("group:a.b:{stream}:g{part}")));
    }
    keys.extend(["groups", "groups:due", "groups:names"].map(str::to_owned));

    let leases = RedisLeases::new(link());
    leases.acquire("tally:x", "here", Duration::from_secs(60)).await.unwrap();
    keys.push("lease:tally:x".to_owned());

    let limits = PresenceLimits::default();
    let join = Join { state: Some(Bytes::from_static(b"1")), ttl: limits.ttl };
    let presence = RedisPresence::open(link(), limits);
    keys.extend(["presence:meta", "presence:due"].map(str::to_owned));
    let mut feeds = BTreeSet::new();
    for of in TENANTS {
        let room = RoomId { tenant: tenant(of), name: RoomName::new(ROOM).unwrap() };
        presence.join(&room, &MemberName::new("ann").unwrap(), join.clone()).await.unwrap();
        let feed = partition(of, ROOM, PRESENCE_FEEDS);
        feeds.insert(format!("presence:feed:{feed}"));
        keys.push(format!("presence:rooms:{of}"));
        keys.extend(["members", "until"].map(|what| format!("presence:{what}:{feed}:{of}:{ROOM}")));
    }
    keys.extend(feeds);

    let cluster = RedisCluster::new(link(), ClusterLimits::default());
    let me = cluster.enter(&MemberId::new("h.1-a").unwrap()).await.unwrap();
    cluster.send(&me, &me, Bytes::from_static(b"c")).await.unwrap();
    cluster.publish(&me, &me, vec![Bytes::from_static(b"d")]).await.unwrap();
    keys.extend(["meta", "until", "epochs"].map(|what| format!("cluster:{what}")));
    keys.extend(["at", "control", "delta"].map(|what| format!("cluster:{what}:h.1-a:{}", me.epoch)));

    let control = RedisControl::new(link(), RedisAck::Auto);
    let version = control.append(&signed_deploy("a", "1.0.0", 1)).await.unwrap();
    control.report("h.1-a", "{}").await.unwrap();
    control.set_mark(&FleetMark { version, state_digest: "x".into(), snapshot: None }).await.unwrap();
    let parts = ["meta", "events", "ids", "order", "reports", "mark"];
    keys.extend(parts.map(|what| format!("control:{what}")));

    let cache = RedisCache::new(link());
    let rows = Keyspace::new("rows", Holds::RowsOf(Arc::from("asset")));
    for (partition, of) in
        [(Partition::Tenant(tenant("a")), "t:a"), (Partition::Scope(tenant("a"), "b/c".into()), "s:a:b%2Fc")]
    {
        cache.get(&rows.entry(&partition, "k/1")).await.unwrap();
        keys.extend([format!("cache:v:rows/v1/{of}/k/1"), format!("cache:m:k/rows/{of}")]);
    }
    keys.push("cache:m:e/asset/a:a".to_owned());
    keys.into_iter().map(|key| format!("{{{name}}}:{key}")).collect()
}

#[tokio::test]
async fn c11_every_key_of_a_server_has_the_name_that_is_expected_and_none_has_two_uses() {
    let server = RedisServer::durable(Engine::Redis);
    let mut expected = Vec::new();
    // Logs whose names begin alike, with characters that stand in keys, too.
    for name in ["millrace", "m", "m:tenant", "m/1%"] {
        expected.extend(use_everything(&server, name).await);
    }
    let differ: BTreeSet<String> = expected.iter().cloned().collect();
    assert_eq!(differ.len(), expected.len(), "two things share a key");
    let found: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*"])).unwrap();
    let found: BTreeSet<String> = found.into_iter().collect();
    assert_eq!(found, differ);
    // What several tenants keep in one key, they keep apart in it.
    let known: Vec<String> = redis::from_redis_value(server.command(&["HKEYS", "{m}:values:asset"])).unwrap();
    let known: BTreeSet<String> = known.into_iter().collect();
    assert_eq!(known, BTreeSet::from(TENANTS.map(|of| format!("{of}\0x:y"))));
    let rooms: Vec<String> =
        redis::from_redis_value(server.command(&["ZRANGE", "{m}:presence:due", "0", "-1"])).unwrap();
    let rooms: BTreeSet<String> = rooms.into_iter().collect();
    let feed = |of: &str| partition(of, ROOM, PRESENCE_FEEDS);
    assert_eq!(rooms, BTreeSet::from(TENANTS.map(|of| format!("{}:{of}:{ROOM}", feed(of)))));
}
