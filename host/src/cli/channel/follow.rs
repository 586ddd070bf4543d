//! `millrace channel follow`: a channel as it grows, until it ends.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::{Common, Cursor, Which, print, say_missed};
use crate::cli::client::{self, Client};
use crate::cli::frames::Frames;
use crate::cli::{Backoff, CliError, Exit, Output, SseFrame, printable};

#[derive(Debug, Args)]
pub(super) struct FollowArgs {
    #[command(flatten)]
    which: Which,
    /// Begin after this position, or after this cursor, as the host answers them
    #[arg(long, value_name = "PLACE", default_value = "0", value_parser = Cursor::read)]
    after: Cursor,
    /// End after so many entries
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// Give up after this many seconds without a connection
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_after: u64,
    #[command(flatten)]
    common: Common,
}

/// Where printing stands.
struct Place<'a> {
    output: &'a mut Output,
    json: bool,
    /// What the host is told to go on after.
    cursor: String,
    /// The position of the last entry that was printed, or that is gone.
    position: u64,
    left: u64,
    /// When the host last sent something.
    heard: Instant,
}

impl Place<'_> {
    fn go_on(&mut self, after: Cursor) {
        (self.cursor, self.position) = (after.text, after.position);
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lagged {
    resume_at: u64,
    missed: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Closed {
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Gap {
    code: String,
}

/// Why a connection has ended before the channel did.
struct Broken {
    error: CliError,
    /// Whether another connection may go better.
    passes: bool,
}

impl Broken {
    /// By what the host says: its own trouble may pass.
    fn by_host(error: CliError) -> Self {
        let passes = matches!(error.exit(), Exit::Unreachable | Exit::Failure);
        Self { error, passes }
    }
}

impl From<CliError> for Broken {
    /// An answer that cannot be read, or output that nobody takes, would be the same again.
    fn from(error: CliError) -> Self {
        let passes = error.exit() == Exit::Unreachable;
        Self { error, passes }
    }
}

pub(super) async fn run(args: &FollowArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let mut place = Place {
        output,
        json: args.common.json,
        cursor: args.after.text.clone(),
        position: args.after.position,
        left: args.limit.unwrap_or(u64::MAX),
        heard: Instant::now(),
    };
    let mut backoff = Backoff::default();
    let give_up_after = Duration::from_secs(args.give_up_after);
    loop {
        let heard = place.heard;
        let Err(Broken { error, passes }) = connection(&client, args, &mut place).await else {
            return Ok(());
        };
        if place.heard != heard {
            backoff.reset();
        }
        if !passes || place.heard.elapsed() >= give_up_after {
            return Err(error);
        }
        place.output.flush()?;
        eprintln!("{}; trying again", error.sentence());
        backoff.sleep().await;
    }
}

/// One connection. `Ok` when the channel has ended, or enough was printed.
async fn connection(client: &Client, args: &FollowArgs, place: &mut Place<'_>) -> Result<(), Broken> {
    let query = args.common.query(&[("after", &place.cursor)]);
    let request = client
        .request(Method::GET, client.address(&args.which.path(&["entries"]), &query))
        .header(header::ACCEPT, "text/event-stream")
        .header("last-event-id", &place.cursor);
    let mut frames = Frames::new(client.send(request).await.map_err(Broken::by_host)?);
    while place.left > 0 {
        match frames.next() {
            Some(frame) => {
                if take(client, &frame, place)? {
                    return Ok(());
                }
            }
            None => {
                place.output.flush()?;
                frames.more(client).await?;
                place.heard = Instant::now();
            }
        }
    }
    Ok(())
}

/// Whether this was the last one. What a later host may name otherwise is left out.
fn take(client: &Client, frame: &SseFrame, place: &mut Place<'_>) -> Result<bool, Broken> {
    match frame.event.as_deref() {
        Some("entry") => {
            let after = frame.id.as_deref().and_then(|id| Cursor::read(id).ok());
            let after = after.ok_or_else(|| client.unexpected("an entry has no place"))?;
            if after.position > place.position {
                print(&frame.data, place.json, place.output)?;
                place.left -= 1;
                place.go_on(after);
            }
        }
        // From here on it is this process, and not another one of its name.
        Some("ready") => {
            let after = frame.id.as_deref().and_then(|id| Cursor::read(id).ok());
            if let Some(after) = after.filter(|after| after.position == place.position) {
                place.go_on(after);
            }
        }
        Some("lagged") => {
            let lagged: Lagged = serde_json::from_str(&frame.data).unwrap_or_default();
            if lagged.missed > 0 {
                place.output.flush()?;
                say_missed(lagged.missed, lagged.resume_at);
                let after = frame.id.as_deref().and_then(|id| Cursor::read(id).ok());
                if let Some(after) = after.filter(|after| after.position > place.position) {
                    place.go_on(after);
                }
            }
        }
        Some("gap") => {
            let gap: Gap = serde_json::from_str(&frame.data).unwrap_or_default();
            place.output.flush()?;
            eprintln!(
                "{} means nothing to the host ({}): the channel is read from its beginning",
                printable(&place.cursor),
                printable(&gap.code)
            );
            let start = || Cursor { text: "0".to_owned(), position: 0 };
            place.go_on(frame.id.as_deref().and_then(|id| Cursor::read(id).ok()).unwrap_or_else(start));
        }
        Some("closed") => {
            let closed: Closed = serde_json::from_str(&frame.data).unwrap_or_default();
            place.output.flush()?;
            ended(&closed.reason)?;
            return Ok(true);
        }
        Some("error") => return Err(Broken::by_host(client::refused(&frame.data))),
        Some("closing") => {
            let sentence = "the host is stopping";
            let next = format!("start it again, then go on with --after {}", place.cursor);
            return Err(CliError::new(Exit::Unreachable, sentence, next).into());
        }
        _ => {}
    }
    Ok(false)
}

fn ended(reason: &str) -> Result<(), CliError> {
    match reason {
        "ended" => eprintln!("both sides have ended the channel"),
        "success" | "failed" | "cancelled" => eprintln!("the process was closed: {reason}"),
        "removed" => {
            let sentence = "the process was removed with its channels";
            let next = "look with `millrace channel ls` which there are";
            return Err(CliError::new(Exit::Refused, sentence, next));
        }
        "revoked" => {
            let sentence = "the right to read the channel has ended";
            let next = "ask the submitter to assign or name you again";
            return Err(CliError::new(Exit::Denied, sentence, next));
        }
        other => eprintln!("the host ended it: {}", printable(other)),
    }
    Ok(())
}
