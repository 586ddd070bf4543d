//! The state of a group against a list that is looked through from its beginning each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::streams::groups::state::GroupState;
use millrace::streams::groups::{
    ConsumerName, GroupLetter, GroupLimits, GroupOptions, GroupRead, GroupWrite, LoadedGroup, Ranges,
    Receipt, Settled, StoredGroup, Tried,
};
use millrace_tests::conformance::groups::group;
use proptest::prelude::*;

const LEASE_MS: u64 = 100;
const TRIES: u32 = 3;
const WINDOW: usize = 6;

/// What happens. Numbers pick from what there is at that moment.
#[derive(Clone, Debug)]
enum Act {
    /// An event of a key, behind so many of other tenants.
    Append {
        key: u8,
        others: u8,
    },
    TakeIn(u8),
    Read {
        consumer: u8,
        events: u8,
    },
    Ack(u8),
    Nack {
        pick: u8,
        delay_ms: u8,
    },
    Renew(u8),
    Pass(u8),
    Replay(u8),
    Discard(u8),
    /// The owner writes what is not written.
    Sweep,
    /// The process is killed.
    Kill,
    /// Everything up to a position is removed.
    Trim(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..4_u8, 0..3_u8).prop_map(|(key, others)| Act::Append { key, others }),
        4 => (1..4_u8).prop_map(Act::TakeIn),
        6 => (0..3_u8, 1..4_u8).prop_map(|(consumer, events)| Act::Read { consumer, events }),
        5 => any::<u8>().prop_map(Act::Ack),
        4 => (any::<u8>(), 0..80_u8).prop_map(|(pick, delay_ms)| Act::Nack { pick, delay_ms }),
        1 => any::<u8>().prop_map(Act::Renew),
        3 => (0..120_u8).prop_map(Act::Pass),
        2 => any::<u8>().prop_map(Act::Replay),
        1 => any::<u8>().prop_map(Act::Discard),
        1 => Just(Act::Sweep),
        1 => Just(Act::Kill),
        1 => any::<u8>().prop_map(Act::Trim),
    ]
}

#[derive(Clone, Debug, PartialEq)]
enum Stand {
    Free,
    Leased { until: i64 },
    Waits { until: i64 },
    Done,
    Dead,
    Lost,
}

#[derive(Clone, Debug)]
struct Known {
    key: u8,
    stand: Stand,
    attempts: u32,
    /// What a restart finds.
    written: (u32, i64),
    taken_in: bool,
    replayed: bool,
}

/// The list.
#[derive(Debug, Default)]
struct Model {
    events: BTreeMap<u64, Known>,
    now: i64,
    lost: u64,
}

impl Known {
    fn open(&self) -> bool {
        self.taken_in && !matches!(self.stand, Stand::Done | Stand::Dead | Stand::Lost)
    }
}

impl Model {
    fn tick(&mut self) {
        // Leases and waits end in the order of their ends; none of that depends on another one here.
        for known in self.events.values_mut().filter(|known| known.open()) {
            match known.stand {
                Stand::Leased { until } if until <= self.now => {
                    known.stand = if known.attempts >= TRIES { Stand::Dead } else { Stand::Free };
                    known.replayed &= known.stand != Stand::Dead;
                }
                Stand::Waits { until } if until <= self.now => known.stand = Stand::Free,
                _ => {}
            }
        }
    }

    /// The positions that a read must answer.
    fn deliverable(&self, events: usize) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let leased: BTreeSet<u8> = self
            .events
            .values()
            .filter(|known| known.open() && matches!(known.stand, Stand::Leased { .. }))
            .map(|known| known.key)
            .collect();
        let open = self.events.iter().filter(|(_, known)| known.open());
        let first = open.filter(|(_, known)| seen.insert(known.key) && !leased.contains(&known.key));
        first.filter(|(_, known)| known.stand == Stand::Free).map(|(at, _)| *at).take(events).collect()
    }

    fn undone(&self) -> u64 {
        let done = |known: &Known| matches!(known.stand, Stand::Done | Stand::Dead | Stand::Lost);
        self.events.values().filter(|known| !done(known) && !known.replayed).count() as u64
    }

    fn write(&mut self) {
        for known in self.events.values_mut() {
            known.written.0 = known.attempts;
            known.written.1 = if let Stand::Waits { until } = known.stand { until } else { 0 };
        }
    }
}

/// What a store keeps, as simply as can be.
#[derive(Debug)]
struct Store(LoadedGroup);

impl Store {
    fn new() -> Self {
        let row = StoredGroup {
            group: group("acme", "billing"),
            incarnation: 1,
            options: GroupOptions {
                lease_ms: LEASE_MS,
                attempts_max: TRIES,
                backoff_ms_min: 10,
                backoff_ms_max: 40,
                ..GroupOptions::default()
            },
            created_at: Micros(0),
            low: Position::START,
            done: Ranges::default(),
            delivered: Ranges::default(),
            lost_events: 0,
            lost_until: Position::START,
            lost_at: None,
            stopped: false,
        };
        Self(LoadedGroup { row, tried: Vec::new(), dead: Vec::new(), replaying: Vec::new() })
    }

    fn letters(&self, dead: &BTreeMap<u64, GroupLetter>) -> LoadedGroup {
        let (replaying, dead): (Vec<_>, Vec<_>) = dead.values().cloned().partition(|letter| letter.replaying);
        LoadedGroup { dead: dead.iter().map(GroupLetter::position).collect(), replaying, ..self.0.clone() }
    }

    fn write(&mut self, write: GroupWrite, letters: &mut BTreeMap<u64, GroupLetter>) {
        let text = (write.done.to_string(), write.delivered.to_string());
        let row = &mut self.0.row;
        assert!(row.low <= write.low, "a group never goes back by itself");
        row.low = write.low;
        // As a store does: by its text.
        row.done = Ranges::parse(&text.0).expect("ranges");
        row.delivered = Ranges::parse(&text.1).expect("ranges");
        let mut tried: BTreeMap<Position, Tried> = self.0.tried.drain(..).collect();
        for (position, one) in write.tried {
            match one {
                Some(one) => drop(tried.insert(position, one)),
                None => drop(tried.remove(&position)),
            }
        }
        self.0.tried = tried.into_iter().collect();
        for letter in write.dead {
            letters.insert(letter.position().0, letter);
        }
        for position in write.replaying {
            letters.get_mut(&position.0).expect("a letter is there when it is replayed").replaying = true;
        }
        for position in write.resolved {
            letters.remove(&position.0);
        }
    }
}

/// Both of them, and what is leased.
struct Both {
    model: Model,
    state: GroupState,
    store: Store,
    letters: BTreeMap<u64, GroupLetter>,
    newest: u64,
    trimmed: u64,
    life: u64,
    receipts: Vec<Receipt>,
}

fn limits() -> GroupLimits {
    GroupLimits { window_events_max: WINDOW, ..GroupLimits::default() }
}

fn event(position: u64, key: u8) -> Arc<EventBatch> {
    let mut batch = EventBatch::new(TenantId::new("acme").expect("a tenant"));
    let agg_id = key.to_string();
    let event = Event { aggregate: "thing", agg_id: &agg_id, event_type: "made", ..Event::default() };
    batch.push(&event).expect("a valid event");
    batch.set_position(0, Position(position));
    Arc::new(batch)
}

impl Both {
    fn new() -> Self {
        let store = Store::new();
        let state = GroupState::load(store.0.clone(), 0, limits());
        let (model, letters) = (Model::default(), BTreeMap::new());
        Self { model, state, store, letters, newest: 0, trimmed: 0, life: 0, receipts: Vec::new() }
    }

    fn now(&self) -> Micros {
        Micros(self.model.now)
    }

    fn write(&mut self) {
        self.store.write(self.state.write(), &mut self.letters);
        self.model.write();
    }

    fn act(&mut self, act: &Act) {
        let now = self.now();
        match *act {
            Act::Append { key, others } => {
                self.newest += 1 + u64::from(others);
                let known = Known {
                    key,
                    stand: Stand::Free,
                    attempts: 0,
                    written: (0, 0),
                    taken_in: false,
                    replayed: false,
                };
                self.model.events.insert(self.newest, known);
            }
            Act::TakeIn(events) => self.take_in(events.into()),
            Act::Read { consumer, events } => self.read(consumer, events.into()),
            Act::Ack(pick) => {
                let Some(receipt) = self.pick(pick) else { return };
                let settled = self.state.ack(&receipt, now);
                self.model.tick();
                let known = self.model.events.get_mut(&receipt.position.0).expect("it was delivered");
                if settled == Settled::Acknowledged {
                    assert!(matches!(known.stand, Stand::Leased { .. }), "{known:?}");
                    known.stand = Stand::Done;
                    known.replayed = false;
                } else if settled == Settled::Already {
                    assert!(matches!(known.stand, Stand::Done | Stand::Lost), "{known:?}");
                }
                self.write();
            }
            Act::Nack { pick, delay_ms } => {
                let Some(receipt) = self.pick(pick) else { return };
                let settled = self.state.nack(&receipt, Some(delay_ms.into()), "because", now);
                self.model.tick();
                let known = self.model.events.get_mut(&receipt.position.0).expect("it was delivered");
                match settled {
                    Settled::Retry(due) => {
                        assert!(known.attempts < TRIES && matches!(known.stand, Stand::Leased { .. }));
                        assert_eq!(due.0, now.0 + i64::from(delay_ms) * 1_000);
                        known.stand = Stand::Waits { until: due.0 };
                    }
                    Settled::DeadLetter => {
                        assert!(known.attempts >= TRIES, "{known:?}");
                        (known.stand, known.replayed) = (Stand::Dead, false);
                    }
                    Settled::Refused(_) | Settled::Already => {}
                    other => panic!("{other:?}"),
                }
                self.write();
            }
            Act::Renew(pick) => {
                let Some(receipt) = self.pick(pick) else { return };
                let settled = self.state.renew(&receipt, None, now);
                self.model.tick();
                if let Settled::Renewed(until) = settled {
                    let known = self.model.events.get_mut(&receipt.position.0).expect("it was delivered");
                    assert!(matches!(known.stand, Stand::Leased { .. }), "{known:?}");
                    known.stand = Stand::Leased { until: until.0 };
                }
            }
            Act::Pass(ms) => self.model.now += i64::from(ms) * 1_000,
            Act::Replay(pick) => {
                let Some(letter) = self.letter(pick) else { return };
                if letter.replaying {
                    return;
                }
                let known = self.model.events.get_mut(&letter.position().0).expect("it was delivered");
                (known.stand, known.attempts, known.replayed) = (Stand::Free, 0, true);
                known.taken_in = true;
                self.state.replay(letter);
                self.write();
            }
            Act::Discard(pick) => {
                let Some(letter) = self.letter(pick) else { return };
                self.state.discard(letter.position());
                let known = self.model.events.get_mut(&letter.position().0).expect("it was delivered");
                (known.stand, known.replayed) = (Stand::Done, false);
                self.write();
            }
            Act::Sweep => {
                self.state.tick(now);
                self.model.tick();
                self.write();
            }
            Act::Kill => self.kill(),
            Act::Trim(pick) => self.trim(pick),
        }
    }

    fn pick(&self, pick: u8) -> Option<Receipt> {
        let from = self.receipts.len().saturating_sub(6);
        let recent = &self.receipts[from..];
        (!recent.is_empty()).then(|| recent[usize::from(pick) % recent.len()])
    }

    fn letter(&self, pick: u8) -> Option<GroupLetter> {
        let all: Vec<_> = self.letters.values().collect();
        (!all.is_empty()).then(|| all[usize::from(pick) % all.len()].clone())
    }

    fn take_in(&mut self, events: usize) {
        let open = self.model.events.values().filter(|known| known.open()).count();
        let room = self.state.room().map_or(0, |(events, _)| events);
        assert_eq!(room, WINDOW.saturating_sub(open));
        let frontier = self.state.frontier().0;
        let mut left = room.min(events);
        let rest: Vec<u64> = self.model.events.range(frontier + 1..).map(|(at, _)| *at).collect();
        for position in rest {
            if left == 0 {
                return;
            }
            let known = self.model.events.get_mut(&position).expect("it is there");
            self.state.take_in(event(position, known.key));
            self.state.advance(Position(position));
            left -= 1;
            if !known.taken_in {
                known.taken_in = true;
                (known.attempts, known.stand) = match known.stand {
                    Stand::Done | Stand::Dead | Stand::Lost => (known.attempts, known.stand.clone()),
                    _ if known.written.1 > 0 => (known.written.0, Stand::Waits { until: known.written.1 }),
                    _ => (known.written.0, Stand::Free),
                };
            }
        }
        self.state.advance(Position(self.newest));
    }

    fn read(&mut self, consumer: u8, events: usize) {
        let read = GroupRead {
            consumer: ConsumerName::new(&format!("c{consumer}")).expect("a name"),
            events,
            bytes: 1 << 20,
            wait: std::time::Duration::ZERO,
        };
        let now = self.now();
        let taken = self.state.take(&read, now).expect("there is room").entries;
        self.model.tick();
        let expected = self.model.deliverable(events);
        let found: Vec<u64> = taken.iter().map(|delivery| delivery.receipt.position.0).collect();
        assert_eq!(found, expected, "{:?}", self.model);
        for delivery in taken {
            let known = self.model.events.get_mut(&delivery.receipt.position.0).expect("it is there");
            known.attempts += 1;
            assert_eq!((delivery.attempt, delivery.replayed), (known.attempts, known.replayed), "{known:?}");
            known.stand = Stand::Leased { until: delivery.deadline.0 };
            self.receipts.push(delivery.receipt);
        }
    }

    fn kill(&mut self) {
        self.life += 1;
        self.state = GroupState::load(self.store.letters(&self.letters), self.life, limits());
        self.state.forget(&self.store.0.row.clone(), Position(self.trimmed));
        // Ends of leases that nobody has written are forgotten with them: so are deaths.
        let letters = &self.letters;
        let dead = |at: &u64| letters.get(at).is_some_and(|letter| !letter.replaying);
        for (at, known) in &mut self.model.events {
            if known.stand == Stand::Dead && !dead(at) {
                known.stand = Stand::Free;
            }
            if matches!(known.stand, Stand::Done | Stand::Dead | Stand::Lost) {
                continue;
            }
            known.replayed = letters.contains_key(at);
            known.taken_in = known.replayed;
            known.attempts = known.written.0;
            known.stand =
                if known.written.1 > 0 { Stand::Waits { until: known.written.1 } } else { Stand::Free };
        }
    }

    fn trim(&mut self, pick: u8) {
        self.write();
        let until = self.trimmed + u64::from(pick) % (self.newest - self.trimmed + 1);
        self.trimmed = until;
        for (_, known) in self.model.events.range_mut(..=until) {
            if !matches!(known.stand, Stand::Done | Stand::Dead | Stand::Lost) && !known.replayed {
                known.stand = Stand::Lost;
                self.model.lost += 1;
            }
        }
        let row = &mut self.store.0.row;
        if self.model.lost > row.lost_events {
            row.lost_events = self.model.lost;
            (row.low, row.lost_until) = (row.low.max(Position(until)), Position(until));
            row.done.cut(row.low.0);
            row.delivered.cut(row.low.0);
            let low = row.low;
            let letters = &self.letters;
            self.store.0.tried.retain(|(position, _)| {
                *position > low || letters.get(&position.0).is_some_and(|letter| letter.replaying)
            });
        }
        self.state.forget(&row.clone(), Position(until));
    }

    /// What is always so.
    fn check(&self) {
        let low = self.state.low().0;
        for (at, known) in self.model.events.range(..=low) {
            let over = matches!(known.stand, Stand::Done | Stand::Dead | Stand::Lost) || known.replayed;
            assert!(over, "event {at} is below {low} and not done: {known:?}");
        }
        let open = self.model.events.values().filter(|known| known.open()).count();
        let filling = self.state.filling();
        assert_eq!(filling.in_flight + filling.retrying + filling.waiting, open);
    }

    /// Everything that is left goes through.
    fn finish(&mut self) {
        self.kill();
        for _ in 0..10_000 {
            self.model.now += 1_000_000;
            self.take_in(WINDOW);
            let before = self.receipts.len();
            self.read(0, WINDOW);
            for index in before..self.receipts.len() {
                let receipt = self.receipts[index];
                assert_eq!(self.state.ack(&receipt, self.now()), Settled::Acknowledged);
                let known = self.model.events.get_mut(&receipt.position.0).expect("it is there");
                (known.stand, known.replayed) = (Stand::Done, false);
            }
            self.write();
            self.check();
            if self.model.undone() == 0 && self.receipts.len() == before {
                return;
            }
        }
        panic!("it does not end: {:?}", self.model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_group_delivers_what_a_list_says_also_after_kills_and_retention(
        acts in prop::collection::vec(act(), 1..160)
    ) {
        let mut both = Both::new();
        for act in &acts {
            both.act(act);
            both.check();
        }
        both.finish();
    }
}

#[test]
fn ranges_grow_together_only_where_nothing_lies_between() {
    let mut ranges = Ranges::default();
    let open = [5_u64, 9];
    let apart = |a: u64, b: u64| open.iter().any(|one| (a + 1..b).contains(one));
    for position in [2, 4, 7, 12, 3, 8, 20] {
        ranges.add(position, apart);
    }
    assert_eq!(ranges.to_string(), "2-4,7-8,12-20");
    assert!(ranges.contains(15) && !ranges.contains(5) && !ranges.contains(9));
    ranges.cut(13);
    assert_eq!(ranges.to_string(), "14-20");
    assert_eq!(Ranges::parse("14-20"), Some(ranges));
    assert_eq!((Ranges::parse("3-1"), Ranges::parse("x")), (None, None));
}
