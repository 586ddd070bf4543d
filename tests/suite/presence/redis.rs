//! Rooms when their server breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::backends::redis::{RedisLink, RedisPresence};
use millrace::presence::{GapCause, Join, Notice, Presence, PresenceLimits};
use millrace_tests::conformance::presence::{
    follow, join, members, name, next, next_change, next_roster, room, say, small_limits, told,
};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

pub(super) fn open(server: &RedisServer, limits: PresenceLimits) -> RedisPresence {
    let link = RedisLink::new(server.url().parse().unwrap(), None, "millrace");
    RedisPresence::open(link, limits)
}

fn host(server: &RedisServer) -> Arc<dyn Presence> {
    Arc::new(open(server, small_limits()))
}

/// Repeats a join until the server is there.
async fn join_again(host: &Arc<dyn Presence>, member: &str) {
    let join = || Join { state: None, ttl: Duration::from_secs(60) };
    let begin = Instant::now();
    while let Err(error) = host.join(&room("lobby"), &name(member), join()).await {
        assert!(begin.elapsed() < Duration::from_secs(60), "{error}");
    }
}

pub(super) async fn sn5_after_lost_connections_followers_get_the_roster_with_what_they_missed(
    engine: Engine,
) {
    let server = RedisServer::durable(engine);
    let (one, other) = (host(&server), host(&server));
    let (mut follower, _) = follow(&one, &room("lobby")).await;
    join(&one, &room("lobby"), "ann", "1").await;
    assert_eq!(told(&*next_change(&mut follower).await), "join ann=1");
    server.kill_clients();
    join_again(&other, "bob").await;
    // Whether the change came through before the connection was missed, or not, the roster comes and has it.
    let mut notices = Vec::new();
    loop {
        match next(&mut follower).await {
            Notice::Gap(cause) => assert_eq!(cause, GapCause::Reconnected),
            Notice::Roster(roster) => break assert_eq!(members(&roster), ["ann=1", "bob="]),
            other => notices.push(other),
        }
    }
    assert!(notices.len() < 2, "{notices:?}");
    say(&other, &room("lobby"), "hello").await;
    assert_eq!(told(&*next_change(&mut follower).await), ": hello");
}

pub(super) async fn sn5_a_server_that_comes_back_empty_leaves_nobody_in_the_rooms(engine: Engine) {
    let mut server = RedisServer::start(engine, Keeps::Nothing, &[]);
    let one = host(&server);
    join(&one, &room("lobby"), "ann", "1").await;
    let (mut follower, first) = follow(&one, &room("lobby")).await;
    assert_eq!(first, ["ann=1"]);
    server.kill();
    assert!(one.roster(&room("lobby")).await.is_err(), "a room that cannot be seen is not an empty one");
    server.start_again();
    assert_eq!(next(&mut follower).await, Notice::Gap(GapCause::Reconnected));
    assert_eq!(members(&*next_roster(&mut follower).await), [""; 0]);
    join_again(&one, "bob").await;
    assert_eq!(told(&*next_change(&mut follower).await), "join bob=");
}

pub(super) async fn sn5_a_server_that_is_emptied_is_noticed_without_anybody_saying_anything(engine: Engine) {
    let server = RedisServer::durable(engine);
    let one = host(&server);
    join(&one, &room("lobby"), "ann", "1").await;
    let (mut follower, _) = follow(&one, &room("lobby")).await;
    say(&one, &room("lobby"), "hello").await;
    assert_eq!(told(&*next_change(&mut follower).await), ": hello");
    server.command(&["FLUSHALL"]);
    assert_eq!(next(&mut follower).await, Notice::Gap(GapCause::FeedLost));
    assert_eq!(members(&*next_roster(&mut follower).await), [""; 0]);
    say(&one, &room("lobby"), "again").await;
    assert_eq!(told(&*next_change(&mut follower).await), ": again", "one gap, and no more");
}

#[tokio::test]
async fn what_a_feed_has_lost_is_a_gap_and_never_silence() {
    let server = RedisServer::durable(Engine::Redis);
    let one = host(&server);
    let (mut follower, _) = follow(&one, &room("lobby")).await;
    say(&one, &room("lobby"), "hello").await;
    assert_eq!(told(&*next_change(&mut follower).await), ": hello");
    // What eviction or a reader that is too slow comes to: entries are gone before they were read.
    let feeds: Vec<String> =
        ::redis::from_redis_value(server.command(&["KEYS", "{millrace}:presence:feed:*"])).unwrap();
    assert_eq!(feeds.len(), 1, "{feeds:?}");
    let number = feeds[0].rsplit(':').next().unwrap();
    server.command(&["HINCRBY", "{millrace}:presence:meta", number, "3"]);
    assert_eq!(next(&mut follower).await, Notice::Gap(GapCause::FeedLost));
    next_roster(&mut follower).await;
    say(&one, &room("lobby"), "again").await;
    assert_eq!(told(&*next_change(&mut follower).await), ": again");
}

#[tokio::test]
async fn members_of_a_host_that_died_leave_once_and_are_told_of_by_the_others() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other, third) = (host(&server), host(&server), host(&server));
    let (mut near, _) = follow(&other, &room("lobby")).await;
    let (mut far, _) = follow(&third, &room("lobby")).await;
    let brief = Join { state: None, ttl: Duration::from_millis(100) };
    one.join(&room("lobby"), &name("ann"), brief).await.unwrap();
    drop(one);
    join(&other, &room("lobby"), "bob", "").await;
    for follower in [&mut near, &mut far] {
        let mut seen = [0; 3].map(|_| String::new());
        for place in &mut seen {
            *place = told(&*next_change(follower).await);
        }
        seen.sort();
        assert_eq!(seen, ["join ann=", "join bob=", "leave ann expired"]);
    }
    say(&other, &room("lobby"), "end").await;
    for follower in [&mut near, &mut far] {
        assert_eq!(told(&*next_change(follower).await), ": end", "it left once");
    }
}

#[tokio::test]
async fn thousands_of_rooms_share_two_connections() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let one = host(&server);
    let mut followers = Vec::new();
    for n in 0..2_000 {
        followers.push(one.follow(&room(&format!("room-{n}"))).await.unwrap());
    }
    for n in [0, 777, 1_999] {
        next_roster(&mut followers[n]).await;
        say(&one, &room(&format!("room-{n}")), "hello").await;
        assert_eq!(told(&*next_change(&mut followers[n]).await), ": hello");
    }
    assert_eq!(server.clients(), 2);
    drop(followers);
    drop(one);
    until("the connections are closed", || server.clients() == 0).await;
}

#[tokio::test]
async fn rooms_leave_nothing_behind_on_the_server_but_their_place_in_the_feeds() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let one = host(&server);
    join(&one, &room("lobby"), "ann", "1").await;
    let brief = Join { state: None, ttl: Duration::from_millis(50) };
    one.join(&room("hall"), &name("bob"), brief).await.unwrap();
    one.leave(&room("lobby"), &name("ann")).await.unwrap();
    let keys = || -> Vec<String> {
        let mut keys: Vec<String> = ::redis::from_redis_value(server.command(&["KEYS", "*"])).unwrap();
        keys.retain(|key| !key.contains(":feed:"));
        keys
    };
    until("only the places are left", || keys() == ["{millrace}:presence:meta"]).await;
    let feeds: Vec<String> = ::redis::from_redis_value(server.command(&["KEYS", "*:feed:*"])).unwrap();
    for feed in &feeds {
        assert!(server.number(&["PTTL", feed]) <= 60_000, "{feed} goes by itself");
    }
}
