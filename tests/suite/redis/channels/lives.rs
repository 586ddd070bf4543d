//! Servers that were emptied, or have gone back: no position means two entries, and everybody is told.

use millrace::limits::REDIS_LIFE_STEP;

use super::super::{as_seam, open};
use super::*;

#[tokio::test]
async fn on_a_server_that_is_emptied_followers_are_told_that_their_channel_is_gone() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let (one, other) = (host(&server), host(&server));
        begin(&one).await;
        say(&one, "ann", 1, "x").await.unwrap();
        let mut near = follow(&one, "ann", 1).await;
        let mut far = follow(&other, "oscar", 1).await;
        server.command(&["FLUSHALL"]);
        // Nobody does anything.
        assert_eq!(
            (ends(&mut near).await, ends(&mut far).await),
            (CloseReason::Removed, CloseReason::Removed)
        );
        assert_eq!(say(&one, "ann", 2, "x").await.unwrap_err().code(), "channel_unknown");
        assert_eq!(other.process(&process("job")).await.unwrap_err().code(), "process_unknown");
        begin(&other).await;
        assert_eq!(say(&one, "ann", 1, "anew").await.unwrap().position, Position(1));
        let mut far = follow(&other, "oscar", 0).await;
        assert_eq!(heard(&mut far, 1).await, ["ann1"]);
    }
}

#[tokio::test]
async fn an_append_that_meets_an_emptied_server_first_is_refused_like_any_later_one() {
    let server = RedisServer::durable(Engine::Redis);
    let router = host(&server);
    begin(&router).await;
    for sequence in 1..=20 {
        say(&router, "ann", sequence, "x").await.unwrap();
    }
    server.command(&["FLUSHALL"]);
    assert_eq!(say(&router, "ann", 21, "x").await.unwrap_err().code(), "channel_unknown");
}

/// A server with a copy of its data of a while ago, and two hosts. `ann` has appended three entries before the copy and
/// two after it.
async fn went_back() -> (RedisServer, [Router; 2]) {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let options = RedisOptions { ack: RedisAck::Memory, ..options(&server) };
    let hosts = [0, 1].map(|_| Router::new(store(&options, limits())));
    begin(&hosts[0]).await;
    for sequence in 1..=3 {
        say(&hosts[0], "ann", sequence, "x").await.unwrap();
    }
    server.command(&["SAVE"]);
    for sequence in 4..=5 {
        say(&hosts[0], "ann", sequence, "x").await.unwrap();
    }
    // The other host knows of it, too.
    assert_eq!(log(&hosts[1]).await.len(), 5);
    server.restart();
    (server, hosts)
}

#[tokio::test]
async fn on_a_server_that_went_back_positions_go_on_far_above_and_readers_are_told() {
    let (_server, hosts) = went_back().await;
    let first = REDIS_LIFE_STEP + 1;
    // What is there is what it was.
    let page = hosts[1].read_after(&talk(), &by("oscar"), 0, 0).await.unwrap();
    assert_eq!((positions(&page.entries), page.newest, page.missed), (vec![1, 2, 3], Position(3), 0));
    let ahead = hosts[1].subscribe(&talk(), &by("oscar"), 5).await.unwrap_err();
    assert_eq!(ahead.code(), "channel_option_invalid", "there is nothing to go on from");
    // What was acknowledged is gone: its sender is told, and nobody takes its place.
    let gap = say(&hosts[0], "ann", 6, "x");
    let refused = tokio::time::timeout(Duration::from_millis(500), gap).await;
    assert!(refused.is_err(), "it waits for the number 4: {refused:?}");
    assert_eq!(say(&hosts[1], "eve", 1, "x").await.unwrap().position, Position(first));
    let page = hosts[0].read_after(&talk(), &by("oscar"), 5, 0).await.unwrap();
    assert_eq!((positions(&page.entries), page.missed), (vec![first], REDIS_LIFE_STEP - 5));
    assert_eq!(say(&hosts[0], "eve", 2, "x").await.unwrap().position, Position(first + 1));
    let mut late = hosts[0].subscribe(&talk(), &by("oscar"), 5).await.unwrap();
    assert!(
        matches!(next(&mut late).await, Notice::Ready { oldest: Position(oldest), .. } if oldest == first)
    );
    let lagged = next(&mut late).await;
    let missed = REDIS_LIFE_STEP - 5;
    assert_eq!(lagged, Notice::Lagged { resume_at: Position(first), missed, behind: 2 });
    assert_eq!(heard(&mut late, 2).await, ["eve1", "eve2"]);
}

#[tokio::test]
async fn followers_on_a_server_that_went_back_hear_what_comes_and_what_they_missed() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let options = RedisOptions { ack: RedisAck::Memory, ..options(&server) };
    let hosts = [0, 1].map(|_| Router::new(store(&options, limits())));
    begin(&hosts[0]).await;
    say(&hosts[0], "ann", 1, "x").await.unwrap();
    server.command(&["SAVE"]);
    let mut near = follow(&hosts[0], "oscar", 1).await;
    let mut far = follow(&hosts[1], "oscar", 1).await;
    // An assignment goes back as well.
    hosts[0].change(&process("job"), Actor::Host, Change::Assign(party("eli"))).await.unwrap();
    say(&hosts[0], "eli", 1, "x").await.unwrap();
    assert_eq!(
        (heard(&mut near, 1).await, heard(&mut far, 1).await),
        (vec!["eli1".into()], vec!["eli1".into()])
    );
    server.restart();
    let first = REDIS_LIFE_STEP + 1;
    let begun = tokio::time::Instant::now();
    let appended = loop {
        match say(&hosts[1], "eve", 1, "x").await {
            Ok(appended) => break appended,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
    };
    assert_eq!(appended.position, Position(first));
    for follower in [&mut near, &mut far] {
        let missed = REDIS_LIFE_STEP - 2;
        let lagged = Notice::Lagged { resume_at: Position(first), missed, behind: 1 };
        assert_eq!(next(follower).await, lagged);
        assert_eq!(heard(follower, 1).await, ["eve1"]);
    }
    assert_eq!(say(&hosts[0], "eli", 2, "x").await.unwrap_err().code(), "channel_forbidden");
}

#[tokio::test]
async fn a_server_that_went_back_and_was_written_to_since_is_noticed_by_who_knows_better() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let options = RedisOptions { ack: RedisAck::Memory, ..options(&server) };
    let knows = Router::new(store(&options, limits()));
    begin(&knows).await;
    server.command(&["SAVE"]);
    let lost = say(&knows, "ann", 1, "lost").await.unwrap();
    assert_eq!(lost.position, Position(1));
    // Nobody watches while somebody who knows of nothing writes as much again.
    server.kill();
    let backup = RedisServer::with_files_of(&server, Engine::Redis, Keeps::Nothing, &[]);
    let fresh = RedisOptions { ack: RedisAck::Memory, ..super::options(&backup) };
    let fresh = Router::new(store(&fresh, limits()));
    for sequence in 1..=3 {
        say(&fresh, "eve", sequence, "x").await.unwrap();
    }
    backup.command(&["SAVE"]);
    server.take_files_of(&backup);
    server.start_again();
    let begun = tokio::time::Instant::now();
    let appended = loop {
        match say(&knows, "ann", 1, "x").await {
            Ok(appended) => break appended,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
    };
    assert_eq!(
        appended.position,
        Position(REDIS_LIFE_STEP + 1),
        "the place of the lost one was not taken for it"
    );
}

#[tokio::test]
async fn channels_go_on_far_above_in_another_life_of_the_log() {
    let server = RedisServer::durable(Engine::Redis);
    let log_there = open(options(&server)).await;
    let router = host(&server);
    begin(&router).await;
    assert_eq!(say(&router, "ann", 1, "x").await.unwrap().position, Position(1));
    let epoch = as_seam(&log_there).epoch();
    server.command(&["DEL", "{millrace}:meta"]);
    until("it is noticed", || as_seam(&log_there).epoch() != epoch).await;
    assert_eq!(positions(&log(&router).await), [1], "nothing of it is lost");
    let after = say(&router, "ann", 2, "x").await.unwrap();
    assert_eq!(after.position, Position(REDIS_LIFE_STEP + 1));
    let again = say(&router, "ann", 3, "x").await.unwrap();
    assert_eq!(again.position, Position(REDIS_LIFE_STEP + 2), "it is one life and no series of them");
}

#[tokio::test]
async fn entries_that_somebody_removes_from_the_server_count_as_dropped() {
    for part in ["log", "marks"] {
        let server = RedisServer::durable(Engine::Redis);
        let (one, other) = (host(&server), host(&server));
        begin(&one).await;
        one.append_all(&talk(), numbered("ann", 1, &["a", "b", "c"])).await.unwrap();
        let key = format!("{{millrace}}:channels:{part}:acme:job_talk");
        assert_eq!(server.number(&["DEL", &key]), 1);
        let page = other.read_after(&talk(), &by("oscar"), 0, 0).await.unwrap();
        assert_eq!((page.entries.len(), page.missed, page.newest), (0, 3, Position(3)), "{part}");
        assert_eq!(say(&one, "ann", 4, "d").await.unwrap().position, Position(4));
        assert_eq!(server.number(&["DEL", &key]), 1);
        // Found by an append first.
        assert_eq!(say(&one, "ann", 5, "e").await.unwrap().position, Position(5));
        let forgotten = say(&one, "ann", 4, "d").await.unwrap_err();
        assert_eq!(forgotten.code(), "channel_sequence_forgotten");
        assert_eq!(positions(&log(&other).await), [5]);
        assert_eq!(other.process(&process("job")).await.unwrap().bytes(), 1);
    }
}
