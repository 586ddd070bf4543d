//! Rebuilds that are asked for, looked at and given up. What carries them on is in `rebuilding`.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use metrics::counter;
use tracing::{info, warn};

use super::rebuilding::Rebuilding;
use super::{Progress, Registry, blocking};
use crate::error::Classify as _;
use crate::event::Position;
use crate::limits::LANES_MAX;
use crate::plugins::{
    ControlError, DeployFrom, Deployment, NewRebuild, PluginSettings, Proof, RebuildError, RebuildRequest,
    RebuildStage, RebuildStep, RebuildView, StartFrom,
};
use crate::processors::{ProcessorFactory, Runner};
use crate::streams::StreamError;
use crate::telemetry::metrics::REBUILDS_ENDED;

type Rebuilds<'a> = MutexGuard<'a, BTreeMap<String, Arc<Rebuilding>>>;

impl Registry {
    /// Begins a rebuild, or says to the one that is under way that what it told of is accepted.
    pub(super) async fn rebuild_now(&self, request: RebuildRequest) -> Result<RebuildView, ControlError> {
        let plugin = request.plugin.clone();
        self.has_started()?;
        self.may_change(&plugin)?;
        if let Some(running) = self.open_rebuild(&plugin) {
            if !request.accept_unemitted || request.component.is_some() {
                return Err(running.under_way());
            }
            running.accept_unemitted();
            self.write_down_rebuild(&running).await;
            return self.rebuild_view(&plugin);
        }
        let entry = self.entry(&plugin)?;
        let (component, own) = match &request.component {
            Some(component) => (component.clone(), None),
            None => {
                let (artifacts, digest) = (Arc::clone(&self.inner.parts.artifacts), entry.deployment.digest);
                let settings = entry.deployment.settings;
                (blocking(move || artifacts.get(&digest)).await?.into(), settings)
            }
        };
        let factory = self.load(component.clone(), own.clone(), Progress::default()).await?;
        let name = &factory.manifest().name;
        if *name != plugin {
            return Err(ControlError::OtherName { expected: plugin, found: name.clone() });
        }
        let _deploying = self.begin_deploy(&plugin)?;
        let _turn = self.turn(&plugin).await?;
        let wanted = self.wanted(&request, &factory, own)?;
        self.keep(component).await?;
        let record = self.inner.parts.rebuilds.begin(wanted).await?;
        RebuildStep::Begun.reached();
        info!(
            plugin.name = plugin,
            number = record.number,
            plugin.version = record.deployment.version,
            "rebuild began"
        );
        let rebuilding = Arc::new(Rebuilding::new(record));
        self.rebuilds().insert(plugin.clone(), Arc::clone(&rebuilding));
        self.carry_on(rebuilding, Some(factory));
        self.rebuild_view(&plugin)
    }

    /// What a rebuild is begun with, where the plugin is one that can be.
    fn wanted(
        &self,
        request: &RebuildRequest,
        factory: &Arc<dyn ProcessorFactory>,
        settings: Option<PluginSettings>,
    ) -> Result<NewRebuild, ControlError> {
        let parts = &self.inner.parts;
        let (plugin, manifest) = (&request.plugin, factory.manifest());
        let refused = |detail: &str| {
            ControlError::from(RebuildError::Refused { plugin: plugin.clone(), detail: detail.into() })
        };
        if let Some(running) = self.open_rebuild(plugin) {
            return Err(running.under_way());
        }
        let entry = self.entry(plugin)?;
        if let Some(waiting) = &entry.waiting {
            let version = waiting.factory.manifest().version.to_string();
            return Err(ControlError::CandidateWaits { plugin: plugin.clone(), version });
        }
        let Some(runner) = &entry.runner else {
            return Err(refused(if entry.deployment.paused { "it is paused" } else { "it does not run" }));
        };
        if let Some(holder) = runner.status().standby {
            return Err(refused(&format!("host {holder} runs it; its rows are that host's")));
        }
        let may_call = self.settings(plugin, settings.as_ref()).grants.iter().any(|grant| grant == "http");
        if may_call && !request.repeat_calls {
            return Err(refused(
                "it is granted `http`, and would call others again for every event: ask for that with repeat_calls",
            ));
        }
        self.check_scopes(manifest)?;
        let lanes = request.lanes.unwrap_or(entry.deployment.lanes);
        if lanes == 0 || lanes > LANES_MAX {
            return Err(refused(&format!("it can have 1 to {LANES_MAX} lanes, not {lanes}")));
        }
        let bounds = parts.engine.log.bounds();
        let (from, start) = match request.from {
            DeployFrom::Oldest => (StartFrom::Oldest, bounds.trimmed),
            DeployFrom::Tail => (StartFrom::After(bounds.newest.0), bounds.newest),
            DeployFrom::After(position) => (StartFrom::After(position), Position(position)),
        };
        if start < bounds.trimmed {
            return Err(StreamError::PositionLost { asked: start, trimmed: bounds.trimmed }.into());
        }
        if start > bounds.newest {
            return Err(refused(&format!("the log has come to {}, not to {start}", bounds.newest)));
        }
        let deployment = Deployment {
            plugin: plugin.clone(),
            version: manifest.version.to_string(),
            digest: factory.digest().to_owned(),
            paused: false,
            lanes,
            from,
            deployed_at: self.now(),
            deployed_by: request.by.clone(),
            ordering_key: Some(manifest.ordering_key.clone()),
            proof: Proof::Loaded,
            rollback: false,
            settings,
        };
        let accept_unemitted = request.accept_unemitted;
        Ok(NewRebuild { deployment, tables: manifest.tables.clone(), start, accept_unemitted })
    }

    /// How the last rebuild of a plugin is, or how it went.
    pub(super) fn rebuild_view(&self, plugin: &str) -> Result<RebuildView, ControlError> {
        let rebuilding = self.rebuilds().get(plugin).cloned();
        match rebuilding {
            Some(rebuilding) => Ok(rebuilding.view(self.inner.parts.engine.log.bounds().newest)),
            None => {
                self.entry(plugin)?;
                Err(RebuildError::None { plugin: plugin.to_owned() }.into())
            }
        }
    }

    pub(super) async fn abandon_rebuild_now(&self, plugin: &str) -> Result<RebuildView, ControlError> {
        let none = || ControlError::from(RebuildError::None { plugin: plugin.to_owned() });
        self.open_rebuild(plugin).ok_or_else(none)?;
        // It may be about to take over, and then does.
        let _turn = self.turn(plugin).await?;
        let rebuilding = self.open_rebuild(plugin).ok_or_else(none)?;
        self.end_rebuild(&rebuilding, "it was abandoned").await?;
        self.rebuild_view(plugin)
    }

    /// Ends a rebuild that has not taken over. Whoever calls has the plugin's turn, or is what carries it on.
    pub(super) async fn end_rebuild(&self, rebuilding: &Rebuilding, why: &str) -> Result<(), ControlError> {
        let number = rebuilding.number();
        // Where that cannot be written down it goes on, as it would at the next start.
        match self.inner.parts.rebuilds.abandon(number, why.to_owned()).await {
            // An answer that was lost: nobody else ends it.
            Ok(()) | Err(RebuildError::Gone { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        rebuilding.cancel.cancel();
        let runner = rebuilding.take_runner();
        if let Some(runner) = &runner {
            runner.cut_off();
        }
        rebuilding.change(|progress| {
            progress.stage = RebuildStage::Abandoned;
            why.clone_into(&mut progress.message);
        });
        counter!(REBUILDS_ENDED, "result" => "abandoned").increment(1);
        info!(plugin.name = rebuilding.plugin(), number, why, "rebuild abandoned");
        if let Some(runner) = runner {
            self.let_go(vec![runner]);
        }
        Ok(())
    }

    /// Goes on with what was under way when the host last ran.
    pub(super) async fn resume_rebuilds(&self) {
        let records = match self.inner.parts.rebuilds.list().await {
            Ok(records) => records,
            Err(error) => {
                warn!(error.kind = error.code(), error.blame = "host", %error, "rebuilds cannot be read: none goes on before the next start");
                return;
            }
        };
        for record in records {
            let (plugin, open) = (record.deployment.plugin.clone(), record.is_open());
            let rebuilding = Arc::new(Rebuilding::new(record));
            if !self.entries().contains_key(&plugin) {
                if open && let Err(error) = self.end_rebuild(&rebuilding, "the plugin is gone").await {
                    warn!(plugin.name = plugin, error.kind = error.code(), error.blame = "host", %error, "a rebuild of a plugin that is gone stays");
                }
                continue;
            }
            self.rebuilds().insert(plugin, Arc::clone(&rebuilding));
            if open {
                self.carry_on(rebuilding, None);
            }
        }
    }

    /// Refused while a plugin is rebuilt: the version beside which that happens must stay.
    pub(super) fn not_rebuilding(&self, plugin: &str) -> Result<(), ControlError> {
        self.open_rebuild(plugin).map_or(Ok(()), |running| Err(running.under_way()))
    }

    pub(super) fn open_rebuild(&self, plugin: &str) -> Option<Arc<Rebuilding>> {
        self.rebuilds().get(plugin).filter(|rebuilding| rebuilding.is_open()).cloned()
    }

    pub(super) fn open_rebuilds(&self) -> Vec<Arc<Rebuilding>> {
        self.rebuilds().values().filter(|rebuilding| rebuilding.is_open()).cloned().collect()
    }

    pub(super) fn rebuilds(&self) -> Rebuilds<'_> {
        self.inner.rebuilds.lock().expect("no code panics while it holds the rebuilds")
    }

    /// Ends what carries rebuilds on. Answers what has to be stopped.
    pub(super) fn halt_rebuilds(&self) -> Vec<Runner> {
        let rebuilds = self.rebuilds();
        let open = rebuilds.values().filter(|rebuilding| rebuilding.is_open());
        open.filter_map(|rebuilding| {
            rebuilding.cancel.cancel();
            rebuilding.runner()
        })
        .collect()
    }

    /// What it has come to, as far as that is not in its tasks. A failure to write costs a count at the next start.
    pub(super) async fn write_down_rebuild(&self, rebuilding: &Rebuilding) {
        let noted = self.inner.parts.rebuilds.note(rebuilding.number(), rebuilding.progress()).await;
        if let Err(error) = noted {
            warn!(plugin.name = rebuilding.plugin(), error.kind = error.code(), error.blame = error.blame().as_str(), %error, "how far a rebuild is could not be written down");
        }
    }
}
