//! Which views hold which row, and where in their windows.
//!
//! Each view's place of a row is its own: a view that was just read is ahead of the others, and what becomes of a
//! row in its window follows from the place that it has there. Most rows are held by one view or by none, so that
//! is what a lookup costs: one hash, and one entry beside its place.

use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::index::ViewId;
use super::sort_key::SortKey;

/// A view, and where it holds a row.
pub(super) type Holder = (ViewId, SortKey);

/// Who holds one row: by view, and never none.
#[derive(Debug)]
enum Holding {
    One(Holder),
    Many(Vec<Holder>),
}

impl Holding {
    fn list(&self) -> &[Holder] {
        match self {
            Self::One(holder) => std::slice::from_ref(holder),
            Self::Many(holders) => holders,
        }
    }

    /// The key of the row: the same in all of its places.
    fn key(&self) -> &[u8] {
        self.list().first().map_or(&[], |(_, at)| at.key())
    }

    fn put(&mut self, view: ViewId, at: &SortKey) {
        match self {
            Self::One((holder, known)) if *holder == view => *known = at.clone(),
            Self::One(first) => {
                let mut both = vec![first.clone(), (view, at.clone())];
                both.sort_by_key(|(holder, _)| *holder);
                *self = Self::Many(both);
            }
            Self::Many(holders) => match place(holders, view) {
                Ok(place) => holders[place].1 = at.clone(),
                Err(place) => holders.insert(place, (view, at.clone())),
            },
        }
    }

    /// Answers whether nobody is left.
    fn remove(&mut self, view: ViewId) -> bool {
        match self {
            Self::One((holder, _)) => *holder == view,
            Self::Many(holders) => {
                if let Ok(place) = place(holders, view) {
                    holders.remove(place);
                }
                holders.is_empty()
            }
        }
    }
}

fn place(holders: &[Holder], view: ViewId) -> Result<usize, usize> {
    holders.binary_search_by_key(&view, |(holder, _)| *holder)
}

#[derive(Debug, Default)]
pub(super) struct Holders {
    rows: HashTable<Holding>,
    /// Seeded at random: keys come from outside.
    hasher: DefaultHashBuilder,
}

impl Holders {
    /// What `of` is asked by.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The views that hold a row. `hash` is that of its key.
    pub(super) fn of(&self, hash: u64, key: &[u8]) -> &[Holder] {
        self.rows.find(hash, |holding| holding.key() == key).map_or(&[], Holding::list)
    }

    /// Where a view holds a row.
    pub(super) fn place(&self, key: &[u8], view: ViewId) -> Option<&SortKey> {
        let holders = self.of(self.hash(key), key);
        place(holders, view).ok().map(|place| &holders[place].1)
    }

    /// A view holds the row of this place there, and no longer where it was.
    pub(super) fn put(&mut self, view: ViewId, at: &SortKey) {
        let hash = self.hasher.hash_one(at.key());
        let Some(holding) = self.rows.find_mut(hash, |holding| holding.key() == at.key()) else {
            let hash_of = |holding: &Holding| self.hasher.hash_one(holding.key());
            self.rows.insert_unique(hash, Holding::One((view, at.clone())), hash_of);
            return;
        };
        holding.put(view, at);
    }

    pub(super) fn remove(&mut self, view: ViewId, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        let Ok(mut entry) = self.rows.find_entry(hash, |holding| holding.key() == key) else { return };
        if entry.get_mut().remove(view) {
            entry.remove();
        }
    }

    /// Takes a view out of every row. Looks at all of them.
    pub(super) fn forget(&mut self, view: ViewId) {
        self.rows.retain(|holding| !holding.remove(view));
    }
}
