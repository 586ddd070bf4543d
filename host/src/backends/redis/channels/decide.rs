//! What a group of appends to one channel comes to: pure, on what is known of the channel.

use std::collections::HashMap;
use std::sync::Arc;

use super::records::Seen;
use crate::backends::memory::repeated;
use crate::channels::{
    Append, Appended, ChannelError, ChannelLimits, Entry, Excess, Head, Outcomed, Party, WhenFull, append,
};
use crate::event::{Micros, Position};

type Result<T> = std::result::Result<T, ChannelError>;

/// An entry that was appended before, with as many bytes as it is looked for with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) sender: Party,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) bytes: usize,
}

/// What there is of it.
#[derive(Clone, Debug)]
pub(super) enum Before {
    Entry(Arc<Entry>),
    /// It has other bytes, and so is another one.
    Other(Position),
    Dropped,
}

pub(super) type Found = HashMap<Wanted, Before>;

/// What a host writes, and what it answers then.
#[derive(Debug)]
pub(super) struct Plan {
    /// The channel afterwards, before anything is dropped, and its process.
    pub(super) head: Head,
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) excess: Excess,
    /// Bytes of the entries.
    pub(super) growth: u64,
    /// What the process was asked to hold more than before; none where nobody has to ask.
    pub(super) checked: Option<u64>,
    /// In the order of the appends.
    pub(super) answers: Vec<Result<Vec<Appended>>>,
}

#[derive(Debug)]
pub(super) enum Decided {
    Plan(Plan),
    /// It has to be known first what these were.
    Find(Vec<Wanted>),
}

/// Decides appends one behind the other; one that is refused changes nothing for the next.
pub(super) fn decide<'a>(
    seen: &Seen,
    appends: impl Iterator<Item = &'a Append>,
    found: &Found,
    now: Micros,
    limits: &ChannelLimits,
) -> Decided {
    let mut missing = Vec::new();
    let mut plan = Plan {
        head: seen.head.clone(),
        entries: Vec::new(),
        excess: Excess::default(),
        growth: 0,
        checked: None,
        answers: Vec::new(),
    };
    for asked in appends {
        let answer = plan.take_in(seen, asked, found, &mut missing, now, limits);
        plan.answers.push(answer);
    }
    if missing.is_empty() { Decided::Plan(plan) } else { Decided::Find(missing) }
}

impl Plan {
    fn take_in(
        &mut self,
        seen: &Seen,
        asked: &Append,
        found: &Found,
        missing: &mut Vec<Wanted>,
        now: Micros,
        limits: &ChannelLimits,
    ) -> Result<Vec<Appended>> {
        let planned = append(&self.head, asked, seen.bytes + self.growth, now, limits)?;
        let mut answers = Vec::with_capacity(planned.outcomes.len());
        let (mut new, mut growth): (Vec<Arc<Entry>>, _) = (Vec::new(), 0);
        for outcome in planned.outcomes {
            answers.push(match outcome {
                Outcomed::New(entry) => {
                    let (position, epoch, sequence) = (entry.position, entry.epoch, entry.sequence);
                    growth += entry.bytes() as u64;
                    new.push(entry);
                    Appended { position, epoch, sequence, repeated: false }
                }
                Outcomed::Repeat { index, epoch, sequence } => {
                    let place = (index, epoch, sequence);
                    let same = |entry: &&Arc<Entry>| {
                        entry.sequence == sequence && entry.epoch == epoch && entry.sender == asked.who
                    };
                    if let Some(first) = self.entries.iter().chain(&new).find(same) {
                        repeated(Some(first), asked, place)?
                    } else {
                        before(asked, place, found, missing)?
                    }
                }
            });
        }
        let freed = match planned.channel.options.full {
            WhenFull::DropOldest => planned.excess.bytes,
            WhenFull::Reject | WhenFull::Archive => 0,
        };
        self.growth += growth;
        if planned.counts {
            // As the rules ask.
            self.checked = self.checked.max(Some(self.growth.saturating_sub(freed)));
            self.excess.entries = self.excess.entries.max(planned.excess.entries);
            self.excess.bytes = self.excess.bytes.max(planned.excess.bytes);
        }
        if !new.is_empty() {
            self.head.channel = Arc::new(planned.channel);
            self.entries.extend(new);
        }
        Ok(answers)
    }
}

/// The answer to a repeat of what lies in the server.
fn before(
    asked: &Append,
    (index, epoch, sequence): (usize, u32, u64),
    found: &Found,
    missing: &mut Vec<Wanted>,
) -> Result<Appended> {
    let wanted = Wanted { sender: asked.who.clone(), epoch, sequence, bytes: asked.entries[index].bytes() };
    match found.get(&wanted) {
        Some(Before::Entry(first)) => repeated(Some(first), asked, (index, epoch, sequence)),
        Some(Before::Dropped) => repeated(None, asked, (index, epoch, sequence)),
        Some(Before::Other(position)) => {
            let party = asked.who.to_string();
            Err(ChannelError::SequenceTaken { party, epoch, sequence, position: *position })
        }
        None => {
            // What is answered here is not used.
            missing.push(wanted);
            Ok(Appended { position: Position::START, epoch, sequence, repeated: true })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::{Actor, Change, ChannelName, ChannelOptions, NewChannel, NewEntry, NewProcess};
    use crate::channels::{EntryType, Incarnation, ProcessId, ProcessName, change, create};
    use crate::event::TenantId;

    const NOW: Micros = Micros(7);

    fn party(name: &str) -> Party {
        Party::new(name).unwrap()
    }

    fn seen(options: ChannelOptions, limits: &ChannelLimits) -> Seen {
        let name = ChannelName::new("talk").unwrap();
        let new = NewProcess {
            id: ProcessId { tenant: TenantId::new("acme").unwrap(), name: ProcessName::new("job").unwrap() },
            submitter: party("ann"),
            executor: Some(party("eve")),
            observers: Vec::new(),
            channels: vec![NewChannel { name: name.clone(), options }],
        };
        let view = create(None, new, 0, (Incarnation::new(), NOW), limits).unwrap().unwrap();
        Seen { incarnation: "one".into(), head: view.head(&name).unwrap(), bytes: 0 }
    }

    fn of(who: &str, entries: Vec<NewEntry>) -> Append {
        Append { who: party(who), epoch: None, entries }
    }

    fn plan(seen: &Seen, appends: &[Append], found: &Found, limits: &ChannelLimits) -> Plan {
        match decide(seen, appends.iter(), found, NOW, limits) {
            Decided::Plan(plan) => plan,
            Decided::Find(missing) => panic!("{missing:?}"),
        }
    }

    fn positions(answer: &Result<Vec<Appended>>) -> Vec<(u64, bool)> {
        let answer = answer.as_ref().unwrap();
        answer.iter().map(|one| (one.position.0, one.repeated)).collect()
    }

    #[test]
    fn appends_of_a_group_stand_on_each_other_and_one_that_is_refused_leaves_no_trace() {
        let limits = ChannelLimits::default();
        let seen = seen(limits.default_options(), &limits);
        let appends = [
            of("ann", vec![NewEntry::data(1, "a"), NewEntry::data(2, "b")]),
            // Its second entry makes it void as a whole.
            of("eve", vec![NewEntry::data(1, "c"), NewEntry::data(3, "d")]),
            of("eve", vec![NewEntry::data(1, "e")]),
            of("ann", vec![NewEntry::data(2, "b"), NewEntry::data(3, "f")]),
            of("ann", vec![NewEntry::data(3, "another")]),
        ];
        let plan = plan(&seen, &appends, &Found::new(), &limits);
        assert_eq!(positions(&plan.answers[0]), [(1, false), (2, false)]);
        assert!(matches!(plan.answers[1], Err(ChannelError::Gap { expected: 2, .. })));
        assert_eq!(positions(&plan.answers[2]), [(3, false)]);
        assert_eq!(positions(&plan.answers[3]), [(2, true), (4, false)]);
        let taken = &plan.answers[4];
        assert!(matches!(taken, Err(ChannelError::SequenceTaken { position: Position(4), .. })), "{taken:?}");
        assert_eq!((plan.entries.len(), plan.head.channel.newest, plan.growth), (4, Position(4), 4));
    }

    #[test]
    fn what_was_appended_before_is_looked_for_and_then_compared() {
        let limits = ChannelLimits::default();
        let mut seen = seen(limits.default_options(), &limits);
        let first = plan(&seen, &[of("ann", vec![NewEntry::data(1, "abc")])], &Found::new(), &limits);
        seen.head = first.head.clone();
        let again = |text: &'static str| [of("ann", vec![NewEntry::data(1, text)])];
        let Decided::Find(missing) = decide(&seen, again("abc").iter(), &Found::new(), NOW, &limits) else {
            panic!("it is not known here")
        };
        let [wanted] = &missing[..] else { panic!("{missing:?}") };
        assert_eq!((wanted.sequence, wanted.bytes), (1, 3));
        let entry = Before::Entry(Arc::clone(&first.entries[0]));
        let found = Found::from([(wanted.clone(), entry)]);
        assert_eq!(positions(&plan(&seen, &again("abc"), &found, &limits).answers[0]), [(1, true)]);
        let other = plan(&seen, &again("xyz"), &found, &limits);
        assert!(matches!(other.answers[0], Err(ChannelError::SequenceTaken { .. })));
        let dropped = Found::from([(wanted.clone(), Before::Dropped)]);
        let dropped = plan(&seen, &again("abc"), &dropped, &limits);
        assert!(matches!(dropped.answers[0], Err(ChannelError::SequenceForgotten { .. })));
        assert!(dropped.entries.is_empty());
    }

    #[test]
    fn what_has_to_leave_and_what_the_process_is_asked_for_are_those_of_the_whole_group() {
        let limits = ChannelLimits::default();
        let full = WhenFull::DropOldest;
        let seen =
            seen(ChannelOptions { full, entries_max: 2, bytes_max: 10, ..limits.default_options() }, &limits);
        let one = |n: u64, text: &'static str| of("ann", vec![NewEntry::data(n, text)]);
        let end = of("eve", vec![NewEntry::data(1, "the end").of_type(EntryType::End)]);
        let all = plan(&seen, &[one(1, "1234"), one(2, "1234"), one(3, "1234"), end], &Found::new(), &limits);
        assert_eq!(all.excess, Excess { entries: 1, bytes: 2 });
        assert_eq!((all.growth, all.checked), (19, Some(10)), "a last word asks for nothing");
        let end = of("eve", vec![NewEntry::data(1, "the end").of_type(EntryType::End)]);
        let last = plan(&seen, &[end], &Found::new(), &limits);
        assert_eq!((last.growth, last.checked, last.excess), (7, None, Excess::default()));
    }

    #[test]
    fn a_change_that_came_between_is_seen_by_the_next_decision() {
        let limits = ChannelLimits::default();
        let mut seen = seen(limits.default_options(), &limits);
        let mut view = crate::channels::ProcessView {
            process: Arc::clone(&seen.head.process),
            channels: vec![Arc::clone(&seen.head.channel)],
        };
        assert!(change(&mut view, &Actor::Host, Change::Assign(party("eli")), NOW, &limits).unwrap());
        seen.head = view.head(&seen.head.channel.name).unwrap();
        let plan = plan(&seen, &[of("eve", vec![NewEntry::data(1, "late")])], &Found::new(), &limits);
        assert!(matches!(plan.answers[0], Err(ChannelError::Forbidden { .. })), "{:?}", plan.answers[0]);
        assert!(plan.entries.is_empty());
    }
}
