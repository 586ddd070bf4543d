//! A host that serves gRPC as a process of its own, so that it can be killed.

use std::ops::Range;
use std::path::PathBuf;

use millrace::config::TokenConfig;
use millrace_tests::embedded::Client;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::ports::Port;
use millrace_tests::workspace_binary;
use serde_json::json;
use tempfile::TempDir;

use super::scene::{Caller, publish, tokens};

/// Its port stays its own while it is down.
#[derive(Debug)]
pub(super) struct Process {
    host: HostProcess,
    port: Port,
    folder: TempDir,
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
    /// Everybody on this machine may do everything.
    pub(super) async fn start() -> Self {
        Self::start_as(tempfile::tempdir().unwrap(), Setup::new(workspace_binary("millrace"))).await
    }

    /// With the tokens of a scene.
    pub(super) async fn with_tokens() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("millrace.toml");
        std::fs::write(&settings, written(&tokens())).unwrap();
        let mut setup = Setup::new(workspace_binary("millrace"));
        setup.args.extend(["--config".into(), settings.into()]);
        Self::start_as(folder, setup).await
    }

    async fn start_as(folder: TempDir, setup: Setup) -> Self {
        let port = Port::hold();
        let setup = setup.set(&format!("grpc.bind=127.0.0.1:{}", port.number()));
        // Who takes nothing is waited for so long when it stops.
        let setup = setup.set("serve.drain_ms_max=1000");
        let host = HostProcess::start_as(setup, &folder.path().join("store")).await.unwrap();
        Self { host, port, folder }
    }

    pub(super) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.host.url).unwrap()
    }

    /// A caller with these headers.
    pub(super) fn caller(&self, headers: &[(&'static str, &str)]) -> Caller {
        Caller::at(self.port(), headers)
    }

    /// What it has written to standard error.
    pub(super) fn said(&self) -> String {
        self.host.said()
    }

    /// Its store.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("store")
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

/// Tokens as a file of settings has them.
fn written(tokens: &[TokenConfig]) -> String {
    let each = tokens.iter().map(|TokenConfig { token, tenant, rights, name, .. }| {
        let (token, rights) = (token.as_deref().unwrap_or_default(), json!(rights));
        let name = name.as_ref().map(|name| format!("name = {name:?}\n")).unwrap_or_default();
        format!("[[auth.tokens]]\ntoken = {token:?}\ntenant = {tenant:?}\nrights = {rights}\n{name}")
    });
    each.collect::<Vec<_>>().concat()
}
