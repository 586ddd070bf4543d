//! Serving one subscription as server-sent events.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::meter::Meter;
use super::shell::{Broken, End, Fault, SseOptions, SseSink, Sub, Until, cause, millis};
use crate::limits;
use crate::live::Batch;

const PING: &[u8] = b": ping\n\n";

/// Writes what a subscription gives until it ends, the client goes, or `until` says so. The subscription is closed
/// at the end. Dropping the future closes it too, without a word to the client.
pub async fn serve_sse(
    sub: Sub,
    sink: &mut dyn SseSink,
    options: &SseOptions,
    until: Until,
) -> Result<End, Broken> {
    let mut client = Client { sink, options, meter: Meter::new("sse"), told: None };
    let end = client.serve(sub, until).await;
    client.sink.close();
    client.meter.ended(cause(&end));
    end
}

struct Client<'a> {
    sink: &'a mut dyn SseSink,
    options: &'a SseOptions,
    meter: Meter,
    /// When frames were last written.
    told: Option<Instant>,
}

/// What goes out in one write. A single part is not copied.
#[derive(Default)]
struct Gathered {
    parts: Vec<Bytes>,
    bytes: usize,
    frames: usize,
    /// The oldest commit in it.
    committed: Option<std::time::Instant>,
}

impl Gathered {
    fn push(&mut self, part: Bytes, frames: usize) {
        self.bytes += part.len();
        self.frames += frames;
        self.parts.push(part);
    }

    fn push_batch(&mut self, batch: &Batch) {
        self.push(batch.sse(), batch.len());
        self.committed = self.committed.or(batch.committed());
    }

    fn into_bytes(mut self) -> Bytes {
        if self.parts.len() == 1 { self.parts.remove(0) } else { self.parts.concat().into() }
    }
}

impl Client<'_> {
    async fn serve(&mut self, mut sub: Sub, mut until: Until) -> Result<End, Broken> {
        // The first bytes carry the answer's head with them. Spread, because clients are often lost together.
        let wait = rand::random_range(limits::LIVE_RETRY_WAIT_MIN..=limits::LIVE_RETRY_WAIT_MIN * 3);
        let mut first = Gathered::default();
        first.push(format!("retry: {}\n\n", millis(wait)).into(), 0);
        self.write(first).await?;
        let heartbeat = sleep_until(self.next_heartbeat());
        tokio::pin!(heartbeat);
        loop {
            // A cancelled `next` loses nothing, and the two others stay.
            let ready = tokio::select! {
                biased;
                fault = &mut until => return self.stop(fault).await,
                ready = sub.next() => Some(ready),
                () = &mut heartbeat => None,
            };
            if let (Some(Some(Ok(_))), Some(pause)) = (&ready, self.pause()) {
                // What comes meanwhile goes with it. It is rare enough to have its timer made anew.
                let mut pause = Box::pin(sleep_until(pause));
                let stopped = tokio::select! {
                    biased;
                    fault = &mut until => Some(fault),
                    () = &mut pause => None,
                };
                if let Some(fault) = stopped {
                    return self.stop(fault).await;
                }
            }
            let mut out = Gathered::default();
            let end = match ready {
                Some(ready) => self.gather(&mut sub, ready, &mut out),
                None => {
                    out.push(Bytes::from_static(PING), 0);
                    None
                }
            };
            if out.bytes > 0 {
                self.write(out).await?;
            }
            if let Some(end) = end {
                return end;
            }
            heartbeat.as_mut().reset(self.next_heartbeat());
        }
    }

    /// The last words.
    async fn stop(&mut self, fault: Fault) -> Result<End, Broken> {
        let mut last = Gathered::default();
        self.meter.refused(&fault);
        last.push(error_event(&fault), 1);
        self.write(last).await?;
        Ok(End::Stopped(fault))
    }

    /// Until when frames wait for others; none when it is time.
    fn pause(&self) -> Option<Instant> {
        let until = self.told? + self.options.write_pause;
        (Instant::now() < until).then_some(until)
    }

    /// Takes all that is ready, up to the bound. Answers the end, when it came.
    fn gather(
        &self,
        sub: &mut Sub,
        ready: Option<Result<Batch, Fault>>,
        out: &mut Gathered,
    ) -> Option<Result<End, Broken>> {
        let mut item = ready;
        loop {
            match item {
                Some(Ok(batch)) => out.push_batch(&batch),
                Some(Err(fault)) => {
                    self.meter.refused(&fault);
                    out.push(error_event(&fault), 1);
                    return Some(Err(fault.into()));
                }
                None => return Some(Ok(End::Ended)),
            }
            if out.bytes >= self.options.write_bytes {
                return None;
            }
            item = sub.next().now_or_never()?;
        }
    }

    async fn write(&mut self, out: Gathered) -> Result<(), Broken> {
        let Gathered { bytes, frames, committed, .. } = out;
        let within = self.options.write_wait_max;
        self.sink.arm(within);
        match timeout(within, self.sink.write(out.into_bytes())).await {
            Ok(Ok(())) => {
                // After a full write the next one has no reason to wait.
                self.told = (frames > 0 && bytes < self.options.write_bytes).then(Instant::now);
                self.meter.wrote(frames, bytes, committed);
                Ok(())
            }
            Ok(Err(error)) => Err(Broken::io(&error)),
            Err(_) => Err(Broken::Stalled(within)),
        }
    }

    fn next_heartbeat(&self) -> Instant {
        Instant::now() + self.options.heartbeat.max(Duration::from_millis(1))
    }
}

/// The last event; `retry` is what a plain `EventSource` goes by.
fn error_event(fault: &Fault) -> Bytes {
    let retry = fault.retry_ms();
    let line = retry.map(|wait| format!("retry: {wait}\n")).unwrap_or_default();
    format!("{line}event: error\ndata: {}\n\n", fault.frame(retry)).into()
}
