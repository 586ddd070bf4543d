//! A channel as a list that is looked through from its beginning each time.

use std::collections::BTreeSet;

use millrace::channels::{Appended, Entry, EntryType, Gaps, NewEntry, Outcome, WhenFull};
use millrace::limits::CHANNEL_AHEAD_MAX;

pub(super) const SUBMITTER: &str = "ann";
pub(super) const OBSERVER: &str = "oscar";

/// An entry, at the position after its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) who: String,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) new: NewEntry,
}

#[derive(Clone, Debug)]
pub(super) struct List {
    pub(super) gaps: Gaps,
    pub(super) full: WhenFull,
    pub(super) entries_max: u64,
    pub(super) log: Vec<Said>,
    pub(super) oldest: u64,
    /// The first that counts.
    hot: u64,
    pub(super) executor: Option<String>,
    pub(super) epoch: u32,
    ended: BTreeSet<(String, u32)>,
    pub(super) closed: Option<Outcome>,
}

/// What an append must answer: positions and whether each is a repeat, or the code of an error.
pub(super) type Answer = Result<Vec<(u64, bool)>, &'static str>;

impl Said {
    pub(super) fn is(&self, entry: &Entry) -> bool {
        self.who == entry.sender.as_str()
            && (self.epoch, self.sequence) == (entry.epoch, entry.sequence)
            && self.new.payload == entry.payload
            && self.new.entry_type == entry.entry_type
            && self.new.in_reply_to == entry.in_reply_to
            && self.new.error == entry.error
    }
}

impl List {
    pub(super) fn new(gaps: Gaps, full: WhenFull, entries_max: u64) -> Self {
        Self {
            gaps,
            full,
            entries_max,
            log: Vec::new(),
            oldest: 1,
            hot: 1,
            executor: Some("e0".to_owned()),
            epoch: 1,
            ended: BTreeSet::new(),
            closed: None,
        }
    }

    pub(super) fn newest(&self) -> u64 {
        self.log.len() as u64
    }

    pub(super) fn at(&self, position: u64) -> &Said {
        &self.log[usize::try_from(position - 1).expect("a place in a list")]
    }

    /// Under which epoch somebody appends.
    pub(super) fn epoch_of(&self, who: &str) -> Option<u32> {
        match who {
            SUBMITTER => Some(0),
            who => (self.executor.as_deref() == Some(who)).then_some(self.epoch),
        }
    }

    /// What somebody is, as far as a follower lives by it.
    pub(super) fn role_of(&self, who: &str) -> Option<(&'static str, u32)> {
        match (who, self.epoch_of(who)) {
            (OBSERVER, _) => Some(("observer", 0)),
            (_, epoch) => epoch.map(|epoch| ("sender", epoch)),
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        let ended = |who: &str, epoch| self.ended.contains(&(who.to_owned(), epoch));
        let executor = self.executor.as_deref();
        ended(SUBMITTER, 0)
            && executor.is_some_and(|executor| executor == SUBMITTER || ended(executor, self.epoch))
    }

    pub(super) fn has_ended(&self, who: &str) -> bool {
        self.epoch_of(who).is_some_and(|epoch| self.ended.contains(&(who.to_owned(), epoch)))
    }

    /// Room for data that a channel that refuses has.
    pub(super) fn room(&self) -> u64 {
        match self.full {
            WhenFull::Reject => {
                (self.entries_max + self.closings(0)).saturating_sub(self.newest() + 1 - self.hot)
            }
            WhenFull::DropOldest | WhenFull::Archive => u64::MAX,
        }
    }

    /// Entries after a position that have closed a half. They take nobody's room.
    fn closings(&self, after: u64) -> u64 {
        let after = usize::try_from(after).expect("a place in a list");
        self.log[after..].iter().filter(|said| said.new.entry_type != EntryType::Data).count() as u64
    }

    fn numbers(&self, who: &str, epoch: u32) -> BTreeSet<u64> {
        let own = self.log.iter().filter(|said| said.epoch == epoch && said.who == who);
        own.map(|said| said.sequence).collect()
    }

    /// All numbers up to here are in the log.
    pub(super) fn last(&self, who: &str, epoch: u32) -> u64 {
        let numbers = self.numbers(who, epoch);
        (1..).find(|n| !numbers.contains(n)).expect("numbers do not end") - 1
    }

    /// What somebody has said in an epoch, in the order of the log.
    pub(super) fn said_by(&self, who: &str, epoch: u32) -> Vec<&Said> {
        self.log.iter().filter(|said| said.epoch == epoch && said.who == who).collect()
    }

    pub(super) fn assign(&mut self, executor: Option<&str>) {
        if executor.is_none() && self.executor.is_none() {
            return;
        }
        self.epoch += 1;
        self.executor = executor.map(str::to_owned);
    }

    /// What an append does, if it does anything.
    pub(super) fn append(&mut self, who: &str, epoch: Option<u32>, entries: &[NewEntry]) -> Answer {
        let mut after = self.clone();
        let answers = after.push(who, epoch, entries)?;
        *self = after;
        Ok(answers)
    }

    fn push(&mut self, who: &str, epoch: Option<u32>, entries: &[NewEntry]) -> Answer {
        let now = self.epoch_of(who).ok_or("denied")?;
        if epoch.is_some_and(|epoch| epoch != now) {
            return Err("denied");
        }
        let one_party = self.executor.as_deref() == Some(SUBMITTER);
        let before = self.newest();
        let mut repeats = Vec::new();
        let mut answers = Vec::new();
        for new in entries {
            let numbers = self.numbers(who, now);
            let highest = numbers.last().copied().unwrap_or_default();
            let sequence = new.sequence.unwrap_or(highest + 1);
            let said = Said { who: who.to_owned(), epoch: now, sequence, new: new.clone() };
            if numbers.contains(&sequence) {
                let known =
                    |known: &Said| (&known.who, known.epoch, known.sequence) == (&said.who, now, sequence);
                let position = self.log.iter().position(known).expect("it is there") as u64 + 1;
                answers.push((position, true));
                repeats.push((position, said));
                continue;
            }
            if self.closed.is_some() {
                return Err("process_closed");
            }
            if self.ended.contains(&(who.to_owned(), now)) {
                return Err("channel_half_closed");
            }
            let last = self.last(who, now);
            let ahead: Vec<u64> = numbers.iter().copied().filter(|n| *n > last).collect();
            let stretches = ahead.iter().filter(|n| !ahead.contains(&(**n - 1))).count();
            let is_data = new.entry_type == EntryType::Data;
            let taken_ahead = self.gaps == Gaps::Arrival && is_data && stretches < CHANNEL_AHEAD_MAX;
            if sequence != last + 1 && !taken_ahead {
                return Err("channel_sequence_gap");
            }
            if new.entry_type != EntryType::Data {
                self.ended.insert((who.to_owned(), now));
            }
            self.log.push(said);
            if let Some(answered) = new.in_reply_to {
                let other = |s: &&Said| one_party || (s.who.as_str(), s.epoch) != (who, now);
                if !self.log.iter().filter(other).any(|said| said.sequence == answered) {
                    return Err("channel_reply_unknown");
                }
            }
            answers.push((self.newest(), false));
        }
        let (oldest, data) = (self.oldest, self.data_of(entries, &answers));
        if data > 0 {
            let exempt = self.closings(if self.full == WhenFull::Reject { 0 } else { before });
            let over = (self.newest() + 1 - self.hot).saturating_sub(self.entries_max + exempt);
            if data > self.entries_max || self.full == WhenFull::Reject && over > 0 {
                return Err("channel_full");
            }
            self.trim(over);
        }
        for (position, said) in repeats {
            let first = self.at(position);
            let same =
                |new: &NewEntry| (new.entry_type, new.payload.clone(), new.in_reply_to, new.error.clone());
            if position < oldest {
                return Err("channel_sequence_forgotten");
            }
            if same(&first.new) != same(&said.new) {
                return Err("channel_sequence_taken");
            }
        }
        Ok(answers)
    }

    fn data_of(&self, entries: &[NewEntry], answers: &[(u64, bool)]) -> u64 {
        let new = entries.iter().zip(answers).filter(|(_, (_, repeated))| !repeated);
        new.filter(|(entry, _)| entry.entry_type == EntryType::Data).count() as u64
    }

    /// After data came: what is too much goes.
    fn trim(&mut self, over: u64) {
        self.hot += over;
        if self.full == WhenFull::DropOldest {
            self.oldest = self.hot;
        }
    }

    /// Takes in what several have appended at once, each an entry of data, by what they were answered.
    pub(super) fn take_in(&mut self, mut appended: Vec<(Said, Appended)>) {
        let newest = self.newest();
        appended.sort_by_key(|(_, at)| (at.position, at.repeated));
        for (said, at) in appended {
            assert_eq!((said.epoch, said.sequence), (at.epoch, at.sequence));
            if at.repeated {
                assert_eq!(*self.at(at.position.0), said, "a repeat is of the same entry");
                continue;
            }
            assert_eq!(at.position.0, self.newest() + 1, "no position is left out or given twice");
            self.log.push(said);
        }
        if self.newest() > newest {
            let exempt = if self.full == WhenFull::Reject { self.closings(0) } else { 0 };
            self.trim((self.newest() + 1 - self.hot).saturating_sub(self.entries_max + exempt));
        }
    }

    /// Numbers of each sender in the order of the log.
    pub(super) fn check_order(&self) {
        if self.gaps == Gaps::Arrival {
            return;
        }
        let senders: BTreeSet<_> = self.log.iter().map(|said| (said.who.as_str(), said.epoch)).collect();
        for (who, epoch) in senders {
            let own: Vec<u64> = self.said_by(who, epoch).iter().map(|said| said.sequence).collect();
            assert!(own.iter().copied().eq(1..=own.len() as u64), "{who} in {epoch}: {own:?}");
        }
    }
}
