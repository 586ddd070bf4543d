//! The router: what clients of channels call. It knows who may do what and how fast, lets entries wait for their
//! forerunners, and hands out subscriptions. What is kept, and in which order, is the store's.

mod at_once;

use std::future::{poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

pub(crate) use self::at_once::AtOnce;
use super::causal::in_senders_order;
use super::counts;
use super::cursor::{Incarnation, Place};
use super::entry::{Appended, Entry, EntryPage, EntryType, NewEntry};
use super::error::ChannelError;
use super::limiter::Limiters;
use super::names::{ChannelId, ChannelName, Party, ProcessId, ProcessName};
use super::options::{ChannelLimits, ChannelOptions, Gaps};
use super::record::{Head, Process, ProcessView};
use super::rules::{
    Actor, Append, Change, NewChannel, NewProcess, check_entries, may_append, may_read, may_remove, may_see,
};
use super::subscription::{Subscription, SubscriptionHandle, Who};
use super::tail::Live;
use super::waiting::{NoRoom, Waiting};
use super::{ChannelStats, ChannelStore, ReadLimit};
use crate::event::{Position, TenantId};
use crate::limits::{CHANNEL_PAGE_BYTES_MAX, CHANNEL_PAGE_ENTRIES_MAX};

type Result<T> = std::result::Result<T, ChannelError>;

/// The second step of an append: where the entries lie. Dropping it leaves open whether they do.
pub type Begun = BoxFuture<'static, Result<Vec<Appended>>>;

/// Channels and those who use them. Clones are the same router.
#[derive(Clone, Debug)]
pub struct Router {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ChannelStore>,
    limits: ChannelLimits,
    limiters: Limiters,
    waiting: Waiting,
    denied: AtomicU64,
}

impl Router {
    /// Over a store that was opened with the same limits.
    pub fn new(store: Arc<dyn ChannelStore>) -> Self {
        let limits = store.limits().clone();
        let (limiters, waiting) = (Limiters::default(), Waiting::default());
        Self { inner: Arc::new(Inner { store, limits, limiters, waiting, denied: AtomicU64::new(0) }) }
    }

    pub fn limits(&self) -> &ChannelLimits {
        &self.inner.limits
    }

    /// Makes a process with its channels. The same request again answers what is there, and false.
    pub async fn create_process(&self, new: NewProcess) -> Result<(ProcessView, bool)> {
        self.inner.store.create(new).await
    }

    /// A process with its channels.
    pub async fn process(&self, id: &ProcessId) -> Result<ProcessView> {
        self.inner.store.process(id).await
    }

    /// A process, for somebody who takes part in it or observes it.
    pub async fn process_for(&self, id: &ProcessId, by: &Actor) -> Result<ProcessView> {
        let view = self.process(id).await?;
        let Actor::Party(party) = by else { return Ok(view) };
        let process = &view.process;
        let known = process.submitter == *party
            || process.executor.as_ref() == Some(party)
            || process.observers.contains(party)
            || view.channels.iter().any(|channel| channel.executor.as_ref() == Some(party));
        if known {
            return Ok(view);
        }
        Err(ChannelError::Forbidden { process: id.to_string(), party: party.to_string() })
    }

    /// Processes of a tenant in the order of their names, after one.
    pub async fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> Result<Vec<Arc<Process>>> {
        self.inner.store.processes(tenant, after, limit).await
    }

    /// Changes a process, or finds that it is so already. Answers how it is now.
    pub async fn change(&self, id: &ProcessId, by: Actor, change: Change) -> Result<ProcessView> {
        self.inner.store.change(id, by, change).await
    }

    /// Makes a channel; one of the same name is an error.
    pub async fn create(&self, id: &ChannelId, options: ChannelOptions) -> Result<Head> {
        self.add(id, options, false).await
    }

    /// Makes a channel; one of the same name stays as it is.
    pub async fn create_if_not_exists(&self, id: &ChannelId, options: ChannelOptions) -> Result<Head> {
        self.add(id, options, true).await
    }

    async fn add(&self, id: &ChannelId, options: ChannelOptions, exists_ok: bool) -> Result<Head> {
        let channel = NewChannel { name: id.name.clone(), options };
        let change = Change::AddChannel { channel, exists_ok };
        self.change(&id.process, Actor::Host, change).await?.head(&id.name)
    }

    /// A channel by its id on the wire, `<process>_<channel>`.
    pub async fn get(&self, tenant: &TenantId, id: &str) -> Result<Head> {
        let id = ChannelId::parse(tenant.clone(), id)?;
        self.inner.store.head(&id).await
    }

    pub async fn get_by_process_and_name(&self, process: &ProcessId, name: &ChannelName) -> Result<Head> {
        self.inner.store.head(&ChannelId { process: process.clone(), name: name.clone() }).await
    }

    /// In the order of their creation. None of a process that is not known.
    pub async fn channels_by_process(&self, process: &ProcessId) -> Result<Vec<Head>> {
        match self.process(process).await {
            Ok(view) => {
                let process = view.process;
                let head = |channel| Head { process: Arc::clone(&process), channel };
                Ok(view.channels.into_iter().map(head).collect())
            }
            Err(ChannelError::ProcessUnknown { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Appends data. Answers where it lies.
    pub async fn append(
        &self,
        id: &ChannelId,
        who: &Party,
        sequence: u64,
        in_reply_to: Option<u64>,
        payload: impl Into<Bytes>,
    ) -> Result<Appended> {
        self.append_with_type(id, who, sequence, in_reply_to, payload, EntryType::Data).await
    }

    pub async fn append_with_type(
        &self,
        id: &ChannelId,
        who: &Party,
        sequence: u64,
        in_reply_to: Option<u64>,
        payload: impl Into<Bytes>,
        entry_type: EntryType,
    ) -> Result<Appended> {
        let entry = NewEntry { in_reply_to, ..NewEntry::data(sequence, payload) }.of_type(entry_type);
        let append = Append { who: who.clone(), epoch: None, entries: vec![entry] };
        let mut appended = self.append_all(id, append).await?;
        // One entry has one place.
        appended.pop().ok_or_else(|| ChannelError::Entry { why: "nothing was appended".to_owned() })
    }

    /// Appends entries of one sender: all or none, one behind the other. Checked in this order: their size, the channel,
    /// the sender, its rate, and then what the log has. Waits while a forerunner is missing and the channel holds; what closes a half waits for
    /// its forerunners also where others are taken as they arrive.
    pub async fn append_all(&self, id: &ChannelId, append: Append) -> Result<Vec<Appended>> {
        match self.append_at_once(id, append) {
            AtOnce::Answered(done) => {
                counts::Written::new().count(&done);
                done.map(|done| done.places)
            }
            AtOnce::Begun(rest) => rest.await,
            AtOnce::Later(append) => self.begin_later(id, append).await?.await,
        }
    }

    /// The same in two steps, for who has much under way at once: when the first one is over, the store has the entries,
    /// and takes nothing that comes after it earlier. The second one waits for its answer.
    pub async fn begin_append(&self, id: &ChannelId, append: Append) -> Result<Begun> {
        match self.append_at_once(id, append) {
            AtOnce::Answered(done) => {
                counts::Written::new().count(&done);
                Ok(ready(done.map(|done| done.places)).boxed())
            }
            AtOnce::Begun(rest) => Ok(rest),
            AtOnce::Later(append) => self.begin_later(id, append).await,
        }
    }

    /// The same with a store that waits.
    pub(crate) async fn begin_later(&self, id: &ChannelId, append: Append) -> Result<Begun> {
        let sizes: Vec<usize> = append.entries.iter().map(NewEntry::bytes).collect();
        match self.take_in(id, append).await {
            Ok(rest) => Ok(rest.inspect(move |answer| counts::answered(&sizes, answer)).boxed()),
            Err(error) => {
                counts::answered(&sizes, &Err(error.clone()));
                Err(error)
            }
        }
    }

    async fn take_in(&self, id: &ChannelId, mut append: Append) -> Result<Begun> {
        check_entries(&append.entries, &self.inner.limits)?;
        let mut live = self.inner.store.tails().attach(id);
        let (mut head, mut epoch) = self.admitted(&live, &append).await?;
        if live.is_removed() {
            // It was of another process of the same name, and is told nothing of this one; so may be what was read.
            live = self.inner.store.tails().attach(id);
            (head, epoch) = self.admitted(&live, &append).await?;
        }
        if append.entries.is_empty() {
            return Ok(ready(Ok(Vec::new())).boxed());
        }
        let limits = &self.inner.limits;
        if limits.rate_limited {
            self.counted(self.inner.limiters.take(&id.process, &append.who, append.entries.len(), limits))?;
        }
        // However long it waits: its sender's rights end with its epoch.
        append.epoch = Some(epoch);
        let (router, id) = (self.clone(), id.clone());
        let mut rest = async move {
            let answered = router.inner.store.append(&id, append.clone()).await;
            if let Err(ChannelError::Gap { expected, sequence, .. }) = &answered
                && let Some(until) = waits_for(&head, &append, *expected, *sequence)
            {
                return router.held(&live, &head, append, epoch, until).await;
            }
            answered
        }
        .boxed();
        // With this the store has it.
        Ok(match poll_fn(|context| Poll::Ready(rest.poll_unpin(context))).await {
            Poll::Ready(answered) => ready(answered).boxed(),
            Poll::Pending => rest,
        })
    }

    /// Refuses who is too fast already before what it sends is read. What passes is asked again with its entries.
    pub fn check_rate(&self, id: &ChannelId, who: &Party) -> Result<()> {
        let limits = &self.inner.limits;
        if !limits.rate_limited {
            return Ok(());
        }
        let asked = self.counted(self.inner.limiters.ask(&id.process, who, limits));
        if let Err(error) = &asked {
            counts::answered(&[], &Err(error.clone()));
        }
        asked
    }

    fn counted(&self, asked: Result<()>) -> Result<()> {
        if asked.is_err() {
            self.inner.denied.fetch_add(1, Ordering::Relaxed);
        }
        asked
    }

    /// Waits until the forerunners of an entry are in the log, and appends it then. `until` is the number that its sender has
    /// to reach first. What waits is not acknowledged: who gets an error or no answer sends it again.
    async fn held(
        &self,
        live: &Live,
        admitted: &Head,
        append: Append,
        epoch: u32,
        mut until: u64,
    ) -> Result<Vec<Appended>> {
        let id = &live.id;
        let deadline = Instant::now() + self.inner.limits.hold;
        let mut changed = live.watch();
        let whose = (id.clone(), append.who.clone(), epoch);
        let _wait = match self.inner.waiting.take(whose, append.held_bytes(), &self.inner.limits) {
            Ok(wait) => wait,
            // What is missing may have come meanwhile.
            Err(full) => {
                return match (self.inner.store.append(id, append).await, full) {
                    (Err(ChannelError::Gap { .. }), NoRoom::Bytes(bound)) => Err(bound),
                    (answered, _) => answered,
                };
            }
        };
        counts::held();
        let mut late = false;
        loop {
            changed.forget();
            let head = self.head(live).await?;
            if !head.is_of(&admitted.process) {
                // It was meant for a process that is gone, and not for the next one of its name.
                return Err(id.unknown());
            }
            let sender = head.channel.sender(&append.who, epoch);
            let last = sender.map_or(0, |sender| sender.last);
            let over = head.process.closed.is_some() || sender.is_some_and(|sender| sender.ended.is_some());
            // Whatever else stands in its way now, the store says.
            let ready = last >= until || over || may_append(&head, &append.who, Some(epoch)).is_err();
            if ready || late {
                match self.inner.store.append(id, append.clone()).await {
                    Err(ChannelError::Gap { expected, sequence, .. }) if !late => {
                        until = awaited(admitted.channel.options.gaps, expected, sequence);
                    }
                    answered => return answered,
                }
            }
            late = tokio::time::timeout_at(deadline, changed.rung()).await.is_err();
        }
    }

    /// A channel's state: what is in memory, or else what the store has.
    async fn head(&self, live: &Live) -> Result<Head> {
        if let Some(head) = live.head() {
            return Ok(head);
        }
        let head = self.inner.store.head(&live.id).await?;
        live.read(&head);
        Ok(head)
    }

    /// In which epoch somebody may append. What memory refuses is asked of a store that others change, too.
    async fn admitted(&self, live: &Live, append: &Append) -> Result<(Head, u32)> {
        let head = self.head(live).await?;
        match may_append(&head, &append.who, append.epoch) {
            Ok(epoch) => return Ok((head, epoch)),
            Err(refused) if !self.inner.store.is_shared() => return Err(refused),
            Err(_) => {}
        }
        let head = self.inner.store.head(&live.id).await?;
        live.read(&head);
        let epoch = may_append(&head, &append.who, append.epoch)?;
        Ok((head, epoch))
    }

    /// A channel in use, as the store has it now.
    async fn current(&self, id: &ChannelId) -> Result<(Arc<Live>, Head)> {
        let tails = self.inner.store.tails();
        loop {
            let live = tails.attach(id);
            let known = live.head();
            let head = self.inner.store.head(id).await?;
            if known.is_some_and(|known| !known.is_of(&head.process)) {
                // The store was asked after that was told: it knows of the next process before those who follow do.
                tails.retire(&live);
            }
            live.read(&head);
            if !live.is_removed() {
                return Ok((live, head));
            }
        }
    }

    /// What comes after a place: an index, which is the number of entries that were read before and the position of the
    /// last of them, with or without the process that it is of. With a limit of 0 as much as fits a page.
    pub async fn read_after(
        &self,
        id: &ChannelId,
        by: &Actor,
        after: impl Into<Place>,
        limit: usize,
    ) -> Result<EntryPage> {
        let after = after.into();
        may_see(&self.inner.store.head(id).await?, by)?;
        self.page(id, by, after, limit).await
    }

    async fn page(&self, id: &ChannelId, by: &Actor, after: Place, limit: usize) -> Result<EntryPage> {
        let entries = if limit == 0 { CHANNEL_PAGE_ENTRIES_MAX } else { limit.min(CHANNEL_PAGE_ENTRIES_MAX) };
        let limit = ReadLimit { entries, bytes: CHANNEL_PAGE_BYTES_MAX };
        let page = self.inner.store.read(id, after.position, limit).await?;
        // As of the read: whoever has lost the right since it was asked must not have what came afterwards.
        may_see(&page.head, by)?;
        after.check(&page.head.process)?;
        Ok(page)
    }

    /// All that can be read of a channel up to a page's bytes, in the order of its senders; see [`in_senders_order`].
    pub async fn read_in_senders_order(&self, id: &ChannelId, by: &Actor) -> Result<Vec<Arc<Entry>>> {
        Ok(in_senders_order(&self.read_after(id, by, Place::START, 0).await?.entries))
    }

    /// Waits until there is something after a place, the channel can grow no more, or the time is over; then reads. What
    /// it waits for is the process that it has found: another one of its name is an error.
    pub async fn wait_after(
        &self,
        id: &ChannelId,
        by: &Actor,
        after: impl Into<Place>,
        limit: usize,
        wait: std::time::Duration,
    ) -> Result<EntryPage> {
        let mut after = after.into();
        let deadline = Instant::now() + wait;
        let mut live = self.inner.store.tails().attach(id);
        let mut changed = live.watch();
        loop {
            if live.is_removed() {
                live = self.inner.store.tails().attach(id);
                changed = live.watch();
            }
            changed.forget();
            // Before the page: what is read after the end is all there is.
            let head = self.head(&live).await?;
            if may_see(&head, by).is_err() {
                // Memory may be behind.
                may_see(&self.inner.store.head(id).await?, by)?;
            }
            let page = self.page(id, by, after, limit).await?;
            after = Place::of(&page.head.process, after.position);
            let over = head.process.closed.is_some() || head.channel.is_ended(&head.process);
            if !page.entries.is_empty() || over && head.is_of(&page.head.process) {
                return Ok(page);
            }
            if tokio::time::timeout_at(deadline, changed.rung()).await.is_err() {
                return Ok(page);
            }
        }
    }

    /// Follows a channel from a place on: what is there, then what comes, without hole or repeat.
    pub async fn subscribe(
        &self,
        id: &ChannelId,
        by: &Actor,
        after: impl Into<Place>,
    ) -> Result<Subscription> {
        let after = after.into();
        let (live, head) = self.current(id).await?;
        let who = match by {
            Actor::Party(party) => Who::Party(party.clone(), may_read(&head, party)?),
            Actor::Host => Who::Host,
        };
        after.check(&head.process)?;
        let (index, newest) = (after.position, head.channel.newest);
        if index > newest {
            let possible = format!("0 to {newest}, the newest position, are possible");
            return Err(ChannelError::Option { option: "after", asked: index.to_string(), possible });
        }
        let max = self.inner.limits.subscribers_max;
        if !live.enter(max) {
            return Err(ChannelError::Limit {
                limit: "channel_subscribers_max",
                what: "followers of the channel on this host",
                asked: max as u64 + 1,
                max: max as u64,
            });
        }
        let store = Arc::clone(&self.inner.store);
        let lag_max = self.inner.limits.subscriber_entries_max;
        Ok(Subscription::new(live, store, who, (&head.process, index), lag_max))
    }

    /// Ends a subscription. One that has ended already is left alone.
    pub fn unsubscribe(&self, subscription: &SubscriptionHandle) {
        subscription.unsubscribe();
    }

    /// Followers of a channel on this host; 0 of one that is not known.
    pub fn subscriber_count(&self, id: &ChannelId) -> usize {
        self.inner.store.tails().find(id).map_or(0, |live| live.subscribers())
    }

    /// The newest position of a channel.
    pub async fn sequence(&self, id: &ChannelId) -> Result<Position> {
        Ok(self.inner.store.head(id).await?.channel.newest)
    }

    /// Entries of a channel that can be read.
    pub async fn log_size(&self, id: &ChannelId) -> Result<u64> {
        Ok(self.inner.store.head(id).await?.channel.entries())
    }

    /// Of all tenants.
    pub async fn stats(&self) -> Result<ChannelStats> {
        self.inner.store.stats().await
    }

    /// Appends that were refused for their rate, since the start.
    pub fn rate_denied(&self) -> u64 {
        self.inner.denied.load(Ordering::Relaxed)
    }

    /// Processes and senders have buckets of their own while they are not full.
    pub fn limiters(&self) -> usize {
        self.inner.limiters.len()
    }

    /// Gives one channel to an executor, in a new epoch.
    pub async fn set_executor_id(&self, id: &ChannelId, executor: &Party) -> Result<Head> {
        let change = Change::AssignChannel { channel: id.name.clone(), executor: Some(executor.clone()) };
        let view = self.change(&id.process, Actor::Host, change).await;
        view.map_err(|error| missing_channel(error, id))?.head(&id.name)
    }

    /// Gives all channels of a process to an executor, in a new epoch. A process that is not known is left alone.
    pub async fn set_executor_id_for_process(&self, process: &ProcessId, executor: &Party) -> Result<()> {
        match self.change(process, Actor::Host, Change::Assign(executor.clone())).await {
            Ok(_) | Err(ChannelError::ProcessUnknown { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a process for somebody who may do so: the one that was looked at, and not another one that has come under
    /// its name meanwhile.
    pub async fn remove_process(&self, process: &ProcessId, by: &Actor) -> Result<()> {
        let view = self.process(process).await?;
        may_remove(&view, by)?;
        if !self.inner.store.remove(process, Some(Incarnation::of(&view.process))).await? {
            return Err(ChannelError::ProcessUnknown { process: process.to_string() });
        }
        self.inner.limiters.remove(process);
        Ok(())
    }

    /// Removes a process with its channels at once; who follows them is told. False where there was none.
    pub async fn cleanup_process(&self, process: &ProcessId) -> Result<bool> {
        let removed = self.inner.store.remove(process, None).await?;
        self.inner.limiters.remove(process);
        Ok(removed)
    }
}

/// Whether an append with a gap before it waits, and for which number of its sender.
fn waits_for(head: &Head, append: &Append, expected: u64, sequence: u64) -> Option<u64> {
    let gaps = head.channel.options.gaps;
    let closes = append.entries.iter().any(|entry| entry.entry_type.closes());
    let holds = gaps == Gaps::Hold || gaps == Gaps::Arrival && closes;
    (holds && sequence > expected).then(|| awaited(gaps, expected, sequence))
}

/// Which number a sender has to reach before an entry with a gap before it is tried again: that of its forerunner. Where
/// entries are taken as they arrive, some of those between may be there already, or come along with it.
fn awaited(gaps: Gaps, expected: u64, sequence: u64) -> u64 {
    if gaps == Gaps::Arrival { expected } else { sequence.saturating_sub(1) }
}

/// Who asks for a channel of a process that is not there misses the channel.
fn missing_channel(error: ChannelError, id: &ChannelId) -> ChannelError {
    match error {
        ChannelError::ProcessUnknown { process } => {
            ChannelError::Unknown { process, channel: id.name.to_string() }
        }
        error => error,
    }
}
