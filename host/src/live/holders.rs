//! Which views hold which row, and where in their windows.
//!
//! Each view's place of a row is its own: a view that was just read is ahead of the others, and what becomes of a
//! row in its window follows from the place that it has there. Most rows are held by one view or by none, so that
//! is what a lookup costs: one hash, and one entry beside its place.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;

use super::ahead;
use super::index::ViewId;
use super::numbers::Numbers;
use super::sort_key::SortKey;

/// Rows that there is room for at first.
const ROWS_MIN: usize = 16;

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
    /// Who holds each row, and free places.
    rows: Vec<Option<Holding>>,
    free: Vec<u32>,
    by_key: Numbers,
    /// Seeded at random: keys come from outside.
    hasher: DefaultHashBuilder,
}

impl Holders {
    /// What a row's key is asked by.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Asks for the memory that says where a key's holders are.
    pub(super) fn ask_for_number(&self, hash: u64) {
        self.by_key.ask_for(hash);
    }

    /// And then for them.
    pub(super) fn ask_for(&self, hash: u64) {
        if let Some(number) = self.by_key.guess(hash) {
            ahead::all(&self.rows[number as usize]);
        }
    }

    fn holding(&self, number: u32) -> Option<&Holding> {
        self.rows[number as usize].as_ref()
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.by_key.find(hash, |number| self.holding(number).is_some_and(|holding| holding.key() == key))
    }

    /// The views that hold a row.
    pub(super) fn of(&self, hash: u64, key: &[u8]) -> &[Holder] {
        self.find(hash, key).and_then(|number| self.holding(number)).map_or(&[], Holding::list)
    }

    /// Where a view holds a row.
    pub(super) fn place(&self, hash: u64, key: &[u8], view: ViewId) -> Option<&SortKey> {
        let holders = self.of(hash, key);
        place(holders, view).ok().map(|place| &holders[place].1)
    }

    /// A view holds the row of this place there, and no longer where it was.
    pub(super) fn put(&mut self, hash: u64, view: ViewId, at: &SortKey) {
        let found = self.find(hash, at.key()).and_then(|number| self.rows[number as usize].as_mut());
        if let Some(holding) = found {
            return holding.put(view, at);
        }
        let holding = Some(Holding::One((view, at.clone())));
        let number = match self.free.pop() {
            Some(number) => {
                self.rows[number as usize] = holding;
                number
            }
            None => {
                if self.rows.len() == self.rows.capacity() {
                    self.rows.reserve(self.rows.len().max(ROWS_MIN));
                    ahead::large_pages(&mut self.rows);
                }
                self.rows.push(holding);
                u32::try_from(self.rows.len() - 1).expect("rows in windows are fewer")
            }
        };
        self.by_key.insert(hash, number);
    }

    pub(super) fn remove(&mut self, hash: u64, view: ViewId, key: &[u8]) {
        let Some(number) = self.find(hash, key) else { return };
        let place = &mut self.rows[number as usize];
        if place.as_mut().is_some_and(|holding| holding.remove(view)) {
            *place = None;
            self.free.push(number);
            self.by_key.remove(hash, number);
        }
    }

    /// Takes a view out of every row. Looks at all of them.
    pub(super) fn forget(&mut self, view: ViewId) {
        let keys = self.rows.iter().flatten().filter(|holding| place(holding.list(), view).is_ok());
        let keys: Vec<Box<[u8]>> = keys.map(|holding| holding.key().into()).collect();
        keys.iter().for_each(|key| self.remove(self.hash(key), view, key));
    }
}
