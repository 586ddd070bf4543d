//! Stands for the sources in a host that was built without gRPC.

use std::sync::Arc;

use tokio::sync::watch;

use super::{HostBuilder, HostError, Stage};
use crate::cluster::Ownerships;
use crate::plugins::Registry;
use crate::processors::source::SourceHandle;
use crate::streams::EventLog;
use crate::tasks::Tasks;

#[derive(Clone)]
pub(super) enum Source {}

impl HostBuilder {
    pub(super) fn sources(
        &self,
        _: &Arc<dyn EventLog>,
        _: Option<Ownerships>,
        _: &Registry,
    ) -> Result<Vec<Source>, HostError> {
        match &self.config.source.grpc {
            None => Ok(Vec::new()),
            Some(_) => Err(HostError::Source("source.grpc: this host was built without gRPC".into())),
        }
    }
}

impl Source {
    pub(super) fn handle(&self) -> SourceHandle {
        match *self {}
    }

    pub(super) fn start(&self, _: &Tasks, _: &watch::Receiver<Stage>) {
        match *self {}
    }
}
