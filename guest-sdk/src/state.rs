//! Keyed state: what a processor keeps by key, for what outgrows a snapshot.

use std::iter::Peekable;
use std::ops::Bound;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{SCAN_ENTRIES_MAX, STATE_EXPIRED_DELETES_MAX};
use crate::{Effects, Failure, Timestamp, imports};

/// The fewest entries that a scan asks the host for: expired ones do not count towards its limit.
const PAGE_ENTRIES_MIN: u32 = 8;

/// What stands under a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateValue {
    pub value: Vec<u8>,
    /// The entry is gone for an event whose `at` is not before this; none for never.
    pub expires_at: Option<Timestamp>,
}

/// An entry that stays until it is deleted.
impl From<Vec<u8>> for StateValue {
    fn from(value: Vec<u8>) -> Self {
        Self { value, expires_at: None }
    }
}

/// A key of the keyed state and what stands under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The entry is gone for an event whose `at` is not before this; none for never.
    pub expires_at: Option<Timestamp>,
}

/// Entries in the order of their keys' bytes, as the host answers them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    pub entries: Vec<Entry>,
    /// There may be more after the last one.
    pub more: bool,
}

/// An expiry as it crosses: 0 stands for never.
pub(crate) fn from_wire(expires_at: i64) -> Option<Timestamp> {
    (expires_at != 0).then_some(Timestamp(expires_at))
}

/// The task's keyed state, as the event at hand sees it: what is committed and what was written since,
/// earlier in this batch included. [`Effects::state`] gives it.
///
/// A write is an effect: it happens together with the event's position and rows, or not at all.
///
/// An entry may have a time to live. It is told by the events' own time: an entry is gone for an event
/// whose [`at`](crate::Event::at) is not before the entry's end, whatever the clock on the wall says. So a
/// replay gives the same rows. In `flush` the time is the latest `at` that this instance has handled, and
/// nothing is gone before it has handled any. What is found to be gone is deleted on the way.
///
/// The host removes what nobody asks for any more, seven days after it has ended by the host's clock and by
/// the last event that the task has passed. Only an event that comes a week late can tell: it happened before
/// the entry's end, is handled after events of more than a week beyond it, and finds the entry gone.
///
/// ```
/// use std::time::Duration;
/// use millrace_guest::{Context, Effects, Event, Failure, Manifest, OrderingKey, Processor, Saved};
///
/// /// Emits nothing and keeps no rows: it only remembers who was active in the last ten minutes.
/// struct Active;
/// impl Processor for Active {
///     fn manifest() -> Manifest { Manifest::new("active", "0.1.0").ordering_key(OrderingKey::Single) }
///     fn load(_: Context, _: Option<Saved>) -> Result<Self, String> { Ok(Self) }
///     fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
///         let user = format!("user/{}", event.agg_id());
///         let seen = out.state().get_json::<u64>(user.as_bytes())?.unwrap_or(0) + 1;
///         out.state().put_json_for(user.as_bytes(), &seen, Duration::from_secs(600))?;
///         // Entries in the order of their keys, page by page; `limit` and `after` are optional.
///         let active = out.state().scan(b"user/").limit(100).count();
///         out.state().put_json(b"active", &active)
///     }
/// }
///
/// use millrace_guest::testing::{Driver, TestEvent};
/// let mut driver = Driver::<Active>::new();
/// driver.send(&[
///     TestEvent::new("user", "ada", 1, "seen").at("2013-01-01T08:00:00Z"),
///     TestEvent::new("user", "bob", 1, "seen").at("2013-01-01T08:09:59Z"),
/// ]).unwrap();
/// assert_eq!(driver.state()[&b"active"[..]].value, b"2");
/// driver.send(&[TestEvent::new("user", "bob", 2, "seen").at("2013-01-01T08:10:00Z")]).unwrap();
/// assert_eq!(driver.state()[&b"active"[..]].value, b"1");
/// ```
#[derive(Debug)]
pub struct State<'a> {
    effects: &'a mut Effects,
}

impl<'a> State<'a> {
    pub(crate) fn new(effects: &'a mut Effects) -> Self {
        Self { effects }
    }

    /// The value under a key.
    pub fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let found = match self.effects.state_written(key) {
            Some(written) => written,
            None => imports::state_get(key),
        }?;
        if self.effects.is_gone(found.expires_at) {
            self.effects.forget(key);
            return None;
        }
        Some(found.value)
    }

    /// The same, read as JSON. What cannot be read is fatal: this processor wrote it.
    pub fn get_json<T: DeserializeOwned>(&mut self, key: &[u8]) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(key) else { return Ok(None) };
        serde_json::from_slice(&value).map(Some).map_err(|e| {
            Failure::fatal(format!(
                "the state under `{}` cannot be read: {e}",
                String::from_utf8_lossy(key).escape_debug()
            ))
        })
    }

    /// Writes an entry that stays until it is deleted.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.effects.write_state(key, value, None)
    }

    /// Writes an entry that is gone so long after the time of the event at hand.
    pub fn put_for(&mut self, key: &[u8], value: &[u8], time_to_live: Duration) -> Result<(), Failure> {
        let now = self.effects.now().ok_or_else(|| {
            Failure::retry("no event was handled since the start, so there is no time to count from")
        })?;
        let micros = i64::try_from(time_to_live.as_micros()).unwrap_or(i64::MAX);
        self.put_until(key, value, Timestamp(now.0.saturating_add(micros)))
    }

    /// Writes an entry that is gone from this time on. A time before 1970 counts as 1970.
    pub fn put_until(&mut self, key: &[u8], value: &[u8], expires_at: Timestamp) -> Result<(), Failure> {
        self.effects.write_state(key, value, Some(Timestamp(expires_at.0.max(1))))
    }

    /// [`put`](Self::put) as JSON. NaN and the infinities are `null` in it, which is not read back as a float.
    pub fn put_json<T: Serialize + ?Sized>(&mut self, key: &[u8], value: &T) -> Result<(), Failure> {
        self.put(key, &json(value)?)
    }

    /// [`put_for`](Self::put_for) as JSON.
    pub fn put_json_for<T: Serialize + ?Sized>(
        &mut self,
        key: &[u8],
        value: &T,
        time_to_live: Duration,
    ) -> Result<(), Failure> {
        self.put_for(key, &json(value)?, time_to_live)
    }

    /// Deletes an entry, whether there is one or not.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), Failure> {
        self.effects.delete_state(key)
    }

    /// The entries whose key begins with `prefix`, in the order of their keys' bytes. They come page by
    /// page, so a scan of any length holds a few MiB at most. To change entries on the way, collect their
    /// keys first.
    pub fn scan(self, prefix: &[u8]) -> Scan<'a> {
        Scan::new(Some(self.effects), prefix)
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|e| Failure::reject(format!("a state value cannot be written: {e}")))
}

/// Entries of the keyed state, one after the other. What is gone is left out.
#[derive(Debug)]
pub struct Scan<'a> {
    /// The running batch; none in `load`.
    effects: Option<&'a mut Effects>,
    prefix: Vec<u8>,
    /// The last key that was looked at, and the last one that the host was asked for.
    after: Option<Vec<u8>>,
    asked: Option<Vec<u8>>,
    left: u64,
    page: Peekable<std::vec::IntoIter<Entry>>,
    more: bool,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(effects: Option<&'a mut Effects>, prefix: &[u8]) -> Self {
        Self {
            effects,
            prefix: prefix.into(),
            after: None,
            asked: None,
            left: u64::MAX,
            page: Vec::new().into_iter().peekable(),
            more: true,
        }
    }

    /// Begins after this key.
    #[must_use]
    pub fn after(mut self, key: &[u8]) -> Self {
        self.after = Some(key.into());
        self.asked = Some(key.into());
        self
    }

    /// Ends after so many entries.
    #[must_use]
    pub fn limit(mut self, entries: u64) -> Self {
        self.left = entries;
        self
    }

    /// Looks at the host's next page, where it may have one.
    fn turn_page(&mut self) {
        while self.more && self.page.peek().is_none() {
            let wanted =
                u32::try_from(self.left).unwrap_or(u32::MAX).clamp(PAGE_ENTRIES_MIN, SCAN_ENTRIES_MAX);
            let page = imports::state_scan(&self.prefix, self.asked.as_deref(), wanted);
            self.more = page.more && !page.entries.is_empty();
            if let Some(last) = page.entries.last() {
                self.asked = Some(last.key.clone());
            }
            self.page = page.entries.into_iter().peekable();
        }
    }

    /// The next key that this batch has written.
    fn next_written(&self) -> Option<Vec<u8>> {
        let effects = self.effects.as_deref()?;
        let from = match &self.after {
            Some(after) if *after >= self.prefix => Bound::Excluded(after.as_slice()),
            _ => Bound::Included(self.prefix.as_slice()),
        };
        effects.state_key_from(from).filter(|key| key.starts_with(&self.prefix)).map(<[u8]>::to_vec)
    }

    /// The next entry of both, whether it is gone or not; the inner none stands for a deleted one.
    fn next_of_both(&mut self) -> Option<Option<Entry>> {
        self.turn_page();
        let written = self.next_written();
        let theirs = self.page.peek().map(|entry| &entry.key);
        let Some(key) = written.filter(|key| theirs.is_none_or(|theirs| key <= theirs)) else {
            let theirs = self.page.next()?;
            self.after = Some(theirs.key.clone());
            return Some(Some(theirs));
        };
        self.page.next_if(|theirs| theirs.key == key);
        self.after = Some(key.clone());
        let written = self.effects.as_deref().and_then(|effects| effects.state_written(&key)).flatten();
        Some(written.map(|StateValue { value, expires_at }| Entry { key, value, expires_at }))
    }
}

impl Iterator for Scan<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        while self.left > 0 {
            let Some(entry) = self.next_of_both()? else { continue };
            match &mut self.effects {
                Some(effects) if effects.is_gone(entry.expires_at) => effects.forget(&entry.key),
                _ => {
                    self.left -= 1;
                    return Some(entry);
                }
            }
        }
        None
    }
}

/// The running batch's side of keyed state.
impl Effects {
    /// Whether an entry with this expiry is gone for the event at hand.
    fn is_gone(&self, expires_at: Option<Timestamp>) -> bool {
        matches!((expires_at, self.now()), (Some(end), Some(now)) if now >= end)
    }

    /// Deletes an entry that was found to be gone, as far as this event's share goes: what is left is as gone
    /// for whoever looks next, and the host removes it in the end.
    fn forget(&mut self, key: &[u8]) {
        if self.expired_deletes() < STATE_EXPIRED_DELETES_MAX {
            self.delete_expired(key);
        }
    }
}
