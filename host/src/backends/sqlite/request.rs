//! What the committer is asked for, and how it answers.

use tokio::sync::oneshot;

use super::channels::{ChannelRequest, Deferred};
use super::keyed_state::ExpiredAge;
use super::rebuilds::RebuildRequest;
use crate::checkpoints::{Checkpoint, Commit, CommitError, Committed, Generation, OutboxDone, TaskId};
use crate::error::BackendError;
use crate::event::{Epoch, EventBatch, Micros, Position};
use crate::plugins::{Candidate, Deployment};
use crate::streams::groups::{GroupError, GroupId, GroupWrite, NewGroup, StoredGroup};
use crate::streams::{AggregateScopes, Appended, Retention, StreamError, StreamName};
use crate::tables::{TableError, TableSchema};

type Sender<T, E> = oneshot::Sender<Result<T, E>>;
pub(super) type Claimed = (Generation, Option<Checkpoint>);

/// What one step of a trim did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trimmed {
    pub(super) events: u64,
    pub(super) more: bool,
}

#[derive(Debug)]
pub(super) enum Request {
    Append {
        batch: EventBatch,
        reply: Sender<Vec<Appended>, StreamError>,
    },
    AppendTo {
        stream: StreamName,
        batch: EventBatch,
        reply: Sender<Vec<Appended>, StreamError>,
    },
    DeclareScopes {
        owner: String,
        declarations: Vec<AggregateScopes>,
        reply: Sender<(), StreamError>,
    },
    Commit {
        commit: Box<Commit>,
        reply: Sender<Committed, CommitError>,
    },
    Claim {
        task: TaskId,
        reply: Sender<Claimed, CommitError>,
    },
    Trim {
        retention: Retention,
        reply: Sender<Trimmed, StreamError>,
    },
    Declare {
        plugin: String,
        tables: Vec<TableSchema>,
        reply: Sender<(), TableError>,
    },
    Deploy {
        deployment: Box<Deployment>,
        reply: Sender<(), BackendError>,
    },
    PutCandidate {
        plugin: String,
        candidate: Box<Candidate>,
        reply: Sender<(), BackendError>,
    },
    Withdraw {
        plugin: String,
        reply: Sender<(), BackendError>,
    },
    Remove {
        plugin: String,
        reply: Sender<(), BackendError>,
    },
    /// Drops tombstones of before this time. Answers how many.
    PurgeTombstones {
        before: Micros,
        reply: Sender<u64, BackendError>,
    },
    /// Removes keyed state that ended long ago. Answers how many entries.
    PurgeExpired {
        age: ExpiredAge,
        reply: Sender<u64, BackendError>,
    },
    Forget {
        task: TaskId,
        generation: Generation,
        position: Position,
        reply: Sender<Committed, CommitError>,
    },
    SettleOutbox {
        done: OutboxDone,
        reply: Sender<(), BackendError>,
    },
    MarkLog {
        epoch: Epoch,
        newest: Position,
        reply: Sender<(), BackendError>,
    },
    Group(GroupRequest),
    Channel(ChannelRequest),
    Rebuild(RebuildRequest),
    /// Takes no more requests, finishes those that wait, and ends the thread.
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// What groups of consumers ask for.
#[derive(Debug)]
pub(super) enum GroupRequest {
    Ensure { group: GroupId, wanted: NewGroup, reply: Sender<(StoredGroup, bool), GroupError> },
    Write { group: GroupId, write: Box<GroupWrite>, reply: Sender<(), GroupError> },
    Seek { group: GroupId, to: Position, reply: Sender<(), GroupError> },
    Remove { group: GroupId, reply: Sender<(), GroupError> },
}

impl Request {
    /// What it adds to a group: (events and effects, bytes).
    pub(super) fn weight(&self) -> (usize, usize) {
        match self {
            Self::Append { batch, .. } | Self::AppendTo { batch, .. } => (batch.len(), batch.bytes()),
            Self::Commit { commit, .. } => {
                let effects = commit.effects.iter().map(|e| e.len()).sum::<usize>();
                let bytes = commit.effects.iter().map(|e| e.bytes()).sum::<usize>();
                let saved = commit.saved.as_ref().map_or(0, |s| s.state.len());
                (1 + effects + commit.dead.len(), bytes + saved)
            }
            Self::Group(GroupRequest::Write { write, .. }) => (
                1 + write.tried.len() + write.dead.len(),
                write.dead.iter().map(|dead| dead.event.bytes()).sum(),
            ),
            Self::Channel(request) => request.weight(),
            Self::Rebuild(request) => request.weight(),
            Self::SettleOutbox { done, .. } => (1 + done.carried.len() + done.refused.len(), 0),
            Self::Trim { .. } | Self::PurgeTombstones { .. } => {
                (usize::try_from(crate::limits::TRIM_EVENTS_MAX).unwrap_or(usize::MAX), 0)
            }
            Self::PurgeExpired { .. } => {
                (usize::try_from(crate::limits::STATE_EXPIRED_ENTRIES_MAX).unwrap_or(usize::MAX), 0)
            }
            _ => (1, 0),
        }
    }
}

/// An answer that waits for its transaction.
#[derive(Debug)]
pub(super) enum Answer {
    Append(Sender<Vec<Appended>, StreamError>, Result<Vec<Appended>, StreamError>),
    Commit(Sender<Committed, CommitError>, Result<Committed, CommitError>),
    Claim(Sender<Claimed, CommitError>, Result<Claimed, CommitError>),
    DeclareScopes(Sender<(), StreamError>, Result<(), StreamError>),
    Trim(Sender<Trimmed, StreamError>, Result<Trimmed, StreamError>),
    Declare(Sender<(), TableError>, Result<(), TableError>),
    GroupMade(Sender<(StoredGroup, bool), GroupError>, Result<(StoredGroup, bool), GroupError>),
    GroupDone(Sender<(), GroupError>, Result<(), GroupError>),
    Unit(Sender<(), BackendError>, Result<(), BackendError>),
    Count(Sender<u64, BackendError>, Result<u64, BackendError>),
    Deferred(Deferred),
    Closed(oneshot::Sender<()>),
}

impl Answer {
    /// Answers. Who has gone away is not waited for: what was written stays.
    pub(super) fn send(self) {
        match self {
            Self::Append(reply, result) => drop(reply.send(result)),
            Self::Commit(reply, result) => drop(reply.send(result)),
            Self::Claim(reply, result) => drop(reply.send(result)),
            Self::DeclareScopes(reply, result) => drop(reply.send(result)),
            Self::Trim(reply, result) => drop(reply.send(result)),
            Self::Declare(reply, result) => drop(reply.send(result)),
            Self::GroupMade(reply, result) => drop(reply.send(result)),
            Self::GroupDone(reply, result) => drop(reply.send(result)),
            Self::Unit(reply, result) => drop(reply.send(result)),
            Self::Count(reply, result) => drop(reply.send(result)),
            Self::Deferred(deferred) => deferred.send(),
            Self::Closed(reply) => drop(reply.send(())),
        }
    }

    /// Answers that the transaction failed, whatever the answer was to be.
    pub(super) fn fail(self, error: &BackendError) {
        let error = error.clone();
        match self {
            Self::Append(reply, _) => drop(reply.send(Err(error.into()))),
            Self::Commit(reply, _) => drop(reply.send(Err(error.into()))),
            Self::Claim(reply, _) => drop(reply.send(Err(error.into()))),
            Self::DeclareScopes(reply, _) => drop(reply.send(Err(error.into()))),
            Self::Trim(reply, _) => drop(reply.send(Err(error.into()))),
            Self::Declare(reply, _) => drop(reply.send(Err(error.into()))),
            Self::GroupMade(reply, _) => drop(reply.send(Err(error.into()))),
            Self::GroupDone(reply, _) => drop(reply.send(Err(error.into()))),
            Self::Unit(reply, _) => drop(reply.send(Err(error))),
            Self::Count(reply, _) => drop(reply.send(Err(error))),
            Self::Deferred(deferred) => deferred.fail(error),
            Self::Closed(reply) => drop(reply.send(())),
        }
    }
}

impl Request {
    /// The answer that its transaction could not even begin.
    pub(super) fn fail(self, error: &BackendError) {
        let error = error.clone();
        match self {
            Self::Append { reply, .. } | Self::AppendTo { reply, .. } => {
                drop(reply.send(Err(error.into())));
            }
            Self::DeclareScopes { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Commit { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Forget { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Claim { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Trim { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Declare { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Deploy { reply, .. }
            | Self::Withdraw { reply, .. }
            | Self::SettleOutbox { reply, .. }
            | Self::MarkLog { reply, .. }
            | Self::PutCandidate { reply, .. }
            | Self::Remove { reply, .. } => drop(reply.send(Err(error))),
            Self::PurgeTombstones { reply, .. } | Self::PurgeExpired { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Group(GroupRequest::Ensure { reply, .. }) => drop(reply.send(Err(error.into()))),
            Self::Group(
                GroupRequest::Write { reply, .. }
                | GroupRequest::Seek { reply, .. }
                | GroupRequest::Remove { reply, .. },
            ) => drop(reply.send(Err(error.into()))),
            Self::Channel(request) => request.fail(&error),
            Self::Rebuild(request) => request.fail(error),
            Self::Close { reply } => drop(reply.send(())),
        }
    }
}
