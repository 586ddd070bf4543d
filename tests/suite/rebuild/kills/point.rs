//! Ends a host at a step of a rebuild.
//!
//! A preloaded library (`tests/killpoint`) ends the process as soon as it has told of the step ([`RebuildStep`]), on the
//! very thread that has come to it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use millrace::plugins::RebuildStep;
use millrace_tests::chaos::setup;
use millrace_tests::host::Setup;
use millrace_tests::powercut::build_preloaded;
use millrace_tests::workspace_binary;

/// What the host is to end at. It looks for this file.
pub(super) struct KillPoint(PathBuf);

impl KillPoint {
    /// With how a host is started that can be ended so. The library and the file are put in the folder.
    pub(super) fn new(dir: &Path) -> Result<(Self, Setup)> {
        let plan = dir.join("plan");
        let mut killable =
            setup(workspace_binary("millrace")).set("telemetry.filter=info,millrace::rebuild=trace");
        let shim = build_preloaded("killpoint", dir)?;
        let env = [("LD_PRELOAD", &shim), ("KILLPOINT_PLAN", &plan)];
        killable.env.extend(env.map(|(name, value)| (name.into(), OsString::from(value))));
        Ok((Self(plan), killable))
    }

    /// The host ends when it has come to the step so often, from now on.
    pub(super) fn set(&self, step: RebuildStep, times: u64) -> Result<()> {
        let staged = self.0.with_extension("staged");
        std::fs::write(&staged, format!("1 after say {times} {}\n", words(step)))?;
        Ok(std::fs::rename(staged, &self.0)?)
    }

    /// Takes it away, for the next host. Fails where the last one, which has said this, ended at another step.
    pub(super) fn clear(&self, step: RebuildStep, said: &str) -> Result<()> {
        std::fs::remove_file(&self.0)?;
        let told = said.lines().rfind(|line| line.contains("rebuild.step="));
        ensure!(told.is_some_and(|line| line.contains(&words(step))), "it ended elsewhere: {said}");
        Ok(())
    }
}

fn words(step: RebuildStep) -> String {
    format!("rebuild.step={}", step.name())
}
