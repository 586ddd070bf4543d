//! Channels against a list: senders that repeat themselves, leave numbers out and meet each other, readers by page,
//! followers that are slow, assignments, ends and restarts. Whoever looks sees the same log, each entry once, at the
//! place where it was acknowledged.

use std::sync::Arc;

use futures_util::FutureExt as _;
use millrace::backends::memory::MemoryChannels;
use millrace::channels::{
    Actor, Append, Change, ChannelError, ChannelLimits, ChannelOptions, ChannelStore, CloseReason, Entry,
    EntryType, Gaps, NewEntry, NewProcess, Notice, Outcome, ReadLimit, Router, Subscription, WhenFull,
    in_senders_order,
};
use millrace::clock::SystemClock;
use millrace::error::Classify as _;
use millrace::event::Position;
use millrace_tests::conformance::channels::{Stage, by, channel, free, party, process, soon, talk_of, work};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::task::JoinSet;

use super::list::{List, OBSERVER, SUBMITTER, Said};

/// How far a follower may be behind before it is told.
const BEHIND: u64 = 4;
const FOLLOWERS: usize = 5;

/// Which numbers an entry has, seen from those that its sender has used.
#[derive(Clone, Debug)]
enum What {
    Next,
    Unnumbered,
    Ahead(u64),
    Repeat(usize),
    /// A repeat that says something else.
    Changed(usize),
    Reply(u64),
    Last(EntryType),
}

/// What happens. Numbers pick from what there is at that moment.
#[derive(Clone, Debug)]
enum Act {
    Send {
        sender: usize,
        stale: bool,
        entries: Vec<What>,
    },
    /// So many entries of both sides at once, in this order, or each twice.
    Meet {
        order: Vec<u64>,
        other: usize,
        twice: bool,
    },
    Read {
        reader: usize,
        limit: usize,
    },
    Follow {
        who: usize,
        from: u64,
    },
    Hear {
        follower: usize,
        max: usize,
        times: usize,
    },
    Assign(usize),
    Unassign,
    Restart,
    Close,
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        10 => Just(What::Next),
        2 => Just(What::Unnumbered),
        2 => (1..4_u64).prop_map(What::Ahead),
        3 => (0..50_usize).prop_map(What::Repeat),
        1 => (0..50_usize).prop_map(What::Changed),
        2 => (0..8_u64).prop_map(What::Reply),
        1 => prop_oneof![Just(EntryType::End), Just(EntryType::Error)].prop_map(What::Last),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let order = Just((0..6_u64).collect::<Vec<_>>()).prop_shuffle();
    let order = (order, 1..6_usize)
        .prop_map(|(order, count)| order.into_iter().filter(|n| *n < count as u64).collect::<Vec<_>>());
    prop_oneof![
        12 => (0..6_usize, prop::bool::weighted(0.05), prop::collection::vec(what(), 1..4))
            .prop_map(|(sender, stale, entries)| Act::Send { sender, stale, entries }),
        4 => (order, 0..4_usize, any::<bool>())
            .prop_map(|(order, other, twice)| Act::Meet { order, other, twice }),
        6 => (0..2_usize, 0..5_usize).prop_map(|(reader, limit)| Act::Read { reader, limit }),
        3 => (0..4_usize, any::<u64>()).prop_map(|(who, from)| Act::Follow { who, from }),
        8 => (0..FOLLOWERS, 1..6_usize, 1..4_usize)
            .prop_map(|(follower, max, times)| Act::Hear { follower, max, times }),
        2 => (0..4_usize).prop_map(Act::Assign),
        1 => Just(Act::Unassign),
        1 => Just(Act::Restart),
        1 => prop::bool::weighted(0.3).prop_map(|close| if close { Act::Close } else { Act::Restart }),
    ]
}

/// What the channel of a run is made with.
type Made = (Gaps, WhenFull, u64);

fn made() -> impl Strategy<Value = Made> {
    let gaps = prop_oneof![2 => Just(Gaps::Hold), 1 => Just(Gaps::Report), 1 => Just(Gaps::Arrival)];
    let full = prop_oneof![1 => Just(WhenFull::Reject), 2 => Just(WhenFull::DropOldest), 1 => Just(WhenFull::Archive)];
    (gaps, full, prop_oneof![3..12_u64, Just(1_000)])
}

/// Who follows, and what it has been given.
struct Follower {
    who: Option<&'static str>,
    role: Option<(&'static str, u32)>,
    subscription: Subscription,
    after: u64,
    begun: bool,
    /// It has been told that it is behind, and was not given everything since.
    told: bool,
    over: bool,
}

struct World<'a> {
    stage: &'a Stage,
    place: u64,
    store: Arc<dyn ChannelStore>,
    router: Router,
    list: List,
    readers: [u64; 2],
    followers: Vec<Follower>,
    said: u64,
}

fn limits() -> ChannelLimits {
    ChannelLimits { subscriber_entries_max: BEHIND, ..free() }
}

impl<'a> World<'a> {
    async fn new(stage: &'a Stage, (gaps, full, entries_max): Made) -> Self {
        let place = stage.place();
        let store = stage.open(place, limits()).await;
        let router = Router::new(Arc::clone(&store));
        let options = ChannelOptions { gaps, full, entries_max, ..limits().default_options() };
        let new = NewProcess {
            executor: Some(party("e0")),
            observers: vec![party(OBSERVER)],
            channels: vec![channel("talk", options)],
            ..work("job", &[])
        };
        router.create_process(new).await.unwrap();
        let list = List::new(gaps, full, entries_max);
        Self { stage, place, store, router, list, readers: [0; 2], followers: Vec::new(), said: 0 }
    }

    async fn act(&mut self, act: &Act) {
        match act {
            Act::Send { sender, stale, entries } => self.send(*sender, *stale, entries).await,
            Act::Meet { order, other, twice } => self.meet(order, *other, *twice).await,
            Act::Read { reader, limit } => self.read(*reader, *limit).await,
            Act::Follow { who, from } => self.follow(*who, *from).await,
            Act::Hear { follower, max, times } => {
                for _ in 0..*times {
                    self.hear(*follower, *max).await;
                }
            }
            // Sometimes the submitter executes it itself, and sometimes the same one is assigned again.
            Act::Assign(pick) => self.assign(Some(["e0", "e1", "e2", SUBMITTER][*pick])).await,
            Act::Unassign => self.assign(None).await,
            Act::Restart => self.restart().await,
            Act::Close => {
                let close = Change::Close { outcome: Outcome::Success, reason: String::new() };
                self.router.change(&process("job"), Actor::Host, close).await.unwrap();
                self.list.closed = Some(Outcome::Success);
            }
        }
    }

    async fn assign(&mut self, executor: Option<&str>) {
        let change = executor.map_or(Change::Unassign, |executor| Change::Assign(party(executor)));
        match self.router.change(&process("job"), Actor::Host, change).await {
            Ok(view) => {
                self.list.assign(executor);
                assert_eq!(view.process.epoch, self.list.epoch);
            }
            Err(error) => {
                assert_eq!((error.code(), self.list.closed.is_some()), ("process_closed", true));
            }
        }
    }

    fn text(&mut self) -> String {
        self.said += 1;
        format!("{} says something", self.said)
    }

    /// Who sends: the submitter, the executor, or somebody who was or will be one, or observes.
    fn sender(&self, pick: usize) -> String {
        match pick {
            0 | 1 => SUBMITTER.to_owned(),
            2 | 3 => self.list.executor.clone().unwrap_or_else(|| "e0".to_owned()),
            4 => "e1".to_owned(),
            _ => OBSERVER.to_owned(),
        }
    }

    async fn send(&mut self, sender: usize, stale: bool, whats: &[What]) {
        let who = self.sender(sender);
        let epoch = self.list.epoch_of(&who).unwrap_or(self.list.epoch);
        let mut next = self.list.last(&who, epoch) + 1;
        let mut entries = Vec::new();
        for what in whats {
            let text = self.text();
            let own = self.list.said_by(&who, epoch);
            let pick = |pick: usize| (!own.is_empty()).then(|| own[pick % own.len()]);
            let entry = match what {
                What::Repeat(at) => match pick(*at) {
                    Some(said) => {
                        entries.push(NewEntry { sequence: Some(said.sequence), ..said.new.clone() });
                        continue;
                    }
                    None => NewEntry::data(next, text),
                },
                What::Changed(at) => match pick(*at) {
                    Some(said) => {
                        entries.push(NewEntry::data(said.sequence, text));
                        continue;
                    }
                    None => NewEntry::data(next, text),
                },
                What::Ahead(by) => {
                    entries.push(NewEntry::data(next + by, text));
                    continue;
                }
                What::Next => NewEntry::data(next, text),
                What::Unnumbered => NewEntry { sequence: None, ..NewEntry::data(next, text) },
                What::Reply(to) => NewEntry::data(next, text).replying_to(*to),
                What::Last(entry_type) => NewEntry::data(next, text).of_type(*entry_type),
            };
            next += 1;
            entries.push(entry);
        }
        let epoch = stale.then(|| epoch + 1);
        let expected = self.list.append(&who, epoch, &entries);
        let append = Append { who: party(&who), epoch, entries };
        // The router would wait for what is missing, and nobody sends it here.
        let answered = if expected == Err("channel_sequence_gap") {
            self.store.append(&talk_of("job"), append.clone()).await
        } else {
            soon(self.router.append_all(&talk_of("job"), append.clone())).await
        };
        match (answered, expected) {
            (Ok(appended), Ok(expected)) => {
                let found: Vec<_> = appended.iter().map(|at| (at.position.0, at.repeated)).collect();
                assert_eq!(found, expected, "{append:?}");
            }
            (Err(error), Err("denied")) => {
                let denied = ["channel_forbidden", "channel_access_revoked"].contains(&error.code());
                assert!(denied, "{error} for {append:?}");
            }
            (Err(error), Err(expected)) => assert_eq!(error.code(), expected, "{append:?}"),
            (answered, expected) => panic!("{answered:?} and not {expected:?} for {append:?}"),
        }
    }

    /// Both sides at once, out of order, and perhaps each entry twice.
    async fn meet(&mut self, order: &[u64], other: usize, twice: bool) {
        let mut planned = Vec::new();
        let executor = self.list.executor.clone().filter(|executor| executor != SUBMITTER);
        let sides = [(Some(SUBMITTER.to_owned()), order.len()), (executor, other)];
        for (who, count) in sides.into_iter().filter_map(|(who, count)| Some((who?, count as u64))) {
            if self.list.has_ended(&who) {
                continue;
            }
            let epoch = self.list.epoch_of(&who).expect("it may append");
            let last = self.list.last(&who, epoch);
            // Some of them may be there already, ahead of others.
            let known: Vec<u64> = self.list.said_by(&who, epoch).iter().map(|said| said.sequence).collect();
            let order = order.iter().copied().chain(order.len() as u64..).filter(|n| *n < count);
            for n in order.take(usize::try_from(count).expect("few")) {
                let sequence = last + 1 + n;
                if !known.contains(&sequence) {
                    let new = NewEntry::data(sequence, self.text());
                    planned.push(Said { who: who.clone(), epoch, sequence, new });
                }
            }
        }
        if self.list.closed.is_some() || planned.len() as u64 > self.list.room() {
            return;
        }
        let mut sending = JoinSet::new();
        for said in &planned {
            for _ in 0..=usize::from(twice) {
                let (router, said) = (self.router.clone(), said.clone());
                sending.spawn(async move {
                    let entries = vec![said.new.clone()];
                    let append = Append { who: party(&said.who), epoch: None, entries };
                    (soon(router.append_all(&talk_of("job"), append)).await, said)
                });
            }
        }
        let mut appended = Vec::new();
        while let Some(sent) = sending.join_next().await {
            match sent.unwrap() {
                (Ok(at), said) => appended.push((said, at[0])),
                (Err(ChannelError::Gap { .. }), _) if self.list.gaps == Gaps::Report => {}
                // As many were sent meanwhile as the channel has room for.
                (Err(ChannelError::SequenceForgotten { .. }), said) => {
                    assert!(twice && self.list.full == WhenFull::DropOldest, "{said:?}");
                }
                (Err(error), said) => panic!("{error} for {said:?}"),
            }
        }
        self.list.take_in(appended);
        self.list.check_order();
    }

    async fn read(&mut self, reader: usize, limit: usize) {
        let after = self.readers[reader];
        let who = [SUBMITTER, OBSERVER][reader];
        let page = self.router.read_after(&talk_of("job"), &by(who), after, limit).await.unwrap();
        let missed = self.list.oldest.saturating_sub(after + 1);
        assert_eq!(page.missed, missed);
        assert_eq!((page.oldest.0, page.newest.0), (self.list.oldest, self.list.newest()));
        let most = if limit == 0 { u64::MAX } else { limit as u64 };
        let count = (self.list.newest() - (after + missed).min(self.list.newest())).min(most);
        assert_eq!(page.entries.len() as u64, count);
        self.are(&page.entries, after + missed + 1);
        assert_eq!(page.next.0, after + missed + count);
        self.readers[reader] = page.next.0;
    }

    /// Whether entries are those of the list from a position on.
    fn are(&self, entries: &[Arc<Entry>], from: u64) {
        for (entry, position) in entries.iter().zip(from..) {
            assert_eq!(entry.position.0, position);
            assert!(self.list.at(position).is(entry), "{entry:?} and not {:?}", self.list.at(position));
        }
    }

    async fn follow(&mut self, who: usize, from: u64) {
        let who = [Some(SUBMITTER), Some(OBSERVER), Some("e0"), None][who];
        let from = from % (self.list.newest() + 1);
        let Some(follower) = self.subscribe(who, from).await else { return };
        if self.followers.len() == FOLLOWERS {
            self.followers.remove(0);
        }
        self.followers.push(follower);
    }

    async fn subscribe(&self, who: Option<&'static str>, after: u64) -> Option<Follower> {
        let role = who.and_then(|who| self.list.role_of(who));
        let actor = who.map_or(Actor::Host, by);
        let subscription = self.router.subscribe(&talk_of("job"), &actor, after).await;
        assert_eq!(subscription.is_ok(), who.is_none() || role.is_some(), "{subscription:?}");
        let subscription = subscription.ok()?;
        Some(Follower { who, role, subscription, after, begun: false, told: true, over: false })
    }

    /// What comes next for a follower, if anything does.
    async fn hear(&mut self, follower: usize, max: usize) {
        if follower >= self.followers.len() {
            return;
        }
        let mut one = self.followers.remove(follower);
        self.hear_one(&mut one, max).await;
        self.followers.insert(follower, one);
    }

    async fn hear_one(&self, one: &mut Follower, max: usize) {
        let list = &self.list;
        let (newest, missed) = (list.newest(), list.oldest.saturating_sub(one.after + 1));
        let revoked = one.who.is_some_and(|who| list.role_of(who) != one.role);
        let ends = list.closed.is_some() || list.is_ended();
        let comes = one.over || revoked || !one.begun || missed > 0 || one.after < newest || ends;
        if !comes {
            let nothing = one.subscription.next(max).now_or_never();
            assert!(nothing.is_none(), "{nothing:?}");
            one.told = false;
            return;
        }
        let notice = soon(one.subscription.next(max)).await.unwrap();
        let Some(notice) = notice else {
            assert!(one.over);
            return;
        };
        assert!(!one.over, "{notice:?}");
        match notice {
            Notice::Closed { reason, last } => {
                one.over = true;
                assert_eq!(last.0, one.after);
                let expected = match list.closed {
                    _ if revoked => CloseReason::Revoked,
                    Some(outcome) => CloseReason::Closed(outcome),
                    None => CloseReason::Ended,
                };
                assert!(revoked || one.begun && missed == 0 && one.after == newest, "too early");
                assert_eq!(reason, expected);
            }
            other if revoked => panic!("{other:?} for who may not read any more"),
            Notice::Ready { after, oldest, newest: of_log } => {
                assert!(!one.begun);
                let expected = [one.after, list.oldest, newest].map(Position);
                assert_eq!([after, oldest, of_log], expected);
                (one.begun, one.told) = (true, one.after < newest);
            }
            other if !one.begun => panic!("{other:?} before it is ready"),
            Notice::Lagged { resume_at, missed: gone, behind } => {
                let after = one.after + missed;
                assert_eq!((resume_at.0, gone, behind), (after + 1, missed, newest - after));
                assert!(missed > 0 || !one.told && behind > BEHIND, "it is not behind, or was told");
                (one.after, one.told) = (after, true);
            }
            Notice::Entries(entries) => {
                assert!(missed == 0, "it is not told what it missed");
                assert!(one.told || newest - one.after <= BEHIND, "it is not told that it is behind");
                assert!(!entries.is_empty() && entries.len() <= max);
                self.are(&entries, one.after + 1);
                one.after += entries.len() as u64;
                one.told &= one.after < newest;
            }
        }
        assert_eq!(one.subscription.position().0, one.after);
    }

    /// Everybody goes on where it was.
    async fn restart(&mut self) {
        if !self.stage.lasts {
            return;
        }
        let places: Vec<_> = self.followers.drain(..).map(|one| (one.who, one.after)).collect();
        // Nobody uses the old one when the new one is opened.
        self.store = Arc::new(MemoryChannels::new(limits(), Arc::new(SystemClock)));
        self.router = Router::new(Arc::clone(&self.store));
        self.store = self.stage.open(self.place, limits()).await;
        self.router = Router::new(Arc::clone(&self.store));
        for (who, after) in places {
            if let Some(follower) = self.subscribe(who, after).await {
                self.followers.push(follower);
            }
        }
    }

    /// Everybody reads to the end, and whoever comes new sees the same.
    async fn finish(mut self) {
        self.list.check_order();
        for reader in 0..2 {
            while self.readers[reader] < self.list.newest() {
                self.read(reader, 3).await;
            }
        }
        self.follow(3, 0).await;
        for at in 0..self.followers.len() {
            let mut one = self.followers.remove(at);
            let (newest, mut rounds) = (self.list.newest(), 0);
            while !one.over && (one.after < newest || !one.begun) {
                self.hear_one(&mut one, 7).await;
                rounds += 1;
                assert!(rounds < 10_000, "it does not come to the end");
            }
            self.followers.insert(at, one);
        }
        let limit = ReadLimit { entries: 10_000, bytes: 1 << 30 };
        let all = self.store.read(&talk_of("job"), Position(0), limit).await.unwrap();
        self.are(&all.entries, self.list.oldest);
        assert_eq!(all.entries.len() as u64, self.list.newest() + 1 - self.list.oldest);
        let view = in_senders_order(&all.entries);
        assert_eq!(view.len(), all.entries.len());
        for entry in &view {
            let own =
                view.iter().filter(|other| (&other.sender, other.epoch) == (&entry.sender, entry.epoch));
            assert!(own.map(|entry| entry.sequence).is_sorted(), "{} is out of its order", entry.sender);
        }
    }
}

/// So many runs over one stage, each on a channel of its own.
fn runs<K, S>(cases: u32, setup: impl FnOnce() -> S)
where
    S: Future<Output = (Stage, K)>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (stage, _keep) = runtime.block_on(setup());
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let strategy = (made(), prop::collection::vec(act(), 1..80));
    let ran = runner.run(&strategy, |(made, acts)| {
        runtime.block_on(async {
            let mut world = World::new(&stage, made).await;
            for act in &acts {
                world.act(act).await;
            }
            world.finish().await;
        });
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

#[test]
fn every_reader_sees_the_list_whatever_happens_to_a_channel_in_memory() {
    runs(300, super::memory);
}

#[test]
fn every_reader_sees_the_list_whatever_happens_to_a_channel_in_the_embedded_store() {
    runs(24, super::sqlite);
}

#[test]
fn every_reader_sees_the_list_whatever_happens_to_a_channel_on_redis() {
    runs(24, super::on_redis);
}
