//! `millrace tail`: a range of the stream, or the stream as it grows.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::client::{self, Client, Connect};
use super::frames::Frames;
use super::{Backoff, CliError, Exit, Output, SseFrame, printable};

/// Events of one page.
const PAGE_EVENTS: u64 = 1_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace tail                              everything that is held, oldest first
  millrace tail --limit 10                   the first ten
  millrace tail --after CURSOR --limit 100   the next hundred
  millrace tail --follow                     what is published from now on
  millrace tail --follow --from oldest       everything, and then what comes
  millrace tail --follow --json | jq .type   for scripts: one event a line

With --follow a lost connection is taken up where it broke, until --give-up-after.")]
pub(super) struct TailArgs {
    /// Which stream
    #[arg(default_value = "events")]
    stream: String,
    /// Go on when the end is reached
    #[arg(long, short)]
    follow: bool,
    /// Where to begin: the oldest event that is held, or what is published from now on
    #[arg(long, value_name = "PLACE", value_parser = ["oldest", "tail"], conflicts_with = "after")]
    from: Option<String>,
    /// Begin after this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// End after so many events
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// With --follow: give up after this many seconds without a connection
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_after: u64,
    /// Write each event as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Deserialize)]
struct EventsPage {
    events: Vec<Box<RawValue>>,
    next: String,
}

/// What is shown of an event.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Shown<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    aggregate: String,
    agg_id: String,
    version: u64,
    r#type: String,
    at: String,
}

/// Where printing stands.
struct Printer<'a> {
    output: &'a mut Output,
    left: u64,
    json: bool,
}

pub(super) async fn run(args: TailArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let mut printer = Printer { output, left: args.limit.unwrap_or(u64::MAX), json: args.json };
    if args.follow {
        follow(&client, &args, &mut printer).await
    } else {
        range(&client, &args, &mut printer).await
    }
}

async fn range(client: &Client, args: &TailArgs, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let mut after = args.after.clone();
    if args.from.as_deref() == Some("tail") {
        return Err(CliError::usage("--from tail without --follow has nothing to show", "add --follow"));
    }
    while printer.left > 0 {
        let limit = printer.left.min(PAGE_EVENTS).to_string();
        let mut query = vec![("limit", limit.as_str())];
        if let Some(after) = &after {
            query.push(("after", after));
        }
        let page: EventsPage = client.get(&["v1", "streams", &args.stream], &query).await?;
        for event in &page.events {
            printer.event(event.get())?;
        }
        // A page may hold nothing and still lead on: over events that are not this tenant's.
        if page.events.is_empty() && after.as_ref() == Some(&page.next) {
            break;
        }
        after = Some(page.next);
    }
    printer.output.flush()
}

async fn follow(client: &Client, args: &TailArgs, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let mut place = Place { cursor: args.after.clone(), heard: Instant::now() };
    let mut backoff = Backoff::default();
    let give_up_after = Duration::from_secs(args.give_up_after);
    loop {
        let heard = place.heard;
        let error = match connection(client, args, &mut place, printer).await {
            Ok(()) => return printer.output.flush(),
            Err(error) => error,
        };
        if place.heard != heard {
            backoff.reset();
        }
        // A refusal is an answer; only what may pass is tried again.
        let passes = matches!(error.exit(), Exit::Unreachable | Exit::Failure);
        if !passes || place.heard.elapsed() >= give_up_after {
            return Err(error);
        }
        eprintln!("{}; trying again", error.sentence());
        backoff.sleep().await;
    }
}

struct Place {
    cursor: Option<String>,
    /// When the host last sent something.
    heard: Instant,
}

/// One connection. `Ok` when enough was printed.
async fn connection(
    client: &Client,
    args: &TailArgs,
    place: &mut Place,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let from = args.from.as_deref().unwrap_or("tail");
    let mut query = Vec::new();
    match &place.cursor {
        Some(cursor) => query.push(("after", cursor.as_str())),
        None => query.push(("from", from)),
    }
    let mut request = client
        .request(Method::GET, client.address(&["v1", "streams", &args.stream], &query))
        .header(header::ACCEPT, "text/event-stream");
    if let Some(cursor) = &place.cursor {
        request = request.header("last-event-id", cursor);
    }
    let mut frames = Frames::new(client.send(request).await?);
    while printer.left > 0 {
        match frames.next() {
            Some(frame) => take(frame, place, printer)?,
            None => {
                printer.output.flush()?;
                frames.more(client).await?;
                place.heard = Instant::now();
            }
        }
    }
    Ok(())
}

/// Only unnamed frames are events; what a later host may name otherwise is not taken for one.
fn take(frame: SseFrame, place: &mut Place, printer: &mut Printer<'_>) -> Result<(), CliError> {
    match frame.event.as_deref() {
        None if printer.left > 0 => printer.event(&frame.data)?,
        None => return Ok(()),
        Some("error") => return Err(client::refused(&frame.data)),
        // Its id is of what was looked at last; another connection goes on behind it.
        Some("closing") => {
            place.cursor = frame.id.or(place.cursor.take());
            return Err(CliError::new(
                Exit::Unreachable,
                "the host is stopping",
                "start it again, then go on with --after and the last event's `position`",
            ));
        }
        // `ready` and `progress` move the cursor, and there is nothing to show.
        Some(_) => {}
    }
    if frame.id.is_some() {
        place.cursor = frame.id;
    }
    Ok(())
}

impl Printer<'_> {
    fn event(&mut self, event: &str) -> Result<(), CliError> {
        self.left = self.left.saturating_sub(1);
        if self.json {
            return self.output.line(event);
        }
        match serde_json::from_str::<Shown<'_>>(event) {
            Ok(shown) => self.output.line(&shown.line()),
            // Shown as it came rather than left out.
            Err(_) => self.output.line(&printable(event)),
        }
    }
}

impl Shown<'_> {
    fn line(&self) -> String {
        let payload = self.payload.map_or("", RawValue::get);
        printable(&format!(
            "{}  {}  {}/{}#{}  {payload}",
            self.at, self.r#type, self.aggregate, self.agg_id, self.version
        ))
    }
}
