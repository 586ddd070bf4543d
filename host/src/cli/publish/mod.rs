//! `millrace publish`: one NDJSON upload, answers read while it runs.
//!
//! Promises: events are sent in the order of the input; an event counts only
//! once the host has answered it; with `--retry` a lost connection or a
//! restarting host costs a repeat of what was not answered, which the host
//! recognises. The sending side never takes a line apart: it counts line ends.
//!
//! An event that the host refused only because of another one in its batch is
//! sent again without that one, so that what is reported as refused is. Such
//! events land after what was already on its way.

mod answers;
mod chunks;
mod pace;
mod upload;
mod window;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use answers::{Answers, AnswersEnd};
pub use chunks::{Chunk, ChunkLimits, Chunker};
pub use pace::Pace;
pub use window::Window;

use super::client::{Client, Connect};
use super::{Backoff, CliError, Exit, Output, printable};
use upload::{Stop, Upload};

/// Slower, and the host would take the upload for stuck.
const RATE_MIN: f64 = 0.1;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace publish events.ndjson                 a file, one event a line
  millrace publish events.ndjson.gz --retry      compressed; goes on when the host restarts
  produce | millrace publish -                   standard input, as it comes
  millrace publish events.ndjson --rate 2000     2,000 events a second, evenly
  millrace publish events.ndjson --json          the result for scripts
  millrace publish --aggregate flight --agg-id UA1 --version 1 --type flight.scheduled \\
      --at 2013-01-01T08:15:00Z --payload '{\"carrier\":\"UA\"}'

An event: {\"aggregate\":…, \"agg_id\":…, \"version\":1, \"type\":…, \"at\":…, \"payload\":{…}}, with \"id\" if it has one.
Exit code 4 when the host refused events; the others are in the log. Events that were refused only because
of another one in their batch of 1,000 are sent again, after what was on its way.")]
pub(super) struct PublishArgs {
    /// Events, one a line, plain or gzip; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "aggregate", conflicts_with = "aggregate")]
    file: Option<PathBuf>,
    #[command(flatten)]
    event: EventArgs,
    /// Events a second, evenly; without it as fast as the host takes them
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Go on after a lost connection, from the first event without an answer
    #[arg(long)]
    retry: bool,
    /// With --retry: give up after this many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_after: u64,
    /// Write the result as JSON, and no progress
    #[arg(long)]
    json: bool,
    /// Show the progress bar also with --json
    #[arg(long)]
    progress: bool,
    #[command(flatten)]
    connect: Connect,
}

/// One event from flags.
#[derive(Debug, Args)]
#[command(next_help_heading = "One event instead of a file")]
struct EventArgs {
    /// What kind of thing it happened to
    #[arg(long, requires_all = ["agg_id", "version", "type"])]
    aggregate: Option<String>,
    /// Which one
    #[arg(long, value_name = "ID", requires = "aggregate")]
    agg_id: Option<String>,
    /// The version of the aggregate after the event, from 1
    #[arg(long, value_name = "N", requires = "aggregate")]
    version: Option<u64>,
    /// What happened
    #[arg(long, requires = "aggregate")]
    r#type: Option<String>,
    /// When, RFC 3339; without it the host's time
    #[arg(long, value_name = "TIME", requires = "aggregate")]
    at: Option<String>,
    /// JSON
    #[arg(long, value_name = "JSON", requires = "aggregate")]
    payload: Option<String>,
    /// The event's id; without it one is derived from the aggregate, its id and the version
    #[arg(long, requires = "aggregate")]
    id: Option<String>,
}

/// What a publish did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PublishReport {
    /// Events that the host answered, refused ones included.
    pub events: u64,
    /// Events that it had already.
    pub repeated: u64,
    pub refused: u64,
    /// How often events were sent again because another one of their batch was refused.
    pub resent: u64,
    pub seconds: f64,
    pub events_per_second: f64,
    /// Connections after the first.
    pub retries: u64,
    /// The place of the last event that was taken; a cursor for `millrace tail --after`.
    pub position: Option<String>,
    /// The first refusals.
    pub refusals: Vec<String>,
}

pub(super) async fn run(args: PublishArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let read = Arc::new(AtomicU64::new(0));
    let (input, total) = open(&args, &read)?;
    let limits =
        ChunkLimits::for_rate(args.rate, args.file.as_deref().is_some_and(|path| path != Path::new("-")));
    let bar = bar(&args, total);
    let give_up = args.retry.then(|| Duration::from_secs(args.give_up_after));
    let chunks = Chunker::new(input, limits, read);
    let report = send(&client, chunks, args.rate, give_up, &bar).await;
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        output.json(&report)?;
    } else {
        output.line(&summary(&report))?;
    }
    output.flush()?;
    if report.refused == 0 {
        return Ok(());
    }
    let first = report.refusals.first().cloned().unwrap_or_default();
    let sentence =
        format!("the host refused {} of {} events; the first: {first}", report.refused, report.events);
    Err(CliError::new(
        Exit::Refused,
        sentence,
        "correct these events and publish the file again; what was taken is recognised",
    ))
}

/// Publishes what a reader gives: what `run` does, for tests and embedding programs.
pub async fn publish_reader(
    connect: &Connect,
    input: impl Read + Send + 'static,
    limits: ChunkLimits,
    rate: Option<f64>,
    give_up_after: Option<Duration>,
) -> Result<PublishReport, CliError> {
    let client = Client::new(connect)?;
    let chunks = Chunker::new(Box::new(input) as Input, limits, Arc::default());
    send(&client, chunks, rate, give_up_after, &ProgressBar::hidden()).await
}

async fn send(
    client: &Client,
    chunks: Chunker<Input>,
    rate: Option<f64>,
    give_up_after: Option<Duration>,
    bar: &ProgressBar,
) -> Result<PublishReport, CliError> {
    let begun = Instant::now();
    let upload = Upload::start(client.clone(), chunks, rate, give_up_after)?;
    let (mut backoff, mut retries, mut answered, mut progress) = (Backoff::default(), 0, 0, Instant::now());
    loop {
        let stopped = upload.attempt(bar).await;
        let totals = upload.totals();
        if totals.events > answered {
            (answered, progress) = (totals.events, Instant::now());
            backoff.reset();
        }
        match (stopped, give_up_after) {
            (Ok(()), _) => break,
            (Err(Stop::Final(error)), _) => return Err(error),
            (Err(Stop::Transient(error)), None) => {
                return Err(stopped_at(&error, answered).with_next_step(
                    "publish the same again, what was taken is recognised; --retry does so by itself",
                ));
            }
            (Err(Stop::Transient(error)), Some(limit)) if progress.elapsed() >= limit => {
                let next = format!(
                    "look at the host, then publish the same again; --give-up-after was {} s",
                    limit.as_secs()
                );
                return Err(stopped_at(&error, answered).with_next_step(next));
            }
            (Err(Stop::Transient(error)), Some(_)) => {
                bar.set_message(format!("again: {}", error.sentence()));
                retries += 1;
                backoff.sleep().await;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let totals = upload.totals();
    Ok(PublishReport {
        events: totals.events,
        repeated: totals.repeated,
        refused: totals.refused,
        resent: totals.resent,
        seconds,
        #[expect(clippy::cast_precision_loss, reason = "a rate for people; 2^53 events take centuries")]
        events_per_second: totals.events as f64 / seconds.max(1e-9),
        retries,
        position: totals.position,
        refusals: totals.refusals,
    })
}

fn stopped_at(error: &CliError, answered: u64) -> CliError {
    CliError::new(error.exit(), format!("{}; {answered} events had been answered", error.sentence()), "")
}

fn summary(report: &PublishReport) -> String {
    let mut text = format!(
        "{} events in {:.2} s, {:.0} events/s",
        report.events, report.seconds, report.events_per_second
    );
    for (count, what) in
        [(report.repeated, "repeated"), (report.refused, "refused"), (report.retries, "retries")]
    {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if let Some(position) = &report.position {
        text.push_str(&format!("; last position {}", printable(position)));
    }
    text
}

type Input = Box<dyn Read + Send>;

/// Opens the input and says how many bytes it has, where that is known. Compression is seen, not guessed from the name.
fn open(args: &PublishArgs, read: &Arc<AtomicU64>) -> Result<(Input, Option<u64>), CliError> {
    let Some(path) = &args.file else {
        let line = args.event.line()?;
        let bytes = line.len() as u64;
        return Ok((Box::new(io::Cursor::new(line)), Some(bytes)));
    };
    let (mut raw, total): (Input, _) = if path == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(path).map_err(|e| unreadable(path, &e))?;
        let about = file.metadata().map_err(|e| unreadable(path, &e))?;
        if about.is_dir() {
            return Err(CliError::usage(
                format!("{} is a folder", path.display()),
                "name a file of events, one a line",
            ));
        }
        let total = about.is_file().then_some(about.len());
        (Box::new(file), total)
    };
    let mut magic = [0; 2];
    let mut have = 0;
    while have < magic.len() {
        match raw.read(&mut magic[have..]).map_err(|e| unreadable(path, &e))? {
            0 => break,
            n => have += n,
        }
    }
    let whole = Counted { inner: io::Cursor::new(magic[..have].to_vec()).chain(raw), read: Arc::clone(read) };
    if magic == [0x1f, 0x8b] {
        Ok((Box::new(MultiGzDecoder::new(whole)), total))
    } else {
        Ok((Box::new(whole), total))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(
        format!("{} cannot be read: {error}", path.display()),
        "look at the path and its permissions",
    )
}

/// Counts the bytes of the file, compressed as they are, for the progress bar.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl EventArgs {
    fn line(&self) -> Result<Vec<u8>, CliError> {
        let payload = self.payload.as_deref().unwrap_or("{}");
        // Kept as written, so that a number keeps all of its digits.
        let payload: Box<RawValue> = serde_json::from_str(payload).map_err(|e| {
            CliError::usage(
                format!("--payload is not JSON: {e}"),
                "quote it, for instance --payload '{\"a\":1}'",
            )
        })?;
        let payload = payload.get().replace(['\n', '\r'], " ");
        let mut event = json!({
            "aggregate": self.aggregate, "agg_id": self.agg_id, "version": self.version, "type": self.r#type,
        });
        for (name, value) in [("at", &self.at), ("id", &self.id)] {
            if let Some(value) = value {
                event[name] = json!(value);
            }
        }
        let mut line = event.to_string();
        line.truncate(line.len() - 1);
        Ok(format!("{line},\"payload\":{payload}}}\n").into_bytes())
    }
}

fn bar(args: &PublishArgs, total: Option<u64>) -> ProgressBar {
    let wanted = args.progress || !args.json;
    if !wanted || args.file.is_none() || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:40} {percent:>3} %  {msg}  {elapsed_precise}"),
        None => (ProgressBar::no_length(), "{spinner} {msg}  {elapsed_precise}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= RATE_MIN => Ok(rate),
        _ => Err(format!("a rate is a number of events a second, {RATE_MIN} at least")),
    }
}
