//! Puts the parts together: the only file that names concrete backends.

use std::net::SocketAddr;

use crate::config::Config;

/// A running host.
#[derive(Debug)]
pub struct Host {
    addr: SocketAddr,
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    #[error("cannot listen on {addr}: {detail}")]
    Bind { addr: SocketAddr, detail: String },
}

/// Collects what a host is made of.
#[derive(Clone, Debug, Default)]
pub struct HostBuilder {
    config: Config,
}

impl Host {
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns once requests are answered and the deployed plugins run.
    pub async fn wait_ready(&self) {}

    /// Ends when the host stops by itself, with the reason.
    pub async fn failed(&self) -> String {
        std::future::pending().await
    }

    /// Drains under the configured deadline.
    pub async fn shutdown(self) {}
}

impl HostBuilder {
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// What `/metrics` answers.
    #[must_use]
    pub fn metrics(self, _render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self
    }

    pub async fn start(self) -> Result<Host, HostError> {
        Ok(Host { addr: self.config.serve.bind })
    }
}
