//! Channels that several hosts use on one server: each host is a store of its own, with its own connections.

mod bounds;
mod faults;
mod lives;

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::redis::{RedisAck, RedisChannels, RedisOptions};
use millrace::channels::{
    Actor, Append, Appended, Change, Channel, ChannelError, ChannelId, ChannelLimits, ChannelName,
    ChannelOptions, ChannelStore, CloseReason, Entry, EntryType, Gaps, NewChannel, NewEntry, NewProcess,
    Notice, Outcome, Party, ProcessId, ProcessName, Router, Subscription,
};
use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::event::Position;
use millrace_tests::conformance::effects::tenant;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;
use tokio::task::JoinSet;

use super::{SOON, options};

/// Nobody is limited in how fast it appends, and what waits for its forerunner does so longer than any test.
fn limits() -> ChannelLimits {
    ChannelLimits { rate_limited: false, hold: Duration::from_secs(600), ..ChannelLimits::default() }
}

/// A store as the conformance suite opens it, too.
fn store(options: &RedisOptions, limits: ChannelLimits) -> Arc<dyn ChannelStore> {
    Arc::new(RedisChannels::open(options, limits, Arc::new(SystemClock)))
}

fn host(server: &RedisServer) -> Router {
    Router::new(store(&options(server), limits()))
}

fn process(name: &str) -> ProcessId {
    ProcessId { tenant: tenant("acme"), name: ProcessName::new(name).unwrap() }
}

fn channel(name: &str) -> ChannelId {
    ChannelId { process: process("job"), name: ChannelName::new(name).unwrap() }
}

fn talk() -> ChannelId {
    channel("talk")
}

fn party(name: &str) -> Party {
    Party::new(name).unwrap()
}

fn by(name: &str) -> Actor {
    Actor::Party(party(name))
}

fn with_channel(name: &str, options: ChannelOptions) -> NewProcess {
    NewProcess {
        id: process(name),
        submitter: party("ann"),
        executor: Some(party("eve")),
        observers: vec![party("oscar")],
        channels: vec![NewChannel { name: talk().name, options }],
    }
}

/// The process `job` of `ann` that `eve` executes and `oscar` observes, with its channel `talk`.
async fn begin(router: &Router) {
    let (_, made) = router.create_process(with_channel("job", ChannelOptions::default())).await.unwrap();
    assert!(made);
}

async fn say(router: &Router, who: &str, sequence: u64, text: &str) -> Result<Appended, ChannelError> {
    router.append(&talk(), &party(who), sequence, None, text.to_owned()).await
}

fn numbered(who: &str, first: u64, texts: &[&str]) -> Append {
    let entries = (first..).zip(texts).map(|(n, text)| NewEntry::data(n, text.as_bytes().to_vec()));
    Append { who: party(who), epoch: None, entries: entries.collect() }
}

/// Such as `ann1`.
fn labels(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| format!("{}{}", entry.sender, entry.sequence)).collect()
}

fn positions(entries: &[Arc<Entry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.position.0).collect()
}

async fn log(router: &Router) -> Vec<Arc<Entry>> {
    router.read_after(&talk(), &Actor::Host, 0, 0).await.unwrap().entries
}

async fn next(follower: &mut Subscription) -> Notice {
    let notice = tokio::time::timeout(SOON, follower.next(100)).await.expect("something comes");
    notice.unwrap().expect("it has not ended")
}

async fn follow(router: &Router, who: &str, index: u64) -> Subscription {
    let mut follower = router.subscribe(&talk(), &by(who), index).await.unwrap();
    assert!(matches!(next(&mut follower).await, Notice::Ready { .. }));
    follower
}

/// So many entries, by their labels.
async fn heard(follower: &mut Subscription, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        match next(follower).await {
            Notice::Entries(entries) => heard.extend(labels(&entries)),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    heard
}

async fn ends(follower: &mut Subscription) -> CloseReason {
    loop {
        match next(follower).await {
            Notice::Closed { reason, .. } => return reason,
            Notice::Entries(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Each position once, and each sender's entries in the order of its numbers.
fn whole(log: &[Arc<Entry>], senders: &[(&str, u64)]) {
    let total: u64 = senders.iter().map(|(_, count)| count).sum();
    assert_eq!(positions(log), (1..=total).collect::<Vec<_>>());
    for (who, count) in senders {
        let of = log.iter().filter(|entry| entry.sender.as_str() == *who);
        let numbers: Vec<u64> = of.map(|entry| entry.sequence).collect();
        assert_eq!(numbers, (1..=*count).collect::<Vec<_>>(), "{who}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_that_append_to_one_channel_at_once_leave_no_hole_and_double_nothing() {
    const EACH: u64 = 240;
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let hosts = [host(&server), host(&server)];
        begin(&hosts[0]).await;
        let mut follower = follow(&hosts[1], "oscar", 0).await;
        // Of one sender, the numbers go to both hosts by turns, many at a time.
        for first in (1..=EACH).step_by(40) {
            let mut sending = JoinSet::new();
            for sequence in first..first + 40 {
                for (who, place) in [("ann", 0), ("eve", 1)] {
                    let router = hosts[(usize::try_from(sequence).unwrap() + place) % 2].clone();
                    sending.spawn(async move { say(&router, who, sequence, "x").await.unwrap() });
                }
            }
            while let Some(sent) = sending.join_next().await {
                assert!(!sent.unwrap().repeated);
            }
        }
        let all = log(&hosts[0]).await;
        whole(&all, &[("ann", EACH), ("eve", EACH)]);
        assert_eq!(log(&hosts[1]).await, all);
        assert_eq!(heard(&mut follower, all.len()).await, labels(&all));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_numbers_as_they_come_at_two_hosts_gets_each_once() {
    let server = RedisServer::durable(Engine::Redis);
    let hosts = [host(&server), host(&server)];
    begin(&hosts[0]).await;
    let mut sending = JoinSet::new();
    for n in 0..60_usize {
        let router = hosts[n % 2].clone();
        sending.spawn(async move {
            let entry = NewEntry { sequence: None, ..NewEntry::data(1, n.to_string()) };
            let append = Append { who: party("ann"), epoch: None, entries: vec![entry] };
            router.append_all(&talk(), append).await.unwrap()[0]
        });
    }
    let mut appended: Vec<Appended> = Vec::new();
    while let Some(sent) = sending.join_next().await {
        appended.push(sent.unwrap());
    }
    appended.sort_by_key(|one| one.position);
    let sequences: Vec<u64> = appended.iter().map(|one| one.sequence).collect();
    assert_eq!(sequences, (1..=60).collect::<Vec<_>>());
    whole(&log(&hosts[0]).await, &[("ann", 60)]);
}

#[tokio::test]
async fn what_one_host_appends_followers_at_another_hear_in_order_to_the_end() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let (one, other) = (host(&server), host(&server));
        begin(&one).await;
        let mut near = follow(&one, "ann", 0).await;
        let mut far = follow(&other, "eve", 0).await;
        for sequence in 1..=20 {
            say(&one, "ann", sequence, "x").await.unwrap();
        }
        // More than a host keeps in memory for its followers.
        let texts = vec!["x"; 600];
        one.append_all(&talk(), numbered("eve", 1, &texts)).await.unwrap();
        let all = labels(&log(&one).await);
        assert_eq!(heard(&mut far, 620).await, all);
        assert_eq!(heard(&mut near, 620).await, all);
        // Who waits for the next entry at the other host is answered, too.
        let (id, oscar) = (talk(), by("oscar"));
        let waiting = other.wait_after(&id, &oscar, 620, 0, SOON);
        let saying = async { say(&one, "ann", 21, "y").await.unwrap() };
        let (page, said) = tokio::join!(waiting, saying);
        assert_eq!(labels(&page.unwrap().entries), ["ann21"]);
        assert_eq!(said.position, Position(621));
        let end = |who: &str, n| {
            let append = numbered(who, n, &[""]);
            let entries = append.entries.into_iter().map(|entry| entry.of_type(EntryType::End)).collect();
            Append { entries, ..append }
        };
        one.append_all(&talk(), end("ann", 22)).await.unwrap();
        other.append_all(&talk(), end("eve", 601)).await.unwrap();
        assert_eq!((ends(&mut near).await, ends(&mut far).await), (CloseReason::Ended, CloseReason::Ended));
        assert_eq!((near.position(), far.position()), (Position(623), Position(623)));
    }
}

#[tokio::test]
async fn an_executor_that_loses_its_assignment_at_one_host_has_lost_it_at_the_other() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    say(&other, "eve", 1, "x").await.unwrap();
    let mut eve = follow(&other, "eve", 1).await;
    let mut oscar = follow(&other, "oscar", 1).await;
    // Known at the other host as somebody who may not.
    assert_eq!(say(&other, "eli", 1, "x").await.unwrap_err().code(), "channel_forbidden");
    let view = one.change(&process("job"), by("ann"), Change::Assign(party("eli"))).await.unwrap();
    // At once, whether the other host has heard of it or not.
    assert_eq!(say(&other, "eve", 2, "x").await.unwrap_err().code(), "channel_access_revoked");
    let anew = say(&other, "eli", 1, "x").await.unwrap();
    assert_eq!((anew.position, anew.epoch), (Position(2), view.process.epoch));
    let refused = other.subscribe(&talk(), &by("eve"), 0).await.unwrap_err();
    assert_eq!(refused.code(), "channel_access_revoked");
    assert_eq!(ends(&mut eve).await, CloseReason::Revoked);
    assert_eq!(eve.position(), Position(1), "what came later is not for it");
    assert_eq!(heard(&mut oscar, 1).await, ["eli1"]);
    let mut eli = follow(&other, "eli", 2).await;
    one.change(&process("job"), Actor::Host, Change::Observe(Vec::new())).await.unwrap();
    assert_eq!(ends(&mut oscar).await, CloseReason::Revoked);
    one.change(&process("job"), by("ann"), Change::Unassign).await.unwrap();
    assert_eq!(ends(&mut eli).await, CloseReason::Revoked);
}

#[tokio::test]
async fn what_is_closed_or_removed_at_one_host_ends_for_followers_at_the_other() {
    let server = RedisServer::durable(Engine::Valkey);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    let mut far = follow(&other, "oscar", 0).await;
    let close = Change::Close { outcome: Outcome::Failed, reason: "because".to_owned() };
    one.change(&process("job"), by("eve"), close).await.unwrap();
    assert_eq!(ends(&mut far).await, CloseReason::Closed(Outcome::Failed));
    assert_eq!(say(&other, "ann", 1, "x").await.unwrap_err().code(), "process_closed");
    assert!(one.cleanup_process(&process("job")).await.unwrap());
    assert!(!other.cleanup_process(&process("job")).await.unwrap());
    begin(&one).await;
    let mut of_the_first = follow(&other, "oscar", 0).await;
    assert!(one.cleanup_process(&process("job")).await.unwrap());
    begin(&one).await;
    say(&one, "ann", 1, "for others").await.unwrap();
    assert_eq!(ends(&mut of_the_first).await, CloseReason::Removed);
    assert_eq!(of_the_first.position(), Position::START, "it heard nothing of the second");
    let mut of_the_second = follow(&other, "oscar", 0).await;
    assert_eq!(heard(&mut of_the_second, 1).await, ["ann1"]);
}

#[tokio::test]
async fn hosts_that_make_and_change_a_process_at_once_agree_on_one() {
    let server = RedisServer::durable(Engine::Redis);
    let hosts = [host(&server), host(&server)];
    let mut making = JoinSet::new();
    for n in 0..8 {
        let router = hosts[n % 2].clone();
        making.spawn(async move {
            router.create_process(with_channel("job", ChannelOptions::default())).await.unwrap().1
        });
    }
    let mut made = 0;
    while let Some(one) = making.join_next().await {
        made += usize::from(one.unwrap());
    }
    assert_eq!(made, 1);
    let mut changing = JoinSet::new();
    for n in 0..20 {
        let router = hosts[n % 2].clone();
        changing.spawn(async move {
            let change = match n % 4 {
                0 => Change::Assign(party(&format!("e{n}"))),
                _ => Change::AddChannel {
                    channel: NewChannel {
                        name: ChannelName::new(&format!("c{n}")).unwrap(),
                        options: ChannelOptions::default(),
                    },
                    exists_ok: false,
                },
            };
            router.change(&process("job"), Actor::Host, change).await.unwrap();
        });
    }
    while let Some(one) = changing.join_next().await {
        one.unwrap();
    }
    let view = hosts[0].process(&process("job")).await.unwrap();
    assert_eq!((view.process.version, view.process.epoch, view.channels.len()), (21, 6, 16));
    assert_eq!(hosts[1].process(&process("job")).await.unwrap(), view);
    let of = |channel: &Channel| (channel.epoch, channel.executor.clone());
    let now = (6, view.process.executor.clone());
    assert!(view.channels.iter().all(|channel| of(channel) == now), "{view:?}");
    let stats = hosts[1].stats().await.unwrap();
    assert_eq!((stats.processes, stats.channels), (1, 16));
}

#[tokio::test]
async fn an_early_entry_at_one_host_goes_in_when_its_forerunner_comes_to_the_other() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (host(&server), host(&server));
    begin(&one).await;
    let early = say(&one, "ann", 2, "second");
    let first = async {
        // Refused by then, and waiting; the order is the same if not.
        tokio::task::yield_now().await;
        say(&other, "ann", 1, "first").await.unwrap()
    };
    let (early, first) = tokio::join!(tokio::time::timeout(SOON, early), first);
    assert_eq!((first.position.0, early.unwrap().unwrap().position.0), (1, 2));
}

#[tokio::test]
async fn thousands_of_channels_share_two_connections_and_leave_no_key_behind() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let options = RedisOptions { ack: RedisAck::Memory, ..options(&server) };
    let store = store(&options, ChannelLimits { channels_max: 100, ..limits() });
    let router = Router::new(Arc::clone(&store));
    let mut followers = Vec::new();
    for n in 0..20 {
        let channels = (0..100).map(|n| NewChannel {
            name: ChannelName::new(&format!("c{n}")).unwrap(),
            options: ChannelOptions::default(),
        });
        let name = format!("job-{n}");
        let new =
            NewProcess { channels: channels.collect(), ..with_channel(&name, ChannelOptions::default()) };
        router.create_process(new).await.unwrap();
        for n in 0..100 {
            let id = ChannelId { process: process(&name), name: ChannelName::new(&format!("c{n}")).unwrap() };
            followers.push(router.subscribe(&id, &by("eve"), 0).await.unwrap());
            router.append(&id, &party("ann"), 1, None, "x").await.unwrap();
        }
    }
    until("the feed is read, too", || server.clients() == 2).await;
    for n in [0, 777, 1_999] {
        assert!(matches!(next(&mut followers[n]).await, Notice::Ready { .. }));
        assert_eq!(heard(&mut followers[n], 1).await, ["ann1"]);
    }
    for n in 0..20 {
        assert!(router.cleanup_process(&process(&format!("job-{n}"))).await.unwrap());
    }
    let mut keys: Vec<String> = ::redis::from_redis_value(server.command(&["KEYS", "*"])).unwrap();
    keys.sort();
    assert_eq!(keys, ["{millrace}:channels:feed", "{millrace}:channels:meta"]);
    drop((followers, router, store));
    until("the connections are closed", || server.clients() == 0).await;
}
