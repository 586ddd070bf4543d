//! A gateway with channels over a store of the test's choice, and the parties of its processes.

use std::net::SocketAddr;
use std::sync::Arc;

use millrace::backends::memory::MemoryChannels;
use millrace::channels::{
    Actor, Append, Appended, Change, ChannelId, ChannelLimits, ChannelName, ChannelOptions, ChannelStore,
    EntryType, NewChannel, NewEntry, NewProcess, Outcome, Party, ProcessId, ProcessName, Router,
};
use millrace::clock::SystemClock;
use millrace::event::TenantId;
use millrace::gateway::{AuthOptions, Gateway, GatewayOptions, Right, Services, TokenOptions};
use millrace_tests::channel_socket::ChannelSocket;
use millrace_tests::gated_channels::GatedChannels;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::rig::{PATIENCE, Rig};

/// `sub` submits, `exe` executes, `other` may come after it, `obs` observes and may not publish, `mute` may not read,
/// `root` runs the host; `far` is of another tenant. Tokens are named after them: `token-sub`.
pub(super) fn parties() -> AuthOptions {
    let both = [Right::Publish, Right::Read];
    let all = [Right::Publish, Right::Read, Right::Admin];
    let token = |name: &str, tenant: &str, rights: &[Right]| TokenOptions {
        token: format!("token-{name}"),
        tenant: tenant.into(),
        rights: rights.into(),
        name: Some(name.into()),
        tables: None,
    };
    let tokens = vec![
        token("sub", "alpha", &both),
        token("exe", "alpha", &both),
        token("other", "alpha", &both),
        token("obs", "alpha", &[Right::Read]),
        token("mute", "alpha", &[Right::Publish]),
        token("root", "alpha", &all),
        token("far", "beta", &all),
    ];
    AuthOptions { tokens, ..AuthOptions::default() }
}

pub(super) fn unlimited() -> ChannelLimits {
    ChannelLimits { rate_limited: false, ..ChannelLimits::default() }
}

pub(super) fn memory(limits: ChannelLimits) -> Arc<dyn ChannelStore> {
    Arc::new(MemoryChannels::new(limits, Arc::new(SystemClock)))
}

pub(super) fn process(name: &str) -> ProcessId {
    ProcessId {
        tenant: TenantId::new("alpha").expect("a tenant"),
        name: ProcessName::new(name).expect("a name"),
    }
}

pub(super) fn channel(of: &str, name: &str) -> ChannelId {
    ChannelId { process: process(of), name: ChannelName::new(name).expect("a name") }
}

pub(super) fn party(name: &str) -> Party {
    Party::new(name).expect("a party")
}

/// A gateway over a store that can be held up, with process `work`.
pub(super) async fn gated(channels: &[&str]) -> (Scene, GatedChannels) {
    gated_with(channels, |_| {}).await
}

pub(super) async fn gated_with(
    channels: &[&str],
    change: impl FnOnce(&mut GatewayOptions),
) -> (Scene, GatedChannels) {
    let store = GatedChannels::new(memory(unlimited()));
    let scene = Scene::over(Arc::new(store.clone()), change).await;
    scene.process("work", channels).await;
    (scene, store)
}

pub(super) struct Scene {
    rig: Rig,
    pub(super) address: SocketAddr,
    pub(super) channels: Router,
    cancel: CancellationToken,
    running: JoinHandle<()>,
}

impl Scene {
    pub(super) async fn start() -> Self {
        Self::over(memory(unlimited()), |_| {}).await
    }

    pub(super) async fn over(store: Arc<dyn ChannelStore>, change: impl FnOnce(&mut GatewayOptions)) -> Self {
        Self::of(Rig::start().await, store, change).await
    }

    /// Over the embedded store.
    pub(super) async fn durable() -> Self {
        let rig = Rig::start().await;
        let store = Arc::new(rig.store.clone());
        Self::of(rig, store, |_| {}).await
    }

    async fn of(rig: Rig, store: Arc<dyn ChannelStore>, change: impl FnOnce(&mut GatewayOptions)) -> Self {
        let channels = Router::new(store);
        let mut options = GatewayOptions::new("127.0.0.1:0".parse().expect("an address"));
        options.auth = parties();
        change(&mut options);
        let services = Services { channels: channels.clone(), ..rig.services() };
        let gateway = Gateway::bind(options, services).await.expect("loopback can be bound");
        let (address, cancel) = (gateway.local_addr(), CancellationToken::new());
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and joins it in `stop`")]
        let running = tokio::spawn(gateway.run(cancel.clone()));
        Self { rig, address, channels, cancel, running }
    }

    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").expect("without a panic");
        self.rig.stop().await;
    }

    /// A process of `sub` that `exe` executes and `obs` observes.
    pub(super) async fn process(&self, name: &str, channels: &[&str]) {
        let options = self.channels.limits().default_options();
        self.process_with(name, channels, options).await;
    }

    pub(super) async fn process_with(&self, name: &str, channels: &[&str], options: ChannelOptions) {
        let channel = |name: &&str| NewChannel {
            name: ChannelName::new(name).expect("a name"),
            options: options.clone(),
        };
        let new = NewProcess {
            id: process(name),
            submitter: party("sub"),
            executor: Some(party("exe")),
            observers: vec![party("obs")],
            channels: channels.iter().map(channel).collect(),
        };
        self.channels.create_process(new).await.expect("it is made");
    }

    pub(super) async fn socket(&self, who: &str) -> ChannelSocket {
        ChannelSocket::connect(self.address, &format!("token-{who}")).await
    }

    /// Appends data behind the gateway's back, in one go.
    pub(super) async fn append(&self, id: &ChannelId, who: &str, payloads: &[&str]) -> Vec<Appended> {
        let entry = |payload: &&str| NewEntry {
            payload: Some(bytes::Bytes::copy_from_slice(payload.as_bytes())),
            ..NewEntry::default()
        };
        let entries = payloads.iter().map(entry).collect();
        let append = Append { who: party(who), epoch: None, entries };
        self.channels.append_all(id, append).await.expect("appended")
    }

    /// So many numbered entries.
    pub(super) async fn fill(&self, id: &ChannelId, count: usize) {
        let texts: Vec<String> = (1..=count).map(|number| format!("{number:0>100}")).collect();
        for some in texts.chunks(500) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            self.append(id, "sub", &some).await;
        }
    }

    /// Ends a sender's half.
    pub(super) async fn end(&self, id: &ChannelId, who: &str) {
        let entry = NewEntry { entry_type: EntryType::End, ..NewEntry::default() };
        let append = Append { who: party(who), epoch: None, entries: vec![entry] };
        self.channels.append_all(id, append).await.expect("appended");
    }

    pub(super) async fn assign(&self, name: &str, executor: &str) {
        let change = Change::Assign(party(executor));
        self.channels.change(&process(name), Actor::Host, change).await.expect("assigned");
    }

    pub(super) async fn close(&self, name: &str) {
        let change = Change::Close { outcome: Outcome::Success, reason: String::new() };
        self.channels.change(&process(name), Actor::Host, change).await.expect("closed");
    }
}
