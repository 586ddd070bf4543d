//! What every checkpoint store must do with what is parked, and with dead letters that were decided.

use std::sync::Arc;

use millrace::checkpoints::{CommitError, ParkedKey, ParkedState, ParkedWrites};
use millrace::event::{EventBatch, Micros, Position, TenantId};

use super::Seams;
use super::checkpoints::{claim, dead_letter};
use super::effects::{Effects, commit, task, tenant};
use super::event_log::batch;

fn event(tenant: &TenantId, id: &str, position: u64) -> Arc<EventBatch> {
    let mut event = batch(tenant, &[(id, "{\"n\":1}")]);
    event.set_position(0, Position(position));
    Arc::new(event)
}

fn waits(attempts: u32, held: Option<u64>) -> ParkedState {
    ParkedState {
        attempts,
        since: Micros(5),
        retry_at: Micros(1_000_000 + i64::from(attempts)),
        held: held.map(Position),
        message: format!("failed {attempts} times"),
    }
}

fn key(name: &str) -> Arc<[u8]> {
    name.as_bytes().into()
}

pub async fn what_is_parked_comes_back_to_the_next_owner_in_order(seams: Seams) {
    let task = task("board", "acme", 0);
    let generation = claim(&seams, &task).await;
    let of = &task.tenant;
    let mut first = commit(&task, generation, 4, &[], &mut Effects::default());
    first.parked = ParkedWrites {
        keys: vec![(key("b"), Some(waits(1, None))), (key("a"), Some(waits(2, Some(1))))],
        added: vec![
            (key("b"), event(of, "e2", 2)),
            (key("a"), event(of, "e3", 3)),
            (key("b"), event(of, "e4", 4)),
        ],
        removed: vec![],
    };
    seams.checkpoints.commit(first).await.unwrap();
    let (later, found) = seams.checkpoints.claim(&task).await.unwrap();
    let a = ParkedKey { key: key("a"), state: waits(2, Some(1)), events: vec![event(of, "e3", 3)] };
    let b = |attempts, events: &[(&str, u64)]| ParkedKey {
        key: key("b"),
        state: waits(attempts, None),
        events: events.iter().map(|(id, position)| event(of, id, *position)).collect(),
    };
    assert_eq!(found.unwrap().parked, [a.clone(), b(1, &[("e2", 2), ("e4", 4)])]);
    let mut second = commit(&task, later, 6, &[], &mut Effects::default());
    second.parked = ParkedWrites {
        keys: vec![(key("b"), Some(waits(3, None)))],
        // Parked and done within one commit.
        added: vec![(key("b"), event(of, "e5", 5))],
        removed: vec![Position(2), Position(5)],
    };
    seams.checkpoints.commit(second).await.unwrap();
    let (last, found) = seams.checkpoints.claim(&task).await.unwrap();
    assert_eq!(found.unwrap().parked, [a, b(3, &[("e4", 4)])]);
    let mut third = commit(&task, last, 6, &[], &mut Effects::default());
    third.parked = ParkedWrites {
        keys: vec![(key("a"), None), (key("b"), None)],
        added: vec![],
        removed: vec![Position(3), Position(4)],
    };
    seams.checkpoints.commit(third).await.unwrap();
    let (_, found) = seams.checkpoints.claim(&task).await.unwrap();
    assert!(found.unwrap().parked.is_empty());
}

pub async fn tasks_tell_how_much_waits_for_each(seams: Seams) {
    for (processor, tenant_name, lane, letters) in
        [("board", "acme", 0, 2), ("board", "acme", 1, 0), ("board", "beta", 0, 1), ("other", "acme", 0, 3)]
    {
        let task = task(processor, tenant_name, lane);
        let generation = claim(&seams, &task).await;
        // Each position is one event's, whoever handles it.
        let base = u64::from(lane) * 10 + 1;
        let mut one = commit(&task, generation, base + 8, &[], &mut Effects::default());
        let letter = |n: u64| {
            let id = format!("{tenant_name}-{}", base + n);
            let position = base + n + if tenant_name == "beta" { 100 } else { 0 };
            dead_letter(&task.tenant, &id, position)
        };
        one.dead = (0..letters).map(letter).collect();
        one.parked = ParkedWrites {
            keys: vec![(key("a"), Some(waits(2, Some(base)))), (key("b"), Some(waits(1, None)))],
            added: vec![
                (key("b"), event(&task.tenant, "e5", base + 5)),
                (key("b"), event(&task.tenant, "e6", base + 6)),
            ],
            removed: vec![],
        };
        seams.checkpoints.commit(one).await.unwrap();
    }
    let waiting = async |processor| -> Vec<(String, u64, u64, u64)> {
        let rows = seams.checkpoints.tasks(processor).await.unwrap().into_iter();
        rows.map(|row| (row.task.to_string(), row.parked_events, row.held_keys, row.dead_letters)).collect()
    };
    let rows = [
        ("board/acme/0".to_owned(), 2, 1, 2),
        ("board/acme/1".into(), 2, 1, 0),
        ("board/beta/0".into(), 2, 1, 1),
        ("other/acme/0".into(), 2, 1, 3),
    ];
    assert_eq!(waiting(None).await, rows);
    assert_eq!(waiting(Some("board")).await, rows[..3]);
    assert_eq!(waiting(Some("nobody")).await, []);
}

pub async fn a_fenced_commit_parks_nothing(seams: Seams) {
    let task = task("board", "acme", 0);
    let old = claim(&seams, &task).await;
    seams.checkpoints.commit(commit(&task, old, 1, &[], &mut Effects::default())).await.unwrap();
    claim(&seams, &task).await;
    let mut late = commit(&task, old, 2, &[], &mut Effects::default());
    late.parked = ParkedWrites {
        keys: vec![(key("a"), Some(waits(1, None)))],
        added: vec![(key("a"), event(&task.tenant, "e2", 2))],
        removed: vec![],
    };
    late.dead = vec![dead_letter(&task.tenant, "e2", 2)];
    let refused = seams.checkpoints.commit(late).await;
    assert!(matches!(refused, Err(CommitError::Fenced { .. })), "{refused:?}");
    let (_, found) = seams.checkpoints.claim(&task).await.unwrap();
    assert!(found.unwrap().parked.is_empty());
    assert!(seams.checkpoints.dead_letters("board", None, 10).await.unwrap().is_empty());
}

pub async fn a_letter_says_whether_it_holds_its_key_and_goes_when_it_is_decided(seams: Seams) {
    let task = task("board", "acme", 0);
    let generation = claim(&seams, &task).await;
    let letter = dead_letter(&task.tenant, "e1", 1);
    let mut first = commit(&task, generation, 3, &[], &mut Effects::default());
    first.parked = ParkedWrites {
        keys: vec![(Arc::clone(&letter.key), Some(waits(2, Some(1))))],
        added: vec![(Arc::clone(&letter.key), event(&task.tenant, "e3", 3))],
        removed: vec![],
    };
    first.dead = vec![letter.clone(), dead_letter(&task.tenant, "e2", 2)];
    seams.checkpoints.commit(first).await.unwrap();
    let one = |position| seams.checkpoints.dead_letter("board", Some(&task.tenant), Position(position));
    let held = one(1).await.unwrap().expect("it was written");
    assert_eq!((held.held, held.parked_behind, held.attempts), (true, 1, 2));
    let other = one(2).await.unwrap().expect("it was written");
    assert_eq!((other.held, other.parked_behind), (false, 0));
    let beta = tenant("beta");
    assert!(seams.checkpoints.dead_letter("board", Some(&beta), Position(1)).await.unwrap().is_none());
    assert!(seams.checkpoints.dead_letter("other", None, Position(1)).await.unwrap().is_none());
    // It fails again: one letter an event.
    let mut again = commit(&task, generation, 3, &[], &mut Effects::default());
    again.dead = vec![millrace::checkpoints::DeadLetter { attempts: 3, ..letter.clone() }];
    seams.checkpoints.commit(again).await.unwrap();
    assert_eq!(one(1).await.unwrap().expect("it stays").attempts, 3);
    assert_eq!(seams.checkpoints.dead_letters("board", None, 10).await.unwrap().len(), 2);
    let mut decided = commit(&task, generation, 3, &[], &mut Effects::default());
    decided.resolved = vec![Position(1)];
    decided.parked = ParkedWrites {
        keys: vec![(Arc::clone(&letter.key), Some(waits(0, None)))],
        ..ParkedWrites::default()
    };
    seams.checkpoints.commit(decided).await.unwrap();
    assert!(one(1).await.unwrap().is_none());
    let left = seams.checkpoints.dead_letters("board", None, 10).await.unwrap();
    assert_eq!(left.iter().map(|row| row.event.last_position()).collect::<Vec<_>>(), [Position(2)]);
}
