//! Dead letters, and what is done twice with one.

use millrace::event::{Event, EventBatch, Position};
use millrace::streams::groups::{DeadReason, GroupChange, GroupStart, LetterVerdict, Settled};

use super::{Stage, THREE_TRIES, labels};
use crate::conformance::effects::tenant;

/// Such a letter is an entry of the group at the same time: replaying it must not make it two.
pub async fn a_letter_that_the_group_was_moved_back_before_is_replayed_by_its_delivery(stage: Stage) {
    let id = stage.made(GroupChange { attempts_max: Some(1), ..THREE_TRIES }).await;
    let positions = stage.append(&["a1", "a2", "b1"]).await;
    let letters = async || stage.groups.letters(&id, Position::START, 10).await.unwrap().letters;
    let replay = async |at: usize| {
        stage.groups.decide(&id, positions[at], LetterVerdict::Replay).await.unwrap();
    };
    let first = stage.take(&id, "one", 1).await;
    assert_eq!(stage.nack(&id, &first[0], None).await, Settled::DeadLetter);
    stage.groups.seek(&id, GroupStart::Oldest).await.unwrap();
    let leased = stage.take(&id, "one", 1).await;
    assert_eq!(labels(&leased), ["a1"]);
    replay(0).await;
    assert_eq!(labels(&stage.take(&id, "two", 1).await), ["b1"], "a1 is out once");
    stage.ack(&id, &leased).await;
    assert_eq!(letters().await.len(), 0, "what is done needs no letter");
    assert_eq!(labels(&stage.take(&id, "two", 10).await), ["a2"]);
    let status = stage.status(&id).await;
    assert_eq!((status.dead_letters, status.in_flight, status.waiting), (0, 2, 0));

    // Both leases end, and both are letters; b1 is replayed while it is leased, and fails again.
    stage.advance(10_000);
    assert_eq!(letters().await.len(), 2);
    stage.groups.seek(&id, GroupStart::After(positions[1])).await.unwrap();
    let leased = stage.take(&id, "three", 10).await;
    assert_eq!(labels(&leased), ["b1"]);
    replay(2).await;
    stage.advance(10_000);
    let dead = letters().await;
    assert_eq!((dead.len(), dead[1].reason, dead[1].replaying), (2, DeadReason::LeaseExpired, false));
    assert_eq!((dead[1].consumer.as_str(), stage.status(&id).await.dead_letters), ("three", 2));
    for at in [1, 2] {
        replay(at).await;
    }
    let taken = stage.take(&id, "four", 10).await;
    assert_eq!(labels(&taken), ["a2", "b1"]);
    assert!(taken.iter().all(|delivery| delivery.replayed));
    stage.ack(&id, &taken).await;
    let status = stage.status(&id).await;
    assert_eq!((status.dead_letters, status.in_flight, status.waiting, status.lag_events), (0, 0, 0, 0));
}

/// Ten thousand letters of a megabyte each must not be one answer.
pub async fn a_page_of_letters_is_bound_in_bytes_and_says_whether_there_are_more(stage: Stage) {
    let id = stage.made(GroupChange { attempts_max: Some(1), ..THREE_TRIES }).await;
    let payload = format!("\"{}\"", "x".repeat(900_000));
    for version in 1..=6 {
        let mut batch = EventBatch::new(tenant("acme"));
        let (aggregate, event_type) = ("thing", "thing.made");
        let payload = payload.as_bytes();
        let event = Event { aggregate, agg_id: "a", version, event_type, payload, ..Event::default() };
        batch.push(&event).unwrap();
        stage.log.append(batch).await.unwrap();
        let taken = stage.take(&id, "one", 1).await;
        assert_eq!(stage.nack(&id, &taken[0], None).await, Settled::DeadLetter);
    }
    let first = stage.groups.letters(&id, Position::START, 100).await.unwrap();
    assert_eq!((first.letters.len(), first.more), (4, true), "4 MiB");
    let after = first.letters[3].position();
    let second = stage.groups.letters(&id, after, 2).await.unwrap();
    assert_eq!((second.letters.len(), second.more), (2, false));
    let one = stage.groups.letters(&id, after, 1).await.unwrap();
    assert_eq!((one.letters.len(), one.more), (1, true));
}
