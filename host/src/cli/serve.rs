//! `millrace serve`: a host in the foreground, drained on SIGTERM and Ctrl-C.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::settings::SettingsArgs;
use super::{CliError, Output};
use crate::config::Config;
use crate::host::{Host, HostError};
use crate::telemetry::{Telemetry, TelemetryError};

/// What the host may need beyond its own deadline to let go of the store.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// How often recorded samples are taken into their histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// What a shell answers for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace serve                                          on 127.0.0.1:7070, store in ./millrace-data
  millrace serve --data /var/lib/millrace --plugins-dir /etc/millrace/plugins
  millrace serve --config millrace.toml --bind 0.0.0.0:7070     needs tokens in the file
  millrace serve --log redis://127.0.0.1:6379             the log on Redis, rows and state in --data
  millrace serve --feed-source nats --set control.url=nats://127.0.0.1:4222    one of a fleet
  millrace serve --set store.retention_events=10000000 --set telemetry.format=json

SIGTERM or Ctrl-C drains: what was handled is committed, connections are ended, all within
serve.drain_ms_max. A second one ends at once; nothing acknowledged is lost by that.")]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Write one line of JSON once ready, instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: ServeArgs, output: &mut Output) -> Result<(), CliError> {
    let resolved = args.settings.resolve()?;
    let telemetry = Telemetry::install(&resolved.config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| {
        CliError::failed(
            format!("the async runtime does not start: {e}"),
            "look at the process limits (ulimit -u)",
        )
    })?;
    let ended = runtime.block_on(serve(&args, resolved.config, telemetry, output));
    // Guest threads that are inside a call are not waited for: their work is not committed anyway.
    runtime.shutdown_background();
    ended
}

async fn serve(
    args: &ServeArgs,
    config: Config,
    telemetry: Telemetry,
    output: &mut Output,
) -> Result<(), CliError> {
    // Before the host starts, so that a signal during the start is not lost.
    let mut signals = Signals::new()?;
    let drain_max = config.serve.drain_max();
    let data = config.serve.data.clone();
    let exporter = Telemetry::export_traces(&config.telemetry)?;
    let host = tokio::select! {
        // Dropped by a signal: a host that has not started holds nothing.
        host = start(config, &telemetry) => host?,
        () = signals.next() => return Ok(()),
    };
    tokio::select! {
        // It ends otherwise, and says why below. What stands in the way meanwhile is in the log and at `/readyz`.
        ready = host.wait_ready() => if ready { announce(args, &host, &data, output)? },
        () = signals.next() => return drain(host, signals, drain_max).await,
    }
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    let failure = loop {
        tokio::select! {
            () = signals.next() => break None,
            failure = host.failed() => break Some(failure),
            _ = upkeep.tick() => telemetry.upkeep(),
        }
    };
    let deadline = Instant::now() + drain_max + DRAIN_GRACE;
    drain(host, signals, drain_max).await?;
    if let Some(exporter) = exporter {
        exporter.shut_down(deadline.saturating_duration_since(Instant::now())).await;
    }
    match failure {
        None => Ok(()),
        Some(failure) => {
            error!(
                error.kind = "host_stopped",
                error.blame = "host",
                error = failure,
                "the host stopped by itself"
            );
            Err(CliError::failed(
                format!("the host stopped by itself: {failure}"),
                "see the messages above; start it again once the cause is gone",
            ))
        }
    }
}

async fn start(config: Config, telemetry: &Telemetry) -> Result<Host, CliError> {
    let render = telemetry.clone();
    // By this name it stays the executable that runs now, also when its file is replaced.
    let own = "/proc/self/exe";
    Ok(Host::builder().config(config).metrics(move || render.render()).compiler(own).start().await?)
}

fn announce(
    args: &ServeArgs,
    host: &Host,
    data: &std::path::Path,
    output: &mut Output,
) -> Result<(), CliError> {
    let url = format!("http://{}", host.addr());
    let data = std::path::absolute(data).unwrap_or_else(|_| data.into());
    if args.json {
        output.json(&json!({ "url": url, "data": data }))?;
    } else {
        output.line(&format!("millrace {} is ready", env!("CARGO_PKG_VERSION")))?;
        output.line(&format!("  listening on  {url}"))?;
        output.line(&format!("  store in      {}", data.display()))?;
        output.line(&format!("  demo page     {url}/demo/"))?;
    }
    output.flush()
}

/// Ends the host under one deadline, or at once on a second signal.
async fn drain(host: Host, mut signals: Signals, within: Duration) -> Result<(), CliError> {
    info!(within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX), "draining");
    tokio::select! {
        ended = tokio::time::timeout(within + DRAIN_GRACE, host.shutdown()) => {
            if ended.is_err() {
                warn!(error.kind = "drain_ended", error.blame = "host", "the drain took longer than its deadline; what was not committed is repeated at the next start");
            }
            Ok(())
        }
        () = signals.next() => end_at_once(),
    }
}

#[expect(clippy::exit, reason = "a second signal asks for exactly this; the store is built to be killed")]
fn end_at_once() -> ! {
    std::process::exit(INTERRUPTED)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let watch = |kind| {
            signal(kind).map_err(|e| {
                CliError::failed(format!("signals cannot be watched: {e}"), "look at the process limits")
            })
        };
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    /// The next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl From<HostError> for CliError {
    fn from(error: HostError) -> Self {
        CliError::failed(
            format!("the host does not start: {error}"),
            "correct that and start it again; `millrace config` shows every setting and its source",
        )
    }
}

impl From<TelemetryError> for CliError {
    fn from(error: TelemetryError) -> Self {
        CliError::new(
            super::Exit::Config,
            error.to_string(),
            "correct the setting `telemetry.filter`, for instance to `info`, or `telemetry.otlp_endpoint`",
        )
    }
}
