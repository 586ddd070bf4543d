//! The one thread that writes. It takes what has arrived, applies it in one
//! transaction, commits, publishes to the tail and then answers: a group is
//! what came in while the former one was synced. Nobody who writes alone waits
//! for anything; where several wrote together they are likely to write again as
//! soon as they are answered, so a group waits some microseconds for as many.
//!
//! A request that is refused leaves nothing behind and does not disturb its
//! group. When the storage itself fails, the whole group fails, memory goes
//! back to where the transaction began, and the next group starts afresh.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::changes::Changes;
use super::channel_book::Book;
use super::database::{DATABASE_FILE, backend, meta, set_meta, signed};
use super::dedup::DedupWindow;
use super::event_rows::Text;
use super::keeper::KeeperHandle;
use super::options::{CommitStep, LogPlace, SqliteOptions, StepObserver, Synchronous};
use super::outbox::OutboxCounts;
use super::request::{Answer, Request};
use super::row_writes::TableRows;
use super::shared::{Catalog, Shared, Tenant, Tenants};
use super::wal_room::WalRoom;
use super::watches::{GroupChanges, Watched};
use crate::checkpoints::CommitError;
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::event::{EventBatch, Position, Revision, TenantId};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, COMMIT_PATIENCE, COMMIT_PATIENCE_EACH, GROUP_BYTES_MAX,
    GROUP_ITEMS_MAX,
};
use crate::streams::StreamError;
use crate::streams::groups::LossReport;
use crate::tables::TableError;

/// Why a request was not carried out: it was refused, or the storage failed under it.
#[derive(Debug)]
pub(super) enum Stop<E> {
    Refused(E),
    Storage(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for Stop<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error)
    }
}

/// The counters that a failed transaction or savepoint sets back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) newest: u64,
    pub(super) trimmed: u64,
    pub(super) revision: u64,
    pub(super) generation: u64,
    /// Entries of the outbox.
    pub(super) outbox: OutboxCounts,
}

/// Bounds of one task's keyed state.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyedLimits {
    pub(super) bytes_max: u64,
    pub(super) entries_max: u64,
}

#[derive(Debug)]
pub(super) struct Committer {
    pub(super) conn: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) window: DedupWindow,
    pub(super) tenants: Tenants,
    pub(super) catalog: Catalog,
    pub(super) counters: Counters,
    pub(super) dead_letters_max: u64,
    observer: Option<StepObserver>,
    /// What is watched in the running group.
    pub(super) watched: Arc<Watched>,
    pub(super) keyed_limits: KeyedLimits,
    pub(super) changes: Changes,
    pub(super) book: Book,
    /// Where emitted events go.
    pub(super) log: LogPlace,
    /// As of the last commit.
    committed: Counters,
    group: Group,
    /// Requests of the former group, and those that came while it was synced: as many are likely to come again.
    expected: usize,
    keeper: KeeperHandle,
    /// Frames in the WAL after the last commit.
    wal_frames: Arc<AtomicI32>,
    wal_frames_soft_max: i32,
    wal_frames_hard_max: i32,
    /// None where nothing is synced.
    wal_room: Option<WalRoom>,
}

/// What the running transaction will make known when it has committed.
#[derive(Debug, Default)]
struct Group {
    answers: Vec<Answer>,
    /// A chunk per tenant that still grows, in `chunks`.
    open: HashMap<i64, usize>,
    chunks: Vec<EventBatch>,
    /// Tenants that are new, or that appended for the first time.
    tenants: Vec<TenantId>,
    catalog_changed: bool,
    /// The columns of tables that may be watched have changed.
    columns_changed: bool,
    changes: GroupChanges,
    /// How far streams with a name of their own have grown.
    named: Vec<(TenantId, Box<str>, Position)>,
    /// What retention took from groups of consumers.
    losses: Vec<LossReport>,
}

/// What comes within a moment. Once nothing has, or the patience of the group is at its end, nothing is waited for any more.
fn one_more(requests: &mut mpsc::Receiver<Request>, patience: &mut Duration) -> Option<Request> {
    let begun = Instant::now();
    let most = COMMIT_PATIENCE_EACH.min(*patience);
    while begun.elapsed() < most {
        // Whoever was answered gets the core.
        std::thread::yield_now();
        if let Ok(request) = requests.try_recv() {
            *patience = patience.saturating_sub(begun.elapsed());
            return Some(request);
        }
    }
    *patience = Duration::ZERO;
    None
}

impl Committer {
    pub(super) fn new(
        mut conn: Connection,
        shared: Arc<Shared>,
        options: &SqliteOptions,
        keeper: KeeperHandle,
    ) -> Result<Self, rusqlite::Error> {
        let bounds = shared.bounds();
        let counters = Counters {
            newest: bounds.newest.0,
            trimmed: bounds.trimmed.0,
            revision: meta(&conn, "revision")?,
            generation: meta(&conn, "generation")?,
            outbox: shared.outbox(),
        };
        let window = load_window(&conn, &counters, options)?;
        let wal_frames = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&wal_frames);
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, frames| {
            seen.store(frames, Ordering::Relaxed);
            Ok(())
        }))?;
        let frames = |bytes: u64| i32::try_from(bytes / 4096).unwrap_or(i32::MAX);
        Ok(Self {
            tenants: shared.all_tenants(),
            catalog: shared.catalog(),
            clock: Arc::clone(&options.clock),
            counters: counters.clone(),
            dead_letters_max: options.dead_letters_max,
            observer: options.observer.clone(),
            watched: Arc::default(),
            keyed_limits: KeyedLimits {
                bytes_max: options.keyed_state_bytes_max,
                entries_max: options.keyed_state_entries_max,
            },
            log: options.log,
            book: Book::default(),
            changes: Changes::new(shared.scopes(), options.change_stream_events_max),
            committed: counters,
            group: Group::default(),
            expected: 0,
            keeper,
            wal_frames,
            wal_frames_soft_max: frames(options.wal_bytes_soft_max),
            wal_frames_hard_max: frames(options.wal_bytes_hard_max),
            wal_room: (options.synchronous == Synchronous::Full)
                .then(|| WalRoom::new(&options.dir.join(DATABASE_FILE), options.wal_bytes_soft_max)),
            conn,
            shared,
            window,
        })
    }

    /// Serves requests until the store is closed or nobody can ask any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            self.serve_group(first, &mut requests);
            self.tend_wal();
        }
        // A closed store has everything where it belongs.
        self.settle_at_end();
        self.shared.watches.close();
        // The WAL goes back into the database, so that the next start has nothing to recover.
        if let Err(error) = self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "the WAL stays for the next start");
        }
    }

    /// One transaction.
    fn serve_group(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        if let Err(error) = self.execute("BEGIN IMMEDIATE") {
            let error = backend(&error);
            tracing::error!(error.kind = error.code(), error.blame = "host", %error, "no transaction could begin");
            first.fail(&error);
            return;
        }
        self.watched = self.shared.watches.group_begins();
        self.shared.last_changed.group_begins();
        let (mut items, mut bytes, mut taken) = (0, 0, 0);
        let (expected, mut patience) = (std::mem::take(&mut self.expected), COMMIT_PATIENCE);
        self.group.answers.reserve(expected);
        let mut next = Some(first);
        while let Some(request) = next {
            let weight = request.weight();
            items += weight.0;
            bytes += weight.1;
            taken += 1;
            self.expected = taken;
            if let Err(error) = self.apply(request, requests) {
                return self.fail_group(&error);
            }
            let room = items < GROUP_ITEMS_MAX && bytes < GROUP_BYTES_MAX;
            next = if room { requests.try_recv().ok() } else { None };
            if room && next.is_none() && taken < expected {
                next = one_more(requests, &mut patience);
            }
        }
        let written = self.write_channels().and_then(|()| self.write_counters());
        match written.and_then(|()| self.execute("COMMIT")) {
            Ok(()) => {
                // Nobody of this group is answered yet: these are others, who would take turns with it otherwise.
                self.expected = taken + requests.len();
                self.step(CommitStep::Synced);
                self.publish();
                self.step(CommitStep::Answered);
                self.lengthen_wal();
            }
            Err(error) => self.fail_group(&error),
        }
    }

    /// Carries one request out and keeps its answer. An error means that the whole group fails.
    fn apply(
        &mut self,
        request: Request,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Result<(), rusqlite::Error> {
        macro_rules! answer {
            ($answer:path, $reply:expr, $result:expr) => {{
                match $result {
                    Ok(done) => self.group.answers.push($answer($reply, Ok(done))),
                    Err(Stop::Refused(refused)) => self.group.answers.push($answer($reply, Err(refused))),
                    Err(Stop::Storage(error)) => {
                        let failed = backend(&error);
                        $answer($reply, Err(failed.clone().into())).fail(&failed);
                        return Err(error);
                    }
                }
            }};
        }
        match request {
            Request::Append { batch, reply } => {
                let result: Result<_, Stop<StreamError>> = self.append(batch);
                answer!(Answer::Append, reply, result);
            }
            Request::AppendTo { stream, batch, reply } => {
                let result: Result<_, Stop<StreamError>> = self.append_to(&stream, batch);
                answer!(Answer::Append, reply, result);
            }
            Request::DeclareScopes { owner, declarations, reply } => {
                let result: Result<_, Stop<StreamError>> = self.declare_scopes(&owner, &declarations);
                answer!(Answer::DeclareScopes, reply, result);
            }
            Request::Commit { commit, reply } => {
                let result: Result<_, Stop<CommitError>> = self.commit(&commit);
                answer!(Answer::Commit, reply, result);
            }
            Request::Forget { task, generation, position, reply } => {
                answer!(Answer::Commit, reply, self.forget(&task, generation, position));
            }
            Request::Claim { task, reply } => answer!(Answer::Claim, reply, self.claim(&task)),
            Request::Trim { retention, reply } => answer!(Answer::Trim, reply, self.trim(retention)),
            Request::Declare { plugin, tables, reply } => {
                let result: Result<_, Stop<TableError>> = self.declare(&plugin, &tables);
                answer!(Answer::Declare, reply, result);
            }
            Request::Deploy { deployment, reply } => answer!(Answer::Unit, reply, self.deploy(&deployment)),
            Request::PutCandidate { plugin, candidate, reply } => {
                answer!(Answer::Unit, reply, self.put_candidate(&plugin, &candidate));
            }
            Request::Withdraw { plugin, reply } => {
                answer!(Answer::Unit, reply, self.withdraw(&plugin));
            }
            Request::Remove { plugin, reply } => answer!(Answer::Unit, reply, self.remove(&plugin)),
            Request::PurgeTombstones { before, reply } => {
                answer!(Answer::Count, reply, self.purge_tombstones(before));
            }
            Request::PurgeExpired { age, reply } => {
                answer!(Answer::Count, reply, self.purge_expired(age));
            }
            Request::SettleOutbox { done, reply } => {
                answer!(Answer::Unit, reply, self.settle_outbox(&done));
            }
            Request::MarkLog { epoch, newest, reply } => {
                answer!(Answer::Unit, reply, self.mark_log(&epoch, newest));
            }
            Request::Group(request) => self.apply_to_group(request)?,
            Request::Channel(request) => self.apply_to_channels(request)?,
            Request::Rebuild(request) => self.apply_to_rebuilds(request)?,
            Request::Close { reply } => {
                requests.close();
                self.group.answers.push(Answer::Closed(reply));
            }
        }
        Ok(())
    }

    fn write_counters(&self) -> Result<(), rusqlite::Error> {
        for (name, before, now) in [
            ("revision", self.committed.revision, self.counters.revision),
            ("generation", self.committed.generation, self.counters.generation),
            ("trimmed", self.committed.trimmed, self.counters.trimmed),
        ] {
            if before != now {
                set_meta(&self.conn, name, now)?;
            }
        }
        Ok(())
    }

    /// After the commit: first the tail, then the bounds, then the answers, so that
    /// whoever has an answer finds its events.
    fn publish(&mut self) {
        let group = std::mem::take(&mut self.group);
        self.shared.set_outbox(&self.committed.outbox, &self.counters.outbox);
        self.committed = self.counters.clone();
        self.shared.last_changed.group_ends(Revision(self.counters.revision));
        for name in group.tenants {
            if let Some(tenant) = self.tenants.get(&name) {
                self.shared.set_tenant(name, *tenant);
            }
        }
        if group.catalog_changed {
            self.shared.set_catalog(self.catalog.clone());
        }
        // Before the tail: whoever finds an event of a stream there finds what its scopes were, too.
        if !Arc::ptr_eq(self.changes.scopes(), &self.shared.scopes()) {
            self.shared.set_scopes(self.changes.scopes());
        }
        self.changes.begin();
        if !group.chunks.is_empty() {
            self.shared.tail.publish_group(group.chunks.into_iter().map(Arc::new).collect());
        }
        if !group.named.is_empty() {
            self.shared.tail.publish_named(&group.named);
        }
        self.shared.set_bounds(self.counters.newest, self.counters.trimmed);
        let revision = Revision(self.counters.revision);
        self.shared.watches.group_ends(revision, group.changes, group.columns_changed);
        self.book.publish(&self.shared.channel_tails, &self.shared.unsettled);
        self.window.trim(self.counters.trimmed);
        self.window.shrink();
        self.step(CommitStep::Published);
        for loss in group.losses {
            loss.tell(self.clock.now());
        }
        for answer in group.answers {
            answer.send();
        }
    }

    /// Nothing of the group has happened.
    fn fail_group(&mut self, error: &rusqlite::Error) {
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(error.kind = "storage_failed", error.blame = "host", %error, "a transaction could not be rolled back");
        }
        let group = std::mem::take(&mut self.group);
        self.counters = self.committed.clone();
        let revision = Revision(self.counters.revision);
        self.shared.last_changed.group_ends(revision);
        self.shared.watches.group_ends(revision, GroupChanges::default(), false);
        self.window.truncate(self.counters.newest + 1);
        self.tenants = self.shared.all_tenants();
        self.catalog = self.shared.catalog();
        self.changes.reset(self.shared.scopes());
        self.book.reset();
        let error = backend(error);
        tracing::error!(error.kind = error.code(), error.blame = "host", %error, requests = group.answers.len() + 1, "a group commit failed");
        for answer in group.answers {
            answer.fail(&error);
        }
    }

    /// Once those who waited have their answers.
    fn lengthen_wal(&mut self) {
        let frames = u64::try_from(self.wal_frames.load(Ordering::Relaxed)).unwrap_or(0);
        if let Some(room) = &mut self.wal_room {
            room.tend(frames);
        }
    }

    /// Asks for a checkpoint beyond the soft bound, and finishes what the keeper
    /// has copied: the tail of the WAL is short then, and once all is copied
    /// the next transaction begins the WAL anew. Beyond the hard bound the
    /// keeper and readers are waited for.
    fn tend_wal(&mut self) {
        let frames = self.wal_frames.load(Ordering::Relaxed);
        if frames > self.wal_frames_hard_max {
            self.keeper.cut_readers();
            self.keeper.wait_while_copying();
            let busy =
                self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
            match busy {
                Ok(false) => self.wal_frames.store(0, Ordering::Relaxed),
                // The next commit tries it again.
                Ok(true) => tracing::warn!(
                    error.kind = "wal_bytes_hard_max",
                    error.blame = "host",
                    frames,
                    "the WAL is beyond its bound and is being read: it could not be truncated"
                ),
                Err(error) => {
                    tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, frames, "the WAL is beyond its bound and could not be truncated");
                }
            }
        } else if frames > self.wal_frames_soft_max {
            if self.keeper.take_copied() {
                if let Err(error) = self.conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
                    tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "the WAL could not be copied back");
                }
            } else {
                self.keeper.ask_for_checkpoint();
            }
        }
    }

    pub(super) fn step(&self, step: CommitStep) {
        if let Some(StepObserver(observe)) = &self.observer {
            observe(step);
        }
    }

    pub(super) fn execute(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.conn.prepare_cached(sql)?.raw_execute().map(drop)
    }

    /// A tenant's number; a new tenant gets one.
    pub(super) fn tenant_number(&mut self, name: &TenantId) -> Result<i64, rusqlite::Error> {
        if let Some(tenant) = self.tenants.get(name) {
            return Ok(tenant.number);
        }
        self.conn.prepare_cached("INSERT INTO tenants(name) VALUES (?1)")?.execute([name.as_str()])?;
        let tenant = Tenant { number: self.conn.last_insert_rowid(), appended: false };
        self.tenants.insert(name.clone(), tenant);
        self.group.tenants.push(name.clone());
        Ok(tenant.number)
    }

    /// Remembers that a tenant has appended.
    pub(super) fn note_appended(&mut self, name: &TenantId) -> Result<(), rusqlite::Error> {
        match self.tenants.get_mut(name) {
            Some(tenant) if !tenant.appended => {
                self.conn
                    .prepare_cached("UPDATE tenants SET appended = 1 WHERE id = ?1")?
                    .execute([tenant.number])?;
                tenant.appended = true;
                self.group.tenants.push(name.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Keeps what a commit changed in watched tables, for when the group has committed.
    pub(super) fn note_changes(&mut self, tenant: &TenantId, revision: u64, changed: Vec<TableRows>) {
        for TableRows { table, rows } in changed {
            self.group.changes.add(tenant, table, Revision(revision), rows);
        }
    }

    /// Keeps that a stream with a name of its own has grown, for when the group has committed.
    pub(super) fn note_named(&mut self, tenant: TenantId, stream: Box<str>, last: Position) {
        self.group.named.push((tenant, stream, last));
    }

    /// Keeps an answer until the transaction is durable.
    pub(super) fn note_answer(&mut self, answer: Answer) {
        self.group.answers.push(answer);
    }

    /// Keeps what a group of consumers has lost, to be told when it is durable.
    pub(super) fn note_loss(&mut self, loss: LossReport) {
        self.group.losses.push(loss);
    }

    /// How many losses are kept.
    pub(super) fn losses(&self) -> usize {
        self.group.losses.len()
    }

    /// Forgets those that came after so many: what took them was rolled back.
    pub(super) fn forget_losses(&mut self, after: usize) {
        self.group.losses.truncate(after);
    }

    pub(super) fn note_catalog_change(&mut self) {
        self.group.catalog_changed = true;
        self.group.columns_changed = true;
    }

    /// Tables that nobody can watch have come or gone.
    pub(super) fn note_hidden_change(&mut self) {
        self.group.catalog_changed = true;
    }

    /// A table has other rows than before, of which no change was told.
    pub(super) fn note_replaced(&mut self, table: &str) {
        self.group.catalog_changed = true;
        self.group.changes.replace(table);
    }

    /// Adds written events, with their positions, to what the tail will get.
    /// Small batches of a tenant grow together; large ones go as they are.
    pub(super) fn add_chunk(&mut self, tenant: i64, batch: EventBatch) {
        let group = &mut self.group;
        if let Some(&index) = group.open.get(&tenant) {
            let chunk = &mut group.chunks[index];
            if chunk.len() + batch.len() <= BATCH_EVENTS_MAX
                && chunk.bytes() + batch.bytes() <= BATCH_BYTES_MAX
            {
                chunk.extend_from(&batch);
                return;
            }
        }
        group.open.insert(tenant, group.chunks.len());
        group.chunks.push(batch);
    }
}

/// Fills the dedup window with the newest events of the log.
fn load_window(
    conn: &Connection,
    counters: &Counters,
    options: &SqliteOptions,
) -> Result<DedupWindow, rusqlite::Error> {
    let events = u64::try_from(options.dedup_events_max).unwrap_or(u64::MAX);
    let after = counters.newest.saturating_sub(events).max(counters.trimmed);
    let mut window = DedupWindow::new(after + 1, options.dedup_events_max, options.dedup_hash_bits);
    let mut statement =
        conn.prepare("SELECT tenant, id FROM events WHERE position > ?1 ORDER BY position")?;
    let mut rows = statement.query([signed(after)])?;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(1)?.as_bytes()?;
        window.push(window.hash(row.get_ref(0)?.as_i64()?, id));
    }
    Ok(window)
}

/// Text to bind.
pub(super) fn text(text: &str) -> Text<'_> {
    Text(text.as_bytes())
}
