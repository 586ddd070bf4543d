//! A host that serves gRPC as a process of its own, so that it can be killed.

use std::ops::Range;

use millrace_tests::embedded::Client;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::ports::Port;
use millrace_tests::workspace_binary;
use serde_json::json;
use tempfile::TempDir;

use super::scene::publish;

/// Everybody on this machine may do everything there. Its port stays its own while it is down.
#[derive(Debug)]
pub(super) struct Process {
    host: HostProcess,
    port: Port,
    _folder: TempDir,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `kill -9`.
    Kill,
    /// SIGTERM.
    Stop,
}

impl Process {
    pub(super) async fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), Port::hold());
        let setup = Setup::new(workspace_binary("millrace"));
        let setup = setup.set(&format!("grpc.bind=127.0.0.1:{}", port.number()));
        // Who takes nothing is waited for so long when it stops.
        let setup = setup.set("serve.drain_ms_max=1000");
        let host = HostProcess::start_as(setup, &folder.path().join("store")).await.unwrap();
        Self { host, port, _folder: folder }
    }

    pub(super) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.host.url).unwrap()
    }

    /// Publishes responses with these numbers.
    pub(super) async fn publish(&self, numbers: Range<u64>) {
        let payloads: Vec<_> = numbers.map(|number| json!({ "number": number })).collect();
        for some in payloads.chunks(500) {
            publish(&self.client(), "response", "created", some).await;
        }
    }

    pub(super) fn end(&mut self, how: End) {
        match how {
            End::Kill => self.host.kill().unwrap(),
            End::Stop => assert!(self.host.terminate().unwrap(), "it ends well: {}", self.host.said()),
        }
    }

    /// On the same store and ports.
    pub(super) async fn start_again(&mut self) {
        self.host.kill_and_start().await.unwrap();
    }
}
