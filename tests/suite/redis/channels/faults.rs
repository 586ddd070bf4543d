//! Channels over lost connections, lost answers, and servers that die.

use millrace_tests::cutter::Cutter;

use super::*;

/// Says it until it is taken, under the same number.
async fn insist(router: &Router, who: &str, sequence: u64) -> Appended {
    let begun = tokio::time::Instant::now();
    loop {
        match say(router, who, sequence, "x").await {
            Ok(appended) => return appended,
            Err(error) => assert!(begun.elapsed() < SOON && error.code().starts_with("backend_"), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_killed_lose_no_entry_and_double_none() {
    const EACH: u64 = 150;
    let server = RedisServer::durable(Engine::Valkey);
    // So that acknowledgements wait for it, on a connection that is killed, too.
    let _replica = server.replica(Keeps::Nothing);
    let hosts = [host(&server), host(&server)];
    begin(&hosts[0]).await;
    let mut follower = follow(&hosts[1], "oscar", 0).await;
    let mut sending = JoinSet::new();
    for (who, place) in [("ann", 0), ("eve", 1)] {
        let hosts = hosts.clone();
        sending.spawn(async move {
            for sequence in 1..=EACH {
                let router = &hosts[(usize::try_from(sequence).unwrap() + place) % 2];
                assert_eq!(insist(router, who, sequence).await.sequence, sequence);
            }
        });
    }
    for _ in 0..25 {
        server.kill_clients();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while let Some(sent) = sending.join_next().await {
        sent.unwrap();
    }
    let all = log(&hosts[0]).await;
    whole(&all, &[("ann", EACH), ("eve", EACH)]);
    // A follower whose host lost its connections as well.
    assert_eq!(heard(&mut follower, all.len()).await, labels(&all));
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_is_done_once_whether_it_has_a_number_or_not() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let router = Router::new(store(&RedisOptions::new(address), limits()));
    begin(&router).await;
    say(&router, "ann", 1, "x").await.unwrap();
    cutter.cut_after("unlucky");
    let done = say(&router, "ann", 2, "unlucky").await.unwrap();
    assert_eq!((done.position.0, done.repeated, cutter.cuts()), (2, false, 1));
    cutter.cut_after("without a number");
    let entry = NewEntry { sequence: None, ..NewEntry::data(1, "without a number") };
    let append = Append { who: party("ann"), epoch: None, entries: vec![entry] };
    let done = router.append_all(&talk(), append).await.unwrap();
    assert_eq!((done[0].position.0, done[0].sequence, cutter.cuts()), (3, 3, 2));
    assert_eq!(labels(&log(&router).await), ["ann1", "ann2", "ann3"]);
    // Of an assignment, too: one epoch more, and not two.
    let before = router.process(&process("job")).await.unwrap().process;
    cutter.cut_after("elisabeth");
    let change = Change::Assign(party("elisabeth"));
    let after = router.change(&process("job"), Actor::Host, change).await.unwrap().process;
    assert_eq!((after.epoch, after.version), (before.epoch + 1, before.version + 1));
    cutter.cut_after("\"submitter\"");
    let (_, made) =
        router.create_process(with_channel("another-job", ChannelOptions::default())).await.unwrap();
    assert!(made);
    // So that the server knows how.
    assert!(!router.cleanup_process(&process("nobody")).await.unwrap());
    cutter.cut_after("another-job");
    assert!(router.cleanup_process(&process("another-job")).await.unwrap());
    assert_eq!((router.stats().await.unwrap().processes, cutter.cuts()), (1, 5));
}

#[tokio::test]
async fn a_killed_server_comes_back_with_all_that_was_acknowledged_and_followers_go_on() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let mut server = RedisServer::durable(engine);
        let (one, other) = (host(&server), host(&server));
        begin(&one).await;
        let mut follower = follow(&other, "oscar", 0).await;
        for sequence in 1..=20 {
            say(&one, "ann", sequence, "x").await.unwrap();
        }
        assert_eq!(heard(&mut follower, 20).await.len(), 20);
        server.kill();
        let mut sending = JoinSet::new();
        let router = one.clone();
        sending.spawn(async move { insist(&router, "ann", 21).await });
        server.start_again();
        let sent = sending.join_next().await.unwrap().unwrap();
        assert_eq!(sent.position, Position(21), "no position is given twice, and none is skipped");
        assert!(insist(&other, "ann", 20).await.repeated);
        assert_eq!(heard(&mut follower, 1).await, ["ann21"]);
        whole(&log(&other).await, &[("ann", 21)]);
    }
}

#[tokio::test]
async fn a_host_that_was_cut_off_tells_its_followers_what_they_missed() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let (far, near) = (Router::new(store(&RedisOptions::new(address), limits())), host(&server));
    begin(&near).await;
    let mut oscar = follow(&far, "oscar", 0).await;
    let mut eve = follow(&far, "eve", 0).await;
    say(&near, "ann", 1, "x").await.unwrap();
    assert_eq!(
        (heard(&mut oscar, 1).await, heard(&mut eve, 1).await),
        (vec!["ann1".into()], vec!["ann1".into()])
    );
    cutter.close();
    say(&near, "ann", 2, "x").await.unwrap();
    near.change(&process("job"), Actor::Host, Change::Assign(party("eli"))).await.unwrap();
    say(&near, "ann", 3, "x").await.unwrap();
    // And nothing of it is in the feed any more.
    server.command(&["XTRIM", "{millrace}:channels:feed", "MAXLEN", "0"]);
    cutter.open();
    assert_eq!(heard(&mut oscar, 2).await, ["ann2", "ann3"]);
    assert_eq!(ends(&mut eve).await, CloseReason::Revoked);
}

#[tokio::test]
async fn nothing_is_acknowledged_or_shown_that_the_replica_does_not_have() {
    let server = RedisServer::durable(Engine::Redis);
    let replica = server.replica(Keeps::Nothing);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    say(&one, "ann", 1, "x").await.unwrap();
    let mut near = follow(&one, "ann", 1).await;
    let mut far = follow(&other, "oscar", 1).await;
    replica.pause();
    let mut sending = JoinSet::new();
    let router = one.clone();
    sending.spawn(async move { say(&router, "ann", 2, "x").await });
    until("the server has it", || server.number(&["XLEN", "{millrace}:channels:log:acme:job_talk"]) == 2)
        .await;
    let reader = other.clone();
    let mut reading = JoinSet::new();
    reading.spawn(async move { reader.read_after(&talk(), &by("oscar"), 1, 0).await });
    let shown = async {
        tokio::select! { at = near.next(1) => at, at = far.next(1) => at }
    };
    let shown = tokio::time::timeout(Duration::from_millis(600), shown).await;
    assert!(shown.is_err(), "{shown:?}");
    assert!(reading.try_join_next().is_none_or(|read| read.unwrap().is_err()), "it may be lost");
    assert!(sending.try_join_next().is_none_or(|sent| sent.unwrap().is_err()), "nothing says that it stays");
    replica.resume();
    // The first time it may have taken too long to be told.
    assert_eq!(insist(&one, "ann", 2).await.position, Position(2));
    assert_eq!(
        (heard(&mut near, 1).await, heard(&mut far, 1).await),
        (vec!["ann2".into()], vec!["ann2".into()])
    );
    assert_eq!(positions(&log(&other).await), [1, 2]);
}

#[tokio::test]
async fn a_server_that_keeps_nothing_is_refused_unless_that_is_wanted() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let refused = host(&server).create_process(with_channel("job", ChannelOptions::default())).await;
    assert_eq!(refused.unwrap_err().code(), "backend_not_durable");
    let weaker = RedisOptions { ack: RedisAck::Memory, ..options(&server) };
    begin(&Router::new(store(&weaker, limits()))).await;
}

#[tokio::test]
async fn a_store_that_is_dropped_ends_whatever_waits_for_the_server() {
    let server = RedisServer::durable(Engine::Redis);
    let store = store(&options(&server), limits());
    begin(&Router::new(Arc::clone(&store))).await;
    server.pause();
    let waits = store.append(&talk(), numbered("ann", 1, &["x"]));
    let answer = tokio::time::timeout(Duration::from_millis(100), waits).await;
    assert!(answer.is_err(), "{answer:?}");
    drop(store);
    server.resume();
    until("its connections are closed", || server.clients() == 0).await;
}
