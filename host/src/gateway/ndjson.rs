//! NDJSON uploads: one event a line, one answer a line, in order.
//!
//! Promises: lines are appended in batches of at most 1,000 events or 4 MiB,
//! each all or nothing; a batch closes early when nothing more has arrived and
//! nothing is on its way to the log, so that a slow publisher gets its answers
//! at once and a fast one fills its batches. A line that is no event answers an
//! error with its number, and the lines around it go on. When the store
//! fails, the upload ends there: a line without an answer was not acknowledged,
//! and repeating it is safe.
//!
//! Blank lines count as lines and have no answer. A client that does not take
//! its answers is not read from, once `answer_batches_max` of them wait.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::poll_immediate;
use futures_util::stream::{FuturesOrdered, poll_fn};
use memchr::memchr;
use tokio::sync::mpsc;

use super::auth::Caller;
use super::body::BodyReader;
use super::problem::Problem;
use super::traced::RequestTrace;
use super::{Edge, json, metrics, native};
use crate::error::Blame;
use crate::event::{Epoch, EventBatch};
use crate::limits::{
    ANSWER_BATCHES_MAX, BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EVENT_LINE_BYTES_MAX, UPLOAD_BATCHES_MAX,
};
use crate::streams::{Appended, StreamError, StreamName};

/// Takes an upload in and answers as it goes. The head of the answer waits for
/// the first line's fate, so that an upload that fails at once has a status.
pub(super) async fn publish(
    edge: Arc<Edge>,
    caller: Caller,
    (stream, body): (StreamName, BodyReader),
    trace: RequestTrace,
) -> Result<Response, Problem> {
    let (answers, mut received) = mpsc::channel(ANSWER_BATCHES_MAX);
    let upload = Upload::new(Arc::clone(&edge), caller, (stream, body), (answers, trace));
    let hard = edge.hard.clone();
    edge.tasks.spawn(async move { hard.run_until_cancelled(upload.run()).await });
    let first = match received.recv().await {
        Some(Answer::Refused(problem)) => return Err(problem),
        Some(Answer::Lines(lines)) => lines,
        None => Bytes::new(),
    };
    let mut first = Some(first);
    let lines = poll_fn(move |context| {
        if let Some(lines) = first.take() {
            return std::task::Poll::Ready(Some(Ok::<_, std::convert::Infallible>(lines)));
        }
        received.poll_recv(context).map(|answer| match answer {
            Some(Answer::Lines(lines)) => Some(Ok(lines)),
            // Refusals come first or not at all.
            Some(Answer::Refused(_)) | None => None,
        })
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

#[derive(Debug)]
enum Answer {
    /// Nothing was answered before: the whole request is refused.
    Refused(Problem),
    Lines(Bytes),
}

/// Why an upload ends before its body does.
#[derive(Debug)]
enum Stop {
    /// The client is gone, or has been told.
    Quiet,
    Problem(Problem),
}

/// What became of a batch.
struct Settled {
    pending: Lines,
    /// Of the log when it answered: an upload may outlive it.
    epoch: Epoch,
    result: Result<Vec<Appended>, StreamError>,
}

/// The lines of one batch, without the events.
#[derive(Debug, Default)]
struct Lines {
    /// The ids of the events as JSON strings, one after the other, and where each ends.
    ids: Vec<u8>,
    id_ends: Vec<usize>,
    /// The number of each event's line.
    numbers: Vec<u64>,
    /// Answers of lines that are no events, and before which event each stands.
    refused: Vec<(usize, Vec<u8>)>,
}

struct Upload {
    edge: Arc<Edge>,
    caller: Caller,
    stream: Arc<StreamName>,
    body: BodyReader,
    answers: mpsc::Sender<Answer>,
    trace: RequestTrace,
    answered: bool,
    batch: EventBatch,
    lines: Lines,
    in_flight: FuturesOrdered<Pin<Box<dyn Future<Output = Settled> + Send>>>,
    /// Lines seen, blank ones too.
    number: u64,
    /// The beginning of a line whose end has not come yet.
    carry: Vec<u8>,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
}

impl Upload {
    fn new(
        edge: Arc<Edge>,
        caller: Caller,
        (stream, body): (StreamName, BodyReader),
        (answers, trace): (mpsc::Sender<Answer>, RequestTrace),
    ) -> Self {
        Self {
            edge,
            batch: EventBatch::new(caller.tenant.clone()),
            caller,
            stream: Arc::new(stream),
            body,
            answers,
            trace,
            answered: false,
            lines: Lines::default(),
            in_flight: FuturesOrdered::new(),
            number: 0,
            carry: Vec::new(),
            skipping: false,
        }
    }

    async fn run(mut self) {
        let ended = match self.consume().await {
            Ok(()) => Ok(()),
            Err(Stop::Quiet) => return,
            Err(Stop::Problem(problem)) => Err(problem),
        };
        // What was read whole is still appended and answered, in order.
        if ended.is_ok() {
            self.last_line();
        }
        self.flush();
        while let Some(settled) = self.in_flight.next().await {
            match self.settle(settled).await {
                Ok(()) => {}
                Err(Stop::Quiet) => return,
                Err(Stop::Problem(problem)) => {
                    self.end(problem).await;
                    return;
                }
            }
        }
        if let Err(problem) = ended {
            if !self.answered {
                // The head of the answer is still to come: it says whether the connection goes on (`unread`).
                self.body.abandon();
            }
            self.end(problem).await;
            self.body.pass_over_rest().await;
        }
    }

    /// Reads until the body ends.
    async fn consume(&mut self) -> Result<(), Stop> {
        let stopping = self.edge.stopping.clone();
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    let detail = "the host is stopping and reads no further";
                    return Err(Stop::Problem(Problem::new("host_stopping", detail)));
                }
                piece = self.body.next() => match piece {
                    Ok(Some(piece)) => {
                        // An upload may last longer than the token that began it.
                        self.caller.valid.check().map_err(Stop::Problem)?;
                        self.take(&piece).await?;
                    }
                    Ok(None) => return Ok(()),
                    Err(problem) => return Err(Stop::Problem(problem)),
                },
                Some(settled) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.settle(settled).await?;
                }
                // Yielding once lets the connection hand over what it has read.
                () = tokio::task::yield_now(), if self.in_flight.is_empty() && !self.lines.is_empty() => {
                    self.flush();
                }
            }
        }
    }

    /// Takes in a piece of the body, which may hold many lines or a part of one.
    async fn take(&mut self, piece: &[u8]) -> Result<(), Stop> {
        let mut rest = piece;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if self.skipping {
                self.skipping = false;
                continue;
            }
            if self.batch.bytes() + self.carry.len() + line.len() + 64 > BATCH_BYTES_MAX {
                self.flush();
                self.make_room().await?;
            }
            if self.carry.is_empty() {
                self.line(line);
            } else if self.carry.len() + line.len() > EVENT_LINE_BYTES_MAX {
                self.too_long(self.carry.len() + line.len());
            } else {
                let mut carry = std::mem::take(&mut self.carry);
                carry.extend_from_slice(line);
                self.line(&carry);
                carry.clear();
                self.carry = carry;
            }
            if self.lines.len() >= BATCH_EVENTS_MAX {
                self.flush();
                self.make_room().await?;
            }
        }
        if self.skipping {
            return Ok(());
        }
        if self.carry.len() + rest.len() > EVENT_LINE_BYTES_MAX {
            // The line is refused now; keeping more of it would serve nobody.
            self.too_long(self.carry.len() + rest.len());
            self.skipping = true;
        } else {
            self.carry.extend_from_slice(rest);
        }
        Ok(())
    }

    /// A body may end without a line break.
    fn last_line(&mut self) {
        if self.skipping || self.carry.is_empty() {
            return;
        }
        let line = std::mem::take(&mut self.carry);
        if self.batch.bytes() + line.len() + 64 > BATCH_BYTES_MAX {
            self.flush();
        }
        self.line(&line);
    }

    /// One whole line.
    fn line(&mut self, line: &[u8]) {
        self.number += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        if line.len() > EVENT_LINE_BYTES_MAX {
            self.number -= 1;
            self.too_long(line.len());
            return;
        }
        let now = self.edge.services.clock.now();
        match native::push(&mut self.batch, line, now) {
            Ok(()) => self.lines.push(&self.batch, self.number),
            Err(problem) => self.refuse(&problem),
        }
    }

    fn too_long(&mut self, bytes: usize) {
        self.number += 1;
        self.carry = Vec::new();
        let detail =
            format!("the line has {bytes} bytes or more; event_line_bytes_max is {EVENT_LINE_BYTES_MAX}");
        let problem = Problem::new("event_line_bytes_max", detail).limit(
            "event_line_bytes_max",
            bytes as u64,
            EVENT_LINE_BYTES_MAX as u64,
        );
        self.refuse(&problem);
    }

    /// The current line's answer is an error.
    fn refuse(&mut self, problem: &Problem) {
        metrics::problem(problem.code(), 1);
        let line = problem.clone().with("line", self.number.into()).to_line();
        self.lines.refused.push((self.lines.numbers.len(), line));
    }

    /// Sends the open batch on its way.
    fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let (events, bytes) = (self.batch.len(), self.batch.bytes());
        let empty = EventBatch::with_capacity(self.caller.tenant.clone(), events, bytes);
        let batch = std::mem::replace(&mut self.batch, empty);
        let lines = Lines { ids: Vec::with_capacity(self.lines.ids.len()), ..Lines::default() };
        let pending = std::mem::replace(&mut self.lines, lines);
        let log = Arc::clone(&self.edge.services.log);
        let (trace, stream) = (self.trace, Arc::clone(&self.stream));
        self.in_flight.push_back(Box::pin(async move {
            let result = match batch.is_empty() {
                true => Ok(Vec::new()),
                false => trace.append(&*log, &stream, batch).await,
            };
            Settled { pending, epoch: log.epoch(), result }
        }));
    }

    /// Starts what is in flight, answers what is done, and waits while too much is in flight.
    async fn make_room(&mut self) -> Result<(), Stop> {
        while let Some(Some(settled)) = poll_immediate(self.in_flight.next()).await {
            self.settle(settled).await?;
        }
        while self.in_flight.len() >= UPLOAD_BATCHES_MAX {
            let Some(settled) = self.in_flight.next().await else { break };
            self.settle(settled).await?;
        }
        Ok(())
    }

    /// Answers the lines of a batch.
    async fn settle(&mut self, settled: Settled) -> Result<(), Stop> {
        let Settled { pending, epoch, result } = settled;
        match result {
            Ok(appended) => {
                let repeated = appended.iter().filter(|answer| answer.repeated).count() as u64;
                metrics::published(appended.len() as u64 - repeated, repeated);
                let lines = pending.answer(&appended, &epoch.0);
                self.send(lines).await
            }
            Err(error) => {
                let culprit = match &error {
                    StreamError::IdTaken { index, .. } => Some(*index),
                    _ => None,
                };
                let problem = Problem::from(error);
                metrics::problem(problem.code(), pending.numbers.len() as u64);
                self.send(pending.answer_refused(&problem, culprit)).await?;
                if problem.blame() == Blame::Host { Err(Stop::Quiet) } else { Ok(()) }
            }
        }
    }

    async fn send(&mut self, lines: Vec<u8>) -> Result<(), Stop> {
        self.answered = true;
        self.answers.send(Answer::Lines(lines.into())).await.map_err(|_| Stop::Quiet)
    }

    /// The upload ends with an error: as the answer's status, or as its last line.
    async fn end(&mut self, problem: Problem) {
        let answer = if self.answered {
            metrics::problem(problem.code(), 1);
            Answer::Lines(problem.with("line", (self.number + 1).into()).to_line().into())
        } else {
            Answer::Refused(problem)
        };
        // A client that is gone needs no answer.
        let _ = self.answers.send(answer).await;
    }
}

impl Lines {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.numbers.len() + self.refused.len()
    }

    /// Notes the newest event of the batch.
    fn push(&mut self, batch: &EventBatch, number: u64) {
        let record = batch.records().last().expect("an event was pushed just before");
        let start = record.start as usize;
        let id = &batch.arena()[start..start + record.id_bytes as usize];
        let id = std::str::from_utf8(id).expect("text enters a batch as str");
        json::write_text(&mut self.ids, id);
        self.id_ends.push(self.ids.len());
        self.numbers.push(number);
    }

    fn answer(&self, appended: &[Appended], epoch: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.ids.len() + appended.len() * (48 + epoch.len()));
        let mut refused = self.refused.iter().peekable();
        let mut id_start = 0;
        for (index, (answer, id_end)) in appended.iter().zip(&self.id_ends).enumerate() {
            while let Some((_, line)) = refused.next_if(|(before, _)| *before <= index) {
                out.extend_from_slice(line);
            }
            out.extend_from_slice(b"{\"position\":");
            json::write_cursor(&mut out, epoch, answer.position.0);
            out.extend_from_slice(b",\"id\":");
            out.extend_from_slice(&self.ids[id_start..*id_end]);
            id_start = *id_end;
            out.extend_from_slice(if answer.repeated {
                b",\"repeated\":true}\n"
            } else {
                b",\"repeated\":false}\n"
            });
        }
        refused.for_each(|(_, line)| out.extend_from_slice(line));
        out
    }

    /// One error a line. With a culprit, the others only share its batch.
    fn answer_refused(&self, problem: &Problem, culprit: Option<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut refused = self.refused.iter().peekable();
        let shared = match culprit.and_then(|index| self.numbers.get(index)) {
            Some(line) => Problem::new("batch_refused", format!("line {line} of the same batch was refused")),
            None => problem.clone(),
        };
        for (index, number) in self.numbers.iter().enumerate() {
            while let Some((_, line)) = refused.next_if(|(before, _)| *before <= index) {
                out.extend_from_slice(line);
            }
            let mine = if culprit == Some(index) { problem } else { &shared };
            let line = mine.clone().with("line", (*number).into()).to_line();
            out.write_all(&line).expect("writing to memory cannot fail");
        }
        refused.for_each(|(_, line)| out.extend_from_slice(line));
        out
    }
}
