//! What every store of channels must do, seen through the router: the names that begin with `k` are those of the
//! checklist, by its bullets of the router. Where the reference asserts a defect, the better rule is asserted, and said.

mod bounds;
mod epochs;
mod flows;
mod follow;
mod full;
mod halves;
mod lives;
mod macros;
mod order;
mod races;
mod refusals;
mod restarts;
mod router;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millrace::channels::{
    Actor, Append, Appended, Change, ChannelError, ChannelId, ChannelLimits, ChannelName, ChannelOptions,
    ChannelStore, CloseReason, Entry, EntryType, NewChannel, NewEntry, NewProcess, Notice, Outcome, Party,
    ProcessId, ProcessName, ProcessView, Router, Subscription,
};
use millrace::error::Classify;
use millrace::event::TenantId;

pub use bounds::*;
pub use epochs::*;
pub use flows::*;
pub use follow::*;
pub use full::*;
pub use halves::*;
pub use lives::*;
pub use order::*;
pub use races::*;
pub use refusals::*;
pub use restarts::*;
pub use router::*;

/// Long enough for a machine that has other things to do.
pub const SOON: Duration = Duration::from_secs(60);
/// Longer than any test waits: what should not be waited for would fail it.
pub const LONG: Duration = Duration::from_secs(600);

type Open = dyn Fn(u64, ChannelLimits) -> BoxFuture<'static, Arc<dyn ChannelStore>> + Send + Sync;

/// Opens stores. Each has a place, known by its number: a store on a new place is empty, and one that is opened on the
/// place of another, which nobody uses any more, has what that one had, if it lasts.
pub struct Stage {
    open: Box<Open>,
    places: AtomicU64,
    /// Whether what is in a store outlives it.
    pub lasts: bool,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("lasts", &self.lasts).finish_non_exhaustive()
    }
}

impl Stage {
    pub fn new<F>(lasts: bool, open: F) -> Self
    where
        F: Fn(u64, ChannelLimits) -> BoxFuture<'static, Arc<dyn ChannelStore>> + Send + Sync + 'static,
    {
        Self { open: Box::new(open), places: AtomicU64::new(0), lasts }
    }

    /// One that nobody has used.
    pub fn place(&self) -> u64 {
        self.places.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn open(&self, place: u64, limits: ChannelLimits) -> Arc<dyn ChannelStore> {
        (self.open)(place, limits).await
    }

    /// One that is empty.
    pub async fn store(&self, limits: ChannelLimits) -> Arc<dyn ChannelStore> {
        self.open(self.place(), limits).await
    }

    pub async fn router(&self, limits: ChannelLimits) -> Router {
        Router::new(self.store(limits).await)
    }

    /// A router over an empty store, with a process `job` of `ann` that `eve` executes and `oscar` observes, and its
    /// channel `talk`.
    pub async fn talk(&self, limits: ChannelLimits, options: ChannelOptions) -> Talk {
        let store = self.store(limits).await;
        let router = Router::new(Arc::clone(&store));
        let new = NewProcess {
            observers: vec![party("oscar")],
            channels: vec![channel("talk", options)],
            ..work("job", &[])
        };
        let (_, created) = router.create_process(new).await.unwrap();
        assert!(created);
        Talk { store, router, id: talk_of("job"), job: process("job") }
    }

    /// The same with nothing that is in the way.
    pub async fn free(&self) -> Talk {
        self.talk(free(), ChannelOptions::default()).await
    }
}

/// The bounds of a host where nobody is limited in how fast it appends, and what waits does so longer than any test.
pub fn free() -> ChannelLimits {
    ChannelLimits { rate_limited: false, hold: LONG, ..ChannelLimits::default() }
}

pub fn process_of(tenant: &str, name: &str) -> ProcessId {
    ProcessId { tenant: TenantId::new(tenant).unwrap(), name: ProcessName::new(name).unwrap() }
}

pub fn process(name: &str) -> ProcessId {
    process_of("acme", name)
}

pub fn channel_of(process: &ProcessId, name: &str) -> ChannelId {
    ChannelId { process: process.clone(), name: ChannelName::new(name).unwrap() }
}

/// The channel `talk` of a process.
pub fn talk_of(name: &str) -> ChannelId {
    channel_of(&process(name), "talk")
}

pub fn party(name: &str) -> Party {
    Party::new(name).unwrap()
}

pub fn by(name: &str) -> Actor {
    Actor::Party(party(name))
}

pub fn channel(name: &str, options: ChannelOptions) -> NewChannel {
    NewChannel { name: ChannelName::new(name).unwrap(), options }
}

/// A process of `ann` that `eve` executes.
pub fn work(name: &str, channels: &[&str]) -> NewProcess {
    NewProcess {
        id: process(name),
        submitter: party("ann"),
        executor: Some(party("eve")),
        observers: Vec::new(),
        channels: channels.iter().map(|name| channel(name, ChannelOptions::default())).collect(),
    }
}

/// Data, numbered from a first number on.
pub fn numbered(first: u64, texts: &[&str]) -> Vec<NewEntry> {
    let texts = texts.iter().map(|text| text.as_bytes().to_vec());
    (first..).zip(texts).map(|(sequence, text)| NewEntry::data(sequence, text)).collect()
}

pub fn batch(who: &str, entries: Vec<NewEntry>) -> Append {
    Append { who: party(who), epoch: None, entries }
}

#[track_caller]
pub fn code<T: fmt::Debug>(result: Result<T, ChannelError>) -> &'static str {
    match result {
        Err(error) => error.code(),
        Ok(answer) => panic!("it was not refused: {answer:?}"),
    }
}

/// The name of a bound that was passed, what was asked, and the bound.
#[track_caller]
pub fn limit<T: fmt::Debug>(result: Result<T, ChannelError>) -> (&'static str, u64, u64) {
    match result {
        Err(ChannelError::Limit { limit, asked, max, .. }) => (limit, asked, max),
        other => panic!("{other:?}"),
    }
}

/// Who sent it and its number, such as `ann1`.
pub fn label(entry: &Entry) -> String {
    format!("{}{}", entry.sender, entry.sequence)
}

pub fn labels(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| label(entry)).collect()
}

pub fn text(entry: &Entry) -> String {
    String::from_utf8(entry.payload.clone().unwrap_or_default().to_vec()).unwrap()
}

pub fn texts(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| text(entry)).collect()
}

pub fn positions(appended: &[Appended]) -> Vec<u64> {
    appended.iter().map(|one| one.position.0).collect()
}

/// A process with its channel `talk`.
#[derive(Debug)]
pub struct Talk {
    pub store: Arc<dyn ChannelStore>,
    pub router: Router,
    pub id: ChannelId,
    pub job: ProcessId,
}

impl Talk {
    pub async fn try_say(&self, who: &str, sequence: u64, text: &str) -> Result<Appended, ChannelError> {
        self.router.append(&self.id, &party(who), sequence, None, text.to_owned()).await
    }

    pub async fn say(&self, who: &str, sequence: u64, text: &str) -> Appended {
        soon(self.try_say(who, sequence, text)).await.unwrap()
    }

    pub async fn try_end(&self, who: &str, sequence: u64, with: EntryType) -> Result<Appended, ChannelError> {
        self.router.append_with_type(&self.id, &party(who), sequence, None, Bytes::new(), with).await
    }

    pub async fn end(&self, who: &str, sequence: u64) -> Appended {
        self.try_end(who, sequence, EntryType::End).await.unwrap()
    }

    pub async fn append(&self, who: &str, entries: Vec<NewEntry>) -> Result<Vec<Appended>, ChannelError> {
        self.router.append_all(&self.id, batch(who, entries)).await
    }

    /// As much as fits a page, from an index on.
    pub async fn read(&self, index: u64) -> Vec<Arc<Entry>> {
        self.router.read_after(&self.id, &Actor::Host, index, 0).await.unwrap().entries
    }

    pub async fn log(&self) -> Vec<String> {
        labels(&self.read(0).await)
    }

    pub async fn change(&self, change: Change) -> ProcessView {
        self.router.change(&self.job, Actor::Host, change).await.unwrap()
    }

    /// In a new epoch, which is answered.
    pub async fn assign(&self, executor: &str) -> u32 {
        self.change(Change::Assign(party(executor))).await.process.epoch
    }

    pub async fn close(&self, outcome: Outcome) -> ProcessView {
        self.change(Change::Close { outcome, reason: "because".to_owned() }).await
    }

    /// From an index on, and it has been told that it is ready.
    pub async fn follow(&self, who: &str, index: u64) -> Subscription {
        let mut follower = self.router.subscribe(&self.id, &by(who), index).await.unwrap();
        let first = next(&mut follower).await;
        assert!(matches!(first, Notice::Ready { after, .. } if after.0 == index), "{first:?}");
        follower
    }

    pub fn followers(&self) -> usize {
        self.router.subscriber_count(&self.id)
    }
}

/// What must come, comes.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it comes about")
}

pub async fn next(follower: &mut Subscription) -> Notice {
    soon(follower.next(100)).await.unwrap().expect("it has not ended")
}

/// So many entries, by their labels.
pub async fn heard(follower: &mut Subscription, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        match next(follower).await {
            Notice::Entries(entries) => heard.extend(labels(&entries)),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    heard
}

/// Everything up to the end: entries by their labels, why it ended, and the last position.
pub async fn to_the_end(follower: &mut Subscription) -> (Vec<String>, CloseReason, u64) {
    let mut heard = Vec::new();
    loop {
        match next(follower).await {
            Notice::Entries(entries) => heard.extend(labels(&entries)),
            Notice::Closed { reason, last } => {
                let more = soon(follower.next(1)).await.unwrap();
                assert_eq!(more, None, "nothing comes after the end");
                return (heard, reason, last.0);
            }
            other => panic!("{other:?} after {heard:?}"),
        }
    }
}
