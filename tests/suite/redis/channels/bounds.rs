//! Bounds that hold over all hosts, what is repeated after a long time, and a server that is full.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_two_hosts_fill_is_full_at_its_bound_and_not_beyond() {
    let server = RedisServer::durable(Engine::Redis);
    let hosts = [host(&server), host(&server)];
    let options = ChannelOptions { gaps: Gaps::Arrival, entries_max: 25, ..limits().default_options() };
    hosts[0].create_process(with_channel("job", options)).await.unwrap();
    let mut sending = JoinSet::new();
    for sequence in 1..=30 {
        for (who, place) in [("ann", 0), ("eve", 1)] {
            let router = hosts[(usize::try_from(sequence).unwrap() + place) % 2].clone();
            sending.spawn(async move { say(&router, who, sequence, "x").await });
        }
    }
    let (mut taken, mut full) = (0, 0);
    while let Some(sent) = sending.join_next().await {
        match sent.unwrap() {
            Ok(_) => taken += 1,
            Err(ChannelError::Full { .. }) => full += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((taken, full), (25, 35));
    assert_eq!(positions(&log(&hosts[1]).await), (1..=25).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_holds_is_bound_over_its_channels_and_hosts() {
    let server = RedisServer::durable(Engine::Redis);
    let limits = ChannelLimits { process_bytes_max: 1_000, ..limits() };
    let hosts = [0, 1].map(|_| Router::new(store(&options(&server), limits.clone())));
    begin(&hosts[0]).await;
    let names = ["c0", "c1", "c2", "c3"];
    for name in names {
        hosts[0].create(&channel(name), ChannelOptions::default()).await.unwrap();
    }
    let mut sending = JoinSet::new();
    for (n, name) in names.into_iter().enumerate() {
        let router = hosts[n % 2].clone();
        sending.spawn(async move {
            let mut taken = 0;
            for sequence in 1..=40 {
                match router.append(&channel(name), &party("ann"), sequence, None, "x".repeat(30)).await {
                    Ok(_) => taken += 30,
                    Err(ChannelError::Limit { limit: "process_bytes_max", max: 1_000, .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            taken
        });
    }
    let mut taken = 0;
    while let Some(sent) = sending.join_next().await {
        taken += sent.unwrap();
    }
    assert_eq!(taken, 990, "33 entries fit");
    assert_eq!(hosts[1].process(&process("job")).await.unwrap().bytes(), 990);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_processes_whichever_host_makes_them() {
    let server = RedisServer::durable(Engine::Valkey);
    let limits = ChannelLimits { processes_max: 5, ..limits() };
    let hosts = [0, 1].map(|_| Router::new(store(&options(&server), limits.clone())));
    let mut making = JoinSet::new();
    for n in 0..12 {
        let router = hosts[n % 2].clone();
        making.spawn(async move {
            let new = with_channel(&format!("job-{n:02}"), ChannelOptions::default());
            match router.create_process(new).await {
                Ok(_) => 1,
                Err(ChannelError::Limit { limit: "processes_max", asked: 6, max: 5, .. }) => 0,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let mut made = 0;
    while let Some(one) = making.join_next().await {
        made += one.unwrap();
    }
    let listed = hosts[0].processes(&tenant("acme"), None, 100).await.unwrap();
    assert_eq!((made, listed.len()), (5, 5));
    assert!(listed.is_sorted_by_key(|process| process.name.clone()));
    let rest = hosts[1].processes(&tenant("acme"), Some(&listed[1].name), 2).await.unwrap();
    assert_eq!(rest, listed[2..4]);
}

#[tokio::test]
async fn a_repeat_of_long_ago_is_found_and_one_that_says_something_else_is_not_taken_for_it() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    for first in (1..=3_000).step_by(1_000) {
        let texts: Vec<String> = (first..first + 1_000).map(|n| n.to_string()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        one.append_all(&talk(), numbered("ann", first, &texts)).await.unwrap();
    }
    let again = other.append_all(&talk(), numbered("ann", 7, &["7", "8"])).await.unwrap();
    let again: Vec<_> = again.iter().map(|one| (one.position.0, one.repeated)).collect();
    assert_eq!(again, [(7, true), (8, true)]);
    // Of the same length, and of another.
    for text in ["x", "longer"] {
        let refused = other.append_all(&talk(), numbered("ann", 7, &[text])).await.unwrap_err();
        assert!(matches!(refused, ChannelError::SequenceTaken { position: Position(7), .. }), "{refused}");
    }
    // What is repeated may be in one append with what is new; all or nothing.
    let refused = other.append_all(&talk(), numbered("ann", 3_000, &["x", "3001"])).await.unwrap_err();
    assert_eq!(refused.code(), "channel_sequence_taken");
    let both = other.append_all(&talk(), numbered("ann", 3_000, &["3000", "3001"])).await.unwrap();
    assert_eq!((both[0].repeated, both[1].position.0), (true, 3_001));
}

#[tokio::test]
async fn a_long_page_is_read_in_parts_and_is_whole() {
    let server = RedisServer::durable(Engine::Redis);
    let router = host(&server);
    begin(&router).await;
    for first in (1..=5_000).step_by(1_000) {
        router.append_all(&talk(), numbered("ann", first, &["x"; 1_000])).await.unwrap();
    }
    let page = router.read_after(&talk(), &by("eve"), 0, 0).await.unwrap();
    assert_eq!(positions(&page.entries), (1..=5_000).collect::<Vec<_>>());
    let page = router.read_after(&talk(), &by("eve"), 10, 4_321).await.unwrap();
    assert_eq!((page.entries.len(), page.next, page.newest), (4_321, Position(4_331), Position(5_000)));
}

#[tokio::test]
async fn a_full_server_refuses_whole_appends_and_takes_removals() {
    let more = ["--maxmemory", "12mb", "--maxmemory-policy", "noeviction"];
    let server = RedisServer::start(Engine::Redis, Keeps::Always, &more);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    let text = "x".repeat(100_000);
    let mut taken = 0;
    let refused = loop {
        match one.append_all(&talk(), numbered("ann", taken + 1, &[&text, &text])).await {
            Ok(_) => taken += 2,
            Err(error) => break error,
        }
        assert!(taken < 1_000, "it is never full");
    };
    assert_eq!(refused.code(), "backend_full", "{refused}");
    let head = other.get_by_process_and_name(&process("job"), &talk().name).await.unwrap();
    assert_eq!((head.channel.newest.0, head.channel.bytes), (taken, taken * 100_000));
    let mut index = 0;
    while index < taken {
        let page = other.read_after(&talk(), &by("oscar"), index, 0).await.unwrap();
        assert_eq!(page.entries[0].position.0, index + 1);
        index = page.next.0;
    }
    assert!(one.cleanup_process(&process("job")).await.unwrap());
    // What was removed is freed beside what the server does.
    let begun = tokio::time::Instant::now();
    while let Err(error) = other.create_process(with_channel("job", ChannelOptions::default())).await {
        assert!(error.code() == "backend_full" && begun.elapsed() < SOON, "{error}");
    }
    assert_eq!(say(&other, "ann", 1, &text).await.unwrap().position, Position(1));
}
