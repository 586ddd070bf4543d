//! Which appends of a socket were refused, as far as what closes a half must know of them.
//!
//! A client that waits for no answers may send an `end` before it hears that something before it was refused. With a
//! sequence that is a gap; without one the half would be closed for good without what belongs into it. So the first `end`
//! behind a refusal is refused, too. Whoever repeats it knows.

use std::collections::VecDeque;

use super::commands::Reference;
use crate::channels::{ChannelError, ChannelId, NewEntry, Party};
use crate::gateway::problem::Problem;
use crate::limits::CHANNEL_SOCKET_REFUSALS_MAX;

/// A sender in a channel: its appends are answered in their order.
pub(super) type Lane = (ChannelId, Party);

/// Whether one of them closes its sender's half, and does not say behind which entries.
pub(super) fn closes_anyhow(entries: &[NewEntry]) -> bool {
    entries.iter().any(|entry| entry.entry_type.closes() && entry.sequence.is_none())
}

/// By sender. Beyond the bound the oldest is forgotten.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    lanes: VecDeque<Refusal>,
}

#[derive(Debug)]
struct Refusal {
    lane: Lane,
    /// The first one.
    reference: Reference,
    is_only: bool,
    /// An `end` was refused for it.
    is_told: bool,
}

impl Refusals {
    fn find(&self, lane: &Lane) -> Option<usize> {
        self.lanes.iter().position(|refusal| refusal.lane == *lane)
    }

    /// An append was refused that closes nothing.
    pub(super) fn refused(&mut self, lane: &Lane, reference: &Reference) {
        if let Some(at) = self.find(lane) {
            let known = &mut self.lanes[at];
            known.is_only &= known.reference == *reference;
            known.is_told = false;
            return;
        }
        if self.lanes.len() >= CHANNEL_SOCKET_REFUSALS_MAX {
            self.lanes.pop_front();
        }
        let (lane, reference) = (lane.clone(), reference.clone());
        self.lanes.push_back(Refusal { lane, reference, is_only: true, is_told: false });
    }

    /// The same of one that the log has refused.
    pub(super) fn refused_by_log(&mut self, lane: &Lane, reference: &Reference, error: &ChannelError) {
        // Nothing is lost by an end that comes too late itself.
        if !matches!(error, ChannelError::HalfClosed { .. } | ChannelError::ProcessClosed { .. }) {
            self.refused(lane, reference);
        }
    }

    /// An append is in the log. It may be the one that was refused, sent again.
    pub(super) fn appended(&mut self, lane: &Lane, reference: &Reference) {
        if let Some(at) = self.find(lane)
            && self.lanes[at].is_only
            && self.lanes[at].reference == *reference
        {
            self.lanes.remove(at);
        }
    }

    /// Why something that closes the half is not appended now. The next one is.
    pub(super) fn of_end(&mut self, lane: &Lane) -> Option<Problem> {
        let at = self.find(lane)?;
        let known = &mut self.lanes[at];
        if known.is_told {
            self.lanes.remove(at);
            return None;
        }
        known.is_told = true;
        let which = match &known.reference {
            Reference::Number(number) => number.to_string(),
            Reference::Text(text) => format!("`{text}`"),
        };
        let more = if known.is_only { "" } else { " and others" };
        let detail = format!(
            "append {which}{more} of this sender was refused before; what closes its half without a sequence would close it \
             without that"
        );
        Some(Problem::new("channel_end_after_refusal", detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::{ChannelName, EntryType, ProcessId, ProcessName};
    use crate::event::TenantId;

    fn lane(who: &str) -> Lane {
        let process =
            ProcessId { tenant: TenantId::new("acme").unwrap(), name: ProcessName::new("job").unwrap() };
        (ChannelId { process, name: ChannelName::new("out").unwrap() }, Party::new(who).unwrap())
    }

    #[test]
    fn an_end_behind_a_refusal_is_refused_once_for_each_that_was_not_told() {
        let (mut refusals, ann, first) = (Refusals::default(), lane("ann"), Reference::Number(1));
        assert!(refusals.of_end(&ann).is_none());
        refusals.refused(&ann, &first);
        assert!(refusals.of_end(&lane("eve")).is_none(), "it is another's");
        let problem = refusals.of_end(&ann).unwrap();
        assert_eq!(problem.code(), "channel_end_after_refusal");
        assert!(problem.detail().starts_with("append 1 of"), "{}", problem.detail());
        // What is refused again is news.
        refusals.refused(&ann, &Reference::Text("b".to_owned()));
        assert!(refusals.of_end(&ann).unwrap().detail().starts_with("append 1 and others"));
        assert!(refusals.of_end(&ann).is_none(), "it is repeated");
        assert!(refusals.lanes.is_empty());
    }

    #[test]
    fn what_was_refused_and_is_appended_after_all_stands_in_no_ends_way() {
        let (mut refusals, ann) = (Refusals::default(), lane("ann"));
        let [first, second] = [1, 2].map(Reference::Number);
        refusals.refused(&ann, &first);
        refusals.appended(&ann, &second);
        refusals.appended(&lane("eve"), &first);
        assert_eq!(refusals.lanes.len(), 1);
        refusals.appended(&ann, &first);
        assert!(refusals.of_end(&ann).is_none());
        // Of several only the first is known.
        refusals.refused(&ann, &first);
        refusals.refused(&ann, &second);
        refusals.appended(&ann, &first);
        assert!(refusals.of_end(&ann).is_some());
    }

    #[test]
    fn no_more_than_the_bound_are_known() {
        let mut refusals = Refusals::default();
        for n in 0..CHANNEL_SOCKET_REFUSALS_MAX + 10 {
            refusals.refused(&lane(&format!("party-{n}")), &Reference::Number(1));
        }
        assert_eq!(refusals.lanes.len(), CHANNEL_SOCKET_REFUSALS_MAX);
        assert!(refusals.of_end(&lane("party-0")).is_none());
        assert!(refusals.of_end(&lane("party-10")).is_some());
    }

    #[test]
    fn entries_without_a_sequence_close_anyhow() {
        let entry = |entry_type, sequence| NewEntry { entry_type, sequence, ..NewEntry::default() };
        assert!(!closes_anyhow(&[entry(EntryType::Data, None), entry(EntryType::End, Some(2))]));
        assert!(closes_anyhow(&[entry(EntryType::Data, Some(1)), entry(EntryType::Error, None)]));
    }
}
