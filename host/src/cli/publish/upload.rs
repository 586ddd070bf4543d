//! One upload after another, until everything is answered.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use indicatif::ProgressBar;
use reqwest::{Body, Method, header};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::answers::{Answers, AnswersEnd};
use super::{Chunk, Chunker, Pace, Window};
use crate::cli::client::{self, Client};
use crate::cli::{CliError, Exit};
use crate::limits::{BODY_IDLE_MAX, UPLOAD_BYTES_MAX};

/// Chunks that are read ahead.
const AHEAD_CHUNKS_MAX: usize = 8;
/// How long a host may leave sent events unanswered where nobody said `--give-up-after`.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes after which an upload ends and another goes on: a host takes no more than `upload_bytes_max` in one.
const UPLOAD_BYTES: u64 = UPLOAD_BYTES_MAX / 2;
/// How long an upload waits for an input that comes slowly; a host waits no longer than `body_idle_max`.
const INPUT_WAIT_MAX: Duration = Duration::from_secs(BODY_IDLE_MAX.as_secs() / 2);

/// Why an attempt ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// Another attempt may go on.
    Transient(CliError),
    /// Another attempt would end the same way.
    Final(CliError),
}

/// What has been answered over all attempts.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) events: u64,
    pub(super) repeated: u64,
    pub(super) refused: u64,
    pub(super) resent: u64,
    pub(super) refusals: Vec<String>,
    pub(super) position: Option<String>,
}

#[derive(Debug)]
pub(super) struct Upload {
    client: Client,
    shared: Arc<Shared>,
    silence_max: Duration,
}

#[derive(Debug)]
struct Shared {
    progress: Mutex<Progress>,
    /// Answers made room in the window.
    room: Notify,
    /// The present upload is to end; its body may be waiting for input.
    cut: Notify,
    source: tokio::sync::Mutex<Source>,
    /// Which attempt may send. A body of an earlier one ends with an error.
    attempt: AtomicU64,
    begun: Instant,
}

#[derive(Debug)]
struct Progress {
    window: Window,
    answers: Answers,
    pace: Option<Pace>,
    /// Why the input ended early.
    input_failed: Option<String>,
    input_ended: bool,
    /// Bytes of the present upload.
    upload_bytes: u64,
    /// The present upload has answers.
    upload_answered: bool,
    /// The present upload ends here, and another goes on.
    cut: bool,
}

/// The input, read by a thread of its own: files block.
#[derive(Debug)]
struct Source(mpsc::Receiver<Result<Chunk, String>>);

impl Upload {
    /// Starts to read the input.
    pub(super) fn start<R: Read + Send + 'static>(
        client: Client,
        mut chunks: Chunker<R>,
        rate: Option<f64>,
        silence_max: Option<Duration>,
    ) -> Result<Self, CliError> {
        let (sender, receiver) = mpsc::channel(AHEAD_CHUNKS_MAX);
        // Not waited for: it ends with the input, or when nobody takes its chunks any more.
        std::thread::Builder::new()
            .name("publish-input".into())
            .spawn(move || {
                loop {
                    let next = match chunks.next_chunk() {
                        Ok(Some(chunk)) => Ok(chunk),
                        Ok(None) => return,
                        Err(error) => Err(error.to_string()),
                    };
                    let failed = next.is_err();
                    if sender.blocking_send(next).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(|e| {
                CliError::failed(
                    format!("a thread does not start: {e}"),
                    "look at the process limits (ulimit -u)",
                )
            })?;
        let progress = Progress {
            window: Window::default(),
            answers: Answers::default(),
            pace: rate.map(Pace::new),
            input_failed: None,
            input_ended: false,
            upload_bytes: 0,
            upload_answered: false,
            cut: false,
        };
        let shared = Arc::new(Shared {
            progress: Mutex::new(progress),
            room: Notify::new(),
            cut: Notify::new(),
            source: tokio::sync::Mutex::new(Source(receiver)),
            attempt: AtomicU64::new(0),
            begun: Instant::now(),
        });
        Ok(Self { client, shared, silence_max: silence_max.unwrap_or(SILENCE_MAX) })
    }

    /// Sends what has no answer, until all has one: one upload, or more where one must not be longer.
    pub(super) async fn attempt(&self, bar: &ProgressBar) -> Result<(), Stop> {
        loop {
            let attempt = self.shared.attempt.fetch_add(1, Ordering::SeqCst) + 1;
            {
                let mut progress = self.shared.lock();
                progress.window.restart();
                progress.answers.reconnect();
                (progress.upload_bytes, progress.upload_answered, progress.cut) = (0, false, false);
            }
            self.upload(attempt, bar).await?;
            self.shared.wait_for_input(attempt).await;
            let progress = self.shared.lock();
            if progress.input_ended && progress.window.is_empty() {
                return self.input_failure(&progress);
            }
        }
    }

    async fn upload(&self, attempt: u64, bar: &ProgressBar) -> Result<(), Stop> {
        let request = self
            .client
            .request(Method::POST, self.client.address(&["v1", "events"], &[]))
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(header::ACCEPT, "application/x-ndjson")
            .body(Body::wrap_stream(body(Arc::clone(&self.shared), attempt)));
        let mut response = request.send().await.map_err(|e| self.broken(&e))?;
        if !response.status().is_success() {
            let status = response.status();
            let problem = client::problem(response).await;
            let error = client::refusal(&problem, status);
            return Err(if problem.is_transient() { Stop::Transient(error) } else { Stop::Final(error) });
        }
        while let Some(part) = self.part(&mut response).await? {
            if let Some(ended) = self.take(&part, bar)? {
                return ended;
            }
        }
        self.finished()
    }

    /// Counts a part of the answer. `Some` when the upload ends there.
    fn take(&self, part: &[u8], bar: &ProgressBar) -> Result<Option<Result<(), Stop>>, Stop> {
        let mut progress = self.shared.lock();
        let before = progress.answers.events;
        let Progress { answers, window, .. } = &mut *progress;
        let fed = answers.feed(part, window);
        if progress.window.has_innocent() {
            progress.cut = true;
            self.shared.cut.notify_one();
        }
        progress.upload_answered |= progress.answers.events > before;
        self.show(bar, &progress);
        let answered = progress.upload_answered;
        drop(progress);
        self.shared.room.notify_waiters();
        let transient = |sentence| Stop::Transient(CliError::new(Exit::Refused, sentence, ""));
        match fed {
            Ok(()) => Ok(None),
            Err(AnswersEnd::Unexpected(detail)) => Err(Stop::Final(self.client.unexpected(&detail))),
            // Without an answer to any event another upload would end the same way.
            Err(AnswersEnd::NextUpload(_)) if answered => Ok(Some(Ok(()))),
            Err(AnswersEnd::NextUpload(detail) | AnswersEnd::Again(detail)) => Err(transient(detail)),
        }
    }

    /// The next part of the answer. Silence counts only while the host owes answers.
    async fn part(&self, response: &mut reqwest::Response) -> Result<Option<Bytes>, Stop> {
        let next = response.chunk();
        tokio::pin!(next);
        loop {
            match tokio::time::timeout(self.silence_max, &mut next).await {
                Ok(part) => return part.map_err(|e| self.broken(&e)),
                Err(_) if self.shared.lock().window.is_empty() => {}
                Err(_) => {
                    let sentence =
                        format!("the host left events unanswered for {} s", self.silence_max.as_secs());
                    return Err(Stop::Transient(CliError::new(Exit::Unreachable, sentence, "")));
                }
            }
        }
    }

    /// After the last answer: is everything answered that was sent?
    fn finished(&self) -> Result<(), Stop> {
        let progress = self.shared.lock();
        self.input_failure(&progress)?;
        let all = progress.input_ended && progress.window.is_empty();
        if all || (progress.cut && progress.window.owes_nothing()) {
            return Ok(());
        }
        Err(Stop::Transient(CliError::new(Exit::Unreachable, "the host ended the upload early", "")))
    }

    fn input_failure(&self, progress: &Progress) -> Result<(), Stop> {
        let Some(detail) = &progress.input_failed else { return Ok(()) };
        let answered = progress.answers.events;
        Err(Stop::Final(CliError::failed(
            format!("the input cannot be read to its end: {detail}; {answered} events had been answered"),
            "correct the input and publish it again; what was taken is recognised",
        )))
    }

    pub(super) fn totals(&self) -> Totals {
        let progress = self.shared.lock();
        let answers = &progress.answers;
        Totals {
            events: answers.events,
            repeated: answers.repeated,
            refused: answers.refused,
            resent: progress.window.resent(),
            refusals: answers.refusals.clone(),
            position: answers.position(),
        }
    }

    fn show(&self, bar: &ProgressBar, progress: &Progress) {
        if bar.is_hidden() {
            return;
        }
        bar.set_position(progress.window.input_bytes());
        let events = progress.answers.events;
        let seconds = self.shared.begun.elapsed().as_secs_f64().max(1e-3);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = events as f64 / seconds;
        bar.set_message(format!("{events} events, {rate:.0} events/s"));
    }

    fn broken(&self, error: &reqwest::Error) -> Stop {
        if self.shared.lock().input_failed.is_some()
            && let Err(stop) = self.finished()
        {
            return stop;
        }
        Stop::Transient(self.client.unreachable(error))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next chunk for an attempt's body; `None` at the end of the input.
    ///
    /// Dropped at any `.await` it loses nothing: a chunk is in the window
    /// before it counts as sent, and `recv` gives no chunk to a dropped future.
    async fn next(&self, attempt: u64) -> Result<Option<Bytes>, SupersededError> {
        loop {
            let wait = {
                let mut progress = self.lock();
                if self.attempt.load(Ordering::SeqCst) != attempt {
                    return Err(SupersededError);
                }
                let progress = &mut *progress;
                let begun = progress.upload_bytes > 0;
                match progress.window.next_unsent() {
                    _ if progress.cut => return Ok(None),
                    Some(_)
                        if progress.upload_bytes >= UPLOAD_BYTES
                            || (begun && progress.window.must_part()) =>
                    {
                        progress.cut = true;
                        return Ok(None);
                    }
                    Some(chunk) => {
                        let bytes = chunk.bytes.clone();
                        let wait = progress
                            .pace
                            .as_mut()
                            .map_or(Duration::ZERO, |pace| pace.wait(self.begun.elapsed(), chunk.events));
                        progress.window.mark_sent();
                        progress.upload_bytes += bytes.len() as u64;
                        Some((bytes, wait))
                    }
                    None if progress.input_ended || (begun && progress.window.must_part()) => {
                        progress.cut = true;
                        return Ok(None);
                    }
                    None => None,
                }
            };
            if let Some((bytes, wait)) = wait {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                return Ok(Some(bytes));
            }
            let taken = tokio::time::timeout(INPUT_WAIT_MAX, self.take_in(attempt));
            let taken = tokio::select! {
                taken = taken => taken,
                () = self.cut.notified() => continue,
            };
            match taken {
                Ok(taken) => taken?,
                // Nothing to send for long; a full window is no reason, answers come then.
                Err(_) if self.lock().window.has_room() => self.lock().cut = true,
                Err(_) => {}
            }
        }
    }

    fn waits_for_input(&self) -> bool {
        let progress = self.lock();
        progress.window.is_empty() && !progress.input_ended
    }

    /// Until there is something to send, or nothing will come any more.
    async fn wait_for_input(&self, attempt: u64) {
        loop {
            if !self.waits_for_input() {
                return;
            }
            if self.take_in(attempt).await.is_err() {
                return;
            }
        }
    }

    /// Moves a chunk from the input into the window, once there is room.
    async fn take_in(&self, attempt: u64) -> Result<(), SupersededError> {
        loop {
            let room = self.room.notified();
            if self.lock().window.has_room() {
                break;
            }
            room.await;
            if self.attempt.load(Ordering::SeqCst) != attempt {
                return Err(SupersededError);
            }
        }
        let mut source = self.source.lock().await;
        if self.lock().window.next_unsent().is_some() || self.lock().input_ended {
            // An earlier attempt's body took one in while this one waited.
            return Ok(());
        }
        let next = source.0.recv().await;
        let mut progress = self.lock();
        match next {
            Some(Ok(chunk)) => progress.window.push(chunk),
            Some(Err(detail)) => {
                progress.input_failed = Some(detail);
                progress.input_ended = true;
            }
            None => progress.input_ended = true,
        }
        Ok(())
    }
}

/// Another attempt has begun; this body is nobody's any more.
#[derive(Debug, thiserror::Error)]
#[error("another attempt has begun")]
struct SupersededError;

fn body(shared: Arc<Shared>, attempt: u64) -> impl Stream<Item = Result<Bytes, SupersededError>> + Send {
    stream::try_unfold(shared, move |shared| async move {
        let next = shared.next(attempt).await?;
        Ok(next.map(|bytes| (bytes, shared)))
    })
}
