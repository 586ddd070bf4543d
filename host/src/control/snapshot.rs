//! The desired state of a fleet in one piece: for hosts that come late or have missed something.
//!
//! A snapshot is JSON, `{"format", "control_version", "events"}`, with the newest event of each entity as it was signed and
//! its place in the feed. It is an artifact: named by its digest, found through the board's mark. So it cannot forge
//! anything: each event is believed for its own signatures, and a store never goes back for one. It can only be old. How
//! far it goes is signed by nobody: a cursor follows it no further than the feed goes. What a host does not believe or
//! understand of it is set aside, and holds up nothing else. Tombstones are part of it, so it heals a missed removal, too.
//!
//! Whether hosts have the same state is told by its digest: of sorted lines `<entity> <revision> <digest of the event>`, and
//! of trusted keys their revision alone, since a host may have them from its file.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::store::check_whole;
use super::trust::TrustStore;
use super::{
    ArtifactRepository, Believing, Board, Bootstrap, ControlEvent, ControlFeedError, ControlStore,
    ControlVersion, DesiredRow, EventBody, FleetMark, Quarantined, Restore, Restored, Result, SnapshotRef,
    check_digest,
};
use crate::clock::Clock;
use crate::error::{Classify as _, Retry};
use crate::event::Micros;
use crate::limits::CONTROL_SNAPSHOT_BYTES_MAX;

/// What a snapshot begins with. Another one is not read, whatever else is right about it.
pub const FORMAT: &str = "millrace.control.snapshot.v1";

/// Who pins snapshots.
const PIN: &str = "control-snapshot";

/// Code of an event that is from the future here.
const OUT_OF_TIME: &str = "control_event_out_of_time";

#[derive(Deserialize)]
struct Written<'a> {
    format: String,
    control_version: ControlVersion,
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// How a host's state stands to what the origin says of the fleet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    /// There is none.
    Same,
    /// This host has not read so far yet.
    Behind,
    /// This host has read further, so nothing can be said; the origin's next mark is not far.
    Ahead,
    /// It has read all of that, and has another state.
    Differs,
}

/// The digest by which states are compared.
pub fn state_digest(rows: &[DesiredRow], keys: &TrustStore) -> String {
    let is_trust = |row: &&DesiredRow| matches!(row.event.unsigned().body, EventBody::Trust(_));
    let mut lines: BTreeSet<String> = rows
        .iter()
        .filter(|row| !is_trust(row))
        .map(|row| format!("{} {} {}\n", row.entity, row.revision, row.event.digest()))
        .collect();
    lines.insert(format!("trust {}\n", keys.revision()));
    let mut digest = Sha256::new();
    for line in lines {
        digest.update(line);
    }
    super::wire::hex_digest(&digest.finalize())
}

/// Compares a host with the mark.
pub fn drift(mark: &FleetMark, cursor: ControlVersion, digest: &str) -> Drift {
    if digest == mark.state_digest {
        return Drift::Same;
    }
    match cursor.cmp(&mark.version) {
        std::cmp::Ordering::Less => Drift::Behind,
        std::cmp::Ordering::Equal => Drift::Differs,
        std::cmp::Ordering::Greater => Drift::Ahead,
    }
}

/// Writes a snapshot of what a store answered as desired.
pub fn write(version: ControlVersion, rows: &[DesiredRow]) -> String {
    let events: Vec<String> = rows.iter().map(|row| row.event.to_json_at(row.version)).collect();
    let (format, version) = (serde_json::Value::from(FORMAT), version.0);
    format!(
        "{{\n\"format\": {format},\n\"control_version\": {version},\n\"events\": [\n{}\n]\n}}\n",
        events.join(",\n")
    )
}

/// Reads a snapshot, and believes of its events what these keys, and those that it brings, vouch for.
pub fn read(bytes: &[u8], keys: &TrustStore, now: Micros) -> Result<Restore> {
    let unreadable = |error: serde_json::Error| ControlFeedError::InvalidEvent {
        detail: format!("a snapshot cannot be read: {error}"),
    };
    let size = bytes.len() as u64;
    if size > CONTROL_SNAPSHOT_BYTES_MAX {
        return Err(too_large(size));
    }
    let written: Written<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
    if written.format != FORMAT {
        let format: String = written.format.chars().take(80).collect();
        let detail = format!("a snapshot has the format `{format}`, and {FORMAT} is known");
        return Err(ControlFeedError::NotUnderstood { detail });
    }
    let mut restore = Restore { version: written.control_version, ..Restore::default() };
    let mut aside = |version, name: &str, problem: &ControlFeedError| {
        let quarantined = Quarantined::new(version, name, problem.code(), &problem.to_string(), now.0);
        restore.set_aside.push(quarantined);
    };
    let mut events = Vec::new();
    for (index, json) in written.events.into_iter().enumerate() {
        match placed(json.get(), restore.version) {
            Ok(event) => events.push(event),
            Err(problem) => aside(restore.version, &format!("snapshot event {index}"), &problem),
        }
    }
    // The keys first: they vouch for the rest.
    events.sort_by_key(|(_, event)| !matches!(event.unsigned().body, EventBody::Trust(_)));
    let mut keys = keys.clone();
    let mut entities = BTreeSet::new();
    for (version, event) in events {
        if event.unsigned().body == EventBody::Unknown || keys.is_past(&event) {
            continue;
        }
        let believed = check_once(&mut entities, &event).and_then(|()| believed(&keys, &event, now));
        match believed.and_then(|()| keys.after(&event)) {
            Ok(next) => {
                keys = next;
                restore.events.push((version, event));
            }
            Err(problem) => aside(version, event.id().as_str(), &problem),
        }
    }
    Ok(restore)
}

/// An event with its place in the feed, which is in the snapshot's part of it.
fn placed(json: &str, through: ControlVersion) -> Result<(ControlVersion, ControlEvent)> {
    let (event, version) = ControlEvent::parse_at(json)?;
    match version {
        Some(version) if version.0 > 0 && version <= through => Ok((version, event)),
        _ => Err(ControlFeedError::InvalidEvent {
            detail: format!("a snapshot has no place up to {} for {}", through.0, event.id()),
        }),
    }
}

fn check_once(entities: &mut BTreeSet<String>, event: &ControlEvent) -> Result<()> {
    let entity = event.entity();
    if entities.insert(entity.clone()) {
        return Ok(());
    }
    Err(ControlFeedError::InvalidEvent { detail: format!("a snapshot has {entity} twice") })
}

/// As news up to its own time, so that one from the future is refused, and one that has expired since is not. Its signatures
/// first: nobody is to wait for what is signed by nobody.
fn believed(keys: &TrustStore, event: &ControlEvent, now: Micros) -> Result<()> {
    keys.check_kept(event)?;
    if event.unsigned().issued_at > now.0 {
        return keys.check_event(event, now);
    }
    Ok(())
}

fn too_large(asked: u64) -> ControlFeedError {
    ControlFeedError::Limit { limit: "control_snapshot_bytes_max", asked, max: CONTROL_SNAPSHOT_BYTES_MAX }
}

/// Makes snapshots at the origin, and restores from them at every host.
#[derive(Debug)]
pub struct Snapshots {
    store: Arc<dyn ControlStore>,
    artifacts: Arc<dyn ArtifactRepository>,
    board: Arc<dyn Board>,
    keys: Believing,
    clock: Arc<dyn Clock>,
    /// What the feed last said is its newest; 0 while nobody knows.
    newest: AtomicU64,
    memory: Mutex<Memory>,
}

/// What would be found out again.
#[derive(Debug, Default)]
struct Memory {
    /// The mark that this host differed from after it had restored from its snapshot. To do it again would not help.
    hopeless: Option<FleetMark>,
    /// The mark that this host has made, or has taken in.
    own: Option<FleetMark>,
    /// One of a version that the feed did not have when it was last looked at.
    beyond: Option<FleetMark>,
}

/// What became of a snapshot here.
struct Taken {
    restored: Restored,
    /// Some of it is of no time to this host yet: its clock will get there, or is put right.
    is_early: bool,
}

impl Snapshots {
    pub fn new(
        store: Arc<dyn ControlStore>,
        artifacts: Arc<dyn ArtifactRepository>,
        board: Arc<dyn Board>,
        keys: Believing,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { store, artifacts, board, keys, clock, newest: AtomicU64::new(0), memory: Mutex::default() }
    }

    /// At the origin: writes a snapshot of its state and marks it, unless the present mark says the same and its snapshot is
    /// there. A mark that is not this one's is taken in before another takes its place: who was rebuilt from the feed has less
    /// than it had, since news is refused that a snapshot keeps. Nor is anything marked that lacks what this version cannot
    /// read.
    pub async fn publish(&self) -> Result<FleetMark> {
        let former = self.former().await?;
        if let Some(mark) = &former {
            self.take_in(mark).await?;
        }
        check_whole(&self.store.unreadable().await?.desired)?;
        let (version, rows) = self.store.desired().await?;
        let state_digest = state_digest(&rows, &self.keys.keys());
        let is_told = |mark: &FleetMark| {
            let is_same = mark.version == version && mark.state_digest == state_digest;
            // Another origin is ahead, and its mark would stay.
            mark.snapshot.is_some() && (is_same || mark.version > version)
        };
        if let Some(mark) = former.as_ref().filter(|mark| is_told(mark))
            && (mark.version > version || self.has_snapshot(mark).await?)
        {
            return Ok(mark.clone());
        }
        let text = Bytes::from(write(version, &rows));
        if text.len() as u64 > CONTROL_SNAPSHOT_BYTES_MAX {
            return Err(too_large(text.len() as u64));
        }
        let content = stream::once(std::future::ready(Ok(text))).boxed();
        let digest = self.artifacts.put(content, None, CONTROL_SNAPSHOT_BYTES_MAX).await?.digest;
        self.artifacts.pin(&digest, PIN).await?;
        let snapshot = SnapshotRef { version, digest: digest.clone() };
        let mark = FleetMark { version, state_digest, snapshot: Some(snapshot) };
        self.board.set_mark(&mark).await?;
        let mut told = self.board.mark().await?;
        if told.is_none() {
            // What is there cannot be read, and may be of a higher version.
            self.board.forget_mark().await?;
            self.board.set_mark(&mark).await?;
            told = self.board.mark().await?;
        }
        let told = told.unwrap_or_else(|| mark.clone());
        let old = if told.snapshot == mark.snapshot {
            former.and_then(|mark| mark.snapshot)
        } else {
            mark.snapshot.clone()
        };
        self.memory().own = Some(mark);
        if let Some(old) =
            old.filter(|old| told.snapshot.as_ref().is_none_or(|told| told.digest != old.digest))
        {
            self.artifacts.unpin(&old.digest, PIN).await?;
        }
        Ok(told)
    }

    async fn has_snapshot(&self, mark: &FleetMark) -> Result<bool> {
        match &mark.snapshot {
            Some(snapshot) => Ok(self.artifacts.info(&snapshot.digest).await?.is_some()),
            None => Ok(false),
        }
    }

    /// Takes what a mark's snapshot has and this host does not, unless it is this host's own, or says what this host has. An
    /// error where that has to wait for this host's clock: a mark without it would be the end of it.
    async fn take_in(&self, mark: &FleetMark) -> Result<()> {
        let Some(snapshot) = mark.snapshot.as_ref().filter(|_| self.memory().own.as_ref() != Some(mark))
        else {
            return Ok(());
        };
        let (cursor, rows) = self.store.desired().await?;
        if mark.version > cursor || mark.state_digest == state_digest(&rows, &self.keys.keys()) {
            return Ok(());
        }
        match self.restore(snapshot, ControlVersion(0)).await {
            Ok(Taken { is_early, .. }) => {
                self.keys.recall(self.store.as_ref()).await?;
                if is_early {
                    let version = mark.version.0;
                    let detail = format!(
                        "the fleet's snapshot of control version {version} has what is from the future of this host's clock, and no other one takes its place before; set the clock right"
                    );
                    return Err(ControlFeedError::OutOfTime { detail });
                }
            }
            // Nothing can be got out of it.
            Err(problem)
                if problem.retry() == Retry::Never
                    || matches!(problem, ControlFeedError::ArtifactMissing { .. }) =>
            {
                warn!(
                    error.kind = problem.code(),
                    error.blame = problem.blame().as_str(),
                    control.version = mark.version.0,
                    %problem,
                    "the snapshot of the fleet's mark cannot be taken in before another takes its place"
                );
            }
            Err(problem) => return Err(problem),
        }
        // Once is enough.
        self.memory().own = Some(mark.clone());
        Ok(())
    }

    /// The mark that stands. One that is beyond all that the feed has, and still is at the next look, is nobody's: hosts
    /// would wait for its version, and no other mark would take its place.
    async fn former(&self) -> Result<Option<FleetMark>> {
        let Some(mark) = self.board.mark().await? else { return Ok(None) };
        let newest = self.newest.load(Ordering::SeqCst);
        let is_beyond = newest > 0 && mark.version.0 > newest.max(self.store.cursor().await?.0);
        let before = std::mem::replace(&mut self.memory().beyond, is_beyond.then(|| mark.clone()));
        if before.as_ref() != Some(&mark) || !is_beyond {
            return Ok(Some(mark));
        }
        warn!(
            error.kind = "control_mark_beyond",
            error.blame = "caller",
            control.version = mark.version.0,
            newest,
            "the fleet's mark is of a version that the feed does not have; it is taken away"
        );
        self.board.forget_mark().await?;
        Ok(None)
    }

    /// How this host stands to the mark, if there is one.
    pub async fn compare(&self) -> Result<Option<(FleetMark, Drift)>> {
        let Some(mark) = self.board.mark().await? else { return Ok(None) };
        let (cursor, rows) = self.store.desired().await?;
        let drift = drift(&mark, cursor, &state_digest(&rows, &self.keys.keys()));
        Ok(Some((mark, drift)))
    }

    /// Takes what this host does not have. The cursor goes no further than to `through`.
    async fn restore(&self, snapshot: &SnapshotRef, through: ControlVersion) -> Result<Taken> {
        check_digest(&snapshot.digest)?;
        let bytes = self.fetch(&snapshot.digest).await?;
        let mut restore = read(&bytes, &self.keys.keys(), self.clock.now())?;
        if restore.version != snapshot.version {
            let (said, found) = (snapshot.version.0, restore.version.0);
            let detail = format!("the mark says that a snapshot is of {said}, and it is of {found}");
            return Err(ControlFeedError::InvalidEvent { detail });
        }
        for Quarantined { name, code, reason, version, .. } in &restore.set_aside {
            warn!(
                error.kind = code.as_str(),
                error.blame = "caller",
                control.version = version.0,
                event = name.as_str(),
                reason = reason.as_str(),
                "an event of a snapshot was set aside"
            );
        }
        restore.version = restore.version.min(through);
        let is_early = restore.set_aside.iter().any(|aside| aside.code == OUT_OF_TIME);
        let restored = self.store.restore(restore).await?;
        Ok(Taken { restored, is_early })
    }

    /// All of it, and nothing before its digest was checked.
    async fn fetch(&self, digest: &str) -> Result<Vec<u8>> {
        let (info, mut content) = self.artifacts.get(digest).await?;
        if info.bytes > CONTROL_SNAPSHOT_BYTES_MAX {
            return Err(too_large(info.bytes));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > CONTROL_SNAPSHOT_BYTES_MAX {
                return Err(too_large(bytes.len() as u64));
            }
        }
        let found = super::wire::digest_text(&bytes);
        if found != digest {
            return Err(ControlFeedError::ArtifactDamaged { digest: digest.to_owned(), found });
        }
        Ok(bytes)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn restore_mark(&self) -> Result<Option<Restored>> {
        let Some(snapshot) = self.board.mark().await?.and_then(|mark| mark.snapshot) else { return Ok(None) };
        self.memory().hopeless = None;
        Ok(Some(self.restore(&snapshot, ControlVersion(0)).await?.restored))
    }

    async fn heal_from_mark(&self) -> Result<Option<Restored>> {
        let Some((mark, Drift::Differs)) = self.compare().await? else { return Ok(None) };
        let Some(snapshot) = mark.snapshot.clone() else { return Ok(None) };
        if self.memory().hopeless.as_ref() == Some(&mark) {
            return Ok(None);
        }
        let Taken { restored, is_early } = self.restore(&snapshot, ControlVersion(0)).await?;
        let differs = matches!(self.compare().await?, Some((again, Drift::Differs)) if again == mark);
        if differs && !is_early {
            warn!(
                error.kind = "control_drift",
                error.blame = "host",
                control.version = mark.version.0,
                "this host has another desired state than the fleet, and its snapshot does not change that"
            );
            self.memory().hopeless = Some(mark);
        }
        Ok((!restored.entities.is_empty()).then_some(restored))
    }
}

impl Bootstrap for Snapshots {
    fn bootstrap(&self, oldest: ControlVersion, newest: ControlVersion) -> BoxFuture<'_, Result<Restored>> {
        async move {
            let mark = self.board.mark().await?;
            let snapshot = mark.and_then(|mark| mark.snapshot);
            let Some(snapshot) = snapshot.filter(|known| known.version.0.saturating_add(1) >= oldest.0)
            else {
                // The origin has not made one that reaches so far.
                return Err(ControlFeedError::BehindRetention { asked: 0, oldest: oldest.0 });
            };
            Ok(self.restore(&snapshot, newest).await?.restored)
        }
        .boxed()
    }

    fn saw_newest(&self, newest: Option<ControlVersion>) {
        self.newest.store(newest.unwrap_or_default().0, Ordering::SeqCst);
    }

    fn heal(&self) -> BoxFuture<'_, Result<Option<Restored>>> {
        self.heal_from_mark().boxed()
    }

    fn resync(&self) -> BoxFuture<'_, Result<Option<Restored>>> {
        self.restore_mark().boxed()
    }
}
