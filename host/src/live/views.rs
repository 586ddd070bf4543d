//! The views of an owner, by small numbers, so that one is found without a search.

use super::index::ViewId;
use super::view::View;

#[derive(Default)]
pub(super) struct Views {
    places: Vec<Option<Box<View>>>,
    free: Vec<ViewId>,
    count: usize,
    /// Views that there ever were.
    born: u64,
}

impl Views {
    /// A number that no view has.
    pub(super) fn free(&self) -> ViewId {
        let next = || ViewId::try_from(self.places.len()).expect("views are bounded by live_views_max");
        self.free.last().copied().unwrap_or_else(next)
    }

    /// Makes a view of the number that `free` gave; it learns which of all views it is.
    pub(super) fn insert(&mut self, id: ViewId, make: impl FnOnce(u64) -> View) {
        self.born += 1;
        let view = Some(Box::new(make(self.born)));
        match self.places.get_mut(id as usize) {
            Some(place) => *place = view,
            None => self.places.push(view),
        }
        self.free.pop();
        self.count += 1;
    }

    pub(super) fn get(&self, id: ViewId) -> Option<&View> {
        self.places.get(id as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, id: ViewId) -> Option<&mut View> {
        self.places.get_mut(id as usize)?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, id: ViewId) -> Option<Box<View>> {
        let view = self.places.get_mut(id as usize)?.take()?;
        self.free.push(id);
        self.count -= 1;
        Some(view)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut View> {
        self.places.iter_mut().flatten().map(|view| &mut **view)
    }

    pub(super) fn ids(&self) -> Vec<ViewId> {
        self.places.iter().flatten().map(|view| view.id).collect()
    }
}
