//! Says how this host is, on the board: now and then, and soon after something became of a plugin.
//!
//! Promises: what cannot be told is told the next time; whoever waits for a report waits for no host that serves.
//! Deliberately absent: a queue. The newest word is the only one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::report::{Baselines, HostReport, PluginReport};
use super::snapshot::state_digest;
use super::{Believing, Board, ControlFeedError, ControlStore, Result};
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::limits::CONTROL_REPORT_GAP;
use crate::plugins::{PluginControl, PluginStatus};
use crate::telemetry::metrics::{CONTROL_REPORTS, CONTROL_REPORTS_FAILED};

/// What it looks at, and where it says so.
#[derive(Clone, Debug)]
pub struct ReporterParts {
    pub store: Arc<dyn ControlStore>,
    pub board: Arc<dyn Board>,
    pub keys: Believing,
    pub plugins: Arc<dyn PluginControl>,
    pub clock: Arc<dyn Clock>,
    pub host: String,
    pub labels: BTreeMap<String, String>,
    /// Another one after each start.
    pub incarnation: String,
    pub every: Duration,
}

#[derive(Debug)]
pub struct Reporter {
    parts: ReporterParts,
    baselines: Mutex<Baselines>,
}

impl Reporter {
    pub fn new(parts: ReporterParts) -> Self {
        Self { parts, baselines: Mutex::default() }
    }

    /// Reports at once and until it is told to stop, and soon after each of `news`: `Reconciler::follow`.
    pub async fn run(&self, mut news: watch::Receiver<u64>, stop: &CancellationToken) {
        // Cut at any await: a report is on the board or not.
        stop.run_until_cancelled(self.work(&mut news)).await;
    }

    async fn work(&self, news: &mut watch::Receiver<u64>) {
        let mut reported = 0_u64;
        loop {
            let begun = Instant::now();
            news.mark_unchanged();
            match self.told(reported == 1).await {
                Ok(()) => {
                    reported = reported.saturating_add(1);
                    counter!(CONTROL_REPORTS).increment(1);
                }
                Err(problem) => {
                    counter!(CONTROL_REPORTS_FAILED).increment(1);
                    warn!(
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        %problem,
                        "this host cannot say how it is; what runs goes on"
                    );
                }
            }
            let gap = CONTROL_REPORT_GAP.min(self.parts.every);
            tokio::time::sleep_until(begun + gap).await;
            // Either way it is time to report.
            let _ = tokio::time::timeout_at(begun + self.parts.every, changed(news)).await;
        }
    }

    async fn told(&self, is_second: bool) -> Result<()> {
        if is_second {
            self.look_for_a_namesake().await?;
        }
        let text = self.report().await?.to_json()?;
        self.parts.board.report(&self.parts.host, &text).await
    }

    /// What this host would say now.
    pub async fn report(&self) -> Result<HostReport> {
        let ReporterParts { store, keys, plugins, clock, host, labels, incarnation, .. } = &self.parts;
        let (cursor, rows) = store.desired().await?;
        let observed = store.observed().await?;
        // What it counts of them is left out while the registry does not answer; how far each is, is not.
        let statuses = plugins.list().await.unwrap_or_default();
        let statuses: BTreeMap<&str, &PluginStatus> =
            statuses.iter().map(|status| (status.name.as_str(), status)).collect();
        let mut report = HostReport::new(host, labels.clone(), incarnation);
        report.cursor = cursor;
        report.state_digest = state_digest(&rows, &keys.keys());
        let now = clock.now().0;
        let mut baselines = self.baselines.lock().unwrap_or_else(PoisonError::into_inner);
        baselines.keep(|plugin| observed.iter().any(|row| row.plugin == plugin));
        for row in &observed {
            let status = statuses.get(row.plugin.as_str()).copied();
            report.plugins.insert(row.plugin.clone(), PluginReport::of(row, status, &mut baselines, now));
        }
        Ok(report)
    }

    /// Two hosts of one name overwrite each other, and neither is counted right. Whoever has reported since this host did
    /// is one. It is looked for once: everybody's reports have to be read for it.
    async fn look_for_a_namesake(&self) -> Result<()> {
        let reports = self.parts.board.reports().await?;
        let own = reports.iter().find(|(host, ..)| *host == self.parts.host);
        let Some(Ok(report)) = own.map(|(_, _, text)| HostReport::parse(text)) else { return Ok(()) };
        if report.incarnation != self.parts.incarnation {
            let taken = ControlFeedError::Settings {
                setting: "control.host".into(),
                detail: format!("another host is `{}`, too", self.parts.host),
            };
            error!(
                error.kind = taken.code(),
                error.blame = taken.blame().as_str(),
                problem = %taken,
                "give each host of a fleet a name of its own; rollouts and status are wrong until then"
            );
        }
        Ok(())
    }
}

/// Never, once nobody tells any more.
async fn changed(news: &mut watch::Receiver<u64>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
