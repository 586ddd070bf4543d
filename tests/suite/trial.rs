//! Claims about processors over recorded events: what is found when one does not make the same of them however they
//! come. Processors here are plain Rust, each wrong in one way.

mod components;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use millrace::checkpoints::{EffectBatch, EffectKind, EffectRecord, SavedState};
use millrace::event::{Event, EventBatch, Position, TenantId};
use millrace::plugins::trial::{Cut, Fold, Folded, Proof, Prove};
use millrace::processors::{
    Failure, FailureKind, FlushReason, LoadError, Manifest, OrderingKey, Outcome, Processor,
    ProcessorFactory, Subscription, TaskContext, Trap, TrapKind,
};
use millrace::tables::{Cell, CellsBuilder, Column, ColumnType, TableSchema};

/// How a processor is wrong. It counts events by their `agg_id`, in its state.
#[derive(Clone, Debug)]
enum Nature {
    Sound,
    /// Its rows hold the place in the batch.
    CountsBatches,
    /// Its rows say whether they are of an event far back in a batch. With ticks or without.
    CountsLongBatches {
        ticks: bool,
    },
    /// It keeps a sum beside its state, and its rows hold it.
    ForgetsItsSum,
    /// Its rows hold what this clock says, which moves with every look.
    TellsTime(Arc<AtomicI64>),
    /// A tick writes how many events came.
    TellsTicks,
    /// Its state ends with the number of its snapshots.
    UnequalSnapshots,
    /// It loads nothing that it saved.
    RefusesItsState,
    /// It changes what it loads.
    ChangesItsState,
    /// What it saves falls after this many events.
    SnapshotTraps(i64),
}

#[derive(Debug)]
struct Counting {
    manifest: Manifest,
    nature: Nature,
}

impl Counting {
    fn new(nature: Nature) -> Self {
        let column = |name: &str| Column {
            name: name.into(),
            column_type: ColumnType::Int,
            nullable: false,
            filterable: false,
            sortable: false,
        };
        let ticks = matches!(nature, Nature::TellsTicks | Nature::CountsLongBatches { ticks: true });
        let flush_interval_ms = ticks.then_some(1_000);
        let manifest = Manifest {
            name: "counting".into(),
            version: semver::Version::new(1, 0, 0),
            summary: String::new(),
            state_content_type: Some("application/json".into()),
            ordering_key: OrderingKey::Aggregate,
            subscription: Subscription { types: vec![], aggregates: vec!["thing".into()] },
            tables: vec![TableSchema {
                name: "counts".into(),
                columns: vec![column("count"), column("odd")],
                versioned: false,
                window_rows_max: 100,
            }],
            grants: vec![],
            flush_interval_ms,
            changes: Vec::new(),
        };
        Self { manifest, nature }
    }
}

impl ProcessorFactory for Counting {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        "counting"
    }

    fn instantiate(&self, _: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        let (manifest, nature) = (self.manifest.clone(), self.nature.clone());
        Ok(Box::new(Counter { manifest, nature, counts: Vec::new(), events: 0, sum: 0, snapshots: 0 }))
    }
}

struct Counter {
    manifest: Manifest,
    nature: Nature,
    counts: Vec<(String, i64)>,
    events: i64,
    sum: i64,
    snapshots: u32,
}

impl Counter {
    fn count(&mut self, key: &str) -> i64 {
        if let Some((_, count)) = self.counts.iter_mut().find(|(own, _)| own == key) {
            *count += 1;
            return *count;
        }
        self.counts.push((key.to_owned(), 1));
        1
    }

    fn odd(&mut self, place: usize, count: i64) -> i64 {
        let place = i64::try_from(place).expect("a small batch");
        match &self.nature {
            Nature::CountsBatches => place,
            Nature::CountsLongBatches { .. } => i64::from(place >= 500),
            Nature::ForgetsItsSum => {
                self.sum += count;
                self.sum
            }
            Nature::TellsTime(clock) => clock.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        }
    }

    fn effects(&self, rows: &[(String, i64, i64)], depths: &[u32]) -> Result<EffectBatch, Trap> {
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for (index, (key, count, odd)) in rows.iter().enumerate() {
            let body = CellsBuilder::default().push(Cell::Int(*count)).push(Cell::Int(*odd)).finish();
            let length = |bytes: usize| u32::try_from(bytes).expect("small");
            records.push(EffectRecord {
                kind: EffectKind::Put,
                table: 0,
                event: if depths.is_empty() { 0 } else { length(index) },
                version: 0,
                at: 0,
                schema_version: 0,
                start: length(arena.len()),
                key_bytes: length(key.len()),
                aggregate_bytes: 0,
                type_bytes: 0,
                id_bytes: 0,
                body_bytes: length(body.len()),
                depth: 0,
            });
            arena.extend_from_slice(key.as_bytes());
            arena.extend_from_slice(&body);
        }
        EffectBatch::check(arena, records, &self.manifest.tables, depths)
            .map_err(|error| Trap::new(TrapKind::Output, error.to_string()))
    }
}

impl Processor for Counter {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        let Some(saved) = saved else { return Ok(()) };
        if matches!(self.nature, Nature::RefusesItsState) {
            return Err(LoadError::Refused { message: "it is not mine".into() });
        }
        (self.counts, self.events, _) =
            serde_json::from_slice::<(Vec<(String, i64)>, i64, u32)>(&saved.state).expect("its own state");
        if matches!(self.nature, Nature::ChangesItsState) {
            self.events += 1;
        }
        Ok(())
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let (mut rows, mut failure) = (Vec::new(), None);
        for (place, event) in batch.iter().enumerate() {
            let fails = |kind| Some(Failure { kind, message: format!("event {}", event.position.0) });
            failure = match event.event_type {
                "trap" => return Err(Trap::new(TrapKind::Trap, "it fell")),
                "reject" => fails(FailureKind::Reject),
                "retry" => fails(FailureKind::Retry),
                "fatal" => fails(FailureKind::Fatal),
                _ => None,
            };
            if failure.is_some() {
                break;
            }
            let count = self.count(event.agg_id);
            self.events += 1;
            let odd = self.odd(place, count);
            rows.push((event.agg_id.to_owned(), count, odd));
        }
        let depths: Vec<u32> = batch.records().iter().map(|record| record.depth).collect();
        Ok(Outcome { handled: rows.len(), effects: self.effects(&rows, &depths)?, failure })
    }

    fn flush(&mut self, _: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        if !matches!(self.nature, Nature::TellsTicks) {
            return Ok(Ok(self.effects(&[], &[])?));
        }
        let key = format!("tick-{}", self.events);
        Ok(Ok(self.effects(&[(key, self.events, 0)], &[])?))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        self.snapshots += 1;
        if matches!(self.nature, Nature::SnapshotTraps(after) if self.events >= after) {
            return Err(Trap::new(TrapKind::Trap, "it fell"));
        }
        let looks = if matches!(self.nature, Nature::UnequalSnapshots) { self.snapshots } else { 0 };
        Ok(serde_json::to_vec(&(&self.counts, self.events, looks)).expect("it is JSON"))
    }
}

/// Events by type and key, at positions from 1 on.
fn events<'a>(which: impl IntoIterator<Item = (&'a str, &'a str)>) -> EventBatch {
    let mut batch = EventBatch::new(TenantId::new("t").expect("a name"));
    for (index, (event_type, key)) in which.into_iter().enumerate() {
        let event = Event {
            aggregate: "thing",
            agg_id: key,
            event_type,
            version: index as u64 + 1,
            schema_version: 1,
            payload: b"{}",
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
        batch.set_position(index, Position(index as u64 + 1));
    }
    batch
}

fn ordinary(count: usize) -> EventBatch {
    events((0..count).map(|index| ("add", ["a", "b", "c"][index % 3])))
}

fn proof(nature: Nature, events: &EventBatch) -> Proof {
    let factory = Counting::new(nature);
    let still = Prove { clock_moves: Duration::ZERO };
    still.run(&Fold::new(&factory, events)).expect("it begins")
}

fn codes(proof: &Proof) -> Vec<&str> {
    proof.findings.iter().map(|finding| finding.code).collect()
}

fn folded(events: &EventBatch, cut: Cut) -> Folded {
    Fold::new(&Counting::new(Nature::Sound), events).run(cut).expect("it begins")
}

#[test]
fn a_sound_processor_gives_one_result_however_its_events_come() {
    let proof = proof(Nature::Sound, &ordinary(50));
    assert!(proof.holds() && proof.findings.is_empty(), "{:?}", proof.findings);
    assert_eq!(proof.runs, 12, "six cuts, twice each");
    assert_eq!(proof.folded.rows.len(), 3);
    assert_eq!(proof.folded.to_json()["rows"]["counts"][0]["count"], 17);
}

#[test]
fn what_depends_on_the_batch_is_found_with_the_fewest_events_that_show_it() {
    let proof = proof(Nature::CountsBatches, &ordinary(50));
    assert_eq!(codes(&proof), ["batch_size"], "{:?}", proof.findings);
    let finding = &proof.findings[0];
    assert_eq!(finding.events, Some(2), "the second event of a batch has another place: {finding:?}");
    let difference = finding.difference.as_ref().expect("a row differs");
    assert_eq!(difference.place, "row counts/b, column odd");
    assert_eq!((difference.one.as_str(), difference.other.as_str()), ("0", "1"));
}

/// Ticks in between, and restarts, would cut a large batch.
#[test]
fn what_depends_on_a_large_batch_is_found_with_ticks_and_without() {
    for ticks in [false, true] {
        let nature = Nature::CountsLongBatches { ticks };
        let found = proof(nature.clone(), &ordinary(1_000));
        assert_eq!(codes(&found), ["batch_size"], "{ticks}: {:?}", found.findings);
        assert_eq!(found.findings[0].events, Some(501), "{ticks}: {:?}", found.findings);
        assert!(proof(nature, &ordinary(500)).findings.is_empty(), "{ticks}");
    }
    assert_eq!(proof(Nature::Sound, &ordinary(1_001)).runs, 14, "two with a restart behind a large batch");
}

#[test]
fn what_a_restart_forgets_is_found() {
    let proof = proof(Nature::ForgetsItsSum, &ordinary(50));
    assert_eq!(codes(&proof), ["restarts"], "{:?}", proof.findings);
    assert_eq!(proof.findings[0].events, Some(12), "the first one behind a restart: {:?}", proof.findings);
}

#[test]
fn what_depends_on_the_time_is_found() {
    let proof = proof(Nature::TellsTime(Arc::default()), &ordinary(50));
    assert_eq!(codes(&proof), ["unrepeatable"], "{:?}", proof.findings);
    assert_eq!(proof.findings[0].events, Some(1), "{:?}", proof.findings);
}

#[test]
fn what_depends_on_ticks_is_told_and_not_held_against_it() {
    let proof = proof(Nature::TellsTicks, &ordinary(200));
    assert_eq!(codes(&proof), ["ticks"], "{:?}", proof.findings);
    assert!(proof.holds());
}

#[test]
fn broken_rules_of_the_state_are_found() {
    let cases = [
        (Nature::UnequalSnapshots, "snapshot_unequal"),
        (Nature::RefusesItsState, "state_refused"),
        (Nature::ChangesItsState, "state_changed"),
        (Nature::SnapshotTraps(20), "snapshot_failed"),
    ];
    for (nature, code) in cases {
        let shown = format!("{nature:?}");
        let proof = proof(nature, &ordinary(50));
        assert!(codes(&proof).contains(&code), "{shown}: {:?}", proof.findings);
        assert!(!proof.holds(), "{shown}");
    }
}

#[test]
fn an_event_that_traps_is_alone_a_letter_in_every_cut() {
    let all = events([("add", "a"), ("add", "b"), ("trap", "c"), ("add", "a"), ("add", "c"), ("add", "b")]);
    for batch_events in [1, 2, 3, 6] {
        let folded = folded(&all, Cut::batches(batch_events));
        let letters: Vec<(u64, &str)> =
            folded.letters.iter().map(|letter| (letter.position, letter.reason.as_str())).collect();
        assert_eq!(letters, [(3, "trap")], "batches of {batch_events}");
        assert_eq!(folded.waiting, [5], "its key waits, in batches of {batch_events}");
        assert_eq!(folded.to_json()["rows"]["counts"][1]["count"], 2, "batches of {batch_events}");
    }
    let proof = proof(Nature::Sound, &all);
    assert!(proof.holds(), "{:?}", proof.findings);
    assert_eq!(codes(&proof), ["dead_letters"]);
}

#[test]
fn failures_become_letters_by_their_kind() {
    let all =
        events([("reject", "a"), ("add", "b"), ("retry", "c"), ("add", "b"), ("fatal", "d"), ("add", "b")]);
    for batch_events in [1, 4, 6] {
        let folded = folded(&all, Cut::batches(batch_events));
        let letters: Vec<(u64, &str)> =
            folded.letters.iter().map(|letter| (letter.position, letter.reason.as_str())).collect();
        assert_eq!(letters, [(1, "reject"), (3, "retries"), (5, "fatal")], "batches of {batch_events}");
        assert!(folded.stopped.as_deref().is_some_and(|why| why.contains("event 5")), "{:?}", folded.stopped);
        assert_eq!(
            folded.to_json()["rows"]["counts"][0]["count"],
            2,
            "what comes behind a stop is not handled"
        );
    }
}

#[test]
fn only_events_of_the_subscription_are_handed_in() {
    let mut all = ordinary(2);
    let other = Event { aggregate: "other", agg_id: "a", event_type: "add", version: 1, ..Event::default() };
    all.push(&Event { schema_version: 1, payload: b"{}", ..other }).expect("a good event");
    let folded = folded(&all, Cut::batches(10));
    assert_eq!((folded.events, folded.rows.len()), (2, 2));
}

#[test]
fn equal_results_have_equal_digests_and_others_have_a_first_difference() {
    let (one, same) = (folded(&ordinary(9), Cut::batches(1)), folded(&ordinary(9), Cut::batches(4)));
    assert_eq!(one.digest(), same.digest());
    assert_eq!(one.first_difference(&same), None);
    let more = folded(&ordinary(10), Cut::batches(4));
    assert_ne!(one.digest(), more.digest());
    let difference = one.first_difference(&more).expect("a count differs");
    assert_eq!(difference.to_string(), "row counts/a, column count: 3 / 4");
}
