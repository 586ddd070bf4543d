//! What other programs put into the folder: it gets a place in the feed, or is set aside and says so at a place of its own.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, FileType};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::disk::{self, failed};
use super::layout::{Broken, plain};
use super::log::{FileLog, New, Writing, is_damage, text};
use crate::control::{Carried, ControlFeedError, EventId, Result};
use crate::limits::{CONTROL_APPENDS_AT_ONCE_MAX, CONTROL_DROPS_AT_ONCE_MAX, CONTROL_EVENT_BYTES_MAX};

impl FileLog {
    /// Whether anything waits to be settled. Costs one look at two short folders.
    pub(super) fn has_drops(&self) -> io::Result<bool> {
        let any = |dir: &Path, takes: fn(&OsString, FileType) -> bool| {
            self.disk.list(dir, 1, takes).or_else(none_there).map(|found| !found.is_empty())
        };
        Ok(any(&self.layout.root, is_drop)? || any(&self.layout.settling, |_, _| true)?)
    }

    /// Gives drops their places. The control versions in them say in which order, nothing else.
    pub(super) fn settle(&self, writing: &mut Writing) -> Result<()> {
        let (taken, mut refused) = self.take_in().map_err(|e| failed(&self.layout.settling, &e))?;
        let mut settled = Vec::new();
        for name in taken {
            match self.dropped(&name) {
                Ok(Some((order, new))) => settled.push((order, name, new)),
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        settled.sort_by(|(one, name, _), (other, other_name, _)| (one, name).cmp(&(other, other_name)));
        let (mut names, mut entries, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for (_, name, new) in settled {
            match self.unless_known(&mut known, &name, new)? {
                Some(new) => {
                    names.push(name);
                    entries.push(new);
                }
                None => self.remove(&name)?,
            }
        }
        for (names, entries) in
            names.chunks(CONTROL_APPENDS_AT_ONCE_MAX).zip(entries.chunks(CONTROL_APPENDS_AT_ONCE_MAX))
        {
            let versions = self.place(writing, entries)?;
            for ((name, entry), version) in names.iter().zip(entries).zip(versions) {
                match entry {
                    New::Event(_) => self.remove(name)?,
                    New::Broken(broken) => self.set_aside(version, broken)?,
                }
            }
            self.publish(writing)?;
        }
        // Said last: one that cannot be taken keeps no other one waiting.
        refused.map_or(Ok(()), Err)
    }

    /// Takes drops out of everybody's reach: what is read is then what is removed. Answers their names there, and why
    /// one could not be taken.
    fn take_in(&self) -> io::Result<(BTreeSet<String>, Option<ControlFeedError>)> {
        let mut refused = None;
        let settling = &self.layout.settling;
        let left = self.disk.list(settling, CONTROL_DROPS_AT_ONCE_MAX, |_, _| true)?;
        let mut names: BTreeSet<String> =
            left.into_iter().filter_map(|name| name.into_string().ok()).collect();
        for dropped in self.disk.list(&self.layout.root, CONTROL_DROPS_AT_ONCE_MAX, is_drop)? {
            let plain = plain(&dropped.to_string_lossy());
            let mut name = plain.clone();
            let mut times = 1;
            while names.contains(&name) || self.disk.exists(&settling.join(&name))? {
                times += 1;
                name = format!("{times}-{plain}");
            }
            let from = self.layout.root.join(&dropped);
            match fs::rename(&from, settling.join(&name)) {
                // Whoever dropped it has taken it back.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => refused = Some(failed(&from, &error)),
                Ok(()) => {
                    names.insert(name);
                }
            }
        }
        Ok((names, refused))
    }

    /// What a drop is, and the control version that it would like to be ordered by.
    fn dropped(&self, name: &str) -> Result<Option<(u64, New)>> {
        let path = self.layout.settling.join(name);
        let broken =
            |reason: String| Ok(Some((u64::MAX, New::Broken(Broken { name: name.to_owned(), reason }))));
        let bytes = match self.disk.read(&path, CONTROL_EVENT_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if is_damage(&error) || error.kind() == ErrorKind::PermissionDenied => {
                return broken(error.to_string());
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        if bytes.len() > CONTROL_EVENT_BYTES_MAX {
            return broken(format!("it is larger than control_event_bytes_max = {CONTROL_EVENT_BYTES_MAX}"));
        }
        match text(&bytes).and_then(Carried::parse_at) {
            Ok((event, order)) => Ok(Some((order.map_or(u64::MAX, |order| order.0), New::Event(event)))),
            Err(error) => broken(error.to_string()),
        }
    }

    /// Nothing when the event is in the feed or comes with an earlier drop.
    fn unless_known(
        &self,
        known: &mut HashMap<EventId, String>,
        name: &str,
        new: New,
    ) -> Result<Option<New>> {
        let New::Event(event) = &new else { return Ok(Some(new)) };
        let digest = match known.get(event.id()) {
            Some(digest) => Some(digest.clone()),
            None => self.known(event.id())?.map(|known| known.digest),
        };
        match digest {
            None => {
                known.insert(event.id().clone(), event.digest().to_owned());
                Ok(Some(new))
            }
            Some(digest) if digest == event.digest() => Ok(None),
            Some(_) => {
                let taken = ControlFeedError::EventIdTaken { event_id: event.id().to_string() };
                Ok(Some(New::Broken(Broken { name: name.to_owned(), reason: taken.to_string() })))
            }
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.layout.settling.join(name);
        fs::remove_file(&path).or_else(none_there).map_err(|e| failed(&path, &e))
    }

    /// Moves a drop to the quarantine, with the reason beside it. Again, it changes nothing.
    pub(super) fn set_aside(&self, version: u64, broken: &Broken) -> Result<()> {
        let (from, to) =
            (self.layout.settling.join(&broken.name), self.layout.quarantined(version, &broken.name));
        let moved = || {
            if !self.disk.exists(&to)? {
                fs::rename(&from, &to).or_else(none_there)?;
                tracing::warn!(
                    error.kind = "control_event_invalid",
                    error.blame = "caller",
                    control.version = version,
                    file = %to.display(),
                    reason = broken.reason,
                    "a file in the folder of the control feed is no event and was set aside"
                );
            }
            let reason = self.layout.reason(version, &broken.name);
            if !self.disk.exists(&reason)? {
                let staged = disk::stage(&self.layout.staging, format!("{}\n", broken.reason).as_bytes())?;
                staged.persist(reason).map_err(|error| error.error)?;
            }
            self.disk.sync_names(&self.layout.quarantine)
        };
        moved().map_err(|e: io::Error| failed(&to, &e))
    }
}

/// Files, links and pipes whose names end like those of events. What begins with a dot is still being written.
fn is_drop(name: &OsString, kind: FileType) -> bool {
    let name = name.as_encoded_bytes();
    !kind.is_dir() && name.ends_with(b".json") && !name.starts_with(b".")
}

fn none_there<T: Default>(error: io::Error) -> io::Result<T> {
    if error.kind() == ErrorKind::NotFound { Ok(T::default()) } else { Err(error) }
}
