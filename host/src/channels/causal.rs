//! The order of the senders: a view of a channel whose entries arrived out of order. Nothing in the log changes for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::entry::Entry;
use super::names::Party;

type Of<'a> = (&'a Party, u32);

/// Orders entries so that each sender's come in the order of its numbers, and an answer comes after what it answers.
/// Otherwise they stay where they arrived: a place in the log belongs to the sender that took it, and is filled with that
/// sender's next entry. U1 U2 E2 E1 becomes U1 U2 E1 E2. The same entries always come in the same order, and what is
/// ordered already stays as it is.
pub fn in_senders_order(entries: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
    let mut of: HashMap<Of<'_>, Vec<&Arc<Entry>>> = HashMap::new();
    for entry in entries {
        of.entry((&entry.sender, entry.epoch)).or_default().push(entry);
    }
    let mut sent: HashMap<u64, Vec<Of<'_>>> = HashMap::new();
    for entry in entries {
        sent.entry(entry.sequence).or_default().push((&entry.sender, entry.epoch));
    }
    // The places of each sender, with its entries in order.
    let mut next: HashMap<Of<'_>, VecDeque<&Arc<Entry>>> = HashMap::new();
    for (sender, mut own) in of {
        own.sort_by_key(|entry| entry.sequence);
        next.insert(sender, own.into());
    }
    let mut places: HashMap<Of<'_>, VecDeque<usize>> = HashMap::new();
    for (place, entry) in entries.iter().enumerate() {
        places.entry((&entry.sender, entry.epoch)).or_default().push_back(place);
    }
    let mut given: HashSet<(Of<'_>, u64)> = HashSet::with_capacity(entries.len());
    let mut ordered = Vec::with_capacity(entries.len());
    loop {
        let ready = |sender: &Of<'_>| {
            let entry = next.get(sender).and_then(VecDeque::front);
            entry.is_some_and(|entry| {
                let Some(answered) = entry.in_reply_to else { return true };
                let others = sent.get(&answered).map(Vec::as_slice).unwrap_or_default();
                let mut others = others.iter().filter(|other| *other != sender).peekable();
                // What is not here, or answers itself, is not waited for.
                others.peek().is_none() || others.any(|other| given.contains(&(*other, answered)))
            })
        };
        // A step looks at the first place of each sender only. Answers that wait for each other stay where they are.
        let open = places.iter().filter_map(first_place).min_by_key(|(place, _)| *place);
        let Some(open) = open else { break };
        let can = places.iter().filter(|(sender, _)| ready(sender)).filter_map(first_place);
        let (_, sender) = can.min_by_key(|(place, _)| *place).unwrap_or(open);
        if let Some(places) = places.get_mut(&sender) {
            places.pop_front();
        }
        if let Some(entry) = next.get_mut(&sender).and_then(VecDeque::pop_front) {
            given.insert((sender, entry.sequence));
            ordered.push(Arc::clone(entry));
        }
    }
    ordered
}

/// The first of a sender's places that are left.
fn first_place<'a>((sender, places): (&Of<'a>, &VecDeque<usize>)) -> Option<(usize, Of<'a>)> {
    Some((*places.front()?, *sender))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::channels::entry::EntryType;
    use crate::event::{Micros, Position};

    fn order(log: &[(&str, u64, Option<u64>)]) -> Vec<String> {
        let entries: Vec<_> = log
            .iter()
            .zip(1..)
            .map(|((sender, sequence, in_reply_to), position)| {
                Arc::new(Entry {
                    position: Position(position),
                    sender: Party::new(sender).unwrap(),
                    epoch: 0,
                    sequence: *sequence,
                    in_reply_to: *in_reply_to,
                    at: Micros(0),
                    entry_type: EntryType::Data,
                    error: None,
                    payload: None,
                    wire: OnceLock::new(),
                })
            })
            .collect();
        in_senders_order(&entries).iter().map(|entry| format!("{}{}", entry.sender, entry.sequence)).collect()
    }

    #[test]
    fn each_sender_is_in_its_own_order_and_others_stay_where_they_arrived() {
        let none = None;
        assert_eq!(
            order(&[("U", 1, none), ("U", 2, none), ("E", 2, none), ("E", 1, none)]),
            ["U1", "U2", "E1", "E2"]
        );
        assert_eq!(order(&[("U", 3, none), ("U", 1, none), ("U", 2, none)]), ["U1", "U2", "U3"]);
        // A comparison of neighbours by sender or time would go round in a circle here.
        assert_eq!(
            order(&[("U", 1, none), ("E", 2, none), ("U", 2, none), ("E", 1, none)]),
            ["U1", "E1", "U2", "E2"]
        );
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn an_answer_comes_after_what_it_answers() {
        let log = [("U", 1, None), ("E", 2, None), ("U", 2, None), ("E", 1, Some(2))];
        assert_eq!(order(&log), ["U1", "U2", "E1", "E2"]);
        // What is not here, and answers in a circle, are not waited for.
        assert_eq!(order(&[("E", 1, Some(9)), ("U", 1, None)]), ["E1", "U1"]);
        assert_eq!(order(&[("E", 1, Some(1)), ("U", 1, Some(1))]), ["E1", "U1"]);
    }
}
