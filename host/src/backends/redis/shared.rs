//! What the parts of the log know together.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::faults::remote;
use super::options::{Durability, RedisOptions};
use super::scripts::Keys;
use crate::error::{BackendError, RemoteFault};
use crate::event::{Epoch, Position, TenantId};
use crate::limits::REDIS_GROWN_STREAMS_MAX;
use crate::streams::{Bounds, ChangeScopes, Tail};

/// Up to where the log may be seen: durable, and in the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) epoch: Epoch,
    pub(super) newest: Position,
    pub(super) trimmed: Position,
}

/// How the log stands.
#[derive(Clone, Debug)]
pub struct RedisStatus {
    /// None: it serves.
    pub problem: Option<BackendError>,
    /// Such as `valkey 8.1.8`; empty until one was reached.
    pub server: String,
    pub durability: Option<Durability>,
}

/// One verified view of one run of one server. Its connections end together: what one of them was answered means
/// something to the others only as long as they speak to the same server.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) epoch: Epoch,
    pub(super) appends: MultiplexedConnection,
    pub(super) reads: MultiplexedConnection,
    /// Ends the session, whoever finds that it is of no more use.
    pub(super) end: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: RedisOptions,
    pub(super) keys: Keys,
    pub(super) tail: Tail,
    pub(super) published: watch::Sender<Published>,
    pub(super) status: watch::Sender<RedisStatus>,
    pub(super) session: watch::Sender<Option<Session>>,
    tenants: Mutex<BTreeSet<TenantId>>,
    scopes: Mutex<KnownScopes>,
    /// Change streams that this host has appended to since they were last compared with what they keep.
    grown: Mutex<BTreeSet<String>>,
}

/// The change scopes, as they were last seen in the log.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownScopes {
    pub(super) version: u64,
    pub(super) json: String,
    pub(super) scopes: Arc<ChangeScopes>,
}

/// The epoch while none is known. No log has it.
const NO_EPOCH: &str = "none";

impl Shared {
    pub(super) fn new(options: RedisOptions) -> Arc<Self> {
        let published =
            Published { epoch: Epoch(NO_EPOCH.into()), newest: Position::START, trimmed: Position::START };
        let problem = remote(RemoteFault::Unreachable, "not connected yet");
        let status = RedisStatus { problem: Some(problem), server: String::new(), durability: None };
        Arc::new(Self {
            keys: Keys::new(&options.name),
            tail: Tail::with_bytes_max(Position::START, [], options.tail_bytes_max),
            published: watch::Sender::new(published),
            status: watch::Sender::new(status),
            session: watch::Sender::new(None),
            tenants: Mutex::default(),
            scopes: Mutex::default(),
            grown: Mutex::default(),
            options,
        })
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.published.borrow().epoch.clone()
    }

    /// The epoch, once there is one.
    pub(super) fn known_epoch(&self) -> Option<Epoch> {
        self.mark().map(|(epoch, _)| epoch)
    }

    /// The epoch, and how far the log can be seen in it, once there is one.
    pub(super) fn mark(&self) -> Option<(Epoch, Position)> {
        let published = self.published.borrow();
        Some((published.epoch.clone(), published.newest)).filter(|(epoch, _)| &*epoch.0 != NO_EPOCH)
    }

    pub(super) fn bounds(&self) -> Bounds {
        let published = self.published.borrow();
        Bounds { trimmed: published.trimmed, newest: published.newest }
    }

    /// The mark of what is gone only ever moves on within one life of the log.
    pub(super) fn trimmed(&self, epoch: &Epoch, trimmed: Position) {
        self.published.send_if_modified(|published| {
            let moved = published.epoch == *epoch && trimmed > published.trimmed;
            if moved {
                published.trimmed = trimmed;
            }
            moved
        });
    }

    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.lock().iter().cloned().collect()
    }

    /// Takes in tenants; answers those that are new.
    pub(super) fn add_tenants(&self, tenants: impl IntoIterator<Item = TenantId>) -> Vec<TenantId> {
        let mut known = self.lock();
        tenants.into_iter().filter(|tenant| known.insert(tenant.clone())).collect()
    }

    pub(super) fn scopes(&self) -> KnownScopes {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in the change scopes that the log has. What cannot be read is said.
    pub(super) fn set_scopes(&self, version: u64, json: &str) -> Result<(), BackendError> {
        let mut known = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if (known.version, known.json.as_str()) == (version, json) {
            return Ok(());
        }
        let scopes = match json {
            "" => ChangeScopes::default(),
            json => serde_json::from_str(json).map_err(|error| {
                remote(
                    RemoteFault::Unsupported,
                    format_args!("the log's change scopes cannot be read: {error}"),
                )
            })?,
        };
        *known = KnownScopes { version, json: json.to_owned(), scopes: Arc::new(scopes) };
        Ok(())
    }

    /// How many entries one change stream keeps, where it does not keep all.
    pub(super) fn change_stream_events_max(&self) -> Option<u64> {
        self.options.change_stream_events_max.filter(|max| *max > 0)
    }

    /// Notes change streams that may have more entries than they keep. One that finds no room comes again with its next
    /// event.
    pub(super) fn grown(&self, streams: impl IntoIterator<Item = String>) {
        if self.change_stream_events_max().is_none() {
            return;
        }
        let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in streams {
            if grown.len() < REDIS_GROWN_STREAMS_MAX || grown.contains(&stream) {
                grown.insert(stream);
            }
        }
    }

    pub(super) fn take_grown(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.grown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that serves now, or why there is none.
    pub(super) fn serving(&self) -> Result<Session, BackendError> {
        let session = self.session.borrow().clone();
        session.ok_or_else(|| self.problem())
    }

    pub(super) fn problem(&self) -> BackendError {
        let problem = self.status.borrow().problem.clone();
        problem.unwrap_or_else(|| remote(RemoteFault::Unreachable, "the connection was lost"))
    }

    /// Why something was not done in its time. A log that serves all the while was only too slow.
    pub(super) fn late(&self, doing: &str) -> BackendError {
        let problem = self.status.borrow().problem.clone();
        problem.unwrap_or_else(|| remote(RemoteFault::Timeout, doing))
    }
}
