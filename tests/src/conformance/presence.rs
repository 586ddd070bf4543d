//! What every backend of rooms must do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace::error::Classify;
use millrace::event::TenantId;
use millrace::presence::{
    Change, Follower, GapCause, Join, Joined, LeaveReason, MemberName, Notice, Presence, PresenceError,
    PresenceLimits, RoomId, RoomName, Roster, What,
};

/// Two hosts with the same rooms; of a backend for one host, the same one twice.
#[derive(Clone, Debug)]
pub struct Stage {
    pub one: Arc<dyn Presence>,
    pub other: Arc<dyn Presence>,
}

/// Long enough for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

/// Bounds that a test can reach.
pub fn small_limits() -> PresenceLimits {
    PresenceLimits {
        rooms_max: 2,
        members_max: 3,
        state_bytes_max: 64,
        message_bytes_max: 300,
        followers_max: 2,
        queue_max: 64,
        ttl_min: Duration::from_millis(50),
        ttl_max: LONG,
        sweep: Duration::from_millis(20),
        ..PresenceLimits::default()
    }
}

pub fn room_of(tenant: &str, name: &str) -> RoomId {
    RoomId { tenant: TenantId::new(tenant).unwrap(), name: RoomName::new(name).unwrap() }
}

pub fn room(name: &str) -> RoomId {
    room_of("acme", name)
}

pub fn name(name: &str) -> MemberName {
    MemberName::new(name).unwrap()
}

fn with(state: &str, ttl: Duration) -> Join {
    Join { state: Some(Bytes::copy_from_slice(state.as_bytes())), ttl }
}

fn heartbeat(ttl: Duration) -> Join {
    Join { state: None, ttl }
}

pub async fn join(presence: &Arc<dyn Presence>, room: &RoomId, member: &str, state: &str) -> Joined {
    presence.join(room, &name(member), with(state, LONG)).await.unwrap()
}

pub async fn say(presence: &Arc<dyn Presence>, room: &RoomId, text: &str) -> u64 {
    presence.say(room, None, Bytes::copy_from_slice(text.as_bytes())).await.unwrap()
}

pub async fn next(follower: &mut Follower) -> Notice {
    tokio::time::timeout(SOON, follower.next()).await.expect("something comes").unwrap()
}

/// The next notice, which is a roster.
pub async fn next_roster(follower: &mut Follower) -> Arc<Roster> {
    match next(follower).await {
        Notice::Roster(roster) => roster,
        other => panic!("{other:?}"),
    }
}

/// The next notice, which is a change.
pub async fn next_change(follower: &mut Follower) -> Arc<Change> {
    match next(follower).await {
        Notice::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

/// Follows a room, and answers the first roster's members too.
pub async fn follow(presence: &Arc<dyn Presence>, room: &RoomId) -> (Follower, Vec<String>) {
    let mut follower = presence.follow(room).await.unwrap();
    let members = members(&*next_roster(&mut follower).await);
    (follower, members)
}

/// `name=state` of each member.
pub fn members(roster: &Roster) -> Vec<String> {
    let text = |state: &Bytes| String::from_utf8(state.to_vec()).unwrap();
    roster.members.iter().map(|member| format!("{}={}", member.name, text(&member.state))).collect()
}

/// What happened, short enough to compare.
pub fn told(change: &Change) -> String {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    match &change.what {
        What::Joined(member) => format!("join {}={}", member.name, text(&member.state)),
        What::Updated { member, state } => format!("update {member}={}", text(state)),
        What::Left { member, reason } => format!("leave {member} {}", reason.as_str()),
        What::Said { from, payload } => {
            format!("{}: {}", from.as_ref().map_or("", MemberName::as_str), text(payload))
        }
    }
}

async fn told_next(follower: &mut Follower) -> String {
    told(&*next_change(follower).await)
}

pub async fn c22_what_is_said_once_a_follower_is_ready_arrives_intact(stage: Stage) {
    let lobby = room("lobby");
    let (mut near, _) = follow(&stage.one, &lobby).await;
    let (mut far, _) = follow(&stage.other, &lobby).await;
    let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
    for payload in [all, Bytes::new(), Bytes::from_static(b"{\"a\":9007199254740993}")] {
        let sequence = stage.one.say(&lobby, Some(&name("ann")), payload.clone()).await.unwrap();
        let what = What::Said { from: Some(name("ann")), payload };
        for follower in [&mut near, &mut far] {
            assert_eq!(*next_change(follower).await, Change { sequence, what: what.clone() });
        }
    }
}

pub async fn joins_updates_and_leaves_are_told_and_staying_is_not(stage: Stage) {
    let lobby = room("lobby");
    assert!(
        matches!(join(&stage.one, &lobby, "ann", "1").await, Joined::New(roster) if members(&roster) == ["ann=1"])
    );
    let (mut follower, first) = follow(&stage.other, &lobby).await;
    assert_eq!(first, ["ann=1"]);
    let stays = stage.one.join(&lobby, &name("ann"), heartbeat(LONG)).await.unwrap();
    assert_eq!((stays, join(&stage.other, &lobby, "ann", "1").await), (Joined::Stays, Joined::Stays));
    let Joined::Updated { sequence } = join(&stage.other, &lobby, "ann", "2").await else { panic!() };
    let Joined::New(roster) = stage.one.join(&lobby, &name("bob"), heartbeat(LONG)).await.unwrap() else {
        panic!()
    };
    assert_eq!(members(&roster), ["ann=2", "bob="]);
    assert!(stage.one.leave(&lobby, &name("ann")).await.unwrap());
    assert!(!stage.other.leave(&lobby, &name("ann")).await.unwrap(), "it has left");
    say(&stage.one, &lobby, "end").await;
    let update = next_change(&mut follower).await;
    assert_eq!((update.sequence, told(&update).as_str()), (sequence, "update ann=2"));
    for expected in ["join bob=", "leave ann left", ": end"] {
        assert_eq!(told_next(&mut follower).await, expected);
    }
    let roster = stage.other.roster(&lobby).await.unwrap();
    assert_eq!(members(&roster), ["bob="]);
}

pub async fn a_member_that_stays_away_leaves_exactly_once(stage: Stage) {
    let lobby = room("lobby");
    let (mut near, _) = follow(&stage.one, &lobby).await;
    let (mut far, _) = follow(&stage.other, &lobby).await;
    stage.one.join(&lobby, &name("ann"), with("1", SHORT)).await.unwrap();
    let expected = What::Left { member: name("ann"), reason: LeaveReason::Expired };
    for follower in [&mut near, &mut far] {
        assert_eq!(told_next(follower).await, "join ann=1");
        assert_eq!(next_change(follower).await.what, expected);
    }
    assert_eq!(members(&stage.one.roster(&lobby).await.unwrap()), [""; 0]);
    assert!(matches!(join(&stage.other, &lobby, "ann", "2").await, Joined::New(_)), "it comes anew");
    for follower in [&mut near, &mut far] {
        assert_eq!(told_next(follower).await, "join ann=2");
    }
}

pub async fn a_member_that_is_heard_of_stays(stage: Stage) {
    let lobby = room("lobby");
    let (mut follower, _) = follow(&stage.one, &lobby).await;
    // Many times what lies between two heartbeats, on a machine that has other things to do.
    let ttl = Duration::from_secs(3);
    stage.one.join(&lobby, &name("ann"), with("1", ttl)).await.unwrap();
    stage.one.join(&lobby, &name("bob"), with("1", ttl)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let heard = stage.other.join(&lobby, &name("ann"), heartbeat(ttl)).await.unwrap();
        assert_eq!(heard, Joined::Stays);
        // How often it is heard of, and nothing that is waited for.
        if let Ok(notice) = tokio::time::timeout(Duration::from_millis(50), follower.next()).await {
            let Notice::Change(change) = notice.unwrap() else { panic!() };
            seen.push(told(&change));
        }
    }
    assert_eq!(seen, ["join ann=1", "join bob=1", "leave bob expired"]);
    assert_eq!(members(&stage.other.roster(&lobby).await.unwrap()), ["ann=1"]);
}

pub async fn what_one_sender_says_is_heard_in_order(stage: Stage) {
    let lobby = room("lobby");
    let (mut follower, _) = follow(&stage.other, &lobby).await;
    for n in 0..50 {
        say(&stage.one, &lobby, &n.to_string()).await;
    }
    let mut last = 0;
    for n in 0..50 {
        let change = next_change(&mut follower).await;
        assert_eq!(told(&change), format!(": {n}"));
        assert!(change.sequence > last, "{} after {last}", change.sequence);
        last = change.sequence;
    }
}

/// What a follower knows of a room, by what it was given.
#[derive(Debug, Default)]
struct Known {
    members: BTreeMap<String, String>,
    sequence: u64,
}

impl Known {
    fn take(&mut self, notice: &Notice) {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        match notice {
            Notice::Gap(_) => {}
            Notice::Roster(roster) => {
                let held = roster.members.iter().map(|m| (m.name.to_string(), text(&m.state)));
                (self.members, self.sequence) = (held.collect(), roster.sequence);
            }
            Notice::Change(change) => {
                assert!(change.sequence > self.sequence, "{change:?} after {}", self.sequence);
                self.sequence = change.sequence;
                match &change.what {
                    What::Joined(member) => {
                        let before = self.members.insert(member.name.to_string(), text(&member.state));
                        assert_eq!(before, None, "{change:?}");
                    }
                    What::Updated { member, state } => {
                        let before = self.members.insert(member.to_string(), text(state));
                        assert!(before.is_some_and(|before| before != text(state)), "{change:?}");
                    }
                    What::Left { member, .. } => {
                        assert!(self.members.remove(member.as_str()).is_some(), "{change:?}");
                    }
                    What::Said { .. } => {}
                }
            }
        }
    }
}

pub async fn a_roster_and_what_comes_after_it_have_no_hole_and_no_double(stage: Stage) {
    let lobby = room("lobby");
    let writer = {
        let (stage, lobby) = (stage.clone(), lobby.clone());
        async move {
            for n in 0..400 {
                let host = if n % 2 == 0 { &stage.one } else { &stage.other };
                let member = ["ann", "bob", "cleo"][n % 3];
                if n % 7 == 6 {
                    host.leave(&lobby, &name(member)).await.unwrap();
                } else {
                    join(host, &lobby, member, &n.to_string()).await;
                }
                tokio::task::yield_now().await;
            }
            // Until everybody has heard it: who comes late has missed the one before.
            loop {
                say(&stage.one, &lobby, "end").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let follower = |host: Arc<dyn Presence>| {
        let lobby = lobby.clone();
        async move {
            let mut attached = 0;
            loop {
                // Comes and goes in the middle of it all; the last one stays to the end.
                let mut follower = host.follow(&lobby).await.unwrap();
                attached += 1;
                let mut known = Known::default();
                for n in 0.. {
                    let notice = next(&mut follower).await;
                    assert!(!matches!(notice, Notice::Gap(_)), "nobody was slow");
                    known.take(&notice);
                    let said = matches!(&notice, Notice::Change(c) if matches!(c.what, What::Said { .. }));
                    if said {
                        return (known.members, attached);
                    }
                    if attached < 8 && n > 6 {
                        break;
                    }
                }
            }
        }
    };
    let near = follower(Arc::clone(&stage.one));
    let far = follower(Arc::clone(&stage.other));
    let (near, far) = tokio::select! {
        () = writer => unreachable!("it speaks until it is dropped"),
        both = async { tokio::join!(near, far) } => both,
    };
    let roster = stage.one.roster(&lobby).await.unwrap();
    let held: BTreeMap<String, String> = members(&roster)
        .iter()
        .map(|one| one.split_once('=').unwrap())
        .map(|(a, b)| (a.into(), b.into()))
        .collect();
    assert_eq!(near.0, held);
    assert_eq!(far.0, held);
    assert!(near.1 > 1 && far.1 > 1, "they came in the middle: {near:?} {far:?}");
}

pub async fn a_slow_follower_is_told_of_a_gap_and_given_the_roster(stage: Stage) {
    let lobby = room("lobby");
    let (mut slow, _) = follow(&stage.one, &lobby).await;
    let (mut quick, _) = follow(&stage.one, &lobby).await;
    join(&stage.other, &lobby, "ann", "1").await;
    for n in 0..80 {
        say(&stage.other, &lobby, &n.to_string()).await;
        next(&mut quick).await;
    }
    assert_eq!(told_next(&mut quick).await, ": 79");
    assert_eq!(next(&mut slow).await, Notice::Gap(GapCause::Overflow));
    // What comes between the gap and its roster is not lost either.
    say(&stage.other, &lobby, "later").await;
    assert_eq!(told_next(&mut quick).await, ": later");
    assert_eq!(members(&*next_roster(&mut slow).await), ["ann=1"]);
    say(&stage.other, &lobby, "last").await;
    loop {
        if told_next(&mut slow).await == ": last" {
            return;
        }
    }
}

pub async fn tenants_have_rooms_of_their_own(stage: Stage) {
    let (ours, theirs) = (room("lobby"), room_of("rival", "lobby"));
    let (mut follower, _) = follow(&stage.one, &ours).await;
    join(&stage.one, &theirs, "mallory", "1").await;
    say(&stage.one, &theirs, "boo").await;
    assert!(!stage.one.leave(&ours, &name("mallory")).await.unwrap());
    assert_eq!(members(&stage.other.roster(&ours).await.unwrap()), [""; 0]);
    join(&stage.one, &ours, "ann", "1").await;
    assert_eq!(told_next(&mut follower).await, "join ann=1");
    assert_eq!(members(&stage.other.roster(&theirs).await.unwrap()), ["mallory=1"]);
}

pub async fn names_may_be_anything_that_can_be_shown(stage: Stage) {
    let odd = room("asset/A 1:b{c}%*?");
    let (mut follower, _) = follow(&stage.one, &odd).await;
    join(&stage.other, &odd, "Zoë 👋 <a@b.example>", "").await;
    assert_eq!(told_next(&mut follower).await, "join Zoë 👋 <a@b.example>=");
    for wrong in [String::new(), "x".repeat(129), "a\nb".into(), "a\0".into()] {
        assert!(RoomName::new(&wrong).is_err() && MemberName::new(&wrong).is_err(), "{wrong:?}");
    }
}

fn limit<T: std::fmt::Debug>(result: Result<T, PresenceError>) -> (&'static str, u64, u64) {
    match result {
        Err(PresenceError::Limit { limit, asked, max, .. }) => (limit, asked, max),
        Err(error @ PresenceError::Ttl { asked, max, .. }) => (error.code(), asked, max),
        other => panic!("{other:?}"),
    }
}

pub async fn every_bound_is_kept_and_named(stage: Stage) {
    let [lobby, hall, attic] = [room("lobby"), room("hall"), room("attic")];
    for member in ["ann", "bob", "cleo"] {
        join(&stage.one, &lobby, member, "").await;
    }
    let more = stage.other.join(&lobby, &name("dan"), heartbeat(LONG)).await;
    assert_eq!(limit(more), ("presence_members_max", 4, 3));
    assert!(matches!(join(&stage.other, &lobby, "ann", "2").await, Joined::Updated { .. }), "it is there");
    join(&stage.one, &hall, "ann", "").await;
    let more = stage.other.join(&attic, &name("ann"), heartbeat(LONG)).await;
    assert_eq!(limit(more), ("presence_rooms_max", 3, 2));
    assert!(matches!(join(&stage.one, &room_of("rival", "attic"), "ann", "").await, Joined::New(_)));
    // A room is gone with its last member.
    stage.one.leave(&hall, &name("ann")).await.unwrap();
    assert!(matches!(join(&stage.other, &attic, "ann", "").await, Joined::New(_)));

    let large = |bytes: usize| with(&"x".repeat(bytes), LONG);
    assert!(stage.one.join(&lobby, &name("ann"), large(64)).await.is_ok());
    let state = stage.one.join(&lobby, &name("ann"), large(65)).await;
    assert_eq!(limit(state), ("presence_state_bytes_max", 65, 64));
    let message = stage.one.say(&lobby, None, vec![0; 301].into()).await;
    assert_eq!(limit(message), ("presence_message_bytes_max", 301, 300));
    let brief = stage.one.join(&lobby, &name("ann"), heartbeat(Duration::from_millis(49))).await;
    assert_eq!(limit(brief), ("presence_ttl_ms", 49, 60_000));
    let endless = stage.one.join(&lobby, &name("ann"), heartbeat(LONG + SHORT)).await;
    assert_eq!(limit(endless).0, "presence_ttl_ms");

    let first = stage.one.follow(&lobby).await.unwrap();
    let _second = stage.one.follow(&lobby).await.unwrap();
    assert_eq!(limit(stage.one.follow(&lobby).await), ("presence_followers_max", 3, 2));
    drop(first);
    assert!(stage.one.follow(&lobby).await.is_ok(), "a place is free again");
}

#[macro_export]
macro_rules! presence_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, presence, $setup;
            c22_what_is_said_once_a_follower_is_ready_arrives_intact,
            joins_updates_and_leaves_are_told_and_staying_is_not,
            a_member_that_stays_away_leaves_exactly_once,
            a_member_that_is_heard_of_stays,
            what_one_sender_says_is_heard_in_order,
            a_roster_and_what_comes_after_it_have_no_hole_and_no_double,
            a_slow_follower_is_told_of_a_gap_and_given_the_roster,
            tenants_have_rooms_of_their_own,
            names_may_be_anything_that_can_be_shown,
            every_bound_is_kept_and_named);
    };
}
