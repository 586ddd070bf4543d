//! What every memory of the control feed must do with what this host tells the fleet.

use std::time::Duration;

use millrace::control::{
    Claimed, ControlEvent, ControlFeedError, ControlStore, Entry, EventId, Proposed, PublishOutcome,
    Quarantined, Settlement,
};
use millrace::event::Micros;

use super::control_store::Stage;
use crate::control::{NOW, OUTBOX_EVENTS_MAX, deployed, id, of_a_new_kind, sign, trust_changed, unsigned, v};
use crate::control_events::trusted;

const LEASE: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(10);

fn new(plugin: &str, revision: u64) -> Proposed {
    Proposed { entity: format!("plugin:{plugin}"), revision, repeated: false }
}

fn settled(claimed: &Claimed, outcome: PublishOutcome) -> Vec<Settlement> {
    vec![Settlement { event: claimed.event.id().clone(), claim: claimed.claim, outcome }]
}

fn refused(again: Option<Duration>) -> PublishOutcome {
    PublishOutcome::Refused { error: "the feed is away".into(), again }
}

async fn claim(store: &dyn ControlStore, limit: usize) -> Vec<Claimed> {
    store.claim(limit, LEASE).await.unwrap()
}

fn ids(claimed: &[Claimed]) -> Vec<EventId> {
    claimed.iter().map(|claimed| claimed.event.id().clone()).collect()
}

async fn told(store: &dyn ControlStore) -> Vec<(String, u64)> {
    store.proposed().await.unwrap().into_iter().map(|row| (row.entity, row.revision)).collect()
}

fn later(stage: &Stage, by: Duration) {
    let now = millrace::clock::Clock::now(&*stage.clock).0;
    stage.clock.set(Micros(now + i64::try_from(by.as_micros()).unwrap()));
}

/// C34, C58: what stands is compared with what the change was made on, and the event waits with the state in one commit.
pub async fn c34_c58_w9_a_proposal_is_compared_and_kept(stage: Stage) {
    let store = stage.open();
    assert_eq!(store.propose(&deployed(1, "p", 1)).await.unwrap(), new("p", 1));
    let stale = store.propose(&deployed(2, "p", 1)).await.unwrap_err();
    assert!(
        matches!(&stale, ControlFeedError::RevisionConflict { entity, expected: 0, found: 1 } if entity == "plugin:p")
    );
    let ahead = store.propose(&deployed(3, "p", 3)).await.unwrap_err();
    assert!(matches!(ahead, ControlFeedError::RevisionConflict { expected: 2, found: 1, .. }));
    assert_eq!(store.propose(&deployed(4, "p", 2)).await.unwrap(), new("p", 2));
    assert_eq!(store.propose(&deployed(5, "q", 1)).await.unwrap(), new("q", 1));
    drop(store);
    let store = stage.open();
    assert_eq!(told(&*store).await, [("plugin:p".into(), 2), ("plugin:q".into(), 1)]);
    let status = store.outbox().await.unwrap();
    assert_eq!((status.waiting, status.dead, status.oldest_at), (3, 0, Some(NOW.0)));
    assert_eq!(store.told(&id(2)).await.unwrap(), None, "what was refused left nothing");
    assert_eq!(store.told(&id(4)).await.unwrap().unwrap().version, None);
    assert!(store.desired().await.unwrap().1.is_empty(), "what hosts run is the feed's to say");
}

/// The same event again answers the same, before and after it is in the feed; other content under its id is refused.
pub async fn the_same_proposal_again_is_the_same(stage: Stage) {
    let store = stage.open();
    let event = deployed(1, "p", 1);
    store.propose(&event).await.unwrap();
    let repeated = Proposed { repeated: true, ..new("p", 1) };
    assert_eq!(store.propose(&event).await.unwrap(), repeated);
    store.propose(&deployed(2, "p", 2)).await.unwrap();
    assert_eq!(store.propose(&event).await.unwrap(), repeated, "whatever stands by now");
    let other = store.propose(&sign(&unsigned(1, "p", 3, 9))).await.unwrap_err();
    assert!(matches!(other, ControlFeedError::EventIdTaken { .. }), "{other}");
    for claimed in claim(&*store, 9).await {
        store.settle(settled(&claimed, PublishOutcome::Published(v(4)))).await.unwrap();
    }
    let store = stage.open();
    assert_eq!(store.propose(&event).await.unwrap(), repeated);
    assert_eq!(store.outbox().await.unwrap().waiting, 0, "and it is not told twice");
    // One that came here through the feed is known, too.
    let foreign = deployed(7, "f", 1);
    store.apply(v(9), &foreign).await.unwrap();
    assert!(store.propose(&foreign).await.unwrap().repeated);
    let other = store.propose(&sign(&unsigned(7, "f", 2, 9))).await.unwrap_err();
    assert!(matches!(other, ControlFeedError::EventIdTaken { .. }), "{other}");
}

/// What the feed brought is ahead of what was told here: a proposal is never made on less.
pub async fn a_proposal_stands_on_what_the_feed_brought(stage: Stage) {
    let store = stage.open();
    store.apply(v(1), &deployed(1, "p", 5)).await.unwrap();
    let below = store.propose(&deployed(2, "p", 1)).await.unwrap_err();
    assert!(matches!(below, ControlFeedError::RevisionConflict { found: 5, .. }));
    store.propose(&deployed(3, "p", 6)).await.unwrap();
    assert_eq!(told(&*store).await, [("plugin:p".into(), 6)]);
    store.apply(v(2), &deployed(4, "p", 8)).await.unwrap();
    assert_eq!(told(&*store).await, [("plugin:p".into(), 8)]);
    let row = &store.proposed().await.unwrap()[0];
    assert_eq!((row.event.id(), row.version), (&id(4), v(2)));
    // Of one revision, what is in the feed stands.
    store.propose(&deployed(5, "q", 1)).await.unwrap();
    store.apply(v(3), &deployed(6, "q", 1)).await.unwrap();
    assert_eq!(store.proposed().await.unwrap()[1].event.id(), &id(6));
}

/// C35: what cannot be told is not kept.
pub async fn c35_what_cannot_be_told_is_refused(stage: Stage) {
    let store = stage.open();
    let unknown = store.propose(&of_a_new_kind(1)).await.unwrap_err();
    assert!(matches!(unknown, ControlFeedError::InvalidEvent { .. }), "{unknown}");
    assert_eq!(store.outbox().await.unwrap().waiting, 0);
    store.propose(&trust_changed(2, 1, trusted())).await.unwrap();
    assert_eq!(told(&*store).await, [("trust".into(), 1)]);
}

/// C31, C33: in the order of their proposals, once, and with the version written back.
pub async fn c31_c33_claims_are_in_order_and_end_with_a_version(stage: Stage) {
    let store = stage.open();
    for (number, plugin, revision) in [(1, "p", 1), (2, "q", 1), (3, "p", 2), (4, "r", 1)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    let first = claim(&*store, 3).await;
    assert_eq!(ids(&first), [id(1), id(2), id(3)]);
    assert_eq!(first[0].event, deployed(1, "p", 1));
    let rest = claim(&*store, 9).await;
    assert_eq!(ids(&rest), [id(4)], "what is claimed is not claimed twice");
    assert!(claim(&*store, 9).await.is_empty());
    let published: Vec<_> = first
        .iter()
        .zip([10, 11, 12])
        .flat_map(|(claimed, version)| settled(claimed, PublishOutcome::Published(v(version))))
        .collect();
    store.settle(published).await.unwrap();
    let versions = |store: std::sync::Arc<dyn ControlStore>| async move {
        let mut versions = Vec::new();
        for number in 1..=4 {
            versions.push(store.told(&id(number)).await.unwrap().unwrap().version);
        }
        versions
    };
    assert_eq!(versions(stage.open()).await, [Some(v(10)), Some(v(11)), Some(v(12)), None]);
    assert_eq!(stage.open().outbox().await.unwrap().waiting, 1);
}

/// C32: a refused event waits with its error and one attempt more; its entity waits with it and nobody else.
pub async fn c32_w5_a_refused_event_holds_its_entity_only(stage: Stage) {
    let store = stage.open();
    for (number, plugin, revision) in [(1, "p", 1), (2, "p", 2), (3, "q", 1), (4, "p", 3)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    let claimed = claim(&*store, 3).await;
    assert_eq!(ids(&claimed), [id(1), id(2), id(3)]);
    assert_eq!(claimed[0].attempts, 0);
    store.settle(settled(&claimed[0], refused(Some(WAIT)))).await.unwrap();
    assert!(claim(&*store, 9).await.is_empty(), "what is behind it was given back, and waits");
    store.settle(settled(&claimed[2], PublishOutcome::Published(v(1)))).await.unwrap();
    assert_eq!(store.next_due().await.unwrap(), Some(WAIT));
    later(&stage, WAIT - Duration::from_millis(1));
    assert!(claim(&*store, 9).await.is_empty());
    later(&stage, Duration::from_millis(1));
    let store = stage.open();
    assert_eq!(store.next_due().await.unwrap(), Some(Duration::ZERO));
    let again = claim(&*store, 9).await;
    assert_eq!(ids(&again), [id(1), id(2), id(4)]);
    assert_eq!((again[0].attempts, again[1].attempts), (1, 0));
}

/// A claim that has ended is another's: its holder can say that an event is in the feed, and nothing else.
pub async fn a_claim_that_has_ended_decides_nothing(stage: Stage) {
    let store = stage.open();
    store.propose(&deployed(1, "p", 1)).await.unwrap();
    let slow = claim(&*store, 1).await.remove(0);
    assert_eq!(store.next_due().await.unwrap(), Some(LEASE));
    later(&stage, LEASE);
    let other = claim(&*store, 1).await.remove(0);
    assert_ne!(slow.claim, other.claim);
    store.settle(settled(&slow, refused(None))).await.unwrap();
    store.settle(settled(&slow, PublishOutcome::GivenBack)).await.unwrap();
    assert_eq!(store.outbox().await.unwrap().dead, 0);
    assert!(claim(&*store, 1).await.is_empty(), "it is still the other's");
    store.settle(settled(&slow, PublishOutcome::Published(v(3)))).await.unwrap();
    assert_eq!(store.told(&id(1)).await.unwrap().unwrap().version, Some(v(3)));
    store.settle(settled(&other, refused(None))).await.unwrap();
    store.settle(settled(&other, PublishOutcome::Published(v(3)))).await.unwrap();
    let status = store.outbox().await.unwrap();
    assert_eq!((status.waiting, status.dead), (0, 0));
    assert_eq!(store.next_due().await.unwrap(), None);
}

pub async fn what_is_given_back_is_due_at_once(stage: Stage) {
    let store = stage.open();
    store.propose(&deployed(1, "p", 1)).await.unwrap();
    let claimed = claim(&*store, 1).await.remove(0);
    store.settle(settled(&claimed, PublishOutcome::GivenBack)).await.unwrap();
    let again = claim(&*store, 1).await.remove(0);
    assert_eq!(again.attempts, 0);
    assert_ne!(again.claim, claimed.claim);
}

/// A dead letter holds its own entity, until somebody tries it again.
pub async fn a_dead_letter_holds_its_entity_until_it_is_retried(stage: Stage) {
    let store = stage.open();
    for (number, plugin, revision) in [(1, "p", 1), (2, "p", 2), (3, "q", 1)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    let claimed = claim(&*store, 1).await.remove(0);
    store.settle(settled(&claimed, refused(None))).await.unwrap();
    let store = stage.open();
    let letters = store.letters(9).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((&letter.event, letter.entity.as_str(), letter.revision), (&id(1), "plugin:p", 1));
    assert_eq!((letter.attempts, letter.error.as_str(), letter.at), (1, "the feed is away", NOW.0));
    let status = store.outbox().await.unwrap();
    assert_eq!((status.waiting, status.dead), (3, 1));
    let others = claim(&*store, 9).await;
    assert_eq!(ids(&others), [id(3)]);
    store.settle(settled(&others[0], PublishOutcome::Published(v(1)))).await.unwrap();
    assert_eq!(store.next_due().await.unwrap(), None, "all that is left is dead, or behind it");
    assert!(!store.retry_letter(&id(2)).await.unwrap(), "that is no dead letter");
    assert!(store.retry_letter(&id(1)).await.unwrap());
    assert!(!store.retry_letter(&id(1)).await.unwrap());
    assert_eq!(ids(&claim(&*store, 9).await), [id(1), id(2)]);
}

/// What stood before it stands again; what was proposed on it goes on.
pub async fn a_discarded_letter_is_as_never_told(stage: Stage) {
    let store = stage.open();
    store.propose(&deployed(1, "p", 1)).await.unwrap();
    let claimed = claim(&*store, 1).await.remove(0);
    store.settle(settled(&claimed, PublishOutcome::Published(v(1)))).await.unwrap();
    for (number, plugin, revision) in [(2, "p", 2), (3, "q", 1), (4, "q", 2)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    for claimed in claim(&*store, 9).await {
        if claimed.event.unsigned().event_id != id(4) {
            store.settle(settled(&claimed, refused(None))).await.unwrap();
        }
    }
    assert!(!store.discard_letter(&id(4)).await.unwrap(), "that is no dead letter");
    assert!(store.discard_letter(&id(2)).await.unwrap());
    assert!(store.discard_letter(&id(3)).await.unwrap());
    assert!(!store.discard_letter(&id(3)).await.unwrap());
    let store = stage.open();
    assert_eq!(told(&*store).await, [("plugin:p".into(), 1), ("plugin:q".into(), 2)]);
    assert_eq!(ids(&claim(&*store, 9).await), [id(4)]);
    assert_eq!(store.propose(&deployed(5, "p", 2)).await.unwrap(), new("p", 2));
    assert_eq!(store.told(&id(2)).await.unwrap(), None);
}

/// What the applier sees in the feed need not be carried any more, whatever became of it here.
pub async fn what_the_feed_brings_back_has_arrived(stage: Stage) {
    let store = stage.open();
    for (number, plugin) in [(1, "p"), (2, "q"), (3, "r")] {
        store.propose(&deployed(number, plugin, 1)).await.unwrap();
    }
    let claimed = claim(&*store, 2).await;
    store.settle(settled(&claimed[0], refused(None))).await.unwrap();
    let entry = |version, event| Entry::Event { version: v(version), event };
    store.take(vec![entry(1, deployed(1, "p", 1)), entry(2, deployed(2, "q", 1))]).await.unwrap();
    // Not the one under the same id with other content.
    store.take(vec![entry(3, sign(&unsigned(3, "r", 1, 99)))]).await.unwrap();
    let store = stage.open();
    let status = store.outbox().await.unwrap();
    assert_eq!((status.waiting, status.dead), (1, 0));
    assert_eq!(store.told(&id(1)).await.unwrap().unwrap().version, Some(v(1)));
    assert_eq!(store.told(&id(2)).await.unwrap().unwrap().version, Some(v(2)));
    assert_eq!(store.told(&id(3)).await.unwrap().unwrap().version, None);
    store.settle(settled(&claimed[1], refused(None))).await.unwrap();
    assert_eq!(store.outbox().await.unwrap().dead, 0);
}

/// What came into the feed from here and counts nowhere is not built on: what stood before it stands again, and what waits on
/// it is somebody's to look at.
pub async fn what_is_set_aside_is_built_on_no_more(stage: Stage) {
    let store = stage.open();
    for number in 1..=2 {
        store.propose(&deployed(number, "p", number)).await.unwrap();
        let claimed = claim(&*store, 9).await.remove(0);
        store.settle(settled(&claimed, PublishOutcome::Published(v(number)))).await.unwrap();
    }
    for (number, plugin, revision) in [(3, "p", 3), (4, "p", 4), (5, "q", 1)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    store.apply(v(1), &deployed(1, "p", 1)).await.unwrap();
    let late = deployed(2, "p", 2);
    let aside = || Entry::SetAside {
        quarantined: Quarantined::new(v(2), late.id().as_str(), "control_event_out_of_time", "it expired", 0),
        event: Some(late.clone()),
    };
    store.take(vec![aside()]).await.unwrap();
    let store = stage.open();
    let letters = store.letters(9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| &letter.event).collect::<Vec<_>>(), [&id(3), &id(4)]);
    assert!(letters[0].error.contains(late.id().as_str()), "{}", letters[0].error);
    assert_eq!(ids(&claim(&*store, 9).await), [id(5)]);
    for letter in [4, 3] {
        assert!(store.discard_letter(&id(letter)).await.unwrap());
    }
    assert_eq!(told(&*store).await, [("plugin:p".into(), 1), ("plugin:q".into(), 1)]);
    // What is made on what stands goes on, also when the other one comes again.
    assert_eq!(store.propose(&deployed(6, "p", 2)).await.unwrap(), new("p", 2));
    store.take(vec![aside()]).await.unwrap();
    assert_eq!(store.outbox().await.unwrap().dead, 0);
}

/// Of two origins' changes one came first; what this one has made of its own does not go on.
pub async fn what_was_made_on_a_change_that_came_second_waits_for_somebody(stage: Stage) {
    for comes_back in [false, true] {
        let store = stage.open();
        let plugin = if comes_back { "p" } else { "q" };
        let number = |n: u64| n + if comes_back { 10 } else { 0 };
        let at = |n: u64| v(number(n));
        let own = deployed(number(1), plugin, 1);
        store.propose(&own).await.unwrap();
        store.propose(&deployed(number(2), plugin, 2)).await.unwrap();
        let claimed = claim(&*store, 1).await.remove(0);
        store.settle(settled(&claimed, PublishOutcome::Published(at(2)))).await.unwrap();
        let entry = |version, event: &ControlEvent| Entry::Event { version, event: event.clone() };
        let other = entry(at(1), &deployed(number(9), plugin, 1));
        let own = entry(at(2), &own);
        // The other one may come here first, or late.
        store.take(if comes_back { vec![own, other] } else { vec![other, own] }).await.unwrap();
        let letters = store.letters(9).await.unwrap();
        assert_eq!(letters.iter().map(|letter| &letter.event).collect::<Vec<_>>(), [&id(number(2))]);
        assert!(store.discard_letter(&id(number(2))).await.unwrap());
        let stands = store.proposed().await.unwrap();
        let stands = stands.iter().find(|row| row.entity == format!("plugin:{plugin}")).unwrap();
        assert_eq!(stands.event.id(), &id(number(9)));
        assert_eq!(store.propose(&deployed(number(3), plugin, 2)).await.unwrap(), new(plugin, 2));
        for claimed in claim(&*store, 9).await {
            store.settle(settled(&claimed, PublishOutcome::Published(at(5)))).await.unwrap();
        }
    }
}

/// A clock that was far ahead once keeps nobody waiting for it.
pub async fn a_clock_that_goes_back_holds_nothing_up(stage: Stage) {
    let store = stage.open();
    for (number, plugin) in [(1, "p"), (2, "q")] {
        store.propose(&deployed(number, plugin, 1)).await.unwrap();
    }
    later(&stage, Duration::from_secs(100_000));
    let claimed = claim(&*store, 9).await;
    store.settle(settled(&claimed[0], refused(Some(WAIT)))).await.unwrap();
    stage.clock.set(NOW);
    assert_eq!(ids(&claim(&*store, 9).await), [id(1), id(2)]);
}

/// Beyond the bound a proposal is refused, and nothing of it stays.
pub async fn a_full_outbox_refuses_more(stage: Stage) {
    let store = stage.open();
    let most = OUTBOX_EVENTS_MAX;
    for n in 1..=most {
        store.propose(&deployed(n, "p", n)).await.unwrap();
    }
    let over = store.propose(&deployed(most + 1, "q", 1)).await.unwrap_err();
    assert!(
        matches!(over, ControlFeedError::Limit { limit: "control_outbox_events_max", max, .. } if max == most)
    );
    assert_eq!(told(&*store).await, [("plugin:p".into(), most)]);
    let claimed = claim(&*store, 1).await.remove(0);
    store.settle(settled(&claimed, PublishOutcome::Published(v(1)))).await.unwrap();
    store.propose(&deployed(most + 1, "q", 1)).await.unwrap();
}

/// Runs the whole suite for one backend: `control_outbox_conformance!(memory, setup)`.
#[macro_export]
macro_rules! control_outbox_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, control_outbox, $setup;
            c34_c58_w9_a_proposal_is_compared_and_kept,
            the_same_proposal_again_is_the_same,
            a_proposal_stands_on_what_the_feed_brought,
            c35_what_cannot_be_told_is_refused,
            c31_c33_claims_are_in_order_and_end_with_a_version,
            c32_w5_a_refused_event_holds_its_entity_only,
            a_claim_that_has_ended_decides_nothing,
            what_is_given_back_is_due_at_once,
            a_dead_letter_holds_its_entity_until_it_is_retried,
            a_discarded_letter_is_as_never_told,
            what_the_feed_brings_back_has_arrived,
            what_is_set_aside_is_built_on_no_more,
            what_was_made_on_a_change_that_came_second_waits_for_somebody,
            a_clock_that_goes_back_holds_nothing_up,
            a_full_outbox_refuses_more,
        );
    };
}
