//! What every backend of consumer groups must do.

use std::sync::Arc;
use std::time::Duration;

use millrace::clock::Clock;
use millrace::error::Classify;
use millrace::event::{Micros, Position};
use millrace::streams::StreamError;
use millrace::streams::groups::{
    GroupChange, GroupError, GroupRead, GroupStart, LetterVerdict, OnLost, Receipt, Refusal, Settle, Settled,
};

use super::effects::tenant;

mod ensuring;
mod letters;
mod refusals;
mod stage;

pub use ensuring::{
    a_tenants_groups_are_counted_on_all_of_its_streams_and_one_that_goes_makes_room,
    options_that_two_change_at_once_are_the_same_for_the_store_and_for_leases,
    sn06_a_group_that_begins_with_what_comes_gets_all_of_it,
    those_who_make_one_group_at_once_make_one_and_are_answered_alike,
};
pub use letters::{
    a_letter_that_the_group_was_moved_back_before_is_replayed_by_its_delivery,
    a_page_of_letters_is_bound_in_bytes_and_says_whether_there_are_more,
};
pub use refusals::{options_and_numbers_have_bounds, what_is_not_there_is_said_so};
pub use stage::{Stage, THREE_TRIES, append, changes, events, group, label, labels, named, read_of};

fn code(error: &GroupError) -> &'static str {
    error.code()
}

pub async fn c18_a_failed_entry_goes_to_a_second_consumer_and_the_others_are_seen_once(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1", "b1", "c1"]).await;
    let first = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&first), ["a1", "b1", "c1"]);
    assert!(first.iter().all(|delivery| delivery.attempt == 1 && !delivery.replayed));
    stage.ack(&id, &[first[0].clone(), first[2].clone()]).await;
    assert!(matches!(stage.nack(&id, &first[1], Some(0)).await, Settled::Retry(_)));
    let second = stage.take(&id, "two", 10).await;
    assert_eq!((labels(&second), second[0].attempt), (vec!["b1".to_owned()], 2));
    stage.ack(&id, &second).await;
    assert_eq!(stage.take(&id, "one", 10).await.len(), 0);
    assert_eq!(stage.status(&id).await.lag_events, 0);
}

pub async fn c19_a_group_on_a_populated_stream_begins_at_its_start(stage: Stage) {
    stage.append(&["a1", "b1"]).await;
    let id = stage.group("acme", "billing");
    let (_, created) = stage.groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    assert!(created);
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&taken), ["a1", "b1"]);
    stage.ack(&id, &taken).await;
    // Made again, it stays where it is, wherever it is said to begin.
    let change = GroupChange { lease_ms: Some(77), ..GroupChange::default() };
    let (status, created) = stage.groups.ensure(&id, GroupStart::Oldest, change).await.unwrap();
    assert_eq!((created, status.lag_events), (false, 0));
    assert_eq!((status.options.lease_ms, status.options.attempts_max), (77, 3), "what is named changes");
    stage.append(&["c1"]).await;
    assert_eq!(labels(&stage.take(&id, "one", 10).await), ["c1"]);
}

pub async fn a_group_may_begin_with_what_comes_or_behind_a_position(stage: Stage) {
    let positions = stage.append(&["a1", "b1", "c1"]).await;
    let (newest, behind) = (stage.group("acme", "newest"), stage.group("acme", "behind"));
    stage.groups.ensure(&newest, GroupStart::Newest, THREE_TRIES).await.unwrap();
    stage.groups.ensure(&behind, GroupStart::After(positions[1]), THREE_TRIES).await.unwrap();
    stage.append(&["d1"]).await;
    assert_eq!(labels(&stage.take(&newest, "one", 10).await), ["d1"]);
    assert_eq!(labels(&stage.take(&behind, "one", 10).await), ["c1", "d1"]);
    let ahead = stage.group("acme", "ahead");
    let start = GroupStart::After(Position(positions[2].0 + 100));
    let error = stage.groups.ensure(&ahead, start, THREE_TRIES).await.unwrap_err();
    assert_eq!(code(&error), "position_ahead");
    stage.trim_until(positions[2]).await;
    let error = stage.groups.ensure(&ahead, GroupStart::After(positions[0]), THREE_TRIES).await.unwrap_err();
    assert!(matches!(error, GroupError::Stream(StreamError::PositionLost { .. })), "{error:?}");
}

pub async fn sn1_a_failing_entry_is_tried_again_with_backoff_and_then_a_dead_letter(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let positions = stage.append(&["a1", "a2", "b1"]).await;
    let first = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&first), ["a1", "b1"], "a2 waits behind a1");
    let due = Micros(stage.clock.now().0 + 1_000_000);
    assert_eq!(stage.nack(&id, &first[0], None).await, Settled::Retry(due), "backoff_ms_min");
    assert_eq!(stage.take(&id, "one", 10).await.len(), 0, "not before it is due");
    stage.advance(1_000);
    let second = stage.take(&id, "one", 10).await;
    assert_eq!((labels(&second), second[0].attempt), (vec!["a1".to_owned()], 2));
    let due = Micros(stage.clock.now().0 + 1_500_000);
    assert_eq!(stage.nack(&id, &second[0], None).await, Settled::Retry(due), "doubled, up to backoff_ms_max");
    assert_eq!(stage.status(&id).await.retrying, 1);
    stage.advance(1_500);
    let third = stage.take(&id, "two", 10).await;
    assert_eq!(third[0].attempt, 3);
    assert_eq!(stage.nack(&id, &third[0], None).await, Settled::DeadLetter);
    assert_eq!(labels(&stage.take(&id, "one", 10).await), ["a2"], "the key goes on");
    let letters = stage.groups.letters(&id, Position::START, 10).await.unwrap().letters;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.position(), letter.attempts), (positions[0], 3));
    assert_eq!((letter.reason.as_str(), letter.message.as_str()), ("nacked", "no such invoice"));
    assert_eq!((letter.consumer.as_str(), letter.event.get(0).agg_id), ("two", "a"));
    assert_eq!(stage.status(&id).await.dead_letters, 1);
}

pub async fn an_entry_whose_leases_run_out_is_a_dead_letter_in_the_end(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1"]).await;
    for attempt in 1..=3 {
        let taken = stage.take(&id, &format!("c{attempt}"), 10).await;
        assert_eq!(taken[0].attempt, attempt);
        stage.advance(10_000);
    }
    assert_eq!(stage.take(&id, "one", 10).await.len(), 0);
    let letters = stage.groups.letters(&id, Position::START, 10).await.unwrap().letters;
    assert_eq!((letters[0].reason.as_str(), letters[0].consumer.as_str()), ("lease_expired", "c3"));
}

pub async fn a_late_receipt_is_refused_and_a_repeated_one_is_not(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1"]).await;
    let late = stage.take(&id, "slow", 10).await;
    stage.advance(10_000);
    let expired = Settled::Refused(Refusal::LeaseExpired);
    assert_eq!(stage.settle_one(&id, Settle::Ack(late[0].receipt)).await, expired);
    let taken = stage.take(&id, "fast", 10).await;
    assert_eq!(taken[0].attempt, 2);
    assert_eq!(stage.settle_one(&id, Settle::Ack(late[0].receipt)).await, expired);
    assert_eq!(stage.nack(&id, &late[0], None).await, expired);
    let renew = Settle::Renew { receipt: late[0].receipt, lease_ms: None };
    assert_eq!(stage.settle_one(&id, renew).await, expired);
    stage.ack(&id, &taken).await;
    assert_eq!(stage.settle_one(&id, Settle::Ack(taken[0].receipt)).await, Settled::Already);
    let again = stage.restarted();
    assert_eq!(again.settle_one(&id, Settle::Ack(taken[0].receipt)).await, Settled::Already);
}

pub async fn a_receipt_of_another_group_changes_nothing(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let other = stage.group("acme", "other");
    stage.groups.ensure(&other, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    stage.append(&["a1"]).await;
    let (mine, theirs) = (stage.take(&id, "one", 1).await, stage.take(&other, "one", 1).await);
    let unknown = Settled::Refused(Refusal::Unknown);
    assert_eq!(stage.settle_one(&id, Settle::Ack(theirs[0].receipt)).await, unknown);
    let made_up = Receipt { sequence: 99, ..mine[0].receipt };
    let settled = stage.settle_one(&id, Settle::Ack(made_up)).await;
    assert_eq!(settled, Settled::Refused(Refusal::LeaseExpired));
    assert_eq!(stage.status(&id).await.in_flight, 1);
    stage.groups.remove(&id).await.unwrap();
    stage.groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    assert_eq!(stage.settle_one(&id, Settle::Ack(mine[0].receipt)).await, unknown, "of its former life");
}

pub async fn one_entry_of_a_key_is_out_at_a_time_over_all_consumers(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1", "a2", "b1", "a3", "b2"]).await;
    let one = stage.take(&id, "one", 10).await;
    let two = stage.take(&id, "two", 10).await;
    assert_eq!((labels(&one).join(" "), two.len()), ("a1 b1".to_owned(), 0));
    stage.ack(&id, &one[1..]).await;
    assert_eq!(labels(&stage.take(&id, "two", 10).await), ["b2"]);
    stage.nack(&id, &one[0], Some(500)).await;
    assert_eq!(stage.take(&id, "two", 10).await.len(), 0, "a2 does not overtake a1");
    stage.advance(500);
    let again = stage.take(&id, "two", 10).await;
    assert_eq!(labels(&again), ["a1"]);
    stage.ack(&id, &again).await;
    assert_eq!(labels(&stage.take(&id, "two", 10).await), ["a2"]);
}

pub async fn sn2_what_a_killed_process_had_leased_comes_again_and_what_was_acknowledged_does_not(
    stage: Stage,
) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1", "b1", "a2", "c1", "b2", "d1"]).await;
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&taken), ["a1", "b1", "c1", "d1"]);
    // Out of order, with holes.
    stage.ack(&id, &[taken[1].clone(), taken[3].clone()]).await;
    let stage = stage.restarted();
    assert_eq!(stage.status(&id).await.lag_events, 4);
    if stage.shared {
        // Another host may serve whoever has them.
        assert_eq!(labels(&stage.take(&id, "two", 10).await), ["b2"]);
        stage.advance(10_000);
    }
    let again = stage.take(&id, "two", 10).await;
    assert_eq!(labels(&again), ["a1", "c1", "b2"]);
    let attempts: Vec<u32> = again.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [2, 2, if stage.shared { 2 } else { 1 }]);
    let expired = Settled::Refused(Refusal::LeaseExpired);
    assert_eq!(stage.settle_one(&id, Settle::Ack(taken[0].receipt)).await, expired);
    stage.ack(&id, &again).await;
    assert_eq!(labels(&stage.take(&id, "two", 10).await), ["a2"]);
}

pub async fn tries_waits_and_dead_letters_survive_a_restart(stage: Stage) {
    let id = stage.made(GroupChange { attempts_max: Some(2), ..THREE_TRIES }).await;
    let positions = stage.append(&["a1", "b1", "b2"]).await;
    let taken = stage.take(&id, "one", 10).await;
    stage.nack(&id, &taken[0], Some(5_000)).await;
    stage.nack(&id, &taken[1], Some(0)).await;
    let stage = stage.restarted();
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!((labels(&taken), taken[0].attempt), (vec!["b1".to_owned()], 2), "a1 is not due");
    assert_eq!(stage.nack(&id, &taken[0], None).await, Settled::DeadLetter);
    let stage = stage.restarted();
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&taken), ["b2"]);
    stage.ack(&id, &taken).await;
    assert_eq!(stage.status(&id).await.dead_letters, 1);
    stage.groups.decide(&id, positions[1], LetterVerdict::Replay).await.unwrap();
    let stage = stage.restarted();
    stage.advance(5_000);
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&taken), ["a1", "b1"]);
    assert_eq!((taken[0].attempt, taken[1].attempt, taken[1].replayed), (2, 1, true));
    stage.ack(&id, &taken).await;
    let stage = stage.restarted();
    assert_eq!(stage.groups.letters(&id, Position::START, 10).await.unwrap().letters.len(), 0);
}

pub async fn sn3_a_slow_consumer_that_renews_keeps_its_entry(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1"]).await;
    let taken = stage.take(&id, "slow", 10).await;
    for _ in 0..5 {
        stage.advance(9_000);
        assert_eq!(stage.take(&id, "thief", 10).await.len(), 0);
        let renew = Settle::Renew { receipt: taken[0].receipt, lease_ms: None };
        let until = Micros(stage.clock.now().0 + 10_000_000);
        assert_eq!(stage.settle_one(&id, renew).await, Settled::Renewed(until));
    }
    stage.ack(&id, &taken).await;
    assert_eq!(stage.take(&id, "thief", 10).await.len(), 0);
}

pub async fn sn4_what_retention_takes_unread_is_counted_and_a_group_that_says_so_stops(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let positions = stage.append(&["a1", "b1", "c1", "d1", "e1"]).await;
    let third = positions[2];
    let taken = stage.take(&id, "one", 1).await;
    stage.ack(&id, &taken).await;
    let before = stage.status(&id).await;
    assert_eq!((before.lag_events, before.lost_events), (4, 0));
    stage.trim_until(third).await;
    let after = stage.status(&id).await;
    assert_eq!((after.lag_events, after.lost_events), (2, 2), "the lag fell by what was lost");
    assert!(after.stopped && after.lost_at.is_some());
    assert_eq!((after.lost_until, after.trimmed), (third, third));
    let error = stage.groups.read(&id, read_of("one", 10)).await.unwrap_err();
    assert!(
        matches!(error, GroupError::PositionLost { events: 2, until, .. } if until == third),
        "{error:?}"
    );
    let stage = stage.restarted();
    let error = stage.groups.read(&id, read_of("one", 10)).await.unwrap_err();
    assert_eq!(code(&error), "group_position_lost");
    stage.groups.seek(&id, GroupStart::Oldest).await.unwrap();
    let read = stage.groups.read(&id, read_of("one", 10)).await.unwrap();
    assert_eq!((labels(&read.entries).join(" "), read.lost_events), ("d1 e1".to_owned(), 2));
}

pub async fn sn4_a_group_may_go_on_with_what_is_held_or_with_what_comes(stage: Stage) {
    let (oldest, tail) = (stage.group("acme", "oldest"), stage.group("acme", "tail"));
    for (id, on_lost) in [(&oldest, OnLost::FromOldest), (&tail, OnLost::Tail)] {
        let change = GroupChange { on_lost: Some(on_lost), ..THREE_TRIES };
        stage.groups.ensure(id, GroupStart::Oldest, change).await.unwrap();
    }
    let positions = stage.append(&["a1", "b1", "c1", "d1", "e1"]).await;
    stage.trim_until(positions[2]).await;
    stage.append(&["f1"]).await;
    let read = stage.groups.read(&oldest, read_of("one", 10)).await.unwrap();
    assert_eq!((labels(&read.entries).join(" "), read.lost_events), ("d1 e1 f1".to_owned(), 3));
    let read = stage.groups.read(&tail, read_of("one", 10)).await.unwrap();
    assert_eq!((labels(&read.entries).join(" "), read.lost_events), ("f1".to_owned(), 5));
    let status = stage.status(&tail).await;
    assert_eq!((status.lag_events, status.stopped), (1, false));
}

pub async fn sn4_what_retention_takes_under_a_lease_is_counted_and_told(stage: Stage) {
    let id = stage.made(GroupChange { on_lost: Some(OnLost::FromOldest), ..THREE_TRIES }).await;
    let positions = stage.append(&["a1", "b1", "c1", "d1"]).await;
    let taken = stage.take(&id, "one", 10).await;
    stage.ack(&id, &taken[1..2]).await;
    stage.trim_until(positions[2]).await;
    let lost = Settled::Refused(Refusal::Lost);
    assert_eq!(stage.settle_one(&id, Settle::Ack(taken[0].receipt)).await, lost);
    let status = stage.status(&id).await;
    assert_eq!((status.lost_events, status.in_flight, status.lag_events), (2, 1, 1), "a1 and c1; not b1");
    stage.ack(&id, &taken[3..]).await;
    assert_eq!(stage.status(&id).await.lag_events, 0);
}

pub async fn retention_behind_a_group_takes_nothing_from_it(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1", "b1", "c1"]).await;
    stage.append_of("rival", &["x1", "x2"]).await;
    let taken = stage.take(&id, "one", 10).await;
    stage.ack(&id, &taken).await;
    stage.keep_newest(0).await;
    stage.append(&["d1"]).await;
    let status = stage.status(&id).await;
    assert_eq!((status.lost_events, status.stopped, status.lag_events), (0, false, 1));
    assert_eq!(labels(&stage.take(&id, "one", 10).await), ["d1"]);
}

pub async fn sn25_after_a_storm_of_dead_consumers_one_gets_everything_and_they_are_forgotten(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let labels_of = |range: std::ops::Range<u8>| range.map(|n| format!("{}1", char::from(b'a' + n)));
    let all: Vec<String> = labels_of(0..26).collect();
    stage.append(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for n in 0..13 {
        assert_eq!(stage.take(&id, &format!("dead-{n}"), 2).await.len(), 2);
    }
    assert_eq!(stage.take(&id, "last", 100).await.len(), 0);
    assert_eq!(stage.groups.consumers(&id).await.unwrap().len(), 14);
    stage.advance(10_000);
    let taken = stage.take(&id, "last", 100).await;
    assert_eq!(labels(&taken), all, "in order");
    stage.ack(&id, &taken).await;
    // Longer than any of them may be silent.
    stage.advance(600_000);
    stage.take(&id, "last", 100).await;
    let consumers = stage.groups.consumers(&id).await.unwrap();
    let names: Vec<&str> = consumers.iter().map(|consumer| consumer.name.as_str()).collect();
    assert_eq!(names, ["last"]);
}

pub async fn a_dead_letter_is_replayed_or_discarded(stage: Stage) {
    let id = stage.made(GroupChange { attempts_max: Some(1), ..THREE_TRIES }).await;
    let positions = stage.append(&["a1", "b1", "a2"]).await;
    for delivery in stage.take(&id, "one", 10).await {
        assert_eq!(stage.nack(&id, &delivery, None).await, Settled::DeadLetter);
    }
    let error = stage.groups.decide(&id, positions[2], LetterVerdict::Replay).await.unwrap_err();
    assert_eq!(code(&error), "group_dead_letter_unknown");
    let page = stage.groups.letters(&id, positions[0], 1).await.unwrap().letters;
    assert_eq!(page[0].position(), positions[1], "a page begins behind a letter");
    stage.groups.decide(&id, positions[1], LetterVerdict::Discard).await.unwrap();
    stage.groups.decide(&id, positions[0], LetterVerdict::Replay).await.unwrap();
    stage.groups.decide(&id, positions[0], LetterVerdict::Replay).await.unwrap();
    // The event itself may be long gone.
    stage.trim_until(positions[1]).await;
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(
        (labels(&taken).join(" "), taken[0].replayed),
        ("a1".to_owned(), true),
        "before a2 of its key"
    );
    assert_eq!(stage.nack(&id, &taken[0], None).await, Settled::DeadLetter);
    let letters = stage.groups.letters(&id, Position::START, 10).await.unwrap().letters;
    assert_eq!((letters.len(), letters[0].replaying), (1, false));
    stage.groups.decide(&id, positions[0], LetterVerdict::Replay).await.unwrap();
    let taken = stage.take(&id, "one", 1).await;
    stage.ack(&id, &taken).await;
    assert_eq!(stage.groups.letters(&id, Position::START, 10).await.unwrap().letters.len(), 0);
    let error = stage.groups.decide(&id, positions[0], LetterVerdict::Discard).await.unwrap_err();
    assert_eq!(code(&error), "group_dead_letter_unknown");
}

pub async fn a_replayed_letter_waits_for_what_is_leased_of_its_key(stage: Stage) {
    let id = stage.made(GroupChange { attempts_max: Some(1), ..THREE_TRIES }).await;
    let positions = stage.append(&["a1", "a2"]).await;
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(stage.nack(&id, &taken[0], None).await, Settled::DeadLetter);
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(labels(&taken), ["a2"]);
    stage.groups.decide(&id, positions[0], LetterVerdict::Replay).await.unwrap();
    assert_eq!(stage.take(&id, "two", 10).await.len(), 0, "somebody has a2");
    stage.ack(&id, &taken).await;
    assert_eq!(labels(&stage.take(&id, "two", 10).await), ["a1"]);
}

pub async fn lag_is_told_in_events_and_in_time(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.clock.set(Micros(1_000_000));
    stage.append(&["a1"]).await;
    stage.clock.set(Micros(3_000_000));
    stage.append(&["b1", "c1"]).await;
    stage.append_of("rival", &["x1"]).await;
    let status = stage.status(&id).await;
    let first = status.oldest_at.unwrap();
    assert_eq!(status.lag_events, 3);
    let taken = stage.take(&id, "one", 10).await;
    assert_eq!(stage.status(&id).await.lag_events, 3, "what is delivered is not done");
    stage.ack(&id, &taken[..1]).await;
    let status = stage.status(&id).await;
    let second = status.oldest_at.unwrap();
    assert_eq!(status.lag_events, 2);
    if stage.shared {
        assert!(first < second, "{first} {second}");
    } else {
        assert_eq!((first, second), (Micros(1_000_000), Micros(3_000_000)));
    }
    let lags = stage.groups.lags(10).await.unwrap();
    assert_eq!((lags.len(), lags[0].events, lags[0].oldest_at), (1, 2, Some(second)));
    stage.ack(&id, &taken[1..]).await;
    let status = stage.status(&id).await;
    assert_eq!((status.lag_events, status.oldest_at), (0, None));
}

pub async fn a_group_can_be_moved_back_and_forward(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let positions = stage.append(&["a1", "b1", "c1"]).await;
    let taken = stage.take(&id, "one", 10).await;
    stage.ack(&id, &taken[..2]).await;
    stage.groups.seek(&id, GroupStart::After(positions[0])).await.unwrap();
    let settled = stage.settle_one(&id, Settle::Ack(taken[2].receipt)).await;
    assert_eq!(settled, Settled::Refused(Refusal::Unknown));
    assert_eq!(labels(&stage.take(&id, "one", 10).await), ["b1", "c1"]);
    let status = stage.groups.seek(&id, GroupStart::Newest).await.unwrap();
    assert_eq!(status.lag_events, 0);
    assert_eq!(stage.take(&id, "one", 10).await.len(), 0);
}

pub async fn tenants_have_groups_of_their_own(stage: Stage) {
    let mine = stage.made(THREE_TRIES).await;
    let id_stream = stage.stream.to_string();
    stage.append(&["a1"]).await;
    stage.append_of("rival", &["x1"]).await;
    let theirs = stage.group("rival", "billing");
    let error = stage.groups.read(&theirs, read_of("one", 1)).await.unwrap_err();
    assert_eq!(code(&error), "group_unknown");
    stage.groups.ensure(&theirs, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    assert_eq!(labels(&stage.take(&mine, "one", 10).await), ["a1"]);
    assert_eq!(labels(&stage.take(&theirs, "one", 10).await), ["x1"]);
    assert_eq!(stage.groups.list(&tenant("acme"), &id_stream).await.unwrap().len(), 1);
    stage.groups.remove(&mine).await.unwrap();
    assert_eq!(stage.groups.list(&tenant("acme"), &id_stream).await.unwrap().len(), 0);
    assert_eq!(stage.groups.list(&tenant("rival"), &id_stream).await.unwrap().len(), 1);
}

pub async fn a_waiting_read_wakes_for_an_event_and_for_an_acknowledgement(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    let waiting = |consumer: &str| {
        let read = GroupRead { wait: Duration::from_secs(30), ..read_of(consumer, 10) };
        let (groups, id) = (Arc::clone(&stage.groups), id.clone());
        async move { labels(&groups.read(&id, read).await.unwrap().entries) }
    };
    let (woken, _) = tokio::join!(waiting("one"), stage.append(&["a1", "a2"]));
    assert_eq!(woken, ["a1"]);
    stage.advance(10_000);
    let taken = stage.take(&id, "one", 10).await;
    let (woken, ()) = tokio::join!(waiting("two"), stage.ack(&id, &taken));
    assert_eq!(woken, ["a2"]);
}

pub async fn a_page_of_bytes_holds_one_entry_at_least(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    stage.append(&["a1", "b1", "c1"]).await;
    let read = GroupRead { bytes: 1, ..read_of("one", 10) };
    let taken = stage.groups.read(&id, read).await.unwrap().entries;
    assert_eq!(labels(&taken), ["a1"]);
}

/// Runs this whole suite for a backend: on `events`, and most of it on a stream with a name of its own and on a
/// change stream. `setup` is given the stream.
#[macro_export]
macro_rules! groups_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, groups, || $setup($crate::conformance::groups::events());
            c18_a_failed_entry_goes_to_a_second_consumer_and_the_others_are_seen_once,
            c19_a_group_on_a_populated_stream_begins_at_its_start,
            a_group_may_begin_with_what_comes_or_behind_a_position,
            sn1_a_failing_entry_is_tried_again_with_backoff_and_then_a_dead_letter,
            an_entry_whose_leases_run_out_is_a_dead_letter_in_the_end,
            a_late_receipt_is_refused_and_a_repeated_one_is_not,
            a_receipt_of_another_group_changes_nothing,
            one_entry_of_a_key_is_out_at_a_time_over_all_consumers,
            sn2_what_a_killed_process_had_leased_comes_again_and_what_was_acknowledged_does_not,
            tries_waits_and_dead_letters_survive_a_restart,
            sn3_a_slow_consumer_that_renews_keeps_its_entry,
            sn4_what_retention_takes_unread_is_counted_and_a_group_that_says_so_stops,
            sn4_a_group_may_go_on_with_what_is_held_or_with_what_comes,
            sn4_what_retention_takes_under_a_lease_is_counted_and_told,
            retention_behind_a_group_takes_nothing_from_it,
            sn25_after_a_storm_of_dead_consumers_one_gets_everything_and_they_are_forgotten,
            a_dead_letter_is_replayed_or_discarded,
            a_replayed_letter_waits_for_what_is_leased_of_its_key,
            a_letter_that_the_group_was_moved_back_before_is_replayed_by_its_delivery,
            a_page_of_letters_is_bound_in_bytes_and_says_whether_there_are_more,
            lag_is_told_in_events_and_in_time,
            a_group_can_be_moved_back_and_forward,
            tenants_have_groups_of_their_own,
            what_is_not_there_is_said_so,
            options_and_numbers_have_bounds,
            a_waiting_read_wakes_for_an_event_and_for_an_acknowledgement,
            a_page_of_bytes_holds_one_entry_at_least,
            those_who_make_one_group_at_once_make_one_and_are_answered_alike,
            options_that_two_change_at_once_are_the_same_for_the_store_and_for_leases,
            a_tenants_groups_are_counted_on_all_of_its_streams_and_one_that_goes_makes_room,
            sn06_a_group_that_begins_with_what_comes_gets_all_of_it);
    };
    ($backend:ident, $setup:expr, $stream:ident) => {
        $crate::conformance!($backend, groups, || $setup($crate::conformance::groups::$stream());
            c18_a_failed_entry_goes_to_a_second_consumer_and_the_others_are_seen_once,
            c19_a_group_on_a_populated_stream_begins_at_its_start,
            a_group_may_begin_with_what_comes_or_behind_a_position,
            sn1_a_failing_entry_is_tried_again_with_backoff_and_then_a_dead_letter,
            one_entry_of_a_key_is_out_at_a_time_over_all_consumers,
            sn2_what_a_killed_process_had_leased_comes_again_and_what_was_acknowledged_does_not,
            tries_waits_and_dead_letters_survive_a_restart,
            sn4_what_retention_takes_unread_is_counted_and_a_group_that_says_so_stops,
            sn4_a_group_may_go_on_with_what_is_held_or_with_what_comes,
            sn4_what_retention_takes_under_a_lease_is_counted_and_told,
            retention_behind_a_group_takes_nothing_from_it,
            a_dead_letter_is_replayed_or_discarded,
            a_replayed_letter_waits_for_what_is_leased_of_its_key,
            a_letter_that_the_group_was_moved_back_before_is_replayed_by_its_delivery,
            lag_is_told_in_events_and_in_time,
            a_group_can_be_moved_back_and_forward,
            tenants_have_groups_of_their_own,
            a_waiting_read_wakes_for_an_event_and_for_an_acknowledgement,
            sn06_a_group_that_begins_with_what_comes_gets_all_of_it);
    };
}
