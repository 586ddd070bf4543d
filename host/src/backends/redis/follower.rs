//! The one reader that feeds the tail, and the only part that decides which server is the log.
//!
//! It finds the primary, checks that the log behind it is the one that it knows, and then reads the stream with
//! blocking reads on a connection of its own. What it has read it makes visible once that is durable: where replicas or
//! the append-only file are waited for, it writes a mark and waits for that, since all that was read lies before it. So
//! nobody sees an event that a failover may take back, and an append is acknowledged when it is seen here.

use std::path::Path;
use std::sync::Arc;

use metrics::{counter, gauge};
use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::codec::{EntryId, decode_into};
use super::connect::{Server, ask, connect, locate};
use super::faults::{backend, ends_session, remote};
use super::options::Durability;
use super::scripts::{APPEND, SYNC, bytes, list, number, text};
use super::shared::{Published, Session, Shared};
use crate::error::{BackendError, Classify as _, RemoteFault};
use crate::event::{Epoch, EventBatch, Position, TenantId};
use crate::limits::{
    BATCH_BYTES_MAX, REDIS_CHECK_EVERY, REDIS_DURABLE_WAIT, REDIS_FIND_WAIT_MAX, REDIS_LIFE_STEP,
    REDIS_READ_BYTES, REDIS_READ_ENTRIES_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN,
};
use crate::tasks::TaskError;
use crate::telemetry::metrics as names;

/// How long the mark that is waited for stays in a server that nobody uses any more.
const BARRIER_SECONDS: u32 = 24 * 3600;

/// The least that a blocking read asks for.
const READ_ENTRIES_MIN: usize = 16;

pub(super) struct Follower {
    shared: Arc<Shared>,
    sessions: u64,
    /// Replicas that were counted on once are counted on for good: after a failover there may be none for a while.
    durability: Option<Durability>,
    /// The newest entry that was made visible: its id and its time of append.
    newest_entry: Option<(String, String)>,
    entries_max: usize,
    /// The code of what was written to the host's log last, until the log is of use again: a server that is away is away
    /// once, also where it is reached again and again and cannot be read.
    told: Option<&'static str>,
}

/// The connection of the blocking reads, and what it reads.
struct Feed {
    connection: MultiplexedConnection,
    server: String,
    epoch: Epoch,
    durability: Durability,
    end: CancellationToken,
}

/// What the server says of the log.
struct Synced {
    epoch: Epoch,
    newest: Position,
    trimmed: Position,
    base: Position,
    why: String,
    cut: String,
    scopes_version: u64,
    scopes: String,
}

/// Entries that were read and are not visible yet.
#[derive(Default)]
struct Read {
    chunks: Vec<EventBatch>,
    /// How far streams with a name of their own have grown.
    named: Vec<(TenantId, Box<str>, Position)>,
    newest: Position,
    newest_entry: Option<(String, String)>,
    entries: usize,
    bytes: usize,
}

/// How closely the log is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Often: the same for any number of tenants.
    Quick,
    /// With the index of every tenant.
    Whole,
}

/// Why a reply of the stream cannot be followed.
enum Wrong {
    /// Between the last position and this one something is missing.
    Gap(Position),
    Entry(&'static str),
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sessions: 0,
            durability: None,
            newest_entry: None,
            entries_max: READ_ENTRIES_MIN,
            told: None,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) -> Result<(), TaskError> {
        let mut wait = REDIS_RETRY_WAIT_MIN;
        loop {
            let begun = Instant::now();
            let ended = match self.open().await {
                Ok(mut feed) => {
                    let ended = self.follow(&mut feed).await;
                    feed.end.cancel();
                    ended
                }
                Err(error) => Err(error),
            };
            self.shared.session.send_replace(None);
            if let Err(error) = ended {
                self.lost(&error);
            }
            if begun.elapsed() > REDIS_RETRY_WAIT_MAX {
                wait = REDIS_RETRY_WAIT_MIN;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REDIS_FIND_WAIT_MAX);
        }
    }

    fn lost(&mut self, error: &BackendError) {
        self.shared.status.send_modify(|status| status.problem = Some(error.clone()));
        if self.told != Some(error.code()) {
            self.told = Some(error.code());
            let address = &self.shared.options.address;
            warn!(error.kind = error.code(), error.blame = "host", %address, %error, "the log on Redis does not serve");
        }
    }

    /// The log is of use again: that is told, and so will be the next time that it is not.
    fn serves(&mut self, feed: &Feed) {
        if self.told.take().is_some() {
            feed.tell();
        }
    }

    /// Connects, and checks that this is the log.
    async fn open(&mut self) -> Result<Feed, BackendError> {
        let info = locate(&self.shared.options.address).await?;
        let ca_file = self.shared.options.ca_file.clone();
        let ca_file = ca_file.as_deref();
        let mut appends = connect(&info, ca_file).await?;
        let server = Server::look(&mut appends).await?;
        let durability = match self.durability {
            Some(replicated @ Durability::Replicated { .. }) => replicated,
            _ => server.durability(self.shared.options.ack)?,
        };
        self.durability = Some(durability);
        // Calls that are under way together keep their order only with a server that knows the script already.
        APPEND.load(&mut appends).await.map_err(|error| backend("loading a script", &error))?;
        let reads = connect_to(&info, ca_file, &server.run_id).await?;
        let connection = connect_to(&info, ca_file, &server.run_id).await?;
        let mut feed = Feed {
            connection,
            server: server.version.clone(),
            epoch: self.shared.epoch(),
            durability,
            end: CancellationToken::new(),
        };
        let synced = self.sync(&mut feed, "", Look::Whole).await?;
        feed.epoch = synced.epoch.clone();
        // What the log has so far is told to others, so it has to be durable, too.
        if !self.durable(&mut feed).await? {
            return Err(self.not_replicated(durability));
        }
        let names: Vec<String> = ask(
            &mut feed.connection,
            "reading the tenants",
            redis::cmd("SMEMBERS").arg(&self.shared.keys.tenants),
        )
        .await?;
        self.take_over(&synced, names);
        self.sessions += 1;
        counter!(names::REDIS_SESSIONS).increment(1);
        for ack in Durability::NAMES {
            let now = if ack == durability.as_str() { 1.0 } else { 0.0 };
            gauge!(names::REDIS_ACK, "ack" => ack).set(now);
        }
        // After an outage that is to be seen first.
        if self.told.is_none() {
            feed.tell();
        }
        self.shared.status.send_modify(|status| {
            status.problem = None;
            status.server = server.version.clone();
            status.durability = Some(durability);
        });
        let (number, epoch, end) = (self.sessions, synced.epoch, feed.end.clone());
        self.shared.session.send_replace(Some(Session { number, epoch, appends, reads, end }));
        Ok(feed)
    }

    /// Makes known what a log that was just reached has.
    fn take_over(&mut self, synced: &Synced, names: Vec<String>) {
        let tenants = names.iter().filter_map(|name| TenantId::new(name).ok());
        let new = self.shared.add_tenants(tenants);
        let known = self.shared.known_epoch();
        if known.as_ref() == Some(&synced.epoch) {
            self.shared.tail.add_tenants(new);
            return self.shared.trimmed(&synced.epoch, synced.trimmed);
        }
        // Of another life, all that came after its beginning is still to be read.
        let newest = if known.is_some() { synced.base } else { synced.newest };
        let former = self.shared.options.known.as_ref().map(|former| former.epoch.clone());
        if let Some(known) = known.or(former).filter(|known| *known != synced.epoch) {
            counter!(names::LOG_NEW_EPOCHS).increment(1);
            warn!(
                error.kind = "new_epoch",
                error.blame = "host",
                former = %known.0,
                epoch = %synced.epoch.0,
                stream.position = newest.0,
                reason = %synced.why,
                "the log is another one: every reader is told that its place is lost"
            );
        }
        self.newest_entry = None;
        self.shared.tail.begin_again(newest);
        self.shared.tail.add_tenants(new);
        let published = Published { epoch: synced.epoch.clone(), newest, trimmed: synced.trimmed };
        self.shared.published.send_replace(published);
    }

    /// Reads until the session ends: with an error, or because the log has to be looked at anew.
    async fn follow(&mut self, feed: &mut Feed) -> Result<(), BackendError> {
        let mut checked = Instant::now();
        loop {
            let end = feed.end.clone();
            let answer = tokio::select! {
                biased;
                () = end.cancelled() => return Ok(()),
                // Dropping it leaves the connection in the middle of an answer; it goes with the session.
                answer = self.next(feed) => answer?,
            };
            match self.taken(answer) {
                Ok(None) => {}
                Ok(Some(read)) => {
                    while !self.durable(feed).await? {
                        let problem = self.not_replicated(feed.durability);
                        self.lost(&problem);
                        if feed.end.is_cancelled() || !self.same_log(feed, "").await? {
                            return Ok(());
                        }
                    }
                    self.shared.status.send_if_modified(|status| status.problem.take().is_some());
                    self.publish(read);
                    self.serves(feed);
                }
                Err(Wrong::Gap(first)) => {
                    if !self.same_log(feed, "").await? {
                        return Ok(());
                    }
                    if !self.passed_by_retention(first) {
                        self.same_log(feed, "an entry of the stream is missing").await?;
                        return Ok(());
                    }
                }
                Err(Wrong::Entry(what)) => {
                    if self.same_log(feed, "").await? {
                        return Err(remote(
                            RemoteFault::Unsupported,
                            format_args!("reading the stream: {what}"),
                        ));
                    }
                    return Ok(());
                }
            }
            if checked.elapsed() >= REDIS_CHECK_EVERY {
                if !self.same_log(feed, "").await? {
                    return Ok(());
                }
                self.serves(feed);
                checked = Instant::now();
            }
        }
    }

    /// Goes on at a position where retention, and nothing else, has removed what is before it and was not read yet: of
    /// a host that was cut off for a while. Readers that stand before it are told by the log that their place is lost.
    fn passed_by_retention(&mut self, first: Position) -> bool {
        let bounds = self.shared.bounds();
        let passed = bounds.newest < bounds.trimmed && first.0 <= bounds.trimmed.0 + 1;
        if passed {
            let newest = Position(first.0 - 1);
            warn!(
                error.kind = "fell_behind",
                error.blame = "host",
                stream.position = newest.0,
                "retention has passed what this host had not read yet"
            );
            self.newest_entry = None;
            self.shared.tail.begin_again(newest);
            self.shared.published.send_modify(|published| published.newest = newest);
        }
        passed
    }

    /// Entries after what is visible, as soon as there are some.
    async fn next(&self, feed: &mut Feed) -> Result<Value, BackendError> {
        let after = format!("{}-{}", self.shared.bounds().newest, u64::MAX);
        let mut command = redis::cmd("XREAD");
        command
            .arg("COUNT")
            .arg(self.entries_max)
            .arg("BLOCK")
            .arg(REDIS_CHECK_EVERY.as_millis().to_string());
        command.arg("STREAMS").arg(&self.shared.keys.events).arg(after);
        ask(&mut feed.connection, "reading the stream", &command).await
    }

    /// The events of a reply; none when it waited for nothing.
    fn taken(&self, answer: Value) -> Result<Option<Read>, Wrong> {
        const SHAPE: Wrong = Wrong::Entry("the answer has another shape");
        if answer == Value::Nil {
            return Ok(None);
        }
        let mut streams = list(answer).ok_or(SHAPE)?;
        let mut stream = streams.pop().and_then(list).ok_or(SHAPE)?;
        let entries = stream.pop().and_then(list).ok_or(SHAPE)?;
        let mut read = Read { newest: self.shared.bounds().newest, ..Read::default() };
        for entry in entries {
            read.take(&entry)?;
        }
        Ok(Some(read))
    }

    fn publish(&mut self, read: Read) {
        // As many entries as come to about the bytes that a read is aimed at.
        let each = (read.bytes / read.entries.max(1)).max(1);
        self.entries_max = (REDIS_READ_BYTES / each).clamp(READ_ENTRIES_MIN, REDIS_READ_ENTRIES_MAX);
        if read.newest_entry.is_some() {
            self.newest_entry = read.newest_entry;
        }
        self.shared.add_tenants(read.chunks.iter().map(|chunk| chunk.tenant.clone()));
        self.shared.tail.publish_group(read.chunks.into_iter().map(Arc::new).collect());
        if !read.named.is_empty() {
            self.shared.tail.publish_named(&read.named);
        }
        self.shared.published.send_modify(|published| published.newest = read.newest);
    }

    /// Whether what was read so far has come to stay. False after a wait without success.
    async fn durable(&self, feed: &mut Feed) -> Result<bool, BackendError> {
        let mut wait = match feed.durability {
            Durability::Memory | Durability::AppendAlways => return Ok(true),
            Durability::Replicated { replicas } => {
                let mut wait = redis::cmd("WAIT");
                wait.arg(replicas);
                wait
            }
            Durability::WaitAof => {
                let mut wait = redis::cmd("WAITAOF");
                wait.arg(1).arg(0);
                wait
            }
        };
        wait.arg(REDIS_DURABLE_WAIT.as_millis().to_string());
        // A write that a full server takes, too; it needs a key that is there.
        let mut mark = redis::cmd("EXPIRE");
        mark.arg(&self.shared.keys.barrier).arg(BARRIER_SECONDS);
        let mut reached = self.marked(feed, mark, &wait).await?;
        if reached.is_none() {
            let mut mark = redis::cmd("SET");
            mark.arg(&self.shared.keys.barrier).arg("").arg("EX").arg(BARRIER_SECONDS);
            reached = self.marked(feed, mark, &wait).await?;
        }
        let wanted = match feed.durability {
            Durability::Replicated { replicas } => replicas,
            _ => 1,
        };
        Ok(reached.is_some_and(|reached| reached >= wanted))
    }

    /// Writes the mark and waits for it: how many have it; none when it was not written.
    async fn marked(
        &self,
        feed: &mut Feed,
        mark: redis::Cmd,
        wait: &redis::Cmd,
    ) -> Result<Option<u32>, BackendError> {
        let mut commands = redis::pipe();
        commands.add_command(mark).add_command(wait.clone());
        let (written, reached): (Value, Value) = commands
            .query_async(&mut feed.connection)
            .await
            .map_err(|error| backend("waiting until it is durable", &error))?;
        if written == Value::Int(0) {
            return Ok(None);
        }
        // WAITAOF answers how many local files and how many replicas, WAIT how many replicas.
        let reached = match list(reached.clone()) {
            Some(counts) => counts.first().and_then(number),
            None => number(&reached),
        };
        Ok(Some(reached.unwrap_or(0)))
    }

    fn not_replicated(&self, durability: Durability) -> BackendError {
        let millis = REDIS_DURABLE_WAIT.as_millis();
        let detail = match durability {
            Durability::Replicated { replicas } => {
                format!("{replicas} asked, fewer answered within {millis} ms")
            }
            _ => format!("the append-only file was not synced within {millis} ms"),
        };
        remote(RemoteFault::NotReplicated, detail)
    }

    /// Compares the log with what is known of it. False when it is another one now.
    async fn same_log(&mut self, feed: &mut Feed, wrong: &str) -> Result<bool, BackendError> {
        let synced = self.sync(feed, wrong, Look::Quick).await?;
        if synced.epoch != feed.epoch {
            return Ok(false);
        }
        if !synced.cut.is_empty() {
            counter!(names::LOG_FOREIGN_TRIMS).increment(1);
            warn!(
                error.kind = "foreign_trim",
                error.blame = "host",
                stream.position = synced.trimmed.0,
                "somebody else has shortened the stream; readers before this position are told that their place is lost"
            );
        }
        self.shared.trimmed(&feed.epoch, synced.trimmed);
        Ok(true)
    }

    async fn sync(&self, feed: &mut Feed, wrong: &str, look: Look) -> Result<Synced, BackendError> {
        let keys = &self.shared.keys;
        // Of a host that begins, what it has written down.
        let former = self.shared.options.known.as_ref().filter(|_| self.shared.known_epoch().is_none());
        let known = former.map(|former| former.epoch.clone()).or_else(|| self.shared.known_epoch());
        let mark = former.map(|former| former.newest.to_string()).unwrap_or_default();
        let epoch = ulid::Ulid::new().to_string();
        let (entry, time) = self.newest_entry.clone().unwrap_or_default();
        let newest = former.map_or_else(|| self.shared.bounds().newest, |former| former.reached).0;
        let scopes = self.shared.scopes();
        let names: [&[u8]; 7] =
            [&keys.meta, &keys.events, &keys.ids, &keys.older_ids, &keys.scopes, &keys.tenants, &keys.index];
        let answer = SYNC
            .run(&mut feed.connection, &names, |command| {
                command.arg(known.as_ref().map_or("", |epoch| &epoch.0)).arg(newest).arg(&entry).arg(&time);
                command.arg(&epoch).arg(REDIS_LIFE_STEP).arg(wrong);
                command.arg(scopes.version).arg(&scopes.json).arg(&mark);
                command.arg(u8::from(look == Look::Whole));
            })
            .await
            .map_err(|error| backend("looking at the log", &error))?;
        let synced = Synced::read(answer);
        let synced = synced.ok_or_else(|| remote(RemoteFault::WrongType, "the log's counters are none"))?;
        self.shared.set_scopes(synced.scopes_version, &synced.scopes)?;
        Ok(synced)
    }
}

impl Feed {
    fn tell(&self) {
        let (server, ack, epoch) = (&self.server, self.durability.as_str(), &self.epoch.0);
        info!(%server, ack, %epoch, "the log on Redis serves");
    }
}

impl Synced {
    fn read(answer: Value) -> Option<Self> {
        let parts = list(answer)?;
        let [epoch, newest, trimmed, base, why, cut, version, scopes] = &parts[..] else { return None };
        Some(Self {
            epoch: Epoch(text(epoch)?.into()),
            newest: Position(number(newest)?),
            trimmed: Position(number(trimmed)?),
            base: Position(number(base)?),
            why: text(why)?.to_owned(),
            cut: text(cut)?.to_owned(),
            scopes_version: number(version)?,
            scopes: text(scopes)?.to_owned(),
        })
    }
}

impl Read {
    fn take(&mut self, entry: &Value) -> Result<(), Wrong> {
        const FOREIGN: Wrong = Wrong::Entry("an entry is not of this log");
        let Value::Array(parts) = entry else { return Err(FOREIGN) };
        let [id_value, Value::Array(fields)] = &parts[..] else { return Err(FOREIGN) };
        let [_, tenant, _, time, _, events, more @ ..] = &fields[..] else { return Err(FOREIGN) };
        let id = bytes(id_value).and_then(EntryId::parse).ok_or(FOREIGN)?;
        let tenant = text(tenant).and_then(|name| TenantId::new(name).ok()).ok_or(FOREIGN)?;
        let (events, time) = (bytes(events).ok_or(FOREIGN)?, text(time).ok_or(FOREIGN)?);
        if id.first().0 != self.newest.0 + 1 {
            return Err(Wrong::Gap(id.first()));
        }
        match more {
            [] => self.chunk(tenant, id, events, "")?,
            [field, names] if bytes(field) == Some(b"c") => {
                self.chunk(tenant, id, events, text(names).ok_or(FOREIGN)?)?;
            }
            [field, stream] if bytes(field) == Some(b"s") => {
                self.named.push((tenant, text(stream).ok_or(FOREIGN)?.into(), id.last));
            }
            _ => return Err(FOREIGN),
        }
        self.newest = id.last;
        self.newest_entry = Some((format!("{}-{}", id.last, id.count), time.to_owned()));
        self.entries += 1;
        self.bytes += events.len();
        Ok(())
    }

    /// Takes in an entry of `events`, with the change streams of its events.
    fn chunk(&mut self, tenant: TenantId, id: EntryId, events: &[u8], changes: &str) -> Result<(), Wrong> {
        let chunk = match self.chunks.last_mut() {
            Some(chunk) if chunk.tenant == tenant && chunk.bytes() + events.len() <= BATCH_BYTES_MAX => chunk,
            _ => {
                self.chunks.push(EventBatch::new(tenant));
                self.chunks.last_mut().expect("one was just added")
            }
        };
        let first = chunk.len();
        decode_into(chunk, id, events).map_err(Wrong::Entry)?;
        for line in changes.lines() {
            let mark =
                line.split_once('\t').and_then(|(index, name)| Some((index.parse::<usize>().ok()?, name)));
            let (index, name) = mark.ok_or(Wrong::Entry("an entry's change streams are damaged"))?;
            chunk.mark(first + index, name.into());
        }
        Ok(())
    }
}

/// A further connection to the very run of a server that was looked at.
async fn connect_to(
    info: &ConnectionInfo,
    ca_file: Option<&Path>,
    run_id: &str,
) -> Result<MultiplexedConnection, BackendError> {
    let mut connection = connect(info, ca_file).await?;
    let said: String =
        ask(&mut connection, "asking what the server is", redis::cmd("INFO").arg("server")).await?;
    if said.contains(run_id) {
        return Ok(connection);
    }
    Err(remote(RemoteFault::Unreachable, "the server was started again in between"))
}

impl Shared {
    /// Ends a session after an error that says so.
    pub(super) fn failed(&self, session: &Session, error: &BackendError) {
        if ends_session(error) {
            session.end.cancel();
        }
    }
}
