//! Numbers by a hash, close together: what stands under a number is for the caller to compare.
//!
//! An open table of eight bytes an entry. It is here because a place in it can be asked for before it is looked at
//! (see `ahead`), and because two lines of memory are all that finding one of a million rows then takes.

use super::ahead;

/// Marks a free place: no number of an entry.
const FREE: u32 = u32::MAX;
const PLACES_MIN: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// A part of the hash, which says where its place is to be, too.
    tag: u32,
    number: u32,
}

impl Entry {
    const NONE: Self = Self { tag: 0, number: FREE };
}

/// Several numbers may stand under one hash.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    /// A power of two; a third of them is free at least.
    places: Vec<Entry>,
    count: usize,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { places: vec![Entry::NONE; PLACES_MIN], count: 0 }
    }
}

impl Numbers {
    /// Asks for the memory that finding this takes.
    pub(super) fn ask_for(&self, hash: u64) {
        ahead::line(&self.places[self.home(tag(hash))]);
    }

    /// Where the first number with this hash is, most probably; for asking for more.
    pub(super) fn guess(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The number under this hash that the caller means.
    pub(super) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.place(tag(hash), is).map(|place| self.places[place].number)
    }

    pub(super) fn insert(&mut self, hash: u64, number: u32) {
        debug_assert_ne!(number, FREE, "there are never as many");
        if (self.count + 1) * 3 > self.places.len() * 2 {
            let mut places = Vec::with_capacity(self.places.len() * 2);
            ahead::large_pages(&mut places);
            places.resize(self.places.len() * 2, Entry::NONE);
            let old = std::mem::replace(&mut self.places, places);
            old.into_iter().filter(|entry| entry.number != FREE).for_each(|entry| self.put(entry));
        }
        self.count += 1;
        self.put(Entry { tag: tag(hash), number });
    }

    pub(super) fn remove(&mut self, hash: u64, number: u32) {
        let Some(mut hole) = self.place(tag(hash), |other| other == number) else { return };
        self.count -= 1;
        // What follows moves up, unless it stands before its own place then.
        let mut next = hole;
        loop {
            next = self.after(next);
            let entry = self.places[next];
            if entry.number == FREE {
                break;
            }
            let from_home = |place: usize| place.wrapping_sub(self.home(entry.tag)) & (self.places.len() - 1);
            if from_home(hole) < from_home(next) {
                self.places[hole] = entry;
                hole = next;
            }
        }
        self.places[hole] = Entry::NONE;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn place(&self, tag: u32, is: impl Fn(u32) -> bool) -> Option<usize> {
        let mut place = self.home(tag);
        loop {
            let entry = self.places[place];
            if entry.number == FREE {
                return None;
            }
            if entry.tag == tag && is(entry.number) {
                return Some(place);
            }
            place = self.after(place);
        }
    }

    fn put(&mut self, entry: Entry) {
        let mut place = self.home(entry.tag);
        while self.places[place].number != FREE {
            place = self.after(place);
        }
        self.places[place] = entry;
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.places.len() - 1)
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }
}

fn tag(hash: u64) -> u32 {
    u32::try_from(hash >> 32).expect("half of the bits are left")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_was_put_in_and_not_taken_out(
            steps in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u32..6), 1..400),
        ) {
            let mut numbers = Numbers::default();
            let mut known = BTreeSet::new();
            // Few hashes, close to each other and to the end, so that many stand out of their place.
            let hash = |n: u64| (n << 32).wrapping_sub(20 << 32);
            for (puts, n, number) in steps {
                if !puts {
                    numbers.remove(hash(n), number);
                    known.remove(&(n, number));
                } else if known.insert((n, number)) {
                    numbers.insert(hash(n), number);
                }
                for (n, number) in (0..40).flat_map(|n| (0..6).map(move |number| (n, number))) {
                    let found = numbers.find(hash(n), |other| other == number);
                    prop_assert_eq!(found.is_some(), known.contains(&(n, number)), "{} {}", n, number);
                }
                prop_assert_eq!(numbers.count, known.len());
            }
        }
    }
}
