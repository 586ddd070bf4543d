//! A deploy, its steps written down as they come, and ended early when it is not wanted any more.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::warn;

use super::task::Task;
use super::trouble::Trouble;
use super::want::{Want, from};
use crate::control::{Phase, PluginSpec};
use crate::error::Classify as _;
use crate::plugins::{
    ControlError, DeployOptions, DeployRequest, DeployStep, ExpectedBuild, PluginControl, PluginSettings,
    PluginStatus,
};

impl Task {
    pub(super) async fn deploy(
        &mut self,
        want: &Want,
        spec: &PluginSpec,
        (paused, is_back): (bool, bool),
        settings: PluginSettings,
        component: Bytes,
    ) -> Result<PluginStatus, Trouble> {
        let (progress, mut steps) = mpsc::channel(DeployStep::COUNT);
        let request = DeployRequest {
            component,
            expected_name: Some(want.plugin.clone()),
            // The way back does not fail for a name.
            expected_build: (!is_back).then(|| build(spec)),
            from: from(spec),
            by: want.by(),
            options: options(spec, is_back),
            paused,
            settings: Some(settings),
            progress: Some(progress),
        };
        let plugins = Arc::clone(&self.shared.parts.plugins);
        let news = Self::superseded(self.wants.clone());
        let ending = end_when(news, &*plugins, &want.plugin, self.shared.options.give_up_every);
        let deploying = plugins.deploy(request);
        tokio::pin!(ending, deploying);
        let mut telling = true;
        let deployed = loop {
            tokio::select! {
                biased;
                step = steps.recv(), if telling => match step {
                    Some(step) => self.tell(want, step).await,
                    None => telling = false,
                },
                deployed = &mut deploying => break deployed,
                never = &mut ending => match never {},
            }
        };
        while let Ok(step) = steps.try_recv() {
            self.tell(want, step).await;
        }
        match deployed {
            Err(ControlError::CandidateWaits { .. }) => {
                // Nobody else may confirm it: the plugin is the feed's now.
                match plugins.abandon(&want.plugin).await {
                    // What waited is gone by itself.
                    Ok(_) | Err(ControlError::NoCandidate { .. } | ControlError::Unknown { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                Err(ControlError::DeployInProgress { plugin: want.plugin.clone() }.into())
            }
            deployed => Ok(deployed?),
        }
    }

    /// That it is active is written down once it is known to be.
    async fn tell(&mut self, want: &Want, step: DeployStep) {
        let phase = match step {
            DeployStep::Compiled => Phase::Compiled,
            DeployStep::Validated => Phase::Validated,
            DeployStep::Shadow => Phase::Shadow,
            DeployStep::Active => return,
        };
        if let Err(error) = self.reach(want, phase).await {
            // The end of it is what counts, and is written down or tried again.
            warn!(error.kind = error.code(), error.blame = "host", %error, "how far a deploy is cannot be written down");
        }
    }
}

/// What the release says that its component is.
pub(super) fn build(spec: &PluginSpec) -> ExpectedBuild {
    ExpectedBuild { version: spec.version.clone(), world: spec.world.clone() }
}

fn options(spec: &PluginSpec, is_back: bool) -> DeployOptions {
    DeployOptions {
        shadow_events: spec.shadow_events,
        // The way back is not measured by what it leads away from.
        no_shadow: is_back || spec.shadow_events == Some(0),
        rollback: is_back,
        ..DeployOptions::default()
    }
}

/// Gives a candidate up once there are news. It is said again and again: one that is still being compiled is not in the
/// shadow yet.
async fn end_when(
    news: impl Future<Output = ()>,
    plugins: &dyn PluginControl,
    plugin: &str,
    every: Duration,
) -> Infallible {
    news.await;
    loop {
        // It may be too early or too late; what became of the deploy tells.
        let _ = plugins.abandon(plugin).await;
        tokio::time::sleep(every).await;
    }
}
