//! Bringing one version of a plugin: from its artifacts to what serves, or back.

use std::sync::Arc;

use bytes::Bytes;

use super::deploy::build;
use super::record::{TRIPPED, Trip, Verdict, serving};
use super::supply::{settings, verify};
use super::task::{Done, Task};
use super::trouble::{Hope, Trouble};
use super::want::{Want, hex};
use crate::control::trust::RELEASED_BEFORE;
use crate::control::{ArtifactRef, Phase, PluginSpec};
use crate::plugins::{DeployOptions, Deployment, PluginSettings, PluginStatus};

impl Task {
    pub(super) async fn bring(
        &mut self,
        want: &Want,
        spec: &PluginSpec,
        paused: bool,
        found: Option<PluginStatus>,
    ) -> Result<Done, Trouble> {
        let found = match found {
            // What is there must not go on while its successor is brought.
            Some(status) if paused && !status.deployment.paused => {
                Some(self.shared.parts.plugins.pause(&want.plugin).await?)
            }
            found => found,
        };
        self.serving = found.as_ref().and_then(serving);
        if let Some(trip) = self.trip(want, spec).await? {
            return self.go_back(want, &trip, found).await;
        }
        let is_back = self.is_back(want, spec, found.is_some()).await?;
        if let Some(verdict) = self.verdict(want).await? {
            if is_back {
                self.stop_what_stayed(want, spec, &verdict, found).await?;
            }
            self.set_aside(want, &verdict).await?;
            return Ok(Done::Settled);
        }
        // While it waits, what is bad would serve.
        let leads_away = is_back && found.is_some();
        let mut turn = match &spec.config {
            Some(_) if !leads_away && !paused => self.turn().await?,
            _ => None,
        };
        let settings = self.settings_of(want, spec).await?;
        let present = found.as_ref().filter(|status| is_there(status, spec, &settings)).cloned();
        let brought = match present {
            Some(status) => {
                if !is_back {
                    // Its world was looked at when it was deployed.
                    build(spec).check(&status.deployment.version, None)?;
                }
                let since = self.serves_since(want, &status).await?;
                (status, since)
            }
            None => {
                if turn.is_none() && !leads_away {
                    turn = self.turn().await?;
                }
                let component = self.prepare(want, spec).await?;
                (self.deploy(want, spec, (paused, is_back), settings, component).await?, self.now())
            }
        };
        drop(turn);
        self.serve(want, spec, paused, brought).await
    }

    /// Whether it leads away from a version that nobody should run here any more.
    async fn is_back(&self, want: &Want, spec: &PluginSpec, is_there: bool) -> Result<bool, Trouble> {
        if want.rollback || !want.is_former || !is_there {
            return Ok(want.rollback);
        }
        // A rollout that had reached this host was replaced by one that has not.
        let history = self.shared.parts.plugins.history(&want.plugin).await?;
        Ok(history.iter().any(|earlier| earlier.digest == hex(&spec.component.digest)))
    }

    /// A version that was taken back does not go on because the one before it cannot: its events wait for a better one.
    async fn stop_what_stayed(
        &mut self,
        want: &Want,
        spec: &PluginSpec,
        verdict: &Verdict,
        found: Option<PluginStatus>,
    ) -> Result<(), Trouble> {
        let Some(status) = found.filter(|status| !status.deployment.paused) else { return Ok(()) };
        let deployment = &status.deployment;
        let is_meant = deployment.digest == hex(&spec.component.digest)
            && self
                .settings_of(want, spec)
                .await
                .map_or(true, |settings| deployment.settings.as_ref() == Some(&settings));
        if !is_meant {
            self.report_no_way_back(want, &Trouble::lasting(&verdict.code, &verdict.reason));
            self.serving = serving(&self.shared.parts.plugins.pause(&want.plugin).await?);
        }
        Ok(())
    }

    async fn settings_of(&self, want: &Want, spec: &PluginSpec) -> Result<PluginSettings, Trouble> {
        let config = match &spec.config {
            Some(config) => Some(self.fetch(config).await?),
            None => None,
        };
        settings(spec, config.as_deref(), self.shared.parts.settings.get(&want.plugin))
    }

    /// Everything that can be done without touching what runs.
    async fn prepare(&mut self, want: &Want, spec: &PluginSpec) -> Result<Bytes, Trouble> {
        self.count_try(want);
        self.reach(want, Phase::Absent).await?;
        // Before anything is fetched for whoever has not signed it.
        self.shared.parts.vet.check(&want.plugin, &spec.component, want.released_at)?;
        let component = self.fetch(&spec.component).await?;
        self.reach(want, Phase::Fetched).await?;
        verify(&spec.component, &component)?;
        self.shared.pin_wanted(&want.plugin, spec).await?;
        self.reach(want, Phase::Verified).await?;
        Ok(component)
    }

    async fn fetch(&self, artifact: &ArtifactRef) -> Result<Bytes, Trouble> {
        let news = Self::superseded(self.wants.clone());
        let content = tokio::select! {
            content = self.shared.parts.supply.get(artifact) => content?,
            // The answer is looked at by nobody.
            () = news => return Err(Trouble::superseded()),
        };
        verify(artifact, &content)?;
        Ok(content)
    }

    /// The version is deployed; now it runs or not, as it should.
    async fn serve(
        &mut self,
        want: &Want,
        spec: &PluginSpec,
        paused: bool,
        (status, serves_since): (PluginStatus, i64),
    ) -> Result<Done, Trouble> {
        let plugins = &self.shared.parts.plugins;
        let status = match (paused, status.deployment.paused) {
            (true, false) => plugins.pause(&want.plugin).await?,
            (false, true) => plugins.resume(&want.plugin).await?,
            _ => status,
        };
        self.shared.pin_active(&want.plugin, spec).await?;
        let phase = if paused { Phase::Paused } else { Phase::Active };
        self.arrive(want, phase, Some(&status)).await?;
        let serves = Done::Serves { status: Box::new(status), since: serves_since };
        // The former version has nothing before it that might be better.
        Ok(if paused || want.is_former { Done::Settled } else { serves })
    }

    /// Since when a version serves that was deployed before. One that had served and was paused is not new again.
    async fn serves_since(&self, want: &Want, status: &PluginStatus) -> Result<i64, Trouble> {
        let deployed_at = status.deployment.deployed_at;
        if !status.deployment.paused {
            return Ok(deployed_at);
        }
        let has_served = want.is_resumed && {
            let history = self.shared.parts.plugins.history(&want.plugin).await?;
            history.iter().any(|earlier| earlier.deployed_at == deployed_at && !earlier.paused)
        };
        Ok(if has_served { deployed_at } else { self.now() })
    }

    /// Takes a version back that trapped too often. All of it is on this host: neither feed nor repository is asked.
    async fn go_back(
        &mut self,
        want: &Want,
        trip: &Trip,
        found: Option<PluginStatus>,
    ) -> Result<Done, Trouble> {
        // Written down first: a host that ends now goes on with the way back. It is gone without that, too.
        let written = self.write_trip(want, trip).await;
        let plugins = Arc::clone(&self.shared.parts.plugins);
        let is_still = |status: &PluginStatus| status.deployment.deployed_at == trip.deployed_at;
        if let Some(status) = found.filter(|status| !status.deployment.paused && is_still(status)) {
            let former = self.former(want, &status.deployment).await?;
            let options = DeployOptions { no_shadow: true, ..DeployOptions::default() };
            let back = match former {
                Some(former) => {
                    plugins.rollback(&want.plugin, Some(&former.digest), &want.by_breaker(), options).await
                }
                // There is none: its events wait for a better one.
                None => plugins.pause(&want.plugin).await,
            };
            let status = match back.map_err(Trouble::from) {
                Ok(status) => status,
                Err(trouble) if trouble.hope != Hope::Passes => {
                    self.report_no_way_back(want, &trouble);
                    plugins.pause(&want.plugin).await?
                }
                Err(trouble) => return Err(trouble),
            };
            self.serving = serving(&status);
        }
        written?;
        let reason = format!("its component trapped {} times soon after it took over", trip.tripped.traps);
        let verdict = Verdict { identity: want.identity(), code: TRIPPED.into(), reason };
        self.set_aside(want, &verdict).await?;
        Ok(Done::Settled)
    }

    /// What served before, if it is what the others run, and may run. Whatever else has served here may have been taken
    /// back for its own faults.
    async fn former(&self, want: &Want, present: &Deployment) -> Result<Option<Deployment>, Trouble> {
        let Some(stable) = &want.desired.stable else { return Ok(None) };
        let parts = &self.shared.parts;
        if let Err(error) = parts.vet.check(&want.plugin, &stable.component, RELEASED_BEFORE) {
            self.report_no_way_back(want, &Trouble::from(error));
            return Ok(None);
        }
        let mut others = parts.plugins.history(&want.plugin).await?;
        others.retain(|other| {
            other.digest == hex(&stable.component.digest)
                && (&other.digest, &other.settings) != (&present.digest, &present.settings)
        });
        let are_alike = others.windows(2).all(|pair| pair[0].settings == pair[1].settings);
        let config = match &stable.config {
            // Only then is it needed to tell them apart; it is pinned here.
            Some(config) if !are_alike => match self.fetch(config).await {
                Ok(config) => Some(config),
                Err(trouble) => {
                    self.report_no_way_back(want, &trouble);
                    return Ok(None);
                }
            },
            _ => None,
        };
        let asked = match settings(stable, config.as_deref(), None) {
            Ok(asked) => asked,
            Err(trouble) => {
                self.report_no_way_back(want, &trouble);
                return Ok(None);
            }
        };
        let is_config_known = stable.config.is_none() || config.is_some();
        // The newest of them is what a rollback takes.
        Ok(others.into_iter().next().filter(|newest| {
            newest.settings.as_ref().is_some_and(|settings| fits(settings, &asked, is_config_known))
        }))
    }

    fn report_no_way_back(&self, want: &Want, trouble: &Trouble) {
        tracing::error!(
            error.kind = trouble.code,
            error.blame = trouble.blame,
            plugin.name = want.plugin,
            reason = trouble.reason,
            "a version cannot go back to the one before it; the plugin is paused"
        );
    }
}

/// Whether settings are those of a version, whatever the operator has added to them.
fn fits(settings: &PluginSettings, asked: &PluginSettings, is_config_known: bool) -> bool {
    let config = if is_config_known { settings.config.clone() } else { asked.config.clone() };
    let of_event = PluginSettings {
        config,
        on_failure: asked.on_failure,
        on_position_lost: asked.on_position_lost,
        http_ca_file: asked.http_ca_file.clone(),
        ..settings.clone()
    };
    of_event == *asked
}

/// Whether what was deployed is what is wanted, and has been started since the host was.
fn is_there(status: &PluginStatus, spec: &PluginSpec, settings: &PluginSettings) -> bool {
    let deployment = &status.deployment;
    status.manifest.is_some()
        && deployment.digest == hex(&spec.component.digest)
        && deployment.settings.as_ref() == Some(settings)
}
