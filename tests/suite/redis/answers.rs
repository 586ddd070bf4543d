//! What a server may answer instead: errors, nothing, something else, or nothing in time. Each has its code, and says
//! which technology failed at what.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use millrace::backends::redis::{
    RedisCache, RedisCluster, RedisGroups, RedisLeases, RedisLink, RedisLog, RedisOptions, RedisPresence,
};
use millrace::cache::{Cache as _, Holds, Keyspace, Partition};
use millrace::cluster::{ClusterError, ClusterLimits, LeaseStore as _, MemberId, Membership as _};
use millrace::error::{BackendError, Classify as _, RemoteFault, Retry};
use millrace::event::Position;
use millrace::presence::{Presence as _, PresenceError, PresenceLimits, RoomId, RoomName};
use millrace::streams::groups::{GroupError, GroupLimits, GroupStart, Groups as _};
use millrace::streams::{EventLog, Retention, StreamError};
use millrace_tests::conformance::change_streams::{asset_scopes, change, named};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, append_one, batch};
use millrace_tests::conformance::groups::{THREE_TRIES, group};
use millrace_tests::impostor::Impostor;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::faults::{problem, shown};
use super::{SOON, as_seam, open, options};

/// The one command with this in it reads a tenant's events.
const READING: &str = "{millrace}:tenant:acme";
/// The call that asks what the server is. `SETINFO` has it, too.
const INFO: &str = "\r\nINFO\r\n";

fn through(impostor: &Impostor) -> RedisOptions {
    RedisOptions::new(impostor.url().parse().expect("the impostor has an address"))
}

fn link(url: &str) -> RedisLink {
    RedisLink::new(url.parse().expect("the server has an address"), None, "millrace")
}

/// A server with one event of acme's.
async fn server_with_an_event() -> RedisServer {
    let server = RedisServer::durable(Engine::Redis);
    append_one(&as_seam(&open(options(&server)).await), &tenant("acme"), "a").await;
    server
}

fn of_backend(error: StreamError) -> BackendError {
    match error {
        StreamError::Backend(error) => error,
        other => panic!("{other:?}"),
    }
}

async fn read_all(log: &RedisLog) -> Result<usize, BackendError> {
    let page = log.read(&tenant("acme"), Position::START, ALL).await;
    page.map(|page| page.events.len()).map_err(of_backend)
}

#[tokio::test]
async fn c20_every_answer_of_a_server_has_its_code_and_says_what_was_being_done() {
    let server = server_with_an_event().await;
    let impostor = Impostor::before(server.port()).await;
    for (answer, code, again, said) in [
        // What has no name of its own.
        ("-WHATEVER some words\r\n", "storage_failed", true, "WHATEVER"),
        ("-ERR some words\r\n", "storage_failed", true, "some words"),
        // Nothing, and something else than what is asked for.
        ("$-1\r\n", "backend_unsupported", false, "the answer is no list"),
        ("*-1\r\n", "backend_unsupported", false, "the answer is no list"),
        (":7\r\n", "backend_unsupported", false, "the answer is no list"),
        ("$2\r\nOK\r\n", "backend_unsupported", false, "the answer is no list"),
        ("*0\r\n", "backend_unsupported", false, "another shape"),
        ("*2\r\n:0\r\n$-1\r\n", "backend_unsupported", false, "another shape"),
        ("*4\r\n:0\r\n$1\r\n0\r\n:0\r\n$-1\r\n", "backend_unsupported", false, "another shape"),
        // Credentials.
        ("-NOAUTH Authentication required.\r\n", "backend_denied", false, "NOAUTH"),
        ("-WRONGPASS invalid username-password pair\r\n", "backend_denied", false, "WRONGPASS"),
        ("-NOPERM this user has no permissions\r\n", "backend_denied", false, "no permissions"),
        // What a server says of itself.
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            "backend_loading",
            true,
            "loading the dataset",
        ),
        ("-MASTERDOWN Link with MASTER is down\r\n", "backend_loading", true, "is down"),
        ("-READONLY You can't write against a read only replica.\r\n", "backend_read_only", true, "replica"),
        ("-OOM command not allowed\r\n", "backend_full", true, "OOM"),
        ("-WRONGTYPE Operation against a key\r\n", "backend_wrong_type", false, "WRONGTYPE"),
        ("-MISCONF Errors writing to the AOF file\r\n", "backend_not_durable", false, "MISCONF"),
        ("-NOREPLICAS Not enough good replicas to write.\r\n", "backend_not_replicated", true, "NOREPLICAS"),
        ("-UNBLOCKED force unblock from blocking operation\r\n", "backend_unreachable", true, "UNBLOCKED"),
        ("-MOVED 3999 127.0.0.1:6381\r\n", "backend_unsupported", false, "6381"),
        ("-CLUSTERDOWN The cluster is down\r\n", "backend_unsupported", false, "cluster is down"),
    ] {
        let log = open(through(&impostor)).await;
        impostor.answer(READING, answer);
        let error = read_all(&log).await.expect_err(answer);
        impostor.be_honest();
        shown(&error, code);
        assert_eq!(error.retry() != Retry::Never, again, "{answer}");
        let text = error.to_string();
        assert!(text.contains("redis, reading: ") && text.contains(said), "`{said}` in `{text}`");
        // The log outlives it.
        log.ready(SOON).await.unwrap();
    }
    assert_eq!(read_all(&open(through(&impostor)).await).await.unwrap(), 1);
}

#[tokio::test]
async fn c20_every_fault_has_a_problem_of_its_own() {
    use RemoteFault::{
        Denied, Full, Loading, NotDurable, NotReplicated, OtherLog, ReadOnly, Timeout, Unreachable,
        Unsupported, WrongType,
    };
    let faults = [
        (Unreachable, "backend_unreachable"),
        (Timeout, "backend_timeout"),
        (Denied, "backend_denied"),
        (ReadOnly, "backend_read_only"),
        (Loading, "backend_loading"),
        (Full, "backend_full"),
        (WrongType, "backend_wrong_type"),
        (Unsupported, "backend_unsupported"),
        (NotDurable, "backend_not_durable"),
        (OtherLog, "backend_other_log"),
        (NotReplicated, "backend_not_replicated"),
    ];
    for (fault, code) in faults {
        shown(&BackendError::Remote { fault, detail: "redis, reading: secret".into() }, code);
    }
    shown(&BackendError::Failed { detail: "redis, reading: secret".into() }, "storage_failed");
}

/// An error without a name, whatever the host was about to do.
#[tokio::test]
async fn c20_an_unknown_error_names_the_operation_of_every_part() {
    const ODD: &str = "-WHATEVER some words\r\n";
    #[track_caller]
    fn names(error: &BackendError, doing: &str) {
        shown(error, "storage_failed");
        let text = error.to_string();
        assert!(text.contains(&format!("redis, {doing}: ")) && text.contains("WHATEVER"), "{text}");
    }
    let server = server_with_an_event().await;
    let impostor = Impostor::before(server.port()).await;
    let log = open(through(&impostor)).await;
    let acme = tenant("acme");

    impostor.answer("needle", ODD);
    names(&of_backend(log.append(batch(&acme, &[("needle", "{}")])).await.unwrap_err()), "appending");
    impostor.answer("{millrace}:stream:acme:orders", ODD);
    let read = log.read_stream(&acme, &named("orders"), Position::START, ALL).await;
    names(&of_backend(read.unwrap_err()), "reading a stream");
    impostor.answer("{millrace}:group:", ODD);
    let trimmed = log.trim(Retention { events: Some(0), age: None }).await;
    names(&of_backend(trimmed.unwrap_err()), "trimming");
    impostor.answer("site_id", ODD);
    let declared = log.declare_scopes("assets", &asset_scopes()).await;
    names(&of_backend(declared.unwrap_err()), "declaring change scopes");
    impostor.be_honest();
    assert_eq!(read_all(&log).await.unwrap(), 1, "nothing came of it");

    // What lies beside the log, over connections of its own.
    let log = open(options(&server)).await;
    let link = || link(&impostor.url());
    impostor.answer("EVALSHA", ODD);
    let leases = RedisLeases::new(link());
    let refused = leases.acquire("tally", "here", SOON).await.unwrap_err();
    names(&refused, "asking for the lease `tally`");
    let entry = Keyspace::new("rows", Holds::Values).entry(&Partition::Tenant(acme.clone()), "k");
    let cache = RedisCache::new(link());
    names(&cache.get(&entry).await.unwrap_err(), "reading the cache");
    let put = cache.put(&entry, &millrace::cache::Stamp::default(), Bytes::from_static(b"v"), SOON).await;
    names(&put.unwrap_err(), "storing in the cache");
    let groups = RedisGroups::new(link(), &log, as_seam(&log), GroupLimits::default());
    match groups.status(&group("acme", "billing")).await.unwrap_err() {
        GroupError::Backend(error) => names(&error, "about a group"),
        other => panic!("{other:?}"),
    }
    let presence = RedisPresence::open(link(), PresenceLimits::default());
    let room = RoomId { tenant: acme.clone(), name: RoomName::new("lobby").unwrap() };
    match presence.roster(&room).await.unwrap_err() {
        PresenceError::Backend(error) => names(&error, "presence, roster"),
        other => panic!("{other:?}"),
    }
    let cluster = RedisCluster::new(link(), ClusterLimits::default());
    match cluster.enter(&MemberId::new("one").unwrap()).await.unwrap_err() {
        ClusterError::Backend(error) => names(&error, "the fleet, enter"),
        other => panic!("{other:?}"),
    }
    impostor.answer("UNLINK", ODD);
    names(&cache.remove(&[entry.name]).await.unwrap_err(), "removing from the cache");
    impostor.answer("ZRANGE", ODD);
    match groups.lags(1).await.unwrap_err() {
        GroupError::Backend(error) => names(&error, "looking for groups"),
        other => panic!("{other:?}"),
    }
}

/// None of these is a script: their answers are read by what they are converted to.
#[tokio::test]
async fn c20_a_server_that_says_nothing_of_itself_cannot_be_used_until_it_does() {
    let server = server_with_an_event().await;
    let impostor = Impostor::before(server.port()).await;
    for (answer, code, said) in [
        ("$-1\r\n", "backend_unsupported", "asking what the server is"),
        ("*1\r\n:7\r\n", "backend_unsupported", "asking what the server is"),
        ("$2\r\nOK\r\n", "backend_unsupported", "Redis 7 or Valkey 8 is needed"),
        ("-WHATEVER some words\r\n", "storage_failed", "asking what the server is"),
        ("-NOAUTH Authentication required.\r\n", "backend_denied", "asking what the server is"),
    ] {
        impostor.answer(INFO, answer);
        let log = RedisLog::open(through(&impostor));
        let text = problem(&log, code).await.to_string();
        assert!(text.contains("redis, ") && text.contains(said), "`{said}` in `{text}`");
        let refused =
            RedisLeases::new(link(&impostor.url())).acquire("tally", "here", SOON).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        impostor.be_honest();
        log.ready(SOON).await.unwrap();
        assert_eq!(read_all(&log).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn c20_an_error_of_one_of_several_commands_keeps_its_code() {
    // The last known values of fields are read with one command for each aggregate.
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    server.command(&["SET", "{millrace}:values:asset", "mine"]);
    let sent = || change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#);
    let error = of_backend(log.append(sent()).await.unwrap_err());
    shown(&error, "backend_wrong_type");
    assert_eq!(error.retry(), Retry::Never);
    assert!(error.to_string().contains("redis, reading last known values: "), "{error}");
    assert_eq!(server.number(&["EXISTS", "{millrace}:events"]), 0, "nothing of it was written");
    server.command(&["DEL", "{millrace}:values:asset"]);
    assert_eq!(log.append(sent()).await.unwrap()[0].position, Position(1));

    // A mark is written and waited for together.
    let server = RedisServer::start(Engine::Valkey, Keeps::EverySecond, &[]);
    let log = open(options(&server)).await;
    let impostor = Impostor::before(server.port()).await;
    let groups = RedisGroups::new(link(&impostor.url()), &log, as_seam(&log), GroupLimits::default());
    let id = group("acme", "billing");
    impostor.answer("groups:barrier", "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    match groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap_err() {
        GroupError::Backend(error) => {
            shown(&error, "backend_full");
            let doing = "redis, waiting until a group's change is durable: ";
            assert!(error.to_string().contains(doing), "{error}");
        }
        other => panic!("{other:?}"),
    }
    impostor.be_honest();
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
}

/// A limit of the test's own, far beyond those of the host.
async fn answered<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, call).await.expect("the host gives up by itself")
}

#[tokio::test]
async fn c20_what_takes_too_long_is_a_timeout_and_says_of_what() {
    #[track_caller]
    fn late(error: &BackendError, doing: &str) {
        shown(error, "backend_timeout");
        assert_ne!(error.retry(), Retry::Never, "{error}");
        assert!(error.to_string().contains(&format!("redis, {doing}")), "{doing}: {error}");
    }
    // Somebody accepts connections and says nothing at all.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", mute.local_addr().unwrap());
    let log = RedisLog::open(RedisOptions::new(url.parse().unwrap()));
    late(&problem(&log, "backend_timeout").await, "connecting to 127.0.0.1:");
    let refused = answered(RedisLeases::new(link(&url)).acquire("tally", "here", SOON)).await.unwrap_err();
    late(&refused, "connecting to 127.0.0.1:");

    drop(mute);

    // A server that answers everything but one command. Two calls are under way at a time, and one append waits.
    let server = server_with_an_event().await;
    let impostor = Impostor::before(server.port()).await;
    // Two calls begin in it, and no answer is given up before it.
    let wait = Duration::from_millis(1_500);
    let log = open(RedisOptions { append_wait_max: wait, ..through(&impostor) }).await;
    impostor.keep_silent("needle");
    let mut appending = JoinSet::new();
    for n in 0..3 {
        let log = log.clone();
        let sent = batch(&tenant("acme"), &[(&format!("needle-{n}"), "{}")]);
        appending.spawn(async move { log.append(sent).await });
        if n < 2 {
            until("it is under way", || impostor.silenced() == n + 1).await;
        }
    }
    while let Some(refused) = answered(appending.join_next()).await {
        late(&of_backend(refused.unwrap().unwrap_err()), "appending: ");
    }
    let log = open(through(&impostor)).await;
    impostor.keep_silent(READING);
    late(&answered(read_all(&log)).await.unwrap_err(), "reading: ");
    impostor.keep_silent("lease:tally");
    let leases = RedisLeases::new(link(&impostor.url()));
    let refused = answered(leases.acquire("tally", "here", SOON)).await.unwrap_err();
    late(&refused, "asking for the lease `tally`: ");

    // What was silent speaks again. The fate of the appends was unknown; a repeat is safe, and they are there once.
    impostor.be_honest();
    leases.acquire("tally", "here", SOON).await.unwrap();
    let log = open(through(&impostor)).await;
    for _ in 0..2 {
        append_one(&as_seam(&log), &tenant("acme"), "needle-0").await;
    }
    assert_eq!(read_all(&log).await.unwrap(), 2);
}
