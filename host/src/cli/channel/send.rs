//! `millrace channel send`: entries from the command line or from standard input.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Common, Which};
use crate::cli::client::{self, ANSWER_WAIT_MAX, Client, Problem};
use crate::cli::plugin::text;
use crate::cli::{Backoff, CliError, Exit, Output, printable};
use crate::limits::CHANNEL_PAYLOAD_BYTES_MAX;

/// Entries and bytes of one request: less than a host takes, so that none is refused for its size alone.
const BATCH_ENTRIES: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// Lines that are read ahead.
const AHEAD_LINES_MAX: usize = 2 * BATCH_ENTRIES;
/// Longest line: the largest payload as base64.
const LINE_BYTES_MAX: usize = CHANNEL_PAYLOAD_BYTES_MAX.div_ceil(3) * 4 + 2;
/// Longest wait that a host may ask for before more is sent.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct SendArgs {
    #[command(flatten)]
    which: Which,
    /// One entry each; without any, each line of standard input is one
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// `data`, or the last word of your half: `end` or `error`, with or without a text
    #[arg(long, default_value = "data", value_parser = ["data", "end", "error"])]
    r#type: String,
    /// Send `end` after the last entry
    #[arg(long, conflicts_with = "type")]
    end: bool,
    /// Whether each text is text, JSON or base64
    #[arg(long, default_value = "text", value_parser = ["text", "json", "base64"])]
    format: String,
    /// Say that the entries answer this number of the other side
    #[arg(long, value_name = "N")]
    reply_to: Option<u64>,
    /// Your number of the first entry, from 1; the others follow. What the host has already is not repeated
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    sequence: Option<u64>,
    /// Make the process and the channel if they are not there
    #[arg(long)]
    create: bool,
    /// With --create: who executes a new process
    #[arg(long, value_name = "NAME", requires = "create")]
    executor: Option<String>,
    /// Give up after this many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_after: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Default, Serialize)]
struct Sent {
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inreplyto: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Appended {
    appended: Vec<Value>,
}

struct Sender<'a> {
    client: Client,
    args: &'a SendArgs,
    output: &'a mut Output,
    /// Entries that the host has answered.
    answered: u64,
    /// Entries that there were so far: the next one's number is behind theirs.
    made: u64,
}

pub(super) async fn run(args: SendArgs, output: &mut Output) -> Result<(), CliError> {
    if args.r#type != "data" && args.texts.len() > 1 {
        return Err(CliError::usage(
            format!(
                "`{}` is the last word of your half, and there are {} texts",
                args.r#type,
                args.texts.len()
            ),
            "send the others first, as data",
        ));
    }
    let client = Client::new(&args.common.connect)?;
    if args.create {
        create(&client, &args).await?;
    }
    let mut sender = Sender { client, args: &args, output, answered: 0, made: 0 };
    match args.r#type.as_str() {
        "end" => sender.last("end", args.texts.first()).await?,
        "error" => sender.last("error", args.texts.first()).await?,
        _ if args.texts.is_empty() => sender.lines().await?,
        _ => {
            let entries: Result<Vec<Sent>, CliError> =
                args.texts.iter().map(|text| sender.data(text.clone())).collect();
            let mut entries = entries?;
            while !entries.is_empty() {
                let rest = entries.split_off(batch_of(&entries));
                sender.send(&entries).await?;
                entries = rest;
            }
        }
    }
    if args.end { sender.last("end", None).await } else { Ok(()) }
}

/// Makes what is missing. What is there stays as it is, and whoever takes part in it may say so.
async fn create(client: &Client, args: &SendArgs) -> Result<(), CliError> {
    let query = args.common.query(&[]);
    let channel = || client.address(&args.which.path(&[]), &query);
    if found(client, client.request(Method::GET, channel())).await?
        || found(client, client.request(Method::PUT, channel()).json(&json!({}))).await?
    {
        return Ok(());
    }
    let mut body = json!({ "channels": [args.which.channel] });
    if let Some(executor) = &args.executor {
        body["executor"] = json!(executor);
    }
    let process = client.address(&["v1", "processes", &args.which.process], &query);
    client.send(client.request(Method::PUT, process).json(&body).timeout(ANSWER_WAIT_MAX)).await?;
    Ok(())
}

/// Whether it went well. That something is not there is no error.
async fn found(client: &Client, request: RequestBuilder) -> Result<bool, CliError> {
    let response = request.timeout(ANSWER_WAIT_MAX).send().await.map_err(|e| client.unreachable(&e))?;
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_FOUND {
        return Ok(status.is_success());
    }
    Err(client::refusal(&client::problem(response).await, status))
}

/// How many of the first entries go together: at least one.
fn batch_of(entries: &[Sent]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Sent| {
        bytes += entry.bytes();
        bytes <= BATCH_BYTES
    };
    entries.iter().take(BATCH_ENTRIES).take_while(fits).count().max(1).min(entries.len())
}

impl Sent {
    fn bytes(&self) -> usize {
        let json = self.json.as_ref().map_or(0, |json| json.get().len());
        [&self.text, &self.payload].into_iter().flatten().map(String::len).sum::<usize>() + json
    }
}

impl Sender<'_> {
    /// An entry with its number and the number that it answers.
    fn entry(&mut self) -> Sent {
        let sequence = self.args.sequence.map(|first| first + self.made);
        self.made += 1;
        Sent { sequence, inreplyto: self.args.reply_to, ..Sent::default() }
    }

    fn data(&mut self, text: String) -> Result<Sent, CliError> {
        let mut entry = self.entry();
        match self.args.format.as_str() {
            "json" => {
                let json: Result<Box<RawValue>, _> = serde_json::from_str(&text);
                entry.json = Some(json.map_err(|e| {
                    CliError::usage(
                        format!("entry {} is not JSON: {e}", self.made),
                        "quote it, for instance '{\"a\":1}', or leave --format out",
                    )
                })?);
            }
            "base64" => entry.payload = Some(text),
            _ => entry.text = Some(text),
        }
        Ok(entry)
    }

    /// What closes this half, alone or with a text.
    async fn last(&mut self, with: &'static str, text: Option<&String>) -> Result<(), CliError> {
        let mut entry = match text {
            Some(text) if with == "error" && self.args.format == "text" => {
                Sent { error: Some(text.clone()), ..self.entry() }
            }
            Some(text) => self.data(text.clone())?,
            None => self.entry(),
        };
        entry.r#type = Some(with);
        self.send(&[entry]).await
    }

    /// Standard input: a line that comes alone is sent alone, and those that are there go together.
    async fn lines(&mut self) -> Result<(), CliError> {
        let mut lines = standard_input()?;
        while let Some(first) = lines.recv().await {
            let mut entries = vec![self.data(first?)?];
            let mut bytes = entries[0].bytes();
            while entries.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
                let Ok(line) = lines.try_recv() else { break };
                match line.and_then(|line| self.data(line)) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => {
                        // What came before it is sent all the same.
                        self.send(&entries).await?;
                        return Err(error);
                    }
                }
                bytes += entries.last().map_or(0, Sent::bytes);
            }
            self.send(&entries).await?;
        }
        Ok(())
    }

    /// Sends entries until the host has answered them. What it has no room for in its rate waits; what may have been
    /// lost on the way is sent again only if it is numbered, since the host knows it again then.
    async fn send(&mut self, entries: &[Sent]) -> Result<(), CliError> {
        let query = self.args.common.query(&[]);
        let address = self.client.address(&self.args.which.path(&["entries"]), &query);
        let mut backoff = Backoff::default();
        let give_up_at = Instant::now() + Duration::from_secs(self.args.give_up_after);
        loop {
            let request = self.client.request(Method::POST, address.clone());
            let request = request.json(entries).timeout(ANSWER_WAIT_MAX);
            let (error, wait) = match attempt(&self.client, request).await {
                Ok(appended) => return self.print(&appended),
                Err(Stop::Wait(error, wait)) => (error, wait),
                // Nobody was there from the start: that is to be said, and not waited for.
                Err(Stop::Unreached(error)) if self.answered > 0 || self.args.sequence.is_some() => {
                    eprintln!("{}; trying again", error.sentence());
                    (error, None)
                }
                Err(Stop::Lost(error)) if self.args.sequence.is_some() => {
                    eprintln!("{}; trying again", error.sentence());
                    (error, None)
                }
                Err(Stop::Lost(error)) => return Err(self.lost(&error)),
                Err(Stop::Refused(error) | Stop::Unreached(error)) => return Err(self.so_far(error)),
            };
            if Instant::now() + wait.unwrap_or_default() >= give_up_at {
                return Err(self.so_far(error));
            }
            self.output.flush()?;
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => backoff.sleep().await,
            }
        }
    }

    fn print(&mut self, appended: &[Value]) -> Result<(), CliError> {
        for one in appended {
            self.answered += 1;
            if self.args.common.json {
                self.output.json(one)?;
                continue;
            }
            let at = |name: &str| text(one.get(name));
            let again = if one["repeated"] == true { "  was there" } else { "" };
            self.output.line(&format!("position {}  sequence {}{again}", at("position"), at("sequence")))?;
        }
        self.output.flush()
    }

    fn so_far(&self, error: CliError) -> CliError {
        if self.answered == 0 {
            return error;
        }
        let sentence = format!("{}; {} entries had been taken", error.sentence(), self.answered);
        CliError::new(error.exit(), sentence, error.next_step())
    }

    fn lost(&self, error: &CliError) -> CliError {
        let sentence = format!("{}; {} entries had been answered", error.sentence(), self.answered);
        let next =
            "look with `millrace channel read` what arrived; with --sequence it can be sent again safely";
        CliError::new(error.exit(), sentence, next)
    }
}

/// Why a request has no answer that counts.
enum Stop {
    /// Nothing was taken; ask again, after a while if the host said how long.
    Wait(CliError, Option<Duration>),
    /// There is no connection.
    Unreached(CliError),
    /// Whether it was taken is not known.
    Lost(CliError),
    Refused(CliError),
}

async fn attempt(client: &Client, request: RequestBuilder) -> Result<Vec<Value>, Stop> {
    let response = request.send().await.map_err(|error| {
        let stop = if error.is_connect() { Stop::Unreached } else { Stop::Lost };
        stop(client.unreachable(&error))
    })?;
    let status = response.status();
    if status.is_success() {
        let body = response.bytes().await.map_err(|e| Stop::Lost(client.unreachable(&e)))?;
        let answer: Appended =
            serde_json::from_slice(&body).map_err(|e| Stop::Refused(client.unexpected(&e.to_string())))?;
        return Ok(answer.appended);
    }
    let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let problem: Problem = client::problem(response).await;
    let error = client::refusal(&problem, status);
    Err(if status == StatusCode::TOO_MANY_REQUESTS {
        Stop::Wait(error, wait.map(|wait| wait.min(WAIT_MAX)))
    } else if problem.is_transient() {
        Stop::Lost(error)
    } else {
        Stop::Refused(error)
    })
}

type Lines = mpsc::Receiver<Result<String, CliError>>;

/// The lines of standard input, read by a thread of its own: it blocks.
fn standard_input() -> Result<Lines, CliError> {
    let (sender, receiver) = mpsc::channel(AHEAD_LINES_MAX);
    // Not waited for: it ends with the input, or when nobody takes its lines any more.
    let thread = std::thread::Builder::new().name("channel-input".into()).spawn(move || {
        let mut input = BufReader::new(io::stdin());
        loop {
            let next = line(&mut input);
            let ended = !matches!(next, Ok(Some(_)));
            if let Some(next) = next.transpose()
                && sender.blocking_send(next).is_err()
            {
                return;
            }
            if ended {
                return;
            }
        }
    });
    thread.map_err(|e| {
        CliError::failed(format!("a thread does not start: {e}"), "look at the process limits (ulimit -u)")
    })?;
    Ok(receiver)
}

/// One line without its end; none at the end of the input.
fn line(input: &mut BufReader<io::Stdin>) -> Result<Option<String>, CliError> {
    let mut bytes = Vec::new();
    let read = input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes);
    read.map_err(|e| {
        CliError::failed(format!("standard input cannot be read: {e}"), "look at where it comes from")
    })?;
    if bytes.len() > LINE_BYTES_MAX {
        let sentence = format!("a line is longer than {LINE_BYTES_MAX} bytes");
        return Err(CliError::new(Exit::Refused, sentence, "send smaller entries"));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        bytes.pop();
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let start = printable(&String::from_utf8_lossy(&e.as_bytes()[..e.as_bytes().len().min(40)]));
        let sentence = format!("a line is not UTF-8: {start}");
        CliError::usage(sentence, "write it as base64 and send it with --format base64")
    })?;
    Ok(Some(text))
}
