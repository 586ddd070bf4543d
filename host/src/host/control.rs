//! The control feed of a running host: what it is opened with, and the tasks that it takes.
//!
//! A host whose `control.source` is `nop` has none of it.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ulid::Ulid;

use super::{HostBuilder, HostError, Stage, off_the_runtime};
use crate::backends::control_feeds;
use crate::backends::file::FileArtifactRepository;
use crate::backends::sqlite::{SqliteControlOptions, SqliteControlStore};
use crate::config::ControlConfig;
use crate::control::reconciler::{Reconciler, ReconcilerOptions, ReconcilerParts};
use crate::control::rollout::Silence;
use crate::control::snapshot::Snapshots;
use crate::control::trust::{KeyRole, TrustStore};
use crate::control::{
    Applier, ApplierOptions, ApplierSeams, ArtifactRepository, Believing, Board, ControlFeedError,
    ControlSource, ControlStore, Controller, ControllerOptions, ControllerSeams, DeskParts, FeedRegistry,
    FeedSettings, FleetDesk, LocalArtifacts, Origin, Pinner, Publisher, PublisherOptions, Reporter,
    ReporterParts, SigningKey,
};
use crate::error::Classify as _;
use crate::limits::{
    CONTROL_COPIES_AGE, CONTROL_COPIES_COLLECT_EVERY, CONTROL_KEY_FILE_BYTES_MAX, CONTROL_TRUST_BYTES_MAX,
};
use crate::plugins::Registry;
use crate::tasks::{TaskError, TaskKind, Tasks};

/// Names this host in its fleet, where no setting does.
const HOST_NOTE: &str = "host";

/// What this host is in its fleet.
#[derive(Debug)]
pub(super) struct Fleet {
    applier: Arc<Applier>,
    reconciler: Reconciler,
    reporter: Arc<Reporter>,
    /// Of a host with a sink.
    origin: Option<(Arc<Publisher>, Arc<Controller>, Arc<Pinner>)>,
    copies: LocalArtifacts,
    desk: FleetDesk,
}

/// What every part of it works with.
struct Base {
    host: String,
    feed: FeedSettings,
    store: Arc<dyn ControlStore>,
    source: Arc<dyn ControlSource>,
    board: Arc<dyn Board>,
    keys: Believing,
    artifacts: Arc<dyn ArtifactRepository>,
    snapshots: Arc<Snapshots>,
}

impl HostBuilder {
    /// None for a host that is alone. From here on, nobody but the feed changes the plugins that it names.
    pub(super) async fn fleet(
        &self,
        artifacts: &Arc<dyn ArtifactRepository>,
        registry: &Registry,
    ) -> Result<Option<Fleet>, HostError> {
        let config = &self.config.control;
        if !config.is_fed() {
            return Ok(None);
        }
        let feeds = self.feeds.clone().map_or_else(control_feeds, Ok)?;
        let base = self.base(&feeds, artifacts).await?;
        let applier = Arc::new(Applier::new(
            ApplierSeams {
                source: Arc::clone(&base.source),
                store: Arc::clone(&base.store),
                keys: base.keys.clone(),
                bootstrap: Arc::clone(&base.snapshots) as _,
                clock: Arc::clone(&self.clock),
            },
            ApplierOptions {
                poll_wait: config.poll_wait(),
                poll_gap: config.poll_gap(),
                heal_every: config.heal_every(),
                is_origin: config.is_origin(),
                ..ApplierOptions::default()
            },
        ));
        let copies = self.copies(&base).await?;
        let reconciler = self.reconciler(&base, registry, &copies);
        let reporter = Arc::new(Reporter::new(ReporterParts {
            store: Arc::clone(&base.store),
            board: Arc::clone(&base.board),
            keys: base.keys.clone(),
            plugins: Arc::new(registry.clone()),
            clock: Arc::clone(&self.clock),
            host: base.host.clone(),
            labels: config.labels.clone(),
            incarnation: Ulid::new().to_string(),
            every: config.report_every(),
        }));
        let told = if config.is_origin() { Some(self.origin(&feeds, &base).await?) } else { None };
        let desk = FleetDesk::new(DeskParts {
            host: base.host.clone(),
            source: config.source.clone(),
            sink: config.sink.clone(),
            store: Arc::clone(&base.store),
            board: Arc::clone(&base.board),
            keys: base.keys.clone(),
            clock: Arc::clone(&self.clock),
            applier: Arc::clone(&applier),
            snapshots: Arc::clone(&base.snapshots),
            reporter: Arc::clone(&reporter),
            origin: told.as_ref().map(|(origin, _, controller)| (origin.clone(), Arc::clone(controller))),
            silence: Silence::default(),
        });
        registry.managed().set(desk.named().await?.into_iter().collect());
        info!(host = base.host, source = config.source, sink = config.sink, "this host is one of a fleet");
        let pinner = Arc::new(Pinner::new(Arc::clone(&base.store), Arc::clone(artifacts)));
        let origin = told.map(|(_, publisher, controller)| (publisher, controller, pinner));
        Ok(Some(Fleet { applier, reconciler, reporter, origin, copies, desk }))
    }

    async fn base(
        &self,
        feeds: &FeedRegistry,
        artifacts: &Arc<dyn ArtifactRepository>,
    ) -> Result<Base, HostError> {
        let (config, data) = (&self.config.control, &self.config.serve.data);
        let options = SqliteControlOptions::new(data, Arc::clone(&self.clock));
        let opened = off_the_runtime(move || SqliteControlStore::open(&options)).await?;
        let store: Arc<dyn ControlStore> = Arc::new(opened?);
        let host = match &config.host {
            Some(host) => host.clone(),
            None => own_name(store.as_ref()).await?,
        };
        let feed = FeedSettings {
            dir: Some(config.dir.clone().unwrap_or_else(|| data.join("control-feed"))),
            url: config.url.as_ref().map(|url| url.0.clone()),
            prefix: config.prefix.clone(),
            ca_file: config.ca_file.clone(),
            credentials: config.credentials.clone(),
            replicas: config.replicas,
            events_age_max: config.events_age_max(),
            duplicates_window: config.duplicates_window(),
            ..FeedSettings::new(&*host)
        };
        let keys = Believing::new(believed(config, data).await?);
        keys.recall(store.as_ref()).await?;
        let source = feeds.source(&config.source, &feed).await?;
        let board = feeds.board(&config.source, &feed).await?;
        let snapshots = Arc::new(Snapshots::new(
            Arc::clone(&store),
            Arc::clone(artifacts),
            Arc::clone(&board),
            keys.clone(),
            Arc::clone(&self.clock),
        ));
        Ok(Base { host, feed, store, source, board, keys, artifacts: Arc::clone(artifacts), snapshots })
    }

    async fn copies(&self, base: &Base) -> Result<LocalArtifacts, HostError> {
        let (dir, clock) = (self.config.serve.data.join("artifact-copies"), Arc::clone(&self.clock));
        let copies = off_the_runtime(move || FileArtifactRepository::open(dir, clock)).await??;
        Ok(LocalArtifacts::new(Arc::new(copies), Arc::clone(&base.artifacts)))
    }

    fn reconciler(&self, base: &Base, registry: &Registry, copies: &LocalArtifacts) -> Reconciler {
        let parts = ReconcilerParts {
            store: Arc::clone(&base.store),
            plugins: Arc::new(registry.for_feed()),
            managed: registry.managed(),
            supply: Arc::new(copies.clone()),
            vet: Arc::new(base.keys.clone()),
            clock: Arc::clone(&self.clock),
            host: base.host.clone(),
            labels: self.config.control.labels.clone(),
            settings: self.config.plugins.clone(),
        };
        Reconciler::new(parts, ReconcilerOptions::default())
    }

    /// What a host with a sink has more.
    async fn origin(
        &self,
        feeds: &FeedRegistry,
        base: &Base,
    ) -> Result<(Origin, Arc<Publisher>, Arc<Controller>), HostError> {
        let config = &self.config.control;
        let sink = feeds.sink(&config.sink, &base.feed).await?;
        let key = match &config.signing_key {
            Some(path) => Some(Arc::new(signing_key(path, &base.keys).await?)),
            None => None,
        };
        let origin = Origin::new(Arc::clone(&base.store), base.keys.clone(), Arc::clone(&self.clock));
        let options =
            PublisherOptions { is_of_source: config.sink == config.source, ..PublisherOptions::default() };
        let publisher = Arc::new(origin.publisher(Arc::clone(&sink), options));
        let seams = ControllerSeams {
            origin: origin.clone(),
            store: Arc::clone(&base.store),
            board: Arc::clone(&base.board),
            sink,
            snapshots: Arc::clone(&base.snapshots),
            key,
            clock: Arc::clone(&self.clock),
        };
        let controller = Arc::new(Controller::new(seams, ControllerOptions::new(&base.host)));
        Ok((origin, publisher, controller))
    }
}

impl Fleet {
    pub(super) fn desk(&self) -> FleetDesk {
        self.desk.clone()
    }

    /// Begins to read and to tell at once, and to change plugins when those that were deployed run. Each ends when the host
    /// drains, before its plugins do: what was under way is done again after the next start.
    pub(super) fn start(&self, tasks: &Tasks, stages: &watch::Receiver<Stage>) {
        let applier = Arc::clone(&self.applier);
        keep(tasks, "control applier", applier, |applier, stop| async move { applier.run(&stop).await });
        let (reporter, reconciler) = (Arc::clone(&self.reporter), self.reconciler.clone());
        keep(tasks, "control reporter", (reporter, reconciler), |(reporter, reconciler), stop| async move {
            reporter.run(reconciler.follow(), &stop).await;
        });
        let parts = (self.reconciler.clone(), Arc::clone(&self.applier), stages.clone());
        keep(tasks, "control reconciler", parts, |(reconciler, applier, mut stages), stop| async move {
            let begun = |stage: &Stage| matches!(stage, Stage::Ready | Stage::Stopping);
            // It ends with the host otherwise.
            drop(stop.run_until_cancelled(stages.wait_for(begun)).await);
            reconciler.run(applier.follow(), &stop).await;
        });
        if let Some((publisher, controller, pinner)) = &self.origin {
            let publisher = Arc::clone(publisher);
            keep(tasks, "control publisher", publisher, |publisher, stop| async move {
                publisher.run(&stop).await;
            });
            let controller = Arc::clone(controller);
            keep(tasks, "control controller", controller, |controller, stop| async move {
                controller.run(&stop).await;
            });
            let pinner = Arc::clone(pinner);
            keep(tasks, "control pins", pinner, |pinner, stop| async move { pinner.run(&stop).await });
        }
        let copies = self.copies.clone();
        tasks.supervise(TaskKind::BACKGROUND, "control copies", move || collect(copies.clone()));
    }
}

/// Runs a part until the host ends, again if it falls.
fn keep<T, R, F>(tasks: &Tasks, name: &'static str, part: T, run: R)
where
    T: Clone + Send + 'static,
    R: Fn(T, CancellationToken) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let stop = tasks.token().clone();
    tasks.supervise(TaskKind::SUPERVISED, name, move || {
        let running = run(part.clone(), stop.clone());
        async move {
            running.await;
            Ok(())
        }
    });
}

/// Copies that nothing here needs any more go after a while.
async fn collect(copies: LocalArtifacts) -> Result<(), TaskError> {
    loop {
        match copies.collect(CONTROL_COPIES_AGE).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => info!(artifacts = gone.len(), "copies of artifacts that nothing needs were removed"),
            Err(error) => {
                warn!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "copies of artifacts could not be looked through");
            }
        }
        tokio::time::sleep(CONTROL_COPIES_COLLECT_EVERY).await;
    }
}

/// A name that is made once.
async fn own_name(store: &dyn ControlStore) -> Result<String, ControlFeedError> {
    if let Some(name) = store.note(HOST_NOTE).await? {
        return Ok(name);
    }
    let name = format!("host-{}", Ulid::new().to_string().to_lowercase());
    store.set_note(HOST_NOTE, Some(&name)).await?;
    Ok(name)
}

/// The list of keys in the file. A host that believes nobody would set all that it hears aside, so it does not start.
async fn believed(config: &ControlConfig, data: &Path) -> Result<TrustStore, HostError> {
    let path = config.trust_file.clone().unwrap_or_else(|| data.join("trust.json"));
    let wrong = |detail: String| ControlFeedError::Settings { setting: "control.trust_file".into(), detail };
    let read = {
        let path = path.clone();
        off_the_runtime(move || bounded(&path, CONTROL_TRUST_BYTES_MAX)).await?
    };
    let keys = match read {
        Ok(text) => TrustStore::parse(&text)?,
        Err(error) if config.insecure_dev && error.kind() == std::io::ErrorKind::NotFound => {
            TrustStore::default()
        }
        Err(error) => {
            let detail =
                format!("{} cannot be read: {error}; `millrace keys trust` makes one", path.display());
            return Err(wrong(detail).into());
        }
    };
    if config.insecure_dev {
        warn!(
            error.kind = "insecure_dev",
            error.blame = "host",
            "this host looks at no signature: whoever can write to its feed decides what runs here"
        );
        return Ok(keys.insecure());
    }
    let counts = |role| matches!(role, KeyRole::Release | KeyRole::Root);
    if !keys.keys().any(|(_, key)| counts(key.role) && !key.revoked) {
        let detail = format!(
            "{} has neither a release key nor a root key, so this host would believe nobody",
            path.display()
        );
        return Err(wrong(detail).into());
    }
    Ok(keys)
}

async fn signing_key(path: &Path, keys: &Believing) -> Result<SigningKey, HostError> {
    let shown = path.display().to_string();
    let path = path.to_owned();
    let read = off_the_runtime(move || bounded(&path, CONTROL_KEY_FILE_BYTES_MAX)).await?;
    let key = SigningKey::from_pem(&read.map_err(|error| ControlFeedError::Settings {
        setting: "control.signing_key".into(),
        detail: format!("{shown} cannot be read: {error}"),
    })?)?;
    let keys = keys.keys();
    let counts =
        keys.keys().any(|(id, known)| id == key.id() && known.role == KeyRole::Release && !known.revoked);
    if !counts && !keys.is_insecure() {
        warn!(
            error.kind = "control_settings_invalid",
            error.blame = "host",
            key = key.id(),
            "control.signing_key is no release key that this host believes; rollouts do not go on by themselves"
        );
    }
    Ok(key)
}

/// A file of a few lines. Of a longer one no more is read than shows that it is one.
fn bounded(path: &Path, bytes_max: usize) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(bytes_max as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}
