//! What every backend of a fleet's membership and buses must do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace::cluster::{
    ClusterError, ClusterLimits, ControlBus, DeltaBus, Incarnation, MemberId, Membership,
};

/// The fleet as two hosts reach it; of a backend in one process, the same one twice.
#[derive(Clone, Debug)]
pub struct Stage {
    pub one: Fleet,
    pub other: Fleet,
}

#[derive(Clone, Debug)]
pub struct Fleet {
    pub members: Arc<dyn Membership>,
    pub control: Arc<dyn ControlBus>,
    pub deltas: Arc<dyn DeltaBus>,
}

impl Fleet {
    pub fn new<F: Membership + ControlBus + DeltaBus + 'static>(fleet: F) -> Self {
        let fleet = Arc::new(fleet);
        Self { members: fleet.clone(), control: fleet.clone(), deltas: fleet }
    }

    pub async fn enter(&self, name: &str) -> Incarnation {
        self.members.enter(&MemberId::new(name).unwrap()).await.unwrap()
    }

    /// Names of who is alive.
    async fn live(&self) -> Vec<String> {
        self.members.live().await.unwrap().members.iter().map(|one| one.member.to_string()).collect()
    }
}

const NOW: Duration = Duration::ZERO;
/// Long enough for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);

/// Bounds that a test can reach.
pub fn small_limits() -> ClusterLimits {
    ClusterLimits { ttl: SOON, message_bytes_max: 1_000, control_max: 2, deltas_max: 100 }
}

/// A time that passes within a test.
pub fn brief_limits() -> ClusterLimits {
    ClusterLimits { ttl: Duration::from_secs(3), ..small_limits() }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn gone<T: std::fmt::Debug>(result: Result<T, ClusterError>) -> Incarnation {
    match result {
        Err(ClusterError::Gone { who }) => who,
        other => panic!("{other:?}"),
    }
}

pub async fn c82_members_messages_and_deltas_make_the_round(Stage { one, other }: Stage) {
    let (b, a) = (one.enter("b").await, other.enter("a").await);
    assert!(a.epoch > b.epoch);
    assert_eq!(one.live().await, ["a", "b"]);
    other.members.heartbeat(&a).await.unwrap();
    let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let number = one.control.send(&b, &a, all.clone()).await.unwrap();
    let received = other.control.receive(&a, 0, SOON).await.unwrap();
    assert_eq!((received.len(), &received[0].from, received[0].sequence), (1, &b, number));
    assert_eq!(received[0].payload, all);
    assert_eq!(one.control.answer(&a, number, NOW).await.unwrap(), None);
    other.control.acknowledge(&a, number, bytes("mine")).await.unwrap();
    assert_eq!(one.control.answer(&a, number, SOON).await.unwrap(), Some(bytes("mine")));
    let last = other.deltas.publish(&a, &b, vec![all.clone(), bytes("")]).await.unwrap();
    let page = one.deltas.deltas(&b, 0, SOON).await.unwrap();
    assert_eq!((page.lost, page.next, page.deltas.len()), (0, last, 2));
    assert_eq!((&page.deltas[0].payload, &page.deltas[0].from), (&all, &a));
    other.members.leave(&a).await.unwrap();
    other.members.leave(&a).await.unwrap();
    assert_eq!(one.live().await, ["b"]);
}

pub async fn the_epoch_of_a_view_grows_with_every_change(Stage { one, other }: Stage) {
    let epoch = async || one.members.live().await.unwrap().epoch;
    let mut last = epoch().await;
    let mut grown = async |what: &str| {
        let now = epoch().await;
        assert!(now > last, "{what}: {now} after {last}");
        last = now;
    };
    let a = other.enter("a").await;
    grown("a member came").await;
    other.enter("a").await;
    grown("it came again").await;
    other.members.leave(&a).await.unwrap();
    assert_eq!(one.live().await, ["a"], "who was replaced takes nobody along");
    other.members.leave(&other.enter("b").await).await.unwrap();
    grown("another came and went").await;
    let before = epoch().await;
    assert_eq!(epoch().await, before, "nothing changed");
}

pub async fn a_control_message_stays_until_it_is_acknowledged(Stage { one, other }: Stage) {
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let first = one.control.send(&a, &b, bytes("1")).await.unwrap();
    let second = one.control.send(&a, &b, bytes("2")).await.unwrap();
    match one.control.send(&a, &b, bytes("3")).await {
        Err(ClusterError::Limit { limit: "cluster_control_max", asked: 3, max: 2 }) => {}
        full => panic!("{full:?}"),
    }
    let numbers = async |after| {
        let received = other.control.receive(&b, after, NOW).await.unwrap();
        received.iter().map(|message| message.sequence).collect::<Vec<_>>()
    };
    assert_eq!(numbers(0).await, [first, second]);
    assert_eq!(numbers(0).await, [first, second], "who begins again gets them again");
    assert_eq!(numbers(first).await, [second]);
    other.control.acknowledge(&b, first, bytes("not mine")).await.unwrap();
    other.control.acknowledge(&b, first, bytes("something else")).await.unwrap();
    assert_eq!(numbers(0).await, [second]);
    assert_eq!(one.control.answer(&b, first, NOW).await.unwrap(), Some(bytes("not mine")));
    assert_eq!(one.control.answer(&b, second, NOW).await.unwrap(), None);
    assert_eq!(gone(one.control.answer(&b, 99, SOON).await), b, "nobody will ever answer that");
    assert!(one.control.send(&a, &b, bytes("3")).await.is_ok(), "there is room again");
}

/// With room for two messages at a time.
pub async fn only_the_newest_answers_are_kept(Stage { one, other }: Stage) {
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let mut sent = Vec::new();
    for n in 0..20 {
        let number = one.control.send(&a, &b, bytes("ask")).await.unwrap();
        other.control.acknowledge(&b, number, bytes(&format!("answer {n}"))).await.unwrap();
        sent.push(number);
    }
    let (dropped, kept) = sent.split_at(18);
    for number in dropped {
        assert_eq!(gone(one.control.answer(&b, *number, SOON).await), b, "{number}");
    }
    for (n, number) in (18..).zip(kept) {
        let answer = one.control.answer(&b, *number, NOW).await.unwrap();
        assert_eq!(answer, Some(bytes(&format!("answer {n}"))));
    }
    // One that is acknowledged after later ones takes the place of none of theirs.
    let late = one.control.send(&a, &b, bytes("late")).await.unwrap();
    let mut newer = Vec::new();
    for _ in 0..2 {
        let number = one.control.send(&a, &b, bytes("ask")).await.unwrap();
        other.control.acknowledge(&b, number, bytes("newer")).await.unwrap();
        newer.push(number);
    }
    other.control.acknowledge(&b, late, bytes("late")).await.unwrap();
    assert_eq!(gone(one.control.answer(&b, late, SOON).await), b);
    for number in newer {
        assert_eq!(one.control.answer(&b, number, NOW).await.unwrap(), Some(bytes("newer")));
    }
}

pub async fn sn18_what_was_meant_for_a_former_owner_is_told_and_reaches_nobody(Stage { one, other }: Stage) {
    let (a, old) = (one.enter("a").await, other.enter("b").await);
    let number = one.control.send(&a, &old, bytes("take it")).await.unwrap();
    one.deltas.publish(&a, &old, vec![bytes("x")]).await.unwrap();
    let new = other.enter("b").await;
    assert!(new.epoch > old.epoch);
    assert_eq!(gone(one.control.answer(&old, number, SOON).await), old);
    assert_eq!(gone(one.control.send(&a, &old, bytes("again")).await), old);
    assert_eq!(gone(one.deltas.publish(&a, &old, vec![bytes("y")]).await), old);
    assert_eq!(other.control.receive(&new, 0, NOW).await.unwrap(), []);
    assert_eq!(other.deltas.deltas(&new, 0, NOW).await.unwrap().deltas, []);
    // The former one may still be running, and says nothing more.
    assert_eq!(gone(other.members.heartbeat(&old).await), old);
    assert_eq!(gone(other.control.receive(&old, 0, SOON).await), old);
    assert_eq!(gone(other.deltas.deltas(&old, 0, SOON).await), old);
    assert_eq!(gone(other.control.send(&old, &a, bytes("I own it")).await), old);
    assert_eq!(gone(other.deltas.publish(&old, &a, vec![bytes("z")]).await), old);
    assert_eq!(gone(other.control.acknowledge(&old, number, bytes("mine")).await), old);
    assert_eq!(one.live().await, ["a", "b"]);
}

pub async fn a_read_that_waits_wakes_for_what_comes(Stage { one, other }: Stage) {
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let (received, page, answer) = tokio::join!(
        async {
            let received = other.control.receive(&b, 0, SOON).await.unwrap();
            other.control.acknowledge(&b, received[0].sequence, bytes("done")).await.unwrap();
            received
        },
        other.deltas.deltas(&b, 0, SOON),
        async {
            one.deltas.publish(&a, &b, vec![bytes("x")]).await.unwrap();
            let sent = one.control.send(&a, &b, bytes("1")).await.unwrap();
            one.control.answer(&b, sent, SOON).await.unwrap()
        },
    );
    assert_eq!(received[0].payload, bytes("1"));
    assert_eq!(page.unwrap().deltas[0].payload, bytes("x"));
    assert_eq!(answer, Some(bytes("done")));
}

pub async fn deltas_have_no_holes_and_what_is_lost_is_told(Stage { one, other }: Stage) {
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let c = other.enter("c").await;
    for n in 0..5 {
        one.deltas.publish(&a, &b, (0..100).map(|m| bytes(&format!("{n} {m}"))).collect()).await.unwrap();
        one.deltas.publish(&c, &b, vec![bytes("between")]).await.unwrap();
    }
    let (mut after, mut lost, mut seen) = (0, 0, 0);
    while after < 505 {
        let page = other.deltas.deltas(&b, after, NOW).await.unwrap();
        lost += page.lost;
        for (delta, expected) in page.deltas.iter().zip(after + page.lost + 1..) {
            assert_eq!(delta.sequence, expected);
            let owner = if delta.sequence % 101 == 0 { &c } else { &a };
            assert_eq!(&delta.from, owner, "{delta:?}");
            seen += 1;
        }
        after = page.next;
    }
    assert_eq!(lost + seen, 505);
    assert!(lost > 0 && seen >= 100, "lost {lost}, seen {seen}");
    let end = other.deltas.deltas(&b, after, NOW).await.unwrap();
    assert_eq!((end.lost, end.next, end.deltas.len()), (0, after, 0));
}

pub async fn messages_and_names_have_bounds(Stage { one, .. }: Stage) {
    let a = one.enter("a").await;
    let large = Bytes::from(vec![0; 1_001]);
    let limit = |result: Result<u64, ClusterError>| match result {
        Err(ClusterError::Limit { limit, .. }) => limit,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(one.control.send(&a, &a, large.clone()).await), "cluster_message_bytes_max");
    assert_eq!(limit(one.deltas.publish(&a, &a, vec![large]).await), "cluster_message_bytes_max");
    let many = vec![Bytes::new(); 1_001];
    assert_eq!(limit(one.deltas.publish(&a, &a, many).await), "cluster_deltas_at_once_max");
    assert_eq!(one.deltas.publish(&a, &a, Vec::new()).await.unwrap(), 0, "nothing is nothing");
    for wrong in ["", "a b", "a:b", "ä", &"x".repeat(65)] {
        assert!(MemberId::new(wrong).is_err(), "{wrong}");
    }
}

/// With [`brief_limits`].
pub async fn a_member_that_is_silent_is_gone_for_everybody(Stage { one, other }: Stage) {
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let number = other.control.send(&b, &a, bytes("1")).await.unwrap();
    let view = one.members.live().await.unwrap();
    assert_eq!(view.members, [a.clone(), b.clone()]);
    while one.live().await.len() > 1 {
        other.members.heartbeat(&b).await.unwrap();
        // How often it is heard of, and nothing that is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let later = one.members.live().await.unwrap();
    assert_eq!(later.members, std::slice::from_ref(&b));
    assert!(later.epoch > view.epoch);
    assert_eq!(gone(one.members.heartbeat(&a).await), a, "it has to enter again");
    assert_eq!(gone(other.control.answer(&a, number, SOON).await), a);
    assert_eq!(gone(one.deltas.publish(&a, &b, vec![bytes("late")]).await), a);
    assert!(one.enter("a").await.epoch > a.epoch);
}

#[macro_export]
macro_rules! cluster_conformance {
    ($backend:ident, $setup:expr, $brief:expr) => {
        mod $backend {
            use super::*;
            $crate::conformance!(lasting, cluster, $setup;
                c82_members_messages_and_deltas_make_the_round,
                the_epoch_of_a_view_grows_with_every_change,
                a_control_message_stays_until_it_is_acknowledged,
                only_the_newest_answers_are_kept,
                sn18_what_was_meant_for_a_former_owner_is_told_and_reaches_nobody,
                a_read_that_waits_wakes_for_what_comes,
                deltas_have_no_holes_and_what_is_lost_is_told,
                messages_and_names_have_bounds);
            $crate::conformance!(brief, cluster, $brief; a_member_that_is_silent_is_gone_for_everybody);
        }
    };
}
