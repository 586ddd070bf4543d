//! The way in: checks a query, finds the owner of its table, and follows a view for a subscriber.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::frames::Batch;
use super::owner::{Attach, Common, Owner};
use super::ring::{Taken, Watching};
use super::shape::normalise;
use super::view::{Attached, Start};
use super::{LiveError, LiveQueries, LiveQuery, Subscribe, Subscription};
use crate::event::{Epoch, TenantId};
use crate::limits::{LIVE_CHECK_EVERY, LIVE_COMMANDS_MAX, LIVE_READS_MAX};
use crate::tables::{TableError, TableStore};
use crate::tasks::{OnCancel, OnError, TaskKind, Tasks};

const OWNER: TaskKind = TaskKind { on_cancel: OnCancel::Abort, on_error: OnError::Log };

/// Whose views of which table.
type Place = (TenantId, String);
type Owners = HashMap<Place, mpsc::Sender<Attach>>;

/// Live queries over the tables of this host. Clones are the same.
#[derive(Clone)]
pub struct LiveEngine {
    common: Arc<Common>,
    /// None once it is closed.
    owners: Arc<Mutex<Option<Owners>>>,
}

impl fmt::Debug for LiveEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveEngine").finish_non_exhaustive()
    }
}

impl LiveEngine {
    /// Over a store whose life is named by this epoch. It keeps so many different queries.
    pub fn new(tables: Arc<dyn TableStore>, epoch: Epoch, views_max: usize) -> Self {
        Self::checked_every(LIVE_CHECK_EVERY, tables, epoch, views_max)
    }

    /// The same, which compares a view of each table with the store as often as that, if it can.
    pub fn checked_every(
        check_every: Duration,
        tables: Arc<dyn TableStore>,
        epoch: Epoch,
        views_max: usize,
    ) -> Self {
        let common = Common {
            tables,
            epoch,
            views: AtomicUsize::new(0),
            views_max,
            reads: Semaphore::new(LIVE_READS_MAX),
            checks: Arc::new(Semaphore::new(1)),
            check_every,
            repaired: AtomicUsize::new(0),
            tasks: Tasks::new(),
        };
        Self { common: Arc::new(common), owners: Arc::new(Mutex::new(Some(Owners::new()))) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Owners>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Different queries that are watched or kept.
    pub fn views(&self) -> usize {
        self.common.views.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Views that showed anything else than the store, and were repaired. More than none is a fault of the host.
    pub fn repaired(&self) -> usize {
        self.common.repaired.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Ends every view. Subscribers are told that the host is stopping.
    pub fn close(&self) {
        // Owners end when nobody can ask them any more.
        self.lock().take();
    }

    async fn attach(&self, asked: &Asked, start: Start) -> Result<Attached, LiveError> {
        loop {
            let owner = self.owner(&asked.place)?;
            let (reply, answer) = oneshot::channel();
            let (query, shape) = (asked.query.clone(), Arc::clone(&asked.shape));
            let attach = Attach { query, shape, start: start.clone(), reply };
            if owner.send(attach).await.is_err() {
                self.forget(&asked.place, &owner);
                continue;
            }
            drop(owner);
            if let Ok(answer) = answer.await {
                return answer;
            }
            // The owner ended meanwhile: the next one is asked, unless all have.
        }
    }

    /// The owner of a table's views, a new one if need be.
    fn owner(&self, place: &Place) -> Result<mpsc::Sender<Attach>, LiveError> {
        let mut owners = self.lock();
        let owners = owners.as_mut().ok_or(LiveError::Closing)?;
        if let Some(owner) = owners.get(place) {
            return Ok(owner.clone());
        }
        let (sender, commands) = mpsc::channel(LIVE_COMMANDS_MAX);
        owners.insert(place.clone(), sender.clone());
        let owned = own(self.clone(), place.clone(), commands);
        self.common.tasks.spawn(OWNER, format!("views of {}", place.1), async {
            owned.await;
            Ok(())
        });
        Ok(sender)
    }

    fn forget(&self, place: &Place, ended: &mpsc::Sender<Attach>) {
        if let Some(owners) = self.lock().as_mut()
            && owners.get(place).is_some_and(|owner| owner.same_channel(ended))
        {
            owners.remove(place);
        }
    }
}

/// The life of an owner.
async fn own(engine: LiveEngine, place: Place, mut commands: mpsc::Receiver<Attach>) {
    let common = Arc::clone(&engine.common);
    // While it runs, the engine can be dropped: it is asked for only when there is nothing left to do.
    let owners = Arc::downgrade(&engine.owners);
    drop(engine);
    let begun = async {
        let changes = common.tables.watch(&place.0, &place.1).await?;
        Ok((changes, common.tables.schema(&place.1)?))
    };
    let (changes, schema) = match begun.await {
        Ok(begun) => begun,
        Err(error) => {
            let error: TableError = error;
            if let Some(owners) = owners.upgrade()
                && let Some(owners) = owners.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            {
                owners.remove(&place);
            }
            commands.close();
            while let Some(attach) = commands.recv().await {
                let _ = attach.reply.send(Err(error.clone().into()));
            }
            return;
        }
    };
    let (done, reads) = mpsc::channel(LIVE_READS_MAX);
    let owner = Owner::new(common, place.0.clone(), schema, changes.after(), done);
    let may_end = |commands: &mpsc::Receiver<Attach>| {
        let Some(owners) = owners.upgrade() else { return true };
        let mut owners = owners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(owners) = owners.as_mut() else { return true };
        // Nobody can get at it while this is locked.
        if !commands.is_empty() {
            return false;
        }
        owners.remove(&place);
        true
    };
    owner.run(commands, changes, reads, may_end).await;
}

/// A checked query, as often as it must be asked for.
#[derive(Debug)]
pub(super) struct Asked {
    place: Place,
    query: LiveQuery,
    shape: Arc<str>,
}

impl LiveQueries for LiveEngine {
    fn subscribe(&self, subscribe: Subscribe) -> BoxFuture<'_, Result<Subscription, LiveError>> {
        Box::pin(async move {
            let Subscribe { tenant, query, resume } = subscribe;
            let schema = self.common.tables.schema(&query.query.table)?;
            query.query.validate(&schema).map_err(TableError::from)?;
            let query = normalise(query, &schema)?;
            let shape = format!("{query:?}").into();
            let asked = Asked { place: (tenant, schema.name.clone()), query, shape };
            let attached = self.attach(&asked, resume.map_or(Start::Fresh, Start::Token)).await?;
            // What is the same for all who watch a view is kept once.
            let asked = attached.watching.0.share(Arc::new(asked));
            let follower = Follower::new(self.clone(), asked, attached);
            let batches = stream::unfold(Some(follower), |follower| async {
                let mut follower = follower?;
                match follower.next().await {
                    Ok(batch) => Some((Ok(batch), Some(follower))),
                    Err(error) => Some((Err(error), None)),
                }
            });
            Ok(Subscription { batches: Box::pin(batches) })
        })
    }
}

/// One subscriber's place in a view. There are many, and most of them wait: it is kept small.
struct Follower {
    engine: LiveEngine,
    asked: Arc<Asked>,
    pending: VecDeque<Batch>,
    next: u64,
    watching: Watching,
}

impl Follower {
    fn new(engine: LiveEngine, asked: Arc<Asked>, attached: Attached) -> Self {
        let Attached { first, next, watching } = attached;
        Self { engine, asked, pending: first.into(), next, watching }
    }

    async fn next(&mut self) -> Result<Batch, LiveError> {
        loop {
            if let Some(batch) = self.pending.pop_front() {
                return Ok(batch);
            }
            match self.watching.0.take(self.next) {
                Taken::Batches(batches, next) => (self.pending, self.next) = (batches.into(), next),
                Taken::Ended(why) => return Err(why),
                Taken::Behind => {
                    // It is rare, and larger than all the rest.
                    let attached = Box::pin(self.engine.attach(&self.asked, Start::Behind)).await?;
                    self.pending = attached.first.into();
                    self.next = attached.next;
                    self.watching = attached.watching;
                }
                Taken::Nothing => self.wait().await,
            }
        }
    }

    /// Until there may be more.
    async fn wait(&self) {
        let mut news = pin!(self.watching.0.listen());
        news.as_mut().enable();
        // What came before that is not waited for.
        if matches!(self.watching.0.take(self.next), Taken::Nothing) {
            news.await;
        }
    }
}
