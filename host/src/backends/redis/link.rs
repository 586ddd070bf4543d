//! A connection for what is not the log: presence, cache, groups, the cluster. It is found again when it is lost.

use std::path::PathBuf;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connect::{Server, connect, locate};
use super::faults::ends_session;
use super::options::RedisAddress;
use crate::error::BackendError;
use crate::limits::REDIS_RETRY_WAIT_MIN;

/// A way to the primary, shared by its clones. Nothing is connected before it is asked for.
#[derive(Clone, Debug)]
pub struct RedisLink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    address: RedisAddress,
    ca_file: Option<PathBuf>,
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts connections, so that whoever lost one does not take the next one away.
    number: u64,
    current: Option<MultiplexedConnection>,
    /// A server that is away is asked for now and then, and not by every caller.
    refused: Option<(Instant, BackendError)>,
}

/// A connection, and which one it is.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    pub(super) number: u64,
    pub(super) connection: MultiplexedConnection,
}

impl RedisLink {
    /// Keys of what uses it begin with `{name}`, as the log's do.
    pub fn new(address: RedisAddress, ca_file: Option<PathBuf>, name: impl Into<String>) -> Self {
        let inner = Inner { address, ca_file, name: name.into(), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// A key of this name.
    pub(super) fn key(&self, rest: &str) -> Vec<u8> {
        format!("{{{}}}:{rest}", self.inner.name).into_bytes()
    }

    pub(super) fn name(&self) -> &str {
        &self.inner.name
    }

    /// The connection that all share. No blocking commands on it.
    pub(super) async fn shared(&self) -> Result<Linked, BackendError> {
        let mut state = self.inner.state.lock().await;
        if let Some(connection) = state.current.clone() {
            return Ok(Linked { number: state.number, connection });
        }
        if let Some((since, error)) =
            state.refused.as_ref().filter(|(at, _)| at.elapsed() < REDIS_RETRY_WAIT_MIN)
        {
            tracing::trace!(?since, "the server was away a moment ago");
            return Err(error.clone());
        }
        match self.own().await {
            Ok(connection) => {
                state.number += 1;
                state.refused = None;
                state.current = Some(connection.clone());
                Ok(Linked { number: state.number, connection })
            }
            Err(error) => {
                state.refused = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// A connection of the caller's own, for blocking reads: each shorter than `REDIS_ANSWER_WAIT_MAX`.
    pub(super) async fn own(&self) -> Result<MultiplexedConnection, BackendError> {
        let info = locate(&self.inner.address).await?;
        let mut connection = connect(&info, self.inner.ca_file.as_deref()).await?;
        Server::look(&mut connection).await?;
        Ok(connection)
    }

    /// Says what came of a call on the shared connection: after some errors the next caller gets another one.
    pub(super) async fn ended<T>(
        &self,
        number: u64,
        result: Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if let Err(error) = &result
            && ends_session(error)
        {
            let mut state = self.inner.state.lock().await;
            if state.number == number {
                state.current = None;
            }
        }
        result
    }
}
