//! What every memory of the control feed must do: what is desired, what is set aside, what was made of it.
//! The outbox is in `control_outbox`.

use std::fmt;
use std::sync::Arc;

use millrace::clock::ManualClock;
use millrace::control::{
    AppliedOutcome, ControlFeedError, ControlStore, Entry, EventBody, ObservedRow, Phase, Quarantined,
    Restore, UnsignedEvent,
};

use crate::control::{
    NOW, at, deployed, id, of_a_new_kind, removed, sign, state, trust_changed, unsigned, v,
};
use crate::control_events::trusted;

/// One host's memory, as often as a test opens it.
pub struct Stage {
    pub clock: Arc<ManualClock>,
    open: Box<dyn Fn() -> Arc<dyn ControlStore> + Send + Sync>,
}

impl Stage {
    pub fn new(
        clock: Arc<ManualClock>,
        open: impl Fn() -> Arc<dyn ControlStore> + Send + Sync + 'static,
    ) -> Self {
        clock.set(NOW);
        Self { clock, open: Box::new(open) }
    }

    /// The store as a host finds it that starts now.
    pub fn open(&self) -> Arc<dyn ControlStore> {
        (self.open)()
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stage")
    }
}

fn aside(version: u64, name: &str) -> Quarantined {
    Quarantined::new(v(version), name, "control_event_invalid", "because", NOW.0)
}

/// What is set aside, the oldest version first.
async fn names_aside(store: &dyn ControlStore) -> Vec<(u64, String, String)> {
    let mut all: Vec<_> = store
        .quarantined(100)
        .await
        .unwrap()
        .into_iter()
        .map(|aside| (aside.version.0, aside.name, aside.code))
        .collect();
    all.sort();
    all
}

/// C14, C15: an event lands once, with the cursor, and stays over a restart.
pub async fn c14_c15_an_event_lands_once_with_its_cursor(stage: Stage) {
    let store = stage.open();
    assert_eq!(store.cursor().await.unwrap(), v(0));
    let event = deployed(1, "p", 1);
    let applied = store.apply(v(5), &event).await.unwrap();
    assert_eq!((applied.outcome, applied.cursor, applied.ousted), (AppliedOutcome::Changed, v(5), None));
    drop(store);
    let store = stage.open();
    let again = store.apply(v(5), &event).await.unwrap();
    assert_eq!((again.outcome, again.cursor), (AppliedOutcome::Repeated, v(5)));
    let (cursor, rows) = store.desired().await.unwrap();
    assert_eq!(cursor, v(5));
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].revision, rows[0].version), (1, v(5)));
    assert_eq!(rows[0].event, event, "with its signature and all that it came with");
    assert_eq!(store.forget_applied(v(u64::MAX >> 1)).await.unwrap(), 1, "one record of its id");
}

/// C16, C17, C18: a later event is the whole new state, a removal included. C24: a plugin that nobody runs is desired, too.
pub async fn c16_c17_c18_a_later_revision_replaces_the_whole_state(stage: Stage) {
    let store = stage.open();
    store.apply(v(1), &deployed(1, "p", 1)).await.unwrap();
    store.apply(v(2), &deployed(2, "q", 1)).await.unwrap();
    store.apply(v(3), &removed(3, "p", 2)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 2, 3), at("q", 1, 2)], "a tombstone stays");
    let late = store.apply(v(4), &sign(&unsigned(4, "p", 1, 9))).await.unwrap();
    assert_eq!(late.outcome, AppliedOutcome::Superseded, "nothing older brings it back");
    assert_eq!(state(&*store).await, [at("p", 2, 3), at("q", 1, 2)]);
    store.apply(v(5), &deployed(5, "p", 3)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 3, 5), at("q", 1, 2)]);
}

/// C19: the list of keys is one entity of its own.
pub async fn c19_the_list_of_keys_is_one_entity(stage: Stage) {
    let store = stage.open();
    let list = trusted();
    store.apply(v(1), &trust_changed(1, 1, list.clone())).await.unwrap();
    store.apply(v(2), &trust_changed(2, 2, list)).await.unwrap();
    drop(store);
    let (_, rows) = stage.open().desired().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].entity.as_str(), rows[0].revision), ("trust", 2));
    assert!(matches!(rows[0].event.unsigned().body, EventBody::Trust(_)));
}

/// C20, C21: what needs nothing here moves the cursor.
pub async fn c20_c21_what_needs_nothing_moves_the_cursor(stage: Stage) {
    let store = stage.open();
    let passed = store.take(vec![Entry::PassedBy { version: v(9) }]).await.unwrap();
    assert_eq!((&passed[0].outcome, passed[0].cursor), (&AppliedOutcome::PassedBy, v(9)));
    let unknown = store.apply(v(11), &of_a_new_kind(1)).await.unwrap();
    assert_eq!((unknown.outcome, unknown.cursor), (AppliedOutcome::PassedBy, v(11)));
    drop(store);
    let store = stage.open();
    assert_eq!(store.cursor().await.unwrap(), v(11));
    assert!(state(&*store).await.is_empty());
    assert!(store.quarantined(10).await.unwrap().is_empty());
}

/// C22: the same id at a higher version with other bytes is not applied, the cursor moves, and there is one record of it.
pub async fn c22_a_known_id_with_other_bytes_is_a_repeat(stage: Stage) {
    let store = stage.open();
    store.apply(v(5), &deployed(1, "p", 1)).await.unwrap();
    let other = sign(&unsigned(1, "p", 2, 77));
    let again = store.apply(v(8), &other).await.unwrap();
    assert_eq!((again.outcome, again.cursor), (AppliedOutcome::Repeated, v(8)));
    let (_, rows) = store.desired().await.unwrap();
    assert_eq!((rows[0].revision, rows[0].version), (1, v(5)));
    assert_eq!(
        store.applied(&id(1)).await.unwrap(),
        Some(v(8)),
        "it is remembered for as long as its last repeat"
    );
    assert_eq!(store.forget_applied(v(7)).await.unwrap(), 0);
    assert_eq!(store.forget_applied(v(8)).await.unwrap(), 1);
    assert_eq!(store.applied(&id(1)).await.unwrap(), None);
}

/// C23: what is wrong is set aside (the reference stood still). What was desired stays.
pub async fn c23_what_is_set_aside_leaves_a_record_and_moves_the_cursor(stage: Stage) {
    let store = stage.open();
    store.apply(v(1), &deployed(1, "p", 1)).await.unwrap();
    let entry = || Entry::SetAside { quarantined: aside(2, "evt_x"), event: None };
    let put = store.take(vec![entry()]).await.unwrap();
    assert!(
        matches!(&put[0].outcome, AppliedOutcome::Quarantined { code, .. } if code == "control_event_invalid")
    );
    assert_eq!(put[0].cursor, v(2));
    store.take(vec![entry()]).await.unwrap();
    drop(store);
    let store = stage.open();
    assert_eq!(names_aside(&*store).await.len(), 1, "it came twice and is one record");
    assert_eq!(store.quarantined(10).await.unwrap()[0], aside(2, "evt_x"));
    assert_eq!(state(&*store).await, [at("p", 1, 1)]);
}

/// What was set aside under an id does not keep the right event of that id out, and what was applied is not set aside later.
pub async fn setting_aside_takes_no_id_and_takes_nothing_back(stage: Stage) {
    let store = stage.open();
    let genuine = deployed(1, "p", 1);
    let forged = sign(&unsigned(1, "p", 1, 66));
    let put = |version, event: &_| Entry::SetAside {
        quarantined: aside(version, id(1).as_str()),
        event: Some(Clone::clone(event)),
    };
    store.take(vec![put(1, &forged)]).await.unwrap();
    assert_eq!(store.apply(v(2), &genuine).await.unwrap().outcome, AppliedOutcome::Changed);
    let repeated = store.take(vec![put(3, &genuine)]).await.unwrap();
    assert_eq!(repeated[0].outcome, AppliedOutcome::Repeated, "such as one that has expired since");
    let again = store.take(vec![put(4, &forged)]).await.unwrap();
    assert!(matches!(again[0].outcome, AppliedOutcome::Quarantined { .. }));
    let versions: Vec<u64> = names_aside(&*store).await.into_iter().map(|(version, ..)| version).collect();
    assert_eq!(versions, [1, 4]);
    assert_eq!(store.cursor().await.unwrap(), v(4));
}

/// An entry below the cursor that did not come before is applied, and the cursor stays.
pub async fn w4_an_older_message_that_comes_late_is_not_lost(stage: Stage) {
    let store = stage.open();
    store.apply(v(7), &deployed(7, "q", 1)).await.unwrap();
    let late = store.apply(v(5), &deployed(5, "p", 1)).await.unwrap();
    assert_eq!((late.outcome, late.cursor), (AppliedOutcome::Changed, v(7)));
    let repeated = store.apply(v(5), &deployed(5, "p", 1)).await.unwrap();
    assert_eq!((repeated.outcome, repeated.cursor), (AppliedOutcome::Repeated, v(7)));
    assert_eq!(state(&*store).await, [at("p", 1, 5), at("q", 1, 7)]);
}

/// Of two events of one revision the first in the feed counts, in whichever order they come here.
pub async fn the_first_in_the_feed_wins_a_revision_everywhere(stage: Stage) {
    let store = stage.open();
    let (first, second) = (deployed(1, "p", 1), deployed(2, "p", 1));
    store.apply(v(1), &first).await.unwrap();
    let lost = store.apply(v(2), &second).await.unwrap();
    assert!(matches!(&lost.outcome, AppliedOutcome::Quarantined { code, .. } if code == "revision_conflict"));
    // On another host they come the other way round: here, as another plugin.
    let (first, second) = (deployed(3, "q", 1), deployed(4, "q", 1));
    store.apply(v(4), &second).await.unwrap();
    let won = store.apply(v(3), &first).await.unwrap();
    assert_eq!((won.outcome, won.ousted), (AppliedOutcome::Changed, Some(id(4))));
    drop(store);
    let store = stage.open();
    assert_eq!(state(&*store).await, [at("p", 1, 1), at("q", 1, 3)]);
    let conflict = |version, number| (version, id(number).to_string(), "revision_conflict".to_owned());
    assert_eq!(names_aside(&*store).await, [conflict(2, 2), conflict(4, 4)]);
    // The loser comes again, and later the winner under a higher version.
    store.apply(v(2), &deployed(2, "p", 1)).await.unwrap();
    store.apply(v(9), &deployed(3, "q", 1)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 1, 1), at("q", 1, 3)]);
    assert_eq!(names_aside(&*store).await.len(), 2);
}

/// Of two origins' changes of one revision one comes second, and the other origin has made more of it meanwhile. None of that
/// overrides what came first; what is made on that goes on. Who has set nothing aside, and only missed something, is not
/// held up.
pub async fn w9_what_was_made_on_what_came_second_does_not_go_on(stage: Stage) {
    let store = stage.open();
    let made_on = |number: u64, plugin: &str, revision: u64, base: u64| {
        sign(&UnsignedEvent { base_event_id: Some(id(base)), ..unsigned(number, plugin, revision, number) })
    };
    store.apply(v(1), &deployed(9, "p", 1)).await.unwrap();
    store.apply(v(2), &made_on(1, "p", 2, 9)).await.unwrap();
    // Made on the same, on that, and on that.
    for (version, event) in
        [(3, made_on(2, "p", 2, 9)), (4, made_on(3, "p", 3, 2)), (5, made_on(4, "p", 4, 3))]
    {
        let applied = store.apply(v(version), &event).await.unwrap();
        assert!(
            matches!(&applied.outcome, AppliedOutcome::Quarantined { code, .. } if code == "revision_conflict"),
            "{version}: {applied:?}"
        );
        assert_eq!(state(&*store).await, [at("p", 2, 1)]);
    }
    let store = stage.open();
    let refused = store.propose(&made_on(5, "p", 3, 2)).await.unwrap_err();
    assert!(matches!(refused, ControlFeedError::RevisionConflict { .. }), "{refused}");
    store.apply(v(6), &made_on(6, "p", 3, 1)).await.unwrap();
    store.propose(&made_on(7, "p", 4, 6)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 3, 6)]);
    // Nothing is known of what these were made on.
    store.apply(v(7), &made_on(8, "q", 2, 30)).await.unwrap();
    store.apply(v(8), &made_on(10, "q", 4, 31)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 3, 6), at("q", 4, 10)]);
}

/// Revisions keep what they promise when ids are forgotten.
pub async fn a_forgotten_id_changes_nothing_either(stage: Stage) {
    let store = stage.open();
    for (version, event) in [(1, deployed(1, "p", 1)), (2, deployed(2, "p", 2)), (3, deployed(3, "q", 1))] {
        store.apply(v(version), &event).await.unwrap();
    }
    // Counted in events, however far apart their versions are.
    for (younger, version) in [(0, 3), (1, 2), (2, 1), (3, 0)] {
        assert_eq!(store.applied_beyond(younger).await.unwrap(), v(version));
    }
    assert_eq!(store.forget_applied(v(2)).await.unwrap(), 2);
    assert_eq!(store.applied(&id(3)).await.unwrap(), Some(v(3)));
    assert_eq!(store.apply(v(8), &deployed(1, "p", 1)).await.unwrap().outcome, AppliedOutcome::Superseded);
    assert_eq!(store.apply(v(9), &deployed(2, "p", 2)).await.unwrap().outcome, AppliedOutcome::Superseded);
    assert_eq!(state(&*store).await, [at("p", 2, 2), at("q", 1, 3)]);
    assert!(names_aside(&*store).await.is_empty(), "the same event is no conflict with itself");
}

/// Entries that are taken together mean what they mean one by one.
pub async fn a_batch_means_its_entries_one_by_one(stage: Stage) {
    let store = stage.open();
    let event = |version, event| Entry::Event { version: v(version), event };
    let applied = store
        .take(vec![
            event(1, deployed(1, "p", 1)),
            Entry::SetAside { quarantined: aside(2, "x"), event: None },
            event(3, deployed(1, "p", 1)),
            event(4, deployed(4, "p", 2)),
            Entry::PassedBy { version: v(5) },
            event(6, deployed(6, "p", 1)),
        ])
        .await
        .unwrap();
    let cursors: Vec<u64> = applied.iter().map(|applied| applied.cursor.0).collect();
    assert_eq!(cursors, [1, 2, 3, 4, 5, 6]);
    let outcomes: Vec<_> = applied.into_iter().map(|applied| applied.outcome).collect();
    assert!(matches!(
        outcomes.as_slice(),
        [
            AppliedOutcome::Changed,
            AppliedOutcome::Quarantined { .. },
            AppliedOutcome::Repeated,
            AppliedOutcome::Changed,
            AppliedOutcome::PassedBy,
            AppliedOutcome::Superseded,
        ]
    ));
    assert_eq!(store.take(Vec::new()).await.unwrap(), []);
    assert_eq!(state(&*store).await, [at("p", 2, 4)]);
}

/// A snapshot raises what is below it, leaves what is above it and what it does not have, and carries its cursor.
pub async fn a_restore_never_goes_back(stage: Stage) {
    let store = stage.open();
    for (version, event) in [
        (1, deployed(1, "high", 5)),
        (2, deployed(2, "low", 1)),
        (3, deployed(3, "mine", 1)),
        (4, deployed(4, "gone", 1)),
    ] {
        store.apply(v(version), &event).await.unwrap();
    }
    let restore = Restore {
        version: v(20),
        events: vec![
            (v(10), deployed(10, "high", 4)),
            (v(11), deployed(11, "low", 2)),
            (v(12), removed(12, "gone", 2)),
            (v(13), deployed(13, "new", 1)),
        ],
        set_aside: vec![aside(14, "odd")],
    };
    let restored = store.restore(restore.clone()).await.unwrap();
    assert_eq!(restored.cursor, v(20));
    assert_eq!(restored.entities, ["plugin:gone", "plugin:low", "plugin:new"]);
    let expected =
        [at("gone", 2, 12), at("high", 5, 1), at("low", 2, 11), at("mine", 1, 3), at("new", 1, 13)];
    assert_eq!(state(&*store).await, expected);
    let again = store.restore(Restore { version: v(15), ..restore }).await.unwrap();
    assert!(again.entities.is_empty());
    assert_eq!(again.cursor, v(20), "an older snapshot does not take the cursor back");
    drop(store);
    let store = stage.open();
    assert_eq!(state(&*store).await, expected);
    assert_eq!(names_aside(&*store).await.len(), 1);
    // The tail overlaps.
    assert_eq!(store.apply(v(11), &deployed(11, "low", 2)).await.unwrap().outcome, AppliedOutcome::Repeated);
    assert_eq!(store.apply(v(21), &deployed(21, "low", 3)).await.unwrap().outcome, AppliedOutcome::Changed);
}

/// A snapshot is what the origin has: of one revision, its event counts.
pub async fn a_restore_settles_a_conflict_as_the_origin_has_it(stage: Stage) {
    let store = stage.open();
    store.apply(v(3), &deployed(1, "p", 1)).await.unwrap();
    let restore = Restore { version: v(9), events: vec![(v(5), deployed(2, "p", 1))], set_aside: Vec::new() };
    assert_eq!(store.restore(restore).await.unwrap().entities, ["plugin:p"]);
    assert_eq!(state(&*store).await, [at("p", 1, 2)]);
    assert_eq!(names_aside(&*store).await, [(3, id(1).to_string(), "revision_conflict".into())]);
}

/// The bound is a number of records; the oldest go.
pub async fn the_oldest_of_what_is_set_aside_goes_first(stage: Stage) {
    let store = stage.open();
    let most = millrace::limits::CONTROL_QUARANTINE_EVENTS_MAX;
    let old = Quarantined { at: NOW.0 - 1, ..aside(most + 9, "old") };
    let mut entries = vec![Entry::SetAside { quarantined: old, event: None }];
    entries.extend((1..=most).map(|n| Entry::SetAside { quarantined: aside(n, "x"), event: None }));
    store.take(entries).await.unwrap();
    let kept = store.quarantined(usize::MAX >> 1).await.unwrap();
    assert_eq!(kept.len() as u64, most);
    assert!(kept.iter().all(|aside| aside.name == "x"));
    assert_eq!(store.quarantined(3).await.unwrap()[0].version, v(most), "the newest first");
}

pub async fn what_was_made_of_it_is_remembered(stage: Stage) {
    let row = |plugin: &str, phase, reason: Option<(&str, &str)>| ObservedRow {
        plugin: plugin.into(),
        revision: 3,
        phase,
        serving: Some("sha256:aa".into()),
        reason: reason.map(|(code, text)| (code.into(), text.into())),
        since: NOW.0,
        attempts: 2,
    };
    let store = stage.open();
    for phase in [
        Phase::Absent,
        Phase::Fetched,
        Phase::Verified,
        Phase::Compiled,
        Phase::Validated,
        Phase::Shadow,
        Phase::Active,
        Phase::Paused,
        Phase::Draining,
        Phase::Retired,
        Phase::Quarantined,
    ] {
        store.observe(&row("p", phase, Some(("code", "why")))).await.unwrap();
        assert_eq!(store.observed().await.unwrap(), [row("p", phase, Some(("code", "why")))]);
    }
    store.observe(&row("a", Phase::Active, None)).await.unwrap();
    drop(store);
    let store = stage.open();
    let names = [row("a", Phase::Active, None), row("p", Phase::Quarantined, Some(("code", "why")))];
    assert_eq!(store.observed().await.unwrap(), names);
    store.forget_observed("a").await.unwrap();
    store.forget_observed("nobody").await.unwrap();
    assert_eq!(store.observed().await.unwrap().len(), 1);
}

pub async fn notes_are_kept_by_name(stage: Stage) {
    let store = stage.open();
    assert_eq!(store.note("freeze").await.unwrap(), None);
    store.set_note("freeze", Some("release night")).await.unwrap();
    store.set_note("freeze", Some("until Monday")).await.unwrap();
    store.set_note("other", Some("")).await.unwrap();
    drop(store);
    let store = stage.open();
    assert_eq!(store.note("freeze").await.unwrap().as_deref(), Some("until Monday"));
    assert_eq!(store.note("other").await.unwrap().as_deref(), Some(""));
    store.set_note("freeze", None).await.unwrap();
    assert_eq!(stage.open().note("freeze").await.unwrap(), None);
}

/// Each answer is one moment: state and cursor of a store under load always fit.
pub async fn w7_desired_is_one_moment(stage: Stage) {
    const EVENTS: u64 = 60;
    let writer = stage.open();
    // Each event moves `a` and `b` in turn to the revision that its version says.
    let mut writing = tokio::task::JoinSet::new();
    writing.spawn(async move {
        for n in 1..=EVENTS {
            let plugin = if n % 2 == 0 { "a" } else { "b" };
            writer.apply(v(n), &deployed(n, plugin, n)).await.unwrap();
        }
    });
    let reader = stage.open();
    loop {
        let (cursor, rows) = reader.desired().await.unwrap();
        let mut found: Vec<u64> = rows.iter().map(|row| row.revision).collect();
        found.sort_unstable();
        let expected: Vec<u64> = (cursor.0.saturating_sub(1)..=cursor.0).filter(|n| *n > 0).collect();
        assert_eq!(found, expected, "the cursor says what is in the rows");
        if cursor == v(EVENTS) {
            break;
        }
        tokio::task::yield_now().await;
    }
    writing.join_next().await.unwrap().unwrap();
}

/// Runs the whole suite for one backend: `control_store_conformance!(memory, setup)`.
#[macro_export]
macro_rules! control_store_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, control_store, $setup;
            c14_c15_an_event_lands_once_with_its_cursor,
            c16_c17_c18_a_later_revision_replaces_the_whole_state,
            c19_the_list_of_keys_is_one_entity,
            c20_c21_what_needs_nothing_moves_the_cursor,
            c22_a_known_id_with_other_bytes_is_a_repeat,
            c23_what_is_set_aside_leaves_a_record_and_moves_the_cursor,
            setting_aside_takes_no_id_and_takes_nothing_back,
            w4_an_older_message_that_comes_late_is_not_lost,
            the_first_in_the_feed_wins_a_revision_everywhere,
            w9_what_was_made_on_what_came_second_does_not_go_on,
            a_forgotten_id_changes_nothing_either,
            a_batch_means_its_entries_one_by_one,
            a_restore_never_goes_back,
            a_restore_settles_a_conflict_as_the_origin_has_it,
            the_oldest_of_what_is_set_aside_goes_first,
            what_was_made_of_it_is_remembered,
            notes_are_kept_by_name,
            w7_desired_is_one_moment,
        );
    };
}
