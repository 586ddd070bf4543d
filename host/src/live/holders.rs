//! Which views hold which row, and as what.
//!
//! Each view's image of a row is its own: a view that was just read is ahead of the others, and the place of the
//! row in its window follows from the image that it has.

use std::collections::HashMap;
use std::sync::Arc;

use super::index::ViewId;
use super::shape::Shown;

#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<Box<str>, Vec<(ViewId, Arc<Shown>)>>);

impl Holders {
    /// Adds the views that hold a row.
    pub(super) fn views(&self, key: &str, out: &mut Vec<ViewId>) {
        out.extend(self.0.get(key).into_iter().flatten().map(|(view, _)| *view));
    }

    /// The row as a view holds it.
    pub(super) fn image(&self, key: &str, view: ViewId) -> Option<&Arc<Shown>> {
        self.0.get(key)?.iter().find(|(holder, _)| *holder == view).map(|(_, image)| image)
    }

    pub(super) fn put(&mut self, view: ViewId, image: &Arc<Shown>) {
        let key = image.row.key.as_str();
        let Some(holders) = self.0.get_mut(key) else {
            self.0.insert(key.into(), vec![(view, Arc::clone(image))]);
            return;
        };
        match holders.iter_mut().find(|(holder, _)| *holder == view) {
            Some((_, known)) => *known = Arc::clone(image),
            None => holders.push((view, Arc::clone(image))),
        }
    }

    pub(super) fn remove(&mut self, view: ViewId, key: &str) {
        let Some(holders) = self.0.get_mut(key) else { return };
        holders.retain(|(holder, _)| *holder != view);
        if holders.is_empty() {
            self.0.remove(key);
        }
    }

    /// Takes a view out of every row. Looks at all of them.
    pub(super) fn forget(&mut self, view: ViewId) {
        self.0.retain(|_, holders| {
            holders.retain(|(holder, _)| *holder != view);
            !holders.is_empty()
        });
    }
}
