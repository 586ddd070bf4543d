//! For a host that was built without Redis: there is no log but the store's own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::HostError;
use super::parts::Keep;
use crate::backends::sqlite::SqliteStore;
use crate::channels::{ChannelLimits, ChannelStore};
use crate::clock::Clock;
use crate::cluster::Ownerships;
use crate::config::Config;
use crate::error::BackendError;
use crate::presence::{Presence, PresenceLimits};
use crate::processors::SharedLog as ForProcessors;
use crate::streams::EventLog;
use crate::streams::groups::{GroupLimits, Groups};

/// A log elsewhere was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("serve.log: this host was built without Redis")]
pub struct InvalidLog;

/// None there can be.
#[derive(Clone, Debug)]
pub(super) struct SharedLog(Infallible);

impl SharedLog {
    pub(super) async fn open(config: &Config, _: &SqliteStore) -> Result<Option<Self>, HostError> {
        if config.serve.log.is_some() { Err(InvalidLog.into()) } else { Ok(None) }
    }

    pub(super) fn log(&self) -> Arc<dyn EventLog> {
        match self.0 {}
    }

    pub(super) fn groups(&self, _: &Arc<dyn EventLog>, _: GroupLimits) -> (Arc<dyn Groups>, Keep) {
        match self.0 {}
    }

    pub(super) fn channels(&self, _: ChannelLimits, _: Arc<dyn Clock>) -> Arc<dyn ChannelStore> {
        match self.0 {}
    }

    pub(super) fn presence(&self, _: PresenceLimits) -> Arc<dyn Presence> {
        match self.0 {}
    }

    pub(super) fn for_processors(&self, _: &SqliteStore) -> ForProcessors {
        match self.0 {}
    }

    pub(super) fn owners(&self) -> Ownerships {
        match self.0 {}
    }

    pub(super) fn problem(&self) -> Option<String> {
        match self.0 {}
    }

    pub(super) async fn reached(&self) {
        match self.0 {}
    }

    pub(super) async fn mark(&self) -> Result<(), BackendError> {
        match self.0 {}
    }

    pub(super) fn carry(&self) {
        match self.0 {}
    }

    pub(super) fn remember(&self) {
        match self.0 {}
    }

    pub(super) async fn end(&self, _: Duration) {
        match self.0 {}
    }
}
