//! The buses of a fleet while servers fail over: what was answered was done, once under each number, and whoever has lost
//! something is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace::backends::redis::{RedisAck, RedisCluster, RedisLink};
use millrace::cluster::{ClusterError, ClusterLimits, Incarnation, MemberId};
use millrace_tests::conformance::cluster::Fleet;
use millrace_tests::failover::Failovers;
use millrace_tests::until;
use tokio::task::JoinSet;

use super::SOON;
use super::chaos::PAUSE;

/// How long one read waits.
const WAIT: Duration = Duration::from_millis(200);
/// So much that what is on its way to a paused replica does not all wait in sockets.
const DELTA_BYTES: usize = 200_000;
const DELTAS_AT_ONCE: usize = 4;

/// What was said to an incarnation of the epoch, under the number.
type Numbered = BTreeMap<(u64, u64), String>;

#[derive(Debug, Default)]
struct Run {
    /// Nobody says anything more.
    silent: AtomicBool,
    /// Nobody waits for anything more.
    over: AtomicBool,
    answered: AtomicUsize,
    /// Deltas.
    read: AtomicUsize,
}

impl Run {
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits until the buses have been in use for a while.
    async fn progress(&self) {
        for (what, count, more) in
            [("requests are answered", &self.answered, 20), ("deltas are read", &self.read, 100)]
        {
            let from = count.load(Ordering::SeqCst);
            until(what, || count.load(Ordering::SeqCst) >= from + more).await;
        }
    }
}

/// Between two tries while the server is away, and between deltas.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// A host that takes part under one name.
struct Member {
    fleet: Fleet,
    me: Incarnation,
    /// The last answer to who is alive.
    view: u64,
}

impl Member {
    async fn enter(fleet: Fleet, name: &str) -> Self {
        let name = MemberId::new(name).unwrap();
        let me = Self::entered(&fleet, &name).await;
        Self { fleet, me, view: 0 }
    }

    async fn entered(fleet: &Fleet, name: &MemberId) -> Incarnation {
        let begun = Instant::now();
        loop {
            match fleet.members.enter(name).await {
                Ok(me) => return me,
                Err(ClusterError::Backend(error)) => assert!(begun.elapsed() < SOON, "{error}"),
                Err(error) => panic!("{error}"),
            }
            a_moment().await;
        }
    }

    /// Whoever is gone comes in again, later than before. True then.
    async fn after(&mut self, error: ClusterError) -> bool {
        match error {
            ClusterError::Gone { who } if who == self.me => {
                self.me = Self::entered(&self.fleet, &who.member).await;
                assert!(self.me.epoch > who.epoch, "{} after {who}", self.me);
                return true;
            }
            ClusterError::Gone { .. } | ClusterError::Backend(_) => a_moment().await,
            error => panic!("{error}"),
        }
        false
    }

    /// Who is alive under a name, once somebody is.
    async fn find(&mut self, name: &str) -> Incarnation {
        let begun = Instant::now();
        loop {
            if let Ok(view) = self.fleet.members.live().await {
                assert!(view.epoch >= self.view, "view {} after {}", view.epoch, self.view);
                self.view = view.epoch;
                if let Some(found) = view.members.into_iter().find(|one| one.member.as_str() == name) {
                    return found;
                }
            }
            assert!(begun.elapsed() < SOON, "{name} does not come in");
            a_moment().await;
        }
    }

    /// What came of a request; none when it is told that nothing ever will.
    async fn answer(&self, to: &Incarnation, number: u64) -> Option<Bytes> {
        let begun = Instant::now();
        loop {
            match self.fleet.control.answer(to, number, WAIT).await {
                Ok(Some(answer)) => return Some(answer),
                Err(ClusterError::Gone { who }) => {
                    assert_eq!(who, *to);
                    return None;
                }
                Ok(None) => {}
                Err(ClusterError::Backend(_)) => a_moment().await,
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < SOON, "nobody says what came of {number} to {to}");
        }
    }
}

/// Sends request after request, each until it is answered; those that were, and how many were told to be lost.
async fn ask(mut asker: Member, run: Arc<Run>) -> (Vec<((u64, u64), String)>, usize) {
    let (mut answered, mut lost) = (Vec::new(), 0);
    for n in 0.. {
        if run.is_silent() {
            break;
        }
        let text = format!("{} {n}", asker.me.member);
        loop {
            let server = asker.find("server").await;
            let sent = asker.fleet.control.send(&asker.me, &server, text.clone().into()).await;
            let number = match sent {
                Ok(number) => number,
                Err(error) => {
                    asker.after(error).await;
                    continue;
                }
            };
            if let Some(answer) = asker.answer(&server, number).await {
                assert_eq!(answer, format!("did {text}"), "{number} of {server}");
                answered.push(((server.epoch, number), text));
                run.answered.fetch_add(1, Ordering::SeqCst);
                break;
            }
            lost += 1;
        }
    }
    (answered, lost)
}

/// Does what it is asked for. Where it does not know what has come of an acknowledgement, it begins again.
async fn serve(mut server: Member, run: Arc<Run>) -> Numbered {
    let (mut done, mut after) = (Numbered::new(), 0);
    while !run.is_over() {
        let mut failed = None;
        match server.fleet.control.receive(&server.me, after, WAIT).await {
            Ok(received) => {
                for message in received {
                    let text = String::from_utf8(message.payload.to_vec()).unwrap();
                    let before = done.insert((server.me.epoch, message.sequence), text.clone());
                    assert!(before.is_none_or(|before| before == text), "{} twice", message.sequence);
                    let answer = format!("did {text}").into();
                    let number = message.sequence;
                    if let Err(error) = server.fleet.control.acknowledge(&server.me, number, answer).await {
                        failed = Some(error);
                        break;
                    }
                    after = number;
                }
            }
            Err(error) => failed = Some(error),
        }
        if let Some(error) = failed {
            server.after(error).await;
            after = 0;
        }
    }
    done
}

/// Publishes deltas; those whose number it was told.
async fn publish(mut owner: Member, run: Arc<Run>) -> Numbered {
    let (mut published, filler) = (Numbered::new(), "x".repeat(DELTA_BYTES));
    for n in 0.. {
        if run.is_silent() {
            break;
        }
        let gateway = owner.find("gateway").await;
        let texts: Vec<String> = (0..DELTAS_AT_ONCE).map(|part| format!("{n}.{part}")).collect();
        let deltas = texts.iter().map(|text| format!("{text} {filler}").into()).collect();
        match owner.fleet.deltas.publish(&owner.me, &gateway, deltas).await {
            Ok(last) => {
                for (number, text) in (last + 1 - DELTAS_AT_ONCE as u64..).zip(texts) {
                    let before = published.insert((gateway.epoch, number), text);
                    assert_eq!(before, None, "{number} of {gateway} was given twice");
                }
            }
            Err(error) => {
                owner.after(error).await;
            }
        }
        a_moment().await;
    }
    published
}

/// What a reader of deltas has been told.
#[derive(Default)]
struct Read {
    seen: Numbered,
    lost: BTreeSet<(u64, u64)>,
    /// How far it came, by its epochs. In all but the last it was told that it is gone.
    reached: BTreeMap<u64, u64>,
}

async fn read(mut gateway: Member, run: Arc<Run>) -> Read {
    let (mut read, mut after) = (Read::default(), 0);
    loop {
        let ends = run.is_over();
        let epoch = gateway.me.epoch;
        match gateway.fleet.deltas.deltas(&gateway.me, after, WAIT).await {
            Ok(page) => {
                read.lost.extend((after + 1..=after + page.lost).map(|number| (epoch, number)));
                for (delta, expected) in page.deltas.iter().zip(after + page.lost + 1..) {
                    assert_eq!(delta.sequence, expected, "the gap before it has another length");
                    let text = String::from_utf8_lossy(&delta.payload[..20]);
                    let text = text.split(' ').next().unwrap().to_owned();
                    assert_eq!(read.seen.insert((epoch, expected), text), None, "{expected} twice");
                }
                let came = page.lost + page.deltas.len() as u64;
                assert_eq!(page.next, after + came);
                after = page.next;
                read.reached.insert(epoch, after);
                run.read.fetch_add(page.deltas.len(), Ordering::SeqCst);
                if ends && came == 0 {
                    return read;
                }
            }
            Err(error) => {
                if gateway.after(error).await {
                    after = 0;
                }
            }
        }
    }
}

/// What is on its way when the servers fail over is lost, since nobody waits for a replica: the deltas fill what leads to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn5_members_of_a_fleet_are_told_what_failovers_take() {
    let mut servers = Failovers::new(RedisAck::Auto, PAUSE).await;
    let limits = ClusterLimits { ttl: Duration::from_secs(600), deltas_max: 20, ..ClusterLimits::default() };
    let url = servers.url();
    let fleet = || {
        let link = RedisLink::new(url.parse().unwrap(), None, "millrace");
        Fleet::new(RedisCluster::new(link, limits.clone()))
    };
    let run = Arc::new(Run::default());
    let (mut asking, mut serving, mut publishing, mut reading) =
        (JoinSet::new(), JoinSet::new(), JoinSet::new(), JoinSet::new());
    serving.spawn(serve(Member::enter(fleet(), "server").await, Arc::clone(&run)));
    reading.spawn(read(Member::enter(fleet(), "gateway").await, Arc::clone(&run)));
    publishing.spawn(publish(Member::enter(fleet(), "owner").await, Arc::clone(&run)));
    for name in ["one", "two"] {
        asking.spawn(ask(Member::enter(fleet(), name).await, Arc::clone(&run)));
    }
    for _ in 0..2 {
        run.progress().await;
        servers.fail_over().await;
        run.progress().await;
        servers.settle();
    }
    run.silent.store(true, Ordering::SeqCst);
    let asked = asking.join_all().await;
    let published = publishing.join_all().await.remove(0);
    run.over.store(true, Ordering::SeqCst);
    let (done, read) = (serving.join_all().await.remove(0), reading.join_all().await.remove(0));

    let (mut epochs, mut answered, mut lost) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (of_one, lost_of_one) in asked {
        lost += lost_of_one;
        for (place, text) in of_one {
            assert_eq!(done.get(&place), Some(&text), "{place:?} was answered and not done");
            assert!(answered.insert(place), "{place:?} was given twice");
            epochs.insert(place.0);
        }
    }
    assert!(answered.len() >= 80 && epochs.len() >= 3, "{} {epochs:?}, {lost} lost", answered.len());

    let last = read.reached.keys().next_back().copied();
    for (place, text) in &published {
        let reached = read.reached.get(&place.0).copied().unwrap_or(0);
        match read.seen.get(place) {
            Some(seen) => assert_eq!(seen, text, "{place:?} stands for two deltas"),
            None if read.lost.contains(place) => {}
            // Of an incarnation that was told to be gone: it asks its owners for all of it anew.
            None => assert!(place.1 > reached && Some(place.0) != last, "{place:?} is lost without a word"),
        }
    }
    assert!(read.seen.keys().all(|place| !read.lost.contains(place)), "it was told to be lost and came");
    assert!(read.reached.len() >= 3 && read.seen.len() >= 400, "{} {:?}", read.seen.len(), read.reached);

    // Where more came than is kept for one member, the gap is as long as what is missing.
    let (owner, gateway) = (Member::enter(fleet(), "owner").await, Member::enter(fleet(), "gateway").await);
    for _ in 0..10 {
        let deltas = vec![Bytes::from(vec![b'x'; DELTA_BYTES]); DELTAS_AT_ONCE];
        owner.fleet.deltas.publish(&owner.me, &gateway.me, deltas).await.unwrap();
    }
    let page = gateway.fleet.deltas.deltas(&gateway.me, 0, SOON).await.unwrap();
    let first = page.deltas.first().map(|delta| delta.sequence);
    assert_eq!((first, page.next), (Some(page.lost + 1), 40), "{} are lost", page.lost);
    assert!(page.lost > 0 && page.lost + page.deltas.len() as u64 == 40, "{} are lost", page.lost);
}
